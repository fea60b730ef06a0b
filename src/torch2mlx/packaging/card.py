"""README.md of the output: the model card that the hub shows.

The source's own README.md is kept as README.source.md.  The hub shows README.md alone, and
that must describe the files that are there: their format, their size, how to run them.  The
original holds what no converter knows (training data, limits, citations, often the terms of
use), and a license may ask for it to travel along; so do license and notice files, unchanged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.sources.local_files import read_small, stays_inside

if TYPE_CHECKING:
    from torch2mlx.packaging.manifest import Manifest
    from torch2mlx.sources.base import Checkpoint

__all__ = ["SOURCE_CARD", "copy_documents", "write_card"]

SOURCE_CARD = "README.source.md"

_DOCUMENT = re.compile(
    r"(license|licence|notice|copying|use_policy|acceptable_use_policy)([-._][\w.-]+)?",
    re.IGNORECASE,
)
_CODE = (".py", ".json", ".so", ".sh")
_LARGEST = 4_000_000  # bytes of a text that is read or kept
_WEIGHT_FILE = re.compile(r"\.(gguf|safetensors|bin|pth?)$", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True)
class _Card:
    """What the template shows of a manifest and the folder's config.json."""

    title: str
    source: str
    base_model: str | None
    model_type: str
    parameters: int
    total_size: int
    bits_per_weight: float
    quantization: Mapping[str, Any] | None
    dtype: str | None
    tokenizer: bool
    chat: bool
    repository: str
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    generated: bool

    @classmethod
    def of(cls, manifest: Manifest, config: Mapping[str, Any]) -> _Card:
        location = manifest.source.location
        hub = _HUB_ID.fullmatch(location) is not None and not Path(location).exists()
        name = Path(location).name or "Model"
        tokenizer = manifest.tokenizer or {}
        plan = manifest.plan
        return cls(
            title=f"{_WEIGHT_FILE.sub('', name)} for MLX",
            # A path of somebody's disk is nobody else's business.
            source=location if hub else name,
            base_model=location if hub else None,
            model_type=str(config.get("model_type")),
            parameters=int(manifest.weights["total_parameters"]),
            total_size=int(manifest.weights["total_size"]),
            bits_per_weight=manifest.weights["bits_per_weight"],
            quantization=config.get("quantization"),
            dtype=plan.get("dtype"),
            tokenizer=bool(tokenizer.get("available")),
            chat=bool(tokenizer.get("templates")),
            repository="path/to/this/folder",
            versions=manifest.versions,
            notes=tuple(plan.get("notes", ())),
            generated=config.get("model_file") is not None,
        )


def copy_documents(source: Path, folder: Path) -> tuple[str, ...]:
    """Keep README.md (as README.source.md), license and notice files of the source.

    Files beyond 4 MB are not kept: no real one is so large.  Neither are links out of the folder:
    what is copied may be published.

    Returns:
        Names of the files in the output.
    """
    kept = []
    for path in sorted(source.iterdir()):
        readme = path.name.lower() == "readme.md"
        license_text = _DOCUMENT.fullmatch(path.name) and path.suffix.lower() not in _CODE
        if not (readme or license_text) or not path.is_file():
            continue
        if path.stat().st_size > _LARGEST or not stays_inside(source, path):
            continue
        name = SOURCE_CARD if readme else path.name
        shutil.copyfile(path, folder / name)
        kept.append(name)
    return tuple(kept)


