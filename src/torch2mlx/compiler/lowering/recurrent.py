"""Recurrent networks: LSTM, GRU and Elman networks of any depth, and their cells."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import torch

from torch2mlx.compiler.builder import Builder, Value
from torch2mlx.compiler.lowering.registry import LoweringError, lowering
from torch2mlx.compiler.runtime import recurrent

__all__: list[str] = []

aten = torch.ops.aten


def _stack(
    b: Builder,
    layer: Callable[..., Any],
    x: Value,
    states: Sequence[Value],
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    projected: bool = False,
    **options: Any,
) -> tuple[Value, ...]:
    """All layers and directions; returns the output and the final states of each kind."""
    if train and dropout > 0 and num_layers > 1:
        raise LoweringError(
            f"{layer.__name__}: dropout={dropout} with train=True; call model.eval()"
        )
    directions = 2 if bidirectional else 1
    each = 2 + 2 * has_biases + projected
    finals: list[list[Value]] = [[] for _ in states]
    if batch_first:
        x = b.call(mx.swapaxes, x, 0, 1)
    for depth in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = depth * directions + direction
            weights = params[place * each : (place + 1) * each]
            kwargs = dict(options)
            if projected:
                *weights, kwargs["w_hr"] = weights
            if direction:
                kwargs["reverse"] = True
            initial = [b.call(operator.getitem, s, place) for s in states]
            output, *final = b.call(layer, x, *initial, *weights, **kwargs)
            outputs.append(output)
            for kind, value in zip(finals, final, strict=True):
                kind.append(value)
        x = b.call(mx.concatenate, outputs, axis=-1) if bidirectional else outputs[0]
    if batch_first:
        x = b.call(mx.swapaxes, x, 0, 1)
    return x, *(b.call(mx.stack, kind) for kind in finals)


@lowering(aten.lstm.input)
def lower_lstm(
    b: Builder,
    x: Value,
    hx: Sequence[Value],
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    """Output, final hidden states and cells; states of unequal width mean a projection."""
    projected = hx[0].shape[-1] != hx[1].shape[-1]
    args = (has_biases, num_layers, dropout, train, bidirectional, batch_first, projected)
    return _stack(b, recurrent.lstm_layer, x, hx, params, *args)


@lowering(aten.gru.input)
def lower_gru(b: Builder, x: Value, hx: Value, params: Sequence[Value], *args: Any) -> Any:
    """gru(input, hx, params, biases?, layers, dropout, train?, bidirectional?, batch first?)."""
    return _stack(b, recurrent.gru_layer, x, (hx,), params, *args)


@lowering(aten.rnn_tanh.input)
def lower_rnn_tanh(b: Builder, x: Value, hx: Value, params: Sequence[Value], *args: Any) -> Any:
    """rnn_tanh: arguments as of gru."""
    return _stack(b, recurrent.rnn_layer, x, (hx,), params, *args)


@lowering(aten.rnn_relu.input)
def lower_rnn_relu(b: Builder, x: Value, hx: Value, params: Sequence[Value], *args: Any) -> Any:
    """rnn_relu: arguments as of gru."""
    return _stack(b, recurrent.rnn_layer, x, (hx,), params, *args, activation="relu")


@lowering(aten.lstm.data, aten.gru.data, aten.rnn_tanh.data, aten.rnn_relu.data)
def refuse_packed(b: Builder, *args: Any) -> Any:
    """Packed sequences have no fixed order of rows."""
    raise LoweringError("recurrent network: a PackedSequence; pass a padded batch")


@lowering(aten.lstm_cell.default)
def lower_lstm_cell(b: Builder, x: Value, hx: Sequence[Value], *weights: Any) -> Any:
    """lstm_cell(input, (hidden, cell), w_ih, w_hh, b_ih, b_hh) → hidden, cell."""
    return b.call(recurrent.lstm_cell, x, *hx, *weights)


@lowering(aten.gru_cell.default)
def lower_gru_cell(b: Builder, x: Value, hx: Value, *weights: Any) -> Any:
    """gru_cell(input, hidden, w_ih, w_hh, b_ih, b_hh)."""
    return b.call(recurrent.gru_cell, x, hx, *weights)


@lowering(aten.rnn_tanh_cell.default)
def lower_rnn_tanh_cell(b: Builder, x: Value, hx: Value, *weights: Any) -> Any:
    """rnn_tanh_cell(input, hidden, w_ih, w_hh, b_ih, b_hh)."""
    return b.call(recurrent.rnn_cell, x, hx, *weights)


@lowering(aten.rnn_relu_cell.default)
def lower_rnn_relu_cell(b: Builder, x: Value, hx: Value, *weights: Any) -> Any:
    """rnn_relu_cell(input, hidden, w_ih, w_hh, b_ih, b_hh)."""
    return b.call(recurrent.rnn_cell, x, hx, *weights, activation="relu")
