"""Tokenizer files of the output, and the proof that they tokenize as the source's do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import Any

from torch2mlx.architectures.catalog import ENDS_PROGRAM
from torch2mlx.errors import ParityError, SourceError
from torch2mlx.packaging.preflight import require_harmless
from torch2mlx.sources.strings import HARD_STRINGS

__all__ = [
    "TokenizerReport",
    "check_tokenizer",
    "copy_tokenizer_files",
    "has_tokenizer",
    "load_tokenizer",
]

# Names that this package writes itself or that a loader would take for weights.
_OWN = re.compile(
    r"config\.json|readme(\.source)?\.md|torch2mlx\.json|.*\.(safetensors|safetensors\.index\.json)"
    r"|.*\.(bin|pt|pth|gguf|npz)",
    re.IGNORECASE,
)
# mlx-lm reads this file, if config.json has no quantization, as a description of the weights.
_PACKING = "hf_quant_config.json"

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tiktoken.model",
    "*.tiktoken",
)

_SPELLED = "<s> </s> <|endoftext|> [INST] [MASK] <unk>"
_SHOWN = 10  # differences that a report lists
_MANY = 64  # special tokens that are tried; some vocabularies have thousands

_CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello 😀"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好\n\n  x = 1"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ],
)

NO_TOKENIZER = (
    "the checkpoint has no tokenizer, so neither has the output: mlx_lm.generate, mlx_lm.chat, "
    "mlx_lm.server and `torch2mlx generate` will not work with it; put tokenizer.json and "
    "tokenizer_config.json of the original model into the folder to use them"
)


@dataclass(frozen=True)
class TokenizerReport:
    """How the output's tokenizer compares with the source's.

    Attributes:
        available: a tokenizer was found and loaded on both sides.
        tokenizer_class: name of its class.
        vocabulary: number of its tokens, added ones included.
        embedding_rows: of the model; None where it was not known.
        strings: number of strings whose ids were compared.
        lossless: how many of them decode to themselves.  Many tokenizers normalise text, so
            this only informs; decoded texts of both sides must be equal.
        templates: names of the chat templates ("default" for an unnamed one).
        eos_token_ids: ids on which mlx-lm stops.
        errors: the output must not be used.
        warnings: something will not work, or could not be checked.
    """

    available: bool
    tokenizer_class: str | None = None
    vocabulary: int = 0
    embedding_rows: int | None = None
    strings: int = 0
    lossless: int = 0
    templates: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """No error was found; a missing tokenizer is none."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the manifest."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"passed": self.passed, **values}

    def require(self) -> None:
        """Raise ParityError with every error, if there is one."""
        if self.errors:
            raise ParityError(
                "the converted tokenizer is not usable:\n  " + "\n  ".join(self.errors)
            )


