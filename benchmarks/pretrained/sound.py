"""Speech or not, pitch, speakers and beats."""

from __future__ import annotations

import math
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pretrained.task import Case, Part, Task, folder_of, import_with_stand_ins, weights

__all__ = ["CASES"]

SPEECH = Path("/usr/share/pocketsphinx/test/data")
RATE = 16000
READ = "librivox/sense_and_sensibility_01_austen_64kb-"  # a reader of an audio book


def _speech(name: str) -> torch.Tensor:
    """A recording of Debian's pocketsphinx-testdata at 16 kHz, from -1 to 1."""
    with wave.open(str(SPEECH / f"{name}.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
    return torch.from_numpy(samples.astype(np.float32)) / 32768


def _tone(seconds: float) -> torch.Tensor:
    """A tone that glides from 200 to 300 Hz, with overtones, as a singing voice has."""
    t = torch.arange(int(seconds * RATE)) / RATE
    phase = 2 * math.pi * (200 * t + 50 / seconds * t * t)
    return 0.3 * torch.stack([torch.sin(k * phase) / k for k in range(1, 9)]).sum(0)


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

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Chance of speech in [batch, 576] samples, and the next state."""
        x = self.stft_conv(nn.functional.pad(x[:, None], (0, 64), "reflect"))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), state)
        return self.final_conv(h.unsqueeze(-1).relu()).sigmoid().squeeze(1).mean(1), (h, c)


def _voice_activity() -> Task:
    """When somebody speaks: silence, a sentence, silence, a word."""
    from safetensors.torch import load_file

    net = SileroVAD()
    net.load_state_dict(load_file(folder_of("silero_vad") / "data" / "silero_vad_16k.safetensors"))
    pause = 0.001 * torch.randn(RATE)
    sound = torch.cat([pause, _speech(f"{READ}0880"), pause, _speech("cards/001"), pause])

    def solve(given: Mapping[str, nn.Module]) -> str:
        state = (torch.zeros(1, 128), torch.zeros(1, 128))
        chances = []
        # 32 ms at a time, each with the last 4 ms of what came before.
        for chunk in nn.functional.pad(sound, (64, 0)).unfold(0, 576, 512):
            with torch.no_grad():
                chance, state = given["detector"](chunk[None], state)
            chances.append(float(chance))
        spoken = torch.tensor([0, *(x > 0.5 for x in chances), 0]).diff()
        starts, ends = (spoken == 1).nonzero()[:, 0], (spoken == -1).nonzero()[:, 0]
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return "speech at " + ", ".join(f"{a * 0.032:.2f}-{b * 0.032:.2f} s" for a, b in spans)

    return Task({"detector": Part(net.eval())}, solve)


def _pitch(size: str) -> Task:
    """The pitch of a gliding tone, and of a sentence where it is voiced."""
    net = import_with_stand_ins("torchcrepe.model").Crepe(size)
    net.load_state_dict(weights(folder_of("torchcrepe") / "assets" / f"{size}.pth"))
    sounds = {"tone": _tone(1), "speech": _speech("cards/005")[RATE // 2 : 2 * RATE]}
    cents = 20 * torch.arange(360) + 1997.3794084376191

    def solve(given: Mapping[str, nn.Module]) -> str:
        answers = []
        for name, sound in sounds.items():
            frames = nn.functional.pad(sound, (512, 512)).unfold(0, 1024, 1600)
            frames = frames - frames.mean(1, keepdim=True)
            with torch.no_grad():
                chances = given["crepe"](frames / frames.std(1, keepdim=True).clamp_min(1e-10))
            peak, best = chances.max(1)
            near = chances * ((torch.arange(360) - best[:, None]).abs() <= 4)
            pitch = 10 * 2 ** ((near * cents).sum(1) / near.sum(1) / 1200)
            heard = [f"{p:.1f}" for p, c in zip(pitch, peak, strict=True) if c > 0.5]
            answers.append(f"{name}: {' '.join(heard)} Hz")
        return "; ".join(answers)

    return Task({"crepe": Part(net.eval(), [{0: torch.export.Dim("frames")}])}, solve)


def _speakers() -> Task:
    """Which recordings are of one voice: three of a reader, two of another speaker."""
    from transformers.audio_utils import mel_filter_bank

    net = import_with_stand_ins("resemblyzer.voice_encoder").VoiceEncoder("cpu", verbose=False)
    names = [f"{READ}0880", f"{READ}0890", f"{READ}0920", "cards/002", "cards/005"]
    labels = ["reader 1", "reader 2", "reader 3", "cards 1", "cards 2"]
    sounds = [_speech(name)[4000 : 4000 + 159 * 160] for name in names]
    filters = mel_filter_bank(201, 40, 0, 8000, RATE, norm="slaney", mel_scale="slaney")
    window = torch.hann_window(400)
    power = torch.stack(
        [torch.stft(x, 400, 160, window=window, return_complex=True).abs() ** 2 for x in sounds]
    )
    mels = power.mT @ torch.from_numpy(filters).float()

    def solve(given: Mapping[str, nn.Module]) -> str:
        with torch.no_grad():
            voices = given["encoder"](mels)
        likeness = voices @ voices.T - torch.eye(len(voices))
        best, nearest = likeness.max(1)
        return "; ".join(
            f"{label}: nearest {labels[j]} {x:.3f}"
            for label, j, x in zip(labels, nearest.tolist(), best.tolist(), strict=True)
        )

    return Task({"encoder": Part(net.eval())}, solve)


def _bands(sound: torch.Tensor, rate: int) -> torch.Tensor:
    """Logarithmic magnitudes in 136 bands, 24 to the octave, and their rises, 50 a second."""
    size, hop = int(0.064 * rate), int(0.02 * rate)
    spectrum = torch.stft(
        sound, size, hop, window=torch.hann_window(size), pad_mode="constant", return_complex=True
    ).abs()[: size // 2]
    # Triangles between neighbours of the distinct bins that a logarithmic scale meets.
    notes = 440 * 2 ** (torch.arange(-93, 129) / 24)
    notes = notes[(notes >= 30) & (notes <= 17000)]
    bins = (notes / (rate / 2 / (size // 2))).round().long().clamp_max(size // 2 - 1).unique()
    rows = torch.zeros(len(bins) - 2, size // 2)
    for row, (start, middle, stop) in zip(rows, bins.unfold(0, 3, 1).tolist(), strict=True):
        row[start:middle] = torch.arange(middle - start) / (middle - start)
        row[middle:stop] = 1 - torch.arange(stop - middle) / (stop - middle)
    bands = torch.log10(1 + (rows / rows.sum(1, keepdim=True)) @ spectrum).T
    rises = nn.functional.pad(bands, (0, 0, 1, 0))[:-1]
    return torch.cat([bands, (bands - rises).relu()], 1)


def _beats() -> Task:
    """Where the beats of a drum at 120 beats a minute are."""
    net = import_with_stand_ins("BeatNet.model").BDA(272, 150, 2, "cpu")
    net.load_state_dict(
        weights(folder_of("BeatNet") / "models" / "model_1_weights.pt"), strict=False
    )
    for name in ("hidden", "cell"):  # plain attributes, which no export follows
        start = getattr(net, name)
        delattr(net, name)
        net.register_buffer(name, start)
    rate, seconds = 22050, 6
    sound = torch.zeros(rate * seconds)
    t = torch.arange(rate // 5) / rate
    kick = torch.sin(2 * math.pi * 55 * t + 8 * (1 - torch.exp(-40 * t))) * torch.exp(-18 * t)
    kick = kick + 0.2 * torch.randn(len(t)) * torch.exp(-90 * t)
    for beat in range(2 * seconds - 1):
        at = int((0.25 + beat / 2) * rate)
        sound[at : at + len(kick)] += kick * (1.0 if beat % 4 == 0 else 0.7)
    features = _bands(32767 * 0.5 * sound, rate)[None]
    still = {name: torch.zeros_like(buffer) for name, buffer in net.named_buffers()}

    def solve(given: Mapping[str, nn.Module]) -> str:
        net.load_state_dict(still, strict=False)  # the network goes on where it stopped
        with torch.no_grad():
            chances = given["network"](features).softmax(1)[0]
        beat = chances[:2].sum(0)
        peaks = (beat[1:-1] > 0.3) & (beat[1:-1] >= beat[:-2]) & (beat[1:-1] > beat[2:])
        frames = 1 + peaks.nonzero()[:, 0]
        return "beats at " + " ".join(f"{0.02 * frame:.2f}" for frame in frames.tolist()) + " s"

    return Task({"network": Part(net.eval())}, solve)


TESTDATA = "pocketsphinx-testdata"
CASES = {
    "silero": Case("silero-vad==6.2.3", _voice_activity, TESTDATA),
    "crepe-tiny": Case("torchcrepe==0.0.24", lambda: _pitch("tiny"), TESTDATA),
    "crepe-full": Case("torchcrepe==0.0.24", lambda: _pitch("full"), TESTDATA),
    "resemblyzer": Case("resemblyzer==0.1.4", _speakers, TESTDATA),
    "beatnet": Case("beatnet==1.1.3", _beats),
}
