"""Calibration data that the model writes itself.

A model's own text is what it will see when it generates, and it needs no file (as LLM-QAT,
arXiv 2305.17888, makes its training data): free text, or answers in the chat template.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torch2mlx.errors import OptionError
from torch2mlx.packaging.chats import render_chat
from torch2mlx.sources.base import Checkpoint
from torch2mlx.verification.blocks import peak_bytes
from torch2mlx.verification.reference import build_reference, quiet, read_state

__all__ = ["answer_ids", "fits", "sampled_ids"]

Array = np.ndarray[Any, Any]

_BATCH = 16
_ANSWER = 256  # tokens of an answer at most
_DRAWN = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_beams": 1}

# What people ask: facts, reasons, tasks, code, sums, opinions, texts to write and to change.
_QUESTIONS = (
    "What causes the tides, and why are there usually two of them a day?",
    "Explain the difference between a list and a dictionary in Python.",
    "What is the capital of Australia, and why is it not Sydney?",
    "Draft an e-mail that moves a meeting from Tuesday to Thursday.",
    "I often feel tired in the afternoon. What could I change?",
    "Why did the Roman Empire decline? Name several reasons.",
    "Solve the equation 3x + 7 = 22 and explain each step.",
    "Explain the rules of football to somebody who has never seen it.",
    "Write a Python function that counts how often each word occurs in a text.",
    "Rewrite this more formally: Hey, can you send me that stuff by tomorrow?",
    "Plan a weekend in a city by the river for a family with two children.",
    "Compare electric cars with petrol cars.",
    "What is the difference between a virus and a bacterium?",
    "Write an HTML page with a heading, a paragraph and a list.",
    "What is inflation, and who profits from it?",
    "Write the beginning of a detective story set in a lighthouse.",
    "How do I prepare for a job interview?",
    "Which planets of the solar system have rings, and what are they made of?",
    "Is it better to rent or to buy a home? Compare both.",
    "How does a refrigerator keep food cold?",
    "Write a shell command that finds all files larger than one megabyte.",
    "Name the largest rivers of Africa and the countries that they pass.",
    "Write a short poem about the first snow of winter.",
    "How can I fall asleep more easily?",
    "Tell me about the life of Marie Curie.",
    "What is the area of a triangle with a base of 10 and a height of 6?",
    "Which musical instruments belong to an orchestra?",
    "How do I reverse a string in Python? Show two ways.",
    "Give me synonyms of the word happy and use each in a sentence.",
    "What should I pack for a week of hiking in the mountains?",
    "What makes a good teacher?",
    "How do vaccines prepare the body against a disease?",
    "If a car drives 150 kilometres in two hours, how fast is it on average?",
    "How does a parliament make a law?",
    "Write a product description of a backpack for students.",
    "Translate into French: The weather is nice today and we are going for a walk.",
    "How can I learn to cook simple meals when I have never cooked before?",
    "What are arguments for and against homework in schools?",
    "Why do leaves change their colour in autumn?",
    "What is recursion in programming? Explain it with factorials.",
    "Why is Iceland green in so many places although it lies so far north?",
    "Write a dialogue between a fisherman and a tourist who is lost.",
    "Give me five tips for speaking in front of many people.",
    "What were the main consequences of the invention of printing?",
    "How many minutes are there in a week? Show the calculation.",
    "How do birds find their way when they migrate?",
    "What does the SQL statement GROUP BY do? Give an example.",
    "Explain the saying that a stitch in time saves nine.",
    "Write a polite letter to a landlord about a broken heater.",
    "How can two friends make up after a quarrel?",
    "Explain how interest on a savings account is computed, with an example.",
    "A shop takes 20 percent off a coat of 85 euros. What does it cost now?",
    "What did people eat before potatoes came to Europe?",
    "Invent three names for a coffee shop and say what each one stands for.",
    "Correct the grammar of this sentence: He don't has no time for to play.",
    "Give me a recipe for a vegetable soup for four people.",
    "Should zoos exist? Give both sides.",
    "Describe how a letter travels from one country to another.",
    "How does a hash table work, and when is it slow?",
    "How do earthquakes arise, and how are they measured?",
    "Tell a fairy tale about a fox who wanted to be honest.",
    "What habits help to save money every month?",
    "Summarise the plot of Romeo and Juliet in a few sentences.",
    "Explain what a prime number is and list those below thirty.",
)


def fits(checkpoint: Checkpoint, memory_limit: int) -> bool:
    """Whether the whole model in float32 fits these bytes of memory."""
    return peak_bytes(checkpoint.config, checkpoint.state) <= memory_limit


def sampled_ids(
    checkpoint: Checkpoint,
    tokens: int,
    length: int,
    *,
    memory_limit: int,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Array:
    """Sequences drawn from the original model, at temperature 1.

    Args:
        checkpoint: the source.
        tokens: wanted in all.
        length: of a sequence; the first token of each begins a text.
        memory_limit: bytes that the model may take in float32.
        trust_remote_code: allow the checkpoint's own code.
        seed: of the draws; the same one gives the same tokens on the same kind of machine.

    Returns:
        int64 [sequences, length].

    Raises:
        OptionError: the whole model does not fit the memory.
    """
    import torch

    if not fits(checkpoint, memory_limit):
        need = peak_bytes(checkpoint.config, checkpoint.state)
        raise OptionError(
            f"--calibration-samples: the whole model in float32 ({need / 1e9:.1f} GB) exceeds "
            f"--memory-limit ({memory_limit / 1e9:.1f} GB); raise it, or calibrate with text alone"
        )
    model = _model(checkpoint, trust_remote_code)
    count = max(1, tokens // length)
    first = _first_token(model.config.get_text_config())
    found = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        torch.manual_seed(seed)
        for start in range(0, count, _BATCH):
            ids = torch.full((min(_BATCH, count - start), 1), first)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=length - 1,  # the end of a text is followed by another's start
                max_new_tokens=length - 1,
                pad_token_id=first,
                **_DRAWN,
            )
            found.append(written.numpy())
    return np.concatenate(found).astype(np.int64)


def answer_ids(
    checkpoint: Checkpoint,
    tokenizer: Any,
    tokens: int,
    length: int,
    *,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Array:
    """Questions with the original model's answers, drawn at temperature 1, one chat after another.

    Args:
        checkpoint: the source.
        tokenizer: transformers', with a chat template.
        tokens: wanted in all.
        length: of a sequence.
        trust_remote_code: allow the checkpoint's own code.
        seed: of the draws.

    Returns:
        int64 [sequences, length].

    Raises:
        SourceError: the template refuses a question without a system message.
    """
    import torch

    model = _model(checkpoint, trust_remote_code)
    ends = model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])
    pad = next((stop for stop in sorted(s for s in stops if s is not None)), 0)
    wanted = max(1, tokens // length) * length
    found: list[int] = []
    start = 0
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        torch.manual_seed(seed)
        while len(found) < wanted:
            asked = [_QUESTIONS[i % len(_QUESTIONS)] for i in range(start, start + _BATCH)]
            start += _BATCH
            prompts = [_prompt(tokenizer, question) for question in asked]
            longest = max(map(len, prompts))
            written = model.generate(
                input_ids=torch.tensor([[pad] * (longest - len(p)) + p for p in prompts]),
                attention_mask=torch.tensor(
                    [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
                ),
                max_new_tokens=_ANSWER,
                pad_token_id=pad,
                **_DRAWN,
            )
            for prompt, line in zip(prompts, written[:, longest:].tolist(), strict=True):
                end = next((i + 1 for i, token in enumerate(line) if token in stops), len(line))
                found += prompt + line[:end]
    return np.array(found[:wanted], dtype=np.int64).reshape(-1, length)


def _prompt(tokenizer: Any, question: str) -> list[int]:
    text = render_chat(tokenizer, [{"role": "user", "content": question}], answer=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _model(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    return build_reference(
        checkpoint.config,
        read_state(checkpoint.state, checkpoint.source),
        checkpoint.folder,
        trust_remote_code,
    )


def _first_token(config: Any) -> int:
    """What a text begins with: its start or, where there is none, the end of the one before."""
    for value in (config.bos_token_id, config.eos_token_id):
        token = value[0] if isinstance(value, list) else value
        if token is not None:
            return int(token)
    return 0
