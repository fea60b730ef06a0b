"""BERT's encoder in MLX."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

__all__ = ["BertModel"]


class SelfAttention(nn.Module):
    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dims // heads) ** -0.5
        self.query = nn.Linear(dims, dims)
        self.key = nn.Linear(dims, dims)
        self.value = nn.Linear(dims, dims)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        batch, length, dims = x.shape
        q, k, v = (
            layer(x).reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.query, self.key, self.value)
        )
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        return y.transpose(0, 2, 1, 3).reshape(batch, length, dims)


class Output(nn.Module):
    def __init__(self, inputs: int, dims: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, dims)
        self.LayerNorm = nn.LayerNorm(dims, eps=1e-12)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.self = SelfAttention(dims, heads)
        self.output = Output(dims, dims)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        return self.output(self.self(x, mask), x)


class Intermediate(nn.Module):
    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dims, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(self.dense(x))


class Layer(nn.Module):
    def __init__(self, dims: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dims, heads)
        self.intermediate = Intermediate(dims, hidden)
        self.output = Output(hidden, dims)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    def __init__(self, layers: int, dims: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.layer = [Layer(dims, hidden, heads) for _ in range(layers)]

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Embeddings(nn.Module):
    def __init__(self, vocabulary: int, positions: int, dims: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, dims)
        self.position_embeddings = nn.Embedding(positions, dims)
        self.token_type_embeddings = nn.Embedding(2, dims)
        self.LayerNorm = nn.LayerNorm(dims, eps=1e-12)

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.word_embeddings(ids) + self.token_type_embeddings(mx.zeros_like(ids))
        return self.LayerNorm(x + self.position_embeddings(mx.arange(ids.shape[1])))


class Pooler(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.tanh(self.dense(x[:, 0]))


class BertModel(nn.Module):
    """Token embeddings, encoder and pooler: (last hidden state, pooled)."""

    def __init__(
        self, vocabulary: int, positions: int, layers: int, dims: int, hidden: int, heads: int
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, positions, dims)
        self.encoder = Encoder(layers, dims, hidden, heads)
        self.pooler = Pooler(dims)

    def __call__(self, ids: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
        x = self.encoder(self.embeddings(ids), mask.astype(mx.bool_)[:, None, None])
        return x, self.pooler(x)
