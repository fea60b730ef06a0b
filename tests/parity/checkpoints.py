"""Build, save and run the zoo's models, in torch and through a port."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from zoo import VOCABULARY, Case

from torch2mlx.verification.corrections import correct

__all__ = [
    "TOLERANCE",
    "Saved",
    "add_tokenizer",
    "model_error",
    "port_error",
    "prepare",
    "quiet_libraries",
]

# Relative L2 error of fp32 logits.  Right ports measure 1e-7 to 2e-5, those that compute GELU by
# the other of its two formulas 1.4e-4 to 3.2e-4.
TOLERANCE = 1e-4

# Past every window of the cases and past the original context of those with scaled rotary
# embeddings; and a text below both.
LENGTHS = (64, 10)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Saved:
    """A case on disk with its logits in PyTorch.

    Attributes:
        folder: as transformers saved it.
        config: its config.json.
        flat: the same configuration in the style of transformers 4; None where that style
            cannot say it.
        tokens: ids [1, 64].
        logits: by number of tokens, from the start: [tokens, vocabulary].
    """

    folder: Path
    config: dict[str, Any]
    flat: dict[str, Any] | None
    tokens: Array
    logits: Mapping[int, Array]


def quiet_libraries() -> None:
    """Keep transformers' advice about made-up configurations off the screen."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def prepare(case: Case, folder: Path) -> Saved:
    """Build the case, run it in torch and save it with transformers."""
    import torch

    from torch2mlx.sources import open_checkpoint

    model = build(case)
    flat = flat_config(model)
    ids = torch.randint(
        3, VOCABULARY, (1, max(LENGTHS)), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        logits = {n: model(ids[:, :n], use_cache=False).logits[0].float().numpy() for n in LENGTHS}
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    checkpoint.source.close()
    return Saved(folder, checkpoint.config, flat, ids.numpy(), logits)


def add_tokenizer(model_type: str, folder: Path) -> None:
    """A tokenizer with a token for each id, in a folder that `prepare` has written."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3_5Tokenizer

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    if model_type == "qwen3_5_text":
        # The port is named qwen3_5, for which transformers takes this class whatever the files
        # say; so a tokenizer that is to load alike before and after has to be of it.
        names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<unk>"}
        Qwen3_5Tokenizer(vocab=words, merges=[], **names).save_pretrained(folder)
        return
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def build(case: Case, seed: int = 0) -> Any:
    """The case's model in torch: fp32, evaluation mode, parameters redrawn from the seed."""
    import torch
    import transformers

    options = deepcopy(dict(case.options))
    config = transformers.models.auto.CONFIG_MAPPING[case.model_type](**options)
    torch.manual_seed(seed)
    model = getattr(transformers, case.auto).from_config(config, dtype=torch.float32).eval()
    correct(model)  # of phimoe: tests/verification/test_corrections.py has its authors' formula
    embeddings = {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding)
    }
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape)
            if name in embeddings:
                parameter.copy_(0.02 * noise)  # as small as real ones: the norm's epsilon counts
            elif parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(1.2 * noise * parameter.shape[-1] ** -0.5)
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.add_(0.1 * torch.randn(buffer.shape))
    return model


_LEGACY_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}


def flat_config(model: Any) -> dict[str, Any] | None:
    """The same configuration as checkpoints of transformers 4 on the hub spell it.

    All keys written out; `rope_theta`, `rope_scaling` and `partial_rotary_factor` at top level;
    `torch_dtype` for `dtype`.

    Returns:
        None where transformers would read it as another model: rotary settings that differ by
        layer, or that an architecture of version 5 never had at top level.
    """
    flat = _flatten(deepcopy(model.config.to_dict()))
    try:
        read = type(model.config).from_dict(deepcopy(flat))
    except Exception:  # configuration classes validate with errors of any type
        return None
    same = _rope_settings(read) == _rope_settings(model.config)
    return flat if same else None


def _rope_settings(config: Any) -> Any:
    settings = config.get_text_config(decoder=True).to_dict().get("rope_parameters") or {}
    return {k: v for k, v in settings.items() if k != "type"}


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    flat = {
        k: _flatten(v) if k.endswith("_config") and isinstance(v, dict) else v
        for k, v in config.items()
    }
    if "dtype" in flat:
        flat["torch_dtype"] = flat.pop("dtype")
    rope = flat.pop("rope_parameters", None)
    if not rope:
        return flat
    if "full_attention" in rope or "sliding_attention" in rope:
        local = rope.get("sliding_attention") or {}
        rope = rope.get("full_attention") or local
        if local.get("rope_theta") != rope.get("rope_theta"):
            flat["rope_local_base_freq"] = local["rope_theta"]
    rope = dict(rope)
    names = _LEGACY_NAMES.get(flat["model_type"], {})
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            flat[names.get(key, key)] = rope.pop(key)
    if rope.get("rope_type", "default") == "default" and "mrope_section" not in rope:
        flat["rope_scaling"] = None
    else:
        flat["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    return flat


def port_error(saved: Saved, config: Mapping[str, Any]) -> float:
    """Relative L2 error of the port's logits, with this config and the saved weights, at worst.

    Runs in memory: the port's own mapping, float32, and a fresh cache as generation has it.

    Raises:
        Torch2MLXError: torch2mlx refuses the checkpoint.
    """
    from torch2mlx.architectures.port import load_port
    from torch2mlx.sources import open_checkpoint
    from torch2mlx.verification.candidate import build_candidate

    checkpoint = open_checkpoint(saved.folder)
    try:
        model = build_candidate(load_port(dict(config)), checkpoint.state, checkpoint.source)
    finally:
        checkpoint.source.close()
    return model_error(saved, model)


def model_error(saved: Saved, model: Any) -> float:
    """Relative L2 error of an MLX model's logits, at the worst of the lengths."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    errors = []
    for length, expected in saved.logits.items():
        with mx.stream(mx.cpu):
            ids = mx.array(saved.tokens[:, :length].astype(np.int32))
            found = model(ids, cache=make_prompt_cache(model)).astype(mx.float32)
            values = np.array(found)[0]
        errors.append(float(np.linalg.norm(values - expected) / np.linalg.norm(expected)))
    return max(errors)
