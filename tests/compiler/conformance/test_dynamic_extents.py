"""A lowering traced at one size computes the right result at another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
import torch
from runner import to_array, to_tensor

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering_for
from torch2mlx.compiler.symbolic import SymbolicInt

aten = torch.ops.aten
TRACED, USED = 4, 6


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def places(*shape: int) -> torch.Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(1))


CASES: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "view": lambda n: (aten.view.default, tensor(n, 6), [n, 2, 3]),
    "view_merge": lambda n: (aten.view.default, tensor(2, n, 6), [2 * n, 6]),
    "view_infer": lambda n: (aten.view.default, tensor(n, 6), [-1, 3]),
    "expand": lambda n: (aten.expand.default, tensor(n, 1), [2, n, 3]),
    "expand_new": lambda n: (aten.expand.default, tensor(1, 3), [n, -1]),
    "flatten": lambda n: (aten.flatten.using_ints, tensor(2, n, 3), 0, 1),
    "unflatten": lambda n: (aten.unflatten.int, tensor(n, 6), 1, [2, -1]),
    "slice": lambda n: (aten.slice.Tensor, tensor(3, n), 1, 1, n - 1),
    "slice_half": lambda n: (aten.slice.Tensor, tensor(3, n), -1, n // 2, 9223372036854775807),
    "slice_fixed": lambda n: (aten.slice.Tensor, tensor(3, n), -1, 0, 4),
    "narrow": lambda n: (aten.narrow.default, tensor(n, 3), 0, 1, n - 2),
    "narrow_end": lambda n: (aten.narrow.default, tensor(n, 3), 0, -2, 2),
    "select": lambda n: (aten.select.int, tensor(3, n), 1, n - 1),
    "split": lambda n: (aten.split.Tensor, tensor(3, n), n // 2, 1),
    "split_with_sizes": lambda n: (aten.split_with_sizes.default, tensor(n, 2), [1, n - 1]),
    "chunk": lambda n: (aten.chunk.default, tensor(n, 2), 2),
    "tensor_split": lambda n: (aten.tensor_split.sections, tensor(n + 1, 2), 3),
    "cat": lambda n: (aten.cat.default, [tensor(n, 2), tensor(2, 2)], 0),
    "stack": lambda n: (aten.stack.default, [tensor(n, 2), tensor(n, 2)], 1),
    "repeat": lambda n: (aten.repeat.default, tensor(2, 1), [1, n]),
    "repeat_rows": lambda n: (aten.repeat.default, tensor(n, 2), [2, 1]),
    "repeat_interleave": lambda n: (aten.repeat_interleave.self_int, tensor(2, 3), n, 0),
    "block_diag": lambda n: (aten.block_diag.default, [tensor(n), tensor(2, n), tensor(n, 1)]),
    "roll": lambda n: (aten.roll.default, tensor(3, n), [n // 2], [1]),
    "roll_flat": lambda n: (aten.roll.default, tensor(3, n), [2]),
    "diagonal": lambda n: (aten.diagonal.default, tensor(n, n)),
    "diag_embed": lambda n: (aten.diag_embed.default, tensor(2, n), 1),
    "unfold": lambda n: (aten.unfold.default, tensor(2, n), 1, 2, 1),
    "im2col": lambda n: (aten.im2col.default, tensor(1, 2, n, 5), [2, 2], [1, 1], [1, 0], [2, 1]),
    "col2im": lambda n: (
        aten.col2im.default,
        tensor(1, 8, n + 1),
        [n + 2, 2],
        [2, 2],
        [1, 1],
        [0, 0],
        [1, 1],
    ),
    "pixel_shuffle": lambda n: (aten.pixel_shuffle.default, tensor(1, 8, n, 3), 2),
    "channel_shuffle": lambda n: (aten.channel_shuffle.default, tensor(2, 6, n, n), 3),
    "rot90": lambda n: (aten.rot90.default, tensor(n, 3)),
    "broadcast": lambda n: (aten.broadcast_tensors.default, [tensor(n, 1), tensor(3)]),
    "meshgrid": lambda n: (aten.meshgrid.default, [tensor(n), tensor(3)]),
    "index_select": lambda n: (aten.index_select.default, tensor(3, n), 0, places(n)),
    "index": lambda n: (aten.index.Tensor, tensor(3, n, 3), [places(n), None, places(n)]),
    "index_put": lambda n: (
        aten.index_put.default,
        tensor(3, n, 3),
        [places(n), None, places(n)],
        tensor(n, n),
        True,
    ),
    "mask_put": lambda n: (
        aten.index_put.default,
        tensor(n, 3),
        [tensor(n) > 0],
        tensor(int((tensor(n) > 0).sum()) and 1, 3),
    ),
    "mask_put_cast": lambda n: (
        aten.index_put.default,
        tensor(n, n),
        [tensor(n) > 0],
        tensor(1, n),
    ),
    "gather": lambda n: (aten.gather.default, tensor(3, n), 0, places(2, n)),
    "gather_smaller": lambda n: (aten.gather.default, tensor(n, n), 1, places(n - 1, 2)),
    "scatter_add": lambda n: (
        aten.scatter_add.default,
        tensor(3, n),
        0,
        places(2, n),
        tensor(2, n),
    ),
    "scatter_value": lambda n: (aten.scatter.value, tensor(n, 4), 1, places(n, 1), 2.0),
    "masked_scatter": lambda n: (
        aten.masked_scatter.default,
        tensor(n, 3),
        tensor(n, 1) > 0,
        tensor(3 * n),
    ),
    "select_scatter": lambda n: (aten.select_scatter.default, tensor(n, 3), tensor(n), 1, 0),
    "slice_scatter": lambda n: (
        aten.slice_scatter.default,
        tensor(n, 3),
        tensor(n - 1, 3),
        0,
        1,
        n,
    ),
    "copy": lambda n: (aten.copy.default, tensor(n, 3), tensor(3)),
    "embedding": lambda n: (aten.embedding.default, tensor(5, 3), places(2, n)),
    "embedding_bag": lambda n: (
        aten.embedding_bag.default,
        tensor(5, 3),
        places(2 * n),
        torch.arange(n) * 2,
    ),
    "one_hot": lambda n: (aten.one_hot.default, places(n), 3),
    "tril_indices": lambda n: (aten.tril_indices.default, n, n),
    "triu_indices": lambda n: (aten.triu_indices.default, n, n + 1, 1),
    "diff": lambda n: (aten.diff.default, tensor(3, n), 2),
    "diff_more_than_traced": lambda n: (aten.diff.default, tensor(3, n), 5),
    "arange_from_float": lambda n: (aten.arange.start_step, 0.0, n, 0.5),
    "linspace_to_extent": lambda n: (aten.linspace.default, 0, n - 1, n),
    "bilinear": lambda n: (aten.bilinear.default, tensor(n, 2), tensor(n, 3), tensor(4, 2, 3)),
    "multi_dot": lambda n: (aten.linalg_multi_dot.default, [tensor(2, n), tensor(n, 2)]),
    "inverse": lambda n: (aten.inverse.default, tensor(n, n) + 4 * torch.eye(int(n))),
    "slogdet": lambda n: (aten.slogdet.default, tensor(n, n) + 4 * torch.eye(int(n))),
    "atleast_3d": lambda n: (aten.atleast_3d.default, tensor(n, 2)),
    "sort": lambda n: (aten.sort.default, tensor(3, n), -1, True),
    "topk": lambda n: (aten.topk.default, tensor(3, n), n - 2),
    "median": lambda n: (aten.median.dim, tensor(3, n), 1),
    "kthvalue": lambda n: (aten.kthvalue.default, tensor(3, n), n // 2),
    "searchsorted": lambda n: (aten.searchsorted.Tensor, tensor(n).sort().values, tensor(2, 3)),
    "searchsorted_rows": lambda n: (
        aten.searchsorted.Tensor,
        tensor(n, 5).sort().values,
        tensor(n, 3),
    ),
    "pad": lambda n: (aten.pad.default, tensor(1, 2, n), [1, n - 3], "reflect"),
    "pad_constant": lambda n: (aten.constant_pad_nd.default, tensor(2, n), [0, 8 - n]),
    "pad_crop": lambda n: (aten.constant_pad_nd.default, tensor(2, n), [-1, -1]),
    "pad_crop_rows": lambda n: (aten.constant_pad_nd.default, tensor(n, n), [-1, -1, 0, -1]),
    "pad_circular": lambda n: (aten._pad_circular.default, tensor(1, 2, n), [n, n - 1]),
    "pad_replicate": lambda n: (aten.replication_pad1d.default, tensor(1, 2, n), [n, -1]),
}


class Replay:
    """Runs recorded calls again, with inputs of another size."""

    def __init__(self, inputs: list[tuple[Value, mx.array]]) -> None:
        self.known = {id(value): array for value, array in inputs}

    def run(self, b: Builder, result: Any) -> list[mx.array]:
        for call in b.calls:
            made = call.function(*self.argument(call.args), **self.argument(call.kwargs))
            arrays = [made] if isinstance(made, mx.array) else list(made)
            assert len(arrays) == len(call.outputs), "another number of results"
            self.known.update(
                {id(value): array for value, array in zip(call.outputs, arrays, strict=True)}
            )
        values = list(result) if isinstance(result, tuple | list) else [result]
        return [self.known[id(value)] for value in values]

    def argument(self, value: Any) -> Any:
        if isinstance(value, Value):
            return self.known[id(value)]
        if isinstance(value, SymbolicInt):
            return eval(value.expression, {"n": USED})
        if isinstance(value, list | tuple):
            return type(value)(self.argument(v) for v in value)
        if isinstance(value, dict):
            return {k: self.argument(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.argument, (value.start, value.stop, value.step)))
        return value


def symbolic_extent(small: int, large: int) -> int:
    """The linear function of `n` with these values at both sizes."""
    if small == large:
        return small
    factor = (large - small) // (USED - TRACED)
    return SymbolicInt(small, f"({factor} * n + {small - factor * TRACED})")


@pytest.mark.parametrize("name", CASES)
def test_traced_at_one_size_right_at_another(name: str) -> None:
    overload, *traced = CASES[name](SymbolicInt(TRACED, "n"))
    _, *used = CASES[name](USED)
    inputs: list[tuple[Value, mx.array]] = []

    def argument(small: Any, large: Any) -> Any:
        if isinstance(small, torch.Tensor):
            value = Value(
                to_array(small), dims=tuple(map(symbolic_extent, small.shape, large.shape))
            )
            inputs.append((value, to_array(large)))
            return value
        if isinstance(small, list):
            return [argument(*each) for each in zip(small, large, strict=True)]
        return small

    b = Builder()
    arguments = [argument(*each) for each in zip(traced, used, strict=True)]
    result = lowering_for(overload)(b, *arguments)
    found = Replay(inputs).run(b, result)
    expected = overload(*used)
    wanted = list(expected) if isinstance(expected, list | tuple) else [expected]
    for left, right in zip(found, wanted, strict=False):
        torch.testing.assert_close(to_tensor(left).to(right.dtype), right)


def test_number_of_parts_must_not_depend_on_a_size() -> None:
    x = Value(mx.zeros((4, 2)), dims=(SymbolicInt(4, "n"), 2))
    with pytest.raises(LoweringError, match="number of parts"):
        lowering_for(aten.split.Tensor)(Builder(), x, 3)
