"""Which port takes a checkpoint: a hand-written one, or a generated one where that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from torch2mlx import without_torch
from torch2mlx.architectures.port import MODEL_FILE, Port
from torch2mlx.errors import ParityError, PlanError, Torch2MLXError, UnsupportedError
from torch2mlx.planning.expressions import Expr
from torch2mlx.sources.base import Checkpoint

__all__ = ["may_generate", "open_convertible", "route"]

_Prepared = TypeVar("_Prepared")


def may_generate(config: Mapping[str, Any]) -> bool:
    """Whether transformers has a causal language model that a port could be generated from."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from torch2mlx.verification.reference import reference_config

    try:
        return type(reference_config(config)) in MODEL_FOR_CAUSAL_LM_MAPPING
    except UnsupportedError:
        return False


def open_convertible(
    source: str | Path,
    revision: str | None,
    trust_remote_code: bool,
    keep_download: bool = False,
    adapter: str | Path | None = None,
    expert_layout: str | None = None,
    text_only: bool = False,
) -> Checkpoint:
    """A checkpoint of a kind that some port takes, with what is merged in or left out of it.

    Raises:
        Torch2MLXError: it cannot be read, or no port takes it, which its config says before
            anything large is downloaded.
    """
    from torch2mlx.architectures.port import load_port
    from torch2mlx.sources import open_checkpoint
    from torch2mlx.sources.adapters import with_adapter
    from torch2mlx.sources.experts import usual_experts
    from torch2mlx.sources.text_model import text_model, text_model_config

    def accept(config: dict[str, Any]) -> None:
        config = text_model_config(config) if text_only else config
        try:
            load_port(config)
        except UnsupportedError:
            if not may_generate(config):
                raise

    checkpoint = open_checkpoint(
        source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        accept_config=accept,
        keep_download=keep_download,
    )
    if text_only:
        checkpoint = text_model(checkpoint)
    checkpoint = _in_names_of_port(checkpoint)
    state = usual_experts(checkpoint.state, checkpoint.config, expert_layout)
    if state.keys() != checkpoint.state.keys() or expert_layout is not None:
        kept = {n: p for n, p in checkpoint.packed.items() if state.get(n) is checkpoint.state[n]}
        checkpoint = replace(checkpoint, state=state, packed=kept)
    return checkpoint if adapter is None else with_adapter(checkpoint, Path(adapter))


def _in_names_of_port(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of PyTorch without what a trainer put before every name."""
    from torch2mlx.architectures.bounds import check_counts
    from torch2mlx.architectures.port import load_port
    from torch2mlx.sources.prefix import without_prefix

    if checkpoint.kind == "mlx":
        return checkpoint
    config = {k: v for k, v in checkpoint.config.items() if k != "model_file"}

    @cache
    def port() -> Port | None:
        try:
            check_counts(config, checkpoint.state)
            return load_port(config)
        except (PlanError, UnsupportedError):  # told when the conversion is planned
            return None

    def fits(state: Mapping[str, Expr]) -> bool:
        found = port()
        return found is None or found.knows(state)

    return without_prefix(checkpoint, fits)


def route(
    checkpoint: Checkpoint,
    prepare: Callable[[Checkpoint], _Prepared],
    trust_remote_code: bool = False,
) -> tuple[Checkpoint, _Prepared, tuple[str, ...]]:
    """Prepare a conversion through the first port that is proven.

    Args:
        checkpoint: to be converted.
        prepare: plans it and proves the port on a tiny twin; raises where that fails.
        trust_remote_code: run the checkpoint's own code, where transformers has no such model.

    Returns:
        the checkpoint, its config naming a model file if one is generated; what was prepared;
        and what a user should know of the choice.

    Raises:
        Torch2MLXError: neither port is right; the text says why not.
    """
    from torch2mlx.verification.corrections import corrections
    from torch2mlx.verification.reference import allow_code, brings_code

    # What file a checkpoint wants mlx-lm to run plays no part.
    config = {k: v for k, v in checkpoint.config.items() if k != "model_file"}
    checkpoint = replace(checkpoint, config=config)
    try:
        return checkpoint, prepare(checkpoint), ()
    except (UnsupportedError, PlanError, ParityError) as refused:
        if checkpoint.kind == "mlx":
            raise
        without_torch.require()
        if trust_remote_code:
            allow_code(config, checkpoint.folder)
        elif brings_code(config):
            raise type(refused)(
                f"{refused}\nThe checkpoint brings its own code (auto_map in config.json): with "
                "--trust-remote-code PyTorch runs it, and a port is generated from it"
            ) from refused
        if not may_generate(config):
            raise
        if isinstance(refused, PlanError) and not _fits_original(checkpoint):
            raise
        generated = replace(checkpoint, config={**config, "model_file": MODEL_FILE})
        try:
            prepared = prepare(generated)
        except Torch2MLXError as error:
            raise type(refused)(
                f"{refused}\nA port generated from transformers' source is no way out: {error}"
            ) from error
        reason = str(refused).strip().splitlines()[0]
        note = (
            f"the model file was generated from transformers' source, because mlx-lm's own port "
            f"does not do: {reason}"
        )
        return generated, prepared, (note, *corrections(config))


def _fits_original(checkpoint: Checkpoint) -> bool:
    """Whether the tensors are those of transformers' own model, which any generated port needs.

    Told from headers in a moment, where generating takes many.
    """
    from torch2mlx.architectures.bounds import check_counts
    from torch2mlx.compiler.decoders.weights import fits
    from torch2mlx.verification.reference import build_skeleton

    try:
        check_counts(checkpoint.config, checkpoint.state)
        original = build_skeleton(checkpoint.config)
        return fits(original, checkpoint.state, checkpoint.config)
    except PlanError:
        return False
    except UnsupportedError:
        return True  # the port's own mapping says why, in full
