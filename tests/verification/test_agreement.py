from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from torch2mlx.architectures.port import load_port
from torch2mlx.conversion.executor import execute
from torch2mlx.errors import PlanError
from torch2mlx.planning.plan import Plan, build_plan
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.agreement import examine_written, written_state
from torch2mlx.verification.report import explain

Written = tuple[Any, Plan, Path, list[Path]]


@pytest.fixture
def write(
    save: Callable[..., Any], llama_config: Callable[..., Any], tmp_path: Path
) -> Callable[[QuantOptions | None], Written]:
    def convert(quantize: QuantOptions | None, **changes: Any) -> Written:
        saved = save(llama_config(num_hidden_layers=2, **changes))
        checkpoint = Checkpoint(
            location=str(saved.folder),
            folder=saved.folder,
            kind="safetensors",
            config=saved.config,
            source=saved.source,
            state=saved.state,
        )
        port = load_port(saved.config)
        plan = build_plan(checkpoint, port, dtype="float32", quantize=quantize)
        folder = tmp_path / "mlx"
        folder.mkdir()
        files = execute(plan, saved.source, folder)
        config = {**plan.config}
        if plan.quantization:
            config["quantization"] = dict(plan.quantization)
        (folder / "config.json").write_text(json.dumps(config))
        return saved, plan, folder, files

    return convert


@pytest.mark.parametrize(
    "scheme",
    [None, Scheme(4, 32), Scheme(8, 64), Scheme(3, 64), Scheme.resolve(None, None, "mxfp4")],
    ids=str,
)
@pytest.mark.parametrize("tied", [False, True])
def test_written_folders_compute_what_pytorch_does_with_their_values(
    write: Callable[..., Written], scheme: Scheme | None, tied: bool
) -> None:
    options = QuantOptions(scheme=scheme) if scheme else None
    saved, plan, folder, files = write(options, tie_word_embeddings=tied)
    state = written_state(plan.outputs, files, saved.state, saved.source)
    found = examine_written(folder, saved.config, state).comparison
    assert found.passed, explain(found)
    assert found.part == "written folder"
    name = "model.layers.0.mlp.up_proj.weight"
    original = dict(saved.model.named_parameters())[name]
    error = (state[name] - original).norm() / original.norm()
    assert error == 0 if scheme is None else error > 1e-3


def test_a_changed_scale_is_found(write: Callable[..., Written]) -> None:
    saved, plan, folder, files = write(QuantOptions(scheme=Scheme(4, 64)))
    state = written_state(plan.outputs, files, saved.state, saved.source)
    tensors = load_file(files[0])
    tensors["model.layers.1.mlp.down_proj.scales"] *= np.float32(1.5)
    save_file(tensors, files[0], metadata={"format": "mlx"})
    found = examine_written(folder, saved.config, state).comparison
    assert not found.passed
    assert found.first_divergence is not None
    assert found.first_divergence.place == "layer 1"


def test_elements_that_no_output_holds_come_from_the_source(write: Callable[..., Written]) -> None:
    saved, plan, _, files = write(None)
    outputs = [o for o in plan.outputs if o.name != "model.norm.weight"]
    state = written_state(outputs, files, saved.state, saved.source)
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(state[name], saved.model.state_dict()[name])


def test_a_head_that_no_output_holds_is_tied_to_the_embedding(
    write: Callable[..., Written],
) -> None:
    saved, plan, _, files = write(None)
    outputs = [o for o in plan.outputs if o.name != "lm_head.weight"]
    assert "lm_head.weight" not in written_state(outputs, files, saved.state, saved.source)


def test_a_tensor_that_the_port_leaves_out_shows(write: Callable[..., Written]) -> None:
    saved, plan, folder, files = write(None)
    outputs = [o for o in plan.outputs if o.name != "model.layers.1.input_layernorm.weight"]
    state = written_state(outputs, files, saved.state, saved.source)
    assert examine_written(folder, saved.config, state).comparison.passed
    tensors = load_file(files[0])
    tensors["model.layers.1.input_layernorm.weight"][:] = 1.0
    save_file(tensors, files[0], metadata={"format": "mlx"})
    found = examine_written(folder, saved.config, state).comparison
    assert found.first_divergence is not None
    assert found.first_divergence.place == "layer 1"


def test_a_folder_that_mlx_lm_cannot_load_is_an_error(write: Callable[..., Written]) -> None:
    saved, plan, folder, files = write(None)
    state = written_state(plan.outputs, files, saved.state, saved.source)
    files[0].unlink()
    with pytest.raises(PlanError, match="mlx-lm cannot load it"):
        examine_written(folder, saved.config, state)
