"""A generated decoder as a port: it is planned, streamed and proven like a hand-written one."""

from __future__ import annotations

import ast
import json
import types
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from torch2mlx.architectures.port import MODEL_FILE, Port
from torch2mlx.compiler.decoders.skeleton import build_skeleton
from torch2mlx.compiler.decoders.source import generate_decoder
from torch2mlx.compiler.decoders.weights import module_state
from torch2mlx.dtypes import dtype_from_torch
from torch2mlx.planning.expressions import Expr, Transpose
from torch2mlx.planning.functions import Whole, cast
from torch2mlx.precision import with_precision

__all__ = ["GeneratedPort", "generated_port"]


class GeneratedPort(Port):
    """A model that was generated for its config.

    Args:
        config: contents of config.json; sizes and flags are written into the model file.

    Raises:
        CompileError: with every reason why the model has no exact counterpart.
        UnsupportedError: transformers has no such model.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        skeleton = build_skeleton(config)
        self._original = skeleton.model
        self._decoder = generate_decoder(skeleton)
        self._parameters = dict(skeleton.model.named_parameters())
        self._fixed = {
            name
            for name, value in (*self._parameters.items(), *skeleton.model.named_buffers())
            if value.dtype == torch.float32
        }
        module = types.ModuleType(MODEL_FILE)
        code = compile(self.model_file, MODEL_FILE, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # text of our own
        super().__init__(deepcopy(dict(config)), module.Model, module.ModelArgs)

    @property
    def model_file(self) -> str:
        return self._decoder.source

    def is_source(self, text: str, precision: Mapping[str, str] | None = None) -> bool:
        expected = with_precision(self.model_file, precision or {})
        try:
            return ast.dump(ast.parse(text)) == ast.dump(ast.parse(expected))
        except (SyntaxError, ValueError):
            return False

    def keeps_dtype(self, name: str) -> bool:
        """True for what the original keeps in float32 whatever its dtype, as rotary frequencies."""
        return self._decoder.weights[name].source in self._fixed

    def _outputs(self, state: Mapping[str, Expr]) -> dict[str, Expr]:
        found = module_state(self._original, state)
        floating = (e.dtype for n, e in found.items() if e.dtype.floating and n in self._parameters)
        dtype = next(floating, None)
        outputs: dict[str, Expr] = {}
        for name, stored in self._decoder.weights.items():
            constant = self._decoder.constants.get(stored.source)
            expr = found.get(stored.source) if constant is None else _constant(constant)
            if expr is None:
                continue
            if (
                constant is not None
                and dtype
                and expr.dtype.floating
                and not self.keeps_dtype(name)
            ):
                expr = cast(expr, dtype)
            outputs[name] = Transpose(expr, stored.axes) if stored.axes else expr
        return outputs


def generated_port(config: Mapping[str, Any]) -> GeneratedPort:
    """The port of a config; the last few are kept, since a conversion asks for one repeatedly."""
    return _generated(json.dumps(config, sort_keys=True, default=repr))


@lru_cache(maxsize=4)
def _generated(config: str) -> GeneratedPort:
    return GeneratedPort(json.loads(config))


def _constant(value: torch.Tensor) -> Expr:
    """A tensor that the config determines."""
    import mlx.core as mx

    bits = value.detach().contiguous()
    array = bits.view(torch.int16).numpy().view(np.uint16) if bits.dtype == torch.bfloat16 else None
    dtype = dtype_from_torch(bits.dtype)

    def make() -> Any:
        if array is not None:
            return mx.array(array).view(mx.bfloat16)
        return mx.array(bits.numpy())

    return Whole("constant", make, (), dtype, tuple(value.shape))
