"""Encoder-decoders at work: the input is encoded once, then tokens follow one by one."""

from __future__ import annotations

import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torch2mlx.errors import OptionError, SourceError
from torch2mlx.sources.local_files import read_json_object

__all__ = ["Transducer", "is_transducer", "load_transducer", "model_inputs", "read_sound"]

Array = np.ndarray[Any, Any]


def is_transducer(folder: str | Path) -> bool:
    """Whether a folder holds a compiled encoder-decoder."""
    config = Path(folder) / "config.json"
    try:
        return "generation" in read_json_object(config)
    except SourceError:
        return False


class Transducer:
    """A compiled encoder-decoder with the caches of its decoder.

    Args:
        model: from the folder's model.py, with `encode` and `decode`.
        settings: `generation` of config.json.
    """

    def __init__(self, model: Any, settings: Mapping[str, Any]) -> None:
        self.model, self.settings = model, settings

    @property
    def takes_text(self) -> bool:
        """Token ids go in; otherwise features of sound."""
        return bool(self.settings["takes"] == "tokens")

    def generate(
        self,
        inputs: Array,
        mask: Array | None = None,
        *,
        start: Sequence[int] | None = None,
        language: str | None = None,
        task: str | None = None,
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Tokens of each row, up to and without the one that ends it.

        Args:
            inputs: token ids [batch, length], or features [batch, bins, frames].
            mask: 1 where a token is no padding [batch, length]; None: nowhere.
            start: of every answer; None: as the model was trained.
            language: that is spoken, as "de" or "german"; None: the likeliest of each row.
            task: "transcribe" or "translate"; None: the model's own choice.
            max_tokens: longest answer.
            temperature: 0 takes the most likely token.
            seed: of the sampling.

        Raises:
            OptionError: a language or task that the model does not know.
        """
        if start is None:
            start = self._start(language, task)
        rows: list[list[int]] = [[] for _ in inputs]
        ends = set(self.settings["ends"])
        open_rows = set(range(len(rows)))
        for tokens in self._tokens(inputs, mask, start, task, max_tokens, temperature, seed):
            for row in sorted(open_rows):
                if tokens[row] in ends:
                    open_rows.remove(row)
                else:
                    rows[row].append(int(tokens[row]))
            if not open_rows:
                break
        return rows

    def _tokens(
        self,
        inputs: Array,
        mask: Array | None,
        start: Sequence[int] | None,
        task: str | None,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Iterator[Array]:
        import mlx.core as mx

        layers, heads, width = self.settings["cache"]
        kind = getattr(mx, self.settings.get("dtype", "float32"))
        batch = len(inputs)
        given: dict[str, Any] = {}
        if self.takes_text:
            shown = np.ones(inputs.shape, np.int64) if mask is None else mask
            given["mask"] = mx.array(shown.astype(np.int64))
            encoded = self.model.encode(mx.array(inputs.astype(np.int64)), given["mask"])
        else:
            encoded = self.model.encode(mx.array(inputs.astype(np.float32)).astype(kind))
        mx.eval(encoded)

        def step(ids: mx.array, keys: Any, values: Any) -> tuple[mx.array, Any, Any]:
            logits, keys, values = self.model.decode(ids, *encoded, keys, values, **given)
            mx.eval(logits, keys, values)
            return logits[:, -1].astype(mx.float32), keys, values

        empty = [mx.zeros((batch, heads, 0, width), kind) for _ in range(layers)]
        if start is None:
            prompt = self._prompt(batch, step, empty, task)
        else:
            prompt = np.tile(start, (batch, 1))
        random = mx.random.key(seed)
        keys, values, ids = empty, empty, mx.array(prompt.astype(np.int64))
        for number in range(max_tokens):
            logits, keys, values = step(ids, keys, values)
            first = [] if number else self.settings["suppressed_first"]
            forced = None if number else self.settings.get("forced_first")
            if forced is not None:
                logits = mx.where(mx.arange(logits.shape[-1]) == forced, logits, -mx.inf)
            hidden = [*self.settings["suppressed"], *first]
            if hidden:
                logits[:, mx.array(hidden)] = -mx.inf
            if temperature:
                random, now = mx.random.split(random)
                chosen = mx.random.categorical(logits / temperature, key=now)
            else:
                chosen = mx.argmax(logits, axis=-1)
            ids = chosen.astype(mx.int64)[:, None]
            yield np.array(chosen)

    def _start(self, language: str | None, task: str | None) -> list[int] | None:
        """What answers start with; None where each row's language is yet to be heard."""
        settings = self.settings
        known, tasks = settings.get("languages"), settings.get("tasks")
        if not known or not tasks:
            if language or task:
                raise OptionError("this model has no choice of languages and tasks; leave it out")
            return None
        if task is not None and task not in tasks:
            raise OptionError(f"--task {task}: this model's are {', '.join(tasks)}")
        language = language or settings["language"]
        if language is None:
            return None
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        name = language.lower().strip("<|>")
        code = name if name in known else TO_LANGUAGE_CODE.get(name)
        if code not in known:
            raise OptionError(f"--language {language}: this model knows {', '.join(known)}")
        found = [settings["start"], known[code], tasks[task or settings["task"]]]
        return [*found, *([settings["no_timestamps"]] if "no_timestamps" in settings else [])]

    def _prompt(self, batch: int, step: Any, empty: Any, task: str | None) -> Array:
        """What every answer starts with; the language is the likeliest after the first token."""
        import mlx.core as mx

        settings = self.settings
        parts = [np.full((batch, 1), settings["start"])]
        if "languages" in settings:
            logits, _, _ = step(mx.array(parts[0].astype(np.int64)), empty, empty)
            languages = np.array(list(settings["languages"].values()))
            best = np.array(logits)[:, languages].argmax(axis=-1)
            number = settings["tasks"][task or settings["task"]]
            parts += [languages[best][:, None], np.full((batch, 1), number)]
        if "no_timestamps" in settings:
            parts.append(np.full((batch, 1), settings["no_timestamps"]))
        return np.concatenate(parts, axis=1)


def load_transducer(folder: str | Path, *, trust_remote_code: bool = False) -> Transducer:
    """The encoder-decoder of a folder that `convert` made.

    Args:
        folder: with config.json, model.py and the weights.
        trust_remote_code: its model.py is Python that runs.

    Raises:
        OptionError: it may not run.
        SourceError: the folder holds no encoder-decoder, or a damaged one.
    """
    folder = Path(folder)
    if not is_transducer(folder):
        raise SourceError(f"{folder}: no encoder-decoder that torch2mlx compiled")
    if not trust_remote_code:
        raise OptionError(
            f"{folder}: its model.py is Python that runs; read it, and allow it with "
            "--trust-remote-code if you trust it"
        )
    from torch2mlx.compiler.parity.running import import_model

    settings = read_json_object(folder / "config.json")["generation"]
    try:
        return Transducer(import_model(folder).load(str(folder)), settings)
    except Exception as error:  # whatever a damaged folder provokes
        raise SourceError(f"{folder}: cannot be loaded: {error}; convert it again") from error


def model_inputs(
    model: Transducer, tokenizer: Any, folder: Path, prompt: str, sound: Path | None
) -> Array:
    """What a text or the file of a sound is for a model, as a batch of one.

    Raises:
        OptionError: the model takes the other kind, or the text has no token.
        SourceError: the file cannot be read.
    """
    if model.takes_text != (sound is None):
        takes = "text: give --prompt" if model.takes_text else "sound: give --sound"
        raise OptionError(f"{folder} takes {takes}")
    if sound is not None:
        return read_sound(sound, folder)
    ids = np.array([tokenizer(prompt)["input_ids"]], np.int64)
    if not ids.size:
        raise OptionError("the prompt is empty; give at least one token of text")
    return ids


def read_sound(file: Path, folder: Path) -> Array:
    """Features [1, bins, frames] of a sound.

    Args:
        file: .npy with features [bins, frames] or [1, bins, frames]; or .wav with 16-bit samples,
            turned into features as the model's processor does.
        folder: with the processor's settings.

    Raises:
        SourceError: it cannot be read, or has another sampling rate than the model.
    """
    try:
        if file.suffix == ".npy":
            features = np.load(file, allow_pickle=False)
            return np.asarray(features if features.ndim == 3 else features[None], np.float32)
        with wave.open(str(file)) as sound:
            rate, channels, size = (
                sound.getframerate(),
                sound.getnchannels(),
                sound.getsampwidth(),
            )
            data = sound.readframes(sound.getnframes())
    except (OSError, ValueError, EOFError, wave.Error) as error:
        raise SourceError(f"{file}: neither .npy features nor a .wav sound: {error}") from error
    if size != 2:
        raise SourceError(f"{file}: samples of {8 * size} bits; 16 are read")
    samples = np.frombuffer(data, "<i2").reshape(-1, channels).mean(axis=1) / 32768
    from transformers import AutoFeatureExtractor

    kind: Any = AutoFeatureExtractor
    try:
        extractor = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{folder}: has no preprocessor_config.json, so a sound cannot be turned into "
            "features; give these as .npy"
        ) from error
    if rate != extractor.sampling_rate:
        raise SourceError(
            f"{file}: {rate} samples a second, the model takes {extractor.sampling_rate}; "
            "resample it"
        )
    found = extractor(samples, sampling_rate=rate, return_tensors="np")
    return np.asarray(found["input_features"], np.float32)
