"""OpenAI's Whisper files against transformers' model and OpenAI's own."""

from __future__ import annotations

import json

import pytest
import torch

import torch2mlx
from torch2mlx.errors import SourceError, UnsupportedError
from torch2mlx.sources import open_checkpoint
from torch2mlx.verification.reference import read_state

DIMS = {
    "n_mels": 8, "n_audio_ctx": 12, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 2,
    "n_vocab": 51865, "n_text_ctx": 20, "n_text_state": 32, "n_text_head": 4, "n_text_layer": 3,
}  # fmt: skip
RENAMED = (
    (".layers.", ".blocks."), (".self_attn.", ".attn."), (".encoder_attn.", ".cross_attn."),
    (".self_attn_layer_norm.", ".attn_ln."), (".encoder_attn_layer_norm.", ".cross_attn_ln."),
    (".final_layer_norm.", ".mlp_ln."), (".fc1.", ".mlp.0."), (".fc2.", ".mlp.2."),
    (".q_proj.", ".query."), (".k_proj.", ".key."), (".v_proj.", ".value."),
    (".out_proj.", ".out."), ("decoder.embed_tokens.", "decoder.token_embedding."),
    (".embed_positions.weight", ".positional_embedding"),
    ("encoder.layer_norm.", "encoder.ln_post."), ("decoder.layer_norm.", "decoder.ln."),
)  # fmt: skip


def transformers_model():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51865, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_ffn_dim=128, max_source_positions=12, max_target_positions=20,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def written(model, file, dims=None, **changes):
    """The model under OpenAI's names, as `torch.save` writes their files."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        name = name.removeprefix("model.")
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        state[name] = tensor.half() if tensor.ndim > 1 else tensor.clone()
    state |= changes
    state = {n: t for n, t in state.items() if t is not None}
    torch.save({"dims": dims or DIMS, "model_state_dict": state}, file)
    return state


def test_the_state_and_settings_are_those_of_transformers(tmp_path):
    model = transformers_model()
    written(model, tmp_path / "tiny.pt")
    opened = open_checkpoint(tmp_path / "tiny.pt")
    expected = {n: t for n, t in model.state_dict().items() if n != "proj_out.weight"}
    found = read_state(opened.state, opened.source)
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[n], (t.half() if t.ndim > 1 else t).float()) for n, t in expected.items()
    )
    settings = opened.generation_config
    # As in the generation_config.json of openai/whisper-tiny.
    assert settings["decoder_start_token_id"] == 50258
    assert (settings["eos_token_id"], settings["no_timestamps_token_id"]) == (50257, 50363)
    assert settings["lang_to_id"]["<|en|>"] == 50259
    assert settings["task_to_id"] == {"translate": 50358, "transcribe": 50359}
    assert settings["suppress_tokens"][-6:] == [50258, 50358, 50359, 50360, 50361, 50362]
    assert "no vocabulary" in " ".join(opened.notes)


def test_openais_own_model_computes_the_same(tmp_path):
    whisper = pytest.importorskip("whisper")
    from torch2mlx.compiler.encoder_decoder.methods import load_original

    torch.manual_seed(0)
    theirs = whisper.Whisper(whisper.ModelDimensions(**DIMS)).eval()
    for tensor in theirs.parameters():
        torch.nn.init.normal_(tensor, std=0.2)
    dims = vars(theirs.dims)
    torch.save({"dims": dims, "model_state_dict": theirs.state_dict()}, tmp_path / "tiny.pt")
    ours = load_original(tmp_path / "tiny.pt")
    sound, ids = torch.randn(2, 8, 24), torch.randint(0, 51865, (2, 6))
    with torch.no_grad():
        expected = theirs(sound, ids)
        found = ours(input_features=sound, decoder_input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_converts_and_writes_the_tokens_that_transformers_does(tmp_path, run_cli):
    from torch2mlx.transduction import load_transducer

    model = transformers_model()
    written(model.half().float(), tmp_path / "tiny.pt")
    run = run_cli("convert", tmp_path / "tiny.pt", tmp_path / "out", "--quiet")
    assert run.code == 0, run.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["generation"]["no_timestamps"] == 50363
    transducer = load_transducer(tmp_path / "out", trust_remote_code=True)
    sound = torch.randn(2, 8, 24)
    start = [50258, 50259, 50359, 50363]
    found = transducer.generate(sound.numpy(), start=start, max_tokens=6)
    with torch.no_grad():
        ids = torch.tensor([start, start])
        hidden = opened_suppressed(tmp_path / "tiny.pt")
        for step in range(6):
            logits = model(input_features=sound, decoder_input_ids=ids).logits[:, -1]
            logits[:, hidden + ([220, 50257] if step == 0 else [])] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1)[:, None]], 1)
    for row, expected in zip(found, ids[:, 4:].tolist(), strict=True):
        assert row == expected[: expected.index(50257)] if 50257 in expected else row == expected


def opened_suppressed(file):
    return open_checkpoint(file).generation_config["suppress_tokens"]


def test_what_is_missing_is_named(tmp_path):
    from torch2mlx.compiler.encoder_decoder.methods import load_original

    model, file = transformers_model(), tmp_path / "tiny.pt"
    written(model, file, **{"decoder.blocks.2.mlp.0.weight": None})
    with pytest.raises(SourceError, match=r"1 tensors are missing.*decoder\.layers\.2\.fc1\.weig"):
        load_original(file)
    written(model, file, {**DIMS, "n_audio_layer": 1})
    with pytest.raises(SourceError, match="2 blocks of the encoder for 1"):
        load_original(file)
    for dims, words in (
        ({"n_text_head": 3}, "3 heads of the decoder do not divide 32"),
        ({"n_audio_ctx": 2**62}, r"encoder\.positional_embedding \[12, 32\] for \[461"),
        ({"n_text_layer": 10**9}, "3 blocks of the decoder for 1000000000"),
    ):
        written(model, file, {**DIMS, **dims})
        with pytest.raises(SourceError, match=words):
            open_checkpoint(file)
    written(model, file, {n: v for n, v in DIMS.items() if n != "n_text_head"})
    with pytest.raises(SourceError, match="dims lacks n_text_head"):
        open_checkpoint(file)
    written(model, file, **{"decoder.cross.weight": torch.ones(2)})
    with pytest.raises(SourceError, match=r"decoder\.cross\.weight \[2\]"):
        open_checkpoint(file)
    written(model, file, {**DIMS, "n_vocab": 60000})
    with pytest.raises(UnsupportedError, match="a vocabulary of 60000"):
        open_checkpoint(file)
    written(model, file, {**DIMS, "n_vocab": 51866})
    with pytest.raises(SourceError, match=r"\[51865, 32\] for \[51866, 32\]"):
        torch2mlx.convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