def copy_tokenizer_files(files: Mapping[str, Path], folder: Path) -> tuple[str, ...]:
    """Copy tokenizer, template, processor and generation files byte for byte.

    Args:
        files: file by its name in the output ("additional_chat_templates/rag.jinja").
        folder: of the output.

    Returns:
        Notes on files that were left out.

    Raises:
        SourceError: a name leads out of the folder or is that of a file written here, or a
            file cannot be read.
    """
    notes = []
    for name, source in sorted(files.items()):
        target = folder / _checked(name)
        if target.name.lower() == _PACKING:
            notes.append(f"{name} was left out: it describes how the source's weights were packed")
            continue
        try:
            handle = source.open("rb")
        except OSError as error:
            raise SourceError(f"{source}: cannot be read: {error.strerror or error}") from error
        with handle:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                output = target.open("xb")
            except (FileExistsError, NotADirectoryError) as error:
                raise SourceError(
                    f"file name {name!r} in the checkpoint collides with another one (macOS and "
                    "Windows do not tell capital letters apart); rename or remove one of them"
                ) from error
            with output:
                shutil.copyfileobj(handle, output, 1 << 20)
    return tuple(notes)


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    plain = all(p not in ("", ".", "..") and p.isprintable() for p in name.split("/"))
    if not plain or path.is_absolute() or "\\" in name or ":" in name or path.parts[0][0] == ".":
        raise SourceError(
            f"file name {name!r} in the checkpoint does not stay inside the output folder; "
            "expected a plain relative name; remove or rename the file"
        )
    if _OWN.fullmatch(name):
        raise SourceError(
            f"file name {name!r} is no tokenizer file: the output has a file of its own of "
            "that name or kind"
        )
    return path


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has any file from which transformers could build a tokenizer."""
    return any(next(folder.glob(pattern), None) is not None for pattern in _VOCABULARIES)


def load_tokenizer(source: Path, trust_remote_code: bool = False) -> Any:
    """The transformers tokenizer of a folder or of a GGUF file; nothing is downloaded.

    Raises:
        SourceError: transformers cannot build it; names --trust-remote-code where it needs
            Python code of the checkpoint.
    """
    from transformers import AutoTokenizer

    folder, gguf = (source.parent, source.name) if source.is_file() else (source, None)
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    if not gguf:
        if not has_tokenizer(folder):
            raise SourceError(
                f"{source}: has no tokenizer (tokenizer.json, tokenizer.model ...); put the files "
                "of the original model's there"
            )
        require_harmless(folder)
    try:
        return AutoTokenizer.from_pretrained(
            str(folder),
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **options,
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # JSON and protobuf errors, panics of Rust: what files provoke
        text = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in text:
            raise SourceError(
                f"{source}: its tokenizer is Python code of the checkpoint, which is not run "
                "without your consent; read it, then pass --trust-remote-code"
            ) from error
        raise SourceError(f"{source}: its tokenizer cannot be loaded: {text[:300]}") from error


def check_tokenizer(
    source: Path,
    output: Path,
    trust_remote_code: bool = False,
    embedding_rows: int | None = None,
) -> TokenizerReport:
    """Compare the output's tokenizer with the source's, directly and as mlx-lm wraps it.

    Ids with and without special tokens, decoded texts and chat-template renderings must be
    equal on strings that tokenizers are known to stumble over.

    Args:
        source: folder (or GGUF file) of the checkpoint.
        output: the converted folder, config.json included.
        trust_remote_code: allow tokenizers that are Python code of the checkpoint.
        embedding_rows: of the model; ids that reach beyond them are an error if text or a
            control token produces them, else a warning.
    """
    if source.is_dir() and not has_tokenizer(source):
        return TokenizerReport(False, warnings=(NO_TOKENIZER,))
    try:
        ours = load_tokenizer(source, trust_remote_code)
    except SourceError as error:
        return TokenizerReport(False, warnings=(f"tokenizer not checked: {error}",))
    try:
        theirs = load_tokenizer(output, trust_remote_code)
    except SourceError as error:
        return TokenizerReport(False, errors=(str(error),))

    check = _Check(ours, theirs)
    check.encode()
    templates = check.templates()
    eos = check.wrapped(output, trust_remote_code)
    check.rows(embedding_rows)
    if not templates and (output / "chat_template.json").exists():
        check.warnings.append(
            "the chat template is in chat_template.json alone, which transformers gives to "
            "processors only: mlx_lm.chat will send plain text"
        )
    errors = check.errors[:_SHOWN]
    if errors and type(ours) is not type(theirs):
        errors.insert(
            0,
            f"transformers loads the output's tokenizer as {type(theirs).__name__}, the source's "
            f"as {type(ours).__name__}: for some models it goes by model_type in config.json, "
            "whose name for the output is the port's; give the source the tokenizer files of the "
            "original model, which load alike under both",
        )
    if len(check.errors) > _SHOWN:
        errors.append(f"and {len(check.errors) - _SHOWN} more differences")
    return TokenizerReport(
        available=True,
        tokenizer_class=type(ours).__name__,
        vocabulary=len(ours),
        embedding_rows=embedding_rows,
        strings=check.strings,
        lossless=check.lossless,
        templates=templates,
        eos_token_ids=eos,
        errors=tuple(errors),
        warnings=tuple(check.warnings),
    )


class _Check:
    """Two tokenizers side by side, and what was found."""

    def __init__(self, source: Any, output: Any) -> None:
        self.source = source
        self.output = output
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.strings = 0
        self.lossless = 0
        self.used: set[int] = set()
        specials = [str(t) for t in source.all_special_tokens][:_MANY]
        marked = [f"a{t} b {t}{t}" for t in specials]
        self.texts = (*HARD_STRINGS, _SPELLED, *marked)

    def same(self, what: str, call: Callable[[Any], Any], other: Any = None) -> Any:
        """The source's result, or None where it raises; a different one is an error."""
        expected = _outcome(call, self.source)
        found = _outcome(call, self.output if other is None else other)
        if expected != found:
            self.errors.append(
                f"{what}: the output's tokenizer gives {str(found[1])[:120]}, the source's "
                f"{str(expected[1])[:120]}; copy the tokenizer files again"
            )
        return expected[1] if expected[0] else None

    def encode(self) -> None:
        if len(self.source) != len(self.output):
            self.errors.append(
                f"the output's tokenizer has {len(self.output)} tokens, the source's "
                f"{len(self.source)}; copy the tokenizer files again"
            )
        for text in self.texts:
            self.strings += 1
            for special in (False, True):
                ids = self.same(
                    f"ids of {text[:40]!r}",
                    methodcaller("encode", text, add_special_tokens=special),
                )
                if ids is None:
                    continue
                # Ids of control tokens that a text spells out are not what a user's text gives.
                if text in HARD_STRINGS:
                    self.used.update(ids)
                decoded = self.same(
                    f"text of the ids of {text[:40]!r}", methodcaller("decode", ids)
                )
                self.lossless += not special and decoded == text

    def templates(self) -> tuple[str, ...]:
        template = getattr(self.source, "chat_template", None)
        if template != getattr(self.output, "chat_template", None):
            self.errors.append("the output's chat templates differ from the source's")
        names: tuple[str | None, ...] = tuple(template) if isinstance(template, dict) else (None,)
        for name in names if template else ():
            for conversation in _CONVERSATIONS:
                ids = self.same(
                    f"chat template {name or 'default'!r}",
                    methodcaller(
                        "apply_chat_template",
                        conversation,
                        chat_template=name,
                        add_generation_prompt=True,
                        return_dict=False,
                    ),
                )
                self.used.update(ids or ())
        return tuple(name or "default" for name in names) if template else ()

    def wrapped(self, folder: Path, trust_remote_code: bool) -> tuple[int, ...]:
        """Load as `mlx_lm.load` does and compare once more; returns mlx-lm's stop ids."""
        from mlx_lm import utils as mlx_lm

        try:
            wrapper = mlx_lm.load_tokenizer(  # type: ignore[no-untyped-call]
                folder,
                {"trust_remote_code": trust_remote_code},
                eos_token_ids=mlx_lm.load_config(folder).get("eos_token_id"),
            )
        except SystemExit:
            self.errors.append(f"mlx-lm cannot load the tokenizer: {ENDS_PROGRAM}")
            return ()
        except Exception as error:  # whatever the files provoke in mlx-lm
            self.errors.append(f"mlx-lm cannot load the tokenizer: {str(error)[:300]}")
            return ()
        for text in self.texts:
            self.same(f"ids of {text[:40]!r} through mlx-lm", methodcaller("encode", text), wrapper)
        eos: tuple[int, ...] = tuple(sorted(wrapper.eos_token_ids))
        return eos

    def rows(self, count: int | None) -> None:
        """Ids that the embedding has no row for: MLX would read beyond it without a word."""
        if count is None:
            return
        tokens = {i: t for t, i in self.source.get_vocab().items() if i >= count}
        tokens.update({i: "?" for i in self.used if i >= count and i not in tokens})
        added = set(self.source.added_tokens_decoder)
        control = {self.source.bos_token_id, self.source.eos_token_id}
        # Real checkpoints carry added tokens that the model never sees, such as the image
        # token of a text-only Gemma 3.
        bad = {i for i in tokens if i not in added or i in control or i in self.used}
        for group, found in ((bad, self.errors), (set(tokens) - bad, self.warnings)):
            if group:
                examples = ", ".join(f"{i} {tokens[i]!r}" for i in sorted(group)[:3])
                found.append(
                    f"{len(group)} token ids lie beyond the embedding's {count} rows "
                    f"({examples}{', …' if len(group) > 3 else ''}); "
                    "the tokenizer belongs to another checkpoint, or the embedding was not "
                    "resized with it"
                )


def _outcome(call: Callable[[Any], Any], tokenizer: Any) -> tuple[bool, Any]:
    """(True, result) or (False, name of the exception).

    Tokenizers refuse some strings, and templates some conversations; both sides must do so
    alike.
    """
    try:
        return True, call(tokenizer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        return False, type(error).__name__
