"""BertModel for MLX; written by torch2mlx from its PyTorch source."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn


class BertSelfAttention(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertSelfAttention`."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(32, 32)
        self.key = nn.Linear(32, 32)
        self.value = nn.Linear(32, 32)

    def __call__(self, hidden_states, attention_mask):
        """Shapes:

        hidden_states [batch, length, 32]
        attention_mask [batch, 1, 1, length]
        → [batch, length, 32]
        """
        batch, length = hidden_states.shape[:2]
        query_layer = self.query(hidden_states).reshape(batch, length, -1, 8).swapaxes(1, 2)
        key_layer = self.key(hidden_states).reshape(batch, length, -1, 8).swapaxes(1, 2)
        value_layer = self.value(hidden_states).reshape(batch, length, -1, 8).swapaxes(1, 2)
        attn_output = mx.fast.scaled_dot_product_attention(
            query_layer, key_layer, value_layer, scale=8**-0.5, mask=attention_mask
        )
        # modeling_bert.py:192
        attn_output = zero_masked_rows(attn_output, attention_mask)
        return attn_output.swapaxes(1, 2).reshape(batch, length, -1)


class BertSelfOutput(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertSelfOutput`."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(32, 32)
        self.LayerNorm = nn.LayerNorm(32, eps=1e-12)

    def __call__(self, hidden_states, input_tensor):
        """Shapes:

        hidden_states [batch, length, 32]
        input_tensor [batch, length, 32]
        → [batch, length, 32]
        """
        hidden_states = self.dense(hidden_states)
        return self.LayerNorm(hidden_states + input_tensor)


class BertAttention(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertAttention`."""

    def __init__(self):
        super().__init__()
        self.self = BertSelfAttention()
        self.output = BertSelfOutput()

    def __call__(self, hidden_states, attention_mask):
        """Shapes:

        hidden_states [batch, length, 32]
        attention_mask [batch, 1, 1, length]
        → [batch, length, 32]
        """
        return self.output(self.self(hidden_states, attention_mask), hidden_states)


class BertIntermediate(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertIntermediate`."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(32, 48)

    def __call__(self, hidden_states):
        """hidden_states [batch, length, 32] → [batch, length, 48]."""
        return nn.gelu(self.dense(hidden_states))


class BertOutput(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertOutput`."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(48, 32)
        self.LayerNorm = nn.LayerNorm(32, eps=1e-12)

    def __call__(self, intermediate, self_attention_output):
        """Shapes:

        intermediate [batch, length, 48]
        self_attention_output [batch, length, 32]
        → [batch, length, 32]
        """
        hidden_states = self.dense(intermediate)
        return self.LayerNorm(hidden_states + self_attention_output)


class BertLayer(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertLayer`."""

    def __init__(self):
        super().__init__()
        self.attention = BertAttention()
        self.intermediate = BertIntermediate()
        self.output = BertOutput()

    def __call__(self, hidden_states, attention_mask):
        """Shapes:

        hidden_states [batch, length, 32]
        attention_mask [batch, 1, 1, length]
        → [batch, length, 32]
        """
        self_attention_output = self.attention(hidden_states, attention_mask)
        return self.output(self.intermediate(self_attention_output), self_attention_output)


class BertEmbeddings(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertEmbeddings`."""

    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(64, 32)
        self.position_embeddings = nn.Embedding(64, 32)
        self.token_type_embeddings = nn.Embedding(2, 32)
        self.LayerNorm = nn.LayerNorm(32, eps=1e-12)
        self.position_ids = mx.zeros((1, 64), mx.int64)
        self.token_type_ids = mx.zeros((1, 64), mx.int64)
        self.freeze(recurse=False, keys=["position_ids", "token_type_ids"])

    def __call__(self, input_ids):
        """input_ids [batch, length] → [batch, length, 32]."""
        batch, length = input_ids.shape
        position_ids = self.position_ids[:, :length]
        buffered_token_type_ids = mx.take_along_axis(self.token_type_ids, position_ids, axis=1)
        token_type_ids = mx.broadcast_to(buffered_token_type_ids, (batch, length))
        inputs_embeds = self.word_embeddings(input_ids)
        token_type_embeddings = self.token_type_embeddings(token_type_ids)
        position_embeddings = self.position_embeddings(position_ids)
        return self.LayerNorm(inputs_embeds + token_type_embeddings + position_embeddings)


class BertEncoder(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertEncoder`."""

    def __init__(self):
        super().__init__()
        self.layer = [BertLayer() for _ in range(2)]

    def __call__(self, hidden_states, attention_mask):
        """Shapes:

        hidden_states [batch, length, 32]
        attention_mask [batch, 1, 1, length]
        → [batch, length, 32]
        """
        for block in self.layer:
            hidden_states = block(hidden_states, attention_mask)
        return hidden_states


class BertPooler(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertPooler`."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(32, 32)

    def __call__(self, hidden_states):
        """hidden_states [batch, length, 32] → [batch, 32]."""
        first_token_tensor = hidden_states[:, 0]
        return mx.tanh(self.dense(first_token_tensor))


class BertModel(nn.Module):
    """Port of `transformers.models.bert.modeling_bert.BertModel`."""

    def __init__(self):
        super().__init__()
        self.embeddings = BertEmbeddings()
        self.encoder = BertEncoder()
        self.pooler = BertPooler()

    def __call__(self, input_ids, attention_mask):
        """Shapes:

        input_ids [batch, length]
        attention_mask [batch, length]
        → [batch, length, 32], [batch, 32]
        """
        embedding_output = self.embeddings(input_ids)
        attention_mask = attention_mask.astype(mx.bool_)[:, None, None]
        encoder_outputs = self.encoder(embedding_output, attention_mask)
        pooled_output = self.pooler(encoder_outputs)
        return {"last_hidden_state": encoder_outputs, "pooler_output": pooled_output}


# What MLX has no function for.


def zero_masked_rows(output: mx.array, mask: mx.array) -> mx.array:
    """Zeros for the queries that may see no key at all; MLX's softmax has no answer for them."""
    seen = mask if mask.dtype == mx.bool_ else mask > -float("inf")
    return mx.where(mx.any(seen, axis=-1, keepdims=True), output, mx.zeros((), output.dtype))


def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = BertModel()
    model.load_weights(str(Path(folder) / "model.safetensors"))
    model.eval()
    return model
