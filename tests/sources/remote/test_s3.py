"""s3:// as source and destination, against a server on this machine."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

import torch2mlx
from torch2mlx.errors import DestinationError, SourceError
from torch2mlx.sources.remote.files import RemoteFile

pytest.importorskip("s3fs")


class Bucket:
    """Objects of one bucket, and what was asked of them.

    Attributes:
        objects: content by key.
        sent: (key, bytes) of each answer with content.
        put: keys in the order in which they arrived.
        failures: answers "503 Slow Down" before the next ones succeed.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.sent: list[tuple[str, int]] = []
        self.put: list[str] = []
        self.failures = 0


class _S3(BaseHTTPRequestHandler):
    """The part of S3's REST interface that its client uses here: list, head, ranged get, put."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).partition("/shelf")[2].lstrip("/")

    def do_HEAD(self) -> None:
        data = self.bucket.objects.get(self._key)
        if not self._key:
            self._answer(200)
        elif data is None:
            self._answer(404)
        else:
            self._answer(
                200, Content_Length=str(len(data)), ETag=f'"{hashlib.md5(data).hexdigest()}"',
                Last_Modified="Mon, 02 Nov 2026 10:00:00 GMT",
            )  # fmt: skip

    def do_GET(self) -> None:
        if not self._key:
            self._list(parse_qs(urlsplit(self.path).query))
            return
        data = self.bucket.objects.get(self._key)
        if self.bucket.failures:
            self.bucket.failures -= 1
            self._refuse(503, "SlowDown")
        elif data is None:
            self._refuse(404, "NoSuchKey")
        else:
            start, stop = 0, len(data)
            if asked := self.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(stop, int(last) + 1 if last else stop)
            self.bucket.sent.append((self._key, stop - start))
            self._answer(206 if asked else 200, data[start:stop])

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        keys, folders = [], set()
        for key, data in sorted(self.bucket.objects.items()):
            if not key.startswith(prefix):
                continue
            head, slash, _ = key[len(prefix) :].partition("/")
            if slash and "delimiter" in query:
                folders.add(f"{prefix}{head}/")
            else:
                keys.append((key, data))
        body = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
            f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag>"
            "<LastModified>2026-11-02T10:00:00.000Z</LastModified></Contents>"
            for key, data in keys
        ) + "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders
        )
        self._answer(
            200,
            f"<ListBucketResult><Name>shelf</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(keys) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
            f"{body}</ListBucketResult>".encode(),
        )

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.bucket.objects[self._key] = data
        self.bucket.put.append(self._key)
        self._answer(200, ETag=f'"{hashlib.md5(data).hexdigest()}"')


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import s3fs

    found = Bucket()
    handler = type("Handler", (_S3,), {"bucket": found})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield found
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    thread.join()
    server.server_close()


def _put(bucket: Bucket, folder: Path) -> int:
    """Upload a folder; returns the bytes of its weights."""
    for path in folder.iterdir():
        bucket.objects[f"model/{path.name}"] = path.read_bytes()
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _contents(files: dict[str, bytes]) -> dict[str, Any]:
    manifest = json.loads(files["torch2mlx.json"])
    for changing in ("created", "measured", "source", "options"):
        del manifest[changing]
    return files | {"torch2mlx.json": manifest}


def test_a_bucket_to_a_bucket(
    bucket: Bucket,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bytes of a local conversion, the source never on the disk, config.json last."""
    source = checkpoint("llama")
    weights = _put(bucket, source)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    most = 0
    fetch = RemoteFile.fetch

    def measured(self: RemoteFile, start: int, stop: int) -> bytes:
        nonlocal most
        held = (p.stat().st_size for p in (tmp_path / "temporary").rglob("*") if p.is_file())
        most = max(most, sum(held))
        return fetch(self, start, stop)

    monkeypatch.setattr(RemoteFile, "fetch", measured)
    bucket.failures = 2
    options: dict[str, Any] = {"quantize": True, "verify": False, "max_shard_size": "100KB"}
    result = torch2mlx.convert("s3://shelf/model", "s3://shelf/made", **options)

    assert str(result.destination) == "s3://shelf/made"
    small = sum(p.stat().st_size for p in source.iterdir() if p.suffix != ".safetensors")
    assert most <= small  # beside the output, which is made locally
    fetched = sum(count for key, count in bucket.sent if key.endswith(".safetensors"))
    # Once, and of each file its header and both ends, which say whether it has changed.
    assert fetched <= weights + 5 * (1 << 16) * len(list(source.glob("*.safetensors")))
    assert bucket.put[-1] == "made/config.json"
    torch2mlx.convert(source, tmp_path / "local", **options)
    root = tmp_path / "local"
    local = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    made = {key[5:]: data for key, data in bucket.objects.items() if key.startswith("made/")}
    assert made.keys() == local.keys()
    for name in [name for name in made if name.startswith("torch2mlx/")]:  # memory over time
        made.pop(name), local.pop(name)
    local.pop("README.md"), made.pop("README.md")  # names the source
    assert _contents(made) == _contents(local)
    with pytest.raises(DestinationError, match="exists already"):
        torch2mlx.convert(source, "s3://shelf/made", **options)
    with pytest.raises(SourceError, match="no such folder"):
        torch2mlx.inspect("s3://shelf/nothing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_damaged_files_of_other_formats_are_told_in_words(bucket: Bucket, name: str) -> None:
    bucket.objects |= {"model/config.json": b'{"model_type": "llama"}', f"model/{name}": b"x" * 99}
    with pytest.raises(SourceError, match=f"s3://shelf/model/{name}: not a"):
        torch2mlx.inspect("s3://shelf/model")
