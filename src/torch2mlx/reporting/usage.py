"""How to run a converted folder, in the programs that load it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch2mlx.reporting.facts import Facts

__all__ = ["Usage", "usages"]


@dataclass(frozen=True)
class Usage:
    """One way to run it.

    Attributes:
        program: its name.
        code: to be copied.
        note: before the code.
    """

    program: str
    code: str
    note: str = ""


def usages(facts: Facts, place: str = "path/to/this/folder") -> tuple[Usage, ...]:
    """The programs that load a folder, each with what to type.

    Args:
        facts: of the folder.
        place: what stands for its path or its name on the hub.
    """
    if facts.compiled:
        return (_module(facts), _check(facts, place))
    tokenizer = facts.manifest.tokenizer or {}
    generated = facts.config.get("model_file") is not None
    found = []
    if not tokenizer.get("available"):
        return (_logits(place, generated), _check(facts, place))
    trust = " --trust-remote-code" if generated else ""
    found.append(
        Usage(
            "mlx-lm",
            "pip install mlx-lm\n"
            f'mlx_lm.generate --model {place}{trust} --prompt "Why is the sky blue?"\n'
            f"mlx_lm.server --model {place}{trust}",
        )
    )
    if generated:
        note = "model.py is for mlx-lm in Python; LM Studio and mlx-swift cannot run it."
        return (*found, Usage("Elsewhere", "", note), _check(facts, place))
    name = re.sub(r"[^\w.-]+", "-", facts.title, flags=re.ASCII).strip("-.") or "model"
    found.append(
        Usage(
            "LM Studio",
            f"mkdir -p ~/.lmstudio/models/local\ncp -R {place} ~/.lmstudio/models/local/{name}",
            "Put the folder where LM Studio keeps its models; it then appears under My Models.",
        )
    )
    found.append(
        Usage(
            "mlx-swift",
            "import MLXLLM\nimport MLXLMCommon\n\n"
            f'let folder = URL(filePath: "{place}")\n'
            "let configuration =\n    ModelConfiguration(directory: folder)\n"
            "let model = try await LLMModelFactory.shared\n"
            "    .loadContainer(configuration: configuration)",
            f"With the package mlx-swift-lm, if it has the architecture {facts.architecture}.",
        )
    )
    return (*found, _check(facts, place))


def _module(facts: Facts) -> Usage:
    calls = []
    methods = facts.config.get("methods")
    inputs = facts.config.get("inputs")
    named = methods if isinstance(methods, dict) else {"__call__": inputs}
    for method, entries in named.items():
        given = [e.get("name") for e in entries if isinstance(e, dict)] if entries else []
        names = [name for name in given if isinstance(name, str) and name.isidentifier()]
        if method.isidentifier():
            call = "" if method == "__call__" else f".{method}"
            calls.append(f"outputs = model{call}({', '.join(names)})")
    code = "\n".join(["from model import load", "", 'model = load(".")', *calls])
    return Usage("Python", code, "In the folder, with MLX installed:")


def _logits(place: str, generated: bool) -> Usage:
    trust = ", trust_remote_code=True" if generated else ""
    code = (
        "from pathlib import Path\n\nimport mlx.core as mx\nfrom mlx_lm.utils import load_model\n\n"
        f'model, config = load_model(Path("{place}"){trust})\n'
        "logits = model(mx.array([[1, 2, 3]]))"
    )
    return Usage("mlx-lm", code, "The folder has no tokenizer that mlx-lm loads by itself.")


def _check(facts: Facts, place: str) -> Usage:
    code = f"torch2mlx verify {place} --certificate"
    if facts.compiled or facts.config.get("model_file") is not None:
        code += " --trust-remote-code"
    note = "Files and outputs on your machine against the certificate; needs no PyTorch."
    if facts.certificate is None:
        return Usage("Check it", f"torch2mlx verify SRC {place}", "Against the PyTorch original:")
    return Usage("Check it", code, note)
