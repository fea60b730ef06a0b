"""Adapters against PEFT's merge_and_unload and mlx-lm's fuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from adapters import mlx_adapter, model_of, trained
from safetensors.torch import load_file, save_file

import torch2mlx
from torch2mlx.errors import PlanError, SourceError, UnsupportedError
from torch2mlx.planning.regions import full
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.adapters import with_adapter
from torch2mlx.verification.reference import read_state

VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "whole head": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_values_are_those_that_peft_merges(checkpoint, tmp_path, variant):
    folder = checkpoint("llama", "float32")
    merged = trained(model_of(folder), tmp_path / "adapter", **VARIANTS[variant])
    opened = with_adapter(open_checkpoint(folder), tmp_path / "adapter")
    found = read_state(opened.state, opened.source)
    base = load_file(folder / "model.safetensors")
    assert found.keys() <= merged.keys()
    changed = [n for n in found if not torch.equal(found[n], base[n])]
    assert len(changed) in (4, 6, 7)
    for name, value in found.items():
        torch.testing.assert_close(value, merged[name].float(), rtol=2e-6, atol=2e-7, msg=name)


def test_a_region_has_the_bits_of_the_whole(checkpoint, tmp_path):
    folder = checkpoint("llama", "float32")
    trained(model_of(folder), tmp_path / "adapter", use_dora=True)
    opened = with_adapter(open_checkpoint(folder), tmp_path / "adapter")
    expr = opened.state["model.layers.0.mlp.down_proj.weight"]
    whole = expr.read(full(expr.shape), opened.source)
    for part in ((range(3, 80), range(256)), (range(60, 128, 7), range(5, 200, 3))):
        box = tuple(slice(r.start, r.stop, r.step) for r in part)
        assert np.array_equal(expr.read(part, opened.source), whole[box])


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_values_are_those_that_mlx_lm_fuses(checkpoint, tmp_path, kind):
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear

    tensors = mlx_adapter(tmp_path / "adapter", kind)
    opened = with_adapter(open_checkpoint(checkpoint("llama", "float32")), tmp_path / "adapter")
    base = load_file(checkpoint("llama", "float32") / "model.safetensors")
    for path in {n.rpartition(".")[0] for n in tensors}:
        linear = nn.Linear(1, 1, bias=False)
        linear.weight = mx.array(base[f"{path}.weight"].numpy())
        layer = (LoRALinear if kind == "lora" else DoRALinear).from_base(linear, r=4, scale=10.0)
        layer.lora_a, layer.lora_b = (
            mx.array(tensors[f"{path}.{x}"].numpy()) for x in ("lora_a", "lora_b")
        )
        if kind == "dora":
            layer.m = mx.array(tensors[f"{path}.m"].numpy())
        expr = opened.state[f"{path}.weight"]
        found = expr.read(full(expr.shape), opened.source)
        np.testing.assert_allclose(found, np.array(layer.fuse().weight), rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_an_adapters_folder_converts_with_its_base(checkpoint, tmp_path, run_cli):
    folder = checkpoint("llama", "bfloat16")
    model = model_of(folder)
    trained(model, tmp_path / "adapter")
    config_path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["base_model_name_or_path"] = str(folder)
    config_path.write_text(json.dumps(config))
    result = torch2mlx.convert(tmp_path / "adapter", tmp_path / "out", quantize=True)
    audit = result.manifest.verification["audit"]
    assert audit["passed"]
    assert "merged adapter" in str(result.manifest.to_dict())
    run = run_cli("verify", folder, tmp_path / "out", "--adapter", tmp_path / "adapter", "--quiet")
    assert run.code == 0
    assert run_cli("verify", folder, tmp_path / "out", "--quiet").code == 8


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_does_not_fit_is_named(checkpoint, tmp_path):
    base = open_checkpoint(checkpoint("llama", "float32"))
    adapter = tmp_path / "adapter"
    trained(model_of(checkpoint("llama", "float32")), adapter)
    with pytest.raises(
        PlanError,
        match=r"down_proj\.weight: the adapter is for \[128, 256\], the base has \[128, 272\]",
    ):
        with_adapter(open_checkpoint(checkpoint("llama_wide", "float32")), adapter)
    with pytest.raises(
        PlanError, match=r"q_proj\.weight: the adapter changes it, but the base has no such"
    ):
        with_adapter(open_checkpoint(checkpoint("gpt_neox", "float32")), adapter)
    edit(adapter, r=8)
    with pytest.raises(PlanError, match=r"rank 8 in adapter_config\.json, 4 and 4"):
        with_adapter(base, adapter)
    edit(adapter, r=4, use_dora=True)
    with pytest.raises(PlanError, match="use_dora is True, but the adapter has none"):
        with_adapter(base, adapter)
    edit(adapter, use_dora=False, peft_type="IA3")
    with pytest.raises(UnsupportedError, match="peft_type 'IA3'"):
        with_adapter(base, adapter)
    edit(adapter, peft_type="LORA", base_model_name_or_path=str(adapter))
    with pytest.raises(SourceError, match="leads back to this adapter"):
        open_checkpoint(adapter)
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(SourceError, match="does not say which model"):
        open_checkpoint(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(SourceError, match="but no weights"):
        with_adapter(base, adapter)


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
def test_trainings_that_change_the_base_are_refused(checkpoint, tmp_path, start):
    """PEFT changes the base anew when it loads such an adapter; others give its very weights."""
    peft = pytest.importorskip("peft")
    folder = checkpoint("llama", "float32")
    trained(model_of(folder), tmp_path / "adapter", init_lora_weights=start)
    loaded = peft.PeftModel.from_pretrained(model_of(folder), tmp_path / "adapter")
    expected = loaded.merge_and_unload().state_dict()["model.layers.0.self_attn.q_proj.weight"]
    if start != "orthogonal":
        with pytest.raises(UnsupportedError, match=f"init_lora_weights '{start}'.*merge with PEFT"):
            with_adapter(open_checkpoint(folder), tmp_path / "adapter")
        edit(tmp_path / "adapter", init_lora_weights=True)
    opened = with_adapter(open_checkpoint(folder), tmp_path / "adapter")
    expr = opened.state["model.layers.0.self_attn.q_proj.weight"]
    found = torch.from_numpy(expr.read(full(expr.shape), opened.source))
    gap = float((found - expected).norm() / expected.norm())
    assert gap < 1e-6 if start == "orthogonal" else gap > 0.1


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8])
def test_what_is_no_real_number_is_refused(checkpoint, tmp_path, kind):
    folder = checkpoint("llama", "float32")
    trained(model_of(folder), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value.to(kind) for name, value in load_file(path).items()}, path)
    with pytest.raises(PlanError, match=r"lora_A\.weight: (C64|I8), expected real"):
        with_adapter(open_checkpoint(folder), tmp_path / "adapter")


def test_ranks_of_mlx_adapters_are_compared(checkpoint, tmp_path):
    mlx_adapter(tmp_path / "adapter", rank=16)
    with pytest.raises(PlanError, match=r"rank 16 in adapter_config\.json, 4 and 4"):
        with_adapter(open_checkpoint(checkpoint("llama", "float32")), tmp_path / "adapter")


def test_mlx_lm_matrices_of_other_shapes(checkpoint, tmp_path):
    folder, adapter = checkpoint("llama", "float32"), tmp_path / "adapter"
    adapter.mkdir()
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    at = "model.layers.0.self_attn.q_proj"
    for shapes in (((128, 4), (4,)), ((128,), (128,)), ((2, 4, 128), (4, 128))):
        tensors = {f"{at}.lora_{x}": torch.ones(s) for x, s in zip("ab", shapes, strict=True)}
        save_file(tensors, adapter / "adapters.safetensors")
        with pytest.raises(PlanError, match="expected two matrices"):
            with_adapter(open_checkpoint(folder), adapter)


def test_patterns_of_another_kind(checkpoint, tmp_path):
    folder = checkpoint("llama", "float32")
    trained(model_of(folder), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rank_pattern": "q_proj"}))
    with pytest.raises(SourceError, match=r"adapter_config\.json: holds a value of a kind"):
        with_adapter(open_checkpoint(folder), tmp_path / "adapter")
