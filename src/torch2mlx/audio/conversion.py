"""Kokoro's release as the folder that mlx-audio loads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch2mlx.audio.kokoro import Kokoro, open_kokoro
from torch2mlx.audio.libraries import (
    check_tensors,
    load_original,
    load_port,
    read_voice,
    require_libraries,
)
from torch2mlx.audio.parity import Comparison, compare
from torch2mlx.compiler.verification import ProgramVerification, check_written, require_same
from torch2mlx.compiler.weights import plan_weights
from torch2mlx.conversion.identity import SourceState, plan_identity
from torch2mlx.options import ConvertOptions
from torch2mlx.packaging.files import output_records, source_record
from torch2mlx.packaging.index import write_index
from torch2mlx.packaging.manifest import (
    Manifest,
    SourceRecord,
    library_versions,
    plan_record,
    weight_record,
)
from torch2mlx.packaging.staging import Staging, check_destination
from torch2mlx.packaging.tokenizer import copy_tokenizer_files
from torch2mlx.packaging.weights import write_weights
from torch2mlx.planning.plan import Plan
from torch2mlx.planning.shards import parse_size
from torch2mlx.progress import Progress
from torch2mlx.verification.audit import audit

__all__ = ["ConvertedKokoro", "convert_kokoro", "plan_kokoro", "verify_kokoro"]

_PORT = "mlx_audio.tts.models.kokoro"


@dataclass(frozen=True)
class ConvertedKokoro:
    """A published folder.

    Attributes:
        folder: for `mlx_audio.tts.load`.
        manifest: what its torch2mlx.json says.
        comparison: with PyTorch; None: nothing was compared.
        notes: what a user should know.
    """

    folder: Path
    manifest: Manifest
    comparison: Comparison | None
    notes: tuple[str, ...]


def convert_kokoro(
    path: Path, destination: str | Path, options: ConvertOptions, progress: Progress
) -> ConvertedKokoro:
    """Write the folder, load it with mlx-audio, compare every tensor and what both compute.

    Args:
        path: of the release, or of its .pth file.
        destination: folder to create.
        options: of shards, memory and verification.
        progress: listener.

    Raises:
        SourceError, PlanError: see `open_kokoro`.
        UnsupportedError: mlx-audio or kokoro is missing, or does not take the release.
        ParityError: a tensor or a stage differs; nothing is published.
    """
    check_destination(destination)
    require_libraries(options.verify)
    kokoro = open_kokoro(path)
    try:
        return _convert(kokoro, destination, options, progress)
    finally:
        kokoro.source.close()


def plan_kokoro(path: Path, options: ConvertOptions) -> Plan:
    """Every tensor that would be written; errors as of `open_kokoro`."""
    kokoro = open_kokoro(path)
    kokoro.source.close()
    return _plan(kokoro, options)


def _plan(kokoro: Kokoro, options: ConvertOptions) -> Plan:
    return plan_weights(kokoro.state, max_shard_size=parse_size(options.max_shard_size))


def verify_kokoro(
    path: Path, folder: Path, options: ConvertOptions, progress: Progress
) -> ProgramVerification:
    """Hold a folder against its release: files, every tensor, and stages of both models.

    Raises:
        SourceError, PlanError, UnsupportedError: as `convert_kokoro`.
        ParityError: something differs.
    """
    require_libraries(verify=True)
    kokoro = open_kokoro(path)
    try:
        with TemporaryDirectory() as scratch:
            _write_others(kokoro, Path(scratch))
            files = [p for p in Path(scratch).rglob("*") if p.is_file()]
            made = {p.relative_to(scratch).as_posix(): p.read_bytes() for p in files}
        require_same(folder, made, {})
        tensors = check_written(folder, _plan(kokoro, options), kokoro.source)
        port = load_port(folder)
        check_tensors(kokoro, port)
        with progress.stage("Comparing with PyTorch"):
            compared = compare(kokoro, load_original(kokoro), port)
    finally:
        kokoro.source.close()
    return ProgramVerification(
        folder,
        tensors,
        tuple(dict.fromkeys(r.case for r in compared.records)),
        compared.worst,
        max(r.limit for r in compared.records),
        notes=compared.deviations,
    )


def _convert(
    kokoro: Kokoro, destination: str | Path, options: ConvertOptions, progress: Progress
) -> ConvertedKokoro:
    plan = _plan(kokoro, options)
    read = [kokoro.file, kokoro.folder / "config.json", *kokoro.voices.values()]
    source = SourceState.take([*read, *kokoro.documents.values()])
    identity = plan_identity(
        plan, source.to_dict(kokoro.folder), options.to_dict(), library_versions()
    )
    with Staging(
        destination, identity=identity, restart=options.restart, wait=options.wait
    ) as staging:
        staging.require_room(plan.nbytes)
        folder = staging.folder
        files = write_weights(
            plan,
            kokoro.source,
            staging,
            memory_limit=parse_size(options.memory_limit),
            progress=progress,
            check=source.check,
        )
        summary = write_index(folder, {})
        _write_others(kokoro, folder)
        proof = audit(plan.outputs, files, kokoro.source)
        proof.require()
        port = load_port(folder)
        check_tensors(kokoro, port)
        comparison = None
        verification: dict[str, Any] = {"skipped": True}
        if options.verify:
            with progress.stage("Comparing with PyTorch"):
                comparison = compare(kokoro, load_original(kokoro), port)
            verification = {
                "passed": True,
                "libraries": {name: version(name) for name in ("mlx-audio", "kokoro")},
                "cases": list(dict.fromkeys(r.case for r in comparison.records)),
                "stages": {f"{r.case}: {r.name}": r.relative for r in comparison.records},
                "error": comparison.worst,
                "limit": max(r.limit for r in comparison.records),
                "audit": proof.to_dict(),
            }
        notes = comparison.deviations if comparison is not None else ()
        (folder / "README.md").write_text(_readme(kokoro, comparison), encoding="utf-8")
        record = plan_record(_with_dropped(plan, kokoro), _PORT, notes)
        manifest = Manifest(
            source=SourceRecord(
                location=str(kokoro.folder),
                kind="torch",
                files={p.relative_to(kokoro.folder).as_posix(): source_record(p) for p in read},
            ),
            options=options.to_dict(),
            plan=record,
            weights=weight_record(summary),
            outputs=output_records(folder, staging.records()),
            verification=verification,
        )
        manifest.write(folder)
        source.check(thorough=True)
        return ConvertedKokoro(staging.publish(), manifest, comparison, notes)


def _with_dropped(plan: Plan, kokoro: Kokoro) -> Plan:
    return replace(plan, dropped=dict(kokoro.dropped))


def _write_others(kokoro: Kokoro, folder: Path) -> None:
    """Voices, config.json with the name by which mlx-audio finds its port, and documents."""
    from safetensors.torch import save_file

    (folder / "voices").mkdir(exist_ok=True)
    for name, file in kokoro.voices.items():
        save_file({"voice": read_voice(file)}, folder / "voices" / f"{name}.safetensors")
    config: dict[str, Any] = {**kokoro.config, "model_type": "kokoro"}
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    copy_tokenizer_files(kokoro.documents, folder)


def _readme(kokoro: Kokoro, comparison: Comparison | None) -> str:
    voice = next(iter(kokoro.voices))
    if comparison is None:
        proof = "Not compared with PyTorch (`--no-verify`)."
    else:
        rows = "\n".join(
            f"| {r.case} | {r.name} | {r.relative:.1e} | {r.limit:.0e} |"
            for r in comparison.records
        )
        proof = (
            "Stage by stage, without noise, with what is named below mended, `source`, `spectrum` "
            "and `sound` each\nfrom PyTorch's input (`sound` from its harmonic spectrum):\n\n"
            f"| text | stage | relative L2 error | limit |\n|---|---|---|---|\n{rows}\n"
        )
        if comparison.deviations:
            proof += "\n" + "\n".join(f"- {text}." for text in comparison.deviations) + "\n"
    return f"""# Kokoro for mlx-audio

```python
from pathlib import Path

from mlx_audio.tts import load

model = load(Path("."))
for part in model.generate("Hello.", voice="{voice}"):
    part.audio
```

Every tensor, as mlx-audio holds it, equals the release's. {proof}
"""
