"""Operators that move or regroup elements without looking at their values."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering, lowering_named
from torch2mlx.compiler.symbolic import SymbolicInt, source_of

__all__: list[str] = []

aten = torch.ops.aten


def axis_of(dim: int, ndim: int) -> int:
    """A dimension counted from the front; a 0-d tensor counts as 1-d, as in torch."""
    return dim % max(ndim, 1)


def same_extents(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether two shapes are equal for every size of their dynamic extents."""
    return [source_of(n) for n in left] == [source_of(n) for n in right]


def surely_equal(left: int, right: int) -> bool:
    """Whether two extents are equal, and not just for the example's sizes."""
    if isinstance(left, SymbolicInt) and isinstance(right, SymbolicInt):
        return left.expression == right.expression
    return left == right


def product(extents: Sequence[int]) -> int:
    """The product of extents, symbolic where one of them is."""
    result = 1
    for extent in extents:
        result = extent if result == 1 else result * extent
    return result


def subscript(b: Builder, x: Value, axis: int, place: Any) -> Value:
    """`x[:, ..., place]`: an int or slice on one axis, counted from the front."""
    result: Value = b.call(operator.getitem, x, axis_key(axis, x.ndim, place))
    return result


def axis_key(axis: int, ndim: int, place: Any) -> Any:
    """The shortest subscript that puts an int, slice or index array on one axis."""
    if axis == 0:
        return place
    if axis == ndim - 1 and ndim > 2:
        return (Ellipsis, place)
    return (*(slice(None),) * axis, place)


