"""Which modules of the result compute in which floating-point type.

A policy maps globs of module paths to types.  It lies in config.json, is applied by
`torch2mlx.load`, and is part of the code of generated models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from torch2mlx.errors import OptionError
from torch2mlx.quantization.targets import close_names, matches

__all__ = ["AUTO", "CONFIG_KEY", "check_patterns", "describe", "parse_precision", "with_precision"]

AUTO = "auto"
"""Types are chosen from measured activations."""

CONFIG_KEY = "runtime_precision"
"""Of config.json, which mlx-lm's ports ignore."""

_TYPES = ("float32", "float16", "bfloat16")


def parse_precision(text: str, first: Mapping[str, str] | None = None) -> dict[str, str]:
    """Read "self_attn=float32,mlp=float16".

    Args:
        text: as the user gave it; "" for none.
        first: entries that come before, such as a recipe file's.

    Raises:
        OptionError: an entry has another form.
    """
    found = dict(first or {})
    for entry in filter(None, text.split(",")):
        pattern, equals, name = (part.strip() for part in entry.partition("="))
        if not (equals and pattern):
            raise OptionError(
                f"--runtime-precision '{entry}' must be pattern=type, as in 'self_attn=float32', "
                f"or {AUTO}"
            )
        found.pop(pattern, None)  # the last one counts, also in order
        found[pattern] = name
    for pattern, name in found.items():
        if name not in _TYPES:
            raise OptionError(
                f"--runtime-precision '{pattern}={name}': choose one of {', '.join(_TYPES)}"
            )
    return found


def check_patterns(policy: Mapping[str, str], paths: Iterable[str]) -> None:
    """Raise OptionError for patterns that no module answers to, all in one."""
    known = list(paths)
    problems = [
        f"'{pattern}' matches no module{close_names(pattern, known)}"
        for pattern in policy
        if not any(matches(pattern, path) for path in known)
    ]
    if problems:
        raise OptionError(f"--runtime-precision: {'; '.join(problems)}.")


def describe(policy: Mapping[str, str]) -> str:
    """A policy as the option writes it."""
    return ",".join(f"{pattern}={name}" for pattern, name in policy.items())


def with_precision(source: str, policy: Mapping[str, str]) -> str:
    """The source of a generated port whose modules take their types once they have weights.

    Args:
        source: of a model file with a class `Model` at its end.
        policy: pattern → type; empty: the source is returned as it is.
    """
    if not policy:
        return source
    from torch2mlx.compiler.codegen.file import formatted
    from torch2mlx.compiler.codegen.runtime_source import runtime_source
    from torch2mlx.compiler.runtime.precision import set_precision

    imports, functions = runtime_source({"set_precision": set_precision})
    entries = "".join(f"    {json.dumps(p)}: {json.dumps(n)},\n" for p, n in policy.items())
    table = (
        "# Glob of module paths: type that they compute in; the last match wins.\n"
        f"PRECISION = {{\n{entries}}}"
    )
    head, code = source.split("\n\nimport mlx", 1)
    title, *standard = head.split("\n\n", 1)
    lines = sorted({*"".join(standard).splitlines(), *imports})
    body = f"{title}\n\n" + "\n".join(lines) + f"\n\nimport mlx{code}"
    at = body.rindex("@dataclass\nclass ModelArgs")
    text = (
        body[:at]
        + f"{functions}\n\n\n{table}\n\n\n" + body[at:].rstrip() + "\n\n"
        + "    def load_weights(self, file_or_weights, strict=True):\n"
        + '        """Takes weights as any module, and then gives modules their types."""\n'
        + "        super().load_weights(file_or_weights, strict)\n"
        + "        set_precision(self, PRECISION)\n"
        + "        return self\n"
    )  # fmt: skip
    return formatted(text)
