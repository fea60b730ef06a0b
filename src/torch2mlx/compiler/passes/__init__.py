"""Program → program, one file each; none changes what is computed, for any size of the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch2mlx.compiler.program import Program

__all__ = ["optimized"]


def optimized(program: Program) -> Program:
    """The program after all passes."""
    from torch2mlx.compiler.passes.fusion import fuse
    from torch2mlx.compiler.passes.keys import with_keys
    from torch2mlx.compiler.passes.lookups import drop_lookups
    from torch2mlx.compiler.passes.norms import use_norm_layers
    from torch2mlx.compiler.passes.simplify import simplify
    from torch2mlx.compiler.passes.transposes import sink_transposes

    program = drop_lookups(simplify(sink_transposes(program)))
    return with_keys(use_norm_layers(simplify(fuse(program))))
