"""Special functions that MLX lacks, in single precision."""

from __future__ import annotations

import math

import mlx.core as mx

__all__ = [
    "bessel_i0",
    "bessel_i0e",
    "bessel_i1",
    "digamma",
    "entropy",
    "log_gamma",
    "normal_cdf",
    "normal_quantile",
    "xlog1py",
]


def log_gamma(x: mx.array) -> mx.array:
    """Log |Γ(x)|: Lanczos' approximation (g = 5, Numerical Recipes) and Euler's reflection."""
    reflected = x < 0.5
    y = mx.where(reflected, 1 - x, x) - 1
    # Γ(y + 1) from a sum of simple fractions.
    series = mx.array(0.99999999999980993)
    for i, coefficient in enumerate(LANCZOS, start=1):
        series = series + coefficient / (y + i)
    t = y + 7.5
    near = 0.5 * math.log(2 * math.pi) + (y + 0.5) * mx.log(t) - t + mx.log(series)
    # Where cancellation would show, near 1 and 2, the power series around them.
    near = mx.where(mx.abs(y) < 0.25, around_one(y), near)
    near = mx.where(mx.abs(y - 1) < 0.25, around_one(y - 1) + mx.log1p(y - 1), near)
    sine = mx.abs(mx.sin(math.pi * (x - mx.round(x))))
    return mx.where(reflected, math.log(math.pi) - mx.log(sine) - near, near)


LANCZOS = (
    676.5203681218851,
    -1259.1392167224028,
    771.32342877765313,
    -176.61502916214059,
    12.507343278686905,
    -0.13857109526572012,
    9.9843695780195716e-6,
    1.5056327351493116e-7,
)
# ζ(k) / k with alternating signs, k ≥ 2: log Γ(1 + z) = -γ z + Σ (-z)ᵏ ζ(k) / k.
ZETA = (
    1.6449340668482264,
    1.2020569031595943,
    1.0823232337111382,
    1.0369277551433699,
    1.0173430619844491,
    1.0083492773819228,
    1.0040773561979443,
    1.0020083928260822,
    1.0009945751278181,
    1.0004941886041195,
)


def around_one(z: mx.array) -> mx.array:
    """Log Γ(1 + z) of small z."""
    total = -0.5772156649015329 * z
    power = -z
    for k, zeta in enumerate(ZETA, start=2):
        power = power * -z
        total = total + power * (zeta / k)
    return total


def digamma(x: mx.array) -> mx.array:
    """The derivative of log Γ: shifted to x > 6, where the asymptotic series holds."""
    reflected = x < 0
    y = mx.where(reflected, 1 - x, x)
    shift = mx.zeros_like(y)
    for _ in range(6):
        small = y < 6
        shift = shift + mx.where(small, 1 / y, 0)
        y = mx.where(small, y + 1, y)
    square = 1 / (y * y)
    tail = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    value = mx.log(y) - 0.5 / y - tail - shift
    fraction = x - mx.round(x)
    value = mx.where(reflected, value - math.pi / mx.tan(math.pi * fraction), value)
    value = mx.where(reflected & (fraction == 0), mx.nan, value)
    return mx.where(x == 0, mx.where(1 / x > 0, -mx.inf, mx.inf), value)


def polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    """Horner's scheme, the highest power first."""
    total = mx.full(x.shape, coefficients[0], x.dtype)
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def bessel_i0e(x: mx.array) -> mx.array:
    """exp(-|x|) I₀(x) (Abramowitz & Stegun 9.8.1 and 9.8.2)."""
    x = mx.abs(x)
    small = polynomial(
        mx.square(mx.minimum(x, 3.75) / 3.75),
        (0.0045813, 0.0360768, 0.2659732, 1.2067492, 3.0899424, 3.5156229, 1.0),
    )
    large = polynomial(
        3.75 / mx.maximum(x, 3.75),
        (
            *(0.00392377, -0.01647633, 0.02635537, -0.02057706, 0.00916281),
            *(-0.00157565, 0.00225319, 0.01328592, 0.39894228),
        ),
    )
    return mx.where(x < 3.75, small * mx.exp(-x), large * mx.rsqrt(mx.maximum(x, 3.75)))


def bessel_i0(x: mx.array) -> mx.array:
    """The modified Bessel function I₀."""
    return bessel_i0e(x) * mx.exp(mx.abs(x))


def bessel_i1(x: mx.array) -> mx.array:
    """The modified Bessel function I₁ (Abramowitz & Stegun 9.8.3 and 9.8.4)."""
    size = mx.abs(x)
    small = size * polynomial(
        mx.square(mx.minimum(size, 3.75) / 3.75),
        (0.00032411, 0.00301532, 0.02658733, 0.15084934, 0.51498869, 0.87890594, 0.5),
    )
    large = polynomial(
        3.75 / mx.maximum(size, 3.75),
        (
            *(-0.00420059, 0.01787654, -0.02895312, 0.02282967, -0.01031555),
            *(0.00163801, -0.00362018, -0.03988024, 0.39894228),
        ),
    )
    large = large * mx.exp(size) * mx.rsqrt(mx.maximum(size, 3.75))
    return mx.sign(x) * mx.where(size < 3.75, small, large)


def normal_cdf(x: mx.array) -> mx.array:
    """The share of the normal distribution below x."""
    return 0.5 * (1 + mx.erf(x * math.sqrt(0.5)))


def normal_quantile(p: mx.array) -> mx.array:
    """Where the normal distribution has a share p below it."""
    return math.sqrt(2) * mx.erfinv(2 * p - 1)


def entropy(x: mx.array) -> mx.array:
    """-x log x; 0 at 0, -inf below."""
    value = mx.where(x > 0, -x * mx.log(x), mx.where(x == 0, 0.0, -mx.inf))
    return mx.where(mx.isnan(x), x, value)


def xlog1py(x: mx.array, y: mx.array) -> mx.array:
    """X log(1 + y), 0 where x is 0 and y is a number."""
    return mx.where((x == 0) & ~mx.isnan(y), 0, x * mx.log1p(y))
