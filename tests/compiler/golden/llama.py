"""LlamaForCausalLM for MLX; written by torch2mlx from its PyTorch source."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn


class LlamaAttention(nn.Module):
    """Port of `transformers.models.llama.modeling_llama.LlamaAttention`."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(32, 32, bias=False)
        self.k_proj = nn.Linear(32, 16, bias=False)
        self.v_proj = nn.Linear(32, 16, bias=False)
        self.o_proj = nn.Linear(32, 32, bias=False)

    def __call__(self, hidden_states, position_embeddings):
        """hidden_states [batch, length, 32], position_embeddings [4] → [batch, length, 32]."""
        batch, length = hidden_states.shape[:2]
        query_states = self.q_proj(hidden_states).reshape(batch, length, -1, 8).swapaxes(1, 2)
        key_states = self.k_proj(hidden_states).reshape(batch, length, -1, 8).swapaxes(1, 2)
        value_states = self.v_proj(hidden_states).reshape(batch, length, -1, 8).swapaxes(1, 2)
        query_states = mx.fast.rope(
            query_states,
            8,
            traditional=False,
            base=None,
            scale=1.0,
            offset=0,
            freqs=position_embeddings,
        )
        key_states = mx.fast.rope(
            key_states,
            8,
            traditional=False,
            base=None,
            scale=1.0,
            offset=0,
            freqs=position_embeddings,
        )
        attn_output = mx.fast.scaled_dot_product_attention(
            query_states, key_states, value_states, scale=8**-0.5, mask="causal"
        )
        return self.o_proj(attn_output.swapaxes(1, 2).reshape(batch, length, -1))


class LlamaMLP(nn.Module):
    """Port of `transformers.models.llama.modeling_llama.LlamaMLP`."""

    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(32, 48, bias=False)
        self.up_proj = nn.Linear(32, 48, bias=False)
        self.down_proj = nn.Linear(48, 32, bias=False)

    def __call__(self, x):
        """x [batch, length, 32] → [batch, length, 32]."""
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    """Port of `transformers.models.llama.modeling_llama.LlamaDecoderLayer`."""

    def __init__(self):
        super().__init__()
        self.self_attn = LlamaAttention()
        self.mlp = LlamaMLP()
        self.input_layernorm = nn.RMSNorm(32, eps=1e-06)
        self.post_attention_layernorm = nn.RMSNorm(32, eps=1e-06)

    def __call__(self, hidden_states, position_embeddings):
        """hidden_states [batch, length, 32], position_embeddings [4] → [batch, length, 32]."""
        x = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(x, position_embeddings)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LlamaRotaryEmbedding(nn.Module):
    """Port of `transformers.models.llama.modeling_llama.LlamaRotaryEmbedding`."""

    def __init__(self):
        super().__init__()
        self.inv_freq = mx.zeros((4,))
        self.freeze(recurse=False, keys=["inv_freq"])

    def __call__(self):
        """→ [4]."""
        return 1.0 / self.inv_freq


class LlamaModel(nn.Module):
    """Port of `transformers.models.llama.modeling_llama.LlamaModel`."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(64, 32)
        self.layers = [LlamaDecoderLayer() for _ in range(2)]
        self.norm = nn.RMSNorm(32, eps=1e-06)
        self.rotary_emb = LlamaRotaryEmbedding()

    def __call__(self, input_ids):
        """input_ids [batch, length] → [batch, length, 32]."""
        hidden_states = self.embed_tokens(input_ids)
        position_embeddings = self.rotary_emb()
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings)
        return self.norm(hidden_states)


class LlamaForCausalLM(nn.Module):
    """Port of `transformers.models.llama.modeling_llama.LlamaForCausalLM`."""

    def __init__(self):
        super().__init__()
        self.model = LlamaModel()
        self.lm_head = nn.Linear(32, 64, bias=False)

    def __call__(self, input_ids):
        """input_ids [batch, length] → [batch, length, 64]."""
        outputs = self.model(input_ids)
        return {"logits": self.lm_head(outputs)}


def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = LlamaForCausalLM()
    model.load_weights(str(Path(folder) / "model.safetensors"))
    model.eval()
    return model
