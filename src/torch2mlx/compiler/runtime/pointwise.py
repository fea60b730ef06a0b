"""Elementwise functions of PyTorch that MLX lacks or defines otherwise."""

from __future__ import annotations

import math

import mlx.core as mx

__all__ = [
    "angle",
    "angle_of_real",
    "complex_number",
    "copysign",
    "elu",
    "erfc",
    "exp2",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "frac",
    "gelu",
    "gelu_tanh",
    "hard_shrink",
    "hardsigmoid",
    "hardswish",
    "heaviside",
    "hypot",
    "integer_power",
    "isclose",
    "ldexp",
    "leaky_relu",
    "left_shift",
    "lerp",
    "log_sigmoid",
    "logaddexp2",
    "logit",
    "mish",
    "nan_to_num",
    "polar",
    "right_shift",
    "round_decimals",
    "signbit",
    "silu",
    "sinc",
    "soft_shrink",
    "softplus",
    "threshold",
    "trunc_divide",
    "trunc_divide_integers",
    "xlogy",
]


def fmod(x: mx.array, y: mx.array) -> mx.array:
    """Remainder with the sign of the dividend."""
    return mx.where(x < 0, -1, 1).astype(x.dtype) * mx.remainder(mx.abs(x), mx.abs(y))


def floor_divide(x: mx.array, y: mx.array) -> mx.array:
    """⌊x / y⌋ of floats, from the exact remainder: 1 // 0.1 is 9, as in Python."""
    rest = fmod(x, y)
    quotient = (x - rest) / y
    quotient = mx.where((rest != 0) & ((y < 0) != (rest < 0)), quotient - 1, quotient)
    return mx.where(y == 0, x / y, mx.round(quotient))


def trunc_divide(x: mx.array, y: mx.array) -> mx.array:
    """X / y of floats, rounded toward zero."""
    return mx.trunc(x / y)


def trunc_divide_integers(x: mx.array, y: mx.array) -> mx.array:
    """X / y of integers, rounded toward zero."""
    quotient = x // y
    return mx.where((quotient < 0) & (quotient * y != x), quotient + 1, quotient)


def integer_power(x: mx.array, exponent: mx.array) -> mx.array:
    """X to an integer power; a negative one gives 1/x rounded toward zero."""
    positive = mx.power(x, mx.maximum(exponent, 0))
    odd = exponent % 2 == 1
    inverse = mx.where(x == 1, 1, mx.where(x == -1, mx.where(odd, -1, 1), 0))
    return mx.where(exponent < 0, inverse.astype(x.dtype), positive)


def exp2(x: mx.array) -> mx.array:
    """2 to the power of x."""
    return mx.power(2.0, x)


def erfc(x: mx.array) -> mx.array:
    """1 - erf(x)."""
    return 1 - mx.erf(x)


def ldexp(x: mx.array, exponent: mx.array) -> mx.array:
    """X · 2^exponent."""
    return x * mx.power(2.0, exponent)


def hypot(x: mx.array, y: mx.array) -> mx.array:
    """√(x² + y²) without overflow."""
    large = mx.maximum(mx.abs(x), mx.abs(y))
    small = mx.minimum(mx.abs(x), mx.abs(y))
    ratio = small / mx.where(large == 0, 1, large)
    return large * mx.sqrt(1 + ratio * ratio)


def complex_number(real: mx.array, imaginary: mx.array) -> mx.array:
    """Real + i · imaginary."""
    return real + 1j * imaginary


def polar(radius: mx.array, angle: mx.array) -> mx.array:
    """Radius · exp(i · angle)."""
    return radius * mx.cos(angle) + 1j * (radius * mx.sin(angle))


def angle(x: mx.array) -> mx.array:
    """The argument of complex numbers."""
    return mx.arctan2(mx.imag(x), mx.real(x))


def angle_of_real(x: mx.array) -> mx.array:
    """0 or π, by the sign."""
    return mx.where(mx.isnan(x), x, mx.where(x < 0, math.pi, 0.0))


def frac(x: mx.array) -> mx.array:
    """The part behind the point, with the sign of x."""
    return x - mx.trunc(x)


def round_decimals(x: mx.array, decimals: int) -> mx.array:
    """Rounded to decimals, ties to even."""
    scale = 10.0 ** abs(decimals)
    return mx.round(x * scale) / scale if decimals > 0 else mx.round(x / scale) * scale


def sinc(x: mx.array) -> mx.array:
    """sin(πx) / πx, 1 at 0."""
    y = x * math.pi
    return mx.where(x == 0, 1, mx.sin(y) / y)


def logit(x: mx.array, eps: float | None = None) -> mx.array:
    """log(x / (1 - x)), of x clipped to [eps, 1 - eps]."""
    if eps is not None:
        x = mx.clip(x, eps, 1 - eps)
    return mx.log(x / (1 - x))


def xlogy(x: mx.array, y: mx.array) -> mx.array:
    """X log(y), 0 where x is 0."""
    return mx.where(mx.isnan(y), y, mx.where(x == 0, 0, x * mx.log(y)))


def fmax(x: mx.array, y: mx.array) -> mx.array:
    """The larger one, or the one that is not NaN."""
    return mx.where(mx.isnan(x), y, mx.where(mx.isnan(y), x, mx.maximum(x, y)))


