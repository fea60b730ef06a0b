"""A converted folder with figures in every part, without converting: written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch2mlx.conversion.records import record_file
from torch2mlx.evidence.certificate import write_certificate
from torch2mlx.evidence.memory import MemoryRecord, Stage
from torch2mlx.evidence.record import (
    Divergence,
    Evidence,
    ModuleRecord,
    OutputRecord,
    write_evidence,
)
from torch2mlx.packaging.files import output_records
from torch2mlx.packaging.manifest import Manifest, SourceRecord
from torch2mlx.verification.details import Sample
from torch2mlx.verification.report import (
    Budget,
    Comparison,
    LayerDifference,
    ParityReport,
)

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def comparison(part: str, layers: int) -> Comparison:
    places = tuple(LayerDifference(f"layer {i}", 1e-6 * (1 + i), 1e-5) for i in range(layers))
    return Comparison(part, "llama", 24, places, LayerDifference("logits", 2e-6, 1e-5), 1.0, 1e-4)


def evidence(text: str = "because of light") -> Evidence:
    modules = [
        ModuleRecord(f"model.layers.{i}.{kind}", "quantized", 4096, 2304, 0.05 + 0.01 * i, 0.1)
        for i in range(6)
        for kind in KINDS
    ]
    return Evidence(
        modules=(ModuleRecord("model.embed_tokens", "quantized", 8192, 4608, 0.09, 0.2), *modules),
        unchanged=13,
        divergence=Divergence(
            (0.0, 1e-3, 1e-2, 1e-1, 1.0), (0, 4, 30, 6), (0.03, 0.05), (0.04, 0.03, 0.05, 0.02),
            0.03, 0.2, 0.5, 0.9,
        ),
        samples=(Sample("The sky is", " blue", text, 16, 3),),
        memory=MemoryRecord(
            (0.0, 1.0, 2.0, 3.0), (4 * 10**8, 5 * 10**8, 9 * 10**8, 7 * 10**8),
            (Stage("Planning", 0.0, 0.9, 4 * 10**8), Stage("Converting", 1.0, 2.4, 5 * 10**8)),
            10**9,
        ),
    )  # fmt: skip


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of a language model or, with `compiled`, of a module."""

    def make(
        name: str = "llama-4bit",
        *,
        location: str = "acme/llama",
        size: int = 40_000_000,
        kl: float | None = 0.04,
        compiled: bool = False,
        proven: bool = True,
        text: str = "because of light",
        notes: tuple[str, ...] = (),
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config: dict[str, Any] = {"model_type": "llama"}
        if kl is not None:
            config["quantization"] = {"group_size": 64, "bits": 4, "mode": "affine"}
        if compiled:
            config = {"model_class": "Net", "inputs": [{"name": "x", "shape": [1, 3]}]}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(b"weights")
        figures = {"mean_kl": kl, "top1": 0.9} if kl is not None else {}
        report = ParityReport(
            (comparison("twin", 2), comparison("all layers", 6), comparison("written folder", 6)),
            (Budget("conversion", {"relative_l2": 2e-6}, {"relative_l2": 1e-4}),
             *([Budget("quantization", figures)] if figures else [])),
            {"passed": True, "tensors": 9, "counts": {"quantized": 9}},
        )  # fmt: skip
        verification: dict[str, Any] = report.to_dict()
        found = evidence(text)
        if compiled:
            verification = {
                "passed": True, "cases": ["example"], "error": 3e-7, "limit": 1e-4,
                "audit": {"passed": True, "tensors": 2, "counts": {"exact": 2}},
            }  # fmt: skip
            output = OutputRecord("example", "output 0", (1, 3), "float32", 3e-7, 1e-4)
            found = Evidence(memory=found.memory, outputs=(output,))
        write_evidence(folder, found)
        manifest = Manifest(
            source=SourceRecord(
                location, "safetensors", {"model.safetensors": record_file(folder / "config.json")}
            ),
            options={"quantize": True},
            plan={"notes": list(notes)},
            weights={"total_size": size, "total_parameters": 70_000_000, "bits_per_weight": 4.5},
            outputs=output_records(folder),
            verification=verification if proven else {"skipped": True},
            tokenizer={"available": True, "templates": ["default"]},
            measured={"peak_rss_bytes": 9e8, "convert_wall_s": 1.4, "verify_wall_s": 8.0},
        )
        manifest.write(folder)
        if proven:
            write_certificate(folder, manifest, "PyTorch", [])
        return folder

    return make


@pytest.fixture
def bench_file(tmp_path: Path) -> Path:
    spread = {"median": 41.0, "low": 39.0, "high": 44.0, "runs": 3}
    row = {"engine": "mlx", "device": "gpu", "model": "out/llama-4bit", "decode_tps": spread}
    slow = {**spread, "median": 12.0, "low": 11.0, "high": 12.5}
    other = {"engine": "torch eager", "device": "mps", "model": "acme/llama", "decode_tps": slow}
    memory = {**spread, "median": 9e7, "low": 8e7, "high": 9e7}
    failed = {
        "engine": "torch eager", "device": "cpu", "model": "acme/llama",
        "peak_bytes": memory, "not_measured": {"decode_tps": "stopped after a minute"},
    }  # fmt: skip
    path = tmp_path / "bench.json"
    path.write_text(
        json.dumps(
            {
                "schema_version": 1,
                "rows": [row, other, failed],
                "prompts": 4,
                "conditions": {"processor": "M4", "load_before": 0.3},
                "max_tokens": 64,
                "repeats": 3,
            }
        )
    )
    return path
