"""Kokoro's release as a folder of mlx-audio, compared with the authors' own model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch2mlx
from torch2mlx.audio.kokoro import is_kokoro, open_kokoro, port_name
from torch2mlx.audio.libraries import read_voice
from torch2mlx.errors import OptionError, ParityError, PlanError, SourceError, UnsupportedError

needs_libraries = pytest.mark.skipif(
    find_spec("kokoro") is None or find_spec("mlx_audio") is None,
    reason="needs kokoro and mlx-audio, of the extra `audio`",
)
PARTS = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from speech import kokoro

    folder = tmp_path_factory.mktemp("kokoro")
    kokoro(folder)
    return folder


@pytest.mark.slow
@needs_libraries
def test_a_release_becomes_a_folder_of_mlx_audio(release: Path, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_audio.tts import load

    from torch2mlx.audio.libraries import original_class

    made = torch2mlx.convert(release, tmp_path / "out")
    assert made.library == "mlx-audio"
    assert made.error <= 1e-4
    if version("mlx-audio") == "0.6.2":  # a later one may be without them
        gelu, padding = made.notes
        assert "exact GELU" in gelu
        assert "pads with zeros" in padding
    model = load(tmp_path / "out")
    voice = torch.load(release / "voices" / "af_test.pt")
    stored = mx.load(str(tmp_path / "out" / "voices" / "af_test.safetensors"))["voice"]
    assert np.array_equal(np.array(stored), voice.numpy())
    original = original_class()(
        repo_id="local",
        config=json.loads((release / "config.json").read_text()),
        model=str(release / "kokoro-v1_0.pth"),
    ).eval()
    theirs = original("hello", voice[5], return_output=True)
    ours = model("hello", stored[5], return_output=True)
    assert theirs.pred_dur.tolist() == [int(n) for n in ours.pred_dur]
    assert ours.audio.size == theirs.audio.numel()
    found = torch2mlx.verify(release, tmp_path / "out")
    assert (found.passed, found.error, found.notes) == (True, made.error, made.notes)
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert torch2mlx.plan(release).strategies[0].nbytes == written
    assert not torch2mlx.doctor(tmp_path / "out").findings
    manifest = json.loads((tmp_path / "out" / "torch2mlx.json").read_text())
    assert manifest["plan"]["port"] == "mlx_audio.tts.models.kokoro"
    assert manifest["verification"]["audit"]["passed"]


@pytest.mark.slow
@needs_libraries
def test_a_tensor_that_is_missing_or_of_another_shape_is_told(
    release: Path, tmp_path: Path
) -> None:
    shutil.copytree(release, tmp_path / "less")
    file = tmp_path / "less" / "kokoro-v1_0.pth"
    parts = torch.load(file)
    del parts["predictor"]["module.lstm.bias_hh_l0"]
    torch.save(parts, file)
    with pytest.raises(ParityError, match=r"does not load what was written.*bias_hh_forward"):
        torch2mlx.convert(tmp_path / "less", tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def _parts(**changes: Any) -> dict[str, Any]:
    return {name: {"module.weight": torch.ones(2, 3)} for name in PARTS} | changes


def _release(folder: Path, weights: Any) -> Path:
    (folder / "voices").mkdir()
    torch.save(torch.zeros(4, 1, 256), folder / "voices" / "af.pt")
    torch.save(weights, folder / "kokoro.pth")
    config = {"istftnet": {}, "plbert": {}, "vocab": {"a": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_names_are_those_of_kmodel(tmp_path: Path) -> None:
    ones = {"norm1.norm.weight": torch.ones(3), "norm1.norm.bias": torch.zeros(3)}
    folder = _release(tmp_path, _parts(decoder={"encode.weight": torch.ones(2), **ones}))
    assert is_kokoro(folder)
    assert is_kokoro(folder / "kokoro.pth")
    opened = open_kokoro(folder)
    opened.source.close()
    others = {f"{part}.weight" for part in PARTS if part != "decoder"}
    assert opened.state.keys() == others | {"decoder.encode.weight"}
    assert opened.dropped.keys() == {f"decoder.{name}" for name in ones}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: torch.save(_parts(decoder=3), f / "kokoro.pth"), SourceError, "no state dict"),
        (lambda f: torch.save({"bert": {}}, f / "kokoro.pth"), SourceError, "expected state dicts"),
        (lambda f: shutil.copy(f / "kokoro.pth", f / "b.pth"), SourceError, "one .pth file"),
        (lambda f: (f / "voices" / "af.pt").unlink(), SourceError, "no voices"),
        (lambda f: (f / "LICENSE").symlink_to("LICENSE"), SourceError, "LICENSE"),
        (
            lambda f: torch.save(
                _parts(decoder={"a.norm.weight": torch.full((3,), 2.0)}), f / "kokoro.pth"
            ),
            PlanError,
            r"decoder\.a\.norm\.weight",
        ),
    ],
)
def test_what_is_no_release_is_refused(
    change: Callable[[Path], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = _release(tmp_path, _parts())
    change(folder)
    with pytest.raises(error, match=message):
        open_kokoro(folder)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(4, 1, 256).to_sparse(),
        torch.zeros(4, 1, 256, dtype=torch.complex64),
        torch.zeros(4, 1, 256, dtype=torch.bool),
        torch.zeros(0, 1, 256),
        torch.zeros(1, 1, 1).expand(10**7, 1, 256),
        torch.empty(4, 1, 256, device="meta"),
        torch.full((4, 1, 256), float("nan")),
        [1],
    ],
    ids=["sparse", "complex", "bool", "empty", "expanded", "meta", "nan", "list"],
)
def test_what_is_no_voice_is_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "one.pt")
    with pytest.raises(UnsupportedError, match="voice"):
        read_voice(tmp_path / "one.pt")


def test_options_of_other_models_are_refused(tmp_path: Path) -> None:
    folder = _release(tmp_path, _parts())
    with pytest.raises(OptionError, match="quantization: Kokoro is converted with its own"):
        torch2mlx.convert(folder, tmp_path / "out", quantize=True)


@needs_libraries
def test_names_and_axes_are_those_of_the_port() -> None:
    """What is compared after loading follows from mlx-audio's own translation."""
    import mlx.core as mx
    from mlx_audio.tts.models.kokoro.kokoro import Model

    shapes = {
        "bert.encoder.weight": (4, 3),
        "predictor.F0_proj.weight": (1, 6, 1),
        "predictor.lstm.weight_ih_l0_reverse": (8, 3),
        "predictor.F0.0.conv1.weight_v": (8, 4, 3),
        "predictor.F0.0.conv1.weight_g": (8, 1, 1),
        "text_encoder.cnn.0.1.gamma": (6,),
        "text_encoder.lstm.bias_hh_l0": (8,),
        "decoder.generator.noise_convs.0.weight": (4, 22, 6),
        "decoder.generator.resblocks.0.alpha1.0": (1, 4, 1),
    }
    translate: Any = type("Decoderless", (), {"decoder": _decoder()})()
    found = Model.sanitize(translate, {n: mx.zeros(s) for n, s in shapes.items()})
    for name, shape in shapes.items():
        ours, exchanged = port_name(name, len(shape))
        assert found[ours].shape == ((shape[0], shape[2], shape[1]) if exchanged else shape)


def _decoder() -> Any:
    from mlx_audio.tts.models.kokoro.istftnet import Decoder

    return Decoder.__new__(Decoder)
