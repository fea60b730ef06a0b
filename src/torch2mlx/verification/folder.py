"""Hold any MLX folder, whoever made it, against its PyTorch source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from torch2mlx.architectures.bounds import check_counts
from torch2mlx.architectures.port import MODEL_FILE, Port, load_port, plain_port
from torch2mlx.errors import OptionError, ParityError, PlanError, SourceError
from torch2mlx.packaging.manifest import MANIFEST, read_manifest
from torch2mlx.packaging.tokenizer import check_tokenizer
from torch2mlx.planning.recovered import recover_outputs
from torch2mlx.planning.shards import parse_size
from torch2mlx.precision import CONFIG_KEY, check_patterns, parse_precision
from torch2mlx.progress import Progress
from torch2mlx.sources.base import Checkpoint
from torch2mlx.sources.local_files import read_json_object, read_small
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.verification.gate import Gate
from torch2mlx.verification.reference import allow_code
from torch2mlx.verification.report import ParityReport

__all__ = ["differences", "verify_folder"]

_SHARD = re.compile(r"(?P<stem>.+)-\d{5,}-of-(?P<total>\d{5,})\.safetensors")
_MOST_SHARDS = 10_000  # more in a name are no count


def verify_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    memory_limit: str | int,
    max_context: int | None,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[ParityReport, dict[str, Any]]:
    """Run every check on an existing folder.

    Args:
        checkpoint: the PyTorch source.
        folder: config.json, model*.safetensors and tokenizer, as mlx-lm reads them.
        memory_limit: a size such as "1GB"; see `Gate` for this and the others.
        max_context: see `Gate`.
        trust_remote_code: see `Gate`.
        progress: see `Gate`.

    Returns:
        the gate's report, and the tokenizer's as plain values.

    Raises:
        SourceError: the folder is no MLX model, or lacks some of its weight files.
        PlanError: it holds other tensors than its source.
        ParityError: it computes something else.
    """
    config = _read_config(folder)
    files = _weight_files(folder)
    if trust_remote_code:
        allow_code(checkpoint.config, checkpoint.folder)
    if config.get("model_file") == MODEL_FILE:
        wanted = {**checkpoint.config, "model_file": MODEL_FILE}
        checkpoint = replace(checkpoint, config=wanted)
    check_counts(checkpoint.config, checkpoint.state)
    port = load_port(checkpoint.config)
    _require_same_settings(port, config, folder)
    source = SafetensorsSource(files)
    outputs = recover_outputs(checkpoint, port, config, source.tensors)
    source.close()
    gate = Gate(
        checkpoint,
        port,
        outputs,
        memory_limit=parse_size(memory_limit, "--memory-limit"),
        max_context=max_context,
        trust_remote_code=trust_remote_code,
        progress=progress,
        converting=False,
        precision=_precision(folder, config, port),
        published=_chosen_on_data(folder),
    )
    gate.prove_port()
    report = gate.prove_result(folder, files)
    with progress.stage("Comparing the tokenizer"):
        tokenizer = check_tokenizer(checkpoint.tokenizer_source, folder, trust_remote_code)
    return report, tokenizer.to_dict()


def _chosen_on_data(folder: Path) -> dict[str, str] | None:
    """Hashes of the weight files if torch2mlx calibrated their values; else None."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    audited = manifest.verification.get("audit")
    counts = audited.get("counts") if isinstance(audited, dict) else None
    proven = isinstance(counts, dict) and counts.get("calibrated")
    if not proven and not manifest.options.get("calibrate"):
        return None
    return {name: record.sha256 or "" for name, record in manifest.outputs.items()}


def _precision(folder: Path, config: dict[str, Any], port: Port) -> dict[str, str]:
    """The types that modules of the folder compute in."""
    written = config.get(CONFIG_KEY) or {}
    try:
        if not isinstance(written, dict):
            raise OptionError(f"expected an object, found {str(written)[:40]!a}")
        policy = parse_precision("", {str(k): str(v) for k, v in written.items()})
        check_patterns(policy, port.module_paths)
    except OptionError as error:
        raise PlanError(f"{folder}/config.json: {CONFIG_KEY}: {error}") from error
    return policy


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; name an MLX folder")
    return read_json_object(folder / "config.json")


def _read_text(path: Path) -> str:
    try:
        return read_small(path).decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: cannot be read ({error}); convert the source again") from error


def _weight_files(folder: Path) -> list[Path]:
    """The files that mlx-lm loads; all that an index or their own numbers speak of are there."""
    files = sorted(folder.glob("model*.safetensors"))
    present = {path.name for path in files}
    expected = _indexed(folder)
    if present and not present & expected:  # the index of other files, which mlx-lm does not read
        expected = set()
    for shard in filter(None, map(_SHARD.fullmatch, present)):
        total, width = int(shard["total"]), len(shard["total"])
        if total <= _MOST_SHARDS:
            expected.update(
                f"{shard['stem']}-{part:0{width}d}-of-{shard['total']}.safetensors"
                for part in range(1, total + 1)
            )
    missing = sorted(expected - present)
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise SourceError(
            f"{folder}: {len(missing)} of {len(expected)} weight files are missing: "
            f"{', '.join(missing[:8])}{more}; copy them here, or convert the source again"
        )
    if not files:
        raise SourceError(f"{folder}: no model*.safetensors, so this is no MLX model folder")
    return files


def _indexed(folder: Path) -> set[str]:
    """Files that model.safetensors.index.json lists; none where there is no such file."""
    path = folder / "model.safetensors.index.json"
    listed = read_json_object(path).get("weight_map") if path.exists() else None
    return {str(name) for name in listed.values()} if isinstance(listed, dict) else set()


def _require_same_settings(port: Port, config: dict[str, Any], folder: Path) -> None:
    """The port must see in the folder's config.json what it should see for the source.

    mlx-lm takes config.json as it is, so a key in a style that the port does not read (such as
    `rope_parameters`) reaches it as a default: the weights are right and the model is wrong.
    """
    if port.model_file:
        if port.is_source(_read_text(folder / MODEL_FILE), config.get(CONFIG_KEY)):
            return
        raise ParityError(
            f"{folder / MODEL_FILE}: not the model that is generated for the source's config.json; "
            "convert the source again"
        )
    found = plain_port(config)
    if found.module != port.module:
        raise ParityError(
            f"{folder}/config.json loads {found.module}, but the source is a model of {port.module}"
        )
    differing = list(differences(port.args, found.args))
    if differing:
        raise ParityError(
            f"{folder}/config.json reaches the port with other settings than the source:\n  "
            + "\n  ".join(differing)
            + "\nConvert the source again; the weights alone do not make the model."
        )


_INERT = frozenset({"model_type", "quantization"})  # settings that no port computes with


def differences(expected: Any, found: Any) -> Iterator[str]:
    """Settings of a port's arguments that differ from the expected ones, as "name: ..." texts."""
    theirs = vars(found)
    for key, value in vars(expected).items():
        if key not in _INERT and _plain(theirs.get(key)) != _plain(value):
            yield f"{key}: should be {value!r}, is {theirs.get(key)!r}"


def _plain(value: Any) -> Any:
    """Nested settings as dicts, without what their config leaves at its default anyway."""
    return {k: _plain(v) for k, v in vars(value).items()} if is_dataclass(value) else value
