"""Pooling over channels-last arrays (N, *spatial, C) with all the attributes that PyTorch has.

Unless said otherwise a kernel, stride, padding or dilation is a tuple with one number an axis.
"""

from __future__ import annotations

from math import prod

import mlx.core as mx

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool_with_indices",
    "avg_pool",
    "fractional_max_pool",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
]


def output_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """The number of windows along an axis; in ceil mode each must begin on data or left padding."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def lowest(dtype: mx.Dtype) -> float | int:
    """What no element of the dtype is less than."""
    if mx.issubdtype(dtype, mx.floating):
        return -float("inf")
    return int(mx.iinfo(dtype).min)


def pad_and_split(
    x: mx.array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
    fill: float | int,
) -> mx.array:
    """Windows of an array: (N, *spatial, C) → (N, *counts, *kernel, C)."""
    spatial = x.shape[1:-1]
    counts = [
        output_size(n, k, s, p, d, ceil_mode)
        for n, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True)
    ]
    # In ceil mode the last window may reach beyond the padding.
    after = [
        max((c - 1) * s + d * (k - 1) + 1 - n - p, 0)
        for c, n, k, s, p, d in zip(counts, spatial, kernel, stride, padding, dilation, strict=True)
    ]
    if any(padding) or any(after):
        x = mx.pad(x, [(0, 0), *zip(padding, after, strict=True), (0, 0)], constant_values=fill)
    steps = [1]
    for extent in reversed(x.shape[1:]):
        steps.insert(0, steps[0] * extent)
    inner = steps[1:-1]
    return mx.as_strided(
        x,
        (x.shape[0], *counts, *kernel, x.shape[-1]),
        (
            steps[0],
            *(step * s for step, s in zip(inner, stride, strict=True)),
            *(step * d for step, d in zip(inner, dilation, strict=True)),
            1,
        ),
    )


def window_axes(rank: int) -> tuple[int, ...]:
    """The axes of a window's elements in what `pad_and_split` returns."""
    return tuple(range(1 + rank, 1 + 2 * rank))


def max_pool(
    x: mx.array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool = False,
) -> mx.array:
    """The maximum of each window."""
    windows = pad_and_split(x, kernel, stride, padding, dilation, ceil_mode, lowest(x.dtype))
    return mx.max(windows, axis=window_axes(len(kernel)))


def max_pool_with_indices(
    x: mx.array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool = False,
) -> tuple[mx.array, mx.array]:
    """The maximum of each window, and its place in the flattened spatial axes of `x`."""
    windows = pad_and_split(x, kernel, stride, padding, dilation, ceil_mode, lowest(x.dtype))
    places = first_maximum(windows, len(kernel))
    flat = mx.zeros_like(places)
    rest = places
    inner = prod(kernel)
    for axis, extent in enumerate(x.shape[1:-1]):
        inner //= kernel[axis]
        starts = mx.arange(windows.shape[1 + axis]) * stride[axis] - padding[axis]
        starts = starts.reshape(-1, *(1,) * (windows.ndim - len(kernel) - 2 - axis))
        place = starts + rest // inner * dilation[axis]
        # A window of nothing but -inf: its first element that is not padding.
        place = mx.where(place < 0, place % dilation[axis], place)
        flat = flat * extent + place
        rest = rest % inner
    return mx.max(windows, axis=window_axes(len(kernel))), flat


def first_maximum(windows: mx.array, rank: int) -> mx.array:
    """Where the maximum of each flattened window is: the last NaN, if any, else the first."""
    flat = mx.flatten(windows, 1 + rank, 2 * rank)
    axis = 1 + rank
    if flat.size == 0:  # MLX has no argmax of an empty array
        return mx.zeros((*flat.shape[:axis], flat.shape[-1]), mx.int32)
    best = mx.argmax(flat, axis=axis)
    if not mx.issubdtype(windows.dtype, mx.floating):
        return best.astype(mx.int32)
    size = flat.shape[axis]
    order = mx.arange(size).reshape(size, 1)
    last_nan = mx.max(mx.where(mx.isnan(flat), order, -1), axis=axis)
    return mx.where(last_nan >= 0, last_nan, best.astype(mx.int32))


