"""What quantization costs in text: perplexity, KL divergence, top-1 agreement, looping.

Computed on the PyTorch side, with the dequantized weights of the result: on a CPU it is several
times faster than MLX, and `agreement` proves that both sides give the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.errors import OptionError, QualityError
from torch2mlx.verification.report import Budget, ParityReport

if TYPE_CHECKING:
    import torch

__all__ = [
    "Bounds",
    "Quality",
    "RecordedLogits",
    "evaluation_text",
    "measure_quality",
    "tail_loop_rate",
    "text_windows",
]

Array = np.ndarray[Any, Any]

_ROWS = 64  # positions whose log-probabilities exist at a time

# A text that ends in the same run of at most 40 tokens, three times or more and over at least
# 24 tokens, is stuck; fluent text of that length hardly ever does so.
_PERIOD, _REPEATS, _LOOP_TOKENS = 40, 3, 24


@dataclass(frozen=True)
class Quality:
    """How a quantized model predicts text, beside its original.

    Attributes:
        windows: number of windows of text.
        tokens: number of predicted tokens in all of them.
        reference_perplexity: exp of the original's mean negative log-likelihood.
        perplexity: the same of the quantized model.
        kl: mean KL(original ‖ quantized) a token, in nats.
        kl_error: standard error of `kl`, from the spread between windows.
        top1: share of positions, 0 to 1, with the same most likely token.
        divergences: KL divergence in nats of each predicted token, [windows][positions].
    """

    windows: int
    tokens: int
    reference_perplexity: float
    perplexity: float
    kl: float
    kl_error: float
    top1: float
    divergences: tuple[tuple[float, ...], ...] = ()

    def budget(self) -> Budget:
        """The figures as the quantization budget; they inform and set no bound."""
        return Budget(
            "quantization",
            {
                "reference_perplexity": self.reference_perplexity,
                "perplexity": self.perplexity,
                "mean_kl": self.kl,
                "mean_kl_error": self.kl_error,
                "top1": self.top1,
            },
            note=f"{self.windows} windows, {self.tokens} tokens, PyTorch float32",
        )


def evaluation_text() -> str:
    """The built-in English text: prose, dialogue, lists, letters and code, written for this."""
    return (files("torch2mlx.verification") / "evaluation.txt").read_text(encoding="utf-8")


def text_windows(
    encode: Callable[[str], Sequence[int]], text: str, count: int = 16, length: int = 256
) -> list[Array]:
    """Evenly spaced windows of token ids [length], which overlap only where the text is short.

    Args:
        encode: tokenizer, text → ids, with the special tokens it puts at the start of a text.
        text: to be cut.
        count: of windows.
        length: tokens of a window.

    Raises:
        OptionError: the text is shorter than one window.
    """
    ids = np.asarray(encode(text), dtype=np.int64)
    if len(ids) < length:
        raise OptionError(
            f"the evaluation text has {len(ids)} tokens, a window needs {length}; give a longer "
            "text or ask for shorter windows"
        )
    starts = np.linspace(0, len(ids) - length, count).round().astype(int)
    return [ids[s : s + length] for s in dict.fromkeys(starts.tolist())]


class RecordedLogits:
    """A model's logits over windows, kept in files, so that the model itself can go.

    Args:
        model: the model to run.
        windows: token ids [tokens].
        folder: existing folder for one file a window, float32 [tokens, vocabulary].
        progress: called with the number of tokens done since its last call.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        windows: Sequence[Array],
        folder: Path,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._folder = folder
        for index, window in enumerate(windows):
            np.save(self._file(index), _logits(model, window).cpu().numpy())
            if progress:
                progress(len(window))

    def _file(self, index: int) -> Path:
        return self._folder / f"{index}.npy"

    def __getitem__(self, index: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.load(self._file(index)))


