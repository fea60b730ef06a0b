"""Commands that leave PyTorch out give what they give with it, and load it where they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torch2mlx import without_torch

Checkpoint = Callable[..., Path]

_RUN = (
    "import os, sys\n"
    "from torch2mlx import cli\n"
    "leave = os._exit\n"
    "def end(code):\n"
    "    sys.stderr.write(f'torch: {sys.modules.get(\"torch\") is not None}\\n')\n"
    "    sys.stderr.flush()\n"
    "    leave(code)\n"
    "os._exit = end\n"
    "cli.run()\n"
)
# The normalised config of every port from what transformers writes, as one JSON object.
_CONFIGS = """
import json, os, pkgutil, sys
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
if sys.argv[1] == "without":
    sys.modules["torch"] = None
import mlx_lm.models
import transformers
from torch2mlx.architectures.normalize import normalize_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
transformers.utils.logging.set_verbosity_error()
ports = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
names = sys.argv[2:] or sorted(ports & set(CONFIG_MAPPING))
found = {}
for name in names:
    try:
        plain = json.loads(json.dumps(CONFIG_MAPPING[name]().to_dict(), default=str))
        for config in (plain, {"model_type": name}):
            found[f"{name} {len(config) > 1}"] = normalize_config({**config, "dtype": "bfloat16"})
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found, sort_keys=True, default=str))
"""


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def _python(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=_environment(), check=True)


def test_a_copy_without_comparison_does_not_load_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("llama")
    done = _python("-c", _RUN, "convert", source, tmp_path / "light", "-q", "--no-verify")
    assert done.stderr.splitlines()[-1] == "torch: False"
    assert "PyTorch was not found" not in done.stderr

    from torch2mlx import convert

    convert(source, tmp_path / "full", quantize=True, verify=False)
    light, full = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()}
        for name in ("light", "full")
    )
    manifests = [json.loads(files.pop("torch2mlx.json")) for files in (light, full)]
    for manifest in manifests:
        del manifest["created"], manifest["measured"]
    assert light == full
    assert manifests[0] == manifests[1]


def test_the_library_never_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    without_torch.leave_out()
    assert "torch" not in sys.modules
    without_torch.require()


def test_processes_of_a_launch_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(without_torch, "_own_process", True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    without_torch.leave_out()
    assert not without_torch.is_left_out()
    monkeypatch.setenv("WORLD_SIZE", "1")
    without_torch.leave_out()
    try:
        assert without_torch.is_left_out()
        with pytest.raises(ImportError) as refused:
            without_torch.require()
        assert refused.value.name == "torch"
    finally:
        del sys.modules["torch"]


@pytest.mark.slow
def test_a_generated_port_starts_the_process_again(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=32,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    done = _python("-c", _RUN, "convert", tmp_path / "opt", tmp_path / "out", "--no-verify")
    assert done.stderr.splitlines()[-1] == "torch: True"
    assert (tmp_path / "out" / "model.py").exists()


@pytest.mark.slow
def test_all_configs_are_read_alike() -> None:
    """transformers' configuration classes say the same with and without PyTorch."""
    with_, without = (
        json.loads(_python("-c", _CONFIGS, how).stdout.splitlines()[-1])
        for how in ("with", "without")
    )
    assert len(with_) > 150
    assert with_ == without
