"""Language models of transformers as mlx-lm models, generated where no port is right.

skeleton   the model without weights
tracing    its program, in which attention, caches, masks and experts are single operators
repetition layers that are copies of traced ones
placement  whose cache is whose: each layer takes its own
lowering   these operators as functions and caches of mlx-lm
source     the model file that mlx-lm loads
weights    transformers' own renaming of a checkpoint, followed symbolically
port       all of it as a `Port`, which the parity gate treats like a hand-written one
"""

from __future__ import annotations

__all__: list[str] = []
