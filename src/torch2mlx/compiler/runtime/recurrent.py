"""One layer, one direction of a recurrent network; time is the first axis.

Weights are PyTorch's: (gates * hidden, inputs) and (gates * hidden, hidden); biases may be None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx

__all__ = ["gru_cell", "gru_layer", "lstm_cell", "lstm_layer", "rnn_cell", "rnn_layer"]


def project(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """A linear map."""
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def lstm_step(
    gates: mx.array, cell: mx.array, w_hr: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """New hidden state and cell from the gates' inputs, in the order i, f, g, o."""
    i, f, g, o = mx.split(gates, 4, axis=-1)
    cell = mx.sigmoid(f) * cell + mx.sigmoid(i) * mx.tanh(g)
    hidden = mx.sigmoid(o) * mx.tanh(cell)
    return (hidden if w_hr is None else hidden @ w_hr.T), cell


def lstm_cell(
    x: mx.array,
    hidden: mx.array,
    cell: mx.array,
    w_ih: mx.array,
    w_hh: mx.array,
    b_ih: mx.array | None = None,
    b_hh: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """One step of an LSTM: the new hidden state and cell."""
    return lstm_step(project(x, w_ih, b_ih) + project(hidden, w_hh, b_hh), cell)


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


def gru_step(inputs: mx.array, state: mx.array, hidden: mx.array) -> mx.array:
    """New hidden state from both projections, in the order r, z, n."""
    r_x, z_x, n_x = mx.split(inputs, 3, axis=-1)
    r_h, z_h, n_h = mx.split(state, 3, axis=-1)
    z = mx.sigmoid(z_x + z_h)
    n = mx.tanh(n_x + mx.sigmoid(r_x + r_h) * n_h)
    return (1 - z) * n + z * hidden


def gru_cell(
    x: mx.array,
    hidden: mx.array,
    w_ih: mx.array,
    w_hh: mx.array,
    b_ih: mx.array | None = None,
    b_hh: mx.array | None = None,
) -> mx.array:
    """One step of a GRU: the new hidden state."""
    return gru_step(project(x, w_ih, b_ih), project(hidden, w_hh, b_hh), hidden)


def gru_layer(
    x: mx.array,
    hidden: mx.array,
    w_ih: mx.array,
    w_hh: mx.array,
    b_ih: mx.array | None = None,
    b_hh: mx.array | None = None,
    reverse: bool = False,
) -> tuple[mx.array, mx.array]:
    """(T, N, inputs) → all hidden states (T, N, hidden), and the last one."""
    inputs = project(x, w_ih, b_ih)
    states = []
    for t in steps(x.shape[0], reverse):
        hidden = gru_step(inputs[t], project(hidden, w_hh, b_hh), hidden)
        states.append(hidden)
    return stacked(states, reverse), hidden


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "tanh": mx.tanh,
    "relu": partial(mx.maximum, 0),
}


def rnn_cell(
    x: mx.array,
    hidden: mx.array,
    w_ih: mx.array,
    w_hh: mx.array,
    b_ih: mx.array | None = None,
    b_hh: mx.array | None = None,
    activation: str = "tanh",
) -> mx.array:
    """One step of an Elman network: the new hidden state."""
    return ACTIVATIONS[activation](project(x, w_ih, b_ih) + project(hidden, w_hh, b_hh))


def rnn_layer(
    x: mx.array,
    hidden: mx.array,
    w_ih: mx.array,
    w_hh: mx.array,
    b_ih: mx.array | None = None,
    b_hh: mx.array | None = None,
    reverse: bool = False,
    activation: str = "tanh",
) -> tuple[mx.array, mx.array]:
    """(T, N, inputs) → all hidden states (T, N, hidden), and the last one."""
    inputs = project(x, w_ih, b_ih)
    states = []
    for t in steps(x.shape[0], reverse):
        hidden = ACTIVATIONS[activation](inputs[t] + project(hidden, w_hh, b_hh))
        states.append(hidden)
    return stacked(states, reverse), hidden


def steps(length: int, reverse: bool) -> range:
    """The order in which a sequence is read."""
    return range(length - 1, -1, -1) if reverse else range(length)


def stacked(states: list[mx.array], reverse: bool) -> mx.array:
    """States in the order of the sequence."""
    return mx.stack(states[::-1] if reverse else states)
