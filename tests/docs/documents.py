"""Commands and Python code in Markdown: blocks, each with what says why it is not run.

A block is fenced, or indented by four blanks.  `<!-- not run: REASON -->` on the line above keeps
its commands from being run; they are parsed all the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "blocks", "commands"]

_MARK = re.compile(r"<!--\s*not run:\s*(\S.*?)\s*-->")
_PROGRAMS = (
    "torch2mlx", "python", "make", "pip", "accelerate", "torchrun", "mlx.launch", "mlx_lm",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Code in a document.

    Attributes:
        file: the document.
        line: of its first line.
        language: of its fence, "" where it has none.
        text: without the fence or the indentation.
        reason: why it is not run, or None.
    """

    file: Path
    line: int
    language: str
    text: str
    reason: str | None


def blocks(file: Path) -> Iterator[Block]:
    """Code blocks in the order of a document."""
    lines = file.read_text(encoding="utf-8").splitlines()
    number, reason = 0, None
    while number < len(lines):
        line = lines[number]
        mark = _MARK.search(line)
        if mark:
            reason = mark[1]
        elif line.startswith("```"):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].startswith("```"))
            text = "\n".join(lines[number + 1 : end])
            yield Block(file, number + 2, line[3:].strip(), text, reason)
            number, reason = end, None
        elif line.startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(part[4:] for part in lines[number:end]).rstrip()
            yield Block(file, number + 1, "", text, reason)
            number, reason = end - 1, None
        elif line.strip():
            reason = None
        number += 1


def commands(block: Block) -> list[list[str]]:
    """Command lines of a block, split as a shell does; lines that end in \\ go on."""
    if block.language == "python":
        return []
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        name = line.split(" ", 1)[0]
        if name in _PROGRAMS or name.split(".")[0] in ("mlx_lm",):
            found.append(shlex.split(line, comments=True))
    return found
