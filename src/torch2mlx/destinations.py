"""Where the result of a conversion goes: a folder here, or a URL, by way of a folder here."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.checkpoint_route import CheckpointConversion, Conversion
from torch2mlx.errors import DestinationError, OptionError
from torch2mlx.options import ConvertOptions
from torch2mlx.progress import Progress
from torch2mlx.routing import open_convertible

if TYPE_CHECKING:
    import torch

    from torch2mlx.compiler.route import Compiled, Example
    from torch2mlx.selection.plan_file import PlannedConversion

__all__ = ["convert_and_upload", "convert_here"]


def convert_here(
    source: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    destination: str | Path,
    asked: ConvertOptions,
    examples: Example,
    listener: Progress,
    order: PlannedConversion | None = None,
) -> Conversion | Compiled:
    """Take the route of the source to a folder of this machine.

    Args:
        source: what `torch2mlx.convert` takes.
        destination: folder to create.
        asked: the options.
        examples: what a module is called with.
        listener: of the progress.
        order: the plan that is carried out, where there is one.

    Raises:
        Torch2MLXError: as `torch2mlx.convert`.
    """
    from torch2mlx.compiler.hub import compiled_snapshot
    from torch2mlx.compiler.route import convert_program, is_program
    from torch2mlx.packaging.staging import check_destination
    from torch2mlx.sources.remote.urls import shown

    check_destination(destination)
    snapshot = compiled_snapshot(source, asked.revision)
    if snapshot is not None:
        source, asked = snapshot, replace(asked, revision=None, keep_download=False)
    if is_program(source, examples):
        compiled = convert_program(source, destination, asked, examples, listener)
        for note in compiled.notes:
            listener.note(note)
        return compiled
    name = shown(str(source))
    if examples.given:
        raise OptionError(
            f"{name}: a checkpoint takes no example; to compile a module, name what builds it: "
            "package.module:factory"
        )
    if asked.weights is not None:
        raise OptionError(f"{name}: is a checkpoint itself; --weights belongs to a module")
    assert isinstance(source, str | Path)
    checkpoint = open_convertible(
        source,
        asked.revision,
        asked.trust_remote_code,
        asked.keep_download,
        asked.adapter,
        asked.expert_layout,
        asked.text_only,
    )
    with closing(checkpoint.source):
        for one in (asked, *asked.further().values()):
            one.check_source(checkpoint.kind, checkpoint.location)
        if order is not None:
            order.check_source(checkpoint)
        return CheckpointConversion(checkpoint, Path(destination), asked, listener, order).run()


def convert_and_upload(
    source: Any,
    destination: str,
    asked: ConvertOptions,
    examples: Example,
    listener: Progress,
    order: PlannedConversion | None = None,
) -> Conversion | Compiled:
    """Make the folder here, as always; upload it once it is verified, then remove it."""
    from torch2mlx.conversion.team import find_team
    from torch2mlx.packaging.remote import RemoteDestination

    if asked.also:
        raise OptionError("--also: a remote DST takes one output; run the command once for each")
    remote = RemoteDestination(destination)
    finished = remote.local.exists()
    if find_team().leads:
        remote.require_new(begun=finished)
    result = (
        _made_before(remote.local, source, asked)
        if finished
        else convert_here(source, remote.local, asked, examples, listener, order)
    )
    if find_team().leads:
        total = sum(path.stat().st_size for path in remote.local.rglob("*"))
        with listener.stage("Uploading", total) as advance:
            remote.upload(remote.local, advance)
        shutil.rmtree(remote.local)
    return replace(result, destination=remote.url)


def _made_before(folder: Path, source: Any, asked: ConvertOptions) -> Conversion:
    """The folder of a run that was stopped while it uploaded, if it is what is asked for."""
    from torch2mlx.packaging.manifest import read_manifest
    from torch2mlx.sources.remote.urls import HUB, shown

    manifest = read_manifest(folder)
    location = shown(str(source)).removeprefix(HUB)
    options = json.loads(json.dumps(asked.to_dict(), default=str))
    if manifest.source.location != location or dict(manifest.options) != options:
        raise DestinationError(
            f"{folder}: waits to be uploaded there since an earlier run, but comes from another "
            "source or other options; remove it"
        )
    return Conversion(folder, manifest)
