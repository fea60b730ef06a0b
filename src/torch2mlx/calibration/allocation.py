"""Which module gets how many bits, so that predictions change least at a given size.

How much a module's rounding changes the predictions is told by the Fisher information: with
labels drawn from the model's own predictions, the mean of ½ ⟨G, D⟩² is the KL divergence that a
small change D of the weights causes, to second order, where G is the gradient of the labels'
log-likelihood (as in SqueezeLLM, arXiv 2306.07629, and LLM-MQ, without their diagonal
approximation).  The rounding errors of all candidate widths are such changes; their curvature
is averaged for each module, because a handful of sequences alone would be noisy.

The bits then solve a knapsack with the exact bytes of codes, scales and biases: on the lower
convex hull of each module's choices, the step that saves most divergence a byte comes first.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.calibration.matching import match_rows
from torch2mlx.dtypes import to_torch
from torch2mlx.errors import OptionError
from torch2mlx.planning.expressions import sources_of
from torch2mlx.planning.plan import Output
from torch2mlx.planning.regions import full
from torch2mlx.quantization.kernel import dequantize_rows, quantize_rows
from torch2mlx.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from torch2mlx.calibration.blocks import Blocks

__all__ = ["WIDTHS", "Allocation", "Choice", "allocate", "sensitivities"]

Array = np.ndarray[Any, Any]

WIDTHS = (2, 3, 4, 5, 6, 8)
_ROWS = 256  # positions whose logits exist at a time


@dataclass(frozen=True)
class Choice:
    """One module at one width.

    Attributes:
        bits: of the width.
        nbytes: of codes, scales and biases.
        divergence: predicted mean KL a token that rounding this module alone costs, in nats.
    """

    bits: int
    nbytes: int
    divergence: float


@dataclass(frozen=True)
class Allocation:
    """Bits for every module.

    Attributes:
        bits: by module.
        nbytes: of all these modules.
        divergence: predicted for all of them together, rounded to nearest.
    """

    bits: Mapping[str, int]
    nbytes: int
    divergence: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> Allocation:
    """Choose widths of least divergence within a number of bytes.

    Args:
        choices: of each module, in any order.
        budget: bytes for all modules.

    Raises:
        OptionError: even the narrowest widths take more.
    """
    hulls = {module: _hull(found) for module, found in choices.items()}
    place = dict.fromkeys(hulls, 0)
    used = sum(hull[0].nbytes for hull in hulls.values())
    if used > budget:
        raise OptionError(
            f"the quantized modules take {used:,} bytes at the fewest bits, and {budget:,} are "
            "left for them; raise --target-bpw or quantize more modules"
        )
    steps = [(-_gain(hull[0], hull[1]), module) for module, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, module = heapq.heappop(steps)
        hull, at = hulls[module], place[module]
        cost = hull[at + 1].nbytes - hull[at].nbytes
        if used + cost > budget:
            continue
        used += cost
        place[module] = at + 1
        if at + 2 < len(hull):
            heapq.heappush(steps, (-_gain(hull[at + 1], hull[at + 2]), module))
    chosen = {module: hull[place[module]] for module, hull in hulls.items()}
    return Allocation(
        {module: choice.bits for module, choice in chosen.items()},
        used,
        sum(choice.divergence for choice in chosen.values()),
    )


def _gain(before: Choice, after: Choice) -> float:
    return (before.divergence - after.divergence) / (after.nbytes - before.nbytes)


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that are best for some price of a byte, by rising size."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: c.nbytes):
        if hull and choice.divergence >= hull[-1].divergence:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def sensitivities(
    blocks: Blocks, outputs: Sequence[Output], head: Output, ids: Array, seed: int = 0
) -> dict[str, list[Choice]]:
    """What each width of each quantized module costs.

    Args:
        blocks: the layers.
        outputs: affine quantized outputs; their group sizes are kept.
        head: the output head or tied embedding, whether quantized or not.
        ids: token ids [sequences, tokens]; about eight sequences are enough.
        seed: of the labels.

    Memory holds one layer, its gradient and its rounding errors, and the activations of all
    sequences between layers.
    """
    return _Sensitivities(blocks, outputs, head, ids, seed).run()


class _Sensitivities:
    def __init__(
        self, blocks: Blocks, outputs: Sequence[Output], head: Output, ids: Array, seed: int
    ) -> None:
        self.blocks = blocks
        self.outputs = outputs
        self.head = head
        self.ids = ids
        self.seed = seed
        self.found: dict[str, list[Choice]] = {}

    def run(self) -> dict[str, list[Choice]]:
        """Forward through all layers, then back."""
        import torch

        blocks = self.blocks
        with torch.no_grad():
            block, numbers = blocks.entrance(self.ids)
            streams = [[block.first(numbers[i : i + 1]) for i in range(len(self.ids))]]
            for index in range(blocks.count):
                block = blocks.block(index)
                runs = [block.run(hidden) for hidden in streams[-1]]
                last = index == blocks.count - 1
                streams.append([run.final if last else run.hidden for run in runs])
        slopes = self._through_head(streams.pop())
        for index in reversed(range(blocks.count)):
            slopes = self._through_layer(index, streams.pop(), slopes)
        for output in self.outputs:
            if output.module not in self.found:
                # Not seen by the gradients, an embedding apart from the head: as in the middle.
                self._note(output, None)
        return self.found

    def _through_head(self, finals: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        from torch2mlx.calibration.distillation import logits_of

        expr = self.head.expr
        bits = expr.read(full(expr.shape), self.blocks.reader)
        device = self.blocks.device
        weight = to_torch(bits, expr.dtype).float().to(device)
        wanted = self.head in self.outputs
        errors = self._errors(self.head) if wanted else {}
        products: dict[int, list[float]] = {width: [] for width in errors}
        generator = torch.Generator(device=device).manual_seed(self.seed)
        slopes = []
        for final in finals:
            matrix = weight.detach().requires_grad_(wanted)
            states = final.flatten(0, -2)
            slope = torch.empty_like(states)
            for start in range(0, len(states), _ROWS):
                state = states[start : start + _ROWS].detach().requires_grad_(True)
                found = logits_of(self.blocks.config, state, matrix).log_softmax(-1)
                labels = torch.multinomial(found.detach().exp(), 1, generator=generator)
                found.gather(-1, labels).sum().backward()  # type: ignore[no-untyped-call]
                assert state.grad is not None
                slope[start : start + _ROWS] = state.grad
            slopes.append(slope.reshape(final.shape))
            for width, error in errors.items():
                assert matrix.grad is not None
                products[width].append(float((matrix.grad * error).sum()))
        if wanted:
            self._note(self.head, _curvature(products, errors, self.ids.shape[1]))
        return slopes

    def _through_layer(
        self, index: int, streams: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        blocks = self.blocks
        block = blocks.block(index)
        own = [
            output
            for output in self.outputs
            if output is not self.head
            and {blocks.names.number(leaf.name) for leaf in sources_of(output.expr)} == {index}
        ]
        rows = match_rows(block.layer, own, blocks.reader)
        errors = [self._errors(output) for output in rows.outputs]
        products: list[dict[int, list[float]]] = [{w: [] for w in e} for e in errors]
        for parameter in block.model.parameters():
            parameter.requires_grad_(False)
        watched = {name: block.layer.get_parameter(name) for name in rows.places}
        for parameter in watched.values():
            parameter.requires_grad_(True)
        left = []
        for hidden, slope in zip(streams, slopes, strict=True):
            entered = hidden.detach().requires_grad_(True)
            run = block.run(entered)
            output = run.final if index == blocks.count - 1 else run.hidden
            output.backward(slope)  # type: ignore[no-untyped-call]
            assert entered.grad is not None
            left.append(entered.grad)
            sums = [dict.fromkeys(e, 0.0) for e in errors]
            for name, parameter in watched.items():
                if parameter.grad is None:
                    continue
                owners, places = rows.places[name]
                turned = len(owners) != prod(parameter.shape[:-1])
                gradient = parameter.grad.T if turned else parameter.grad
                gradient = gradient.reshape(len(owners), -1)
                for number in np.unique(owners[owners >= 0]):
                    here = np.flatnonzero(owners == number)
                    for width, error in errors[number].items():
                        sums[number][width] += float((gradient[here] * error[places[here]]).sum())
                parameter.grad = None
            for number, each in enumerate(sums):
                for width, value in each.items():
                    products[number][width].append(value)
        for number, output_of in enumerate(rows.outputs):
            found = _curvature(products[number], errors[number], self.ids.shape[1])
            self._note(output_of, found)
        return left

    def _errors(self, output: Output) -> dict[int, torch.Tensor]:
        """Rounding errors float32 [rows, in] by width."""
        import torch

        assert output.scheme is not None
        expr = output.expr
        bits = expr.read(full(expr.shape), self.blocks.reader)
        bits = np.ascontiguousarray(bits).reshape(-1, expr.shape[-1])
        values = to_torch(bits, expr.dtype).float()
        found = {}
        for width in WIDTHS:
            scheme = Scheme(width, output.scheme.group_size)
            rounded = dequantize_rows(quantize_rows(bits, expr.dtype, scheme), expr.dtype, scheme)
            found[width] = (torch.from_numpy(rounded) - values).to(self.blocks.device)
        return found

    def _note(self, output: Output, curvature: float | None) -> None:
        """Turn a curvature into the choices of a module."""
        assert output.scheme is not None
        squares = {w: float(e.square().sum()) for w, e in self._errors(output).items()}
        if curvature is None:
            known = [c for found in self.found.values() for c in found if c.bits == 4]
            usual = float(np.median([c.divergence / c.nbytes for c in known])) if known else 1.0
            codes = (
                output.expr.size // 2
            )  # bytes of 4 bits, where groups count alike in all modules
            curvature = usual * codes / max(squares[4], 1e-30)
        choices = []
        for width in WIDTHS:
            scheme = Scheme(width, output.scheme.group_size)
            layout = scheme.layout(output.expr.shape, output.expr.dtype)
            nbytes = sum(prod(shape) * dtype.itemsize for dtype, shape in layout.values())
            choices.append(Choice(width, nbytes, curvature * squares[width]))
        self.found[output.module] = choices


def _curvature(
    products: Mapping[int, Sequence[float]], errors: Mapping[int, torch.Tensor], tokens: int
) -> float:
    """Mean of ½ ⟨G, D⟩² / ‖D‖² a token, over widths and sequences."""
    ratios = [
        0.5 * value * value / max(float(errors[width].square().sum()), 1e-30) / tokens
        for width, values in products.items()
        for value in values
    ]
    return float(np.mean(ratios))
