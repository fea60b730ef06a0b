"""Addresses of remote files: recognised, and shown without what must stay secret."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["HUB", "is_url", "scrubbed", "shown"]

HUB = "hf://"

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*://")
_IN_TEXT = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*://[^\s'\"<>]+")


def is_url(location: str) -> bool:
    """Whether a location is an address such as s3://bucket/folder, not a path."""
    return _URL.match(location) is not None


def shown(url: str) -> str:
    """A location as messages and manifests may hold it: without user, password, query, fragment."""
    if not is_url(url):
        return url
    scheme, _, rest = url.partition("://")
    try:
        parts = urlsplit(f"x://{rest}")
    except ValueError:  # brackets that are no IPv6 address
        return f"{scheme}://…"
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def scrubbed(text: str) -> str:
    """A message of a library with every URL in it as `shown`; signed links carry credentials."""
    return _IN_TEXT.sub(lambda found: shown(found[0]), text)
