"""Files of a compiled folder that people and programs read: config.json and README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.codegen.tree import method_name
from torch2mlx.compiler.entry_points import CompiledEntry
from torch2mlx.compiler.host import Host
from torch2mlx.compiler.parity import Agreement
from torch2mlx.compiler.quantize import Quantized
from torch2mlx.planning.plan import Plan

__all__ = ["fixed_notes", "model_config", "readme"]

_FIXED = ", with the values of the example"


def model_config(
    generated: GeneratedModel,
    entries: Sequence[CompiledEntry],
    plan: Plan,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """config.json; `settings` are further entries."""
    config: dict[str, Any] = {
        "model_class": generated.class_name,
        **settings,
    }
    if len(entries) == 1:
        config["inputs"] = _inputs(entries[0])
    else:
        config["methods"] = {method_name(e.method): _inputs(e) for e in entries}
    if plan.quantization is not None:
        config["quantization"] = dict(plan.quantization)
    return config


def _inputs(entry: CompiledEntry) -> list[dict[str, Any]]:
    return [
        {
            "name": i.name,
            "dtype": str(i.type.dtype).removeprefix("torch."),
            "shape": [n if type(n) is int else repr(n) for n in i.type.shape],
            **({"fixed": True} if i.name in entry.graph.frozen else {}),
        }
        for i in entry.graph.inputs
    ]


def fixed_notes(entries: Sequence[CompiledEntry]) -> list[str]:
    """What a user should know of values that the code was made for."""
    notes = []
    for entry in entries:
        names, checks = entry.graph.frozen, entry.graph.expectations
        if names:
            notes.append(
                f"{', '.join(names)}: fixed, sizes follow from the values; calls with other values "
                "than the example's are refused"
            )
        others = list(dict.fromkeys(e.what for e in checks if e.what not in names))
        if others:
            notes.append(f"checked on every call, as in the example: {'; '.join(others)}")
    return notes


def readme(
    generated: GeneratedModel,
    entries: Sequence[CompiledEntry],
    host: Host | None,
    agreement: Agreement | None,
    quantized: Quantized | None,
) -> str:
    """README.md: how the model is called, and what was compared."""
    calls = [f"outputs = model({', '.join(host.arguments)})"] if host is not None else []
    for method, arguments in generated.methods.items():
        call = "" if method == "forward" else f".{method_name(method)}"
        calls.append(f"outputs = model{call}({', '.join(a.name for a in arguments)})")
    shapes = [
        f"- `{i.name}`: {i.type}" + (_FIXED if i.name in e.graph.frozen else "")
        for e in entries
        for i in e.graph.inputs
    ]
    text = "Not compared with PyTorch (`--no-verify`).\n"
    if agreement is not None:
        text = (
            f"Compared with PyTorch on: {'; '.join(agreement.cases)}. Largest relative L2 "
            f"error\n{agreement.worst:.1e}, limit {agreement.limit:.0e}.\n"
        )
    if quantized is not None:
        moved = ""
        if quantized.drift is not None:
            moved = f", which moves the outputs by {quantized.drift:.1e} on the example"
        text += f"\nThen quantized to {quantized.assignment.base}{moved}.\n"
    newline = "\n"
    return f"""# {generated.class_name} for MLX

```python
from model import load

model = load(".")
{newline.join(calls)}
```

Inputs:
{newline.join(dict.fromkeys(shapes))}

{text}"""
