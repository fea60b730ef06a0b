"""The generated model against the original, on given and on fresh inputs."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.dimensions import Dimension, dimensions
from torch2mlx.compiler.graph import Graph, Ref
from torch2mlx.compiler.symbolic import SymbolicInt
from torch2mlx.dtypes import dtype_from_torch, from_mx, to_mx
from torch2mlx.errors import ParityError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = [
    "Agreement",
    "call_arguments",
    "check_parity",
    "flat_outputs",
    "import_model",
    "mlx_array",
]

LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest relative L2 error by the coarsest dtype of the weights; half types round every step."""

_STEPS = (1, 2, 4, 8, 16, 32, 64)
"""How far other sizes lie: a model may take only multiples of something."""


@dataclass(frozen=True)
class Agreement:
    """What was compared.

    Attributes:
        cases: what the inputs were, e.g. "example", "fresh values", "batch=3".
        worst: largest relative L2 error over all outputs and cases.
        limit: that it had to keep.
    """

    cases: tuple[str, ...]
    worst: float
    limit: float


def mlx_array(tensor: torch.Tensor) -> Any:
    """The MLX array of a torch tensor, values unchanged."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    dtype = dtype_from_torch(tensor.dtype)
    if tensor.dtype == torch.bfloat16:
        return to_mx(tensor.view(torch.uint16).numpy(), dtype)
    return to_mx(tensor.numpy(), dtype)


def import_model(folder: Path) -> Any:
    """The module `model` of a generated folder; nothing stays in `sys.modules`."""
    before = {name: sys.modules.get(name) for name in ("runtime", "model")}
    path, no_bytecode = list(sys.path), sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode = True
        loaded = None
        for name in ("runtime", "model"):
            file = folder / f"{name}.py"
            if not file.exists():
                continue
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[name] = loaded
            spec.loader.exec_module(loaded)
        return loaded
    finally:
        sys.path[:], sys.dont_write_bytecode = path, no_bytecode
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def check_parity(
    folder: Path,
    generated: GeneratedModel,
    graph: Graph,
    program: ExportedProgram,
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    seed: int = 0,
) -> Agreement:
    """Run both on the example, on fresh values and, with dynamic shapes, on other sizes.

    Raises:
        ParityError: an output or a buffer differs; the text names the first module that does.
    """
    check = _Check(folder, generated, graph, program, module, args, kwargs)
    return check.run(seed)


class _Check:
    def __init__(
        self,
        folder: Path,
        generated: GeneratedModel,
        graph: Graph,
        program: ExportedProgram,
        module: torch.nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        from torch.utils import _pytree as pytree

        self.generated, self.graph, self.program = generated, graph, program
        # Running it may change its buffers, which belong to the user.
        self.module = copy.deepcopy(module) if graph.states else module
        self.model = import_model(folder).load(str(folder))
        self.flat, self.spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        names = {str(w.type.dtype).removeprefix("torch.") for w in graph.weights}
        names |= {str(i.type.dtype).removeprefix("torch.") for i in graph.inputs}
        self.limit = max(LIMITS.get(name, LIMITS["float32"]) for name in names | {"float32"})

    def run(self, seed: int) -> Agreement:
        import torch

        generator = torch.Generator().manual_seed(seed)
        cases = [("example", self.flat)]
        cases.append(("fresh values", self._fresh({}, generator)))
        cases += self._others(generator)
        worst = max(self._case(name, flat) for name, flat in cases)
        return Agreement(tuple(name for name, _ in cases), worst, self.limit)

    def _others(self, generator: torch.Generator) -> list[tuple[str, list[Any]]]:
        """Inputs of other sizes: one a little larger, one smaller, as far as torch takes them.

        Raises:
            ParityError: torch takes no other size, so the extents do not vary after all.
        """
        known = dimensions(self.graph, self.program)
        if not known:
            return []
        found: dict[str, list[Any]] = {}
        refused: Exception | None = None
        for sign in (1, -1):
            for step in _STEPS:
                sizes = _moved(known, sign, step)
                if sizes is None:
                    continue
                flat = self._fresh(sizes, generator)
                text = ", ".join(f"{k}={v}" for k, v in sizes.items())
                before = {name: self.module.get_buffer(name).clone() for name in self.graph.states}
                try:
                    self._torch(flat)
                except Exception as error:  # whatever the user's own code raises
                    refused = error
                    continue
                finally:
                    for name, value in before.items():
                        self.module.get_buffer(name).copy_(value)
                found[text] = flat
                break
        if not found and refused is not None:
            names = ", ".join(d.name for d in known)
            raise ParityError(
                f"{self.graph.class_name}: PyTorch itself fails on other sizes of {names}: "
                f"{_first_line(refused)}; make the extent fixed, give its bounds, or derive it, "
                "as 2*length is derived from length"
            )
        return list(found.items())

    def _fresh(self, sizes: Mapping[str, int], generator: torch.Generator) -> list[Any]:
        """Inputs of the example's kind: other values, in the given sizes."""
        import torch

        types = {i.name: i.type for i in self.graph.inputs}
        result = []
        for value, leaf in zip(self.flat, self._leaves(), strict=True):
            if not isinstance(leaf, Ref):
                result.append(value)
                continue
            shape = [_extent(n, sizes) for n in types[leaf.name].shape]
            # Floats that are whole numbers are masks and counts, as valid as integers.
            counts = bool((value == value.round()).all()) if value.is_floating_point() else True
            if value.is_floating_point() and not (counts and value.any()):
                spread = float(value.float().std()) if value.numel() > 1 else 0.0
                fresh = torch.randn(shape, generator=generator)
                fresh = fresh * (spread or 1.0) + (float(value.float().mean()) if spread else 0.0)
                result.append(fresh.to(value.dtype))
                continue
            # Integers index something: only values of the example are known to be valid.
            pool = value.flatten()
            count = math.prod(shape)
            places = torch.randint(max(pool.numel(), 1), (count,), generator=generator)
            result.append(pool[places].reshape(shape))
        return result

    def _leaves(self) -> list[Any]:
        """The graph's flat inputs beside ours; leaves that export left out are constants."""
        leaves = list(self.graph.flat_inputs)
        if len(leaves) == len(self.flat):
            return leaves
        given = iter(leaf for leaf in leaves if isinstance(leaf, Ref))
        import torch

        return [next(given) if isinstance(v, torch.Tensor) else v for v in self.flat]

    def _torch(self, flat: list[Any]) -> list[Any]:
        import torch
        from torch.utils import _pytree as pytree

        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in flat]
        args, kwargs = pytree.tree_unflatten(copies, self.spec)
        with torch.no_grad():
            outputs = self.module(*args, **kwargs)
        return pytree.tree_leaves(outputs)

    def _mlx(self, flat: list[Any]) -> list[Any]:
        from torch.utils import _pytree as pytree

        args, kwargs = pytree.tree_unflatten(flat, self.spec)
        return flat_outputs(self.model(**call_arguments(self.generated, args, kwargs)))

    def _case(self, name: str, flat: list[Any]) -> float:
        expected = self._torch(flat)
        try:
            found = self._mlx(flat)
        except Exception as failure:  # the generated code is ours, whatever it raises
            raise ParityError(
                f"{self.graph.class_name} ({name}): the generated model fails: "
                f"{type(failure).__name__}: {_first_line(failure)}; nothing was written"
            ) from failure
        expected = [e for e in expected if e is not None]
        if len(expected) != len(found):
            raise ParityError(
                f"{self.graph.class_name} ({name}): torch gives {len(expected)} outputs, "
                f"the generated model {len(found)}"
            )
        pairs = [
            (f"output {i}", e, f) for i, (e, f) in enumerate(zip(expected, found, strict=True))
        ]
        pairs += self._states()
        worst = 0.0
        for label, want, got in pairs:
            error = _error(want, got)
            if not error <= self.limit:
                raise ParityError(self._difference(name, label, error, flat))
            worst = max(worst, error)
        return worst

    def _states(self) -> list[tuple[str, Any, Any]]:
        """Buffers that the module changes, after a run."""
        result = []
        for name in self.graph.states:
            owner, _, leaf = name.rpartition(".")
            want = getattr(self.module.get_submodule(owner), leaf)
            key = next(k for k, w in self.generated.weights.items() if w.source == name)
            result.append((f"buffer {name}", want, dict(_flat(self.model.parameters()))[key]))
        return result

    def _difference(self, case: str, label: str, error: float, flat: list[Any]) -> str:
        text = (
            f"{self.graph.class_name} ({case}): {label} differs from PyTorch: relative L2 error "
            f"{error:.2e}, limit {self.limit:.0e}"
        )
        first = self._first_module(flat)
        where = f"; the first module that differs is {first}" if first else ""
        return f"{text}{where}; nothing was written"

    def _first_module(self, flat: list[Any]) -> str:
        """The innermost module that returns something else first."""
        import torch
        from torch.utils import _pytree as pytree

        theirs: list[tuple[str, list[Any]]] = []
        hooks = [
            module.register_forward_hook(
                lambda m, i, o, path=path: theirs.append((path, pytree.tree_leaves(o)))
            )
            for path, module in self.module.named_modules()
        ]
        try:
            self._torch(flat)
        finally:
            for hook in hooks:
                hook.remove()
        ours: dict[str, list[list[Any]]] = {}
        names = {id(module): name for name, module in self.model.named_modules()}
        classes = {type(module) for module in self.model.modules()}
        originals = {c: c.__call__ for c in classes if "__call__" in c.__dict__}

        def recording(original: Any) -> Any:
            def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                result = original(self, *args, **kwargs)
                ours.setdefault(names.get(id(self), "?"), []).append(flat_outputs(result))
                return result

            return call

        try:
            for kind, original in originals.items():
                kind.__call__ = recording(original)
            self._mlx(flat)
        finally:
            for kind, original in originals.items():
                kind.__call__ = original
        paths = {**{p: p for p, _ in theirs}, **self.generated.paths}
        for path, leaves in theirs:
            runs = ours.get(paths[path])
            if not path or not runs:
                continue
            tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
            for array in runs.pop(0):
                errors = [_error(t, _as(t, array)) for t in tensors if t.numel() == array.size]
                if errors and not min(errors) <= self.limit:
                    name = type(self.module.get_submodule(path)).__name__
                    return f"{path} ({name}, error {min(errors):.1e})"
        return ""


