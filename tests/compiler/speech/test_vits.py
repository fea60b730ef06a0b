"""VITS as a whole: transformers' checkpoint as one folder, compared with its own forward."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from speech import add_vits_tokenizer, vits

import torch2mlx
from torch2mlx.compiler.host import Call, Host
from torch2mlx.compiler.parity import check_calls, run_calls
from torch2mlx.compiler.runtime.speech import VitsSynthesis, repeated
from torch2mlx.compiler.speech.kinds import is_synthesizer
from torch2mlx.errors import OptionError, ParityError, SourceError, UnsupportedError

TEXT = torch.tensor([[3, 17, 0, 5, 22, 9, 31, 8, 4, 30, 11, 2, 25]])


def test_a_checkpoint_converts_as_a_whole(tmp_path: Path) -> None:
    model = vits(use_stochastic_duration_prediction=False)
    model.save_pretrained(tmp_path / "source")
    add_vits_tokenizer(tmp_path / "source")
    made = torch2mlx.convert(tmp_path / "source", tmp_path / "out").to_dict()
    assert made["error"] <= 1e-4
    assert "12 tokens and 9 with padding" in made["cases"]
    for name in ("vocab.json", "tokenizer_config.json"):
        copied = (tmp_path / "out" / name).read_bytes()
        assert copied == (tmp_path / "source" / name).read_bytes()
    assert torch2mlx.verify_certificate(tmp_path / "out", trust_remote_code=True).passed

    speak = _loaded(tmp_path / "out")
    model.noise_scale = 0.0
    for length in (1, 4, 13):
        with torch.no_grad():
            expected = model(TEXT[:, :length], speaking_rate=0.8)
        found = speak(mx.array(TEXT[:, :length].numpy()), speaking_rate=0.8, noise_scale=0.0)
        _assert_equal(found, expected)
    first, again, other = (speak(mx.array(TEXT.numpy()), seed=seed) for seed in (1, 1, 2))
    assert mx.array_equal(first["waveform"], again["waveform"])
    assert not mx.array_equal(first["waveform"], other["waveform"])


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [1, 3])
def test_durations_that_are_drawn_and_speakers(
    speakers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vits(num_speakers=speakers, speaker_embedding_size=0 if speakers == 1 else 8)
    made = torch2mlx.convert(model, tmp_path / "out").to_dict()
    assert made["error"] <= 1e-4
    speak = _loaded(tmp_path / "out")
    drawn: list[torch.Tensor] = []
    for name in ("randn", "randn_like"):
        original = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _f=original: drawn.append(_f(*a)) or drawn[-1])
    torch.manual_seed(5)
    voice = {"speaker_id": 2} if speakers > 1 else {}
    with torch.no_grad():
        expected = model(TEXT, **voice)
    durations, latents = (mx.array(noise.numpy()) for noise in drawn)
    found = speak(mx.array(TEXT.numpy()), duration_noise=durations, latent_noise=latents, **voice)
    _assert_equal(found, expected)
    with pytest.raises(ValueError, match="frames"):
        speak(mx.array(TEXT.numpy()), latent_noise=latents[..., :2], **voice)
    if speakers > 1:
        with pytest.raises(ValueError, match="speaker_id: None; give one of 0 to 2"):
            speak(mx.array(TEXT.numpy()))


def test_half_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--dtype float16.*durations are rounded"):
        torch2mlx.convert(vits(), tmp_path / "out", dtype="float16")


def test_what_cannot_be_spoken_is_told(tmp_path: Path) -> None:
    model = vits(use_stochastic_duration_prediction=False)
    with torch.no_grad():
        model.duration_predictor.proj.bias.fill_(9.0)
    with pytest.raises(UnsupportedError, match=r"7 tokens become .* frames"):
        torch2mlx.convert(model, tmp_path / "out")
    with torch.no_grad():
        model.duration_predictor.proj.bias.fill_(float("nan"))
    with pytest.raises(UnsupportedError, match="PyTorch itself does not turn a text into sound"):
        torch2mlx.convert(model, tmp_path / "out")


def test_a_folder_that_lacks_weights_is_told(tmp_path: Path) -> None:
    vits().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["text_encoder.project.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(SourceError, match=r"1 weights of VitsModel are missing: text_enc"):
        torch2mlx.convert(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": ["vits"]}')
    assert not is_synthesizer(tmp_path)


def test_a_whole_that_differs_is_refused() -> None:
    call = Call("one", {"x": torch.ones(3)})
    host = Host(VitsSynthesis, {}, (call,), lambda x: {"y": x + 1})
    expected = run_calls(host)
    assert check_calls(lambda x: {"y": x + 1}, host, expected, 1e-4, 0).agreement.worst == 0
    with pytest.raises(ParityError, match=r"one\): output 0 differs"):
        check_calls(lambda x: {"y": x + 1.001}, host, expected, 1e-4, 0)
    with pytest.raises(ParityError, match="the generated model fails: ZeroDivisionError"):
        check_calls(lambda x: {"y": 1 // 0}, host, expected, 1e-4, 0)


def test_rows_are_repeated_as_torch_does() -> None:
    values, counts = torch.randn(2, 4, 3), torch.tensor([[2, 0, 3, 1], [1, 1, 0, 0]])
    found = np.array(repeated(mx.array(values.numpy()), mx.array(counts.numpy()), 6))
    for row in range(2):
        expected = torch.repeat_interleave(values[row], counts[row], dim=0)
        assert np.array_equal(found[row, : len(expected)], expected.numpy())
        assert not found[row, len(expected) :].any()


def _loaded(folder: Path) -> Any:
    return runpy.run_path(str(folder / "model.py"))["load"](str(folder))


def _assert_equal(found: dict[str, mx.array], expected: Any) -> None:
    assert found.keys() == {"waveform", "sequence_lengths", "spectrogram"}
    for name, value in found.items():
        np.testing.assert_allclose(np.array(value), expected[name].numpy(), atol=1e-5, rtol=1e-4)