def fmin(x: mx.array, y: mx.array) -> mx.array:
    """The smaller one, or the one that is not NaN."""
    return mx.where(mx.isnan(x), y, mx.where(mx.isnan(y), x, mx.minimum(x, y)))


def signbit(x: mx.array) -> mx.array:
    """Whether the sign is negative, -0.0 included."""
    return mx.view(x, {2: mx.int16, 4: mx.int32}[x.dtype.size]) < 0


def copysign(x: mx.array, sign: mx.array) -> mx.array:
    """|x| with the sign of another array."""
    return mx.where(signbit(sign), -mx.abs(x), mx.abs(x))


def heaviside(x: mx.array, middle: mx.array) -> mx.array:
    """0 below zero, 1 above, `middle` at zero."""
    return mx.where(x == 0, middle, (x > 0).astype(x.dtype))


def logaddexp2(x: mx.array, y: mx.array) -> mx.array:
    """log2(2^x + 2^y) without overflow."""
    return mx.logaddexp(x * math.log(2), y * math.log(2)) / math.log(2)


def lerp(start: mx.array, end: mx.array, weight: mx.array | float) -> mx.array:
    """From start (weight 0) to end (weight 1), exact at both."""
    weight = mx.array(weight)
    near_start = start + weight * (end - start)
    near_end = end - (end - start) * (1 - weight)
    return mx.where(mx.abs(weight) < 0.5, near_start, near_end)


def isclose(
    x: mx.array, y: mx.array, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> mx.array:
    """|x - y| ≤ atol + rtol·|y|, or equal."""
    difference = mx.abs(x - y)
    close = (x == y) | ((difference <= atol + mx.abs(rtol * y)) & mx.isfinite(difference))
    return close | (mx.isnan(x) & mx.isnan(y)) if equal_nan else close


def nan_to_num(x: mx.array, nan: float, above: float, below: float) -> mx.array:
    """With numbers for NaN, infinity and minus infinity."""
    x = mx.where(mx.isnan(x), nan, x)
    return mx.where(x == mx.inf, above, mx.where(x == -mx.inf, below, x))


def left_shift(x: mx.array, bits: mx.array) -> mx.array:
    """X · 2^bits; 0 for shifts that are negative or wider than the type."""
    fits = (bits >= 0) & (bits < x.dtype.size * 8)
    return mx.where(fits, mx.left_shift(x, bits), 0)


def right_shift(x: mx.array, bits: mx.array) -> mx.array:
    """⌊x / 2^bits⌋; the sign for shifts that are negative or wider than the type."""
    last = x.dtype.size * 8 - 1
    return mx.right_shift(x, mx.where((bits >= 0) & (bits < last), bits, last).astype(x.dtype))


def gelu(x: mx.array) -> mx.array:
    """X Φ(x), Φ being the normal distribution."""
    y = x.astype(mx.float32)
    return (y * (1 + mx.erf(y / math.sqrt(2))) / 2).astype(x.dtype)


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU by the approximation with tanh."""
    y = x.astype(mx.float32)
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)
    return (0.5 * y * (1 + mx.tanh(inner))).astype(x.dtype)


def silu(x: mx.array) -> mx.array:
    """X σ(x)."""
    return x * mx.sigmoid(x)


def elu(x: mx.array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> mx.array:
    """Scale · x above zero, scale · alpha (exp(input_scale · x) - 1) below (ELU, SELU, CELU)."""
    return scale * mx.where(x > 0, x, alpha * mx.expm1(input_scale * x))


def leaky_relu(x: mx.array, slope: float | mx.array) -> mx.array:
    """X above zero, slope · x below."""
    return mx.where(x > 0, x, slope * x)


def threshold(x: mx.array, limit: float, value: float) -> mx.array:
    """X above the limit, else the value."""
    return mx.where(x <= limit, value, x)


def softplus(x: mx.array, beta: float = 1.0, limit: float = 20.0) -> mx.array:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the limit."""
    return mx.where(x * beta > limit, x, mx.log1p(mx.exp(x * beta)) / beta)


def mish(x: mx.array) -> mx.array:
    """X tanh(softplus(x))."""
    y = x.astype(mx.float32)
    return (y * mx.tanh(mx.logaddexp(y, 0))).astype(x.dtype)


def hardsigmoid(x: mx.array) -> mx.array:
    """min(max(x + 3, 0), 6) / 6."""
    return mx.clip(x + 3, 0, 6) / 6


def hardswish(x: mx.array) -> mx.array:
    """X min(max(x + 3, 0), 6) / 6."""
    return x * mx.clip(x + 3, 0, 6) / 6


def log_sigmoid(x: mx.array) -> mx.array:
    """Log σ(x) without overflow."""
    return mx.minimum(x, 0) - mx.log1p(mx.exp(-mx.abs(x)))


def hard_shrink(x: mx.array, limit: float) -> mx.array:
    """0 where |x| ≤ limit, else x."""
    return mx.where((x >= -limit) & (x <= limit), 0, x)


def soft_shrink(x: mx.array, limit: float) -> mx.array:
    """X moved toward zero by the limit."""
    return mx.where(x > limit, x - limit, mx.where(x < -limit, x + limit, x * 0))
