"""The `mlx` backend of `transformers.exporters`; importing this module registers it.

    import torch2mlx.exporters
    from transformers.exporters import AutoHfExporter

    exporter = AutoHfExporter.from_config({"export_format": "mlx"})
    exported = exporter.export(model, inputs, {})
    exported.save_pretrained("exported")

transformers follows the model, with its own patches; the program is compiled, compared with
PyTorch and published as by `torch2mlx.convert`.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.exporters.auto import register_backend
from transformers.exporters.base import HfExporter
from transformers.exporters.configs import DynamoConfig
from transformers.exporters.exporter_dynamo import DynamoExporter
from transformers.exporters.metadata import ExportMetadata
from transformers.exporters.runners.base import ModelRunner

from torch2mlx.api import convert

__all__ = ["MlxConfig", "MlxExporter", "MlxProgram", "MlxRunner"]

_FORMAT = "mlx"


@dataclass
class MlxConfig(DynamoConfig):
    """As transformers' `DynamoConfig`: extents are fixed unless it says otherwise."""

    export_format: Any = _FORMAT


@dataclass(frozen=True)
class MlxProgram:
    """A folder as `torch2mlx.convert` publishes it.

    Attributes:
        folder: with model.py, config.json and the weights.
        temporary: removes the folder when the program is no longer used; None: it stays.
    """

    folder: Path
    temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)


class MlxExporter(HfExporter):
    """Exports a model of transformers as MLX code with weights, proven equal to PyTorch."""

    export_format = _FORMAT
    config_class = MlxConfig
    program_suffix = ".mlx"

    def export_program(
        self, model: Any, sample_inputs: MutableMapping[str, Any], config: Any
    ) -> tuple[MlxProgram, ExportMetadata]:
        """Trace one graph as transformers does, then compile it.

        Raises:
            CompileError: with every reason why it has no counterpart in MLX.
            ParityError: the result differs from PyTorch's.
        """
        torch_exporter: Any = DynamoExporter  # untyped
        exported, metadata = torch_exporter().export_program(model, sample_inputs, config)
        temporary = tempfile.TemporaryDirectory(prefix="torch2mlx-export-")
        folder = Path(temporary.name) / "model"
        convert(exported, folder)
        return MlxProgram(folder, temporary), metadata

    @classmethod
    def save_program(cls, program: MlxProgram, path: str | Path) -> None:
        """Copy the folder."""
        shutil.copytree(program.folder, path)

    @classmethod
    def load_program(cls, path: str | Path) -> MlxProgram:
        """The folder as it is."""
        return MlxProgram(Path(path))

    @classmethod
    def program_files(cls, filename: str) -> list[str]:
        """What a program cannot do without."""
        return [f"{filename}/model.py", f"{filename}/model.safetensors"]


class MlxRunner(ModelRunner):
    """Runs a program in MLX; tensors of PyTorch go in and come out."""

    def __init__(self, program: MlxProgram, metadata: ExportMetadata) -> None:
        from torch2mlx.compiler.parity.running import import_model

        super().__init__(metadata)
        self.program = program
        self.model = import_model(program.folder).load(str(program.folder))

    @property
    def device(self) -> torch.device:
        """The CPU, for PyTorch: MLX's memory is the machine's."""
        return torch.device("cpu")

    @classmethod
    def from_program(cls, program: Any, metadata: ExportMetadata, device: Any = None) -> MlxRunner:
        """A runner; MLX chooses the device."""
        return cls(program, metadata)

    def __call__(
        self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """What the original returns for these inputs."""
        import mlx.core as mx

        from torch2mlx.compiler.codegen.signature import plain
        from torch2mlx.compiler.parity.running import flat_outputs, mlx_array

        def leaf(value: Any) -> Any:
            return mlx_array(value) if isinstance(value, torch.Tensor) else value

        names = inspect.signature(type(self.model).__call__).parameters
        given = {name: plain(value, leaf) for name, value in kwargs.items() if name in names}
        outputs = flat_outputs(self.model(**given))
        return self.unflatten([_tensor(v) if isinstance(v, mx.array) else v for v in outputs])


def _tensor(array: Any) -> torch.Tensor:
    """The values of an MLX array, in its dtype."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


register_backend(MlxExporter, MlxRunner)
