"""Speed, memory and energy of models, each measured in a process of its own, all in one run."""

from __future__ import annotations

from torch2mlx.benchmarking.rows import FIGURES, Benchmark, Row, Spread
from torch2mlx.benchmarking.run import BenchmarkOptions, run_benchmark

__all__ = ["FIGURES", "Benchmark", "BenchmarkOptions", "Row", "Spread", "run_benchmark"]
