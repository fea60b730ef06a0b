"""ResNet with bottleneck layers in MLX, channels last."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

__all__ = ["ResNet"]


class ConvLayer(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.normalization = nn.BatchNorm(outputs)
        self.relu = relu

    def __call__(self, x: mx.array) -> mx.array:
        x = self.normalization(self.convolution(x))
        return nn.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut = (
            ConvLayer(inputs, outputs, 1, stride, relu=False)
            if inputs != outputs or stride != 1
            else nn.Identity()
        )
        hidden = outputs // 4
        self.layer = [
            ConvLayer(inputs, hidden, 1),
            ConvLayer(hidden, hidden, 3, stride),
            ConvLayer(hidden, outputs, 1, relu=False),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        residual = self.shortcut(x)
        for layer in self.layer:
            x = layer(x)
        return nn.relu(x + residual)


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, depth: int) -> None:
        super().__init__()
        self.layers = [
            Bottleneck(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1)
            for i in range(depth)
        ]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


class Embedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedder = ConvLayer(3, width, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.pool(self.embedder(x))


class Encoder(nn.Module):
    def __init__(self, width: int, widths: list[int], depths: list[int]) -> None:
        super().__init__()
        inputs = [width, *widths[:-1]]
        self.stages = [
            Stage(i, o, 1 if n == 0 else 2, d)
            for n, (i, o, d) in enumerate(zip(inputs, widths, depths, strict=True))
        ]

    def __call__(self, x: mx.array) -> mx.array:
        for stage in self.stages:
            x = stage(x)
        return x


class Backbone(nn.Module):
    def __init__(self, width: int, widths: list[int], depths: list[int]) -> None:
        super().__init__()
        self.embedder = Embedder(width)
        self.encoder = Encoder(width, widths, depths)

    def __call__(self, x: mx.array) -> mx.array:
        return self.encoder(self.embedder(x)).mean(axis=(1, 2))


class ResNet(nn.Module):
    """Image of (batch, channels, height, width) to logits."""

    def __init__(self, width: int, widths: list[int], depths: list[int], classes: int) -> None:
        super().__init__()
        self.resnet = Backbone(width, widths, depths)
        self.classifier = [nn.Identity(), nn.Linear(widths[-1], classes)]

    def __call__(self, image: mx.array) -> mx.array:
        return self.classifier[1](self.resnet(image.transpose(0, 2, 3, 1)))
