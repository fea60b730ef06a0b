"""Checkpoints that lie elsewhere: read by ranges, through fsspec and huggingface_hub."""

from __future__ import annotations
