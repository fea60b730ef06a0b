"""Scales and biases tuned to the original's predictions, codes held fixed.

The loss is KL(original ‖ quantized) over the vocabulary, as in mlx-lm's DWQ and in the second
phase of EfficientQAT (arXiv 2407.11062).  Memory stays bounded: a batch runs forward layer by
layer and only the layers' inputs are kept; on the way back each layer is computed once more and
updated as soon as its gradient is known (as in Chen et al., arXiv 1604.06174).

How much of the change is kept is decided on another text: the shares of scales and of offsets with
the least divergence there, which may be none.

A scale is tuned relative to itself, an offset relative to the range of its group, both by Adam;
so one learning rate serves groups and models of any size, and it halves with each bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.calibration.scratch import Overlay, Scratch, Stream, save_step
from torch2mlx.calibration.tuned import Tuned, TunedLayer, stored_parts
from torch2mlx.conversion.journal import sync
from torch2mlx.dtypes import to_torch
from torch2mlx.planning.plan import Output
from torch2mlx.planning.regions import full
from torch2mlx.verification.layers import text_part

if TYPE_CHECKING:
    import torch

    from torch2mlx.calibration.blocks import Blocks

__all__ = ["Distillation", "distill", "logits_of"]

Array = np.ndarray[Any, Any]

_WARM_UP = 0.1  # of all steps
_ROWS = 256  # positions whose logits exist at a time
_SAVES = 8  # times that the state is saved
# Of what distillation changed in scales and in offsets; the best pair is kept.
_SHARES = ((1, 1), (1, 0.25), (1, 0), (0.5, 0.5), (0.5, 0.125), (0.5, 0), (0.25, 0.25))


@dataclass(frozen=True)
class Distillation:
    """How to distil.

    Attributes:
        rate: learning rate, times 2^-bits.
        batch: sequences a step.
    """

    rate: float = 6e-3
    batch: int = 2


def distill(
    blocks: Blocks,
    source: Overlay,
    by_layer: Mapping[int, Sequence[Output]],
    head: Output,
    ids: Array,
    held_out: Array,
    scratch: Scratch,
    *,
    settings: Distillation | None = None,
    memory: int = 2 * 10**9,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Tune the scales and biases of calibrated outputs; the result is the step "distilled".

    Args:
        blocks: the layers.
        source: reads calibrated tensors.
        by_layer: calibrated outputs of each layer.
        head: the output head or tied embedding, calibrated or not.
        ids: token ids [sequences, tokens].
        held_out: token ids [sequences, tokens] of another text, to decide how much is kept.
        scratch: where the state is saved.
        settings: of the method.
        memory: bytes of layers that may stay in memory; others are read anew at each step.
        progress: called with the number of tokens done since its last call.
    """
    if not scratch.done("distilled"):
        asked = settings or Distillation()
        run = _Run(blocks, source, by_layer, head, ids, held_out, scratch, asked, memory)
        run.run(progress or (lambda _: None))


