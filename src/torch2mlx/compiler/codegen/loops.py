"""Equal statements for one layer after the other, written as a loop.

Before:  x = self.layers[0](x, mask)
         x = self.layers[1](x, mask)
After:   for layer in self.layers:
             x = layer(x, mask)
"""

from __future__ import annotations

import re

__all__ = ["rolled"]

_INDEX = re.compile(r"(self(?:\.\w+|\[\d+\](?=\.))*\.\w+)\[(\d+)\]")
_LONGEST_BODY = 12


def rolled(lines: list[str], lengths: dict[str, int] | None = None) -> list[str]:
    """Statements with repetitions as loops; what they compute is unchanged.

    Args:
        lines: one statement each.
        lengths: source of a list's attribute → how many items it has.
    """
    lines = _carried(lines)
    result: list[str] = []
    start = 0
    while start < len(lines):
        best: tuple[int, int, str] | None = None
        for size in range(1, min(_LONGEST_BODY, (len(lines) - start) // 2) + 1):
            body = "\n".join(lines[start : start + size])
            for owner in dict.fromkeys(name for name, _ in _INDEX.findall(body)):
                count = _repetitions(lines, start, size, owner)
                if count > 1 and (best is None or count * size > best[0] * best[1]):
                    best = (count, size, owner)
        if best is None:
            result.append(lines[start])
            start += 1
            continue
        count, size, owner = best
        result += _loop(lines[start : start + size], owner, count, (lengths or {}).get(owner, -1))
        start += count * size
    return result


def _carried(lines: list[str]) -> list[str]:
    """Let the first layer read the variable that the others read.

    Before:  h = self.layers[0](x)      After:  h = x
             h = self.layers[1](h)              h = self.layers[0](h)
                                                h = self.layers[1](h)
    """
    result: list[str] = []
    for number, line in enumerate(lines):
        match = re.match(r"(\w+) = (.*self\S*\[(\d+)\].*)$", line)
        if match is not None and number + 1 < len(lines):
            name, call, index = match[1], match[2], int(match[3])
            for given in dict.fromkeys(re.findall(r"(?<![\w.])[a-zA-Z_]\w*(?![\w(.=])", call)):
                renamed = re.sub(rf"(?<![\w.]){given}(?![\w(.=])", name, call)
                unread = re.search(rf"(?<![\w.]){name}\b", call) is None
                if unread and _shifted(f"{name} = {renamed}", 1, index) == lines[number + 1]:
                    result.append(f"{name} = {given}")
                    line = f"{name} = {renamed}"
                    break
        result.append(line)
    return result


def _shifted(line: str, by: int, index: int) -> str:
    """The line of a later repetition: every list's `index` moved on."""
    return _INDEX.sub(lambda m: f"{m[1]}[{int(m[2]) + by}]" if int(m[2]) == index else m[0], line)


def _repetitions(lines: list[str], start: int, size: int, owner: str) -> int:
    body = lines[start : start + size]
    indices = {int(n) for name, n in _INDEX.findall("\n".join(body)) if name == owner}
    if len(indices) != 1:
        return 1
    index = indices.pop()
    count = 1
    while [_shifted(line, count, index) for line in body] == lines[
        start + count * size : start + (count + 1) * size
    ]:
        count += 1
    return count


def _loop(body: list[str], owner: str, count: int, length: int) -> list[str]:
    text = "\n".join(body)
    first = next(int(n) for name, n in _INDEX.findall(text) if name == owner)
    owners = {name for name, n in _INDEX.findall(text) if int(n) == first}
    words = set(re.findall(r"\w+", text))
    if owners == {owner}:
        variable = _singular(owner.rpartition(".")[2], words)
        inner = [line.replace(f"{owner}[{first}]", variable) for line in body]
        part = f"{owner}[{first}:{first + count}]"
        if first == 0:
            part = owner if count == length else f"{owner}[:{count}]"
        header = f"for {variable} in {part}:"
    else:
        variable = "i" if "i" not in words else "index"
        inner = body
        for name in owners:
            inner = [line.replace(f"{name}[{first}]", f"{name}[{variable}]") for line in inner]
        bounds = f"{first}, {first + count}" if first else str(count)
        header = f"for {variable} in range({bounds}):"
    return [header, *(f"    {line}" for line in inner)]


def _singular(name: str, words: set[str]) -> str:
    word = name[:-1] if name.endswith("s") and len(name) > 2 else "block"
    return word if word not in words else f"{word}_module"
