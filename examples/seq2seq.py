"""An LSTM with attention that rewrites dates, in PyTorch and in MLX.

    python examples/seq2seq.py

"3rd of march 1974" becomes "1974-03-03".  The encoder and one step of the decoder are converted;
the loop around them, which chooses the likeliest letter, is the same Python for both frameworks.
"""

from __future__ import annotations

import datetime
import random
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import torch
from torch import nn
from torch.nn import functional as F

import torch2mlx
from side_by_side import Run, compare, fit, load, picture, start, to_mlx

LETTERS = "\0 ,./-0123456789abcdefghijklmnopqrstuvwxyz"  # the first one fills and starts
LENGTH, ANSWER = 24, 10
ORDINALS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}


def phrase() -> tuple[str, str]:
    """A date as people write it, and in ISO 8601."""
    day = datetime.date(1950, 1, 1) + datetime.timedelta(random.randrange(36500))
    ordinal = f"{day.day}{ORDINALS.get(day.day, 'th')}"
    month = f"{day:%B}".lower()
    forms = (
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{ordinal} of {month} {day.year}",
        f"{day.day} {month[:3]} {day.year}",
        f"{month[:3]} {ordinal}, {day.year}",
        f"{day.day}.{day.month}.{day.year}",
        f"{day.year}/{day.month}/{day.day}",
    )
    return random.choice(forms), day.isoformat()


def encode(text: str, length: int) -> list[int]:
    """Numbers of the letters, filled up to a length."""
    return [LETTERS.index(c) for c in text.ljust(length, "\0")]


def decode(numbers: list[int]) -> str:
    """The text of numbers."""
    return "".join(LETTERS[n] for n in numbers).rstrip("\0")


class Encoder(nn.Module):
    """Reads in both directions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Numbers `[batch, length]` to what was read at each letter and the decoder's state."""
        read, (hidden, cell) = self.lstm(self.embedding(text))
        return read, hidden.transpose(0, 1).flatten(1), cell.transpose(0, 1).flatten(1)


class Decoder(nn.Module):
    """Writes one letter at a time and looks back at what was read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.cell = nn.LSTMCell(2 * width, width)
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(2 * width, len(LETTERS))

    def forward(
        self, letter: torch.Tensor, read: torch.Tensor, state: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """The last letter `[batch]` to scores of the next, where it looked, and the next state.

        state is the cell's (hidden, cell) and what was seen in the step before.
        """
        hidden, memory, seen = state
        hidden, memory = self.cell(
            torch.cat([self.embedding(letter), seen], dim=-1), (hidden, memory)
        )
        focus = (read @ self.query(hidden).unsqueeze(-1)).squeeze(-1).softmax(dim=-1)
        seen = (focus.unsqueeze(1) @ read).squeeze(1)
        return self.out(torch.cat([hidden, seen], dim=-1)), focus, (hidden, memory, seen)


class DateWriter(nn.Module):
    """Sequence to sequence, with the right answer as the decoder's past in training."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.decoder = Decoder(width)

    def forward(self, text: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        read, hidden, memory = self.encoder(text)
        state: tuple[torch.Tensor, ...] = (hidden, memory, torch.zeros_like(hidden))
        scores = []
        for letter in F.pad(answer, (1, 0))[:, :-1].unbind(1):
            next_scores, _, state = self.decoder(letter, read, state)
            scores.append(next_scores)
        return torch.stack(scores, dim=1)


def train(model: DateWriter, steps: int) -> None:
    """Cross entropy of the letters of fresh dates."""

    def loss() -> torch.Tensor:
        pairs = [phrase() for _ in range(128)]
        text = torch.tensor([encode(source, LENGTH) for source, _ in pairs])
        answer = torch.tensor([encode(target, ANSWER) for _, target in pairs])
        return F.cross_entropy(model(text, answer).flatten(0, 1), answer.flatten())

    fit(model, loss, steps, rate=6e-3)


def write(
    encoder: Callable[..., Any], decoder: Callable[..., Any], text: Any
) -> tuple[list[list[int]], list[Any], list[Any]]:
    """Greedy decoding, in either framework: the letters, their scores, and the attention."""
    read, hidden, memory = encoder(text)
    letter, state = 0 * text[:, 0], (hidden, memory, 0 * hidden)
    letters, scores, focus = [], [], []
    for _ in range(ANSWER):
        step_scores, step_focus, state = decoder(letter, read, state)
        letter = step_scores.argmax(-1)
        letters.append(letter.tolist())
        scores.append(step_scores)
        focus.append(step_focus)
    return [list(column) for column in zip(*letters, strict=True)], scores, focus


def main(run: Run) -> None:
    """Train, convert both parts, compare the words, show."""
    random.seed(0)
    model = DateWriter()
    train(model, run.steps)
    pairs = [phrase() for _ in range(200)]
    text = torch.tensor([encode(source, LENGTH) for source, _ in pairs])

    batch = torch.export.Dim("batch")
    torch2mlx.convert(
        model.encoder,
        run.folder / "encoder",
        example_inputs=(text[:4],),
        dynamic_shapes={"text": {0: batch}},
    )
    with torch.no_grad():
        read, hidden, memory = model.encoder(text[:4])
    torch2mlx.convert(
        model.decoder,
        run.folder / "decoder",
        example_inputs=(text[:4, 0], read, (hidden, memory, torch.zeros_like(hidden))),
        dynamic_shapes={
            "letter": {0: batch},
            "read": {0: batch},
            "state": ({0: batch}, {0: batch}, {0: batch}),
        },
    )
    with torch.inference_mode():
        letters, scores, focus = write(model.encoder, model.decoder, text)
    mlx_letters, mlx_scores, mlx_focus = write(
        load(run.folder / "encoder"), load(run.folder / "decoder"), to_mlx(text)
    )
    compare("scores of all letters", torch.stack(scores), mx.stack(mlx_scores))
    compare("attention", torch.stack(focus), mx.stack(mlx_focus))

    words, mlx_words = [decode(row) for row in letters], [decode(row) for row in mlx_letters]
    for (source, _), ours, theirs in zip(pairs[:5], words, mlx_words, strict=False):
        print(f"{source:24} PyTorch {ours:12} MLX {theirs}")
    right = sum(word == target for word, (_, target) in zip(words, pairs, strict=True))
    same = sum(ours == theirs for ours, theirs in zip(words, mlx_words, strict=True))
    print(f"of 200 dates: {right} right, {same} written alike by PyTorch and MLX")
    if same != len(words):
        sys.exit("MLX writes other words than PyTorch")
    if run.picture:
        with picture(run.picture, 2, 4, (9.5, 4.2), []) as axes:
            for i in range(4):
                source = pairs[i][0]
                for axis, name, looks, word in zip(
                    axes[:, i], ("PyTorch", "MLX"), (focus, mlx_focus), (words, mlx_words),
                    strict=True,
                ):  # fmt: skip
                    axis.imshow([row[i].tolist()[: len(source)] for row in looks], aspect="auto")
                    axis.set_xticks(range(len(source)), source)
                    axis.set_yticks(range(len(word[i])), word[i])
                    axis.tick_params(labelsize=7, length=0)
                    axis.set_title(f"{name}: {word[i]}", fontsize=9)


if __name__ == "__main__":
    with start(__file__, __doc__, steps=700) as run:
        main(run)
