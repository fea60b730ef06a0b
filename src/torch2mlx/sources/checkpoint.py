"""Open a checkpoint, whatever it is: a folder, a file, a hub id or a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Expr, Source
from torch2mlx.sources.base import Checkpoint, Packed, TensorSource
from torch2mlx.sources.companions import companion_files, read_config, read_generation_config
from torch2mlx.sources.local_files import is_there, read_json_object, stays_inside, unreadable
from torch2mlx.sources.remote.snapshot import Snapshot
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.sources.weight_files import WeightFiles, choose_file, choose_weights

__all__ = ["open_checkpoint"]

# Files beside config.json in which AutoGPTQ, AutoAWQ and ModelOpt describe the packing.
_PACKING_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


def open_checkpoint(
    location: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    accept_config: Callable[[dict[str, Any]], None] | None = None,
    needs_config: bool = True,
    keep_download: bool = False,
) -> Checkpoint:
    """Open a folder, a file, a hub id or a URL; headers are read and checked, tensors are not.

    A folder that is an adapter opens the model that its config names, with the adapter merged in.

    Args:
        location: a folder, a .safetensors/.bin/.pt/.pth/.ckpt/.gguf file, an index, "owner/name",
            or a URL of a folder or file that fsspec can read.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: also take the checkpoint's Python files along; nothing runs them here.
        accept_config: called with config.json before weights of a hub id are downloaded; what
            it raises is passed on.
        needs_config: a config.json must say which model the weights belong to; otherwise none
            is read.
        keep_download: download the weights of a hub id into the hub's cache instead of reading
            them where they are.

    Raises:
        SourceError: nothing there, damaged, ambiguous, or not a checkpoint; the message says which
            file and what to do.
        UnsupportedError: a GGUF architecture that has no exact mapping.
    """
    if not str(location):
        raise SourceError("SRC is an empty text; name a folder, a file, a hub id or a URL")
    path = Path(location).expanduser()
    if not is_there(path):
        with suppress(OSError, ValueError):  # no name that a file could have
            if path.is_symlink():
                raise SourceError(f"{location}: a link to {path.readlink()}, which does not exist")
        return _open_remote(
            str(location), revision, trust_remote_code, accept_config, needs_config, keep_download
        )
    if revision is not None:
        raise SourceError(f"{location}: is a local path; a revision belongs to a hub id")
    if path.is_dir():
        from torch2mlx.sources.adapters import base_of_adapter, with_adapter
        from torch2mlx.sources.original import is_original, open_original

        if needs_config and is_original(path):
            return open_original(str(location), path)
        base = base_of_adapter(path)
        if base is None:
            return _open_folder(str(location), path, trust_remote_code, needs_config)
        opened = open_checkpoint(
            base,
            trust_remote_code=trust_remote_code,
            accept_config=accept_config,
            needs_config=needs_config,
            keep_download=keep_download,
        )
        return with_adapter(opened, path)
    from torch2mlx.sources.original.whisper import is_whisper, open_whisper

    if needs_config and is_whisper(path):
        return open_whisper(str(location), path)
    return _open_file(str(location), path.parent, path.name, trust_remote_code, needs_config)


def _open_remote(
    location: str,
    revision: str | None,
    trust_remote_code: bool,
    accept_config: Callable[[dict[str, Any]], None] | None,
    needs_config: bool,
    keep_download: bool,
) -> Checkpoint:
    from torch2mlx.sources.hub import open_snapshot, parse_hub_location
    from torch2mlx.sources.remote.folder import open_folder
    from torch2mlx.sources.remote.urls import HUB, is_url, shown

    if is_url(location) and not location.startswith(HUB):
        if revision is not None:
            raise SourceError(f"{shown(location)}: is a URL; a revision belongs to a hub id")
        snapshot, file = open_folder(location, trust_remote_code, accept_config)
        location = shown(location)
    else:
        on_hub = parse_hub_location(location)
        if on_hub is None and re.fullmatch(r"[\w.]+:[\w.]+", location):
            raise SourceError(
                f"{location}: no such file or folder; what builds a module (package.module:name) "
                "is for convert and bench, and `verify DST --certificate` checks what became of it"
            )
        if on_hub is None:
            raise SourceError(
                f"{shown(location)}: no such file or folder, and not a hub id (owner/name) either"
            )
        snapshot = open_snapshot(on_hub, revision, trust_remote_code, accept_config, keep_download)
        file, location = on_hub.file, location.removeprefix(HUB)
    try:
        if file is not None:
            return _open_file(
                location, snapshot.folder, file, trust_remote_code, needs_config, snapshot
            )
        return _open_folder(location, snapshot.folder, trust_remote_code, needs_config, snapshot)
    except SourceError as error:
        if not snapshot.weights:
            raise
        raise SourceError(str(error).replace(str(snapshot.folder), location)) from error


def _open_file(
    location: str,
    folder: Path,
    name: str,
    trust_remote_code: bool,
    needs_config: bool,
    remote: Snapshot | None = None,
) -> Checkpoint:
    names = _file_names(folder, remote)
    chosen = choose_file(str(folder), name, names, lambda other: read_json_object(folder / other))
    return _open(location, folder, chosen, trust_remote_code, needs_config, remote)


def _file_names(folder: Path, remote: Snapshot | None) -> list[str]:
    elsewhere = [] if remote is None else list(remote.weights)
    try:
        return [entry.name for entry in os.scandir(folder) if not entry.is_dir()] + elsewhere
    except OSError as error:
        raise unreadable(folder, error) from error


def _open_folder(
    location: str,
    folder: Path,
    trust_remote_code: bool,
    needs_config: bool,
    remote: Snapshot | None = None,
) -> Checkpoint:
    names = _file_names(folder, remote)
    chosen = choose_weights(str(folder), names, lambda name: read_json_object(folder / name))
    return _open(location, folder, chosen, trust_remote_code, needs_config, remote)


def _open(
    location: str,
    folder: Path,
    chosen: WeightFiles,
    trust_remote_code: bool,
    needs_config: bool,
    remote: Snapshot | None,
) -> Checkpoint:
    weights = remote.weights if remote is not None else {}
    companions = remote.companions if remote is not None else None
    files = [weights.get(name, folder / name) for name in chosen.files]
    _require_inside(folder, files, chosen.index)
    if chosen.kind == "gguf":
        from torch2mlx.sources.gguf import open_gguf

        return open_gguf(location, folder, files, chosen.notes)
    config = read_config(folder) if needs_config else {}
    notes = list(chosen.notes)
    source: TensorSource
    if chosen.kind == "torch":
        from torch2mlx.sources.torch_zip import TorchZipSource

        source = torch_source = TorchZipSource(files, chosen.weight_map)
        notes += torch_source.notes
    else:
        source = SafetensorsSource(files, chosen.weight_map)
    if not source.tensors:
        raise SourceError(f"{files[0]}: holds no tensors")
    state: dict[str, Expr] = {
        name: Source(name, info.dtype, info.shape) for name, info in source.tensors.items()
    }
    kind = chosen.kind
    if isinstance(config.get("quantization"), dict):  # only MLX names it so
        from torch2mlx.sources.quantized import dequantized_state

        kind, state = "mlx", dequantized_state(state, config)
        config = {k: v for k, v in config.items() if not k.startswith("quantization")}
    packed: Mapping[str, Packed] = {}
    plain: frozenset[str] = frozenset()
    if kind != "mlx" and needs_config:
        from torch2mlx.sources.packed import unpacked_state

        unpacked = unpacked_state(state, _with_packing(config, folder), source, location)
        if unpacked is not None:
            state, config = unpacked.state, unpacked.config
            packed, plain = unpacked.grids, unpacked.plain
            notes += unpacked.notes
    return Checkpoint(
        location=location,
        folder=folder,
        kind=kind,
        config=config,
        source=source,
        state=state,
        generation_config=read_generation_config(folder),
        packed=packed,
        plain=plain,
        tokenizer_files=(
            companion_files(folder, trust_remote_code) if companions is None else companions
        ),
        card=None if remote is None else remote.card,
        notes=tuple(notes),
    )


def _with_packing(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config with what older libraries say of the packing in a file of its own."""
    for name, method in _PACKING_FILES.items():
        if "quantization_config" not in config and (folder / name).is_file():
            settings = {"quant_method": method, **read_json_object(folder / name)}
            return {**config, "quantization_config": settings}
    return config


def _require_inside(folder: Path, files: list[Path], index: str | None) -> None:
    """Refuse an index that reaches out of the folder through links."""
    if index is None:
        return
    missing = [str(f.relative_to(folder)) for f in files if not f.exists()]
    if missing:
        raise SourceError(
            f"{folder}: {len(missing)} of {len(files)} weight files are missing: "
            f"{', '.join(missing[:8])}; download them"
        )
    for file in files:
        if not stays_inside(folder, file):
            raise SourceError(
                f"{folder / index}: lists {file.name}, a link to {os.path.realpath(file)}, which "
                "is outside of the folder; put the file itself there if you trust it"
            )
