"""Tokenizer files tried out in a process of their own before anything here loads them.

A tokenizer is a program: its patterns can backtrack for hours, its chat template can loop or build
a text that fills the memory, and a damaged vocabulary can end the process that reads it.  A child
with limits on processor time and memory loads each file, tokenizes short texts and renders the
templates in the sandbox that transformers uses; what it survives is loaded afterwards.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError

__all__ = ["CPU_SECONDS", "MEMORY", "require_harmless"]

CPU_SECONDS = 5
MEMORY = 1 << 30  # bytes of address space beyond what the child needs to start
_WALL_SECONDS = 90  # for a busy machine
_LONGEST = 64 << 20  # bytes of a JSON file or template; the largest vocabularies take half of it

_TEXTS = (
    "Hello, world! def f(x):\n\treturn 1.5e-3  # 你好 😀",
    "a" * 600,
    " " * 200,
    "1" * 200,
    "aB" * 150 + "!",
    "<s> </s> <|endoftext|>",
)
_CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]


def require_harmless(folder: Path) -> None:
    """Raise if the tokenizer files of a folder take more than the limits on short texts.

    A file that is merely wrong passes: loading it in earnest says what is wrong.

    Args:
        folder: with tokenizer.json, tokenizer_config.json, *.model, *.jinja, or some of these.

    Raises:
        SourceError: names the file, and what it did.
    """
    files = list(_files(folder))
    if files:
        digest = hashlib.sha256()
        for path in files:
            if path.stat().st_size > _LONGEST:
                raise SourceError(
                    f"{path}: {path.stat().st_size:,} bytes, expected at most {_LONGEST:,}; "
                    "this is no tokenizer file"
                )
            digest.update(f"{path.name}\0".encode("utf-8", "replace") + path.read_bytes())
        found = _try_out(str(folder), digest.digest())
        if found:
            raise SourceError(f"{folder}/{found}")


def _files(folder: Path) -> Iterator[Path]:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.json")
    yield from (folder / name for name in names if (folder / name).is_file())
    for pattern in ("*.model", "*.spm", "*.jinja", "additional_chat_templates/*.jinja"):
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


@lru_cache(maxsize=64)
def _try_out(folder: str, _content: bytes) -> str:
    """What went wrong in the child, "" where nothing did; remembered by content."""
    try:
        done = subprocess.run(
            # -P: a module of the working directory must not pass for a library's.
            [
                *(sys.executable, "-P", "-c", f"import {__name__} as child; child.main()"),
                *(folder, str(CPU_SECONDS)),
            ],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired as late:
        begun, code = late.stdout or b"", None
    else:
        begun, code = done.stdout, done.returncode
    if code == 0:
        return ""
    names = begun.decode("utf-8", "replace").split("\n")[:-1]
    file = names[-1] if names else "tokenizer files"
    return (
        f"{file}: tried out on short texts, it took more than {CPU_SECONDS} s or "
        f"{MEMORY >> 30} GB of memory, or ended the process; it is not loaded. Compare the file "
        "with the original model's, or remove it"
    )


def main() -> None:
    """The child: try every file of the folder, within the seconds, of the command line."""
    folder = Path(sys.argv[1])
    _limit(int(sys.argv[2]))
    for path in _files(folder):
        sys.stdout.write(f"{path.relative_to(folder)}\n")
        sys.stdout.flush()
        with _merely_wrong():
            _try(path)


@contextmanager
def _merely_wrong() -> Iterator[None]:
    """Pass over what those who load a file afterwards find and tell; the child's end is its own."""
    try:
        yield
    except MemoryError:
        raise
    except Exception:
        return


def _limit(cpu_seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    with suppress(OSError, ValueError):  # Linux alone enforces it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (space, space))


def _try(path: Path) -> None:
    if path.name == "tokenizer.json":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        for text in _TEXTS:
            tokenizer.decode(tokenizer.encode(text).ids)
    elif path.suffix in (".model", ".spm"):
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(path))
        for text in _TEXTS:
            pieces.decode(pieces.encode(text))
    elif path.suffix == ".jinja":
        _render(path.read_text(encoding="utf-8"), {})
    else:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed = content.get("chat_template")
        for entry in listed if isinstance(listed, list) else [listed]:
            template = entry.get("template") if isinstance(entry, dict) else entry
            if isinstance(template, str):
                with _merely_wrong():
                    _render(template, content)


def _render(template: str, config: dict[str, Any]) -> None:
    """Render as `PreTrainedTokenizerBase.apply_chat_template` does."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda _format: "today"
    tokens: dict[str, Any] = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, str | dict)
    }
    compiled = environment.from_string(template)
    for messages in (_CONVERSATION[1:2], _CONVERSATION):
        with _merely_wrong():
            compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **tokens,
            )


def _refuse(message: str) -> None:
    raise ValueError(message)
