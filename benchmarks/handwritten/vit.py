"""The vision transformer in MLX."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

__all__ = ["ViTModel"]


class Attention(nn.Module):
    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dims // heads) ** -0.5
        self.q_proj = nn.Linear(dims, dims)
        self.k_proj = nn.Linear(dims, dims)
        self.v_proj = nn.Linear(dims, dims)
        self.o_proj = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, dims = x.shape
        q, k, v = (
            layer(x).reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, dims))


class MLP(nn.Module):
    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden)
        self.fc2 = nn.Linear(hidden, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, dims: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dims, heads)
        self.layernorm_before = nn.LayerNorm(dims, eps=1e-12)
        self.layernorm_after = nn.LayerNorm(dims, eps=1e-12)
        self.mlp = MLP(dims, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.mlp(self.layernorm_after(x))


class PatchEmbeddings(nn.Module):
    def __init__(self, patch: int, dims: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, dims, patch, stride=patch)

    def __call__(self, x: mx.array) -> mx.array:
        return self.projection(x).flatten(1, 2)


class Embeddings(nn.Module):
    def __init__(self, image: int, patch: int, dims: int) -> None:
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(patch, dims)
        self.cls_token = mx.zeros((1, 1, dims))
        self.position_embeddings = mx.zeros((1, (image // patch) ** 2 + 1, dims))

    def __call__(self, x: mx.array) -> mx.array:
        x = self.patch_embeddings(x)
        first = mx.broadcast_to(self.cls_token, (x.shape[0], 1, x.shape[2]))
        return mx.concatenate([first, x], axis=1) + self.position_embeddings


class Pooler(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.tanh(self.dense(x[:, 0]))


class ViTModel(nn.Module):
    """Patch embeddings, encoder and pooler: (last hidden state, pooled)."""

    def __init__(
        self, image: int, patch: int, layers: int, dims: int, hidden: int, heads: int
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(image, patch, dims)
        self.layers = [Layer(dims, hidden, heads) for _ in range(layers)]
        self.layernorm = nn.LayerNorm(dims, eps=1e-12)
        self.pooler = Pooler(dims)

    def __call__(self, image: mx.array) -> tuple[mx.array, mx.array]:
        x = self.embeddings(image.transpose(0, 2, 3, 1))
        for layer in self.layers:
            x = layer(x)
        x = self.layernorm(x)
        return x, self.pooler(x)
