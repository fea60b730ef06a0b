"""Bits where they count: the knapsack against all choices, the sensitivities against the loss."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from torch2mlx.architectures.port import load_port
from torch2mlx.calibration.allocation import Choice, allocate, sensitivities
from torch2mlx.calibration.blocks import Blocks
from torch2mlx.calibration.engine import find_head
from torch2mlx.errors import OptionError
from torch2mlx.packaging.index import measure_weights
from torch2mlx.planning.plan import build_plan
from torch2mlx.quantization.kernel import dequantize_rows, quantize_rows
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources import open_checkpoint


def choices(seed: int) -> dict[str, list[Choice]]:
    """Five modules of several sizes and sensitivities."""
    random = np.random.default_rng(seed)
    return {
        f"m{i}": [
            Choice(bits, int(bits * size), float(worth * 4.0**-bits)) for bits in (2, 3, 4, 6)
        ]
        for i, (size, worth) in enumerate(
            zip(random.integers(50, 150, 5), random.lognormal(0, 2, 5), strict=True)
        )
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_is_nearly_the_best_of_all(seed: int) -> None:
    modules = choices(seed)
    budget = 1800
    found = allocate(modules, budget)
    everything = [sum(c.nbytes for c in combo) <= budget and sum(c.divergence for c in combo)
                  for combo in product(*modules.values())]  # fmt: skip
    best = min(value for value in everything if value is not False)
    assert found.nbytes <= budget
    assert found.divergence <= 1.35 * best


def test_a_budget_below_the_fewest_bits_is_refused() -> None:
    with pytest.raises(OptionError, match="fewest bits"):
        allocate(choices(0), 10)


def test_a_module_that_gradients_do_not_reach_loses_as_its_rounding_errors_grow(checkpoint) -> None:
    source = open_checkpoint(checkpoint("llama_short", "float32"))
    options = QuantOptions(scheme=Scheme(4, 64))
    plan = build_plan(source, load_port(source.config), quantize=options)
    outputs = [o for o in plan.outputs if o.scheme is not None]
    blocks = Blocks(source.config, source.state, source.source, torch.device("cpu"))
    ids = np.random.default_rng(0).integers(3, 280, (2, 16))
    found = sensitivities(blocks, outputs, find_head(plan.outputs), ids)
    table = source.source.read("model.embed_tokens.weight")
    dtype = plan.outputs[0].expr.dtype
    curvatures = []
    for choice in found["model.embed_tokens"]:
        scheme = Scheme(choice.bits, 64)
        rounded = dequantize_rows(quantize_rows(table, dtype, scheme), dtype, scheme)
        curvatures.append(choice.divergence / float(np.square(rounded - table).sum()))
    source.source.close()
    assert curvatures == pytest.approx([curvatures[0]] * 6, rel=1e-4)


def test_predicted_divergence_is_that_of_the_rounded_module(checkpoint) -> None:
    """Against the KL divergence measured with one module rounded, summed over the layer."""
    source = open_checkpoint(checkpoint("llama_tied", "float32"))
    options = QuantOptions(scheme=Scheme(4, 64))
    plan = build_plan(source, load_port(source.config), quantize=options)
    outputs = [o for o in plan.outputs if o.scheme is not None]
    blocks = Blocks(source.config, source.state, source.source, torch.device("cpu"))
    ids = np.random.default_rng(0).integers(3, 280, (12, 48))
    found = sensitivities(blocks, outputs, find_head(plan.outputs), ids)

    from torch2mlx.verification.reference import build_reference, read_state

    state = read_state(source.state, source.source)
    model = build_reference(source.config, state)
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        expected = model(tokens).logits.log_softmax(-1)
    predicted, measured = 0.0, 0.0
    for output in outputs:
        if ".layers.1." not in output.name:
            continue
        weight = model.get_parameter(output.name)
        before = weight.data.clone()
        scheme = Scheme(6, 64)
        parts = quantize_rows(before.numpy(), output.expr.dtype, scheme)
        weight.data.copy_(torch.from_numpy(dequantize_rows(parts, output.expr.dtype, scheme)))
        with torch.no_grad():
            got = model(tokens).logits.log_softmax(-1)
        measured += float((expected.exp() * (expected - got)).sum(-1).mean())
        weight.data.copy_(before)
        predicted += next(c.divergence for c in found[output.module] if c.bits == 6)
    assert predicted == pytest.approx(measured, rel=0.5)


def test_the_written_folder_has_the_size_that_was_asked_for(
    checkpoint, run_cli, tmp_path: Path
) -> None:
    run = run_cli(
        "convert", checkpoint("llama"), tmp_path / "out", "-q", "--target-bpw", "5", "--no-verify",
        "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.message
    size = measure_weights(tmp_path / "out").bits_per_weight
    assert 4.7 < size <= 5.0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    widths = {v["bits"] for v in config["quantization"].values() if isinstance(v, dict)}
    assert widths


def test_bits_and_a_target_exclude_each_other(run_cli, checkpoint, tmp_path) -> None:
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", "--target-bpw", "4",
                  "--q-bits", "4")  # fmt: skip
    assert run.code == 2
    assert "--target-bpw" in run.message
