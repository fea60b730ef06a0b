"""Which files of a folder are the model's weights: one set, or an error that says how to choose.

The choice looks at names and at index files alone, so the same rules serve a local folder and
the file list of a hub repository.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch2mlx.errors import SourceError

__all__ = ["WeightFiles", "choose_file", "choose_weights", "kind_of"]

ReadJson = Callable[[str], dict[str, Any]]

_KINDS = {
    ".safetensors": "safetensors",
    ".bin": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".ckpt": "torch",
    ".gguf": "gguf",
}
_PREFERENCE = ("safetensors", "torch", "gguf")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5,})-of-(?P<total>\d{5,})(?P<suffix>\.\w+)")
_INDEX = re.compile(r".+(?P<suffix>\.(safetensors|bin|pt|pth))\.index\.json")
# torch files that training scripts leave beside the weights.
_TRAINING = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|.*optim_states)\b.*"
)
_ADAPTER = re.compile(r"adapter(_model|s)?\b.*")
_PROJECTOR = re.compile(r"mmproj.*|.*[-_.]mmproj[-_.].*")
_FOREIGN = (".h5", ".msgpack", ".onnx", ".tflite", ".npz", ".pt2", ".ot", ".nemo")
# What libraries call the weights when nobody gives a name.
_USUAL = ("model", "pytorch_model", "diffusion_pytorch_model")
_LISTED = 8  # names a message lists before it counts the rest


@dataclass(frozen=True)
class WeightFiles:
    """One set of weights.

    Attributes:
        kind: "safetensors", "torch" or "gguf".
        files: names relative to the folder, with forward slashes, in order.
        weight_map: file of each tensor, where the set has an index.
        index: name of that index.
        notes: what was left out, and why.
    """

    kind: str
    files: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None
    index: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """What the names of the set have in common."""
        return _stem(self.index.removesuffix(".index.json") if self.index else self.files[0])

    def __str__(self) -> str:
        if self.index:
            return f"{self.index} ({len(self.files)} files)"
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} … {self.files[-1]}"


def kind_of(name: str) -> str | None:
    """The kind of weights a file name promises: "safetensors", "torch", "gguf" or None."""
    return _KINDS.get(PurePosixPath(name).suffix.lower())


def choose_weights(where: str, names: Iterable[str], read_json: ReadJson) -> WeightFiles:
    """The one set of weights among the file names of a folder.

    Args:
        where: the folder or repository, for messages.
        names: its files, subfolders left out.
        read_json: returns the object that a named JSON file holds.

    Raises:
        SourceError: no weights, several different sets, missing shards, a broken index.
    """
    names = sorted(name for name in names if not name.startswith("."))
    by_kind: dict[str, list[str]] = {kind: [] for kind in _PREFERENCE}
    notes = []
    for name in names:
        kind = kind_of(name)
        if kind is None or (kind == "torch" and _TRAINING.fullmatch(name)):
            continue
        if _ADAPTER.fullmatch(name):
            notes.append(f"left out {name}: an adapter, not a model")
        elif kind == "gguf" and _PROJECTOR.fullmatch(name.lower()):
            notes.append(f"left out {name}: a vision projector")
        else:
            by_kind[kind].append(name)
    indexes = {name: _KINDS[m["suffix"]] for name in names if (m := _INDEX.fullmatch(name))}
    present = [kind for kind in _PREFERENCE if by_kind[kind]] or [
        kind for kind in _PREFERENCE if kind in indexes.values()
    ]
    if not present:
        raise _no_weights(where, names)
    kind = present[0]
    own = [index for index, of in indexes.items() if of == kind]
    sets = _weight_sets(where, kind, by_kind[kind], own, read_json)
    chosen, set_notes = _only_set(where, sets)
    notes += set_notes
    for other in present[1:]:
        listed = _listing(by_kind[other])
        notes.append(f"{kind} weights are used; the {other} weights are left out ({listed})")
    return replace(chosen, notes=(*chosen.notes, *notes))


def choose_file(where: str, file: str, names: Iterable[str], read_json: ReadJson) -> WeightFiles:
    """The set of weights that a file given by name belongs to: its shards, or the file alone.

    Args:
        where: its folder, for messages.
        file: the name of a weight file or of an index.
        names: all files of the folder.
        read_json: returns the object that a named JSON file holds.

    Raises:
        SourceError: the file is no weight file, shards are missing, or the index is broken.
    """
    names = sorted(names)
    match = _INDEX.fullmatch(file)
    if match:
        return _indexed_set(where, _KINDS[match["suffix"]], file, names, read_json)
    kind = kind_of(file)
    if kind is None:
        raise SourceError(
            f"{where}/{file}: not a weight file; expected .safetensors, .bin, .pt, .pth, .ckpt, "
            ".gguf or a folder with such files"
        )
    if _ADAPTER.fullmatch(file):
        raise _only_adapter(f"{where}/{file}")
    for index in names:
        own = _INDEX.fullmatch(index)
        if own and _KINDS[own["suffix"]] == kind:
            weight_map = read_json(index).get("weight_map")
            if isinstance(weight_map, dict) and file in weight_map.values():
                return _indexed_set(where, kind, index, names, read_json)
    shard = _SHARD.fullmatch(file)
    if shard is None:
        return WeightFiles(kind, (file,))
    siblings = [n for n in names if _shard_key(n) == _shard_key(file)]
    return _numbered_set(where, kind, siblings)


def _stem(name: str) -> str:
    """The name without suffix and shard number."""
    shard = _SHARD.fullmatch(name)
    return shard["stem"] if shard else name.removesuffix(PurePosixPath(name).suffix)


def _shard_key(name: str) -> tuple[str, str, str]:
    shard = _SHARD.fullmatch(name)
    return (shard["stem"], shard["total"], shard["suffix"]) if shard else (name, "", "")


def _weight_sets(
    where: str, kind: str, files: Sequence[str], indexes: Sequence[str], read_json: ReadJson
) -> list[WeightFiles]:
    """Every set of one kind, those with an index first."""
    sets = []
    rest = dict.fromkeys(files)
    for index in indexes:
        found = _indexed_set(where, kind, index, files, read_json)
        sets.append(found)
        for name in found.files:
            rest.pop(name, None)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in rest:
        groups.setdefault(_shard_key(name), []).append(name)
    indexed = [s.stem for s in sets]
    for key, group in groups.items():
        stale = key[1] and key[0] in indexed
        # Shards that an index of the same stem does not list need not be complete to be in the way.
        sets.append(
            WeightFiles(kind, tuple(group))
            if stale or not key[1]
            else _numbered_set(where, kind, group)
        )
    return sets


def _only_set(where: str, sets: Sequence[WeightFiles]) -> tuple[WeightFiles, list[str]]:
    """The set to use and notes on the ones left out; an error where two could be meant."""
    if len(sets) == 1:
        return sets[0], []
    usual = [s for s in sets if s.stem in _USUAL]
    first = next((s for s in sets if s.index), None) or (usual[0] if usual else None)
    if first is None:
        merged = [s for s in sets if not s.stem.startswith("consolidated")]
        first = merged[0] if len(merged) == 1 else None
    rivals = [s for s in sets if s is not first and (first is None or _rivals(first, s))]
    if first is None or rivals:
        listed = "; ".join(str(s) for s in (sets if first is None else [first, *rivals]))
        raise SourceError(
            f"{where}: several sets of {sets[0].kind} weights, only one can be meant: {listed}. "
            "Give one of their files instead of the folder, or remove the others"
        )
    return first, [f"left out {s}: not part of {first}" for s in sets if s is not first]


def _rivals(first: WeightFiles, other: WeightFiles) -> bool:
    """True where `other` looks like the same model once more, not like something beside it."""
    if other.index is not None or other.stem in _USUAL:
        return True
    return other.stem.split(".")[0] == first.stem.split(".")[0]


def _numbered_set(where: str, kind: str, files: Sequence[str]) -> WeightFiles:
    """Shards that number themselves; all of them must be there."""
    shard = _SHARD.fullmatch(files[0])
    assert shard is not None
    stem, total, suffix = shard["stem"], shard["total"], shard["suffix"]
    expected = [
        f"{stem}-{part:0{len(total)}d}-of-{total}{suffix}" for part in range(1, int(total) + 1)
    ]
    _require(where, [n for n in expected if n not in files], len(expected))
    return WeightFiles(kind, tuple(expected))


def _indexed_set(
    where: str, kind: str, index: str, names: Sequence[str], read_json: ReadJson
) -> WeightFiles:
    """The files that an index lists, once it is well formed and they are there."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(
            f"{where}/{index}: expected an object 'weight_map' of tensor names and files; "
            "download the file again"
        )
    first: dict[Any, str] = {}  # file → a tensor that the index places in it
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file:
            raise SourceError(
                f"{where}/{index}: tensor {name!r}: expected a file name, found {file!r}"
            )
        first.setdefault(file, name)
    for file, name in first.items():
        path = PurePosixPath(file.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise SourceError(
                f"{where}/{index}: tensor {name!r} is placed in {file!r}, which is outside of the "
                "folder; do not trust this checkpoint, or correct the index"
            )
        if kind_of(file) != kind:
            raise SourceError(
                f"{where}/{index}: tensor {name!r} is placed in {file!r}, which is no {kind} file"
            )
    files = sorted(first)
    # Files in subfolders are not among `names`; opening them finds out.
    _require(where, [f for f in files if "/" not in f and f not in names], len(files))
    return WeightFiles(kind, tuple(files), weight_map, index)


def _require(where: str, missing: Sequence[str], total: int) -> None:
    if missing:
        raise SourceError(
            f"{where}: {len(missing)} of {total} weight files are missing: {_listing(missing)}; "
            "download them"
        )


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _only_adapter(where: str) -> SourceError:
    return SourceError(
        f"{where}: this is an adapter (LoRA or similar), not a model; merge it into its base model "
        "first (peft: merge_and_unload, then save_pretrained) and give that folder"
    )


def _no_weights(where: str, names: Sequence[str]) -> SourceError:
    """Why a folder without weights is not a checkpoint."""
    if not names:
        found = [p for depth in ("*", "*/*") for p in Path(where).glob(f"{depth}/config.json")]
        inner = sorted(str(path.parent) for path in found)
        if inner:
            return SourceError(f"{where}: holds only folders; give one of {_listing(inner)}")
        return SourceError(f"{where}: the folder is empty; expected a checkpoint")
    if any(_ADAPTER.fullmatch(name) for name in names):
        return _only_adapter(where)
    if "model_index.json" in names:
        return SourceError(
            f"{where}: a pipeline of several models (model_index.json), which is taken as a local "
            "folder only"
        )
    foreign = [name for name in names if PurePosixPath(name).suffix.lower() in _FOREIGN]
    if foreign:
        return SourceError(
            f"{where}: no PyTorch weights; {_listing(foreign)} cannot be read. Expected "
            ".safetensors, .bin, .pt, .pth, .ckpt or .gguf"
        )
    return SourceError(
        f"{where}: not a checkpoint: no .safetensors, .bin, .pt, .pth, .ckpt or .gguf file in it "
        f"(found {_listing(names)})"
    )
