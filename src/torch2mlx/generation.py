"""Text from a converted model: through mlx-lm, or an encoder-decoder by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.errors import OptionError, SourceError
from torch2mlx.loading import load_language_model
from torch2mlx.packaging.chats import render_chat
from torch2mlx.sources.local_files import read_json_object

__all__ = ["Generation", "generate_text"]

# Settings of generation_config.json that change which tokens transformers takes, and the values
# with which they do not.
_NOT_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None, []),
}


@dataclass(frozen=True)
class Generation:
    """Generated text and what it cost.

    Attributes:
        text: the answer.
        prompt_tokens, generated_tokens: their numbers.
        prompt_tps, generation_tps: tokens a second in each phase.
        peak_memory: bytes that MLX held at most.
        finish_reason: "stop" or "length".
        notes: what a user should know.
    """

    text: str
    prompt_tokens: int
    generated_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory: int
    finish_reason: str | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "notes": list(self.notes)}


def generate_text(
    folder: Path,
    prompt: str,
    *,
    sound: Path | None,
    language: str | None,
    task: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    raw: bool,
    trust_remote_code: bool,
    on_text: Callable[[str], None] | None,
) -> Generation:
    """As `torch2mlx.generate`, which says what the arguments are."""
    if max_tokens < 1:
        raise OptionError(f"--max-tokens {max_tokens}: at least 1 token")
    if not 0 <= temperature < math.inf:
        raise OptionError(f"--temp {temperature}: at least 0, which is greedy, and finite")
    if not 0 <= seed < 2**64:
        raise OptionError(f"--seed {seed}: from 0 to 2^64 - 1")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"the prompt is no valid text: {error}; give it in UTF-8") from error
    from torch2mlx.transduction import is_transducer

    if is_transducer(folder):
        return _transduce(
            *(folder, prompt, sound, language, task, max_tokens, temperature, seed),
            *(trust_remote_code, on_text),
        )
    if sound is not None:
        raise OptionError(f"--sound: {folder} takes text; give --prompt")
    if language or task:
        raise OptionError(f"--language, --task: {folder} is no model of speech; leave them out")
    model, tokenizer = load_language_model(folder, trust_remote_code=trust_remote_code)
    import mlx.core as mx
    from mlx_lm import stream_generate
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(seed)
    text: Any = prompt
    if not raw and tokenizer.chat_template is not None:
        try:
            rendered = render_chat(tokenizer, [{"role": "user", "content": prompt}], answer=True)
        except SourceError as error:
            raise SourceError(f"{folder}: {error}; --raw leaves the template out") from error
        text = tokenizer.encode(rendered, add_special_tokens=False)
    if not (text or (isinstance(text, str) and tokenizer.encode(text))):
        raise OptionError("the prompt is empty; give at least one token of text")
    parts, last = [], None
    answers = stream_generate(
        model,
        tokenizer,
        prompt=text,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=temperature),
    )
    try:
        for last in answers:
            parts.append(last.text)
            if on_text is not None:
                on_text(last.text)
    except ValueError as error:  # a text that the model refuses, as it says there
        raise OptionError(f"{folder}: {error}") from error
    if last is None:
        raise SourceError(f"{folder}: nothing was generated; is the prompt empty?")
    return Generation(
        text="".join(parts),
        prompt_tokens=last.prompt_tokens,
        generated_tokens=last.generation_tokens,
        prompt_tps=last.prompt_tps,
        generation_tps=last.generation_tps,
        peak_memory=int(last.peak_memory * 1e9),
        finish_reason=last.finish_reason,
    )


def _transduce(
    folder: Path,
    prompt: str,
    sound: Path | None,
    language: str | None,
    task: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    trust_remote_code: bool,
    on_text: Callable[[str], None] | None,
) -> Generation:
    """With an encoder-decoder: text for text, or text for sound."""
    import mlx.core as mx
    from transformers import AutoTokenizer

    from torch2mlx.transduction import load_transducer, model_inputs

    model = load_transducer(folder, trust_remote_code=trust_remote_code)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    inputs = model_inputs(model, tokenizer, folder, prompt, sound)
    begun = time.perf_counter()
    tokens = model.generate(
        inputs,
        language=language,
        task=task,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )[0]
    seconds = time.perf_counter() - begun
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    if on_text is not None:
        on_text(text)
    return Generation(
        text=text,
        prompt_tokens=inputs.shape[-1],
        generated_tokens=len(tokens),
        prompt_tps=0.0,
        generation_tps=len(tokens) / seconds,
        peak_memory=int(mx.get_peak_memory()),
        finish_reason="length" if len(tokens) == max_tokens else "stop",
        notes=tuple(_settings_not_followed(folder)),
    )


def _settings_not_followed(folder: Path) -> Iterator[str]:
    """What of a checkpoint's settings an encoder-decoder leaves to transformers."""
    path = folder / "generation_config.json"
    asked = read_json_object(path) if path.exists() else {}
    names = [key for key, idle in _NOT_FOLLOWED.items() if asked.get(key) not in idle]
    if names:
        listed = ", ".join(f"{key} {str(asked[key])[:20]}" for key in names)
        yield (
            f"generation_config.json asks for {listed}: not followed here, where tokens are greedy "
            "or sampled one after the other, so transformers' generate may answer otherwise"
        )
