"""Expert layouts against what transformers saves of the same model in its usual one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import torch2mlx
from torch2mlx.errors import OptionError, SourceError
from torch2mlx.sources import open_checkpoint
from torch2mlx.sources.experts import usual_experts
from torch2mlx.verification.reference import read_state


def module_names(folder, destination):
    """The checkpoint saved under the names of transformers' modules, experts fused."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(destination, save_original_format=False)
    return load_file(destination / "model.safetensors")


def laid_out(tensors, folder, layout):
    changed = {}
    for name, tensor in tensors.items():
        if name.endswith("gate_up_proj") and layout.startswith("interleaved"):
            halves = tensor.chunk(2, 1)
            tensor = torch.stack(halves, 2).flatten(1, 2)
        if name.endswith(("gate_up_proj", "experts.down_proj")) and layout.endswith("transposed"):
            tensor = tensor.transpose(1, 2)
        changed[name] = tensor.contiguous()
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_fused_experts_become_those_of_the_family(checkpoint, tmp_path, family):
    usual = load_file(checkpoint(family, "bfloat16") / "model.safetensors")
    fused = module_names(checkpoint(family, "bfloat16"), tmp_path / "fused")
    assert any(n.endswith("experts.gate_up_proj") for n in fused)
    layouts = ["concatenated", "concatenated-transposed", "interleaved", "interleaved-transposed"]
    for layout in layouts:
        laid_out(fused, tmp_path / "fused", layout)
        opened = open_checkpoint(tmp_path / "fused")
        # Shapes tell which way it lies, and never whether gate and up take turns.
        told = layout if layout.startswith("interleaved") else None
        state = usual_experts(opened.state, opened.config, told)
        assert state.keys() == usual.keys()
        found = read_state(state, opened.source)
        assert all(torch.equal(found[n], t.float()) for n, t in usual.items()), layout


def test_gpt_oss_of_other_layouts(tmp_path):
    from torch2mlx.dtypes import DTYPES
    from torch2mlx.planning.expressions import Source
    from torch2mlx.sources.in_memory import MemorySource

    gate, up = torch.randn(4, 48, 64), torch.randn(4, 48, 64)
    bias = torch.randn(4, 96)
    down = torch.randn(4, 64, 48)
    native = torch.stack([gate, up], 2).flatten(1, 2).transpose(1, 2).contiguous()
    tensors = {
        "m.experts.gate_up_proj": torch.cat([gate, up], 1),
        "m.experts.gate_up_proj_bias": bias,
        "m.experts.down_proj": down,
    }
    source = MemorySource(tensors)
    state = {n: Source(n, DTYPES["F32"], tuple(t.shape)) for n, t in tensors.items()}
    config = {"model_type": "gpt_oss", "hidden_size": 64, "num_local_experts": 4}
    found = read_state(usual_experts(state, config, "concatenated"), source)
    assert torch.equal(found["m.experts.gate_up_proj"], native)
    assert torch.equal(found["m.experts.down_proj"], down.transpose(1, 2))
    turns = torch.stack(bias.chunk(2, 1), 2).flatten(1)
    assert torch.equal(found["m.experts.gate_up_proj_bias"], turns)


@pytest.mark.slow
def test_a_fused_mixtral_passes_the_gate(checkpoint, tmp_path):
    fused = module_names(checkpoint("mixtral", "bfloat16"), tmp_path / "fused")
    laid_out(fused, tmp_path / "fused", "interleaved")
    options = {"expert_layout": "interleaved"}
    result = torch2mlx.convert(tmp_path / "fused", tmp_path / "out", quantize=True, **options)
    assert result.manifest.verification["audit"]["passed"]
    assert torch2mlx.verify(tmp_path / "fused", tmp_path / "out", **options).passed
    usual = torch2mlx.convert(checkpoint("mixtral", "bfloat16"), tmp_path / "usual", quantize=True)
    names = [p.destination / "model.safetensors" for p in (result, usual)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_what_does_not_fit_is_named(checkpoint, tmp_path):
    plain = open_checkpoint(checkpoint("llama", "bfloat16"))
    with pytest.raises(OptionError, match=r"has no experts\.gate_up_proj"):
        usual_experts(plain.state, plain.config, "interleaved")
    module_names(checkpoint("mixtral", "bfloat16"), tmp_path / "fused")
    opened = open_checkpoint(tmp_path / "fused")
    with pytest.raises(SourceError, match=r"not 8 experts of width 128; experts are missing"):
        usual_experts(opened.state, {**opened.config, "num_local_experts": 8})
    with pytest.raises(SourceError, match=r"are not 4 experts of width 128"):
        usual_experts(opened.state, opened.config, "concatenated-transposed")