def _extent(extent: int, sizes: Mapping[str, int]) -> int:
    """An extent for other values of the names in it."""
    if not isinstance(extent, SymbolicInt) or not sizes:
        return int(extent)
    return int(eval(extent.expression, {"math": math}, dict(sizes)))


def _moved(known: Sequence[Dimension], sign: int, step: int) -> dict[str, int] | None:
    """Every extent a step larger or smaller, no two by the same amount where they may grow;
    None if the bounds leave them as they are.
    """
    sizes = {}
    for number, dim in enumerate(known):
        change = step * (1 + number) if sign > 0 else -step
        size = max(dim.value + change, dim.low, 2)  # torch treats an extent of 1 as fixed
        sizes[dim.name] = size if dim.high is None else min(size, dim.high)
    return None if all(sizes[d.name] == d.value for d in known) else sizes


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _as(tensor: torch.Tensor, array: Any) -> Any:
    """The array in torch's order of axes: MLX's layers have channels last."""
    import mlx.core as mx

    if tuple(array.shape) != tuple(tensor.shape) and array.ndim == tensor.ndim > 2:
        moved = mx.moveaxis(array, -1, 1)
        if tuple(moved.shape) == tuple(tensor.shape):
            return moved
    return array


def call_arguments(
    generated: GeneratedModel, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of torch's `forward` as those of the generated `__call__`."""
    import torch
    from torch.utils import _pytree as pytree

    args, kwargs = pytree.tree_map_only(torch.Tensor, mlx_array, (tuple(args), dict(kwargs)))
    return {
        a.name: kwargs[a.position] if isinstance(a.position, str) else args[a.position]
        for a in generated.arguments
    }


def flat_outputs(value: Any) -> list[Any]:
    """Arrays and numbers of a nested result, dicts in the order of torch's pytree."""
    if isinstance(value, Mapping):
        return [leaf for key in value for leaf in flat_outputs(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat_outputs(item)]
    return [] if value is None else [value]


def _flat(value: Any) -> Any:
    from mlx.utils import tree_flatten

    return tree_flatten(value)


def _error(want: Any, got: Any) -> float:
    """Relative L2 error; infinite for another shape, kind, or place of NaN and Inf."""
    import mlx.core as mx
    import torch

    if not isinstance(want, torch.Tensor):
        return 0.0 if want == got else math.inf
    if not isinstance(got, mx.array) or tuple(got.shape) != tuple(want.shape):
        return math.inf
    if dtype_from_torch(want.dtype).mx_name != _mx_name(got):
        return math.inf
    want = want.detach().cpu()
    bits = torch.from_numpy(from_mx(got).copy()) if got.size else torch.zeros(want.shape)
    have = bits.view(torch.bfloat16) if got.dtype == mx.bfloat16 else bits
    if want.numel() == 0:
        return 0.0
    if not (want.is_floating_point() or want.is_complex()):
        return 0.0 if bool((want == have).all()) else math.inf
    wide = torch.complex128 if want.is_complex() else torch.float64
    a, b = want.to(wide), have.to(wide)
    finite = torch.isfinite(a.abs())
    if not torch.equal(finite, torch.isfinite(b.abs())) or not torch.equal(
        a.real[~finite].nan_to_num(), b.real[~finite].nan_to_num()
    ):
        return math.inf
    a, b = a[finite], b[finite]
    scale = float(a.abs().square().sum().sqrt())
    distance = float((a - b).abs().square().sum().sqrt())
    return distance / scale if scale else distance


def _mx_name(array: Any) -> str:
    name = str(array.dtype).removeprefix("mlx.core.")
    return "bool_" if name == "bool" else name
