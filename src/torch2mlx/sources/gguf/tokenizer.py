"""The tokenizer inside of a GGUF file, as the files that transformers saves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch2mlx.errors import SourceError
from torch2mlx.messages import first_line
from torch2mlx.sources.remote.files import RemotePath

__all__ = ["GGUFTokenizerFiles"]

_PIECE = 4 << 20


class GGUFTokenizerFiles(Mapping[str, Path]):
    """Tokenizer files by name, converted by transformers when they are first asked for.

    They live in a temporary folder that goes with this object.

    Args:
        file: the GGUF file (the first part of a split one).
        header: bytes of it before the first tensor.

    Raises:
        SourceError: on first use, where transformers cannot convert the tokenizer.
    """

    def __init__(self, file: Path, header: int) -> None:
        self._file = file
        self._header = header
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._found: dict[str, Path] = {}

    def _files(self) -> dict[str, Path]:
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="torch2mlx-tokenizer-")
            from transformers import AutoTokenizer

            try:
                with _local(self._file, self._header) as file:
                    tokenizer = AutoTokenizer.from_pretrained(
                        str(file.parent), gguf_file=file.name, trust_remote_code=False
                    )
                tokenizer.save_pretrained(folder.name)
            except Exception as error:
                # transformers raises whatever the missing or unknown piece leads to.
                folder.cleanup()
                reason = first_line(error)
                raise SourceError(
                    f"{self._file}: transformers cannot convert its tokenizer: {reason}; convert "
                    "from the original checkpoint instead"
                ) from error
            self._folder = folder
            root = Path(folder.name)
            self._found = {
                path.relative_to(root).as_posix(): path
                for path in sorted(root.rglob("*"))
                if path.is_file()
            }
        return self._found

    def __getitem__(self, name: str) -> Path:
        return self._files()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files())

    def __len__(self) -> int:
        return len(self._files())


@contextmanager
def _local(file: Path, header: int) -> Iterator[Path]:
    """A GGUF file on this machine; of a remote one, its header and a hole for its tensors."""
    if not isinstance(file, RemotePath) or file.remote is None:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="torch2mlx-header-") as folder:
        place = Path(folder) / file.name
        with place.open("wb") as copy, file.open("rb") as there:
            for start in range(0, header, _PIECE):
                copy.write(there.read(min(_PIECE, header - start)))
            copy.truncate(file.remote.size)
        yield place
