"""Strategies for what is compiled: exact sizes, from the code that would be written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch2mlx.compiler.formats import Format
from torch2mlx.errors import OptionError
from torch2mlx.options import ConvertOptions
from torch2mlx.planning.plan import Plan
from torch2mlx.planning.shards import parse_size
from torch2mlx.selection.machines import smallest_mac
from torch2mlx.selection.memory import OVERHEAD
from torch2mlx.selection.strategies import Selection, Strategy, strategy_options

if TYPE_CHECKING:
    from torch2mlx.compiler.prepared import Prepared

__all__ = ["plans_of", "select_for_program"]

_NAMES = ("direct", "8-bit", "6-bit", "5-bit", "nvfp4", "4-bit", "mxfp4", "3-bit")


def select_for_program(
    known: Format,
    source: Path,
    *,
    fit: str | int | None = None,
    memory_limit: str | int = "1GB",
) -> Selection:
    """Compare strategies; the models are compiled for it, one after the other.

    Args:
        known: the row of the source.
        source: the source.
        fit: memory for weights, Python and MLX, such as "16GB"; what inputs need is not known.
        memory_limit: of the conversion.

    Raises:
        SourceError: only running code with an example tells; and as `convert`.
        CompileError: as `convert`.
    """
    options = {name: ConvertOptions(**(strategy_options(name) or {})) for name in _NAMES}
    found = known.answer(known.plans, source)(source, options)
    limit = None if fit is None else parse_size(fit, "--fit")
    strategies = []
    for name, plans in found.items():
        nbytes = sum(plan.nbytes for plan in plans)
        weights = sum(plan.parameters for plan in plans)
        strategies.append(
            Strategy(
                name=name,
                options=strategy_options(name) or {},
                nbytes=nbytes,
                bits_per_weight=8 * nbytes / max(1, weights),
                shards=sum(len(plan.shards) for plan in plans),
                conversion_memory=parse_size(memory_limit, "--memory-limit"),
                runtime_memory=nbytes + OVERHEAD,
                mac=smallest_mac(nbytes + OVERHEAD),
                kl=None,
                fits=None if limit is None else nbytes + OVERHEAD <= limit,
            )
        )
    chosen = next((s for s in strategies if s.fits is not False), None)
    reason = "the original's values; what -q moves the outputs by, convert measures and tells"
    if limit is not None:
        reason = f"the best quality that fits {limit / 1e9:.3g} GB, without what inputs need"
    if chosen is None:
        reason = f"nothing fits {(limit or 0) / 1e9:.3g} GB"
    return Selection(
        location=str(source),
        port=known.name,
        parameters=sum(plan.parameters for plan in found["direct"]),
        context=0,
        cache_bytes=None,
        fit=limit,
        strategies=tuple(strategies),
        recommended=chosen.name if chosen else None,
        reason=reason,
    )


def plans_of(
    models: Iterable[tuple[str, Prepared]], options: Mapping[str, ConvertOptions]
) -> dict[str, list[Plan]]:
    """Plans of compiled models by the name of the options; without those that do not fit all."""
    found: dict[str, list[Plan]] = {name: [] for name in options}
    for _, prepared in models:
        for name in list(found):
            try:
                found[name].append(prepared.plan(options[name]))
            except OptionError:  # no layer of this model can be quantized so
                del found[name]
    return found
