"""Checks of config.json: what the port reads of it, and what it silently takes as a default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from torch2mlx.architectures.limits import FLOAT16_OVERFLOWS
from torch2mlx.diagnosis.finding import Finding, Patient

__all__ = ["CHECKS"]

_NORM_AT = 0.75  # a stored Gemma norm is the weight less 1, so that its mean is far below this


def _readable(patient: Patient) -> Iterator[Finding]:
    for what in ("config", "tensors", "port", "generation_config", "manifest"):
        getattr(patient, what)
    for what, reason in patient.unreadable.items():
        yield Finding(
            f"unreadable-{what.partition('.')[0]}",
            "the model does not load",
            reason,
            "restore the file from the conversion, or convert again",
        )


def _lost_settings(patient: Patient) -> Iterator[Finding]:
    """Settings that are there under a name that the port does not read."""
    if patient.meant is None:
        return
    from torch2mlx.verification.folder import differences

    if patient.meant.module != patient.port.module:
        return
    lost = list(differences(patient.meant.args, patient.port.args))
    if lost:
        names = {text.partition(":")[0] for text in lost}
        fields = {k: v for k, v in patient.meant.config.items() if k in names}
        yield Finding(
            "lost-settings",
            "plausible text that becomes worse with its length, or noise",
            "mlx-lm reads config.json otherwise than PyTorch: " + "; ".join(lost[:4]),
            "write these keys in the port's own terms: --fix does",
            fix=lambda: patient.rewrite("config.json", fields),
        )


def _head(patient: Patient) -> Iterator[Finding]:
    if patient.config is None or patient.tensors is None:
        return
    heads = [n for n in patient.tensors if n.rpartition(".")[0].endswith("lm_head")]
    if patient.config.get("tie_word_embeddings") is True and heads:
        yield Finding(
            "tied-with-head",
            "loading fails, or the stored head is ignored",
            f"config.json says tie_word_embeddings, but {heads[0]} is stored",
            "set tie_word_embeddings to false if the head differs from the embedding",
        )


def _norm_shift(patient: Patient) -> Iterator[Finding]:
    """Gemma computes with 1 + weight; who stores 1 + weight has it twice."""
    if patient.config is None or patient.source is None:
        return
    text = patient.config.get("text_config")
    kinds = {patient.config.get("model_type"), (text or {}).get("model_type") if text else None}
    if not any(str(kind).startswith("gemma") for kind in kinds if kind):
        return
    names = [
        name
        for name, info in (patient.tensors or {}).items()
        if name.endswith("layernorm.weight") and len(info.shape) == 1
    ]
    means = [_mean(patient.source.read(name), patient.tensors[name].dtype) for name in names[:40]]  # type: ignore[index]
    if means and float(np.median(means)) > 1 + _NORM_AT:
        yield Finding(
            "norm-shift-twice",
            "noise from the first token on",
            f"norm weights average {np.median(means):.2f}: 1 was added twice",
            "convert from the original checkpoint again",
        )


def _mean(bits: Any, dtype: Any) -> float:
    if dtype.name == "BF16":
        bits = (bits.astype(np.uint32) << 16).view(np.float32)
    elif dtype.name == "F16":
        bits = bits.view(np.float16)
    return float(np.asarray(bits, np.float64).mean())


def _half_type(patient: Patient) -> Iterator[Finding]:
    config: Mapping[str, Any] = patient.config or {}
    name = config.get("torch_dtype") or config.get("dtype")
    if name == "float16" and str(config.get("model_type")).startswith(FLOAT16_OVERFLOWS):
        yield Finding(
            "float16-overflow",
            "NaN, noise or '!!!!' on longer prompts",
            f"{config.get('model_type')} overflows float16 in its activations",
            "convert to bfloat16: --dtype bfloat16",
        )


def _code(patient: Patient) -> Iterator[Finding]:
    file = (patient.config or {}).get("model_file")
    if file and not (patient.folder / str(file)).is_file():
        yield Finding(
            "model-file-missing",
            "mlx-lm cannot import the model",
            f"config.json names {file!r}, which is not in the folder",
            "restore the file from the conversion",
        )


CHECKS = (_readable, _lost_settings, _head, _norm_shift, _half_type, _code)
