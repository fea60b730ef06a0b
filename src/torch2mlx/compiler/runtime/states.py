"""State-space layers whose states live in a cache of mlx-lm."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.gated_delta import gated_delta_kernel, gated_delta_ops

__all__ = [
    "delta_rule",
    "keep_columns",
    "lightning_attention",
    "mamba2_scan",
    "selective_scan",
    "without_padding",
]


def without_padding(cache: Any, x: mx.array) -> mx.array:
    """X [batch, length, width] with 0 where a row of the batch is padded."""
    mask = cache.make_mask(x.shape[1])
    return x if mask is None else mx.where(mask[..., None], x, mx.array(0, x.dtype))


def keep_columns(cache: Any, slot: int, x: mx.array, kernel: int) -> mx.array:
    """The last `kernel` columns before x [batch, channels, length], then x; keeps the last ones."""
    before = cache[slot]
    if before is None:
        before = mx.zeros((*x.shape[:2], kernel), x.dtype)
    x = mx.concatenate([before, x], axis=-1)
    if cache.lengths is None:
        cache[slot] = x[..., -kernel:]
    else:
        ends = mx.clip(cache.lengths, 0, x.shape[-1] - kernel)
        columns = mx.expand_dims(ends[:, None] + mx.arange(kernel), 1)
        cache[slot] = mx.take_along_axis(x, columns, axis=-1)
    return x


def _steps(cache: Any, dt: mx.array, bias: Any, softplus: bool, axis: int) -> mx.array:
    """Lengths of time steps in float32, 0 where a row is padded."""
    dt = dt.astype(mx.float32)
    if bias is not None:
        dt = dt + bias
    if softplus:
        dt = mx.logaddexp(dt, 0.0)
    mask = cache.make_mask(dt.shape[axis])
    return dt if mask is None else mx.where(mx.expand_dims(mask, 3 - axis), dt, mx.array(0.0))


def mamba2_scan(
    cache: Any,
    slot: int,
    x: mx.array,
    dt: mx.array,
    a: mx.array,
    b: mx.array,
    c: mx.array,
    d: Any = None,
    bias: Any = None,
    softplus: bool = False,
    limit: tuple[float, float] = (0.0, float("inf")),
) -> mx.array:
    """State-space duality (Mamba 2, arXiv 2405.21060), in chunks of 256 tokens.

    The cache holds the state [batch, heads, head width, state width] at `slot`; x has the shape
    [batch, length, heads, head width], dt [batch, length, heads], a, d and bias [heads], b and c
    [batch, length, groups, state width].
    """
    length, heads = x.shape[1:3]
    dt = mx.clip(_steps(cache, dt, bias, softplus, 1), *limit)
    values = x.astype(mx.float32)
    b = mx.repeat(b.astype(mx.float32), heads // b.shape[2], axis=2)
    c = mx.repeat(c.astype(mx.float32), heads // c.shape[2], axis=2)
    state, parts = cache[slot], []
    for start in range(0, length, 256):
        part = slice(start, start + 256)
        xs, bs, cs = (v[:, part].swapaxes(1, 2) for v in (values, b, c))
        times = dt[:, part].swapaxes(1, 2)
        total = mx.cumsum(times * a[:, None], axis=-1)
        size = total.shape[-1]
        seen = mx.arange(size)[:, None] >= mx.arange(size)
        decay = mx.where(seen, total[..., None] - total[..., None, :], -mx.inf)
        y = (cs @ bs.swapaxes(-1, -2) * mx.exp(decay) * times[..., None, :]) @ xs
        left = mx.exp(total[..., -1:] - total) * times
        new = (xs * left[..., None]).swapaxes(-1, -2) @ bs
        if state is not None:
            y = y + mx.exp(total)[..., None] * (cs @ state.swapaxes(-1, -2))
            new = new + mx.exp(total[..., -1])[..., None, None] * state
        state = new
        parts.append(y.swapaxes(1, 2))
    cache[slot] = state
    cache.advance(length)
    y = mx.concatenate(parts, axis=1)
    if d is not None:
        y = y + values * d[:, None]
    return y.astype(x.dtype)


def selective_scan(
    cache: Any,
    slot: int,
    x: mx.array,
    dt: mx.array,
    a: mx.array,
    b: mx.array,
    c: mx.array,
    d: Any = None,
    z: Any = None,
    bias: Any = None,
    softplus: bool = False,
) -> mx.array:
    """Selective state space (Mamba, arXiv 2312.00752), token by token.

    The cache holds the state [batch, channels, state width] at `slot`; x, dt and z have the shape
    [batch, channels, length], a [channels, state width], b and c [batch, state width, length], d
    and bias [channels].
    """
    dt = _steps(cache, dt, None if bias is None else bias[:, None], softplus, 2)
    values = x.astype(mx.float32)
    b, c = b.astype(mx.float32), c.astype(mx.float32)
    state = cache[slot]
    if state is None:
        state = mx.zeros((x.shape[0], *a.shape), mx.float32)
    parts = []
    for t in range(x.shape[-1]):
        step = dt[..., t, None]
        state = state * mx.exp(a * step) + step * values[..., t, None] * b[:, None, :, t]
        parts.append((state * c[:, None, :, t]).sum(axis=-1))
    cache[slot] = state
    cache.advance(x.shape[-1])
    y = mx.stack(parts, axis=-1)
    if d is not None:
        y = y + values * d[:, None]
    if z is not None:
        gate = z.astype(mx.float32)
        y = y * gate * mx.sigmoid(gate)
    return y.astype(x.dtype)


def delta_rule(
    cache: Any,
    slot: int,
    values: mx.array,
    queries: mx.array,
    keys: mx.array,
    decay: mx.array,
    beta: mx.array,
    normalized: bool,
) -> mx.array:
    """Gated delta rule (arXiv 2412.06464), in float32; on a GPU mlx-lm's kernel.

    The cache holds the state [batch, heads, value width, key width] at `slot`; values have the
    shape [batch, length, heads, value width], queries and keys [batch, length, key heads, key
    width], beta [batch, length, heads], the logarithm of the decay too, or one more axis: its own
    for each channel of the keys (Kimi Delta Attention, arXiv 2510.26692). `normalized` takes
    queries and keys at length 1.
    """
    q, k, v, g, beta = (x.astype(mx.float32) for x in (queries, keys, values, decay, beta))
    if normalized:
        q, k = (x * mx.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6) for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    state = cache[slot]
    if state is None:
        state = mx.zeros((*v.shape[:1], *v.shape[2:], k.shape[-1]), mx.float32)
    on_gpu = mx.metal.is_available() and mx.default_device() == mx.gpu
    rule = gated_delta_kernel if on_gpu and k.shape[-1] % 32 == 0 else gated_delta_ops
    y, cache[slot] = rule(q, k, v, mx.exp(g), beta, state, cache.make_mask(v.shape[1]))
    cache.advance(v.shape[1])
    return y.astype(values.dtype)


def lightning_attention(
    cache: Any,
    slot: int,
    values: mx.array,
    queries: mx.array,
    keys: mx.array,
    slopes: mx.array,
) -> mx.array:
    """Linear attention that fades by `slopes` a token (arXiv 2401.04658), in chunks of 256 tokens.

    The cache holds the state [batch, heads, width, width] at `slot`; values, queries and keys have
    the shape [batch, heads, length, width], slopes [heads, 1, 1]. Padding has keys of 0, and
    nothing fades over it.
    """
    q, k, v = (x.astype(mx.float32) for x in (queries, keys, values))
    length = v.shape[2]
    mask = cache.make_mask(length)
    steps = mx.ones((1, length)) if mask is None else mask.astype(mx.float32)
    steps = -slopes.astype(mx.float32)[..., 0] * steps[:, None]
    state, parts = cache[slot], []
    for start in range(0, length, 256):
        part = slice(start, start + 256)
        qs, ks, vs = q[:, :, part], k[:, :, part], v[:, :, part]
        total = mx.cumsum(steps[..., part], axis=-1)
        size = total.shape[-1]
        seen = mx.arange(size)[:, None] >= mx.arange(size)
        decay = mx.where(seen, total[..., None] - total[..., None, :], -mx.inf)
        y = (qs @ ks.swapaxes(-1, -2) * mx.exp(decay)) @ vs
        new = (ks * mx.exp(total[..., -1:] - total)[..., None]).swapaxes(-1, -2) @ vs
        if state is not None:
            y = y + mx.exp(total)[..., None] * (qs @ state)
            new = new + mx.exp(total[..., -1])[..., None, None] * state
        state = new
        parts.append(y)
    cache[slot] = state
    cache.advance(length)
    return mx.concatenate(parts, axis=2).astype(values.dtype)
