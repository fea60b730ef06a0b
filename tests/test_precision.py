"""Types by module: a model that float16 does not hold, found and cured; casts in the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

import torch2mlx
from torch2mlx.compiler.runtime.precision import set_precision
from torch2mlx.errors import OptionError
from torch2mlx.precision import parse_precision

TOKENS = [[7, 101, 45, 9, 280, 33, 12, 64]]


@pytest.fixture(scope="module")
def gemma(checkpoint, tmp_path_factory) -> Path:
    """A tiny Gemma 2 with products of 1e5 and more inside its feed-forward part."""
    import shutil

    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=288, max_position_embeddings=256,
        sliding_window=256, query_pre_attn_scalar=16, eos_token_id=0, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
        for layer in model.model.layers[1:]:
            layer.mlp.gate_proj.weight.mul_(300)
            layer.mlp.up_proj.weight.mul_(300)
            layer.mlp.down_proj.weight.mul_(1e-3)
    folder = tmp_path_factory.mktemp("gemma") / "source"
    model.save_pretrained(folder)
    for path in checkpoint("llama").glob("*token*"):
        shutil.copy(path, folder)
    return folder


def logits(model: Any) -> np.ndarray[Any, Any]:
    return np.array(model(mx.array(TOKENS)).astype(mx.float32))


def reference(folder: Path) -> np.ndarray[Any, Any]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS)).logits.numpy()


def distance(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_overflow_in_float16_is_refused(gemma: Path, run_cli, tmp_path: Path) -> None:
    run = run_cli("convert", gemma, tmp_path / "out", "--dtype", "float16", "--quiet")
    assert run.code == 6
    assert "overflow in float16" in run.message
    assert "first beyond it at model.layers.1.mlp" in run.message
    assert "--runtime-precision auto" in run.message
    assert not (tmp_path / "out").exists()
    blind = run_cli("convert", gemma, tmp_path / "blind", "--dtype", "float16", "--no-verify")
    assert blind.code == 0
    assert not np.isfinite(logits(torch2mlx.load(tmp_path / "blind")[0])).all()


def test_measured_types_cure_it(gemma: Path, run_cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = run_cli("convert", gemma, out, "--dtype", "float16", "--runtime-precision", "auto")
    assert run.code == 0, run.message
    policy = json.loads((out / "config.json").read_text())["runtime_precision"]
    assert policy == {"mlp": "float32"}
    manifest = json.loads((out / "torch2mlx.json").read_text())
    assert manifest["plan"]["runtime_precision"] == policy
    budgets = {b["name"]: b for b in manifest["verification"]["budgets"]}
    assert budgets["runtime precision"]["figures"]["relative_l2"] < 0.02
    model = torch2mlx.load(out)[0]
    assert distance(logits(model), reference(gemma)) < 0.02
    layer = model.model.layers[1]
    assert layer.mlp.gate_proj.weight.dtype == mx.float32
    assert layer.self_attn.q_proj.weight.dtype == mx.float16
    assert model(mx.array(TOKENS)).dtype == mx.float16
    assert run_cli("verify", gemma, out, "--quiet").code == 0


def test_a_policy_that_does_not_help_is_not_published(gemma: Path, run_cli, tmp_path) -> None:
    run = run_cli(
        "convert", gemma, tmp_path / "out", "--dtype", "float16", "--runtime-precision",
        "self_attn=float32", "--quiet",
    )  # fmt: skip
    assert run.code == 8
    assert "with --runtime-precision self_attn=float32" in run.message
    assert not (tmp_path / "out").exists()


def test_a_stream_beyond_float16_is_float32_from_the_embedding_on(checkpoint) -> None:
    from torch2mlx.verification.ranges import Ranges, choose_precision

    paths = ["model.embed_tokens", "model.norm", "lm_head"]
    for i in range(3):
        paths += [f"model.layers.{i}.{part}" for part in (
            "self_attn", "self_attn.q_proj", "mlp", "mlp.up_proj", "input_layernorm")]  # fmt: skip
    quiet = {"self_attn": [1.0] * 3, "mlp": [1.0, 1.0, 9e5], "input_layernorm": [1.0] * 3}
    assert choose_precision(Ranges(10.0, quiet), paths) == {"2.mlp": "float32"}
    assert choose_precision(Ranges(1e6, quiet), paths) == {
        "model.embed_tokens": "float32", "mlp": "float16", "2.mlp": "float32",
        "self_attn": "float16",
    }  # fmt: skip
    assert choose_precision(Ranges(10.0, {"mlp": [2.0] * 3}), paths) == {}
    assert choose_precision(Ranges(10.0, {"block": [9e5]}), paths) == {"*": "float32"}


def test_types_in_a_quantized_model(checkpoint, run_cli, tmp_path: Path) -> None:
    """By recipe file and option together; the option comes last."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[runtime_precision]\n"embed_tokens" = "float32"\n"mlp" = "float32"\n')
    out = tmp_path / "out"
    source = checkpoint("llama")
    run = run_cli(
        "convert", source, out, "-q", "--q-bits", "8", "--recipe", recipe,
        "--runtime-precision", "mlp=float16,down_proj=float32",
    )  # fmt: skip
    assert run.code == 0, run.message
    model = torch2mlx.load(out)[0]
    seen: dict[str, Any] = {}
    for name in ("mlp", "self_attn"):
        module = getattr(model.model.layers[0], name)
        kind = type(module)

        def call(self: Any, *args: Any, name: str = name, kind: Any = kind, **kwargs: Any) -> Any:
            seen[name] = args[0].dtype
            return kind.__call__(self, *args, **kwargs)

        module.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    assert model(mx.array(TOKENS)).dtype == mx.float32
    assert seen == {"mlp": mx.float32, "self_attn": mx.float32}
    mlp = model.model.layers[0].mlp
    assert mlp.up_proj.scales.dtype == mx.float16
    assert mlp.down_proj.scales.dtype == mx.float32
    assert model.model.layers[0].self_attn.q_proj.scales.dtype == mx.bfloat16
    assert mlp.up_proj.weight.dtype == mx.uint32
    # Eight bits move the logits of this random model by less than rounding to bfloat16 does.
    assert distance(logits(model), reference(source)) < 0.1


