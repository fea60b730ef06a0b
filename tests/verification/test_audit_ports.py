"""The way back through real ports: fused, split, stacked and transposed weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torch2mlx.architectures.port import load_port
from torch2mlx.conversion.executor import execute
from torch2mlx.dtypes import to_torch
from torch2mlx.planning.inverse import restore_state
from torch2mlx.planning.plan import build_plan
from torch2mlx.quantization.kernel import dequantize_rows
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources.checkpoint import open_checkpoint
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.verification.audit import audit

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
    "deepseek_v3": {
        "moe_intermediate_size": 32, "num_key_value_heads": 4, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "kv_lora_rank": 32,
        "q_lora_rank": 32, "qk_rope_head_dim": 16, "v_head_dim": 16, "qk_nope_head_dim": 16,
        "first_k_dense_replace": 1,
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", MODELS)
def test_converted_models_pass_and_their_state_comes_back(tmp_path, model_type):
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(SIZES | MODELS[model_type]))
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    checkpoint = open_checkpoint(str(tmp_path / "source"))
    port = load_port(checkpoint.config)
    for quantize in (None, QuantOptions(Scheme(4, 32))):
        plan = build_plan(checkpoint, port, quantize=quantize)
        folder = tmp_path / ("quantized" if quantize else "plain")
        folder.mkdir()
        files = execute(plan, checkpoint.source, folder)
        report = audit(plan.outputs, files, checkpoint.source)
        assert report.passed, report.first_failure
        assert report.recomputed == 0
        assert ("quantized" in report.counts) == bool(quantize)

        written = SafetensorsSource(files)
        outputs = {output.name: output for output in plan.outputs}

        def read(name, start, stop, written=written, outputs=outputs):
            output = outputs[name]
            parts = {
                s.name.rpartition(".")[2]: written.read(s.name, start, stop) for s in output.specs
            }
            if output.scheme is not None:
                return dequantize_rows(parts, output.expr.dtype, output.scheme)
            (bits,) = parts.values()
            return to_torch(bits, output.expr.dtype).float().numpy()

        expressions = {name: output.expr for name, output in outputs.items()}
        restored = list(restore_state(expressions, read, checkpoint.state))
        assert [r.name for r in restored] == list(checkpoint.state)
        for tensor in restored:
            stored = checkpoint.source.read(tensor.name)
            exact = to_torch(stored, checkpoint.state[tensor.name].dtype).float().numpy()
            assert tensor.covered is None, (tensor.name, tensor.reason)
            if quantize is None:
                assert np.array_equal(tensor.values, exact), tensor.name
            else:
                assert np.abs(tensor.values - exact).max() < 0.25 * max(np.abs(exact).max(), 1e-9)