def _logits(model: torch.nn.Module, window: Array) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one window, where the model is."""
    import torch

    with torch.no_grad():
        device = next(model.parameters()).device
        ids = torch.from_numpy(np.asarray(window, dtype=np.int64))[None].to(device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return logits


def measure_quality(
    reference: torch.nn.Module | RecordedLogits,
    quantized: torch.nn.Module,
    windows: Sequence[Array],
    progress: Callable[[int], None] | None = None,
) -> Quality:
    """Compare the predictions of two PyTorch models.

    Args:
        reference: the original, or what it predicted.
        quantized: the same model with dequantized weights.
        windows: token ids [tokens], each at least two.
        progress: called with the number of tokens done since its last call.
    """
    import torch

    losses, other_losses, same = [], [], 0
    divergences: list[tuple[float, ...]] = []
    tokens = 0
    with torch.no_grad():
        for index, window in enumerate(windows):
            ids = torch.from_numpy(np.asarray(window, dtype=np.int64))[None]
            if isinstance(reference, RecordedLogits):
                expected = reference[index][:-1]
            else:
                expected = _logits(reference, window)[:-1]
            found = _logits(quantized, window)[:-1]
            expected, ids = expected.to(found.device), ids.to(found.device)
            kl = []
            for start in range(0, len(expected), _ROWS):
                rows = slice(start, start + _ROWS)
                p = expected[rows].double().log_softmax(-1)
                q = found[rows].double().log_softmax(-1)
                target = ids[0, 1:][rows, None]
                losses.append(-p.gather(-1, target)[:, 0])
                other_losses.append(-q.gather(-1, target)[:, 0])
                kl.append((p.exp() * (p - q)).sum(-1))
                same += int((p.argmax(-1) == q.argmax(-1)).sum())
            divergences.append(tuple(torch.cat(kl).tolist()))
            tokens += len(expected)
            if progress:
                progress(len(window))
    means = [float(np.mean(window)) for window in divergences]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    return Quality(
        windows=len(windows),
        tokens=tokens,
        reference_perplexity=_perplexity(torch.cat(losses)),
        perplexity=_perplexity(torch.cat(other_losses)),
        kl=float(np.mean(means)),
        kl_error=spread / math.sqrt(len(means)),
        top1=same / tokens,
        divergences=tuple(divergences),
    )


def _perplexity(losses: torch.Tensor) -> float:
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Bounds:
    """What quantization may cost.

    Attributes:
        max_kl: largest mean KL divergence from the original a token, in nats.
        min_top1: least share of equal most likely tokens, 0 to 1.
        max_perplexity: largest perplexity, as a multiple of the original's.
        max_loops: largest share of greedy texts, 0 to 1, that end in a loop, beyond the original's.
    """

    max_kl: float | None = None
    min_top1: float | None = None
    max_perplexity: float | None = None
    max_loops: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is any bound."""
        return any(bound is not None for bound in vars(self).values())

    def problems(self, report: ParityReport) -> list[str]:
        """The figures beyond their bounds, in words.

        Raises:
            QualityError: nothing was measured, so that no bound is known to hold.
        """
        if not self.given:
            return []
        figures = next((b.figures for b in report.budgets if b.name == "quantization"), {})
        if "mean_kl" not in figures:
            given = ", ".join(
                f"--{k.replace('_', '-')}" for k, v in vars(self).items() if v is not None
            )
            reason = "; ".join(report.skipped.values()) or "nothing was quantized"
            raise QualityError(
                f"{given}: cannot be checked, since nothing was measured on text: {reason}; raise "
                "--memory-limit where that is why, or leave the bounds out"
            )
        found = []
        kl, top1 = figures["mean_kl"], figures["top1"]
        if self.max_kl is not None and not kl <= self.max_kl:
            found.append(f"the mean KL divergence is {kl:.4g}, above {self.max_kl:g}")
        if self.min_top1 is not None and not top1 >= self.min_top1:
            found.append(f"top-1 agreement is {top1:.4g}, below {self.min_top1:g}")
        ratio = figures["perplexity"] / figures["reference_perplexity"]
        if self.max_perplexity is not None and not ratio <= self.max_perplexity:
            found.append(
                f"perplexity is {ratio:.4g} times the original's, above {self.max_perplexity:g}"
            )
        if self.max_loops is not None:
            rate, before = figures["loops"], figures["reference_loops"]
            if not rate - before <= self.max_loops:
                found.append(
                    f"{rate:.0%} of greedy texts end in a loop, {before:.0%} of the original's, "
                    f"which is more than {self.max_loops:g} beyond"
                )
        return found


def tail_loop_rate(texts: Sequence[Sequence[int]]) -> float:
    """Share of greedy texts, 0 to 1, that end in a loop.

    Args:
        texts: generated token ids, without the prompt; about 100 tokens each, 50 texts or more.

    A result of zero is no praise on its own: a broken model's word salad does not loop either,
    so look at the KL divergence first.

    Raises:
        OptionError: no texts.
    """
    if not texts:
        raise OptionError("the loop rate needs at least one generated text")
    return sum(_loops(list(text)) for text in texts) / len(texts)


def _loops(ids: list[int]) -> bool:
    for period in range(1, _PERIOD + 1):
        same = 0
        while same + period < len(ids) and ids[-1 - same] == ids[-1 - same - period]:
            same += 1
        # `same` tokens equal those a period earlier, so the loop is one period longer.
        if same + period >= max(_LOOP_TOKENS, _REPEATS * period):
            return True
    return False
