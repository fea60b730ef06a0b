"""Decisions against mlx-lm's own, on real tiny models of its ports; messages; routers."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import pytest
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import quantize_model

from torch2mlx.dtypes import DTYPES, dtype_from_mx, from_mx
from torch2mlx.errors import OptionError
from torch2mlx.quantization.kernel import quantize_rows
from torch2mlx.quantization.recipe import (
    RECIPES,
    ROUTER_SCHEME,
    Assignment,
    QuantOptions,
    assign_schemes,
    override_text,
    parse_override,
)
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.quantization.targets import QuantTarget, is_head, is_router, matches

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 9, "intermediate_size": 96,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "vocab_size": 40,
    "head_dim": 64, "tie_word_embeddings": False,
}  # fmt: skip
MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "moe_intermediate_size": 64, "norm_topk_prob": True, "rope_theta": 1e4,
    "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama tied": {**LLAMA, "tie_word_embeddings": True},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_hidden_layers": 3},
    "qwen3_moe": {**LLAMA, **MOE, "model_type": "qwen3_moe", "num_hidden_layers": 3},
    "granite": {
        **LLAMA, "model_type": "granite", "num_hidden_layers": 2, "intermediate_size": 128,
        "attention_multiplier": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "max_position_embeddings": 64, "attention_bias": False, "mlp_bias": False,
        "rope_theta": 1e4,
    },
}  # fmt: skip


def build(name: str) -> nn.Module:
    config = CONFIGS[name]
    port = import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = port.Model(port.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    return model


def targets_of(model: nn.Module) -> list[QuantTarget]:
    predicate = getattr(model, "quant_predicate", None) or (lambda path, module: True)
    modules = dict(model.named_modules())
    return [
        QuantTarget(path, type(module).__name__, module.weight.shape, predicate(path, module))
        for path, module in reversed(modules.items())
        if hasattr(module, "to_quantized")
    ]


def formats(model: nn.Module) -> dict[str, Scheme | None]:
    return {
        path: Scheme(module.bits, module.group_size, module.mode) if "scales" in module else None
        for path, module in model.named_modules()
        if "weight" in module and ("scales" in module or hasattr(module, "to_quantized"))
    }


def assign(name: str, **options: Any) -> Assignment:
    model = build(name)
    return assign_schemes(targets_of(model), QuantOptions(**options), len(model.layers))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "scheme",
    [Scheme(4, 64), Scheme(3, 32), Scheme(8, 128), Scheme(4, 32, "mxfp4"), Scheme(4, 16, "nvfp4")],
    ids=str,
)
def test_same_router_gives_the_bytes_of_mlx_lm(name: str, scheme: Scheme) -> None:
    theirs, model = build(name), build(name)
    _, config = quantize_model(
        theirs, {}, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode
    )
    found = assign_schemes(
        targets_of(model), QuantOptions(scheme=scheme, router="same"), len(model.layers)
    )
    assert found.schemes == formats(theirs)
    written = {
        path: {"mode": "affine", **entry} if isinstance(entry, dict) else entry
        for path, entry in config["quantization"].items()
    }
    fitting = {path: entry for path, entry in written.items() if entry != scheme.to_config()}
    assert found.to_config() == fitting
    quantized = dict(theirs.named_modules())
    for path, module in model.named_modules():
        if (chosen := found.schemes.get(path)) is not None:
            weight = module.weight
            parts = quantize_rows(from_mx(weight), dtype_from_mx(weight.dtype), chosen)
            for suffix, bits in parts.items():
                assert bits.tobytes() == from_mx(quantized[path][suffix]).tobytes()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_decide_as_mlx_lm(name: str, recipe: str, group_size: int) -> None:
    theirs = build(name)
    quantize_model(
        theirs,
        {},
        group_size=group_size,
        bits=None,
        quant_predicate=mixed_quant_predicate_builder(recipe, theirs, group_size),
    )
    options = {"scheme": Scheme(4, group_size), "recipe": recipe, "router": "same"}
    found = assign(name, **options)
    assert found.schemes == formats(theirs)
    assert set(found.reasons) == {p for p, s in found.schemes.items() if s != found.base}
    assert f"recipe {recipe}" in found.reasons.values()


@pytest.mark.parametrize("layers", [1, 2, 7, 8, 16, 30, 61])
def test_recipes_favour_the_layers_that_mlx_lm_favours(layers: int) -> None:
    names = ("self_attn.v_proj", "self_attn.q_proj", "mlp.down_proj", "self_attn.kv_b_proj")
    paths = [f"language_model.model.layers.{i}.{name}" for i in range(layers) for name in names]
    paths = ["language_model.model.embed_tokens", *paths, "language_model.lm_head"]

    class Model:
        def __init__(self) -> None:
            self.layers = [None] * layers

        def named_modules(self) -> list[tuple[str, None]]:
            return [(path, None) for path in reversed(paths)]

    targets = [QuantTarget(path, "Linear", (64, 64)) for path in paths]
    for recipe in RECIPES:
        predicate = mixed_quant_predicate_builder(recipe, Model())
        found = assign_schemes(targets, QuantOptions(recipe=recipe), layers)
        for path in paths:
            chosen = found.schemes[path]
            assert chosen is not None
            assert chosen.to_config() == predicate(path, None)


def test_recipe_on_a_tied_model_says_that_its_head_rule_is_idle() -> None:
    tied = assign("llama tied", recipe="mixed_4_6")
    assert tied.schemes["model.embed_tokens"] == Scheme(4, 64)
    assert "no module of that name" in tied.notes[0]
    assert "unquantized, 16 bits per weight, because width" in tied.notes[1]
    assert "4-bit affine, groups of 64 (model.embed_tokens)" in tied.notes[0]
    assert not any("lm_head" in note for note in assign("llama", recipe="mixed_4_6").notes)


def test_recipe_says_that_it_replaces_the_ports_choice() -> None:
    (note,) = assign("granite", recipe="mixed_3_6").notes
    assert "replaces the port's own choice for 5 modules" in note


@pytest.mark.parametrize(
    ("options", "scheme", "reason"),
    [
        ({}, ROUTER_SCHEME, "router: kept at 8 bits by default"),
        ({"scheme": Scheme(4, 32, "mxfp4")}, ROUTER_SCHEME, "router: kept at 8 bits by default"),
        ({"recipe": "mixed_3_4"}, ROUTER_SCHEME, "router: kept at 8 bits by default"),
        ({"router": "keep"}, None, "router: kept unquantized"),
        ({"router": "same"}, Scheme(4, 64), None),
        ({"scheme": Scheme(8, 32)}, Scheme(8, 32), None),
        ({"overrides": (("mlp.gate", 5),)}, Scheme(5, 64), "override 'mlp.gate'"),
    ],
)
def test_routers(options: dict[str, Any], scheme: Scheme | None, reason: str | None) -> None:
    targets = [
        QuantTarget("model.layers.0.mlp.gate", "Linear", (8, 64)),
        QuantTarget("model.layers.0.mlp.down_proj", "Linear", (8, 64)),
        QuantTarget("lm_head", "Linear", (8, 64)),
    ]
    found = assign_schemes(targets, QuantOptions(**options), 1)
    assert found.schemes["model.layers.0.mlp.gate"] == scheme
    assert found.reasons.get("model.layers.0.mlp.gate") == reason


def test_a_router_that_groups_of_64_do_not_divide_is_listed() -> None:
    found = assign_schemes(
        [QuantTarget("mlp.gate", "Linear", (8, 96)), QuantTarget("mlp.up_proj", "Linear", (8, 96))],
        QuantOptions(scheme=Scheme(4, 32)),
        1,
        DTYPES["F32"],
    )
    assert found.schemes == {"mlp.gate": None, "mlp.up_proj": Scheme(4, 32)}
    (skip,) = found.skipped
    assert (skip.path, skip.bits_per_weight) == ("mlp.gate", 32.0)
    assert skip.reason == "width 96 is not divisible by group size 64; group size 32 would fit"


def test_the_ports_own_choice_is_respected() -> None:
    targets = [
        QuantTarget("a.q_proj", "Linear", (8, 64), False),
        QuantTarget("b.q_proj", "Linear", (8, 64), {"bits": 8}),
        QuantTarget("c.gate", "Linear", (8, 64), False),
        QuantTarget("d.gate", "Linear", (8, 64), {"bits": 6, "group_size": 32}),
    ]
    found = assign_schemes(targets, QuantOptions(scheme=Scheme(4, 32)), 1)
    assert list(found.schemes.values()) == [None, Scheme(8, 64), None, Scheme(6, 32)]
    assert found.reasons["a.q_proj"] == "the port keeps it unquantized"
    assert found.reasons["b.q_proj"] == "the port asks for 8-bit affine, groups of 64"


def test_patterns_win_in_the_order_that_the_docs_say() -> None:
    found = assign(
        "llama",
        keep=("lm_head",),
        overrides=(("*_proj", 6), ("layers.1.*", Scheme(8, 32, "mxfp8")), ("lm_head", 3)),
        embedding=8,
    )
    assert found.schemes["lm_head"] is None
    assert found.schemes["model.layers.0.self_attn.q_proj"] == Scheme(6, 64)
    assert found.schemes["model.layers.1.self_attn.q_proj"] == Scheme(8, 32, "mxfp8")
    assert found.schemes["model.embed_tokens"] == Scheme(8, 64)
    assert found.reasons["lm_head"] == "--keep 'lm_head'"
    assert found.to_config()["model.embed_tokens"] == Scheme(8, 64).to_config()
    assert "lm_head" not in found.to_config()


def test_options_for_embedding_and_head() -> None:
    found = assign("llama", embedding="keep", head=6, scheme=Scheme(4, 16, "nvfp4"))
    assert found.schemes["model.embed_tokens"] is None
    assert found.schemes["lm_head"] == Scheme(6, 64)
    with pytest.raises(OptionError, match="tied to the embedding"):
        assign("llama tied", head=8)


def test_undivided_layers_are_listed_with_what_they_really_take() -> None:
    found = assign("llama", scheme=Scheme(4, 64))
    assert len(found.skipped) == 9
    assert {skip.path.rpartition(".")[2] for skip in found.skipped} == {"down_proj"}
    assert {skip.bits_per_weight for skip in found.skipped} == {16.0}
    assert found.reasons[found.skipped[0].path] == found.skipped[0].reason
    with pytest.raises(OptionError) as caught:
        assign("llama", scheme=Scheme(4, 64), strict=True)
    assert "9 modules cannot be quantized as asked" in str(caught.value)
    assert "model.layers.8.mlp.down_proj (64, 96): width 96 is not" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": ("*.qproj",)}, "'*.qproj' matches no quantizable module; did you mean q_proj"),
        ({"overrides": (("lm_haed", 6),)}, "did you mean lm_head"),
        ({"keep": ("zzz",), "overrides": (("yyy", 6),)}, "'zzz' matches"),
        ({"keep": ("zzz",), "overrides": (("yyy", 6),)}, "'yyy' matches"),
        ({"recipe": "mixed_5_6"}, "mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6"),
        ({"recipe": "mixed_4_6", "scheme": Scheme(4, 32, "mxfp4")}, "mode 'mxfp4'"),
        ({"router": "4bit"}, "8bit, keep or same"),
        ({"embedding": 7}, "2, 3, 4, 5, 6 or 8, not 7"),
        ({"head": "same"}, "'keep' or a number of bits"),
        ({"overrides": (("lm_head", 9),)}, "not 9"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        assign("llama", **options)
    assert words in str(caught.value)


def test_a_recipe_without_down_proj_is_refused_as_by_mlx_lm() -> None:
    with pytest.raises(OptionError, match="has no down_proj"):
        assign_schemes(
            [QuantTarget("h.0.fc", "Linear", (8, 64))], QuantOptions(recipe="mixed_4_6"), 1
        )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("*.down_proj=6", ("*.down_proj", 6)),
        ("lm_head=4:32", ("lm_head", Scheme(4, 32))),
        ("x=mxfp8", ("x", Scheme(8, 32, "mxfp8"))),
        ("a=b=nvfp4", ("a=b", Scheme(4, 16, "nvfp4"))),
        ("x=keep", ("x", None)),
    ],
)
def test_overrides_are_read(text: str, value: tuple[str, int | Scheme | None]) -> None:
    assert parse_override(text) == value
    assert parse_override(override_text(*value)) == value


@pytest.mark.parametrize("text", ["6", "=6", "x=", "x=6:", "x=:32", "x=7", "x=4:16", "x=q4", "x=²"])
def test_bad_overrides_are_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_override(text)


def test_patterns_match_paths_and_dotted_suffixes() -> None:
    path = "model.layers.1.self_attn.q_proj"
    for pattern in (path, "q_proj", "*.q_proj", "layers.1.*", "self_attn.?_proj", "model.*"):
        assert matches(pattern, path), pattern
    for pattern in ("proj", "layers.1", "Q_proj", "ayers.1.*", "layers.10.*"):
        assert not matches(pattern, path), pattern


def test_heads_of_the_ports_are_recognised() -> None:
    for path in ("lm_head", "language_model.lm_head", "lm_head.linear", "output", "embed_out"):
        assert is_head(QuantTarget(path, "Linear", (8, 64))), path
    for path in ("model.layers.0.attention.output", "model.norm"):
        assert not is_head(QuantTarget(path, "Linear", (8, 64))), path


def _expert_linears() -> list[tuple[str, str, str]]:
    """(file, class, attribute) of every Linear in mlx-lm's ports whose size counts experts."""
    found = []
    for file in sorted(Path(mlx_lm.models.__path__[0]).glob("*.py")):
        for cls in ast.walk(ast.parse(file.read_text())):
            if not isinstance(cls, ast.ClassDef):
                continue
            for node in ast.walk(cls):
                match node:
                    case ast.Assign(
                        targets=[ast.Attribute(attr=name)],
                        value=ast.Call(func=ast.Attribute(attr="Linear"), args=[_, size, *_]),
                    ) if "experts" in ast.unparse(size):
                        found.append((file.stem, cls.name, name))
    return found


def test_every_router_of_mlx_lm_is_recognised() -> None:
    linears = _expert_linears()
    assert len(linears) > 25
    for file, cls, name in linears:
        # A class for routing alone is held as `gate` or `router`; any other holds the Linear.
        alone = any(word in cls for word in ("Gate", "Gating", "Router"))
        holders = ("mlp.gate", "mlp.router") if alone else ("mlp",)
        for holder in holders:
            target = QuantTarget(f"model.layers.0.{holder}.{name}", "Linear", (8, 64))
            assert is_router(target), (file, cls, name)


@pytest.mark.parametrize(
    "name",
    ["mlp.gate_proj", "switch_mlp.gate_proj", "mlp.gate_up_proj", "per_layer_input_gate", "g_proj"],
)
def test_feed_forward_gates_are_no_routers(name: str) -> None:
    assert not is_router(QuantTarget(f"model.layers.0.{name}", "Linear", (8, 64)))
    assert not is_router(QuantTarget("model.layers.0.mlp.gate", "SwitchLinear", (4, 8, 64)))
