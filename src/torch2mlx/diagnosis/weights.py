"""Checks of the weight files: complete, of one model, as config.json says, and finite."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from torch2mlx.diagnosis.finding import Finding, Patient
from torch2mlx.packaging.files import changed_files

__all__ = ["CHECKS"]

_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5,})-of-(?P<total>\d{5,})\.safetensors")
_CHUNK = 4 << 20  # elements looked at together
_LISTED = 4


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _shards(patient: Patient) -> Iterator[Finding]:
    present = {path.name for path in patient.files}
    sets: dict[str, set[str]] = {}
    for name in present:
        match = _SHARD.fullmatch(name)
        sets.setdefault(f"of {match['total']}" if match else name, set()).add(name)
    for key, names in sets.items():
        match = _SHARD.fullmatch(next(iter(names)))
        total = int(match["total"]) if match else 1
        if len(names) < total:
            yield Finding(
                "missing-shards",
                "loading fails with missing parameters",
                f"{total - len(names)} of {total} weight files ({key}) are not there",
                "copy or download them, or convert again",
            )
    if len(sets) > 1:
        yield Finding(
            "stale-shards",
            "wrong outputs, or more memory than expected: mlx-lm loads every model*.safetensors",
            f"files of {len(sets)} sets lie together: {_some(sorted(sets))}",
            "remove the files of the older conversion",
        )
    index = patient.folder / "model.safetensors.index.json"
    if index.exists() and patient.tensors is not None:
        from torch2mlx.sources.local_files import read_json_object

        listed = patient.read(index.name, lambda: read_json_object(index)) or {}
        mapped = listed.get("weight_map")
        wrong = (
            [n for n, i in patient.tensors.items() if mapped.get(n) != i.file.name]
            if isinstance(mapped, dict)
            else ["weight_map"]
        )
        if wrong:
            yield Finding(
                "stale-index",
                "programs that read the index (mlx-swift, transformers) miss tensors",
                f"model.safetensors.index.json does not list {_some(wrong)} where they are",
                "write the index anew: --fix does",
                fix=lambda: _write_index(patient),
            )


def _write_index(patient: Patient) -> None:
    tensors = patient.tensors or {}
    total = sum(info.nbytes for info in tensors.values())
    weight_map = {name: tensors[name].file.name for name in sorted(tensors)}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    patient.rewrite("model.safetensors.index.json", content)


def _changed(patient: Patient) -> Iterator[Finding]:
    if patient.manifest is None:
        return
    changed = changed_files(patient.folder, patient.manifest.outputs)
    if changed:
        yield Finding(
            "changed-files",
            "anything: the folder is not what was proven equal",
            f"changed or missing since the conversion: {_some(list(changed))}",
            "if you did not mean to change them, convert again; else torch2mlx verify SRC DST",
        )


def _quantization(patient: Patient) -> Iterator[Finding]:
    if patient.config is None or patient.tensors is None:
        return
    tensors = patient.tensors
    packed = sorted(n.removesuffix(".scales") for n in tensors if n.endswith(".scales"))
    entries = patient.config.get("quantization")
    if packed and not isinstance(entries, dict):
        yield Finding(
            "quantization-missing",
            "loading fails, or the text is noise: packed integers are taken for weights",
            f"config.json has no 'quantization', but {len(packed)} modules have scales",
            "restore config.json from the conversion, or convert again",
        )
        return
    if not isinstance(entries, dict):
        return
    if not packed:
        yield Finding(
            "quantization-empty",
            "loading fails: mlx-lm expects scales",
            "config.json has 'quantization', but no tensor has scales",
            "remove the key 'quantization' from config.json, or restore the weights",
        )
    wrong = []
    for module in packed:
        own = entries.get(module)
        entry = own if isinstance(own, dict) else entries
        bits, group = entry.get("bits"), entry.get("group_size")
        weight, scales = tensors.get(f"{module}.weight"), tensors[f"{module}.scales"]
        if weight is None or not weight.shape or not scales.shape:
            wrong.append(module)
        elif isinstance(bits, int) and isinstance(group, int):
            if weight.shape[-1] * 32 != scales.shape[-1] * group * bits:
                wrong.append(f"{module} ({bits} bits, groups of {group})")
        else:
            wrong.append(f"{module} (no bits and group_size)")
    if wrong:
        yield Finding(
            "quantization-mismatch",
            "loading fails, or the text is noise",
            f"the shapes of {len(wrong)} modules are not what config.json says: {_some(wrong)}",
            "config.json and weights are of two conversions: restore one of them",
        )


def _parameters(patient: Patient) -> Iterator[Finding]:
    port = patient.port or patient.generated
    if port is None or patient.tensors is None:
        return
    suffixes = (".scales", ".biases")
    packed = {n.removesuffix(".scales") for n in patient.tensors if n.endswith(".scales")}
    stored = {n for n in patient.tensors if not (n.endswith(suffixes) and n[:-7] in packed)}
    targets = port.targets
    missing, extra = sorted(set(targets) - stored), sorted(stored - set(targets))
    if missing:
        yield Finding(
            "missing-tensors",
            "loading fails with missing parameters",
            f"{len(missing)} parameters that config.json asks for are not stored: {_some(missing)}",
            "config.json (its number of layers, say) and weights do not belong together",
        )
    if extra:
        yield Finding(
            "extra-tensors",
            "loading fails with parameters not in the model",
            f"{len(extra)} tensors have no place in the model: {_some(extra)}",
            "config.json (its number of layers, say) and weights do not belong together",
        )
    wrong = [
        f"{name} {list(patient.tensors[name].shape)} instead of {list(target.shape)}"
        for name, target in targets.items()
        if name in stored
        and target.module not in packed
        and patient.tensors[name].shape != target.shape
    ]
    if wrong:
        moved = all(_permuted(text) for text in wrong)
        yield Finding(
            "misshapen-tensors",
            "loading fails with shapes that do not match",
            f"{_some(wrong)}",
            "the axes were moved twice or never (convolutions): convert from the original again"
            if moved
            else "config.json and weights do not belong together",
        )


def _permuted(text: str) -> bool:
    shapes = [sorted(re.findall(r"\d+", part)) for part in re.findall(r"\[[^\]]*\]", text)]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _values(patient: Patient) -> Iterator[Finding]:
    if patient.source is None or patient.tensors is None:
        return
    broken, empty = [], []
    for name, info in patient.tensors.items():
        if not info.dtype.floating or not info.size:
            continue
        finite, any_value = _look_at(patient.source, name, info.size, info.dtype)
        if not finite:
            broken.append(name)
        elif not any_value and prod(info.shape) > 1 and not name.endswith(_MAY_BE_ZERO):
            empty.append(name)
    if broken:
        yield Finding(
            "not-finite",
            "the text is noise, empty or '!!!!': logits are NaN",
            f"NaN or Inf in {len(broken)} tensors: {_some(broken)}",
            "the original overflowed when it was cast (float16?): convert it to bfloat16",
        )
    if empty:
        yield Finding(
            "zero-tensors",
            "noise, or one token for ever",
            f"only zeros in {len(empty)} tensors: {_some(empty)}",
            "the download was cut off or the file is sparse: download or convert again",
        )


_MAY_BE_ZERO = ("bias", "biases", ".beta", "running_mean")  # of layers that were never trained


def _look_at(source: Any, name: str, size: int, dtype: Any) -> tuple[bool, bool]:
    """(every value is finite, some value is not zero), by bits, in pieces."""
    exponent = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}.get(dtype.name)
    if exponent is None:
        return True, True
    finite, some = True, False
    for start in range(0, size, _CHUNK):
        block = source.read_flat(name, start, min(size, start + _CHUNK))
        bits = block.view(np.uint32 if dtype.name == "F32" else np.uint16)
        finite &= not ((bits & exponent) == exponent).any()
        some |= bool((bits << 1).any())
    return finite, some


CHECKS = (_shards, _quantization, _parameters, _values, _changed)