class _Run:
    def __init__(
        self,
        blocks: Blocks,
        source: Overlay,
        by_layer: Mapping[int, Sequence[Output]],
        head: Output,
        ids: Array,
        held_out: Array,
        scratch: Scratch,
        settings: Distillation,
        memory: int,
    ) -> None:
        self.blocks = replace(blocks)  # which decides on fused attention anew
        self.ids = np.concatenate([ids, held_out])
        self.scratch = scratch
        self.settings = settings
        size, total = settings.batch, len(self.ids)
        self.batches = [slice(i, min(i + size, len(ids))) for i in range(0, len(ids), size)]
        self.checks = [slice(i, min(i + size, total)) for i in range(len(ids), total, size)]
        self._teach()
        self.tuned = {
            index: {
                o.name: Tuned(o, stored_parts(o, source, blocks.device))
                for o in outputs
                if o.scheme is not None and o.scheme.affine
            }
            for index, outputs in by_layer.items()
        }
        self.head = None
        if head.calibrated is not None and head.scheme is not None and head.scheme.affine:
            self.head = Tuned(head, stored_parts(head, source, blocks.device))
        bits = head.expr.read(full(head.expr.shape), blocks.reader)
        self.original_head = to_torch(bits, head.expr.dtype).float().to(blocks.device)
        layer_bytes = sum(4 * o.expr.size for outputs in by_layer.values() for o in outputs)
        self.resident = layer_bytes <= memory
        self.layers: dict[int, TunedLayer] = {}

    def run(self, progress: Callable[[int], None]) -> None:
        """All steps."""
        import torch

        state = self.scratch.folder / "distillation.pt"
        tuned = [t for layer in self.tuned.values() for t in layer.values()]
        tuned += [self.head] if self.head is not None else []
        calibrated = [(each.scale.clone(), each.level.clone()) for each in tuned]
        before = self._divergence()
        start = 0
        if state.exists():
            saved = torch.load(state, weights_only=True)
            start = int(saved["step"])
            for each, values in zip(tuned, saved["values"], strict=True):
                for mine, value in zip(each.state(), values, strict=True):
                    mine.copy_(value)
        order = np.random.default_rng(0).permutation(len(self.batches))
        interval = max(1, len(order) // _SAVES)
        for number, index in enumerate(order):
            if number >= start:
                self._step(self.batches[index], number, len(order))
                if (number + 1) % interval == 0:
                    partial = state.with_suffix(".partial")
                    values = [each.state() for each in tuned]
                    torch.save({"step": number + 1, "values": values}, partial)
                    sync(partial)
                    partial.rename(state)
            progress(self.ids[self.batches[index]].size)
        distilled = [(each.scale.clone(), each.level.clone()) for each in tuned]
        kept, after = (0.0, 0.0), before
        for shares in _SHARES:
            _mix(tuned, calibrated, distilled, shares)
            found = self._divergence()
            if found < after:
                kept, after = shares, found
        _mix(tuned, calibrated, distilled, kept)
        report = {"distillation": {"kept": kept, "before": before, "after": after}}
        with self.scratch.writing("distilled") as folder:
            save_step(folder, {k: v for t in tuned for k, v in t.tensors().items()}, report)
        state.unlink(missing_ok=True)

    def _teach(self) -> None:
        """What the original makes of the text: first stream and final states, on the disk."""
        import torch

        if self.scratch.done("teacher"):
            return
        with self.scratch.writing("teacher") as folder, torch.no_grad():
            block, numbers = self.blocks.entrance(self.ids)
            batches = [*self.batches, *self.checks]
            sample = block.first(numbers[:1])
            shape = (1, len(self.ids), *sample.shape[1:])
            first = Stream.create(folder / "first.npy", shape)
            final = Stream.create(folder / "final.npy", shape)
            for batch in batches:
                hidden = block.first(numbers[batch])
                first.write(0, batch, hidden)
                final.write(0, batch, hidden)
            for index in range(self.blocks.count):
                block = self.blocks.block(index, sample.cpu())
                last = index == self.blocks.count - 1
                for batch in batches:
                    found = block.run(final.read(0, batch).to(block.device))
                    final.write(0, batch, found.final if last else found.hidden)

    def _layer(self, index: int) -> TunedLayer:
        layer = self.layers.get(index)
        if layer is None:
            sample = self._load("first.npy", slice(0, 1))
            layer = TunedLayer(self.blocks, index, self.tuned.get(index, {}), sample)
            if self.resident:
                self.layers[index] = layer
        return layer

    def _load(self, name: str, batch: slice) -> torch.Tensor:
        return Stream(self.scratch.folder / "teacher" / name).read(0, batch).to(self.blocks.device)

    def _step(self, batch: slice, number: int, steps: int) -> None:
        import torch

        rate = self.settings.rate * _schedule(number, steps)
        ids = torch.from_numpy(self.ids[batch]).to(self.blocks.device)
        tied = self._tied_factor()
        weight = None if self.head is None else self.head.values()
        inputs = self._forward(batch, weight)
        slope = self._head_step(inputs.pop(), self._load("final.npy", batch), weight)
        for index in reversed(range(self.blocks.count)):
            layer = self._layer(index)
            if not self.resident:
                layer.fill()
            layer.watch(True)
            hidden = inputs.pop().requires_grad_(True)
            found = layer.block.run(hidden)
            output = found.final if index == self.blocks.count - 1 else found.hidden
            output.backward(slope)  # type: ignore[no-untyped-call]
            assert hidden.grad is not None
            slope = hidden.grad
            layer.collect()
            layer.watch(False)
            for tuned in self.tuned.get(index, {}).values():
                tuned.step(rate, number + 1)
        if self.head is not None:
            if tied:
                flat = (tied * slope).flatten(0, -2)
                self.head.add_gradient(flat, ids.flatten())
            self.head.step(rate, number + 1)

    def _forward(self, batch: slice, weight: torch.Tensor | None) -> list[torch.Tensor]:
        """What enters each layer, and the final states; `weight` is the head's present values."""
        import torch

        entered = self._load("first.npy", batch)
        tied = self._tied_factor()
        if tied and weight is not None:
            ids = torch.from_numpy(self.ids[batch]).to(self.blocks.device)
            entered += tied * (weight[ids] - self.original_head[ids])
        inputs = [entered]
        with torch.no_grad():
            for index in range(self.blocks.count):
                layer = self._layer(index)
                layer.fill()
                found = layer.block.run(inputs[-1])
                inputs.append(found.final if index == self.blocks.count - 1 else found.hidden)
        return inputs

    def _divergence(self) -> float:
        """Mean KL(original ‖ quantized) a token of the held-out text, with the present values."""
        import torch

        weight = None if self.head is None else self.head.values()
        used = self.original_head if weight is None else weight
        total, count = 0.0, 0
        for batch in self.checks:
            states = self._forward(batch, weight)[-1].flatten(0, -2)
            taught = self._load("final.npy", batch).flatten(0, -2)
            with torch.no_grad():
                for start in range(0, len(states), _ROWS):
                    part = slice(start, start + _ROWS)
                    found = logits_of(self.blocks.config, states[part], used).log_softmax(-1)
                    expected = logits_of(
                        self.blocks.config, taught[part], self.original_head
                    ).log_softmax(-1)
                    total += float((expected.exp() * (expected - found)).sum())
            count += len(states)
        return total / count

    def _tied_factor(self) -> float:
        """What the embedding's rows are multiplied by on their way in; 0 where it is not tied.

        The first stream is this multiple of the rows, plus what does not depend on them.
        """
        from torch2mlx.planning.plan import is_token_embedding

        if self.head is None or not is_token_embedding(self.head.output.name):
            return 0.0
        if not hasattr(self, "_factor"):
            sample = self.ids[:1, :16]
            rows = self.blocks.embedding_rows(np.unique(sample)).numpy()
            block, numbers = self.blocks.entrance(sample, rows)
            once = block.first(numbers)
            block, numbers = self.blocks.entrance(sample, 2 * rows)
            change = block.first(numbers) - once
            plain = self.blocks.embedding_rows(sample.reshape(-1)).to(change.device)
            ratio = float((change.flatten(0, -2) * plain).sum() / plain.square().sum())
            same = float((change.flatten(0, -2) - ratio * plain).norm() / change.norm())
            self._factor = ratio if same < 1e-3 else 0.0
        return self._factor

    def _head_step(
        self, hidden: torch.Tensor, final: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Gradient of the loss by the final states; the head's own is kept."""
        import torch

        original, config = self.original_head, self.blocks.config
        used = original if weight is None else weight
        matrix = used.detach().requires_grad_(weight is not None)
        states = hidden.detach().flatten(0, -2)
        taught = final.flatten(0, -2)
        slope = torch.empty_like(states)
        for start in range(0, len(states), _ROWS):
            part = slice(start, start + _ROWS)
            state = states[part].requires_grad_(True)
            found = logits_of(config, state, matrix).log_softmax(-1)
            with torch.no_grad():
                expected = logits_of(config, taught[part], original).log_softmax(-1)
            loss = (expected.exp() * (expected - found)).sum() / len(states)
            loss.backward()  # type: ignore[no-untyped-call]
            assert state.grad is not None
            slope[part] = state.grad
        if self.head is not None and matrix.grad is not None:
            rows = torch.arange(len(matrix), device=matrix.device)
            self.head.add_gradient(matrix.grad, rows)
        return slope.reshape(hidden.shape)


def _mix(
    tuned: Sequence[Tuned],
    calibrated: Sequence[tuple[torch.Tensor, torch.Tensor]],
    distilled: Sequence[tuple[torch.Tensor, torch.Tensor]],
    shares: tuple[float, float],
) -> None:
    """Give scales and offsets these shares of what distillation changed."""
    for each, first, last in zip(tuned, calibrated, distilled, strict=True):
        values = (each.scale, each.level)
        for value, start, end, share in zip(values, first, last, shares, strict=True):
            value.copy_(start + share * (end - start))


def logits_of(
    config: Mapping[str, Any], states: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Logits [n, vocabulary] of final states [n, width], scaled and capped as the config says."""
    text = text_part(config)
    logits = states @ weight.T
    logits = logits * float(text.get("logit_scale") or 1.0)
    logits = logits / float(text.get("logits_scaling") or 1.0)
    cap = text.get("final_logit_softcapping")
    return logits if not cap else (logits / cap).tanh() * cap


def _schedule(number: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    warm = min(1.0, (number + 1) / max(1.0, _WARM_UP * steps))
    return warm * 0.5 * (1 + math.cos(math.pi * number / steps))
