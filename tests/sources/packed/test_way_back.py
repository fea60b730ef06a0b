"""From the MLX tensors of a packed checkpoint back to PyTorch's names."""

from __future__ import annotations

import numpy as np
from packed_checkpoints import gptq, repacked

from torch2mlx.architectures.port import load_port
from torch2mlx.dtypes import DTYPES
from torch2mlx.planning.functions import cast
from torch2mlx.planning.inverse import restore_state
from torch2mlx.planning.regions import full
from torch2mlx.sources import open_checkpoint


def test_every_tensor_of_stacked_packed_experts_comes_back(checkpoint, tmp_path):
    settings, pack = gptq(4, 32, symmetric=False)
    values = repacked(checkpoint("mixtral", "float16"), tmp_path / "packed", settings, pack)
    opened = open_checkpoint(tmp_path / "packed")
    outputs = load_port(opened.config).map_state(opened.state).outputs
    floats = {name: cast(expr, DTYPES["F32"]) for name, expr in outputs.items()}

    def read(name, start, stop):
        region = (range(start, stop), *full(floats[name].shape[1:]))
        return np.ascontiguousarray(floats[name].read(region, opened.source))

    restored = {r.name: r for r in restore_state(outputs, read, opened.state)}
    assert restored.keys() == values.keys()
    for name, tensor in values.items():
        assert restored[name].covered is None, restored[name].reason
        assert np.array_equal(restored[name].values.astype(np.float16), tensor.half().numpy())
