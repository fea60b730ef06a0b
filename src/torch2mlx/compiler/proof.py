"""The proof of a compiled folder: PyTorch and the written model on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.codegen import GeneratedModel
from torch2mlx.compiler.entry_points import CompiledEntry
from torch2mlx.compiler.host import Host
from torch2mlx.compiler.parity import (
    Agreement,
    call_model,
    check_calls,
    check_parity,
    import_model,
    run_calls,
    run_original,
    stored_cases,
    stored_examples,
)
from torch2mlx.compiler.quantize import KERNELS, Quantized, check_quantized
from torch2mlx.compiler.weights import WeightState, weights_of
from torch2mlx.conversion.memory import available_bytes
from torch2mlx.errors import OptionError
from torch2mlx.evidence.reference import StoredRun, within_room
from torch2mlx.planning.plan import Plan
from torch2mlx.planning.regions import full

if TYPE_CHECKING:
    import torch

__all__ = ["Proof", "Sides"]

_ACTIVATIONS = 1.3  # memory of a comparison over its weights: activations, a tensor in transit


@dataclass(frozen=True)
class Proof:
    """What a comparison found.

    Attributes:
        agreement: of the unquantized model with PyTorch.
        quantized: what quantization changed, or None.
        runs: inputs and outputs to be kept, as many as there is room for.
        limits: what that leaves out.
    """

    agreement: Agreement
    quantized: Quantized | None
    runs: Sequence[StoredRun]
    limits: str

    @property
    def reference(self) -> str:
        """Who computed what a certificate compares with."""
        if self.quantized is None:
            return "PyTorch"
        drift = self.quantized.drift
        moved = "" if drift is None else f", which is {drift:.1e} from PyTorch"
        return f"MLX with the stored numbers in ordinary layers{moved}"


@dataclass(frozen=True, eq=False)
class Sides:
    """What is compared.

    Attributes:
        generated: the model in MLX.
        entries: each method, with its example.
        weights: values of the weights.
        module: the original; given the values of `weights` meanwhile if it has none.
        host: what joins the methods, or None.
    """

    generated: GeneratedModel
    entries: Sequence[CompiledEntry]
    weights: WeightState
    module: torch.nn.Module
    host: Host | None = None

    @contextmanager
    def original(self) -> Iterator[torch.nn.Module]:
        """The original with its weights, while it lasts."""
        with weights_of(self.module, self.weights):
            yield self.module

    def require_memory(self, plan: Plan) -> None:
        """OptionError where the comparison would not fit into memory."""
        ours = sum(output.expr.nbytes for output in plan.outputs)
        theirs = 0
        if self.weights.source.files:
            tensors = {id(t): t for t in self.module.state_dict(keep_vars=True).values()}
            theirs = sum(t.numel() * t.element_size() for t in tensors.values())
        needed, available = int(_ACTIVATIONS * max(ours, theirs)), available_bytes()
        if available is not None and needed > available:
            raise OptionError(
                f"{self.generated.class_name}: the comparison with PyTorch needs about "
                f"{needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available; "
                "free memory, use a machine that has more, or leave the comparison out with "
                "--no-verify"
            )

    def compare(self, folder: Path, plan: Plan, seed: int) -> Proof:
        """Both models on the same inputs, unquantized; then what quantization changed.

        Weights that PyTorch reads from files are gone before MLX has its own.

        Args:
            folder: the written model.
            plan: by which its weights were written.
            seed: of the fresh inputs.

        Raises:
            ParityError: an output differs.
        """
        with self.original() as module:
            cases = run_original(self.entries, module, seed)
        host = self.host
        whole = run_calls(host) if host is not None else []
        if plan.assignment is None:
            model = import_model(folder).load(str(folder))
            agreement = check_parity(model, self.generated, cases, self.original)
            runs = stored_cases(cases, self.generated, agreement)
            if host is not None:
                checked = check_calls(model, host, whole, agreement.limit, len(runs))
                agreement, runs = agreement.joined(checked.agreement), [*runs, *checked.runs]
            return self._proof(agreement, None, runs)
        model = self._unquantized(folder, plan)
        before = self._examples(model)
        agreement = check_parity(model, self.generated, cases, self.original)
        if host is not None:
            checked = check_calls(model, host, whole, agreement.limit, len(cases))
            agreement = agreement.joined(checked.agreement)
        del model
        name = self.generated.class_name
        done = check_quantized(folder, name, plan.assignment, before, self._examples)
        runs = stored_examples(cases, self.generated, done.exact, KERNELS)
        return self._proof(agreement, done, runs)

    def _proof(
        self, agreement: Agreement, quantized: Quantized | None, runs: Sequence[StoredRun]
    ) -> Proof:
        changes = any(entry.graph.states for entry in self.entries)
        return Proof(agreement, quantized, *within_room(runs, in_order=changes))

    def _unquantized(self, folder: Path, plan: Plan) -> Any:
        from torch2mlx.dtypes import to_mx

        model = getattr(import_model(folder), self.generated.class_name)()
        values = []
        for output in plan.outputs:
            bits = output.expr.read(full(output.expr.shape), self.weights.source)
            values.append((output.name, to_mx(bits, output.expr.dtype)))
        model.load_weights(values)
        model.eval()
        return model

    def _examples(self, model: Any) -> list[Any]:
        """Outputs of a model on the example of every method; buffers stay as they are."""
        import mlx.core as mx
        from mlx.utils import tree_flatten

        before = tree_flatten(model.parameters())
        outputs = []
        for entry in self.entries:
            arguments = self.generated.methods[entry.method]
            outputs += call_model(
                model, entry.method, arguments, entry.point.args, entry.point.kwargs
            )
        mx.eval(outputs)  # what is not computed yet would keep the weights
        model.load_weights(before)
        return outputs
