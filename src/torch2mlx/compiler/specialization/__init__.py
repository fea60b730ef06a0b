"""Sizes and branches that depend on values of the inputs: taken as the example has them.

`known_values` follows the example's values while a module is exported, and answers what its code
asks of them; `static_sizes` writes the answers into the exported program; `frozen` turns inputs
that were read number by number into constants.  Every answer becomes an `Expectation`, which the
generated code checks on every call.
"""

from __future__ import annotations

from torch2mlx.compiler.specialization.experts import grouped_experts
from torch2mlx.compiler.specialization.frozen import frozen, holds, input_values
from torch2mlx.compiler.specialization.known_values import KnownValues, Question
from torch2mlx.compiler.specialization.masked_writes import with_masked_writes
from torch2mlx.compiler.specialization.pools import all_pools
from torch2mlx.compiler.specialization.static_sizes import has_unknown_sizes, with_static_sizes

__all__ = [
    "KnownValues",
    "Question",
    "all_pools",
    "frozen",
    "grouped_experts",
    "has_unknown_sizes",
    "holds",
    "input_values",
    "with_masked_writes",
    "with_static_sizes",
]
