"""Kokoro as its authors publish it: config.json, a .pth with a state dict a part, and voices.

https://huggingface.co/hexgrad/Kokoro-82M and kokoro's model.py.  mlx-audio's port keeps the names
and the order of axes of PyTorch in its files, and translates them whenever it loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.errors import PlanError, SourceError
from torch2mlx.planning.expressions import Expr, Source
from torch2mlx.sources.base import Checkpoint, TensorSource
from torch2mlx.sources.companions import check_companion
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.torch_pickle import StoredTensor
from torch2mlx.sources.torch_zip import TorchZipSource

__all__ = ["Kokoro", "is_kokoro", "open_kokoro", "open_kokoro_headers", "port_name"]

_PARTS = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")
_MARKS = ("istftnet", "plbert", "vocab")  # of config.json
_PREFIX = "module."  # of what was trained on several GPUs
_LSTM = {
    f"{kind}_{leaf}_l0{back}": f"{ours}_{direction}"
    for back, direction in (("", "forward"), ("_reverse", "backward"))
    for kind, leaf, ours in (
        ("weight", "ih", "Wx"), ("weight", "hh", "Wh"),
        ("bias", "ih", "bias_ih"), ("bias", "hh", "bias_hh"),
    )
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Kokoro:
    """A release, opened and not read.

    Attributes:
        folder: where it is.
        file: its weights.
        config: config.json.
        source: of the weights.
        state: name in mlx-audio's folder → tensor.
        voices: name → file.
        documents: licence and the like, by name.
        dropped: tensors that carry nothing → why.
    """

    folder: Path
    file: Path
    config: Mapping[str, Any]
    source: TensorSource
    state: Mapping[str, Expr]
    voices: Mapping[str, Path]
    documents: Mapping[str, Path]
    dropped: Mapping[str, str]


def is_kokoro(path: Path) -> bool:
    """Whether a path is such a folder, or the .pth file in one."""
    folder = path.parent if path.suffix == ".pth" and path.is_file() else path
    if not (folder / "config.json").is_file():
        return False
    try:
        config = read_json_object(folder / "config.json")
    except SourceError:
        return False  # opening the checkpoint will tell
    return all(isinstance(config.get(mark), dict) for mark in _MARKS)


def open_kokoro(path: Path) -> Kokoro:
    """Read what a release is made of; weights stay where they are.

    Args:
        path: of the folder, or of its .pth file.

    Raises:
        SourceError: no or several .pth files, a file that is no Kokoro's, or no voice.
        PlanError: tensors that inference would need to look at although the port has none of them.
    """
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(folder.glob("*.pth"))
    if len(files) != 1:
        names = ", ".join(p.name for p in files) or "none"
        raise SourceError(f"{folder}: one .pth file is expected, found {names}; keep the model's")
    check_companion(folder, files[0])
    source = TorchZipSource(files, unwrap=_flattened)
    state, dropped, wrong = {}, {}, []
    for name, info in source.tensors.items():
        if name.endswith("position_ids"):
            dropped[name] = "the port counts positions itself"
        elif name.endswith((".norm.weight", ".norm.bias")):  # of AdaIN1d, which trains none
            plain = 1.0 if name.endswith("weight") else 0.0
            if (source.read(name).astype("float32") != plain).any():
                wrong.append(name)
            dropped[name] = f"all {plain:g}: the port has none"
        else:
            state[name] = Source(name, info.dtype, info.shape)
    if wrong:
        raise PlanError(
            f"{files[0]}: {len(wrong)} weights of instance norms are trained (e.g. {wrong[0]}); "
            "mlx-audio's port has none: they would be lost"
        )
    voices = {p.stem: p for p in sorted((folder / "voices").glob("*.pt"))}
    if not voices:
        raise SourceError(f"{folder}: no voices/*.pt; download them with the model")
    for voice in voices.values():
        check_companion(folder, voice)
    documents = {
        p.name: p for p in sorted(folder.iterdir()) if p.name.startswith(("LICENSE", "NOTICE"))
    }
    for document in documents.values():
        check_companion(folder, document)
    config = read_json_object(folder / "config.json")
    return Kokoro(folder, files[0], config, source, state, voices, documents, dropped)


def open_kokoro_headers(path: Path) -> Checkpoint:
    """A release as a checkpoint, to be looked at; errors as of `open_kokoro`."""
    opened = open_kokoro(path)
    return Checkpoint(
        location=str(path),
        folder=opened.folder,
        kind="original",
        config={**opened.config, "model_type": "kokoro"},
        source=opened.source,
        state=opened.state,
        tokenizer_files=opened.documents,
        notes=(f"{len(opened.voices)} voices", "mlx-audio's port runs it"),
    )


def _flattened(path: Path, value: Any) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of all parts under one name each."""
    if not isinstance(value, Mapping) or set(value) != set(_PARTS):
        found = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise SourceError(
            f"{path}: expected state dicts of {', '.join(_PARTS)}, found {found[:200]}: no Kokoro"
        )
    state: dict[str, StoredTensor] = {}
    for part, tensors in value.items():
        whole = isinstance(tensors, Mapping) and all(isinstance(n, str) for n in tensors)
        if not whole or not all(isinstance(t, StoredTensor) for t in tensors.values()):
            raise SourceError(f"{path}: {part} is no state dict: no Kokoro; download it again")
        trained = all(name.startswith(_PREFIX) for name in tensors)
        for name, tensor in tensors.items():
            state[f"{part}.{name.removeprefix(_PREFIX) if trained else name}"] = tensor
    return state, []


def port_name(name: str, ndim: int) -> tuple[str, bool]:
    """Name of a tensor in mlx-audio's model, and whether its last two axes are exchanged there."""
    owner, _, leaf = name.rpartition(".")
    if leaf in _LSTM and not name.startswith("bert"):
        return f"{owner}.{_LSTM[leaf]}", False
    if name.startswith("text_encoder.") and leaf in ("gamma", "beta"):
        return f"{owner}.{'weight' if leaf == 'gamma' else 'bias'}", False
    return name, ndim == 3 and leaf in ("weight", "weight_v")
