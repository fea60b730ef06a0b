"""Hub ids of kinds that are compiled: downloaded into the cache, then a folder as any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2mlx.compiler.encoder_decoder.kinds import is_encoder_decoder_config
from torch2mlx.compiler.factory import is_factory
from torch2mlx.compiler.pretrained.kinds import is_pretrained_config
from torch2mlx.compiler.speech.kinds import is_synthesizer_config
from torch2mlx.errors import SourceError
from torch2mlx.sources.companions import peek_config
from torch2mlx.sources.local_files import is_there

__all__ = ["compiled_snapshot"]


class _OfAPortError(Exception):
    """The config is of a checkpoint that is opened tensor by tensor."""


def compiled_snapshot(source: Any, revision: str | None) -> Path | None:
    """The folder of a hub id whose model is compiled, with its weights; None for anything else.

    Args:
        source: as `convert` is given it.
        revision: branch, tag or commit; None for the main branch.

    Nothing but config.json is downloaded of what is no such model.  Where the hub cannot say,
    opening the checkpoint will tell why.
    """
    from torch2mlx.sources.hub import open_snapshot, parse_hub_location

    if not isinstance(source, str) or is_factory(source) or is_there(Path(source)):
        return None
    location = parse_hub_location(source)
    if location is None or location.file is not None:
        return None

    def accept(config: dict[str, Any]) -> None:
        if not _is_compiled(config):
            raise _OfAPortError

    try:
        folder = open_snapshot(location, revision, accept_config=accept, keep_download=True).folder
        return folder if _is_compiled(peek_config(folder)) else None
    except (_OfAPortError, SourceError):
        return None


def _is_compiled(config: Mapping[str, Any]) -> bool:
    kinds = (is_encoder_decoder_config, is_synthesizer_config, is_pretrained_config)
    return any(kind(config) for kind in kinds)
