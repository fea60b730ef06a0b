"""CNN for MLX; written by torch2mlx from its PyTorch source."""

from pathlib import Path

import mlx.nn as nn


class ConvBlock(nn.Module):
    """Port of `golden_models.ConvBlock`."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm(out_channels)

    def __call__(self, x):
        return nn.relu(self.norm(self.conv(x)))


class CNN(nn.Module):
    """Port of `golden_models.CNN`."""

    def __init__(self):
        super().__init__()
        self.features = [ConvBlock(3, 8), nn.MaxPool2d(2, 2), ConvBlock(8, 16), nn.MaxPool2d(2, 2)]
        self.classifier = nn.Linear(16, 10)

    def __call__(self, image):
        """image [2, 3, 8, 8] → [2, 10]."""
        x = image.transpose(0, 2, 3, 1)
        for feature in self.features:
            x = feature(x)
        x = x.mean(axis=(1, 2))
        return self.classifier(x)


def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = CNN()
    model.load_weights(str(Path(folder) / "model.safetensors"))
    model.eval()
    return model
