"""A model as a whole, where Python joins its compiled methods, beside the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.host import Host
from torch2mlx.compiler.parity.distance import relative_error
from torch2mlx.compiler.parity.gate import Agreement
from torch2mlx.compiler.parity.running import flat_outputs, mlx_array
from torch2mlx.errors import ParityError
from torch2mlx.evidence.record import OutputRecord
from torch2mlx.evidence.reference import StoredRun, store_call
from torch2mlx.messages import first_line

if TYPE_CHECKING:
    import torch

__all__ = ["CheckedCalls", "check_calls", "run_calls"]


@dataclass(frozen=True, eq=False)
class CheckedCalls:
    """The calls of a host beside the original's.

    Attributes:
        agreement: what was compared.
        runs: for the certificate.
    """

    agreement: Agreement
    runs: tuple[StoredRun, ...]


def run_calls(host: Host) -> list[list[torch.Tensor]]:
    """What the original gives for every call, flat."""
    import torch

    with torch.no_grad():
        return [flat_outputs(host.original(**call.arguments)) for call in host.calls]


def check_calls(
    model: Any, host: Host, expected: Sequence[Sequence[torch.Tensor]], limit: float, number: int
) -> CheckedCalls:
    """Call the generated model as the original was called.

    Args:
        model: an instance of the generated class, with its weights.
        host: what joins its methods.
        expected: from `run_calls`.
        limit: largest relative L2 error.
        number: of the first run, for the certificate.

    Raises:
        ParityError: an output differs.
    """
    import mlx.core as mx
    import torch

    records: list[OutputRecord] = []
    runs: list[StoredRun] = []
    for call, outputs in zip(host.calls, expected, strict=True):
        title = f"{type(model).__name__} ({call.name})"
        given = {
            name: mlx_array(value) if isinstance(value, torch.Tensor) else value
            for name, value in call.arguments.items()
        }
        try:
            found = flat_outputs(model(**given))
            mx.eval(found)
        except Exception as error:  # the code is ours, whatever it raises
            raise ParityError(
                f"{title}: the generated model fails: {type(error).__name__}: "
                f"{first_line(error)}; nothing was written"
            ) from error
        distances = [relative_error(w, g) for w, g in zip(outputs, found, strict=True)]
        for index, (want, got, distance) in enumerate(zip(outputs, found, distances, strict=True)):
            if not distance <= limit:
                raise ParityError(
                    f"{title}: output {index} differs from PyTorch: {list(got.shape)} for "
                    f"{list(want.shape)}, relative L2 error {distance:.2e}, limit {limit:.0e}; "
                    "nothing was written"
                )
            dtype = str(want.dtype).removeprefix("torch.")
            records.append(
                OutputRecord(
                    call.name, f"output {index}", tuple(want.shape), dtype, distance, limit
                )
            )
        stored = [mlx_array(value) for value in outputs]
        runs.append(
            store_call(
                number + len(runs), call.name, "__call__", given, stored, limit, max(distances)
            )
        )
    worst = max(r.relative for r in records if r.relative is not None)
    names = tuple(call.name for call in host.calls)
    return CheckedCalls(Agreement(names, worst, limit, tuple(records)), tuple(runs))
