"""Views, joins and rearrangements: empty and 0-d tensors, negative dimensions, odd sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import FLOATS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
ALL = (*FLOATS, torch.int64, torch.uint8, torch.bool)


def each(*arguments: tuple[Any, ...]) -> Any:
    """Samples from (shape of the tensor, *other arguments)."""

    def samples(t: TensorMaker) -> Iterator[Sample]:
        for shape, *rest in arguments:
            yield call(t(*shape), *rest)

    return samples


def assertion(*arguments: Any) -> Any:
    return lambda t: [call(t.of(True, torch.bool), *arguments)]


case(aten._assert_async.default, samples=assertion(), compare="shape")
case(aten._assert_async.msg, samples=assertion("never"), compare="shape")
case(aten._assert_scalar.default, samples=lambda t: [call(True, "never")], compare="shape")
case(
    aten._assert_tensor_metadata.default,
    samples=lambda t: [call(t(2, 3), [2, 3], dtype=t.dtype)],
    compare="shape",
)
case(
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    samples=lambda t: [call(5, min=2, max=9)],
    compare="shape",
)


RESHAPES = (
    ((2, 3, 4), [6, 4]),
    ((2, 3, 4), [-1]),
    ((2, 3, 4), [2, -1, 2]),
    ((), [1, 1]),
    ((), [-1]),
    ((1, 1), []),
    ((0, 3), [3, 0]),
    ((0, 3), [-1, 3]),
    ((2, 0, 3), [2, -1, 3]),
    ((2, 3), [2, 3]),
)
case(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    samples=each(*RESHAPES),
    dtypes=ALL,
)
case(aten._reshape_alias.default, samples=each(((2, 6), [3, 4], [4, 1]), ((4,), [2, 2], [2, 1])))
case(
    aten.flatten.using_ints,
    samples=each(((2, 3, 4),), ((2, 3, 4), 1), ((2, 3, 4), -2, -1), ((),), ((2, 0, 4), 0, 1)),
    dtypes=ALL,
)
case(
    aten.unflatten.int,
    samples=each(((2, 6), 1, [2, 3]), ((2, 6), -1, [-1, 2]), ((6, 0), 0, [3, 2])),
)
case(
    aten.expand.default,
    samples=each(
        ((3, 1), [3, 4]),
        ((3, 1), [2, -1, 4]),
        ((), [2, 2]),
        ((1,), [0]),
        ((), []),
        ((2, 0), [3, 2, 0]),
    ),
    dtypes=ALL,
)
case(
    aten.broadcast_tensors.default,
    samples=lambda t: [
        call([t(3, 1), t(1, 4), t()]),
        call([t(0), t(1)]),
        call([t(2, 1, 3), t(4, 1)]),
    ],
)
case(
    aten.permute.default,
    samples=each(
        ((2, 3, 4), [2, 0, 1]),
        ((2, 3), [-1, -2]),
        ((2, 3), [0, 1]),
        ((), []),
        ((2, 0, 3), [1, 2, 0]),
    ),
    dtypes=ALL,
)
TRANSPOSES = (
    ((2, 3, 4), 0, 2),
    ((2, 3, 4), -1, 1),
    ((2, 3), 1, 1),
    ((), 0, -1),
    ((5,), 0, 0),
    ((0, 3), 0, 1),
)
case(
    aten.transpose.int,
    aten.swapaxes.default,
    aten.swapdims.default,
    samples=each(*TRANSPOSES),
    dtypes=ALL,
)
case(aten.t.default, samples=each(((2, 3),), ((3,),), ((),)), dtypes=ALL)
case(aten.mT.default, aten.mH.default, aten.adjoint.default, samples=each(((4, 2, 3),), ((2, 3),)))
case(aten.numpy_T.default, samples=each(((2, 3),), ((3,),)))
case(
    aten.movedim.int,
    aten.moveaxis.int,
    samples=each(((2, 3, 4, 5), 0, 2), ((2, 3, 4, 5), -1, 0), ((2, 3), 0, 0), ((2, 3, 4), 1, -1)),
)
case(
    aten.movedim.intlist,
    aten.moveaxis.intlist,
    samples=each(((2, 3, 4, 5), [0, 1], [2, 3]), ((2, 3, 4, 5), [-1, 0], [0, 2])),
)
case(aten.squeeze.default, samples=each(((1, 2, 1),), ((),), ((1,),), ((1, 0),)), dtypes=ALL)
case(aten.squeeze.dim, samples=each(((1, 2, 1), -1), ((1, 2), 1), ((), 0), ((1, 0), 0)), dtypes=ALL)
case(
    aten.squeeze.dims,
    samples=each(((1, 2, 1), [0, -1]), ((1, 2, 1), [0, 1]), ((), [0])),
    dtypes=ALL,
)
case(
    aten.unsqueeze.default,
    samples=each(((2, 3), -1), ((2, 3), 0), ((2, 3), -3), ((), 0), ((0,), 1)),
    dtypes=ALL,
)
case(
    aten.flip.default,
    samples=each(((2, 3), [0]), ((2, 3), [-1, 0]), ((2, 3), []), ((0, 3), [0, 1]), ((), [])),
    dtypes=ALL,
)
case(
    aten.rot90.default,
    samples=lambda t: [
        call(t(2, 3, 4), k, dims) for k in range(-3, 5) for dims in ([0, 1], [2, 0])
    ],
)
case(
    aten.roll.default,
    samples=each(
        ((2, 3), [1], [0]),
        ((2, 3), [1, -1], [0, 1]),
        ((2, 3), [5]),
        ((2, 3), [-7], [-1]),
        ((2, 3), [1, 1], [1, 1]),
        ((0, 3), [1], [0]),
        ((4, 5), [2, 1], [-2, -1]),
    ),
    dtypes=ALL,
)
case(
    aten.repeat.default,
    samples=each(
        ((2, 3), [2, 1]), ((2, 3), [2, 1, 3]), ((), [2, 3]), ((2,), [0]), ((2, 0), [2, 2]), ((), [])
    ),
    dtypes=ALL,
)
case(aten.tile.default, samples=each(((2, 3), [2]), ((2, 3), [2, 1, 3]), ((), []), ((2,), [2, 2])))
case(
    aten.diagonal.default,
    samples=each(
        ((3, 4),),
        ((3, 4), 1),
        ((3, 4), -2),
        ((2, 3, 4), 0, -1, 1),
        ((2, 3, 4), 1, 2, 0),
        ((3, 4), 3),
        ((3, 3), -3),
    ),
    dtypes=ALL,
)
case(
    aten.diag_embed.default,
    samples=each(
        ((2, 3),),
        ((2, 3), 1),
        ((2, 3), -2),
        ((2, 3), 0, 0, 1),
        ((2, 3), 1, 2, 0),
        ((2, 3), -1, -1, -3),
        ((0,), 1),
    ),
    dtypes=ALL,
)
case(aten.diagflat.default, samples=each(((2, 2), 1), ((), -1), ((3,),)))


def diagonal_scatters(t: TensorMaker) -> Iterator[Sample]:
    yield call(t(3, 4), t(3))
    yield call(t(3, 4), t(2), -1)
    yield call(t(2, 3, 4), t(3, 1), 1, 2, 0)
    yield call(t(2, 3, 4), t(3, 2), 0, 0, -1)


case(aten.diagonal_scatter.default, samples=diagonal_scatters, dtypes=ALL)
case(
    aten.as_strided.default,
    skip=[("the storage ends before the offset once copied", lambda s: s.get(3, "storage_offset"))],
    fails=[refused("strides address the memory behind a tensor, which a graph does not show")],
)
case(
    aten.unfold.default,
    samples=each(
        ((7,), 0, 3, 2), ((2, 7, 3), 1, 3, 1), ((2, 7), -1, 7, 4), ((), 0, 1, 1), ((4, 2), 0, 2, 3)
    ),
    dtypes=ALL,
)


def patches(t: TensorMaker) -> Iterator[Sample]:
    for kernel, dilation, padding, stride in (
        ([2, 3], [1, 1], [0, 0], [1, 1]),
        ([3, 2], [2, 1], [1, 2], [2, 3]),
        ([1, 1], [1, 1], [0, 1], [1, 2]),
        ([2, 2], [3, 2], [2, 0], [1, 1]),
    ):
        yield call(t(2, 3, 7, 6), kernel, dilation, padding, stride)
        yield call(t(3, 7, 6), kernel, dilation, padding, stride)


def columns(t: TensorMaker) -> Iterator[Sample]:
    for sample in patches(t):
        image, *rest = sample.args
        unfolded = aten.im2col.default(image, *rest)
        yield call(unfolded, list(image.shape[-2:]), *rest)


case(aten.im2col.default, samples=patches, dtypes=FLOATS)
case(aten.col2im.default, samples=columns, dtypes=(torch.float32,))
case(
    aten.pixel_shuffle.default,
    samples=each(((2, 12, 3, 5), 2), ((9, 2, 1), 3), ((2, 2, 4, 1, 2), 2)),
    dtypes=ALL,
)
case(aten.pixel_unshuffle.default, samples=each(((2, 3, 6, 4), 2), ((2, 3, 6), 3)), dtypes=ALL)
case(
    aten.channel_shuffle.default,
    aten.native_channel_shuffle.default,
    samples=each(((2, 6, 3, 2), 3), ((1, 4, 5, 1), 2)),
)


def joined(t: TensorMaker) -> Iterator[Sample]:
    yield call([t(2, 3), t(4, 3)])
    yield call([t(2, 3), t(2, 1)], -1)
    yield call([t(0), t(2, 3)])
    yield call([t(2, 0), t(2, 3)], 1)
    yield call([t(0), t(0)])
    yield call([t(2, 3)])
    yield call([t(2), t(3, dtype=torch.int64), t(1, dtype=torch.float32)])
    yield call([t(2), t(3, dtype=torch.uint8), t(1, dtype=torch.bool)])


case(aten.cat.default, aten.concat.default, aten.concatenate.default, samples=joined, dtypes=ALL)
case(
    aten.stack.default,
    samples=lambda t: (
        [call([t(2, 3), t(2, 3)], d) for d in (0, 1, 2, -1, -3)]
        + [call([t(), t()]), call([t(0), t(0)], 1), call([t(2), t(2, dtype=torch.int64)])]
    ),
    dtypes=ALL,
)


def stacks(t: TensorMaker) -> Iterator[Sample]:
    yield call([t(), t()])
    yield call([t(2), t(2)])
    yield call([t(2, 3), t(2, 3)])
    yield call([t(2, 3, 2), t(2, 3, 2)])


case(
    aten.hstack.default,
    aten.vstack.default,
    aten.dstack.default,
    aten.column_stack.default,
    samples=stacks,
)
SPLITS = (((7, 2), 3), ((6, 2), 3), ((2, 5), 2, -1), ((2, 5), 9, 1), ((0, 2), 2), ((0, 2), 0))
case(aten.split.Tensor, aten.unsafe_split.Tensor, samples=each(*SPLITS), dtypes=ALL)
case(
    aten.split_with_sizes.default,
    aten.split.sizes,
    aten.unsafe_split_with_sizes.default,
    samples=each(
        ((7, 2), [3, 4]),
        ((6, 2), [2, 2, 2]),
        ((2, 5), [0, 5, 0], -1),
        ((2, 5), [5], 1),
        ((0, 2), [0, 0]),
        ((2, 6), [1, 2, 3], 1),
    ),
    dtypes=ALL,
)
case(
    aten.chunk.default,
    aten.unsafe_chunk.default,
    samples=each(((7, 2), 3), ((6, 2), 3), ((2, 5), 4, -1), ((2, 3), 9, 1), ((0, 2), 2)),
)
case(aten.tensor_split.sections, samples=each(((7, 2), 3), ((2, 3), 5, -1), ((0, 2), 2)))
case(
    aten.tensor_split.indices, samples=each(((7, 2), [2, 5]), ((2, 6), [4, 1, 9], -1), ((3,), [-1]))
)
case(
    aten.unbind.int,
    samples=each(((3, 2),), ((2, 3), -1), ((3,),), ((0, 2),), ((2, 0), 0)),
    dtypes=ALL,
)
case(
    aten.repeat_interleave.self_int,
    samples=each(
        ((2, 3), 2), ((2, 3), 2, 1), ((2, 3), 3, -2), ((), 2), ((2, 3), 0, 0), ((3,), 2, 0)
    ),
    dtypes=ALL,
)
COUNTS = torch.tensor([2, 0, 3])
case(
    aten.repeat_interleave.self_Tensor,
    samples=lambda t: [
        call(t(2, 3), COUNTS, 1, output_size=5),
        call(t(3, 2), COUNTS, 0, output_size=5),
        call(t(3), COUNTS, output_size=5),
        call(t(2, 3), torch.tensor([2]), output_size=12),
        call(t(3), COUNTS),
    ],
    fails=[
        refused(
            "without output_size the shape depends on the values of repeats",
            when=lambda s: s.kwargs.get("output_size") is None,
        )
    ],
)
case(
    aten.repeat_interleave.Tensor,
    samples=lambda t: [
        call(COUNTS, output_size=5),
        call(torch.tensor([0, 0]), output_size=0),
        call(COUNTS),
    ],
    fails=[
        refused(
            "without output_size the shape depends on the values of repeats",
            when=lambda s: s.kwargs.get("output_size") is None,
        )
    ],
)
case(
    aten.meshgrid.default,
    samples=lambda t: [call([t(2), t(3)]), call([t(), t(3), t(2)]), call([t(4)])],
)
case(
    aten.meshgrid.indexing,
    samples=lambda t: [
        call(tensors, indexing=indexing)
        for indexing in ("ij", "xy")
        for tensors in ([t(2), t(3)], [t(2), t(3), t(4)], [t(), t(2)], [t(3)], [t(0), t(2)])
    ],
)
case(aten.cartesian_prod.default, samples=lambda t: [call([t(2), t(3)]), call([t(2)])])
case(
    aten.block_diag.default,
    samples=lambda t: [call([t(2, 3), t(3), t()]), call([t(0, 2), t(1, 1)])],
)

for name in ("atleast_1d", "atleast_2d", "atleast_3d"):
    case(
        getattr(aten, name).default,
        samples=lambda t: [call(t(*(2, 3, 4, 5)[:n])) for n in range(5)],
    )
    case(
        getattr(aten, name).Sequence,
        samples=lambda t: [call([t(), t(2)]), call([t(2, 3), t(2, 3, 4)])],
    )
