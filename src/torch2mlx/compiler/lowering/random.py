"""Random numbers: torch's distributions drawn by `mx.random`, never the same numbers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.lowering.types import is_complex, mx_dtype
from torch2mlx.compiler.runtime import random as rt

__all__ = ["draws"]

aten = torch.ops.aten

Size = list[int]


def draws(function: Any) -> bool:
    """Whether a function draws random numbers; it then takes a `key`."""
    return getattr(function, "__module__", "") in (mx.random.normal.__module__, rt.__name__)


def _dtype(options: dict[str, Any], default: Any) -> Any:
    if options.get("generator") is not None:
        raise LoweringError("generator: its state is not part of an exported program")
    asked = options.get("dtype")
    dtype = default if asked is None else mx_dtype(asked)
    if dtype is not None and is_complex(dtype):
        raise LoweringError("random complex numbers")
    return dtype


@lowering(aten.rand.default, aten.rand.generator)
def lower_rand(b: Builder, size: Size, **options: Any) -> Any:
    """rand(SymInt[] size, *, dtype, layout, device): uniform in [0, 1)."""
    return b.call(mx.random.uniform, 0, 1, list(size), _dtype(options, mx.float32))


@lowering(aten.rand_like.default)
def lower_rand_like(b: Builder, x: Value, **options: Any) -> Any:
    """rand_like(Tensor self, *, dtype, layout, device, memory_format)."""
    return b.call(mx.random.uniform, 0, 1, list(x.shape), _dtype(options, x.dtype))


@lowering(aten.uniform.default)
def lower_uniform(b: Builder, x: Value, low: float = 0.0, high: float = 1.0, **options: Any) -> Any:
    """uniform(Tensor self, float from=0, float to=1, *, Generator? generator=None)."""
    low = options.pop("from", low)
    high = options.pop("to", high)
    return b.call(mx.random.uniform, low, high, list(x.shape), _dtype(options, x.dtype))


@lowering(aten.randn.default, aten.randn.generator)
def lower_randn(b: Builder, size: Size, **options: Any) -> Any:
    """randn(SymInt[] size, *, dtype, layout, device): normal with mean 0 and deviation 1."""
    return b.call(mx.random.normal, list(size), _dtype(options, mx.float32))


@lowering(aten.randn_like.default)
def lower_randn_like(b: Builder, x: Value, **options: Any) -> Any:
    """randn_like(Tensor self, *, dtype, layout, device, memory_format)."""
    return b.call(mx.random.normal, list(x.shape), _dtype(options, x.dtype))


@lowering(aten.normal_functional.default)
def lower_normal_functional(
    b: Builder, x: Value, mean: float = 0.0, std: float = 1.0, **options: Any
) -> Any:
    """normal_functional(Tensor self, float mean=0, float std=1, *, Generator? generator)."""
    return b.call(mx.random.normal, list(x.shape), _dtype(options, x.dtype), mean, std)


@lowering(aten.normal.float_float)
def lower_normal(b: Builder, mean: float, std: float, size: Size, **options: Any) -> Any:
    """normal.float_float(float mean, float std, SymInt[] size, *, dtype, layout, device)."""
    return b.call(mx.random.normal, list(size), _dtype(options, mx.float32), mean, std)


@lowering(aten.normal.Tensor_float, aten.normal.float_Tensor, aten.normal.Tensor_Tensor)
def lower_normal_of_tensors(b: Builder, mean: Any, std: Any = 1.0, **options: Any) -> Any:
    """normal.Tensor_Tensor(Tensor mean, Tensor std, *, Generator? generator=None)."""
    _dtype(options, None)
    return b.call(rt.normal, mean, std)


@lowering(aten.randint.default)
def lower_randint(b: Builder, high: int, size: Size, **options: Any) -> Any:
    """randint(SymInt high, SymInt[] size, *, dtype, layout, device): 0 ≤ n < high."""
    return lower_randint_low(b, 0, high, size, **options)


@lowering(aten.randint.low)
def lower_randint_low(b: Builder, low: int, high: int, size: Size, **options: Any) -> Any:
    """randint.low(SymInt low, SymInt high, SymInt[] size, *, dtype, layout, device)."""
    drawn = b.call(mx.random.randint, low, high, list(size), mx.int64)
    return b.cast(drawn, _dtype(options, mx.int64))


@lowering(aten.randint_like.default)
def lower_randint_like(b: Builder, x: Value, high: int, **options: Any) -> Any:
    """randint_like(Tensor self, SymInt high, *, dtype, layout, device, memory_format)."""
    return b.cast(lower_randint_low(b, 0, high, list(x.shape)), _dtype(options, x.dtype))


@lowering(aten.randint_like.low_dtype)
def lower_randint_like_low(b: Builder, x: Value, low: int, high: int, **options: Any) -> Any:
    """randint_like.low_dtype(Tensor self, SymInt low, SymInt high, *, dtype, device)."""
    return b.cast(lower_randint_low(b, low, high, list(x.shape)), _dtype(options, x.dtype))


@lowering(aten.randperm.default)
def lower_randperm(b: Builder, n: int, **options: Any) -> Any:
    """randperm(SymInt n, *, dtype, layout, device)."""
    return b.cast(b.call(mx.random.permutation, n), _dtype(options, mx.int64))


@lowering(aten.bernoulli.default)
def lower_bernoulli(b: Builder, x: Value, **options: Any) -> Any:
    """bernoulli(Tensor self, *, Generator? generator=None): 1 with the probability given."""
    return b.cast(b.call(mx.random.bernoulli, x, list(x.shape)), _dtype(options, x.dtype))


@lowering(aten.bernoulli.p)
def lower_bernoulli_p(b: Builder, x: Value, p: float, **options: Any) -> Any:
    """bernoulli.p(Tensor self, float p, *, Generator? generator=None)."""
    return b.cast(b.call(mx.random.bernoulli, p, list(x.shape)), _dtype(options, x.dtype))


@lowering(aten.dropout.default)
def lower_dropout(b: Builder, x: Value, p: float, train: bool) -> Any:
    """dropout(Tensor input, float p, bool train): the input itself in evaluation mode."""
    return b.call(rt.dropout, x, p) if train and p > 0 else x


@lowering(aten.native_dropout.default)
def lower_native_dropout(b: Builder, x: Value, p: float, train: bool | None) -> Any:
    """native_dropout(Tensor input, float p, bool? train) → (output, mask)."""
    if train is False:
        return x, b.call(mx.ones, list(x.shape), mx.bool_)
    return b.call(rt.dropout_with_mask, x, p)


@lowering(aten.feature_dropout.default)
def lower_feature_dropout(b: Builder, x: Value, p: float, train: bool) -> Any:
    """feature_dropout(Tensor input, float p, bool train): of whole channels."""
    return b.call(rt.feature_dropout, x, p) if train and p > 0 else x


@lowering(aten.alpha_dropout.default)
def lower_alpha_dropout(b: Builder, x: Value, p: float, train: bool) -> Any:
    """alpha_dropout(Tensor input, float p, bool train): keeps mean and variance."""
    return b.call(rt.alpha_dropout, x, p) if train and p > 0 else x


@lowering(aten.feature_alpha_dropout.default)
def lower_feature_alpha_dropout(b: Builder, x: Value, p: float, train: bool) -> Any:
    """feature_alpha_dropout(Tensor input, float p, bool train): of whole channels."""
    return b.call(rt.alpha_dropout, x, p, True) if train and p > 0 else x


@lowering(aten.multinomial.default)
def lower_multinomial(
    b: Builder, x: Value, num_samples: int, replacement: bool = False, **options: Any
) -> Any:
    """multinomial(Tensor self, SymInt num_samples, bool replacement=False, *, generator)."""
    _dtype(options, None)
    drawn = b.call(rt.multinomial, x, num_samples, *((True,) if replacement else ()))
    return b.cast(drawn, mx.int64)


@lowering(aten.exponential.default)
def lower_exponential(b: Builder, x: Value, lambd: float = 1.0, **options: Any) -> Any:
    """exponential(Tensor self, float lambd=1, *, Generator? generator=None)."""
    return b.call(rt.exponential, tuple(x.shape), lambd, _dtype(options, x.dtype))


@lowering(aten.geometric.default)
def lower_geometric(b: Builder, x: Value, p: float, **options: Any) -> Any:
    """geometric(Tensor self, float p, *, Generator? generator=None)."""
    return b.call(rt.geometric, tuple(x.shape), p, _dtype(options, x.dtype))


@lowering(aten.cauchy.default)
def lower_cauchy(
    b: Builder, x: Value, median: float = 0.0, sigma: float = 1.0, **options: Any
) -> Any:
    """cauchy(Tensor self, float median=0, float sigma=1, *, Generator? generator=None)."""
    return b.call(rt.cauchy, tuple(x.shape), median, sigma, _dtype(options, x.dtype))


@lowering(aten.log_normal.default)
def lower_log_normal(
    b: Builder, x: Value, mean: float = 1.0, std: float = 2.0, **options: Any
) -> Any:
    """log_normal(Tensor self, float mean=1, float std=2, *, Generator? generator=None)."""
    drawn = b.call(mx.random.normal, list(x.shape), mx.float32, mean, std)
    return b.cast(b.call(mx.exp, drawn), _dtype(options, x.dtype))


@lowering(aten.poisson.default, aten.binomial.default, aten._standard_gamma.default)
@lowering(aten._sample_dirichlet.default)
def refuse_distribution(b: Builder, *args: Any, **options: Any) -> Any:
    """Refused: MLX draws from none of them, and rejection sampling has no fixed length."""
    raise LoweringError("Poisson, binomial, gamma and Dirichlet numbers: MLX cannot draw them")
