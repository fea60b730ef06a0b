"""Places to read checkpoints from: fsspec's memory, and a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from torch2mlx.sources.remote import files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))


class Traffic:
    """What was asked of a server.

    Attributes:
        reads: (name, bytes) of each answer with the content of a file.
        failures: answers that break before the next ones succeed.
    """

    def __init__(self) -> None:
        self.reads: list[tuple[str, int]] = []
        self.failures = 0

    @property
    def nbytes(self) -> int:
        return sum(count for _, count in self.reads)

    def of(self, suffix: str) -> int:
        """Bytes of the files with a suffix."""
        return sum(count for name, count in self.reads if name.endswith(suffix))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], tuple[str, Traffic]]]:
    """Put a folder into fsspec's memory: its URL, and what is read from there."""
    traffic = Traffic()
    system = MemoryFileSystem()
    plain = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        if traffic.failures:
            traffic.failures -= 1
            raise ConnectionResetError("connection reset; see https://u:secret@host/x?sig=secret")
        data = plain(self, path, start=start, end=end, **options)
        traffic.reads.append((path, len(data)))
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)

    def put(folder: Path) -> tuple[str, Traffic]:
        for path in folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                system.pipe_file(f"/shelf/model/{name}", path.read_bytes())
        return "memory://shelf/model", traffic

    yield put
    if system.exists("/shelf"):
        system.rm("/shelf", recursive=True)


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that its client uses to read a model."""

    protocol_version = "HTTP/1.1"
    folder: Path
    traffic: Traffic

    def log_message(self, *_: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/owner/name"):
            return self._json(self._tree() if "/tree/" in path else self._model())
        file = self.folder / path.rpartition(f"/owner/name/resolve/{COMMIT}/")[2]
        if not file.is_file():
            self._head(404, 0, {"X-Error-Code": "EntryNotFound"})
            return None
        return self._content(file, body)

    def _content(self, file: Path, body: bool) -> None:
        data, status, headers = file.read_bytes(), 200, {}
        headers = {
            "ETag": f'"{_digest(data)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(data)), len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
        self._head(status, len(data), headers)
        if not body:
            return
        if self.traffic.failures and file.suffix == ".safetensors":
            self.traffic.failures -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.traffic.reads.append((file.name, len(data)))
        self.wfile.write(data)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def _model(self) -> Any:
        siblings = [
            {
                "rfilename": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "blobId": _digest(path.read_bytes())[:40],
            }
            for path in self._files()
        ]
        return {"id": "owner/name", "sha": COMMIT, "siblings": siblings, "tags": []}

    def _tree(self) -> Any:
        return [
            {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"]}
            for s in self._model()["siblings"]
        ]

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self._head(200, len(data), {"Content-Type": "application/json"})
        self.wfile.write(data)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[Path], tuple[str, Traffic]]]:
    """Serve a folder as the model owner/name of a hub, with an empty cache."""
    from huggingface_hub import HfFileSystem, constants

    traffic = Traffic()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    cache = tmp_path / "hub-cache"
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path)
    HfFileSystem.clear_instance_cache()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    def serve(folder: Path) -> tuple[str, Traffic]:
        _Hub.folder, _Hub.traffic = folder, traffic
        return "owner/name", traffic

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()
    HfFileSystem.clear_instance_cache()
