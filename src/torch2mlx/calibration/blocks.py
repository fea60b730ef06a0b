"""One decoder layer of a checkpoint at a time, as a PyTorch module that runs on its own.

A layer is cut out as a model of one layer with the real widths (`verification.depth`), so that
transformers builds it, maps the checkpoint's names and makes masks and positions for it.  What
goes into the layer is replaced by the stream of activations, and what comes out is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.dtypes import to_torch
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.plan import is_output_head, is_token_embedding
from torch2mlx.verification.depth import thin_config
from torch2mlx.verification.layers import layer_signatures, text_part
from torch2mlx.verification.reference import allow_code, build_reference, decoder_layers, read_state
from torch2mlx.verification.shrinking import place_special_ids
from torch2mlx.verification.thinning import LayerNames, pick_layers

if TYPE_CHECKING:
    import torch

    from torch2mlx.planning.expressions import Expr, Reader

__all__ = ["Block", "BlockOutput", "Blocks"]

Array = np.ndarray[Any, Any]

_ROWS = 512  # of the vocabulary, where the embedding plays no part
_LEAST_ROWS = 64  # so that special ids are distinct
_EQUAL = 1e-4  # relative difference of a layer's result with another attention
_READ = 4096  # rows of the embedding read at a time


@dataclass(frozen=True)
class BlockOutput:
    """What one layer makes of its stream.

    Attributes:
        hidden: float32 [batch, tokens, width], the stream after the layer.
        final: the same after the model's last norm, which only the last layer's is needed of.
    """

    hidden: torch.Tensor
    final: torch.Tensor


class _StoppedError(Exception):
    """The forward pass has got as far as it was needed."""


class Block:
    """A layer inside of its one-layer model.

    Args:
        model: transformers' model with one decoder layer.
        device: where it runs.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.layer = decoder_layers(model)[1][0]
        self.decoder: Any = model.get_decoder()  # type: ignore[operator]

    def first(self, ids: torch.Tensor) -> torch.Tensor:
        """What enters the layer for token ids [batch, tokens]."""
        import torch

        entered = []

        def stop(_module: Any, args: Any, kwargs: Any) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])
            raise _StoppedError

        handle = self.layer.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self.decoder(input_ids=ids.to(self.device), use_cache=False)
        except _StoppedError:
            pass
        finally:
            handle.remove()
        return entered[0]  # type: ignore[no-any-return]

    def fuse_attention(self, hidden: torch.Tensor) -> bool:
        """Use PyTorch's fused attention if it gives the same on a stream; whether it does."""
        import torch

        model: Any = self.model
        if not getattr(model, "_supports_sdpa", False):
            return False
        with torch.no_grad():
            expected = self.run(hidden).hidden
            model.set_attn_implementation("sdpa")
            found = self.run(hidden).hidden
        if bool((found - expected).norm() <= _EQUAL * (expected - hidden).norm()):
            return True
        model.set_attn_implementation("eager")
        return False

    def run(self, hidden: torch.Tensor) -> BlockOutput:
        """What the layer makes of a stream [batch, tokens, width].

        Runs from several threads may alternate, so nothing of a run is kept in the module.
        """
        import torch

        left: list[torch.Tensor] = []

        def enter(_module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        def leave(_module: Any, _args: Any, output: Any) -> None:
            left.append(output[0] if isinstance(output, tuple) else output)

        ids = torch.ones(hidden.shape[:2], dtype=torch.long, device=self.device)
        with _hooked(self.layer, enter, leave):
            found = self.decoder(input_ids=ids, use_cache=False)
        final = found[0] if isinstance(found, tuple) else found.last_hidden_state
        return BlockOutput(left[0], final)


class _hooked:  # noqa: N801  # reads as a verb where it is used
    """Hooks of one thread's run alone."""

    def __init__(self, layer: torch.nn.Module, enter: Any, leave: Any) -> None:
        import threading

        self._thread = threading.get_ident()
        self._layer, self._enter, self._leave = layer, enter, leave

    def __enter__(self) -> None:
        import threading

        def before(module: Any, args: Any, kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                return self._enter(module, args, kwargs)
            return None

        def after(module: Any, args: Any, output: Any) -> None:
            if threading.get_ident() == self._thread:
                self._leave(module, args, output)

        self._handles = [
            self._layer.register_forward_pre_hook(before, with_kwargs=True),
            self._layer.register_forward_hook(after),
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True)
class Blocks:
    """The decoder layers of a checkpoint.

    Attributes:
        config: contents of config.json.
        state: tensors in hub naming.
        reader: what their expressions read from.
        device: where blocks run.
        folder: the checkpoint's, where code of its own lies.
        trust_remote_code: run that code.
    """

    config: Mapping[str, Any]
    state: Mapping[str, Expr]
    reader: Reader
    device: torch.device
    folder: Path | None = None
    trust_remote_code: bool = False

    @cached_property
    def signatures(self) -> list[Any]:
        """What kind each layer is of."""
        if self.trust_remote_code and self.folder is not None:
            allow_code(self.config, self.folder)
        return layer_signatures(self.config)

    @property
    def count(self) -> int:
        """Number of decoder layers."""
        return len(self.signatures)

    @cached_property
    def names(self) -> LayerNames:
        """How the checkpoint names its layers."""
        return LayerNames.of(self.state, self.count)

    @cached_property
    def _fused(self) -> dict[str, bool]:
        """Kinds of layers that fused attention was tried with."""
        return {}

    @property
    def embedding(self) -> str | None:
        """Name of the token embedding in the checkpoint."""
        return next((name for name in self.state if is_token_embedding(name)), None)

    def block(self, index: int, sample: torch.Tensor | None = None) -> Block:
        """A layer with the checkpoint's weights, read anew at each call.

        Args:
            index: of the layer.
            sample: a stream [1, tokens, width] that enters it.  Fused attention is used where
                layers of this kind were seen to give the same with it on such a sample.

        Raises:
            UnsupportedError: the layer cannot be run on its own.
        """
        some = np.arange(min(_ROWS, self._vocabulary))
        block = self._build(index, some, {})
        kind = str(self.signatures[index])
        if sample is not None and kind not in self._fused:
            self._fused[kind] = block.fuse_attention(sample.to(self.device))
        elif self._fused.get(kind):
            block.model.set_attn_implementation("sdpa")  # type: ignore[operator]
        return block

    def entrance(self, ids: Array, embedding: Array | None = None) -> tuple[Block, torch.Tensor]:
        """The first layer, and token ids as it numbers them.

        Args:
            ids: [sequences, tokens].
            embedding: float32 rows for the ascending distinct `ids`; None: the checkpoint's.

        Only those rows of the embedding are in memory.
        """
        import torch

        rows, numbers = np.unique(ids, return_inverse=True)
        given = {}
        if embedding is not None and self.embedding is not None:
            missing = max(0, _LEAST_ROWS - len(rows))
            given[self.embedding] = torch.from_numpy(np.pad(embedding, ((0, missing), (0, 0))))
        block = self._build(0, rows, given)
        return block, torch.from_numpy(numbers.reshape(ids.shape))

    def embedding_rows(self, rows: Array) -> torch.Tensor:
        """Rows of the checkpoint's embedding, float32."""
        assert self.embedding is not None
        return self._rows(self.state[self.embedding], rows)

    @property
    def _vocabulary(self) -> int:
        for part in (text_part(self.config), self.config):
            if isinstance(part.get("vocab_size"), int):
                return int(part["vocab_size"])
        return max((e.shape[0] for n, e in self.state.items() if is_token_embedding(n)), default=0)

    def _build(self, index: int, rows: Array, given: Mapping[str, torch.Tensor]) -> Block:
        config = thin_config(self.config, [index])
        if layer_signatures(config) != [self.signatures[index]]:
            raise UnsupportedError(
                f"layer {index} of this {self.config.get('model_type')!r} model cannot be run on "
                "its own, so the model cannot be calibrated; leave out --calibrate"
            )
        picked = pick_layers(self.state, self.names, [index])
        config, picked, vocabulary = self._with_rows(config, picked, rows)
        state = read_state(picked, self.reader)
        state.update(vocabulary)
        state.update(given)
        model = build_reference(config, state, self.folder, self.trust_remote_code)
        return Block(model, self.device)

    def _with_rows(
        self, config: dict[str, Any], state: dict[str, Expr], rows: Array
    ) -> tuple[dict[str, Any], dict[str, Expr], dict[str, torch.Tensor]]:
        """The vocabulary cut to some rows; the head is not used, so it gets as many of its own."""
        result = copy.deepcopy(config)
        total = self._vocabulary
        rest = dict(state)
        gathered = {}
        padded = np.concatenate([rows, np.arange(max(0, _LEAST_ROWS - len(rows))) % total])
        for name, expr in state.items():
            inside = self.names.number(name) is not None or ".layers." in name
            if inside or not expr.shape or expr.shape[0] != total:
                continue
            if is_output_head(name):
                gathered[name] = self._rows(expr, padded * 0)
            else:
                gathered[name] = self._rows(expr, padded)
            del rest[name]
        for part in (text_part(result), result):
            if isinstance(part.get("vocab_size"), int) or part is text_part(result):
                part["vocab_size"] = len(padded)  # type: ignore[index]
        place_special_ids(result, len(padded))
        return result, rest, gathered

    def _rows(self, expr: Expr, rows: Array) -> torch.Tensor:
        import torch

        result = torch.empty(len(rows), *expr.shape[1:])
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        for start in range(0, expr.shape[0], _READ):
            stop = min(start + _READ, expr.shape[0])
            low, high = np.searchsorted(ordered, (start, stop))
            if low == high:
                continue
            first, last = int(ordered[low]), int(ordered[high - 1]) + 1
            region = (range(first, last), *(range(n) for n in expr.shape[1:]))
            values = to_torch(expr.read(region, self.reader), expr.dtype).float()
            result[torch.from_numpy(order[low:high])] = values[
                torch.from_numpy(ordered[low:high] - first)
            ]
        return result
