"""Python between compiled methods: what no graph of fixed sizes can do, written by hand.

A model that says itself how long its result is compiles in parts: what is before the length is
known, and what is after.  A class in `torch2mlx.compiler.runtime` joins them.  It becomes the base
of the generated root class, in whose file it is copied, and is compared with the original's own
`forward`.

Before:  class Vits(nn.Module):                 with encode, decode
After:   class Vits(VitsSynthesis, nn.Module):  with __call__ as well
             sampling_rate = 16000
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Call", "Host"]


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments on which the whole is compared with the original.

    Attributes:
        name: what they are.
        arguments: of `__call__`, by name: tensors and plain values.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Host:
    """What joins the compiled methods of a model.

    Attributes:
        base: class of `torch2mlx.compiler.runtime` with a `__call__`; it imports MLX alone.
        constants: attributes of it that follow from the configuration.
        calls: to be compared; chosen such that no rounding of the original's is a near thing.
        original: what the original computes from the arguments of a call, nested as there.
    """

    base: type
    constants: Mapping[str, Any]
    calls: tuple[Call, ...]
    original: Callable[..., Any]

    @property
    def arguments(self) -> list[str]:
        """Names of what `__call__` takes."""
        return list(inspect.signature(self.base.__call__).parameters)[1:]

    def joined(self, text: str) -> str:
        """The source of the generated root class with the base and its constants."""
        lines = "".join(f"    {name} = {value!r}\n" for name, value in self.constants.items())
        head, found, rest = text.partition("(nn.Module):\n")
        assert found, "the root is a plain module"
        head += f"({self.base.__name__}, nn.Module):\n"
        before, method, after = rest.partition("    def ")
        return f"{head}{before.rstrip()}\n\n{lines}\n{method}{after}"
