"""Checks of config.json: what the port reads of it, and what it silently takes as a default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from torch2mlx.architectures.limits import FLOAT16_OVERFLOWS
from torch2mlx.architectures.port import MODEL_FILE
from torch2mlx.diagnosis.finding import Finding, Patient
from torch2mlx.precision import CONFIG_KEY

__all__ = ["CHECKS"]

_PACKED = ("scales", "qweight", "weight_packed", "_blocks", "weight_scale", "scale_inv", "absmax")
_ADAPTERS = ("adapters.safetensors", "adapter_model.safetensors", "adapter_model.bin")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_NORM_AT = 0.75  # a stored Gemma norm is the weight less 1, so that its mean is far below this


def _readable(patient: Patient) -> Iterator[Finding]:
    for what in ("config", "tensors", "port", "generated", "generation_config", "manifest"):
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
    parts = [patient.config, *([text] if isinstance(text, dict) else [])]
    if not any(str(part.get("model_type")).startswith("gemma") for part in parts):
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
    config = patient.config or {}
    file = MODEL_FILE if patient.compiled and not patient.of_mlx_audio else config.get("model_file")
    if not file:
        return
    path = patient.folder / str(file)
    try:
        there = path.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        yield Finding(
            "model-file-missing",
            "the model cannot be imported",
            f"config.json needs {file!r}, which is not in the folder",
            "restore the file from the conversion",
        )
    elif patient.generated is not None:
        text = path.read_text(encoding="utf-8", errors="replace")
        if not patient.generated.is_source(text, config.get(CONFIG_KEY) or {}):
            yield Finding(
                "model-file-foreign",
                "torch2mlx generate refuses the folder; mlx-lm runs whatever the file says",
                f"{file} is not what this version writes for config.json",
                "read the file; if it was not meant to change, convert again",
            )


def _packing(patient: Patient) -> Iterator[Finding]:
    """Settings of packed weights that the conversion unpacked, or another tool forgot."""
    config = patient.config or {}
    left = config.get("quantization_config")
    if not isinstance(left, dict) or "quant_method" not in left or patient.tensors is None:
        return
    if isinstance(config.get("quantization"), dict):  # which mlx-lm reads in its place
        return
    if not any(name.endswith(_PACKED) for name in patient.tensors):
        yield Finding(
            "packing-left",
            "loading fails, or weights are taken for packed ones",
            f"config.json says the weights are packed ({left['quant_method']}), and none is",
            "remove the key 'quantization_config' from config.json",
        )


def _adapter(patient: Patient) -> Iterator[Finding]:
    lying = [name for name in _ADAPTERS if (patient.folder / name).is_file()]
    if lying:
        yield Finding(
            "adapter-not-merged",
            "the model answers as if it had never been trained further",
            f"{lying[0]} lies beside the weights, and programs that load the folder ignore it",
            "merge it: torch2mlx convert SRC DST --adapter FOLDER; or give it as --adapter-path",
        )


def _processor(patient: Patient) -> Iterator[Finding]:
    settings = patient.transducer
    if settings is None or settings.get("takes") == "tokens":
        return
    if not any((patient.folder / name).is_file() for name in _PROCESSORS):
        yield Finding(
            "processor-missing",
            "no sound can be given, features alone",
            "the model takes sound, and nothing in the folder says how it becomes features",
            f"copy {_PROCESSORS[0]} of the original model into the folder",
        )


CHECKS = (
    _readable, _lost_settings, _head, _norm_shift, _half_type, _code, _packing, _adapter, _processor
)  # fmt: skip
