"""What is tried next where quantization costs too much."""

from __future__ import annotations

from pathlib import Path

from torch2mlx.architectures.port import load_port
from torch2mlx.cures import Attempt, Attempts, Cure, cures
from torch2mlx.options import ConvertOptions
from torch2mlx.planning.plan import build_plan
from torch2mlx.quantization.scheme import Scheme
from torch2mlx.sources import open_checkpoint

RECIPE = """
[base]
bits = 2
group_size = 32

[modules]
"*.v_proj" = 6
"*.o_proj" = { mode = "mxfp8" }
"lm_head" = "keep"
"""


def test_patterns_of_a_recipe_file_hold_when_everything_gets_more_bits(
    checkpoint, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    asked = ConvertOptions(quantize=True, recipe=str(recipe), bits=("embed_tokens=4",))
    source = open_checkpoint(checkpoint("llama_short"))
    port = load_port(source.config)
    plan = build_plan(source, port, quantize=asked.quant_options())
    source.source.close()
    calibrated, *wider = cures(asked, Cure("as asked", asked, 3), plan, (), {})
    assert calibrated.options.recipe == str(recipe)
    assert [cure.text for cure in wider] == [
        "--q-bits 8 --q-group-size 64 for all",
        "--q-bits 8 --q-group-size 32 for all",
    ]
    for cure in wider:
        quantize = cure.options.quant_options()
        assert quantize is not None
        assert quantize.base.bits == 8
        assert quantize.overrides == (
            ("*.v_proj", 6), ("*.o_proj", Scheme(8, 32, "mxfp8")), ("lm_head", None),
            ("embed_tokens", 4),
        )  # fmt: skip


def test_damaged_attempts_and_those_of_other_versions_are_made_anew(
    tmp_path: Path, monkeypatch
) -> None:
    asked = ConvertOptions(quantize=True, max_kl=0.1, auto=True)
    cure = Cure("8 bits", ConvertOptions(quantize=True, max_kl=0.1, auto=True, q_bits=8))
    attempt = Attempt("as asked", {}, 4.5, {"mean_kl": 0.2}, ("too much",))
    Attempts(tmp_path, asked, {}).failed(attempt, cure)
    again = Attempts(tmp_path, asked, {})
    assert (again.done, again.cure.options.q_bits) == ([attempt], 8)
    (tmp_path / "attempts.json").write_bytes(b"\x00" * 40)  # after a power loss
    assert Attempts(tmp_path, asked, {}).done == []
    Attempts(tmp_path, asked, {}).failed(attempt, cure)
    monkeypatch.setattr("torch2mlx.cures.library_versions", lambda: {"torch2mlx": "0"})
    assert Attempts(tmp_path, asked, {}).done == []
