"""Transformer for MLX; written by torch2mlx from its PyTorch source."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn


class Attention(nn.Module):
    """Port of `golden_models.Attention`."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def __call__(self, x, mask):
        """x [batch, length, 8], mask [batch, 1, 1, length] → [batch, length, 8]."""
        batch, length = x.shape[:2]
        qkv = self.qkv(x).reshape(batch, length, 3, 2, 4)
        q, k, v = mx.unstack(qkv.transpose(2, 0, 3, 1, 4), axis=0)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask=mask)
        # golden_models.py:57
        y = zero_masked_rows(y, mask)
        return self.out(y.swapaxes(1, 2).reshape(batch, length, 8))


class Block(nn.Module):
    """Port of `golden_models.Block`."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(8)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(8)
        self.mlp = [nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)]

    def __call__(self, x, mask):
        """x [batch, length, 8], mask [batch, 1, 1, length] → [batch, length, 8]."""
        x = x + self.attention(self.norm1(x), mask)
        mlp = self.norm2(x)
        for block in self.mlp:
            mlp = block(mlp)
        return x + mlp


class Transformer(nn.Module):
    """Port of `golden_models.Transformer`."""

    def __init__(self):
        super().__init__()
        self.positions = mx.zeros((16, 8))
        self.tokens = nn.Embedding(11, 8)
        self.layers = [Block() for _ in range(4)]
        self.norm = nn.LayerNorm(8)

    def __call__(self, ids, mask):
        """ids [batch, length], mask [batch, length] → [batch, length, 11], [batch, 8]."""
        length = ids.shape[1]
        mask = mask[:, None, None]
        x = self.tokens(ids) + self.positions[:length]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        return {"logits": self.tokens.as_linear(x), "pooled": x[:, 0]}


# What MLX has no function for.


def zero_masked_rows(output: mx.array, mask: mx.array) -> mx.array:
    """Zeros for the queries that may see no key at all; MLX's softmax has no answer for them."""
    seen = mask if mask.dtype == mx.bool_ else mask > -float("inf")
    return mx.where(mx.any(seen, axis=-1, keepdims=True), output, mx.zeros((), output.dtype))


def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = Transformer()
    model.load_weights(str(Path(folder) / "model.safetensors"))
    model.eval()
    return model
