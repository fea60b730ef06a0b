"""The language model of multimodal checkpoints, against what the whole computes on text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch
from safetensors.torch import load_file, save_file

from torch2mlx.errors import OptionError
from torch2mlx.sources.companions import companion_files
from torch2mlx.sources.text_model import text_model_config

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 288, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8, "projection_dim": 32,
}  # fmt: skip


def _saved(folder: Path, kind: str, text: dict[str, Any]) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, **text}, vision_config={**VISION, "model_type": "clip_vision_model"}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    (folder / "preprocessor_config.json").write_text('{"do_resize": true}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return model


@pytest.mark.parametrize(("named", "tied"), [("as saved", False), ("as modules", True)])
def test_it_computes_what_the_whole_does_on_text(
    named: str, tied: bool, tmp_path: Path, run_cli: Any
) -> None:
    from mlx_lm.utils import load_model

    source, out = tmp_path / "source", tmp_path / "out"
    model = _saved(source, "Llava", {"model_type": "llama", "tie_word_embeddings": tied})
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    tensors = load_file(source / "model.safetensors")
    if tied:
        tensors = {n: t for n, t in tensors.items() if "lm_head" not in n}
    if named == "as modules":
        usual = ("language_model.model.", "model.language_model.")
        tensors = {n.replace(*usual).replace("language_model.lm_", "lm_"): t
                   for n, t in tensors.items()}  # fmt: skip
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    done = run_cli("convert", source, out, "--text-only")
    assert done.code == 0, done.err
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["tie_word_embeddings"]) == ("llama", tied)
    for name in ("processor_config.json", "preprocessor_config.json", "1_Pooling/config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    ids = torch.tensor([[5, 9, 7, 200, 31]])
    with torch.no_grad():
        want = model(input_ids=ids).logits
    got = torch.tensor(load_model(out)[0](mx.array(ids.numpy())).tolist())
    assert float((want - got).norm() / want.norm()) < 1e-5
    assert run_cli("verify", source, out, "--text-only").code == 0


def test_what_has_no_language_model_is_refused(
    tmp_path: Path, run_cli: Any, checkpoint: Any
) -> None:
    done = run_cli("convert", checkpoint("llama"), tmp_path / "out", "--text-only")
    assert done.code == OptionError.exit_code
    assert "has no text_config" in done.message
    with pytest.raises(OptionError, match="no causal language model of type 'qwen2_vl_text'"):
        text_model_config(
            {"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl_text"}}
        )


def test_pooling_belongs_to_a_checkpoint(tmp_path: Path) -> None:
    kept = {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors",
            "sentence_bert_config.json", "config_sentence_transformers.json",
            "video_preprocessor_config.json", "chat_template.jinja"}  # fmt: skip
    for name in (*kept, "onnx/model.onnx", "1_Pooling/notes.txt", "modules.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert companion_files(tmp_path).keys() == kept
