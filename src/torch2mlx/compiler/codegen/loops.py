"""Equal statements for one layer after the other, written as a loop.

Before:  x = self.layers[0](x, mask)
         x = self.layers[1](x, mask)
After:   for layer in self.layers:
             x = layer(x, mask)
"""

from __future__ import annotations

import re

__all__ = ["rolled"]

_INDEX = re.compile(
    r"(self(?:\.\w+|\[\d+\](?=\.))*\.\w+|(?<![\w.])(?:cache|(?:random_)?keys))\[(\d+)\]"
)
_LONGEST_BODY = 12


def rolled(lines: list[str], lengths: dict[str, int] | None = None, after: str = "") -> list[str]:
    """Statements with repetitions as loops; what they compute is unchanged.

    Args:
        lines: one statement each.
        lengths: source of a list's attribute → how many items it has.
        after: source that follows.
    """
    lines = _carried(lines, after)
    result: list[str] = []
    start = 0
    while start < len(lines):
        best: tuple[int, int, str] | None = None
        for size in range(1, min(_LONGEST_BODY, (len(lines) - start) // 2) + 1):
            body = "\n".join(lines[start : start + size])
            owners = dict.fromkeys(name for name, _ in _INDEX.findall(body))
            for owner in sorted(owners, key=lambda name: name == "cache"):
                count = _repetitions(lines, start, size, owner)
                if count > 1 and (best is None or count * size > best[0] * best[1]):
                    best = (count, size, owner)
        if best is None:
            result.append(lines[start])
            start += 1
            continue
        count, size, owner = best
        result += _loop(lines[start : start + size], owner, count, lengths or {})
        start += count * size
    return result


def _carried(lines: list[str], after: str) -> list[str]:
    """Let the first layer read the variable that the others read.

    Before:  h = self.layers[0](f(x), y)      After:  h = f(x)
             h = self.layers[1](h, y)                 h = self.layers[0](h, y)
                                                      h = self.layers[1](h, y)
    """
    result: list[str] = []
    for line, following in zip(lines, [*lines, ""][1:], strict=True):
        name, _, call = line.partition(" = ")
        index = next((int(n) for _, n in _INDEX.findall(call)), 0)
        first = _shifted(following, -1, index + 1)
        reads = list(re.finditer(rf"(?<![\w.]){re.escape(name)}(?![\w(.=])", first))[1:]
        if name.isidentifier() and len(reads) == 1 and first.startswith(f"{name} = "):
            before, rest = first[: reads[0].start()], first[reads[0].end() :]
            given = line[len(before) : len(line) - len(rest)]
            if line == before + given + rest and given != name and _enclosed(given):
                text = "\n".join([*lines, after])
                if not _renamed(result, given, name, text):
                    result.append(f"{name} = {given}")
                line = first
        result.append(line)
    return result


def _renamed(lines: list[str], old: str, new: str, text: str) -> bool:
    """Rename a variable that is assigned in these lines and read once, if nothing speaks against.

    Before:  inputs = embed(ids)      After:  h = embed(ids)
             h = inputs
    """
    if not old.isidentifier() or len(re.findall(rf"(?<![\w.]){old}\b", text)) != 2:
        return False
    for number, line in enumerate(lines):
        if line.startswith(f"{old} = "):
            between = "\n".join([line.partition(" = ")[2], *lines[number + 1 :]])
            if re.search(rf"(?<![\w.]){new}\b", between):
                return False
            lines[number] = f"{new}{line[len(old) :]}"
            return True
    return False


def _enclosed(text: str) -> bool:
    """Whether it is one argument."""
    if not text or text != text.strip():
        return False
    depth = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if depth < 0 or (c == "," and depth == 0):
            return False
    return depth == 0


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


def _loop(body: list[str], owner: str, count: int, lengths: dict[str, int]) -> list[str]:
    text = "\n".join(body)
    first = next(int(n) for name, n in _INDEX.findall(text) if name == owner)
    owners = {name for name, n in _INDEX.findall(text) if int(n) == first}
    words = set(re.findall(r"\w+", text))
    if owners == {owner}:
        variable = _singular(owner.rpartition(".")[2], words)
        inner = [line.replace(f"{owner}[{first}]", variable) for line in body]
        part = f"{owner}[{first}:{first + count}]"
        if first == 0:
            part = owner if count == lengths.get(owner) else f"{owner}[:{count}]"
        header = f"for {variable} in {part}:"
    elif owners == {owner, "cache"} and count == lengths.get(owner) and not first:
        variable = _singular(owner.rpartition(".")[2], words)
        inner = [
            line.replace(f"{owner}[{first}]", variable).replace(f"cache[{first}]", "layer_cache")
            for line in body
        ]
        header = f"for {variable}, layer_cache in zip({owner}, cache):"
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
