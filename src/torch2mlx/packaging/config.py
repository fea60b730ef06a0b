"""config.json and generation_config.json of the output, as mlx-lm and mlx-swift read them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

__all__ = [
    "output_config",
    "with_stop_ids",
    "write_config",
    "write_generation_config",
]

# Keys that describe how the *source* was packed.  A loader that finds them would unpack again;
# mlx-lm also looks for them inside text_config.
_PACKING = ("quantization", "quantization_config", "compression_config")


def output_config(
    config: Mapping[str, Any],
    quantization: Mapping[str, Any] | None = None,
    *,
    eos_token_id: Sequence[int] = (),
    dtype: str | None = None,
    vision: bool = False,
) -> dict[str, Any]:
    """The config of the converted model; `config` is not changed.

    Args:
        config: of the port, normalised.
        quantization: a default (group_size, bits, mode) and a dict for each module that departs
            from it, by final MLX path (`Assignment.to_config()`); None: unquantized.  Modules
            that stay unquantized need no entry: mlx-lm goes by their missing `.scales`.
        eos_token_id: every id that ends a generation; empty: as in `config`.
        dtype: torch name of the dtype that the output was cast to ("bfloat16"); None: as in
            `config`.
        vision: the model keeps its vision tower.  Otherwise vision_config goes, as in mlx-lm:
            programs that offer image input where they see it would find no weights.

    Returns:
        A dict with sorted top-level keys and no value that JSON lacks: infinities and NaN are
        tagged as transformers and mlx-lm do it (`{"__float__": "Infinity"}`).
    """
    result = deepcopy(dict(config))
    _drop(result, _PACKING)
    if isinstance(result.get("text_config"), dict):
        _drop(result["text_config"], _PACKING)
    # `model_file` makes mlx-lm import a Python file that the folder names; the model here is
    # one of mlx-lm's own, whatever the source says.
    _drop(result, ("_name_or_path", "model_file"))
    if not vision:
        _drop(result, ("vision_config",))
    if eos_token_id:
        result = with_stop_ids(result, eos_token_id)
    if dtype is not None:
        _drop(result, ("dtype",))
        result["torch_dtype"] = dtype
    if quantization is not None:
        # Twice: the hub's model tree reads the second name.
        result["quantization"] = deepcopy(dict(quantization))
        result["quantization_config"] = deepcopy(dict(quantization))
    tagged: dict[str, Any] = _tag_floats(result)
    return dict(sorted(tagged.items()))


def with_stop_ids(config: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """A copy whose `eos_token_id` is the given ids: a number for one, a list for several."""
    value = ids[0] if len(ids) == 1 else list(ids)
    return {**config, "eos_token_id": value}


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write config.json, ASCII only: mlx-lm opens it in the encoding of the user's locale."""
    return _write(folder / "config.json", config)


def write_generation_config(folder: Path, original: Mapping[str, Any], ids: Sequence[int]) -> bool:
    """Write generation_config.json anew where it would hide stop ids from mlx-lm.

    `mlx_lm.utils.load_config` lets its eos_token_id, if it has one, replace config.json's.  So
    a file that names fewer ids than `ids` gets all of them; everything else in it is kept.

    Args:
        folder: of the output; the file is there already if the source has one.
        original: its content, {} if there is none.
        ids: every id that ends a generation.

    Returns:
        True where it was written: it is then no byte-for-byte copy, which the manifest notes.
    """
    present = original.get("eos_token_id")
    # An id of 0 alone does not replace config.json's: mlx-lm takes it for "none".
    if not present or all(stop in _as_list(present) for stop in ids):
        return False
    _write(folder / "generation_config.json", _tag_floats(with_stop_ids(original, ids)))
    return True


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=4, allow_nan=False) + "\n", encoding="ascii")
    return path


def _drop(config: dict[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        config.pop(key, None)


def _tag_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return {"__float__": "NaN"}
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {key: _tag_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tag_floats(item) for item in value]
    return value
