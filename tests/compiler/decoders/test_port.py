"""Generated models against PyTorch, through the gate's own twin, and against mlx-lm's ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from torch2mlx.architectures.port import MODEL_FILE, load_port
from torch2mlx.compiler.decoders import source
from torch2mlx.compiler.decoders.skeleton import build_skeleton
from torch2mlx.compiler.decoders.source import generate_decoder
from torch2mlx.compiler.decoders.tracing import trace
from torch2mlx.loading import load_language_model
from torch2mlx.verification.reference import decoder_layers
from torch2mlx.verification.twin import run_twin

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}
HEADS = {**LLAMA, "head_dim": 16}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200, "n_positions": 128}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

MAMBA2 = {
    "num_hidden_layers": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}

LINEAR = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.1, 3.2, 4.3, 5.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 32,
}

WITHOUT_PORT: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 200,
        "max_position_embeddings": 128,
    },
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "vocab_size": 200,
        "window_size": 16,
        "max_position_embeddings": 128,
    },
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200},
    "falcon": {**LLAMA},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 200, "max_seq_len": 128},
    "codegen": {**GPT, "rotary_dim": 8},
    "gptj": {**GPT, "rotary_dim": 8},
    "xglm": {
        "d_model": 64,
        "ffn_dim": 96,
        "num_layers": 2,
        "attention_heads": 4,
        "vocab_size": 200,
        "max_position_embeddings": 128,
    },
    "biogpt": {**LLAMA, "max_position_embeddings": 128},
    "jetmoe": {**LLAMA, "kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "zamba2": {
        **LLAMA,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "attention_head_dim": 32,
        "mamba_d_state": 16,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "chunk_size": 16,
        "adapter_rank": 8,
        "use_mem_rope": True,
    },
    "lfm3": {
        **HEADS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "layer_types": ["conv", "full_attention"],
        "sliding_window": 16,
    },
}
WITHOUT_PORT["minimax"] = {
    **HEADS,
    "num_hidden_layers": 3,
    "num_local_experts": 4,
    "block_size": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_attn_alpha_factor": 1.3,
    "full_attn_beta_factor": 0.7,
}
WITH_PORT: dict[str, dict[str, Any]] = {
    "mistral": {**LLAMA, "sliding_window": 16},
    "qwen2": {**LLAMA, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen3": HEADS,
    "gemma2": {**HEADS, "sliding_window": 16},
    "gemma3_text": {**HEADS, "sliding_window": 16, "num_hidden_layers": 7},
    "phi3": {**LLAMA, "pad_token_id": 0},
    "phi3_longrope": {
        **LLAMA,
        "pad_token_id": 0,
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
        "rope_parameters": LONG,
    },
    "phimoe_longrope": {
        **LLAMA,
        "num_local_experts": 4,
        "max_position_embeddings": 128,
        "rope_parameters": {**LONG, "short_mscale": 1.2, "long_mscale": 1.4},
    },
    "qwen3_next": {
        **HEADS,
        **EXPERTS,
        **LINEAR,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
    },
    "olmo_hybrid": {**LLAMA, **LINEAR, "linear_num_key_heads": 4, "pad_token_id": 0},
    "kimi_linear": {
        **LLAMA,
        **EXPERTS,
        **LINEAR,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_local_experts": 4,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "gpt_bigcode": GPT,
    "gpt_neox": LLAMA,
    "gpt_oss": {**HEADS, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**HEADS, **EXPERTS, "num_experts": 4},
    "llama4_text": {
        **HEADS,
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 16,
    },
    "mamba2": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 2,
        "vocab_size": 200,
        "expand": 2,
        "chunk_size": 16,
    },
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 200},
    "bamba": {**LLAMA, **MAMBA2, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {
        **LLAMA,
        **MAMBA2,
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "falcon_h1": {
        **HEADS,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
    "falcon_mamba": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "state_size": 8,
        "vocab_size": 200,
    },
    "jamba": {
        **LLAMA,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "deepseek_v3": {
        **LLAMA,
        "num_key_value_heads": 4,
        **EXPERTS,
        "n_routed_experts": 8,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
    },
}


def config_of(model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """As saved, with the wish for a generated model."""
    model_type = model_type.removesuffix("_longrope")
    config = CONFIG_MAPPING[model_type](**values).to_dict()
    return {**config, "model_type": model_type, "model_file": MODEL_FILE}


def twin_agrees(model_type: str, values: dict[str, Any]) -> None:
    found = run_twin(config_of(model_type, values))
    assert found.passed, found


def test_a_window_is_kept_in_one_piece_and_token_by_token() -> None:
    twin_agrees("mistral", WITH_PORT["mistral"])


def test_a_model_that_attends_by_itself() -> None:
    twin_agrees("bloom", WITHOUT_PORT["bloom"])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*WITHOUT_PORT, *WITH_PORT])
def test_generated_model_equals_pytorch(model_type: str) -> None:
    twin_agrees(model_type, {**WITHOUT_PORT, **WITH_PORT}[model_type])


def test_llama_equals_the_hand_written_port_and_reads_like_it() -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    config = config_of("llama", LLAMA)
    generated: Any = load_port(config)
    by_hand = load_port({k: v for k, v in config.items() if k != "model_file"})
    theirs, ours = by_hand.build(), generated.build()
    own: Any = tree_flatten(ours.parameters())
    given = dict(tree_flatten(theirs.parameters()))  # type: ignore[arg-type]
    frequencies = generated._decoder.constants["model.rotary_emb.inv_freq"]
    given["model.rotary_emb.inv_freq"] = mx.array(frequencies.numpy())
    assert {n for n, _ in own} <= set(given)
    ours.load_weights([(n, given[n]) for n, _ in own], strict=True)
    ids = mx.array(np.random.default_rng(0).integers(0, 200, (2, 11)))
    expected, found = theirs(ids), ours(ids)
    assert np.allclose(np.array(found), np.array(expected), atol=1e-5)
    source = generated.model_file
    assert source.count("class LlamaDecoderLayer") == 1
    assert "cache.update_and_fetch(" in source
    assert "nn.RMSNorm(64" in source
    assert "mx.fast.rope(" in source
    assert "torch" not in source.replace("torch2mlx", "").replace("PyTorch", "")


@pytest.mark.parametrize(
    ("model_type", "depth", "traced"),
    [
        ("opt", {"num_hidden_layers": 3}, 2),
        pytest.param("gemma2", {"num_hidden_layers": 6}, 4, marks=pytest.mark.slow),
        pytest.param("jamba", {"num_hidden_layers": 10}, 4, marks=pytest.mark.slow),
        pytest.param("deepseek_v3", {"num_hidden_layers": 5}, 3, marks=pytest.mark.slow),
    ],
)
def test_copies_of_layers_are_what_tracing_them_gives(
    model_type: str, depth: dict[str, int], traced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**WITHOUT_PORT, **WITH_PORT}[model_type]
    config = config_of(model_type, {**values, **depth})
    followed: list[int] = []

    def recorded(model: Any) -> Any:
        followed.append(len(decoder_layers(model)[1]))
        return trace(model)

    monkeypatch.setattr(source, "trace", recorded)
    copied = generate_decoder(build_skeleton(config))
    assert followed == [traced]
    monkeypatch.setattr(source, "find_repetition", lambda _: None)
    whole = generate_decoder(build_skeleton(config))
    assert copied.source == whole.source
    assert copied.weights == whole.weights


def test_layers_with_a_window_get_rotating_caches() -> None:
    model = load_port(config_of("gemma2", WITH_PORT["gemma2"])).build()
    kinds = [type(c).__name__ for c in model.make_cache()]
    assert kinds == ["RotatingKVCache", "KVCache"]


def test_padded_rows_give_what_they_give_alone() -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import BatchKVCache

    model = load_port(config_of("qwen3", WITH_PORT["qwen3"])).build()
    tokens = [[5, 6, 7, 8, 9], [11, 12]]
    padded = mx.array([[5, 6, 7, 8, 9], [0, 0, 0, 11, 12]])
    together = model(padded, cache=[BatchKVCache([0, 3]) for _ in model.layers])
    for row, ids in enumerate(tokens):
        alone = model(mx.array([ids]))
        assert np.allclose(np.array(together[row, -len(ids) :]), np.array(alone[0]), atol=1e-5)


def test_experts_are_layers_that_quantize() -> None:
    import mlx.nn as nn

    model = load_port(config_of("mixtral", {**WITH_PORT["mixtral"]})).build()
    nn.quantize(model, group_size=32)
    kinds = {type(m).__name__ for _, m in model.named_modules()}
    assert "QuantizedSwitchLinear" in kinds
    assert "SwitchLinear" not in kinds


def test_experts_in_order_give_what_they_give_token_by_token() -> None:
    import mlx.core as mx

    from torch2mlx.compiler.runtime.experts import expert_rows, token_rows

    generator = np.random.default_rng(0)
    x = mx.array(generator.normal(size=(40, 8)))
    indices = mx.array(generator.integers(0, 4, (40, 2)))
    rows, experts, order, in_order = expert_rows(x, indices)
    assert in_order
    assert np.all(np.diff(np.array(experts)) >= 0)
    scaled = token_rows(rows * experts[:, None], order, indices)
    assert np.allclose(np.array(scaled), np.array(x[:, None] * indices[..., None]))
    few = expert_rows(x[:3], indices[:3])
    assert few[2:] == (None, False)
    assert np.allclose(np.array(token_rows(few[0], None, indices[:3])[:, 1]), np.array(x[:3]))


def test_a_changed_model_file_is_not_ours() -> None:
    port: Any = load_port(config_of("llama", LLAMA))
    source = port.model_file
    assert port.is_source(source + "\n\n\n")
    assert not port.is_source(source + "\nimport os\n")
    assert not port.is_source("not python at all")


def test_a_model_without_port_is_converted_and_loads_in_mlx_lm(tmp_path: Path) -> None:
    import mlx.core as mx
    import torch

    import torch2mlx
    from torch2mlx.verification.reference import build_reference

    config = config_of("opt", WITHOUT_PORT["opt"])
    del config["model_file"]
    reference: Any = build_reference(config)
    reference.save_pretrained(tmp_path / "opt")
    made: Any = torch2mlx.convert(tmp_path / "opt", tmp_path / "mlx")
    assert made.manifest.plan["port"] == MODEL_FILE
    assert any("generated" in note for note in made.manifest.plan["notes"])
    model, _ = load_language_model(tmp_path / "mlx", tokenizer=False)
    ids = np.random.default_rng(0).integers(5, 200, (1, 12))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    assert np.allclose(np.array(model(mx.array(ids))), expected, atol=1e-4)


@pytest.mark.slow
def test_mlx_lm_quantizes_and_runs_the_folder(tmp_path: Path) -> None:
    import mlx.core as mx
    import torch
    from checkpoints import add_tokenizer
    from mlx_lm import convert, generate, load

    import torch2mlx
    from torch2mlx.verification.reference import build_reference

    config = config_of("mistral", WITH_PORT["mistral"])
    del config["model_file"]
    reference: Any = build_reference(config)
    reference.to(torch.bfloat16).save_pretrained(tmp_path / "source")
    add_tokenizer("mistral", tmp_path / "source")
    torch2mlx.convert(tmp_path / "source", tmp_path / "mlx")
    folder = tmp_path / "quantized"
    convert(
        str(tmp_path / "mlx"), folder, quantize=True, q_group_size=32, dtype="bfloat16",
        trust_remote_code=True,
    )  # fmt: skip
    model, tokenizer = load(str(folder), trust_remote_code=True)[:2]
    kinds = {type(m).__name__ for _, m in model.named_modules()}
    assert {"QuantizedLinear", "QuantizedEmbedding"} <= kinds
    assert model["model"]["rotary_emb"]["inv_freq"].dtype == mx.float32
    assert isinstance(generate(model, tokenizer, prompt="w5 w6", max_tokens=3), str)
    answer = torch2mlx.generate(folder, "w5 w6", max_tokens=3)
    assert answer.generated_tokens <= 3


def test_the_delta_rule_is_pytorchs_in_pieces_and_with_padding() -> None:
    import mlx.core as mx
    import torch
    from mlx_lm.models.cache import ArraysCache
    from transformers.models.kimi_linear import modeling_kimi_linear as kimi
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    from torch2mlx.compiler.runtime.states import delta_rule

    torch.manual_seed(0)
    for rule, heads, width in (
        (qwen.torch_chunk_gated_delta_rule, 2, ()),
        (kimi.chunk_kimi_delta_attention, 4, (8,)),
    ):
        q, k = torch.randn(2, 2, 9, heads, 8)
        v, g = torch.randn(2, 9, 4, 6), -torch.rand(2, 9, 4, *width)
        beta = torch.rand(2, 9, 4)
        given = [mx.array(x.numpy()) for x in (v, q, k, g, beta)]
        want = rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0].numpy()
        cache = ArraysCache(2)
        got = [
            delta_rule(cache, 1, *(x[:, part] for x in given), True)
            for part in (slice(0, 5), slice(5, 6), slice(6, 9))
        ]
        assert np.allclose(np.concatenate(got, 1), want, atol=1e-5)
        padded = [mx.concatenate([x[1:] + 1, x[:1]], axis=1) for x in given]
        after = delta_rule(ArraysCache(2, left_padding=[9]), 1, *padded, True)
        assert np.allclose(np.array(after[:, 9:]), want[:1], atol=1e-5)


def test_lightning_attention_is_pytorchs_in_pieces_and_with_padding() -> None:
    import mlx.core as mx
    import torch
    from mlx_lm.models.cache import ArraysCache
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    from torch2mlx.compiler.runtime.states import lightning_attention

    config = MiniMaxConfig(**HEADS, block_size=32, layer_types=["linear_attention"] * 2)
    torch.manual_seed(0)
    layer = MiniMaxLightningAttention(config, 1)
    hidden = torch.randn(2, 300, 64)
    with torch.no_grad():
        want = layer(hidden, None, None)[0].numpy()
        qkv = layer.act_fn(layer.qkv_proj(hidden)).reshape(2, 300, 4, 48).transpose(1, 2)
    q, k, v = (mx.array(x.contiguous().numpy()) for x in qkv.split(16, -1))
    slopes = mx.array(layer.slope_rate.numpy())

    def finished(heads: Any) -> Any:
        y = torch.from_numpy(np.array(heads.swapaxes(1, 2))).reshape(*hidden.shape)
        with torch.no_grad():
            gate = layer.output_gate(hidden).sigmoid()
            return layer.out_proj(gate * layer.norm(y)).numpy()

    whole = lightning_attention(ArraysCache(1), 0, v, q, k, slopes)
    assert np.allclose(finished(whole), want, atol=1e-5)
    cache = ArraysCache(1)
    parts = (slice(0, 270), slice(270, 271), slice(271, 300))
    got = [lightning_attention(cache, 0, *(x[:, :, p] for x in (v, q, k)), slopes) for p in parts]
    assert np.allclose(finished(mx.concatenate(got, axis=2)), want, atol=1e-5)
    # Row 1 ends after 250 tokens; what follows is padding with keys of 0.
    padded = ArraysCache(1)
    padded.prepare(lengths=[270, 250])
    seen = mx.arange(270)[:, None] < mx.array([270, 250])[:, None, None, None]
    lightning_attention(padded, 0, *(x[:, :, :270] * seen for x in (v, q, k)), slopes)
    alone = ArraysCache(1)
    lightning_attention(alone, 0, *(x[1:, :, :250] for x in (v, q, k)), slopes)
    assert np.allclose(np.array(padded[0][1:]), np.array(alone[0]), atol=1e-5)


def test_a_text_that_outgrows_its_rotary_frequencies_is_refused() -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import BatchKVCache, KVCache

    from torch2mlx.compiler.runtime.decoding import frequencies

    short, long = mx.array([1.0]), mx.array([2.0])
    cache = KVCache()
    assert frequencies(cache, 8, short, long, 8) is short
    assert frequencies(cache, 9, short, long, 8) is long
    cache.offset = 9
    assert frequencies(cache, 1, short, long, 8) is long
    cache.offset = 8
    with pytest.raises(ValueError, match="beyond 8 tokens"):
        frequencies(cache, 1, short, long, 8)
    with pytest.raises(ValueError, match="no shorter ones"):
        frequencies(BatchKVCache([0, 3]), 10, short, long, 8)
    assert frequencies(BatchKVCache([0, 3]), 8, short, long, 8) is short


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["kimi_linear", "lfm3", "minimax"])
def test_padded_rows_of_hybrid_models_give_what_they_give_alone(model_type: str) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import ArraysCache, BatchKVCache, BatchRotatingKVCache, KVCache

    values = {**WITHOUT_PORT, **WITH_PORT}[model_type]
    model = load_port(config_of(model_type, values)).build()

    def batched(cache: Any) -> Any:
        if isinstance(cache, ArraysCache):
            return ArraysCache(len(cache.cache), left_padding=[0, 3])
        if isinstance(cache, KVCache):
            return BatchKVCache([0, 3])
        return BatchRotatingKVCache(cache.max_size, [0, 3])

    tokens = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    cache = [batched(c) for c in model.make_cache()]
    first = model(mx.array([tokens[0][:5], [0, 0, 0, *tokens[1][:2]]]), cache=cache)
    second = model(mx.array([[10], [13]]), cache=cache)
    for row, ids in enumerate(tokens):
        alone = np.array(model(mx.array([ids]))[0])
        assert np.allclose(np.array(first[row, -len(ids) + 1 :]), alone[:-1], atol=1e-5)
        assert np.allclose(np.array(second[row, -1]), alone[-1], atol=1e-5)


@pytest.mark.slow
def test_equal_scales_of_long_rope_leave_one_rotation() -> None:
    """As in Phi-3.5-MoE, whose two scales are the same number."""
    values = WITH_PORT["phimoe_longrope"]
    scales = {"short_mscale": 1.25, "long_mscale": 1.25}
    rope = {"rope_parameters": {**values["rope_parameters"], **scales}}
    twin_agrees("phimoe", {**values, **rope})
    port: Any = load_port(config_of("phimoe", {**values, **rope}))
    assert "mx.fast.rope(" in port.model_file
