"""The solver against brute force and against rounding to nearest."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from torch2mlx.calibration import solver
from torch2mlx.calibration.grid import Grid
from torch2mlx.calibration.solver import Moments, Solver
from torch2mlx.dtypes import DTYPES
from torch2mlx.quantization.kernel import dequantize_rows, quantize_rows
from torch2mlx.quantization.scheme import Scheme

SCHEMES = [
    Scheme(2, 32),
    Scheme(3, 64),
    Scheme(4, 64),
    Scheme(8, 128),
    Scheme(4, 32, "mxfp4"),
    Scheme(4, 16, "nvfp4"),
    Scheme(8, 32, "mxfp8"),
]


def inputs(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated activations, a few channels much larger than others, as in real models."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    return torch.randn(tokens, width, generator=generator) @ mixing


def moments(x: torch.Tensor, original: torch.Tensor | None = None) -> Moments:
    width = x.shape[1]
    cross = None if original is None else torch.zeros(width, width)
    result = Moments(torch.zeros(width, width), cross)
    result.add(x, original)
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_are_nearer_than_with_rounding_to_nearest(scheme: Scheme) -> None:
    x = inputs(600, 128)
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(1))
    found = Solver(moments(x)).quantize(weight, Grid(scheme, DTYPES["F32"]))
    parts = quantize_rows(weight.numpy(), DTYPES["F32"], scheme)
    nearest = torch.from_numpy(dequantize_rows(parts, DTYPES["F32"], scheme))

    def error(values: torch.Tensor) -> float:
        return float((x @ (values - weight).T).square().sum())

    assert error(found.values) < 0.8 * error(nearest)


def test_what_earlier_layers_lost_is_made_good() -> None:
    original = inputs(800, 64)
    damaged = original + 0.3 * inputs(800, 64, seed=5)
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    grid = Grid(Scheme(8, 64), DTYPES["F32"])

    def error(found: torch.Tensor) -> float:
        return float((damaged @ found.T - original @ weight.T).square().sum())

    plain = Solver(moments(damaged)).quantize(weight, grid).values
    corrected = Solver(moments(damaged, original), damping=1e-4).quantize(weight, grid).values
    best = torch.linalg.lstsq(damaged, original @ weight.T).solution.T
    assert error(corrected) < 0.9 * error(plain)
    assert error(corrected) < 1.05 * error(best)


def test_codes_are_nearly_the_best_of_all() -> None:
    """Two columns of four-level codes in each of few rows: every choice can be tried."""
    width, size = 32, 32
    x = torch.zeros(64, width)
    x[:, :4] = inputs(64, 4)
    weight = torch.zeros(3, width)
    weight[:, :4] = torch.tensor([[0.9, -0.4, 0.3, 1.0], [0.2, 0.1, -1.0, 0.7], [1.0, 0.5, 0, -1]])
    found = Solver(moments(x), damping=1e-6).quantize(weight, Grid(Scheme(2, size), DTYPES["F32"]))
    hessian = x.T @ x
    for row in range(3):
        scale, bias = found.scales[row, 0], found.biases[row, 0]
        levels = scale * torch.arange(4) + bias
        gaps = torch.tensor(list(product(levels.tolist(), repeat=4))) - weight[row, :4]
        errors = (gaps @ hessian[:4, :4] * gaps).sum(1)
        mine = found.values[row, :4] - weight[row, :4]
        assert float(mine @ hessian[:4, :4] @ mine) <= 2.0 * float(errors.min()) + 1e-6


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_values_are_those_of_the_written_format(scheme: Scheme, dtype: str) -> None:
    from torch2mlx.calibration.fitting import packed_codes

    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    grid = Grid(scheme, DTYPES[dtype])
    found = Solver(moments(inputs(300, 128))).quantize(weight, grid)
    parts = {"weight": packed_codes(found.codes, scheme.bits).numpy()}
    if scheme.affine:
        bits = np.uint16
        target = getattr(torch, DTYPES[dtype].torch_name)
        for name, values in (("scales", found.scales), ("biases", found.biases)):
            stored = values.to(target)
            assert torch.equal(stored.float(), values)  # nothing is rounded after solving
            raw = stored.view(torch.int16).numpy().view(bits)
            parts[name] = raw if dtype == "BF16" else raw.view(np.float16)
    else:
        parts["scales"] = grid.scale_bytes(found.scales).numpy()
    written = dequantize_rows(parts, DTYPES[dtype], scheme)
    np.testing.assert_array_equal(written, found.values.numpy())


def test_a_matrix_is_factored_in_blocks(monkeypatch) -> None:
    monkeypatch.setattr(solver, "_BLOCK", 8)
    x = inputs(300, 50).double()
    hessian = x.T @ x + torch.eye(50)
    upper = hessian.clone()
    solver._factor(upper)
    torch.testing.assert_close(upper @ upper.T, hessian)
    solver._invert(upper)
    torch.testing.assert_close(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(hessian))


def test_rows_in_parts_give_what_all_together_give(monkeypatch) -> None:
    weight = torch.randn(12, 128, generator=torch.Generator().manual_seed(1))
    grid = Grid(Scheme(4, 64), DTYPES["F16"])
    whole = Solver(moments(inputs(300, 128))).quantize(weight, grid)
    monkeypatch.setattr(solver, "_LEAST_ROWS", 5)
    monkeypatch.setattr(solver, "_ROWS_BYTES", 1)
    parts = Solver(moments(inputs(300, 128))).quantize(weight, grid)
    assert float((whole.codes == parts.codes).float().mean()) > 0.99  # sums in another order
    assert parts.error == pytest.approx(whole.error, rel=0.05)
    assert parts.scales.shape == whole.scales.shape