@lowering(
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
def lower_assertion(b: Builder, *args: Any, **kwargs: Any) -> tuple[Value, ...]:
    """Nothing: an assertion changes no value."""
    return ()


@lowering(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
@lowering(aten._reshape_alias.default)
def lower_reshape(b: Builder, x: Value, size: Sequence[int], stride: Any = None) -> Value:
    """Same elements in another shape; one extent may be -1."""
    if same_extents(x.shape, size):
        return x
    if -1 in size and x.array.size == 0:  # MLX cannot infer an extent beside an empty one
        known = product([n for n in size if n != -1])
        size = [product(x.shape) // known if n == -1 else n for n in size]
    result: Value = b.call(mx.reshape, x, tuple(size))
    if -1 not in size:
        result.dims = tuple(size)
    return result


@lowering(aten.view_as.default, aten.reshape_as.default)
def lower_reshape_as(b: Builder, x: Value, other: Value) -> Value:
    """Same elements in the shape of another tensor."""
    return lower_reshape(b, x, other.shape)


@lowering(aten.flatten.using_ints)
def lower_flatten(b: Builder, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Neighbouring axes as one; a 0-d tensor becomes one of one element."""
    if x.ndim == 0:
        return lower_reshape(b, x, (1,))
    if axis_of(start_dim, x.ndim) == axis_of(end_dim, x.ndim):
        return x
    result: Value = b.call(mx.flatten, x, start_axis=start_dim, end_axis=end_dim)
    return result


@lowering(aten.unflatten.int)
def lower_unflatten(b: Builder, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    """One axis as several."""
    axis = axis_of(dim, x.ndim)
    if -1 in sizes:
        known = product([n for n in sizes if n != -1])
        sizes = [x.shape[axis] // known if n == -1 else n for n in sizes]
    return lower_reshape(b, x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))


@lowering(aten.expand.default)
def lower_expand(b: Builder, x: Value, size: Sequence[int], *, implicit: bool = False) -> Value:
    """Axes of extent 1 repeated, new ones in front; -1 keeps an extent."""
    new = len(size) - x.ndim
    shape = tuple(x.shape[i - new] if n == -1 else n for i, n in enumerate(size))
    if same_extents(x.shape, shape):
        return x
    result: Value = b.call(mx.broadcast_to, x, shape)
    result.dims = shape
    return result


@lowering(aten.broadcast_to.default)
def lower_broadcast_to(b: Builder, x: Value, size: Sequence[int]) -> Value:
    """As expand."""
    return lower_expand(b, x, size)


@lowering(aten.expand_as.default)
def lower_expand_as(b: Builder, x: Value, other: Value) -> Value:
    """Expanded to the shape of another tensor."""
    return lower_expand(b, x, other.shape)


@lowering(aten.broadcast_tensors.default)
def lower_broadcast_tensors(b: Builder, tensors: Sequence[Value]) -> tuple[Value, ...]:
    """All tensors in their common shape."""
    ndim = max(t.ndim for t in tensors)
    shape: list[int] = [1] * ndim
    for t in tensors:
        for i, extent in enumerate(t.shape, start=ndim - t.ndim):
            shape[i] = extent if shape[i] == 1 else shape[i]
    return tuple(lower_expand(b, t, shape) for t in tensors)


@lowering(aten.permute.default)
def lower_permute(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    """Axes in another order."""
    if [axis_of(d, x.ndim) for d in dims] == list(range(x.ndim)):
        return x
    result: Value = b.call(mx.transpose, x, tuple(dims))
    return result


@lowering(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def lower_transpose(b: Builder, x: Value, dim0: int, dim1: int) -> Value:
    """Two axes exchanged."""
    if axis_of(dim0, x.ndim) == axis_of(dim1, x.ndim):
        return x
    result: Value = b.call(mx.swapaxes, x, dim0, dim1)
    return result


@lowering(aten.t.default, aten.mT.default)
def lower_matrix_transpose(b: Builder, x: Value) -> Value:
    """The transpose of matrices; a vector stays as it is."""
    return x if x.ndim < 2 else lower_transpose(b, x, -2, -1)


@lowering(aten.adjoint.default, aten.mH.default)
def lower_adjoint(b: Builder, x: Value) -> Value:
    """The transpose of matrices, conjugated if they are complex."""
    transposed = lower_matrix_transpose(b, x)
    if x.dtype != mx.complex64 or x.ndim < 2:
        return transposed
    result: Value = b.call(mx.conj, transposed)
    return result


@lowering(aten.numpy_T.default)
def lower_reversed_axes(b: Builder, x: Value) -> Value:
    """All axes in reverse order."""
    return lower_permute(b, x, range(x.ndim)[::-1])


@lowering(aten.movedim.int, aten.moveaxis.int)
def lower_movedim(b: Builder, x: Value, source: int, destination: int) -> Value:
    """One axis moved elsewhere."""
    return lower_movedims(b, x, [source], [destination])


@lowering(aten.movedim.intlist, aten.moveaxis.intlist)
def lower_movedims(
    b: Builder, x: Value, source: Sequence[int], destination: Sequence[int]
) -> Value:
    """Several axes moved, the others in their order."""
    places = {
        axis_of(d, x.ndim): axis_of(s, x.ndim) for s, d in zip(source, destination, strict=True)
    }
    rest = iter(sorted(set(range(x.ndim)) - set(places.values())))
    return lower_permute(b, x, [places[i] if i in places else next(rest) for i in range(x.ndim)])


@lowering(aten.squeeze.default)
def lower_squeeze(b: Builder, x: Value) -> Value:
    """Without the axes of extent 1."""
    return lower_squeeze_dims(b, x, range(x.ndim))


@lowering(aten.squeeze.dim)
def lower_squeeze_dim(b: Builder, x: Value, dim: int) -> Value:
    """Without one axis, if its extent is 1."""
    return lower_squeeze_dims(b, x, [dim])


@lowering(aten.squeeze.dims)
def lower_squeeze_dims(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    """Without those of the named axes whose extent is 1."""
    axes = tuple(d for d in dims if x.ndim and x.shape[d] == 1)
    if not axes:
        return x
    result: Value = b.call(mx.squeeze, x, axis=axes if len(axes) > 1 else axes[0])
    return result


@lowering(aten.unsqueeze.default)
def lower_unsqueeze(b: Builder, x: Value, dim: int) -> Value:
    """A new axis of extent 1."""
    result: Value = b.call(mx.expand_dims, x, dim)
    return result


@lowering(aten.flip.default)
def lower_flip(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    """Axes in reverse."""
    if not dims or x.ndim == 0:
        return x
    result: Value = b.call(mx.flip, x, tuple(dims))
    return result


@lowering(aten.fliplr.default)
def lower_fliplr(b: Builder, x: Value) -> Value:
    """The second axis in reverse."""
    return lower_flip(b, x, [1])


@lowering(aten.flipud.default)
def lower_flipud(b: Builder, x: Value) -> Value:
    """The first axis in reverse."""
    return lower_flip(b, x, [0])


@lowering(aten.rot90.default)
def lower_rot90(b: Builder, x: Value, k: int = 1, dims: Sequence[int] = (0, 1)) -> Value:
    """Rotated by k quarters from the first towards the second axis."""
    first, second = dims
    quarters = k % 4
    if quarters == 0:
        return x
    if quarters == 2:
        return lower_flip(b, x, dims)
    flipped = lower_flip(b, x, [second if quarters == 1 else first])
    return lower_transpose(b, flipped, first, second)


@lowering(aten.roll.default)
def lower_roll(b: Builder, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    """Elements shifted along axes, what leaves comes in at the other end."""
    if x.array.size == 0 or x.ndim == 0:
        return x
    if not dims:
        flat = b.call(mx.roll, x, shifts[0])
        return lower_reshape(b, flat, x.shape)
    result: Value
    if len(dims) == 1:
        result = b.call(mx.roll, x, shifts[0], axis=dims[0])
    else:
        result = b.call(mx.roll, x, tuple(shifts), axis=tuple(dims))
    return result


@lowering(aten.repeat.default)
def lower_repeat(b: Builder, x: Value, repeats: Sequence[int]) -> Value:
    """The whole tensor repeated along each axis."""
    if all(source_of(n) == "1" for n in repeats) and len(repeats) == x.ndim:
        return x
    result: Value = b.call(mx.tile, x, tuple(repeats))
    return result


@lowering(aten.tile.default)
def lower_tile(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    """As repeat, with 1 for the leading axes that are not named."""
    return lower_repeat(b, x, (*(1,) * (x.ndim - len(dims)), *dims))


@lowering(aten.as_strided.default)
def lower_as_strided(b: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Refused: strides are of the storage behind the tensor, which a graph does not show."""
    raise LoweringError(
        "aten.as_strided: its strides address the memory of the tensor, which depends on how it "
        "was made; write it with reshape, slices or Tensor.unfold"
    )


@lowering_named("torch2mlx_strides.strided.default")
def lower_strided(
    b: Builder, x: Value, size: Sequence[int], stride: Sequence[int], offset: int
) -> Any:
    """strided(Tensor x, int[] size, int[] stride, int offset): as MLX's, row-major."""
    return b.call(mx.as_strided, x, tuple(size), tuple(stride), *((offset,) if offset else ()))


def _at_least(ndim: int) -> Any:
    def lower(b: Builder, x: Any) -> Any:
        """atleast_nd(Tensor self), or of a list of tensors."""
        if isinstance(x, list | tuple):
            return tuple(lower(b, each) for each in x)
        missing = ndim - x.ndim
        if missing <= 0:
            return x
        behind = 1 if ndim == 3 and x.ndim else 0  # (n) becomes (1, n, 1), (m, n) becomes (m, n, 1)
        return lower_reshape(b, x, (*(1,) * (missing - behind), *x.shape, *(1,) * behind))

    return lower


for _ndim, _packet in ((1, aten.atleast_1d), (2, aten.atleast_2d), (3, aten.atleast_3d)):
    lowering(_packet.default, _packet.Sequence)(_at_least(_ndim))
