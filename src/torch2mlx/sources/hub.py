"""Hub ids: small files as a local snapshot, weights where they are.

What lies in the local cache already is used from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import SourceError
from torch2mlx.sources.companions import CARD, check_companion, is_companion, read_config
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.remote.files import RemoteFile, is_network_error, reason_of
from torch2mlx.sources.remote.snapshot import FetchedFiles, Snapshot, remote_weights
from torch2mlx.sources.remote.urls import HUB
from torch2mlx.sources.weight_files import WeightFiles, choose_file, choose_weights, kind_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["HubLocation", "open_snapshot", "parse_hub_location"]

_SMALL = ("config.json", CARD, ".gitattributes")  # one of them shows where the cache has the commit

AcceptConfig = Callable[[dict[str, Any]], None]

_ID = re.compile(r"(?P<repo>[\w][\w.\-]*(/[\w][\w.\-]*)?)")
_FILE = re.compile(r"(?P<repo>[\w][\w.\-]*/[\w][\w.\-]*)/(?P<file>[\w][\w.\-]*)")


class HubLocation:
    """A repository, and one of its weight files where the user named it."""

    def __init__(self, repo: str, file: str | None = None) -> None:
        self.repo = repo
        self.file = file


def parse_hub_location(location: str) -> HubLocation | None:
    """What "owner/name" or "owner/name/file.gguf" names, with hf:// or without; else None."""
    location = location.removeprefix(HUB)
    match = _FILE.fullmatch(location)
    if match and kind_of(match["file"]):
        return HubLocation(match["repo"], match["file"])
    if _ID.fullmatch(location) and not kind_of(location) and ".." not in location:
        return HubLocation(location)
    return None


def open_snapshot(
    location: HubLocation,
    revision: str | None = None,
    trust_remote_code: bool = False,
    accept_config: AcceptConfig | None = None,
    keep_download: bool = False,
) -> Snapshot:
    """A repository at one commit: config first, then the names of one set of weights.

    huggingface_hub keeps the cache.  Without a network the cached snapshot is used as it is.

    Args:
        location: the repository.
        revision: branch, tag or commit; None for the main branch.
        trust_remote_code: also take Python files.
        accept_config: called with the config before anything else is read; may raise to refuse.
        keep_download: download the weights into the cache.

    Raises:
        SourceError: not found, gated, no network and nothing cached, or no checkpoint.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi()
    where = f"hub model {location.repo}"
    try:
        return _find(api, location, revision, trust_remote_code, accept_config, keep_download)
    except GatedRepoError:
        raise SourceError(
            f"{where}: access is gated; accept its conditions on the model's page, then log in "
            "with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"{where}: no such file or folder here, and no such model on the hub (or it is "
            "private: log in with `hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise SourceError(f"{where}: has no revision {revision!r}") from None
    except HFValidationError:
        raise SourceError(
            f"{location.repo}: no such file or folder, and not a hub id (owner/name) either"
        ) from None
    except Exception as error:
        if not is_network_error(error):
            raise
        return Snapshot(_cached(api, location, revision, error))


def _cached(api: HfApi, location: HubLocation, revision: str | None, reason: Exception) -> Path:
    """The snapshot in the cache, where the hub cannot be reached."""
    try:
        found = api.snapshot_download(location.repo, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        raise SourceError(
            f"hub model {location.repo}: no such file or folder here, the hub cannot be reached "
            f"({reason_of(reason)}), and the model is not in the local cache; connect, or give a "
            "local folder"
        ) from reason
    return Path(found)


def _find(
    api: HfApi,
    location: HubLocation,
    revision: str | None,
    trust_remote_code: bool,
    accept_config: AcceptConfig | None,
    keep_download: bool,
) -> Snapshot:
    repo = location.repo
    info = api.model_info(repo, revision=revision, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = list(siblings)
    commit = info.sha or revision

    def local(name: str) -> Path:
        return Path(api.hf_hub_download(repo, name, revision=commit))

    if "config.json" in names:
        config = read_config(local("config.json").parent)
        if accept_config is not None:
            accept_config(config)
    where = f"hub model {repo}"
    chosen = _choose(where, location, names, lambda name: read_json_object(local(name)))
    if "config.json" not in names and chosen.kind != "gguf":
        raise SourceError(
            f"{where}: has no config.json, which says what model the weights belong to; no "
            "weights were downloaded"
        )
    absent = [name for name in chosen.files if not _is_cached(api, repo, name, commit)]
    missing = [name for name in absent if name not in siblings]
    if missing:
        raise SourceError(
            f"{where}: {len(missing)} of {len(chosen.files)} weight files of its index are "
            f"missing: {', '.join(missing[:8])}"
        )
    small = next((name for name in _SMALL if name in names), None)
    # The hub's file system takes no ids without an owner.
    if keep_download or not absent or small is None or "/" not in repo:
        wanted = [_literal(name) for name in _wanted(names, chosen, trust_remote_code)]
        return Snapshot(Path(api.snapshot_download(repo, revision=commit, allow_patterns=wanted)))
    folder = local(small).parent
    for name in names:  # what PyTorch may run, and what says where a text ends
        if name == "generation_config.json" or (trust_remote_code and _is_code(name)):
            local(name)
    files = {name: _remote_file(repo, commit, siblings[name]) for name in absent}
    weights = remote_weights(folder, files)

    def fetch(name: str) -> Path:
        path = local(name)
        check_companion(folder, path)
        return path

    companions = [n for n in names if is_companion(n, trust_remote_code)]
    found = FetchedFiles(companions, fetch, lambda name: siblings[name].size or 0)
    return Snapshot(folder, weights, found, partial(fetch, CARD) if CARD in names else None)


def _choose(
    where: str,
    location: HubLocation,
    names: list[str],
    read_json: Callable[[str], dict[str, Any]],
) -> WeightFiles:
    flat = [name for name in names if "/" not in name]
    if location.file is None:
        return choose_weights(where, flat, read_json)
    if location.file in flat:
        return choose_file(where, location.file, flat, read_json)
    raise SourceError(f"{where}: has no file {location.file}")


def _is_code(name: str) -> bool:
    return name.endswith(".py") and "/" not in name


def _is_cached(api: HfApi, repo: str, name: str, commit: str | None) -> bool:
    try:
        api.hf_hub_download(repo, name, revision=commit, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def _remote_file(repo: str, commit: str | None, sibling: Any) -> RemoteFile:
    """A weight file of a commit, whose content and size are known from the hub's listing."""
    from huggingface_hub import HfFileSystem

    name = sibling.rfilename
    version = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    return RemoteFile(
        HfFileSystem(),
        f"{repo}@{commit}/{name}",
        f"{HUB}{repo}/{name}",
        sibling.size,
        str(version),
        {"size": sibling.size, "cache_type": "none"},
        pinned=True,
    )


def _wanted(names: list[str], chosen: WeightFiles, trust_remote_code: bool) -> list[str]:
    weights = {*chosen.files, chosen.index, "config.json"}
    return [name for name in names if name in weights or is_companion(name, trust_remote_code)]


def _literal(name: str) -> str:
    """A file name as a glob pattern that matches it alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
