"""Fingerprints of what a converted folder holds, and of what a conversion imported.

    python benchmarks/contents.py tensors FOLDER OUT.json
    python benchmarks/contents.py modules OUT.json -m mlx_lm convert …
    python benchmarks/contents.py import MODULES.json

`tensors` hashes each tensor apart, so two folders can be compared whatever their shards are and
without both on the disk.  `modules` runs a module as `python -m` would and writes the names of
everything that was imported; `import` imports those and does nothing else, not even take them apart
at its end.  The benchmark takes what that last process uses as the import footprint of the program.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import runpy
import struct
import sys
import warnings
from pathlib import Path

__all__ = ["import_all", "imported_modules", "lasting_contents", "tensor_digests"]

CHUNK = 2**23


def lasting_contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes; of the manifest and the evidence what does not depend on the time."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    for name in ("torch2mlx.json", "torch2mlx/evidence.json"):
        told = json.loads(files.get(name, b"{}"))
        for changing in ("created", "measured", "memory"):
            told.pop(changing, None)
        files[name] = json.dumps(told).encode()
    return files


def tensor_digests(folder: Path) -> dict[str, str]:
    """For each tensor in `folder`'s safetensors files "dtype shape blake2b(bytes)" by its name."""
    digests: dict[str, str] = {}
    buffer = memoryview(bytearray(CHUNK))
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb", buffering=0) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                digest, left = hashlib.blake2b(digest_size=16), end - begin
                while left:
                    count = file.readinto(buffer[: min(left, CHUNK)])
                    if not count:
                        raise EOFError(f"{path}: {name} ends {left} bytes early")
                    digest.update(buffer[:count])
                    left -= count
                digests[name] = f"{entry['dtype']} {entry['shape']} {digest.hexdigest()}"
    return digests


def imported_modules(arguments: list[str]) -> list[str]:
    """Names of modules that `python -m arguments…` imports, in order; "-torch" for a hidden one.

    `sys.exit(0)` and `os._exit(0)` count as its end.  Modules without a spec, which libraries make
    up at run time, cannot be imported by name and are left out.
    """
    before = set(sys.modules)
    sys.argv = arguments
    leave, os._exit = os._exit, sys.exit  # type: ignore[assignment]
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        os._exit = leave
    new = [(name, module) for name, module in list(sys.modules.items()) if name not in before]
    return [f"-{name}" for name, module in new if module is None] + [
        name
        for name, module in new
        if getattr(module, "__spec__", None) is not None and not name.endswith("__main__")
    ]


def import_all(names: list[str]) -> None:
    """Import every module; what cannot be imported by itself is skipped, "-torch" is hidden."""
    warnings.simplefilter("ignore")
    for name in names:
        if name.startswith("-"):
            sys.modules[name[1:]] = None  # type: ignore[assignment]
            continue
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def main(arguments: list[str]) -> None:
    """Command line: see the module's text."""
    match arguments:
        case ["tensors", folder, out]:
            Path(out).write_text(json.dumps(tensor_digests(Path(folder))))
        case ["modules", out, "-m", *rest]:
            Path(out).write_text(json.dumps(imported_modules(rest)))
        case ["import", names]:
            import_all(json.loads(Path(names).read_text()))
            os._exit(0)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
