"""Real weights, PyTorch beside MLX in float32: the whole model, or one layer at a time.

A model that fits the memory limit in float32 is compared as it is.  Of a larger one, thin
models with the real widths are made: embedding, one layer, final norm and head.  Layers are the
first, the last, one of each kind and a seeded sample.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import ParityError, PlanError, Torch2MLXError, UnsupportedError
from torch2mlx.verification import tolerance
from torch2mlx.verification.comparison import compare, near_tie, sample_tokens
from torch2mlx.verification.depth import thin_config
from torch2mlx.verification.layers import Signature, layer_signatures, text_part
from torch2mlx.verification.reference import allow_code
from torch2mlx.verification.report import Comparison
from torch2mlx.verification.sizes import EXPERT_KEYS, TOP_K_KEYS
from torch2mlx.verification.thinning import LayerNames, cut_experts, cut_vocabulary, pick_layers

if TYPE_CHECKING:
    from torch2mlx.planning.expressions import Expr, Reader

__all__ = ["choose_layers", "peak_bytes", "run_blocks"]

Progress = Callable[[str, int, int], None]
"""Called with the part, how many are done and how many there are."""

_TOKENS = 24


# Measured peak over float32 weights: activations and the tensor in transit; with experts, single
# tensors exist beside the stack that both libraries make of them.
_DENSE, _ROUTED = 1.3, 2.6


def peak_bytes(config: Mapping[str, Any], state: Mapping[str, Expr]) -> int:
    """Bytes of memory that a comparison of this model takes at most."""
    weights = sum(4 * expr.size for expr in state.values())
    return int(weights * (_ROUTED if _experts(config) else _DENSE))


def _experts(config: Mapping[str, Any]) -> int:
    """Number of experts a layer, 0 for a dense model."""
    text = text_part(config)
    parts = (text, text.get("ffn_config") or {})
    return max((int(p[k]) for p in parts for k in EXPERT_KEYS if p.get(k)), default=0)


def choose_layers(signatures: Sequence[Signature], sample: int = 2, seed: int = 0) -> list[int]:
    """The layers to compare: first, last, the first of each kind, and `sample` others."""
    chosen = {0, len(signatures) - 1}
    seen: set[Signature] = set()
    for index, signature in enumerate(signatures):
        if signature not in seen:
            seen.add(signature)
            chosen.add(index)
    others = [i for i in range(len(signatures)) if i not in chosen]
    chosen.update(random.Random(seed).sample(others, min(sample, len(others))))
    return sorted(chosen)


def run_blocks(
    config: Mapping[str, Any],
    state: Mapping[str, Expr],
    reader: Reader,
    *,
    memory_limit: int,
    sample: int = 2,
    seed: int = 0,
    bound: float = tolerance.CONVERSION,
    folder: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> tuple[Comparison, ...]:
    """Compare real weights, all at once or layer by layer.

    Args:
        config: contents of config.json.
        state: tensors in hub naming.
        reader: what their expressions read from.
        memory_limit: bytes; the whole model is compared if it fits in float32, else one layer is
            held at a time (with fewer experts, where one layer does not fit either).
        sample: layers beyond first, last and one of each kind.
        seed: of the sample and the tokens.
        bound: tolerance of the logits' relative difference.
        folder: the checkpoint's, where code of its own lies.
        trust_remote_code: run that code.
        progress: called before each comparison and after the last.

    Returns:
        one comparison for the whole model, or one a chosen layer.

    Raises:
        UnsupportedError: transformers or mlx-lm has no such model.
        PlanError: state and config do not fit together.
    """
    report = progress or (lambda part, done, total: None)
    if trust_remote_code and folder is not None:
        allow_code(config, folder)
    if peak_bytes(config, state) <= memory_limit:
        report("all layers", 0, 1)
        found = _settled(
            config,
            seed,
            lambda tokens: compare(config, state, reader, tokens=tokens, bound=bound),
        )
        report("all layers", 1, 1)
        return (found,)
    model = _Model(config, state, reader, layer_signatures(config), memory_limit, seed, bound)
    chosen = choose_layers(model.signatures, sample, seed)
    results = []
    for done, layer in enumerate(chosen):
        report(f"layer {layer} of {len(model.signatures)}", done, len(chosen))
        results.append(model.compare_layer(layer))
    report("layers", len(chosen), len(chosen))
    return tuple(results)


def _settled(config: Mapping[str, Any], seed: int, run: Callable[[Any], Comparison]) -> Comparison:
    """Run a comparison, again with other tokens where routers may have met a tie."""
    found = run(sample_tokens(config, _TOKENS, seed))
    for attempt in range(1, 4):
        if not near_tie(found, config):
            break
        again = run(sample_tokens(config, _TOKENS, seed + attempt))
        if again.passed:
            note = f"{attempt} runs met a near-tie between experts and were repeated"
            return replace(again, notes=(*again.notes, note))
        found = again
    return found


@dataclass
class _Model:
    """A checkpoint of which single layers are compared."""

    config: Mapping[str, Any]
    state: Mapping[str, Expr]
    reader: Reader
    signatures: Sequence[Signature]
    memory_limit: int
    seed: int
    bound: float

    def __post_init__(self) -> None:
        self.names = LayerNames.of(self.state, len(self.signatures))

    def compare_layer(self, layer: int) -> Comparison:
        """Compare one layer alone or, where that is no model of its own, among its neighbours.

        Some ports look up masks at the place of a certain kind of layer, so that a single layer
        of another kind does not run or gets no mask: a wider cut then decides.
        """
        failure: Torch2MLXError | None = None
        found: Comparison | None = None
        for layers in self._cuts(layer):
            try:
                found = self._compare(layers, layer)
            except (ParityError, PlanError, UnsupportedError) as error:
                failure = error
                continue
            if found.passed or layer not in layers:
                return found
        if found is not None:
            return found
        raise failure or PlanError(
            f"layer {layer} cannot be cut out of this {self.config.get('model_type')!r} model; "
            "raise --memory-limit until the whole model fits, or use --no-verify"
        )

    def _cuts(self, layer: int) -> Iterator[list[int]]:
        """Ever wider runs of layers that hold one layer and make a config of the same kinds.

        The last is the start of the model, whether it holds the layer or not.
        """
        count = len(self.signatures)
        period = self._period()
        start = layer // period * period
        options = [
            [layer],
            [*range(start, min(start + period, count))],
            [*range(max(0, start - period), layer + 1)],
            [*range(self._depth())],
        ]
        tried: list[list[int]] = []
        for layers in options:
            if layers in tried:
                continue
            tried.append(layers)
            thin = layer_signatures(thin_config(self.config, layers))
            if thin == [self.signatures[i] for i in layers]:
                yield layers

    def _period(self) -> int:
        """The shortest distance after which the kinds repeat, or the first run with all kinds."""
        count, kinds = len(self.signatures), self.signatures
        for period in range(1, count // 2 + 1):
            if all(kinds[i] == kinds[i - period] for i in range(period, count)):
                return period
        return self._depth()

    def _depth(self) -> int:
        """Length of the shortest run of first layers that shows every kind."""
        return next(
            n
            for n in range(1, len(self.signatures) + 1)
            if len(set(self.signatures[:n])) == len(set(self.signatures))
        )

    def _compare(self, layers: list[int], layer: int) -> Comparison:
        config, state = cut_vocabulary(
            thin_config(self.config, layers), pick_layers(self.state, self.names, layers)
        )
        notes = ["embedding and head: 512 rows of the vocabulary"]
        if len(layers) > 1 and layer in layers:
            notes.append(f"run together with layers {layers[0]} to {layers[-1]}")
        config, state, experts = self._fit(config, state)
        if experts:
            notes.append(experts)
        part = f"layer {layer} of {len(self.signatures)}"
        if layer not in layers:
            part = f"layers 0 to {layers[-1]} of {len(self.signatures)}"
            notes.append(f"layer {layer} cannot be cut out of the model, so its start is compared")
        found = _settled(
            config,
            self.seed,
            lambda tokens: compare(
                config, state, self.reader, part=part, tokens=tokens, bound=self.bound
            ),
        )
        places = tuple(
            replace(d, place=f"layer {layers[i]}") if i < len(layers) else d
            for i, d in enumerate(found.layers)
        )
        return replace(found, layers=places, notes=(*found.notes, *notes))

    def _fit(
        self, config: dict[str, Any], state: dict[str, Expr]
    ) -> tuple[dict[str, Any], dict[str, Expr], str]:
        """Leave experts out until the comparison fits the memory limit."""
        text = text_part(config)
        parts = (text, text.get("ffn_config") or {})
        total = _experts(config)
        top_k = max((int(p[k]) for p in parts for k in TOP_K_KEYS if p.get(k)), default=1)
        experts = total
        cut = (config, state)
        while experts > max(4, top_k) and peak_bytes(*cut) > self.memory_limit:
            experts = max(4, top_k, experts // 2)
            cut = cut_experts(config, state, self.names, experts)
        note = f"the first {experts} of {total} experts" if experts < total else ""
        return (*cut, note)
