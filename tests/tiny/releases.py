"""Tiny releases in their authors' layout, cut and named as those of Meta and Mistral are."""

from __future__ import annotations

import base64
import json
import shutil

import torch
from safetensors.torch import save_file

HEADS, KEY_HEADS = 4, 2
PARAMS = {
    "dim": 128, "n_layers": 3, "n_heads": HEADS, "n_kv_heads": KEY_HEADS, "norm_eps": 1e-6,
    "rope_theta": 50_000.0, "vocab_size": -1, "multiple_of": 256,
}  # fmt: skip
LEAVES = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip
ALONG_INPUT = ("wo.weight", "w2.weight")


def interleaved(weight, heads):
    """Rows of a head as pairs that rotate together, from the two halves of transformers."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()


def original_names(state, heads=HEADS, key_heads=KEY_HEADS):
    result = {}
    for name, tensor in state.items():
        new = name.replace("model.embed_tokens", "tok_embeddings").replace("lm_head", "output")
        new = new.removeprefix("model.")
        for theirs, ours in LEAVES.items():
            new = new.replace(theirs, ours)
        if new.endswith(("wq.weight", "wk.weight")):
            tensor = interleaved(tensor, heads if "wq" in new else key_heads)
        result[new] = tensor
    return result


def meta_release(folder, state, ranks, embedding_axis=1):
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    parts = [{"rope.freqs": torch.ones(16)} for _ in range(ranks)]
    for name, tensor in original_names(state).items():
        axis = 1 if name.endswith(ALONG_INPUT) else 0
        axis = embedding_axis if name == "tok_embeddings.weight" else axis
        cut = tensor.chunk(ranks, axis) if tensor.ndim == 2 else [tensor] * ranks
        for part, piece in zip(parts, cut, strict=True):
            part[name] = piece.clone()
    for rank, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")
    return folder


def mixtral_release(folder, state):
    """Layers dealt out to files, experts below each other, w2 as [inner, width]."""
    folder.mkdir()
    params = {**PARAMS, "moe": {"num_experts": 4, "num_experts_per_tok": 2}}
    (folder / "params.json").write_text(json.dumps(params))
    renamed = original_names(state)
    files = [{}, {}]
    experts = {}
    for name, tensor in renamed.items():
        layer = int(name.split(".")[1]) if name.startswith("layers.") else 0
        if ".experts." in name:
            stem, _, leaf = name.removesuffix(".weight").replace("mlp.", "").rpartition(".")
            block = stem.split(".experts.")[0].replace("block_sparse_moe", "")
            experts.setdefault((layer, leaf, block), []).append(tensor)
            continue
        files[layer % 2][name.replace("mlp.gate.", "block_sparse_moe.gate.")] = tensor.clone()
    for (layer, leaf, _), parts in experts.items():
        fused = torch.cat([p.T if leaf == "w2" else p for p in parts]).contiguous()
        files[layer % 2][f"layers.{layer}.block_sparse_moe.{leaf}"] = fused
    for i, part in enumerate(files):
        torch.save(part, folder / f"consolidated.{i:02d}.pt")


def mistral_release(folder, state):
    folder.mkdir()
    params = {**PARAMS, "vocab_size": 288, "head_dim": 32, "hidden_dim": 256}
    (folder / "params.json").write_text(json.dumps(params))
    save_file(original_names(state), folder / "consolidated.safetensors")


def small_sentencepiece(path):
    import sentencepiece

    text = ["the sun rises and the stars go out", "naïve café 你好 😀  def f(x):"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(path.with_suffix("")), vocab_size=288,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        hard_vocab_limit=False, minloglevel=2, user_defined_symbols=["[INST]"],
    )  # fmt: skip
    shutil.move(path.with_suffix("").with_suffix(path.with_suffix("").suffix + ".model"), path)


def byte_ranks():
    """256 bytes and a few longer tokens, by rank."""
    longer = [b"th", b"the", b" the", b"in", b"ing", "你".encode()]
    return [bytes([i]) for i in range(256)] + longer


def tiktoken_file(path):
    """Llama 3's: a token and its rank a line."""
    lines = [f"{base64.b64encode(t).decode()} {i}" for i, t in enumerate(byte_ranks())]
    path.write_text("\n".join(lines) + "\n")


def tekken_content():
    """Mistral's tekken.json with 20 control tokens."""
    ranks = byte_ranks()
    return {
        "config": {
            "pattern": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+", "default_num_special_tokens": 20,
            "default_vocab_size": 20 + 260,
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
            for i, t in enumerate(ranks)
        ],
    }  # fmt: skip
