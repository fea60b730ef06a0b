"""Recipe files through the command line: the formats of the written folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torch2mlx.errors import OptionError
from torch2mlx.quantization.recipe_file import read_recipe
from torch2mlx.quantization.scheme import Scheme

RECIPE = """
[base]
bits = 3
group_size = 32

[modules]
"*.v_proj" = 6
"*.down_proj" = { bits = 8, group_size = 64 }
"layers.1.*" = { mode = "mxfp8" }
"layers.1.mlp.down_proj" = "keep"
"lm_head" = "keep"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_the_folder_has_the_formats_of_the_file(
    checkpoint, run_cli, tmp_path: Path, recipe: Path, read_weights
) -> None:
    run = run_cli(
        "convert", checkpoint("llama"), tmp_path / "out", "-q", "--recipe", recipe, "--bits",
        "embed_tokens=8", "--no-verify", "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.message
    formats = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    weights = read_weights(tmp_path / "out")

    def bits(module: str, width: int) -> float:
        words = weights[f"model.{module}.weight"][1][-1]
        return words * 32 / width

    assert (formats["bits"], formats["group_size"]) == (3, 32)
    assert bits("layers.0.self_attn.q_proj", 128) == 3
    assert weights["model.layers.0.self_attn.q_proj.scales"][1][-1] == 4
    assert bits("layers.0.self_attn.v_proj", 128) == 6
    assert bits("layers.0.mlp.down_proj", 256) == 8
    assert weights["model.layers.0.mlp.down_proj.scales"][1][-1] == 4
    assert formats["model.layers.1.self_attn.v_proj"]["mode"] == "mxfp8"
    assert weights["model.layers.1.self_attn.v_proj.scales"][0] == "U8"
    assert weights["model.layers.1.mlp.down_proj.weight"][:2] == ("BF16", [128, 256])
    assert weights["lm_head.weight"][0] == "BF16"
    assert bits("embed_tokens", 128) == 8


def test_a_pattern_that_matches_nothing_is_named(
    checkpoint, run_cli, tmp_path: Path, recipe: Path
) -> None:
    recipe.write_text(RECIPE + '"*.o_prj" = 6\n')
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", "--recipe", recipe)
    assert run.code == 2
    assert "'*.o_prj' matches no quantizable module; did you mean o_proj" in run.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[modules", "no valid TOML"),
        ("[module]\na = 4", "unknown table 'module'"),
        ("modules = 4", "modules must be a table"),
        ('[modules]\n"a" = "6"', "'a' is '6'; expected a number of bits"),
        ('[modules]\n"a" = { bit = 6 }', "unknown key 'bit'"),
        ('[modules]\n"a" = { bits = "6", group_size = 32 }', "'a.bits' is '6'"),
        ('[modules]\n"a" = { bits = 7, group_size = 64 }', "bits must be 2, 3, 4, 5, 6 or 8"),
        ('[modules]\n"a" = 7', "'a': quantization mode 'affine': bits must be 2, 3, 4, 5, 6 or 8"),
        ('[modules]\n"a" = { bits = true }', "'a.bits' is True; expected a whole number"),
        ("[base]\nmode = 'q4'", "quantization mode must be"),
        ('[runtime_precision]\n"a" = 16', "expected the name of a type"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=str(path)) as caught:
        read_recipe(path)
    assert expected in str(caught.value)


def test_every_table_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[modules]\n"b" = 5\n"a" = { mode = "nvfp4" }\n')
    found = read_recipe(path)
    assert found.base is None
    assert found.overrides == (("b", 5), ("a", Scheme(4, 16, "nvfp4")))


def test_a_base_format_excludes_the_options(run_cli, checkpoint, tmp_path, recipe) -> None:
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", "--recipe", recipe,
                  "--q-bits", "4")  # fmt: skip
    assert run.code == 2
    assert "leave out --q-bits" in run.message
    run = run_cli("convert", checkpoint("llama"), tmp_path / "o", "-q", "--recipe", "mixed_9_9")
    assert run.code == 2
    assert "mixed_4_6" in run.message
