"""Tagger for MLX; written by torch2mlx from its PyTorch source."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn


class LSTM(nn.Module):
    """Port of `torch.nn.modules.rnn.LSTM`."""

    def __init__(self):
        super().__init__()
        self.weight_ih_l0 = mx.zeros((64, 8))
        self.weight_hh_l0 = mx.zeros((64, 16))
        self.bias_ih_l0 = mx.zeros((64,))
        self.bias_hh_l0 = mx.zeros((64,))
        self.weight_ih_l0_reverse = mx.zeros((64, 8))
        self.weight_hh_l0_reverse = mx.zeros((64, 16))
        self.bias_ih_l0_reverse = mx.zeros((64,))
        self.bias_hh_l0_reverse = mx.zeros((64,))
        self.weight_ih_l1 = mx.zeros((64, 32))
        self.weight_hh_l1 = mx.zeros((64, 16))
        self.bias_ih_l1 = mx.zeros((64,))
        self.bias_hh_l1 = mx.zeros((64,))
        self.weight_ih_l1_reverse = mx.zeros((64, 32))
        self.weight_hh_l1_reverse = mx.zeros((64, 16))
        self.bias_ih_l1_reverse = mx.zeros((64,))
        self.bias_hh_l1_reverse = mx.zeros((64,))

    def __call__(self, input):
        """input [7, 2, 8] → [7, 2, 32]."""
        h_zeros = mx.zeros([4, 2, 16], mx.float32)
        result = h_zeros[0]
        # rnn.py:1164
        result, _, _ = lstm_layer(
            input,
            result,
            result,
            self.weight_ih_l0,
            self.weight_hh_l0,
            self.bias_ih_l0,
            self.bias_hh_l0,
        )
        x = h_zeros[1]
        x, _, _ = lstm_layer(
            input,
            x,
            x,
            self.weight_ih_l0_reverse,
            self.weight_hh_l0_reverse,
            self.bias_ih_l0_reverse,
            self.bias_hh_l0_reverse,
            reverse=True,
        )
        result = mx.concatenate([result, x], axis=-1)
        x = h_zeros[2]
        x, _, _ = lstm_layer(
            result, x, x, self.weight_ih_l1, self.weight_hh_l1, self.bias_ih_l1, self.bias_hh_l1
        )
        x_2 = h_zeros[3]
        result, _, _ = lstm_layer(
            result,
            x_2,
            x_2,
            self.weight_ih_l1_reverse,
            self.weight_hh_l1_reverse,
            self.bias_ih_l1_reverse,
            self.bias_hh_l1_reverse,
            reverse=True,
        )
        return mx.concatenate([x, result], axis=-1)


class Tagger(nn.Module):
    """Port of `golden_models.Tagger`."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = LSTM()
        self.head = nn.Linear(32, 5)

    def __call__(self, tokens):
        """tokens [2, 7] → [2, 7, 5]."""
        outputs = self.lstm(self.embedding(tokens).swapaxes(0, 1))
        return self.head(outputs.swapaxes(0, 1))


# What MLX has no function for.


def project(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """A linear map."""
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def steps(length: int, reverse: bool) -> range:
    """The order in which a sequence is read."""
    return range(length - 1, -1, -1) if reverse else range(length)


def lstm_step(
    gates: mx.array, cell: mx.array, w_hr: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """New hidden state and cell from the gates' inputs, in the order i, f, g, o."""
    i, f, g, o = mx.split(gates, 4, axis=-1)
    cell = mx.sigmoid(f) * cell + mx.sigmoid(i) * mx.tanh(g)
    hidden = mx.sigmoid(o) * mx.tanh(cell)
    return (hidden if w_hr is None else hidden @ w_hr.T), cell


def stacked(states: list[mx.array], reverse: bool) -> mx.array:
    """States in the order of the sequence."""
    return mx.stack(states[::-1] if reverse else states)


def lstm_layer(
    x: mx.array,
    hidden: mx.array,
    cell: mx.array,
    w_ih: mx.array,
    w_hh: mx.array,
    b_ih: mx.array | None = None,
    b_hh: mx.array | None = None,
    w_hr: mx.array | None = None,
    reverse: bool = False,
) -> tuple[mx.array, mx.array, mx.array]:
    """(T, N, inputs) → all hidden states (T, N, hidden), the last one, the last cell."""
    inputs = project(x, w_ih, b_ih)
    states = []
    for t in steps(x.shape[0], reverse):
        hidden, cell = lstm_step(inputs[t] + project(hidden, w_hh, b_hh), cell, w_hr)
        states.append(hidden)
    return stacked(states, reverse), hidden, cell


def load(folder="."):
    """The model with its weights from a folder, ready for inference."""
    model = Tagger()
    model.load_weights(str(Path(folder) / "model.safetensors"))
    model.eval()
    return model
