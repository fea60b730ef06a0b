"""Reading and writing at places: mixtures of None, masks, broadcasting and negative indices."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from table import FLOATS, Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
ALL = (*FLOATS, torch.int64, torch.uint8, torch.bool)
END = 9223372036854775807
VALUES_SHAPE = "the shape of the result depends on values"


def index(t: TensorMaker, *shape: int, extent: int, least: int = 0) -> torch.Tensor:
    """Places below an extent, negative ones from `least` on."""
    return t(*shape, low=least, high=extent, dtype=torch.int64)


def slices(t: TensorMaker) -> Iterator[Sample]:
    bounds = [(None, None), (1, 3), (-2, END), (0, -1), (3, 2), (-99, 99), (0, 0), (2, END)]
    for start, end in bounds:
        for step in (1, 2, 5):
            yield call(t(5, 3), 0, start, end, step)
            yield call(t(2, 3, 4), -1, start, end, step)
    yield call(t(0, 3), 0, 0, 2)
    yield call(t(2, 6, 3, 2), 1, 1, 5, 3)


case(aten.slice.Tensor, samples=slices, dtypes=ALL)
case(
    aten.narrow.default,
    samples=lambda t: [
        call(t(5, 3), 0, 1, 3),
        call(t(2, 3, 4), -1, -3, 2),
        call(t(3), 0, 3, 0),
        call(t(3), 0, -1, 1),
    ],
)
case(
    aten.select.int,
    samples=lambda t: [
        call(t(3, 2), 0, -1),
        call(t(2, 3, 4), -1, 2),
        call(t(2, 3, 4), 1, -3),
        call(t(3), 0, 0),
        call(t(3, 0), 0, 1),
    ],
    dtypes=ALL,
)
case(
    aten.select_scatter.default,
    samples=lambda t: [
        call(t(3, 2), t(2), 0, -1),
        call(t(2, 3, 4), t(2, 3), -1, 2),
        call(t(3), t(), 0, 1),
        call(t(3, 0), t(0), 0, 1),
    ],
    dtypes=ALL,
)


def slice_scatters(t: TensorMaker) -> Iterator[Sample]:
    for sample in slices(t):
        x, *rest = sample.args
        part = aten.slice.Tensor(x, *rest)
        yield call(x, t(*part.shape), *rest)
    yield call(t(4, 3), t(2, 3, dtype=torch.float32), 0, 1, 3)


case(aten.slice_scatter.default, samples=slice_scatters, dtypes=(*FLOATS, torch.int64, torch.bool))


def index_selects(t: TensorMaker) -> Iterator[Sample]:
    for dim in (0, 1, -1):
        yield call(t(3, 4, 5), dim, index(t, 6, extent=3))
        yield call(t(3, 4, 5), dim, index(t, extent=3))
        yield call(t(3, 4, 5), dim, torch.tensor([], dtype=torch.int64))
    yield call(t(3, 4), 0, index(t, 2, extent=3).int())
    yield call(t(), 0, torch.tensor([0]))
    yield call(t(), 0, torch.tensor(0))


case(aten.index_select.default, samples=index_selects, dtypes=ALL)
case(
    aten.take.default,
    samples=lambda t: [
        call(t(3, 4), index(t, 2, 3, extent=12, least=-12)),
        call(t(3, 4), index(t, extent=12)),
        call(t(), torch.tensor([0, -1, 0])),
        call(t(3), torch.tensor([], dtype=torch.int64)),
    ],
    dtypes=ALL,
)
case(
    aten.embedding.default,
    samples=lambda t: [
        call(t(5, 3), index(t, 2, 4, extent=5)),
        call(t(5, 3), index(t, extent=5), 2),
        call(t(5, 3), index(t, 0, 2, extent=5).int(), -1, True),
    ],
    dtypes=FLOATS,
)


def bags(t: TensorMaker) -> Iterator[Sample]:
    places = torch.tensor([0, 1, 4, 1, 2, 3, 3])
    for mode, last in product((0, 1, 2), (False, True)):
        for offsets in ([0, 2, 2, 5], [0, 0, 7], [0, 1, 3, 7]):
            if last and offsets[-1] != len(places):
                continue  # the last offset has to be the end
            offset = torch.tensor(offsets)
            yield call(t(5, 3), places, offset, False, mode, False, None, last)
            if mode == 0:
                yield call(t(5, 3), places, offset, False, mode, False, t(7), last)
    yield call(t(5, 3), places.int(), torch.tensor([0, 3]).int(), False, 1)
    yield call(t(5, 3), torch.tensor([], dtype=torch.int64), torch.tensor([0, 0]), False, 0)


def padded_bags(t: TensorMaker) -> Iterator[Sample]:
    for sample in bags(t):
        args = (*sample.args, *(False, 0, False, None, False)[len(sample.args) - 3 :])
        for padding in (1, 4, -2):
            yield call(*args, padding)


case(
    aten.embedding_bag.default,
    aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
    samples=bags,
    dtypes=(torch.float32, torch.float16),
)
case(
    aten.embedding_bag.padding_idx,
    samples=padded_bags,
    dtypes=(torch.float32, torch.float16),
)
case(
    aten.one_hot.default,
    samples=lambda t: [
        call(index(t, 2, 3, extent=4), 4),
        call(index(t, extent=4), 6),
        call(index(t, 0, extent=4), 4),
    ],
    fails=[
        refused("num_classes=-1: " + VALUES_SHAPE, when=lambda s: s.get(1, "num_classes", -1) == -1)
    ],
)
TRIANGLES = [
    call(3, 4),
    call(4, 3, 1),
    call(3, 3, -1),
    call(2, 5, -3),
    call(3, 3, 9),
    call(0, 3),
    call(1, 1),
]
case(
    aten.tril_indices.default,
    aten.triu_indices.default,
    samples=lambda t: [Sample(s.args, {"device": "cpu"}) for s in TRIANGLES],
)
case(
    aten.nonzero_static.default,
    samples=lambda t: (
        [
            call(
                t(3, 4) if t.dtype == torch.bool else t(3, 4, low=0, high=2),
                size=size,
                fill_value=-7,
            )
            for size in (0, 3, 20)
        ]
        + [call(t(0, 2), size=2)]
    ),
    dtypes=(torch.int64, torch.bool),
    fails=[refused("0-d tensor", when=lambda s: not s.args[0].ndim)],
)


def gathers(t: TensorMaker) -> Iterator[Sample]:
    for dim in (0, 1, -1):
        yield call(t(3, 4, 5), dim, index(t, 3, 4, 5, extent=3))
        yield call(t(3, 4, 5), dim, index(t, 2, 1, 3, extent=3))
        yield call(t(3, 4, 5), dim, index(t, 1, 1, 1, extent=3))
    yield call(t(3, 4), 1, index(t, 3, 9, extent=4))
    yield call(t(), 0, torch.tensor(0))
    yield call(t(), 0, torch.tensor([0, 0]))
    yield call(t(4), 0, torch.tensor(2))
    yield call(t(3, 4), 1, index(t, 3, 0, extent=4))
    yield call(t(3, 4), 0, index(t, 0, 4, extent=3))


case(aten.gather.default, samples=gathers, dtypes=ALL)
case(
    aten.take_along_dim.default,
    samples=lambda t: [
        call(t(3, 4), index(t, 3, 2, extent=4), 1),
        call(t(3, 4), index(t, 1, 2, extent=4), -1),
        call(t(1, 4), index(t, 3, 2, extent=4), 1),
        call(t(3, 4), index(t, 5, extent=12)),
        call(t(3, 4), index(t, 2, 2, extent=12)),
    ],
)


def scatter_places(t: TensorMaker) -> Iterator[tuple[torch.Tensor, int, torch.Tensor]]:
    """Without repetitions: of those torch keeps any one."""
    for dim in (0, 1, -1):
        x = t(3, 4, 5)
        yield x, dim, x.float().argsort(dim)
        yield x, dim, t(2, 3, 3).float().argsort(dim)
        yield x, dim, t(1, 1, 1).float().argsort(dim)
    yield t(), 0, torch.tensor(0)
    yield t(4), 0, torch.tensor(2)
    yield t(), 0, torch.tensor([0])
    yield t(3, 4), 1, index(t, 3, 0, extent=4)


def repeated_places(t: TensorMaker) -> Iterator[tuple[torch.Tensor, int, torch.Tensor]]:
    yield from scatter_places(t)
    for dim in (0, 1, -1):
        yield t(3, 4, 5), dim, index(t, 3, 4, 6, extent=3)[:, :, :5]
        yield t(3, 4, 5), dim, index(t, 2, 4, 3, extent=2)


def scatters(t: TensorMaker) -> Iterator[Sample]:
    for x, dim, places in scatter_places(t):
        yield call(x, dim, places, t(*places.shape))
        yield call(x, dim, places, t(*(n + 1 for n in places.shape)))


def scatter_adds(t: TensorMaker) -> Iterator[Sample]:
    for x, dim, places in repeated_places(t):
        yield call(x, dim, places, t(*places.shape))
        yield call(x, dim, places, t(*(n + 2 for n in places.shape)))


case(aten.scatter.src, samples=scatters, dtypes=ALL)
case(aten.scatter_add.default, samples=scatter_adds, dtypes=(*FLOATS, torch.int64, torch.uint8))
case(
    aten.scatter.value,
    samples=lambda t: [
        call(*places, value) for places in repeated_places(t) for value in (0, 1, 2.5)
    ],
    dtypes=(*FLOATS, torch.int64),
)
case(
    aten.scatter.reduce,
    samples=lambda t: [
        call(*sample.args, reduce=reduce)
        for sample in scatter_adds(t)
        for reduce in ("add", "multiply")
    ],
    dtypes=(torch.float32, torch.int64),
)
case(
    aten.scatter.value_reduce,
    samples=lambda t: [
        call(*places, 2, reduce=reduce)
        for places in repeated_places(t)
        for reduce in ("add", "multiply")
    ],
    dtypes=(torch.float32, torch.int64),
)


def scatter_reductions(t: TensorMaker) -> Iterator[Sample]:
    for reduce in ("sum", "prod", "mean", "amax", "amin"):
        for include_self in (True, False):
            for sample in list(scatter_adds(t))[include_self::3]:
                yield call(*sample.args, reduce, include_self=include_self)
            if t.dtype.is_floating_point:
                nan = t.of([1.0, float("nan"), 3.0])
                for x, source in ((nan, nan.flip(0)), (nan.flip(0), nan + 1)):
                    yield call(
                        x, 0, torch.tensor([1, 0, 0]), source, reduce, include_self=include_self
                    )


case(
    aten.scatter_reduce.two,
    samples=scatter_reductions,
    dtypes=(torch.float32, torch.int64, torch.uint8),
)


def index_copies(t: TensorMaker) -> Iterator[Sample]:
    for dim in (0, 1, -1):
        yield call(
            t(3, 4, 5),
            dim,
            torch.tensor([2, 0]),
            t(*(2 if i == dim % 3 else n for i, n in enumerate((3, 4, 5)))),
        )
    yield call(t(), 0, torch.tensor([0]), t(1))
    yield call(t(), 0, torch.tensor(0), t())
    yield call(t(4), 0, torch.tensor(2), t())
    yield call(t(3, 2), 0, torch.tensor([], dtype=torch.int64), t(0, 2))


case(aten.index_copy.default, samples=index_copies, dtypes=ALL)


def index_adds(t: TensorMaker) -> Iterator[Sample]:
    for sample in index_copies(t):
        x, dim, places, source = sample.args
        if x.ndim == source.ndim:
            yield sample
        if x.ndim == source.ndim and places.ndim:
            yield call(x, dim, places * 0, source, alpha=2)
    yield call(t(3), 0, torch.tensor([1, 1, -0]), t(3), alpha=-1)


case(aten.index_add.default, samples=index_adds, dtypes=(*FLOATS, torch.int64, torch.uint8))
case(
    aten.index_reduce.default,
    samples=lambda t: [
        call(x, dim, places, source, reduce, include_self=include)
        for reduce in ("prod", "mean", "amax", "amin")
        for include in (True, False)
        for x, dim, places, source in (
            (t(3, 4), 0, torch.tensor([1, 1, 0, 1]), t(4, 4)),
            (t(3, 4), -1, torch.tensor([3, 1]), t(3, 2)),
            (t(), 0, torch.tensor([0]), t()),
        )
    ],
    dtypes=(torch.float32, torch.int64),
)
case(
    aten.index_fill.int_Scalar,
    samples=lambda t: [
        call(t(3, 4), 0, torch.tensor([0, 2]), 1),
        call(t(3, 4), -1, torch.tensor(-1), 1),
        call(t(), 0, torch.tensor([0]), 1),
        call(t(3), 0, torch.tensor([], dtype=torch.int64), 1),
    ],
    dtypes=ALL,
)
case(
    aten.index_fill.int_Tensor,
    samples=lambda t: [
        call(t(3, 4), 1, torch.tensor([0, -2]), t()),
        call(t(), 0, torch.tensor([0]), t()),
    ],
    dtypes=ALL,
)


def index_keys(t: TensorMaker) -> Iterator[tuple[tuple[int, ...], list[torch.Tensor | None]]]:
    """Every mixture of None and broadcasting indices over four axes."""
    shape = (3, 4, 2, 5)
    choices: list[torch.Tensor | None] = [
        None,
        index(t, 2, 3, extent=2, least=-2),
        index(t, 3, extent=2, least=-2),
        index(t, 1, 1, extent=2),
        torch.tensor(-1),
    ]
    for i, key in enumerate(product(choices, repeat=4)):
        if i % 7 in (1, 4):
            yield shape, list(key)
    for key in product(choices, repeat=2):
        yield shape, list(key)
    yield (3, 4), [torch.tensor([], dtype=torch.int64)]
    yield (3, 4), [None, torch.tensor([], dtype=torch.int64)]
    yield (0, 4), [None, torch.tensor([1, 1])]
    yield (3,), [torch.tensor(1, dtype=torch.int32)]


def indexed(t: TensorMaker) -> Iterator[Sample]:
    for shape, key in index_keys(t):
        if any(place is not None for place in key):
            yield call(t(*shape), key)


def has_mask(sample: Sample) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in sample.args[1])


def masked_reads(t: TensorMaker) -> Iterator[Sample]:
    yield from indexed(t)
    yield call(t(3, 4), [t(3, 4, dtype=torch.bool)])


MASK = refused("a mask: " + VALUES_SHAPE, when=has_mask)
case(aten.index.Tensor, samples=masked_reads, dtypes=ALL, fails=[MASK])
case(aten._unsafe_index.Tensor, samples=indexed, dtypes=ALL)


def written(t: TensorMaker) -> Iterator[Sample]:
    for shape, key in index_keys(t):
        x = t(*shape)
        if all(place is None for place in key):
            continue
        part = aten.index.Tensor(x, key)
        yield call(x, key, t(*part.shape), True)
        yield call(x, key, t(), True)
        yield call(x, key, t())
        if part.ndim and part.shape[-1]:
            yield call(x, key, t(part.shape[-1]), True)
    x = t(3, 4, 2)
    yield call(x, [torch.tensor([2, 0])], t(2, 4, 2))
    yield call(x, [torch.tensor([2, 0]), None, torch.tensor([1, 0])], t(2, 4))
    yield call(x, [torch.tensor([2, 0]), None, torch.tensor([[1], [0]])], t(2, 2, 4))
    yield call(x, [None, torch.tensor([[3, -4]]), torch.tensor([1])], t(3, 1, 2))
    for mask in (t(3, dtype=torch.bool), t(3, 4, dtype=torch.bool), t(3, 4, 2, dtype=torch.bool)):
        count, rest = int(mask.sum()), x.shape[mask.ndim :]
        for accumulate in (False, True):
            yield call(x, [mask], t(), accumulate)
            yield call(x, [mask], t(1), accumulate)
            yield call(x, [mask], t(count, *rest), accumulate)
            yield call(x, [mask], t(*rest), accumulate)
            yield call(x, [mask], t(1, *rest), accumulate)
    yield call(x, [torch.zeros(3, dtype=torch.bool)], t(0, 4, 2))
    yield call(x, [None, t(4, dtype=torch.bool)], t())


MIXED_MASK = refused(
    "a mask that is not the only index, or not of the first axes",
    when=lambda s: has_mask(s) and (s.args[1][0] is None or len(s.args[1]) > 1),
)
case(
    aten.index_put.default,
    aten._unsafe_index_put.default,
    samples=written,
    dtypes=(*FLOATS, torch.int64, torch.bool),
    fails=[MIXED_MASK],
    limit=400,
)


def masked_scatters(t: TensorMaker) -> Iterator[Sample]:
    yield call(t(3, 4), t(3, 4, dtype=torch.bool), t(12))
    yield call(t(3, 4), t(4, dtype=torch.bool), t(3, 5))
    yield call(t(4), t(3, 4, dtype=torch.bool), t(12))
    yield call(t(3, 1), t(1, 4, dtype=torch.bool), t(12))
    yield call(t(), t(dtype=torch.bool), t(1))
    yield call(t(0), t(0, dtype=torch.bool), t(0))
    yield call(t(3), torch.zeros(3, dtype=torch.bool), t(0))


case(aten.masked_scatter.default, samples=masked_scatters, dtypes=ALL)
case(
    aten.put.default,
    samples=lambda t: [
        call(t(3, 4), torch.tensor([[0, -1], [5, 7]]), t(2, 2)),
        call(t(3, 4), torch.tensor([0, 0, 5]), t(3), True),
        call(t(), torch.tensor(0), t()),
        call(t(3), torch.tensor([], dtype=torch.int64), t(0)),
    ],
    dtypes=(*FLOATS, torch.int64),
)


def any_tensor(t: TensorMaker) -> Iterator[Sample]:
    yield call(t(3, 4))


def refuse(*overloads: Any, samples: Any = any_tensor) -> None:
    case(*overloads, samples=samples, fails=[refused(VALUES_SHAPE)])


refuse(
    aten.nonzero.default,
    aten.nonzero_numpy.default,
    aten.argwhere.default,
    aten._unique.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
)
refuse(
    aten.unique_dim.default,
    aten.unique_dim_consecutive.default,
    samples=lambda t: [call(t(3, 4), 0)],
)
refuse(aten.bincount.default, samples=lambda t: [call(torch.tensor([1, 2, 2]))])
refuse(aten.masked_select.default, samples=lambda t: [call(t(3, 4), t(3, 4, dtype=torch.bool))])
