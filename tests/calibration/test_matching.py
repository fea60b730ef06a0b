"""Rows are found wherever a port puts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from torch2mlx.architectures.port import load_port
from torch2mlx.calibration.blocks import Blocks
from torch2mlx.calibration.matching import match_rows
from torch2mlx.planning.expressions import sources_of
from torch2mlx.planning.plan import build_plan
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources import open_checkpoint


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox", "mixtral", "deepseek_v3"])
def test_every_quantized_row_of_a_layer_is_found(checkpoint, name: str) -> None:
    source = open_checkpoint(checkpoint(name, "float32"))
    plan = build_plan(
        source, load_port(source.config), quantize=QuantOptions(scheme=Scheme(4, 32), router="keep")
    )
    blocks = Blocks(source.config, source.state, source.source, torch.device("cpu"))
    layer = blocks.count - 1
    outputs = [
        o
        for o in plan.outputs
        if o.scheme is not None
        and {blocks.names.number(leaf.name) for leaf in sources_of(o.expr)} == {layer}
    ]
    assert outputs
    block = blocks.block(layer)
    found = match_rows(block.layer, outputs, source.source)
    absorbed = {o for o in found.missing if "embed_q" in o or "unembed_out" in o}
    assert set(found.missing) == absorbed  # deepseek's port multiplies these transposed
    parameters = dict(block.layer.named_parameters())
    for name, (owners, rows) in found.places.items():
        values = parameters[name].detach().reshape(-1, parameters[name].shape[-1]).numpy()
        for number in np.unique(owners[owners >= 0]):
            expr = found.outputs[number].expr
            written = expr.read(tuple(range(n) for n in expr.shape), source.source)
            written = written.reshape(-1, written.shape[-1])
            here = owners == number
            np.testing.assert_array_equal(values[here], written[rows[here]])


def test_rows_of_zeros_belong_to_matrices_of_their_width(copied) -> None:
    """As in blocks that were added to a model and begin with an output of zeros."""
    folder = copied("llama_short", "float32")
    path = folder / "model.safetensors"
    zeroed = ("o_proj.weight", "down_proj.weight")
    tensors = {n: v * 0 if n.endswith(zeroed) else v for n, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    source = open_checkpoint(folder)
    options = QuantOptions(scheme=Scheme(4, 64))
    plan = build_plan(source, load_port(source.config), quantize=options)
    outputs = [o for o in plan.outputs if o.scheme is not None and ".layers.0." in o.name]
    blocks = Blocks(source.config, source.state, source.source, torch.device("cpu"))
    block = blocks.block(0)
    found = match_rows(block.layer, outputs, source.source)
    source.source.close()
    assert found.missing == ()
    for name, (owners, _) in found.places.items():
        width = block.layer.get_parameter(name).shape[-1]
        assert {found.outputs[number].expr.shape[-1] for number in np.unique(owners)} == {width}
