"""The memory limit, measured from outside of the code that keeps it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from torch2mlx.conversion import executor
from torch2mlx.conversion.executor import execute
from torch2mlx.dtypes import DTYPES
from torch2mlx.errors import OptionError
from torch2mlx.planning.expressions import Source
from torch2mlx.planning.functions import Whole
from torch2mlx.planning.plan import Output
from torch2mlx.planning.shards import TensorSpec, plan_shards

# Peak of a process of its own, less what it held before: 400 MB of weights in one tensor.
_CHILD = """
import sys
from pathlib import Path
import mlx.core, numpy as np
sys.path.insert(0, sys.argv[1])
import torch2mlx.quantization.kernel
from test_memory import Zeros, plan_of, quantized
from torch2mlx.conversion.executor import execute

def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
plan = plan_of(quantized("m.weight", (8, 6400, 4096)))
execute(plan, Zeros(), Path(sys.argv[2]), memory_limit=int(sys.argv[3]))
print(status("VmHWM") - before)
"""


class Zeros:
    """A source whose tensors are made as they are read."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        raise AssertionError("whole rows of axis 0 are larger than any block")

    def read_flat(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        return np.full(stop - start, 0x3F80, np.uint16)


def plan_of(*outputs: Output) -> Any:
    shards = tuple(plan_shards((o.specs for o in outputs), 10**10))
    return SimpleNamespace(outputs=outputs, shards=shards)


def quantized(name: str, shape: tuple[int, ...]) -> Output:
    from torch2mlx.quantization.scheme import Scheme

    scheme = Scheme(4, 64)
    layout = scheme.layout(shape, DTYPES["BF16"])
    module = name.removesuffix("weight")
    specs = tuple(TensorSpec(module + part, d, s) for part, (d, s) in layout.items())
    return Output(name, Source("w", DTYPES["BF16"], shape), scheme, None, specs)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_stays_below_the_limit(tmp_path: Path) -> None:
    limit = 64_000_000
    grown = subprocess.check_output(
        [sys.executable, "-c", _CHILD, str(Path(__file__).parent), str(tmp_path), str(limit)]
    )
    assert 0 < int(grown) < limit


def test_a_tensor_that_needs_more_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    shape = (64, 1 << 20)
    expr = Whole(
        "transform", lambda x: x, (Source("w", DTYPES["F32"], shape),), DTYPES["F32"], shape
    )
    plan = plan_of(Output("w", expr, None, None, (TensorSpec("w", DTYPES["F32"], shape),)))
    with pytest.raises(
        OptionError, match=r"too small for w, .* needs it whole; use --memory-limit"
    ):
        execute(plan, Zeros(), tmp_path, memory_limit=500_000_000)
    assert not list(tmp_path.iterdir())


def test_growth_beyond_the_limit_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Grown:
        peak = 90_000_000

        def read(self) -> int:
            return self.peak

    monkeypatch.setattr(executor, "Meter", Grown)
    with pytest.raises(OptionError, match="cannot be kept: 90,000,000 were in use"):
        execute(
            plan_of(quantized("m.weight", (8, 6400, 4096))),
            Zeros(),
            tmp_path,
            memory_limit=64_000_000,
        )
