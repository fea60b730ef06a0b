"""A folder of diffusers becomes folders of MLX code that draw the same picture, without torch."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="needs diffusers, of the extra `test`")

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
def test_the_same_picture_with_and_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from stable_diffusion import tiny_pipeline

    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    out, file = tmp_path / "out", tmp_path / "picture.png"
    options = ["--pipeline", str(tmp_path / "pipeline"), "--out", str(out), "--steps", "3"]
    monkeypatch.setattr(sys, "argv", ["stable_diffusion.py", *options, "--no-picture"])
    runpy.run_path(str(FOLDER / "stable_diffusion.py"), run_name="__main__")
    (error,) = re.findall(
        r"picture after 3 steps: relative L2 error (\S+),", capsys.readouterr().out
    )
    assert 0 < float(error) <= 1e-3  # zero: compared with itself

    script = FOLDER / "stable_diffusion_mlx.py"
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['diffusers'] = None; "
        f"sys.argv[0] = {str(script)!r}; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(out),
        "a cat",
        "--steps",
        "3",
        "--picture",
        str(file),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    pixels = np.asarray(Image.open(file))
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 10