def avg_pool(
    x: mx.array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> mx.array:
    """The mean of each window.

    A window that reaches beyond the padding (ceil mode) counts only what is within it; without
    `count_include_pad` it counts only data.
    """
    rank = len(kernel)
    if ceil_mode and not any(padding):  # a kernel beyond the data is as large as the data
        sizes = zip(kernel, stride, x.shape[1:-1], strict=True)
        kernel = tuple(n if k > n and s >= n else k for k, s, n in sizes)
    windows = pad_and_split(x, kernel, stride, padding, (1,) * rank, ceil_mode, 0)
    windows = windows.astype(mx.float32)
    if divisor_override is not None:
        return (mx.sum(windows, axis=window_axes(rank)) / divisor_override).astype(x.dtype)
    if not ceil_mode and (count_include_pad or not any(padding)):
        return mx.mean(windows, axis=window_axes(rank)).astype(x.dtype)
    total = mx.sum(windows, axis=window_axes(rank))
    for axis in range(rank):
        size, pad = x.shape[1 + axis], padding[axis]
        starts = mx.arange(total.shape[1 + axis]) * stride[axis] - pad
        stops = mx.minimum(starts + kernel[axis], size + pad)
        if not count_include_pad:
            starts, stops = mx.maximum(starts, 0), mx.minimum(stops, size)
        total = total / (stops - starts).reshape(-1, *(1,) * (rank - axis))
    return total.astype(x.dtype)


def adaptive_windows(x: mx.array, axis: int, count: int) -> tuple[mx.array, mx.array]:
    """`count` windows that cover an axis: it becomes (count, longest), and which are real.

    Window i is [floor(i n / count), ceil((i + 1) n / count)).
    """
    size = x.shape[axis]
    starts = [i * size // count for i in range(count)]
    lengths = [-(-(i + 1) * size // count) - starts[i] for i in range(count)]
    offsets = mx.arange(max(lengths))
    places = mx.minimum(mx.array(starts)[:, None] + offsets, size - 1)
    return mx.take(x, places, axis=axis), offsets < mx.array(lengths)[:, None]


def adaptive_avg_pool(x: mx.array, size: tuple[int, ...]) -> mx.array:
    """Means over windows that make an output of the given size."""
    result = x.astype(mx.float32)
    for axis, (extent, count) in enumerate(zip(x.shape[1:-1], size, strict=True), start=1):
        if count == extent:
            continue
        if extent % count == 0:
            result = mx.mean(mx.unflatten(result, axis, (count, extent // count)), axis=axis + 1)
            continue
        windows, real = adaptive_windows(result, axis, count)
        real = real.reshape(*real.shape, *(1,) * (windows.ndim - axis - 2))
        total = mx.sum(mx.where(real, windows, 0), axis=axis + 1)
        result = total / mx.sum(real, axis=1)
    return result.astype(x.dtype)


def adaptive_max_windows(x: mx.array, size: tuple[int, ...]) -> tuple[mx.array, list[list[int]]]:
    """(N, *counts, *longest, C) filled up with the lowest value, and where the windows begin."""
    rank = len(size)
    starts: list[list[int]] = []
    for axis, count in enumerate(size):
        extent = x.shape[1 + 2 * axis]
        starts.append([i * extent // count for i in range(count)])
        x, real = adaptive_windows(x, 1 + 2 * axis, count)
        real = real.reshape(*real.shape, *(1,) * (x.ndim - 3 - 2 * axis))
        x = mx.where(real, x, mx.array(lowest(x.dtype), x.dtype))
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return mx.transpose(x, order), starts


def adaptive_max_pool_with_indices(x: mx.array, size: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    """Maxima over windows that make an output of the given size, and their flattened places."""
    windows, starts = adaptive_max_windows(x, size)
    return maxima_with_places(windows, starts, x.shape[1:-1])


def maxima_with_places(
    windows: mx.array, starts: list[list[int]], spatial: tuple[int, ...]
) -> tuple[mx.array, mx.array]:
    """Maxima of windows that begin at `starts` of each axis, and their flattened places."""
    rank = len(spatial)
    rest = first_maximum(windows, rank)
    flat = mx.zeros_like(rest)
    inner = prod(windows.shape[1 + rank : 1 + 2 * rank])
    for axis, extent in enumerate(spatial):
        inner //= windows.shape[1 + rank + axis]
        first = mx.array(starts[axis]).reshape(-1, *(1,) * (rank - axis))
        flat = flat * extent + first + rest // inner
        rest = rest % inner
    return mx.max(windows, axis=window_axes(rank)), flat


def max_unpool(x: mx.array, indices: mx.array, size: tuple[int, ...]) -> mx.array:
    """Put (..., *pooled) at the indices of a zero array (..., *size); channels come first here."""
    rank = len(size)
    batch = x.shape[: x.ndim - rank]
    empty = mx.zeros((*batch, prod(size)), x.dtype)
    places, values = mx.flatten(indices, -rank), mx.flatten(x, -rank)
    full = mx.put_along_axis(empty, places, values, axis=-1)
    return full.reshape(*batch, *size)


def fractional_max_pool(
    x: mx.array, kernel: tuple[int, ...], size: tuple[int, ...], samples: mx.array
) -> tuple[mx.array, mx.array]:
    """Maxima of windows at pseudo-random places, and their places; channels come first here.

    Args:
        x: (N, C, *spatial).
        kernel: extents of a window.
        size: how many windows.
        samples: (N, C, rank) in [0, 1); the last number belongs to the first axis but for 3-d.

    Source: Graham, Fractional Max-Pooling, 2014 (pseudo-random sequences).
    """
    rank = len(size)
    spatial = x.shape[2:]
    flat_places = mx.zeros((*x.shape[:2], *(1,) * (2 * rank)), mx.int32)
    for axis, (extent, length, count) in enumerate(zip(spatial, kernel, size, strict=True)):
        u = samples[..., axis if rank == 3 else rank - 1 - axis, None]
        if count == 1:
            starts = mx.full((*x.shape[:2], 1), extent - length)
        else:
            alpha = mx.array((extent - length) / (count - 1), samples.dtype)
            steps = mx.arange(count - 1).astype(samples.dtype)
            starts = ((steps + u) * alpha).astype(mx.int32) - (u * alpha).astype(mx.int32)
            last = mx.full((*x.shape[:2], 1), extent - length)
            starts = mx.concatenate([starts, last], axis=-1)
        places = starts[..., None] + mx.arange(length)
        shape = [*x.shape[:2], *(1,) * (2 * rank)]
        shape[2 + axis], shape[2 + rank + axis] = count, length
        flat_places = flat_places * extent + places.reshape(shape)
    flat = flat_places.reshape(*x.shape[:2], prod(size), prod(kernel))
    values = mx.take_along_axis(
        mx.flatten(x, 2)[:, :, None], mx.flatten(flat, 2)[:, :, None], axis=-1
    ).reshape(flat.shape)
    best = first_maximum(mx.moveaxis(values, 1, -1), 1)
    best = mx.moveaxis(best, -1, 1)[..., None]
    found = mx.take_along_axis(values, best, axis=-1).reshape(*x.shape[:2], *size)
    return found, mx.take_along_axis(flat, best, axis=-1).reshape(*x.shape[:2], *size)
