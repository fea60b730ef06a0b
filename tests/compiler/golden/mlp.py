"""MLP for MLX; written by torch2mlx from its PyTorch source."""

from pathlib import Path

import mlx.nn as nn


class MLP(nn.Module):
    """Port of `golden_models.MLP`."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 4)

    def __call__(self, x):
        """x [2, 8] → [2, 4]."""
        hidden = nn.relu(self.fc1(x))
        return self.fc2(hidden)


def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = MLP()
    model.load_weights(str(Path(folder) / "model.safetensors"))
    model.eval()
    return model
