"""The command line: results on stdout, everything else on stderr, and exit codes."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Checkpoint = Callable[..., Path]
RunCli = Callable[..., Any]

_HEAVY = ("torch", "mlx", "mlx_lm", "transformers", "numpy")
_REPORT_MODULES = (
    "import sys, atexit, runpy; "
    f"loaded = lambda: [m for m in {_HEAVY} if sys.modules.get(m)]; "
    "atexit.register(lambda: print(loaded(), file=sys.stderr)); "
    "runpy.run_module('torch2mlx', run_name='__main__', alter_sys=True)"
)


def _process(
    *arguments: object, code: str | None = None
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run in a process of its own; also the CPU seconds that it took."""
    start = ["-c", code] if code else ["-m", "torch2mlx"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_light() -> None:
    done, seconds = _process("--help", code=_REPORT_MODULES)
    assert done.returncode == 0
    for command in ("inspect", "convert", "verify", "generate"):
        assert command in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
    assert seconds < 1.0


def test_version() -> None:
    from torch2mlx import __version__

    done, _ = _process("--version")
    assert done.stdout == f"torch2mlx {__version__}\n"


def test_every_command_has_help(run_cli: RunCli) -> None:
    for command in ("inspect", "convert", "verify", "generate"):
        done = run_cli(command, "-h")
        assert done.code == 0
        assert f"torch2mlx {command} " in done.out
        assert "Example:" in done.out


def test_inspect_is_quick(checkpoint: Checkpoint) -> None:
    done, seconds = _process("inspect", checkpoint("llama"), "--json", code=_REPORT_MODULES)
    assert done.returncode == 0
    assert json.loads(done.stdout)["model_type"] == "llama"
    loaded = done.stderr.splitlines()[-1]
    assert not {"torch", "mlx", "transformers"} & set(
        loaded.strip("[]").replace("'", "").split(", ")
    )
    assert seconds < 3.0


def test_inspect_table(checkpoint: Checkpoint, run_cli: RunCli) -> None:
    done = run_cli("inspect", checkpoint("llama_tied"))
    assert done.code == 0
    out = " ".join(done.out.split())
    for words in ("model llama (LlamaForCausalLM)", "layers 3", "tied head yes", "port llama"):
        assert words in out
    assert done.err == ""


def test_convert_prints_json_and_nothing_else(
    checkpoint: Checkpoint, run_cli: RunCli, tmp_path: Path
) -> None:
    done = run_cli("convert", checkpoint("llama"), tmp_path / "out", "-q", "--json", "--quiet")
    assert done.code == 0
    assert done.err == ""
    result = json.loads(done.out)
    assert result["destination"] == str(tmp_path / "out")
    assert result["plan"]["port"] == "mlx_lm.models.llama"
    assert result["plan"]["schemes"]["lm_head"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert 4.5 <= result["weights"]["bits_per_weight"] < 4.7
    assert result["verification"]["passed"] is True
    assert set(result["source"]["files"]) >= {"config.json", "model.safetensors"}
    assert result["versions"]["torch2mlx"]


def test_convert_table(checkpoint: Checkpoint, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("convert", checkpoint("llama"), tmp_path / "out")
    assert done.code == 0
    out = " ".join(done.out.split())
    assert str(tmp_path / "out") in "".join(
        line.removeprefix("         ") for line in done.out.splitlines()
    )
    for words in ("16.000 bits per weight", "Proof against PyTorch", "twin", "audit", "all layers"):
        assert words in out
    assert "FAILED" not in out
    assert "Planning from headers" in done.err


def test_convert_takes_mlx_lms_flags(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done, _ = _process(
        "convert", "--hf-path", checkpoint("llama"), "--mlx-path", tmp_path / "out", "-q",
        "--q-bits", 8, "--q-group-size", 32, "--q-mode", "affine", "--dtype", "float16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 8, "mode": "affine"}


def test_recipe_goes_by_mlx_lms_name_too(
    checkpoint: Checkpoint, run_cli: RunCli, tmp_path: Path
) -> None:
    arguments = (checkpoint("llama"), "-q", "--no-verify", "--quiet")
    for flag in ("--recipe", "--quant-predicate"):
        out = tmp_path / flag
        assert run_cli("convert", *arguments, flag, "mixed_3_6", "--mlx-path", out).code == 0
    configs = [
        (tmp_path / f / "config.json").read_text() for f in ("--recipe", "--quant-predicate")
    ]
    assert configs[0] == configs[1]
    assert json.loads(configs[0])["quantization"]["lm_head"]["bits"] == 6


def test_destination_has_mlx_lms_default(
    checkpoint: Checkpoint, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("convert", checkpoint("llama"), "--no-verify").code == 0
    assert (tmp_path / "mlx_model" / "config.json").exists()


def test_names_given_twice_or_not_at_all(
    checkpoint: Checkpoint, run_cli: RunCli, tmp_path: Path
) -> None:
    source = checkpoint("llama")
    twice = run_cli("convert", source, tmp_path / "a", "--hf-path", source)
    assert (twice.code, "SRC is given twice" in twice.message) == (2, True)
    missing = run_cli("convert", "--mlx-path", tmp_path / "a")
    assert (missing.code, "SRC is missing" in missing.message) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def converted(checkpoint: Checkpoint, run_cli: RunCli, tmp_path: Path) -> Path:
    done = run_cli("convert", checkpoint("llama"), tmp_path / "out", "-q", "--no-verify")
    assert done.code == 0
    return tmp_path / "out"


def test_verify(checkpoint: Checkpoint, run_cli: RunCli, converted: Path) -> None:
    done = run_cli("verify", checkpoint("llama"), converted)
    assert done.code == 0
    assert "equal to its PyTorch source" in " ".join(done.out.split())
    done = run_cli("verify", checkpoint("llama"), converted, "--json", "--quiet")
    assert done.code == 0
    assert done.err == ""
    result = json.loads(done.out)
    assert result["passed"] is True
    assert result["parity"]["audit"]["passed"] is True
    assert {c["part"] for c in result["parity"]["comparisons"]} >= {"twin", "all layers"}


def test_verify_names_the_tensor_with_a_flipped_bit(
    checkpoint: Checkpoint, run_cli: RunCli, converted: Path
) -> None:
    path = converted / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])["model.layers.2.self_attn.v_proj.weight"]
    data[start + entry["data_offsets"][0] + 11] ^= 4
    path.write_bytes(data)
    done = run_cli("verify", checkpoint("llama"), converted)
    assert done.code == 8
    assert "model.layers.2.self_attn.v_proj" in done.message
    assert "1 of" in done.message
    assert "Traceback" not in done.err


def test_verify_says_what_is_wrong_with_a_folder(
    checkpoint: Checkpoint, run_cli: RunCli, converted: Path, tmp_path: Path
) -> None:
    path = converted / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    done = run_cli("verify", checkpoint("llama"), converted)
    assert (done.code, "model.safetensors: truncated" in done.message) == (3, True)
    path.unlink()
    done = run_cli("verify", checkpoint("llama"), converted)
    assert (done.code, "files are missing: model.safetensors;" in done.message) == (3, True)
    (converted / "model.safetensors.index.json").unlink()
    done = run_cli("verify", checkpoint("llama"), converted)
    assert (done.code, "no model*.safetensors" in done.message) == (3, True)
    done = run_cli("verify", checkpoint("llama"), tmp_path / "nowhere", "--json")
    assert done.code == 3
    assert json.loads(done.out)["error"]["type"] == "SourceError"


def test_verify_of_a_wrong_folder_does_not_speak_of_writing(
    checkpoint: Checkpoint, run_cli: RunCli, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.nn as nn
    from mlx_lm.models import llama

    monkeypatch.setattr(llama, "swiglu", lambda gate, x: nn.gelu(gate) * x)
    done = run_cli("verify", checkpoint("llama"), converted)
    assert done.code == 8
    assert "the MLX model differs from PyTorch" in done.message
    assert "written" not in done.message


def test_verify_exits_with_8_where_mlx_lm_lost_a_setting(
    checkpoint: Checkpoint, run_cli: RunCli, tmp_path: Path
) -> None:
    from mlx_lm import convert

    for flat, code in ((False, 8), (True, 0)):
        source = checkpoint("llama", flat=flat)
        convert(str(source), str(tmp_path / str(code)))
        done = run_cli("verify", source, tmp_path / str(code))
        assert done.code == code
        assert ("rope_theta" in done.message) is (code == 8)


def test_generate(converted: Path, run_cli: RunCli) -> None:
    plain = run_cli("generate", converted, "-p", "the sun", "-m", 6)
    assert plain.code == 0
    result = run_cli("generate", converted, "-p", "the sun", "-m", 6, "--json")
    assert result.code == 0
    answer = json.loads(result.out)
    assert answer["text"].strip() in plain.out
    assert 1 <= answer["generated_tokens"] <= 6
    assert answer["finish_reason"] == ("length" if answer["generated_tokens"] == 6 else "stop")
    assert answer["peak_memory"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temp", "nan"), "--temp nan: at least 0"),
        (("--temp", "inf"), "--temp inf: at least 0"),
        (("--seed", "-1"), "--seed -1: from 0"),
        (("--seed", str(2**64)), "from 0 to 2^64 - 1"),
        (("-p", "half \ud83d"), "the prompt is no valid text"),
    ],
)
def test_generate_refuses_numbers_and_texts_that_are_none(
    tmp_path: Path, run_cli: RunCli, arguments: tuple[str, ...], words: str
) -> None:
    done = run_cli("generate", tmp_path, "-p", "x", *arguments)
    assert (done.code, words in done.message) == (2, True)


def test_generate_says_what_a_chat_template_refuses(converted: Path, run_cli: RunCli) -> None:
    template = converted / "chat_template.jinja"
    assert template.exists()
    template.write_text("{{ raise_exception('begin with a system message') }}")
    done = run_cli("generate", converted, "-p", "the sun", "-m", 2)
    assert done.code == 3
    assert "begin with a system message; --raw leaves the template out" in done.message
    assert run_cli("generate", converted, "-p", "the sun", "-m", 2, "--raw").code == 0
    template.write_text("{{ '' }}")
    done = run_cli("generate", converted, "-p", "the sun", "-m", 2)
    assert (done.code, "the prompt is empty" in done.message) == (2, True)


def test_generate_reads_the_prompt_from_stdin(
    converted: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = run_cli("generate", converted, "-p", "stars go out", "-m", 4, "--json")
    monkeypatch.setattr(sys, "stdin", io.StringIO("stars go out"))
    piped = run_cli("generate", converted, "-p", "-", "-m", 4, "--json")
    assert json.loads(piped.out)["text"] == json.loads(direct.out)["text"]


def test_a_reader_that_stops_is_no_error(checkpoint: Checkpoint) -> None:
    command = [sys.executable, "-m", "torch2mlx", "inspect", str(checkpoint("llama"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("convert", "a", "b", "--nope"), "--nope"), (("verify", "a", "--expert-layout", "x"), "x")],
)
def test_a_mistyped_option_is_json_too(
    run_cli: Callable[..., Any], arguments: tuple[str, ...], named: str
) -> None:
    run = run_cli(*arguments, "--json")
    assert run.code == 2
    assert run.err == ""
    error = json.loads(run.out)["error"]
    assert error["type"] == "OptionError"
    assert named in error["message"]
