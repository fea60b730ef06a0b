"""Hub ids: what a conversion needs, and nothing else, as a local snapshot."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.errors import SourceError
from torch2mlx.sources.companions import is_companion, read_config
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.weight_files import WeightFiles, choose_file, choose_weights, kind_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["HubLocation", "download", "is_network_error", "parse_hub_location"]

AcceptConfig = Callable[[dict[str, Any]], None]

_ID = re.compile(r"(?P<repo>[\w][\w.\-]*(/[\w][\w.\-]*)?)")
_FILE = re.compile(r"(?P<repo>[\w][\w.\-]*/[\w][\w.\-]*)/(?P<file>[\w][\w.\-]*)")


class HubLocation:
    """A repository, and one of its weight files where the user named it."""

    def __init__(self, repo: str, file: str | None = None) -> None:
        self.repo = repo
        self.file = file


def parse_hub_location(location: str) -> HubLocation | None:
    """What "owner/name" or "owner/name/file.gguf" names; None for anything else."""
    match = _FILE.fullmatch(location)
    if match and kind_of(match["file"]):
        return HubLocation(match["repo"], match["file"])
    if _ID.fullmatch(location) and not kind_of(location) and ".." not in location:
        return HubLocation(location)
    return None


def download(
    location: HubLocation,
    revision: str | None = None,
    trust_remote_code: bool = False,
    accept_config: AcceptConfig | None = None,
) -> Path:
    """The local snapshot of a hub id: config first, then one set of weights and its companions.

    huggingface_hub shows the progress, keeps the cache and resumes.  Without a network the cached
    snapshot is used as it is.

    Args:
        location: the repository.
        revision: branch, tag or commit; None for the main branch.
        trust_remote_code: also take Python files.
        accept_config: called with the config before weights are downloaded; may raise to refuse.

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
        return _fetch(api, location, revision, trust_remote_code, accept_config)
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
        return _cached(api, location, revision, error)


def is_network_error(error: Exception) -> bool:
    """True where the hub could not be asked.

    The HTTP library under huggingface_hub changes with its version, so its errors are known by
    the name of their module.
    """
    return isinstance(error, OSError) or type(error).__module__.startswith("httpx")


def _cached(api: HfApi, location: HubLocation, revision: str | None, reason: Exception) -> Path:
    """The snapshot in the cache, where the hub cannot be reached."""
    try:
        found = api.snapshot_download(location.repo, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        short = (str(reason).splitlines() or [""])[0] or type(reason).__name__
        raise SourceError(
            f"hub model {location.repo}: no such file or folder here, the hub cannot be reached "
            f"({short}), and the model is not in the local cache; connect, or give a local folder"
        ) from reason
    return Path(found)


def _fetch(
    api: HfApi,
    location: HubLocation,
    revision: str | None,
    trust_remote_code: bool,
    accept_config: AcceptConfig | None,
) -> Path:
    info = api.model_info(location.repo, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    commit = info.sha or revision

    def local(name: str) -> Path:
        return Path(api.hf_hub_download(location.repo, name, revision=commit))

    if "config.json" in names:
        config = read_config(local("config.json").parent)
        if accept_config is not None:
            accept_config(config)
    where = f"hub model {location.repo}"
    flat = [name for name in names if "/" not in name]

    def read_json(name: str) -> dict[str, Any]:
        return read_json_object(local(name))

    if location.file is None:
        chosen = choose_weights(where, flat, read_json)
    elif location.file in flat:
        chosen = choose_file(where, location.file, flat, read_json)
    else:
        raise SourceError(f"{where}: has no file {location.file}")
    if "config.json" not in names and chosen.kind != "gguf":
        raise SourceError(
            f"{where}: has no config.json, which says what model the weights belong to; no "
            "weights were downloaded"
        )
    wanted = _wanted(names, chosen, trust_remote_code)
    return Path(
        api.snapshot_download(
            location.repo, revision=commit, allow_patterns=[_literal(name) for name in wanted]
        )
    )


def _wanted(names: list[str], chosen: WeightFiles, trust_remote_code: bool) -> list[str]:
    weights = {*chosen.files, chosen.index, "config.json"}
    return [name for name in names if name in weights or is_companion(name, trust_remote_code)]


def _literal(name: str) -> str:
    """A file name as a glob pattern that matches it alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
