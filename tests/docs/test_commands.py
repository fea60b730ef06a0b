"""Every command of the README and of docs: parsed always, run where nothing says why not."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import Block, blocks, commands
from places import furnish

from torch2mlx.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
_GENERATE = "mlx_lm.generate"
_IDS = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def _torch2mlx(command: list[str]) -> list[str] | None:
    """Arguments of a command line of torch2mlx, however it is started."""
    if command[0] == "torch2mlx":
        return command[1:]
    for number in range(len(command) - 1):
        if command[number : number + 2] == ["-m", "torch2mlx"]:
            return command[number + 2 :]
    return None


def _problem(command: Any, arguments: list[str]) -> str | None:
    """What the command line refuses; the class of click's exceptions, wherever typer keeps it."""
    try:
        command.make_context(arguments[0], list(arguments[1:]))
    except Exception as error:
        name = type(error).__name__
        return name if name in ("Exit", "MissingParameter") else f"{name}: {error}"
    return None


def _all() -> Iterator[tuple[Block, list[str]]]:
    for path in DOCUMENTS:
        for block in blocks(path):
            for command in commands(block):
                yield block, command


def test_commands_are_understood() -> None:
    """Options exist, scripts are there and know their options, make knows the targets."""
    group: Any = typer.main.get_command(app)
    makefile = (ROOT / "Makefile").read_text()
    count = 0
    for block, command in _all():
        place = f"{block.file.relative_to(ROOT)}:{block.line}: {' '.join(command)}"
        arguments = _torch2mlx(command)
        if arguments is not None:
            if arguments[0].startswith("-"):
                continue
            known = group.commands.get(arguments[0])
            assert known is not None, place
            found = _problem(known, arguments)
            assert found in (None, "Exit"), f"{place}: {found}"
            count += 1
        elif command[0] == "python" and command[1].endswith(".py"):
            script = ROOT / command[1]
            assert script.is_file(), place
            text = "".join(path.read_text() for path in script.parent.glob("*.py"))
            for word in command[2:]:
                assert not word.startswith("--") or word[2:] in text, f"{place}: {word}"
        elif command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), place
    assert count > 40


def test_commands_inside_sentences_are_understood() -> None:
    group: Any = typer.main.get_command(app)
    count = 0
    for path in DOCUMENTS:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for line in re.findall(r"`((?:python -m )?torch2mlx [a-z][^`\n]*)`", text):
            arguments = _torch2mlx(shlex.split(line))
            assert arguments is not None
            known = group.commands.get(arguments[0])
            assert known is not None, f"{path.name}: {line}"
            found = _problem(known, arguments)
            # Without its arguments, the command alone is meant.
            assert found in (None, "Exit", "MissingParameter"), f"{path.name}: {line}: {found}"
            count += 1
    assert count > 20


def test_the_chinese_readme_has_the_commands_of_the_english_one() -> None:
    pair = [
        [command for block in blocks(ROOT / name) for command in commands(block)]
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert pair[0] == pair[1]


def test_what_is_not_run_has_a_reason() -> None:
    """Few programs other than torch2mlx are run here, so blocks of others must say why."""
    for block, command in _all():
        if _torch2mlx(command) is None and command[0] != _GENERATE:
            place = f"{block.file.relative_to(ROOT)}:{block.line}: {' '.join(command)}"
            assert block.reason, f"{place}: no <!-- not run: REASON -->"


def _run_mlx_lm(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-lm's own program, in this process."""
    from mlx_lm.generate import main

    monkeypatch.setattr("sys.argv", [*command, "--max-tokens", "4"])
    main()


def _fresh(arguments: list[str], place: Path) -> None:
    """Remove what an earlier command of the document left where this one writes."""
    if arguments[0] != "convert":
        return
    further = [f"DST-{name}" for name in ("8bit", "bf16") if "--also" in arguments]
    for name in ("DST", "out/", *further):
        if name in arguments or name in further:
            shutil.rmtree(place / name, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=_IDS)
def test_commands_run(
    document: Path,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: Any,
) -> None:
    """In the order of the document, in one folder, with tiny models in place of the named ones."""
    run = [block for block in blocks(document) if not block.reason]
    furnish(tmp_path, "\n".join(block.text for block in run), checkpoint)
    monkeypatch.chdir(tmp_path)
    for block in run:
        place = f"{document.name}:{block.line}"
        named = re.match(r"# (\w+\.py)\n", block.text)
        if block.language == "python" and named is not None:
            (tmp_path / named[1]).write_text(block.text)
        elif block.language == "python" and "tutorials" in document.parts:
            exec(compile(block.text, place, "exec"), {"__name__": "__main__"})
        for command in commands(block):
            if command[0] == _GENERATE:
                _run_mlx_lm(command, monkeypatch)
            arguments = _torch2mlx(command)
            if arguments is None:
                continue
            _fresh(arguments, tmp_path)
            done = run_cli(*arguments)
            assert done.code == 0, f"{place}: {' '.join(command)}\n{done.err}{done.out}"
