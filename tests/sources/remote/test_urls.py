"""What of an address may be shown."""

from __future__ import annotations

import pytest

from torch2mlx.sources.remote.urls import is_url, scrubbed, shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a b/c", "s3://bucket/a b/c"),
        ("https://me:word@host:8080/x?X-Amz-Signature=1#f", "https://host:8080/x"),
        ("https://host", "https://host"),
        ("http://[bad/x", "http://…"),
        ("owner/name", "owner/name"),
    ],
)
def test_shown(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_text_of_libraries() -> None:
    text = "403 for url 'https://u:p@cdn/x?sig=abc' and (s3://k:s@b/y)"
    assert scrubbed(text) == "403 for url 'https://cdn/x' and (s3://b/y)"


@pytest.mark.parametrize("location", ["a/b", "./s3", "C:/x", "package.module:factory"])
def test_paths_are_no_urls(location: str) -> None:
    assert not is_url(location)
