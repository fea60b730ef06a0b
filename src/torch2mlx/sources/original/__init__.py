"""Releases in their authors' own layout: Meta's Llama, Mistral's dense models and Mixtral."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from torch2mlx.errors import SourceError
from torch2mlx.planning.expressions import Expr, Source
from torch2mlx.sources.base import Checkpoint, TensorSource
from torch2mlx.sources.companions import is_companion
from torch2mlx.sources.joined import JoinedSource, PrefixedSource
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.original.layout import joined_ranks, to_transformers
from torch2mlx.sources.original.params import read_geometry, to_config
from torch2mlx.sources.original.tokenizer import ConvertedTokenizer, find_tokenizer
from torch2mlx.sources.safetensors import SafetensorsSource
from torch2mlx.sources.torch_zip import TorchZipSource

__all__ = ["is_original", "open_original"]

_PARAMS = "params.json"
_DOCUMENTS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "USAGE_POLICY")
_FILE = re.compile(r"consolidated(?:\.(\d+))?\.(pth|pt|safetensors)")
_SHARD = re.compile(r"consolidated-(\d+)-of-(\d+)\.safetensors")


def is_original(folder: Path) -> bool:
    """Whether a folder is such a release and has no config.json of transformers."""
    if (folder / "config.json").exists() or not (folder / _PARAMS).is_file():
        return False
    return any(_FILE.fullmatch(p.name) or _SHARD.fullmatch(p.name) for p in folder.iterdir())


def open_original(location: str, folder: Path) -> Checkpoint:
    """Open a release: params.json, consolidated files and a tokenizer.

    Raises:
        SourceError: files are missing, mixed or damaged.
        UnsupportedError: params.json has settings that are not known.
    """
    params = read_json_object(folder / _PARAMS)
    geometry = read_geometry(folder / _PARAMS, params)
    files = _ranks(folder)
    sources: list[TensorSource] = []
    for rank, group in enumerate(files):
        torch_files = group[0].suffix != ".safetensors"
        own: TensorSource = TorchZipSource(group) if torch_files else SafetensorsSource(group)
        sources.append(PrefixedSource(f"{rank:02d}:", own) if len(files) > 1 else own)
    states: list[dict[str, Expr]] = [
        {
            name.partition(":")[2] if len(files) > 1 else name: Source(name, info.dtype, info.shape)
            for name, info in source.tensors.items()
        }
        for source in sources
    ]
    state = to_transformers(str(folder), joined_ranks(str(folder), states, geometry), geometry)
    embedding = state.get("model.embed_tokens.weight")
    inner = next(
        (e.shape[0] for n, e in state.items() if n.endswith(("gate_proj.weight", ".w1.weight"))),
        None,
    )
    if embedding is None or not embedding.shape[0] or not inner:
        raise SourceError(
            f"{folder}: no tok_embeddings or feed_forward.w1, or an empty one: not a whole release"
        )
    types = Counter(e.dtype.torch_name for e in state.values() if e.dtype.floating)
    family = "mistral" if "hidden_dim" in params else "llama"  # Meta's derives it
    config = to_config(
        geometry,
        family,
        vocabulary=embedding.shape[0],
        inner=inner,
        tied="lm_head.weight" not in state,
        dtype=types.most_common(1)[0][0],
    )
    documents = {
        p.name: p
        for p in sorted(folder.iterdir())
        if is_companion(p.name) and p.name.startswith(_DOCUMENTS) and p.is_file()
    }
    file = find_tokenizer(folder)
    newer = bool(params.get("use_scaled_rope"))
    tokenizer = ConvertedTokenizer(file, newer, documents) if file else None
    ways = f"{len(files)} files" if len(files) > 1 else "one file"
    return Checkpoint(
        location=location,
        folder=folder,
        kind="original",
        config=config,
        source=JoinedSource(*sources) if len(sources) > 1 else sources[0],
        state=state,
        tokenizer_files=documents if tokenizer is None else tokenizer,
        tokenizer_folder=(lambda: tokenizer.folder) if tokenizer else None,
        notes=(
            f"{config['model_type']} in its authors' layout, {ways}; config.json was made from "
            f"params.json",
            *(() if tokenizer else ("no tokenizer.model or tekken.json beside the weights",)),
        ),
    )


def _ranks(folder: Path) -> list[list[Path]]:
    """The files of each rank, in numeric order; shards of safetensors belong to one."""
    names = [path.name for path in folder.iterdir()]
    shards = sorted(n for n in names if _SHARD.fullmatch(n))
    if shards:
        found = _SHARD.fullmatch(shards[0])
        assert found is not None
        if len(shards) != int(found[2]):
            raise SourceError(
                f"{folder}: {len(shards)} of {int(found[2])} consolidated files are there; "
                "download the others"
            )
        return [[folder / n for n in shards]]
    matches = [m for n in names if (m := _FILE.fullmatch(n))]
    kinds = {m[2] for m in matches}
    if len(kinds) > 1:
        raise SourceError(
            f"{folder}: consolidated files of several kinds ({', '.join(sorted(kinds))}); keep one"
        )
    numbered = {int(m[1]): folder / m[0] for m in matches if m[1] is not None}
    if not numbered:
        return [[folder / matches[0][0]]]
    missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
    if missing:
        raise SourceError(
            f"{folder}: consolidated files of ranks {', '.join(map(str, missing))} are missing; "
            f"there are {len(numbered)}, the last is {numbered[max(numbered)].name}"
        )
    return [[numbered[rank]] for rank in sorted(numbered)]