@pytest.mark.slow
def test_casts_are_in_the_code_of_a_generated_port(gemma: Path, tmp_path: Path, run_cli) -> None:
    """mlx-lm alone runs the folder's own model file."""
    from mlx_lm.utils import load_model

    source = tmp_path / "source"
    source.mkdir()
    for path in gemma.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    # A window that mlx-lm's port ignores, so that a port is generated.
    (source / "config.json").write_text(json.dumps({**config, "sliding_window": 128}))
    out = tmp_path / "out"
    run = run_cli(
        "convert", source, out, "--dtype", "float16", "--runtime-precision", "mlp=float32",
        "--quiet",
    )  # fmt: skip
    assert run.code == 0, run.message
    text = (out / "model.py").read_text()
    assert "torch2mlx.com" not in text
    assert "import torch2mlx" not in text
    assert 'PRECISION = {\n    "mlp": "float32",\n}' in text
    expected = reference(source)
    alone = load_model(out, trust_remote_code=True)[0]
    assert alone.model.layers[1].mlp.up_proj.weight.dtype == mx.float32
    assert distance(logits(alone), expected) < 0.02
    assert distance(logits(torch2mlx.load(out)[0]), expected) < 0.02
    assert run_cli("verify", source, out, "--quiet").code == 0


def test_what_a_policy_may_not_say(run_cli, checkpoint, tmp_path: Path) -> None:
    for text, expected in (
        ("self_attn", "must be pattern=type"),
        ("self_attn=fp16", "choose one of float32, float16, bfloat16"),
        ("self_atn=float32", "'self_atn' matches no module; did you mean self_attn"),
    ):
        run = run_cli("convert", checkpoint("llama"), tmp_path / "out", "--runtime-precision", text)
        assert run.code == 2
        assert expected in run.message
    with pytest.raises(OptionError):
        parse_precision("a=int8")


def test_modules_without_a_match_compute_as_those_around_them() -> None:
    import mlx.nn as nn

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def __call__(self, x: Any, pair: Any) -> Any:
            self.seen = (x.dtype, pair[0].dtype, pair[1].dtype, pair[2].dtype)
            return self.linear(x), x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()
            self.scale = mx.ones((4,))

        def __call__(self, x: Any, frequencies: Any) -> Any:
            mask = mx.ones((2, 2), mx.bool_)
            return self.inner(x * self.scale.astype(x.dtype), (x, frequencies, mask))

    model = Outer()
    set_precision(model, {"inner": "float16"})
    left = model(mx.ones((2, 4)), mx.ones((8,)))
    assert model.inner.seen == (mx.float16, mx.float16, mx.float32, mx.bool_)
    assert [a.dtype for a in left] == [mx.float32, mx.float32]
    assert model.inner.linear.weight.dtype == mx.float16
    assert model.scale.dtype == mx.float32
    assert type(model.inner).__name__ == "Inner"
