"""One thing that is wrong, and the folder that it was found in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch2mlx.errors import SourceError, Torch2MLXError
from torch2mlx.sources.base import TensorInfo
from torch2mlx.sources.local_files import read_json_object
from torch2mlx.sources.safetensors import SafetensorsSource

__all__ = ["Finding", "Patient"]


@dataclass(frozen=True)
class Finding:
    """A symptom with its cause and its cure.

    Attributes:
        name: of the check's result ("stale-shards").
        symptom: what a user sees.
        cause: what was found.
        cure: what to do.
        fix: carries the cure out, where that is safe; None: the user has to.
    """

    name: str
    symptom: str
    cause: str
    cure: str
    fix: Callable[[], None] | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {k: v for k, v in vars(self).items() if k != "fix"}
        return {**plain, "fixable": self.fix is not None}


class Patient:
    """An MLX folder; its parts are read when a check asks for them.

    A part that cannot be read is None, and `unreadable` says why: the checks that need it have
    nothing to say, and one finding says that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: dict[str, str] = {}

    def read(self, what: str, read: Callable[[], Any]) -> Any:
        """What `read` returns; None where it raises an error of ours, which is kept."""
        try:
            return read()
        except Torch2MLXError as error:
            self.unreadable[what] = str(error)
            return None

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """config.json."""
        path = self.folder / "config.json"
        found: dict[str, Any] | None = self.read("config.json", lambda: read_json_object(path))
        return found

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, {} where there is none."""
        path = self.folder / "generation_config.json"
        if not path.exists():
            return {}
        return self.read("generation_config.json", lambda: read_json_object(path)) or {}

    @cached_property
    def files(self) -> list[Path]:
        """The weight files that mlx-lm loads: every model*.safetensors, listed or not."""
        return sorted(self.folder.glob("model*.safetensors"))

    @cached_property
    def source(self) -> SafetensorsSource | None:
        """The weight files, opened."""
        if not self.files:
            self.unreadable["weights"] = f"{self.folder}: no model*.safetensors"
            return None
        found: SafetensorsSource | None = self.read(
            "weights", lambda: SafetensorsSource(self.files)
        )
        return found

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo] | None:
        """Headers of all tensors."""
        return self.source.tensors if self.source is not None else None

    @cached_property
    def port(self) -> Any:
        """The port that mlx-lm builds from config.json as it is; None: it has code of its own."""
        from torch2mlx.architectures.port import plain_port

        if self.config is None or self.config.get("model_file") or self.compiled:
            return None
        config = self.config
        return self.read("port", lambda: plain_port(config))

    @property
    def compiled(self) -> bool:
        """Mlx-lm does not load the folder: it has its own code, or is one of mlx-audio."""
        config = self.config or {}
        return ("model_class" in config and "model_type" not in config) or self.of_mlx_audio

    @property
    def of_mlx_audio(self) -> bool:
        """Mlx-audio loads the folder, and has the code for it."""
        port = self.manifest.plan.get("port") if self.manifest is not None else None
        return isinstance(port, str) and port.startswith("mlx_audio.")

    @property
    def transducer(self) -> Mapping[str, Any] | None:
        """What config.json says of a compiled encoder-decoder; None: it is none."""
        found = (self.config or {}).get("generation")
        return found if self.compiled and isinstance(found, dict) else None

    @cached_property
    def generated(self) -> Any:
        """The port that torch2mlx generates for config.json, where the folder says it has one.

        Following the original takes PyTorch, and seconds; without it this is None.
        """
        from importlib.util import find_spec

        from torch2mlx.architectures.port import MODEL_FILE, load_port
        from torch2mlx.precision import CONFIG_KEY

        config = {k: v for k, v in (self.config or {}).items() if k != CONFIG_KEY}
        if config.get("model_file") != MODEL_FILE or find_spec("torch") is None:
            return None
        return self.read("port", lambda: load_port(config))

    @cached_property
    def meant(self) -> Any:
        """The port that the config means, keys of every version of transformers understood."""
        from torch2mlx.architectures.port import load_port

        if self.port is None:
            return None
        config = {k: v for k, v in (self.config or {}).items() if not k.startswith("quantization")}
        try:
            return load_port(config)
        except Torch2MLXError:  # a config of an older conversion may have lost what that needs
            return None

    @cached_property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer."""
        from torch2mlx.packaging.tokenizer import has_tokenizer, load_tokenizer

        def opened() -> Any:
            tokenizer = load_tokenizer(self.folder)
            try:
                tokenizer.encode("a")
            except ImportError as error:  # those of speech models turn text into phonemes
                needed = " ".join(str(error).split())[:200]
                raise SourceError(
                    f"{self.folder}: its tokenizer encodes nothing: {needed}"
                ) from error
            return tokenizer

        if not has_tokenizer(self.folder):
            return None
        return self.read("tokenizer", opened)

    @cached_property
    def manifest(self) -> Any:
        """torch2mlx.json; None where the folder has none."""
        from torch2mlx.packaging.manifest import MANIFEST, read_manifest

        if not (self.folder / MANIFEST).exists():
            return None
        return self.read("torch2mlx.json", lambda: read_manifest(self.folder))

    def close(self) -> None:
        """Release the weight files."""
        if "source" in self.__dict__ and self.source is not None:
            self.source.close()

    def rewrite(self, name: str, changes: Mapping[str, Any]) -> None:
        """Set keys of a JSON file; the file as it was stays beside it with the ending .bak.

        Raises:
            SourceError: the file cannot be written.
        """
        path = self.folder / name
        try:
            before = path.read_bytes() if path.exists() else b"{}"
            backup = path.with_name(f"{path.name}.bak")
            if path.exists() and not backup.exists():
                backup.write_bytes(before)
            after = {**json.loads(before), **changes}
            path.write_text(json.dumps(after, indent=4) + "\n", encoding="utf-8")
        except OSError as error:
            raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from error