def write_card(folder: Path, manifest: Manifest, checkpoint: Checkpoint) -> Path:
    """Write README.md, Markdown with YAML front matter, and keep the source's documents.

    License, language, task and tags are carried over from the source's card.

    Args:
        folder: of the output, config.json included.
        manifest: of the output.
        checkpoint: the source.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # A single file may lie in a folder of anything; its neighbours are not about it.
    if not Path(checkpoint.location).is_file():
        copy_documents(checkpoint.folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = _Card.of(manifest, config)
    verification = manifest.verification
    skipped = verification.get("skipped")
    # Markdown, no HTML: `cell` is the only way in for texts of the checkpoint.
    environment = Environment(
        loader=PackageLoader("torch2mlx.packaging"),
        autoescape=False,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=_cell, megabytes=_megabytes)
    text = environment.get_template("card.md.jinja").render(
        card=card,
        front_matter=_front_matter(card, folder / SOURCE_CARD),
        schemes=_schemes(card.quantization),
        figures=list(_figures(verification)),
        passed=bool(verification.get("passed")),
        skipped=skipped if isinstance(skipped, Mapping) else {},
        kept=(folder / SOURCE_CARD).exists(),
        certified=(folder / "torch2mlx" / "certificate.json").exists(),
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _front_matter(card: _Card, source_card: Path) -> str:
    from huggingface_hub import ModelCardData

    carried = _carried(source_card)
    tags = ["mlx", "torch2mlx"]
    if card.quantization:
        tags.append(f"{card.quantization['bits']}-bit")
    data = ModelCardData(
        base_model=card.base_model,
        library_name="mlx",
        pipeline_tag=carried.pop("pipeline_tag", "text-generation"),
        tags=[*tags, *(t for t in carried.pop("tags", []) if t not in tags)],
        **carried,
    )
    if card.base_model and card.quantization:
        data["base_model_relation"] = "quantized"
    return str(data.to_yaml()).strip()


def _carried(path: Path) -> dict[str, Any]:
    """What the source's front matter says about the model itself, as plain short texts."""
    from huggingface_hub import ModelCard

    if not path.exists():
        return {}
    try:
        content = read_small(path).decode(errors="replace")
        found = ModelCard(content, ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # any damage of a text that only decorates: the card does without it
        return {}
    carried: dict[str, Any] = {}
    for key in ("license", "license_name", "license_link", "pipeline_tag"):
        value = found.get(key)
        if isinstance(value, str) and len(value) < 300:
            carried[key] = value
    for key in ("language", "tags"):
        value = found.get(key)
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list):
            # Tags that name another library's format would be wrong here.
            carried[key] = [
                v
                for v in values[:50]
                if isinstance(v, str) and len(v) < 100 and v not in _FORMAT_TAGS
            ]
    return {key: value for key, value in carried.items() if value}


_FORMAT_TAGS = frozenset(
    ("safetensors", "pytorch", "gguf", "onnx", "transformers", "transformers.js", "jax", "tf")
)


def _schemes(quantization: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The default scheme, then how many modules have which other one."""
    if not quantization:
        return []
    counts: dict[str, int] = {}
    for entry in quantization.values():
        if isinstance(entry, Mapping):
            text = _scheme_text(entry)
            counts[text] = counts.get(text, 0) + 1
    return [
        {"text": _scheme_text(quantization), "count": 0},
        *({"text": text, "count": count} for text, count in counts.items()),
    ]


def _scheme_text(entry: Mapping[str, Any]) -> str:
    mode = str(entry.get("mode", "affine"))
    return f"{entry['bits']} bits, groups of {entry['group_size']}, {_cell(mode)}"


def _figures(verification: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Rows of the table from a parity report's dict."""
    for part in verification.get("comparisons") or ():
        limit = _number(part.get("tolerance"))
        for key, name in (
            ("logits", "logits, relative L2 difference"),
            ("cached", "logits through the cache"),
        ):
            if part.get(key):
                yield _row(part["part"], name, part[key].get("relative"), limit)
        yield _row(part["part"], "same most likely token", part.get("top1"), "")
    for budget in verification.get("budgets") or ():
        limits = budget.get("limits") or {}
        for name, value in (budget.get("figures") or {}).items():
            check = f"{budget['name']} error"
            yield _row(check, name.replace("_", " "), value, _number(limits.get(name)))
    audit = verification.get("audit")
    if audit:
        result = "passed" if audit.get("passed") else "failed"
        yield {"check": "audit", "name": "every tensor against its source", "value": result,
               "limit": ""}  # fmt: skip


def _row(check: Any, name: str, value: Any, limit: str) -> dict[str, str]:
    return {"check": str(check), "name": name, "value": _number(value) or "not finite",
            "limit": limit}  # fmt: skip


def _number(value: Any) -> str:
    return "" if not isinstance(value, int | float) else f"{value:.4g}"


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _cell(text: Any) -> str:
    """Text as it is, in one line: nothing in it acts as Markdown, HTML or a table border."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*\[\]<>|#~])", r"\\\1", line)
