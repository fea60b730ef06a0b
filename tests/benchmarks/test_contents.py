from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import contents
from contents import tensor_digests


def test_digests_do_not_depend_on_shards_but_on_every_byte(tmp_path: Path) -> None:
    tensors = {name: torch.randn(33, 5).bfloat16() for name in "abc"}
    (whole := tmp_path / "whole").mkdir()
    save_file(tensors, whole / "model.safetensors")
    (split := tmp_path / "split").mkdir()
    save_file({"c": tensors["c"]}, split / "model-00001-of-00002.safetensors")
    save_file({k: tensors[k] for k in "ab"}, split / "model-00002-of-00002.safetensors")
    assert tensor_digests(whole) == tensor_digests(split)

    before = tensor_digests(whole)
    tensors["b"][32, 4] = 7
    save_file(tensors, whole / "model.safetensors")
    after = tensor_digests(whole)
    assert {name for name in before if before[name] != after[name]} == {"b"}


def test_the_modules_of_a_program_are_listed_and_importable(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys, colorsys\nsys.exit(0)\n")
    out = tmp_path / "modules.json"
    script = Path(contents.__file__)
    command = [sys.executable, script, "modules", out, "-m", "program"]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert "colorsys" in json.loads(out.read_text())
    subprocess.run([sys.executable, script, "import", out], check=True)
