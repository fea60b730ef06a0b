"""Recurrent networks: depth, directions, layout, biases and projections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from table import Sample, TensorMaker, call, case, refused

aten = torch.ops.aten
TRAINED = refused(
    "dropout that is switched on", lambda s: s.args[5] > 0 and s.args[6] and s.args[4] > 1
)


def network(gates: int, projection: int = 0) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        time, size, inputs, hidden = 5, 2, 3, 4
        width = projection or hidden
        for layers in (1, 2):
            for bidirectional in (False, True):
                for biases, batch_first in ((True, False), (False, True)):
                    directions = 1 + bidirectional
                    params = []
                    for depth in range(layers):
                        for _ in range(directions):
                            width_in = width * directions if depth else inputs
                            params += [t(gates * hidden, width_in), t(gates * hidden, width)]
                            params += [t(gates * hidden), t(gates * hidden)] if biases else []
                            params += [t(projection, hidden)] if projection else []
                    shape = (size, time) if batch_first else (time, size)
                    state: Any = t(layers * directions, size, width)
                    if gates == 4:
                        state = [state, t(layers * directions, size, hidden)]
                    tail = (biases, layers, 0.3, False, bidirectional, batch_first)
                    yield call(t(*shape, inputs), state, params, *tail)
        yield call(t(*shape, inputs), state, params, False, 2, 0.3, True, True, True)

    return samples


def packed(gates: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        state: Any = t(1, 2, 4)
        state = [state, state] if gates == 4 else state
        params = [t(gates * 4, 3), t(gates * 4, 4)]
        yield call(
            t(5, 3), t.of([2, 2, 1], torch.int64), state, params, *(False, 1, 0.0), *[False] * 2
        )

    return samples


def cell(gates: int) -> Any:
    def samples(t: TensorMaker) -> Iterator[Sample]:
        state: Any = t(2, 4)
        state = [state, t(2, 4)] if gates == 4 else state
        weights = t(gates * 4, 3), t(gates * 4, 4)
        yield call(t(2, 3), state, *weights)
        yield call(t(2, 3), state, *weights, t(gates * 4), t(gates * 4))

    return samples


case(
    aten.lstm.input,
    samples=lambda t: [*network(4)(t), *network(4, 2)(t)],
    fails=[TRAINED],
)
PACKED = refused("packed sequences")
for gates, name in ((3, "gru"), (1, "rnn_tanh"), (1, "rnn_relu")):
    case(getattr(aten, name).input, samples=network(gates), fails=[TRAINED])
for gates, name in ((4, "lstm"), (3, "gru"), (1, "rnn_tanh"), (1, "rnn_relu")):
    case(getattr(aten, name).data, samples=packed(gates), fails=[PACKED])
    case(getattr(aten, f"{name}_cell").default, samples=cell(gates))
