"""Where a quantized model loses: each layer in turn is put back to full precision.

What the divergence then comes down to is that layer's part of it.  It is measured with the values
that were written, so it holds for calibrated ones too, whose errors are chosen to cancel.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.planning.plan import Output
from torch2mlx.progress import Progress
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.agreement import written_state
from torch2mlx.verification.budgets import TorchSide, evaluation_windows
from torch2mlx.verification.quality import RecordedLogits, measure_quality
from torch2mlx.verification.reference import decoder_layers, read_state

if TYPE_CHECKING:
    import torch

__all__ = ["Suspect", "find_suspects"]

_WINDOWS = 2  # of the text that quality is measured on
_CLOSER = 2  # layers whose modules are looked at one by one


@dataclass(frozen=True)
class Suspect:
    """A part of the model, and what its quantization costs.

    Attributes:
        name: "layer 3", or the path of a module in PyTorch.
        layer: number of the layer that it is, or is in; None outside of them.
        share: of the whole divergence, that is gone with this part at full precision.
        modules: the same of the layer's modules, worst first, where they were looked at.
    """

    name: str
    layer: int | None
    share: float
    modules: tuple[Suspect, ...] = ()

    def describe(self) -> str:
        """One phrase."""
        text = f"{self.name} ({self.share:.0%}"
        if self.modules:
            worst = self.modules[0]
            text += f", of which {worst.name} {worst.share:.0%}"
        return f"{text})"


def find_suspects(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    files: Sequence[Path],
    *,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[Suspect, ...]:
    """The parts of a written model by what their quantization costs, worst first.

    Args:
        checkpoint: the source.
        outputs: what each parameter was written from.
        files: the written weight files.
        trust_remote_code: allow the checkpoint's own code.
        progress: listener.

    Memory: the float32 weights once; the original's lie in a file meanwhile.
    """
    import torch

    side = TorchSide(checkpoint, trust_remote_code)
    windows = evaluation_windows(checkpoint, trust_remote_code)[0][:_WINDOWS]
    with tempfile.TemporaryDirectory(prefix="torch2mlx-blame-") as scratch:
        place = Path(scratch)
        original = side.model(read_state(checkpoint.state, checkpoint.source))
        expected = RecordedLogits(original, windows, place)
        torch.save(dict(original.named_parameters()), place / "original.pt")
        del original
        gc.collect()
        known = torch.load(place / "original.pt", mmap=True, weights_only=True)
        model = side.model(written_state(outputs, files, checkpoint.state, checkpoint.source))
        groups = _groups(model, known)
        whole = measure_quality(expected, model, windows).kl

        def share(names: Sequence[str]) -> float:
            with _restored(model, known, names):
                return 1 - measure_quality(expected, model, windows).kl / max(whole, 1e-30)

        found = []
        with progress.stage("Looking for the layers to blame", len(groups)) as advance:
            for (name, layer), names in groups.items():
                found.append(Suspect(name, layer, share(names)))
                advance(1)
        found.sort(key=lambda suspect: -suspect.share)
        return tuple(
            Suspect(s.name, s.layer, s.share, _modules(s, groups[s.name, s.layer], share))
            if number < _CLOSER and s.layer is not None
            else s
            for number, s in enumerate(found)
        )


def _modules(layer: Suspect, names: Sequence[str], share: Any) -> tuple[Suspect, ...]:
    found = [Suspect(name.removesuffix(".weight"), layer.layer, share([name])) for name in names]
    return tuple(sorted(found, key=lambda suspect: -suspect.share))


def _groups(
    model: torch.nn.Module, original: Mapping[str, torch.Tensor]
) -> dict[tuple[str, int | None], list[str]]:
    """Parameters that differ from the original's, by layer or, outside of them, one by one."""
    import torch

    prefix = f"{decoder_layers(model)[0]}."
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name, parameter in model.named_parameters():
        if torch.equal(parameter, original[name]):
            continue
        number = name.removeprefix(prefix).split(".", 1)[0] if name.startswith(prefix) else ""
        key = (
            (f"layer {number}", int(number))
            if number.isdigit()
            else (name.removesuffix(".weight"), None)
        )
        groups.setdefault(key, []).append(name)
    return groups


@contextmanager
def _restored(
    model: torch.nn.Module, original: Mapping[str, torch.Tensor], names: Sequence[str]
) -> Iterator[None]:
    """Some parameters with the original's values, for a while."""
    kept = {name: model.get_parameter(name).data for name in names}
    for name in names:
        model.get_parameter(name).data = original[name].data
    try:
        yield
    finally:
        for name, values in kept.items():
            model.get_parameter(name).data = values
