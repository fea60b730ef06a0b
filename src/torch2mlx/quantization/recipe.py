"""Which module is stored in which format, and why.

For each module the first rule that speaks decides:

1. `keep` patterns: unquantized.
2. `overrides`: the last pattern that matches.
3. `embedding` and `head` options.
4. Routers of mixture-of-experts layers: 8-bit affine, groups of 64, unless `router` says else.
5. A mixed recipe: mlx-lm's decisions, which replace the port's own.
6. The port's own choice (`quant_predicate` in mlx-lm): skip, other parameters, or the base format.

Rules 5 and 6 are mlx-lm's, so with `router="same"` and no other option every decision is.

Patterns are globs, as `targets.matches` describes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.errors import OptionError
from torch2mlx.quantization.scheme import MODES, Scheme
from torch2mlx.quantization.targets import (
    QuantTarget,
    close_names,
    is_embedding,
    is_head,
    is_router,
    matches,
)

__all__ = [
    "RECIPES",
    "ROUTER_BY_DEFAULT",
    "ROUTER_SCHEME",
    "Assignment",
    "QuantOptions",
    "QuantTarget",
    "Skipped",
    "assign_schemes",
    "nothing_quantized",
    "override_text",
    "parse_override",
]

RECIPES: dict[str, tuple[int, int]] = {
    "mixed_2_6": (2, 6),
    "mixed_3_4": (3, 4),
    "mixed_3_6": (3, 6),
    "mixed_4_6": (4, 6),
}
"""(low, high) bits of mlx-lm's mixed recipes."""

ROUTER_SCHEME = Scheme(8, 64)
"""Format of routers by default: a wrong expert costs more than these few rows save."""

ROUTER_BY_DEFAULT = "router: kept at 8 bits by default"
"""The reason that an assignment gives for it."""


@dataclass(frozen=True)
class QuantOptions:
    """What the user asked for.

    Attributes:
        scheme: base format; with a recipe only its group size counts.
        recipe: a name of `RECIPES`, or None.
        keep: patterns of modules to leave unquantized.
        overrides: (pattern, bits or format, or None for unquantized); bits alone mean affine with
            the base's groups.
        embedding, head: None for no special treatment, "keep" for unquantized, or bits.
        router: "8bit", "keep" (unquantized) or "same" (as mlx-lm treats it); None: 8 bits, but
            as the source has it where that is packed and its codes are kept.
        strict: a module that its group size does not divide is an error, not a listed skip.

    Raises:
        OptionError: unknown recipe or router treatment, a recipe with a mode other than
            affine, or bits that MLX does not have.
    """

    scheme: Scheme = field(default_factory=lambda: Scheme(4, 64))
    recipe: str | None = None
    keep: tuple[str, ...] = ()
    overrides: tuple[tuple[str, int | Scheme | None], ...] = ()
    embedding: int | str | None = None
    head: int | str | None = None
    router: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.recipe is not None and self.recipe not in RECIPES:
            raise OptionError(f"recipe must be one of {', '.join(RECIPES)}, not '{self.recipe}'.")
        if self.recipe is not None and not self.scheme.affine:
            raise OptionError(
                f"recipe {self.recipe} mixes affine bit widths and cannot be combined with mode "
                f"'{self.scheme.mode}'; leave out one of them."
            )
        if self.router not in (None, "8bit", "keep", "same"):
            raise OptionError(f"router must be 8bit, keep or same, not '{self.router}'.")
        for name, value in (("embedding", self.embedding), ("head", self.head)):
            if isinstance(value, str) and value != "keep":
                raise OptionError(f"{name} must be 'keep' or a number of bits, not '{value}'.")
            if isinstance(value, int):
                self.widen(value)
        for _, override in self.overrides:
            if override is not None:
                self.widen(override)

    @property
    def base(self) -> Scheme:
        """The format of every module that no rule singles out."""
        if self.recipe is None:
            return self.scheme
        return Scheme(RECIPES[self.recipe][0], self.scheme.group_size)

    def widen(self, value: int | Scheme) -> Scheme:
        """The format of bits that the user names without groups: affine, with the base's group
        size or, where the base is not affine, the default one.
        """
        if isinstance(value, Scheme):
            return value
        return Scheme.resolve(value, self.scheme.group_size if self.scheme.affine else None)


@dataclass(frozen=True)
class Skipped:
    """A module that was to be quantized and cannot be.

    Attributes:
        path, shape: of the module's weight.
        reason: why, and what would fit.
        bits_per_weight: what it takes instead, unquantized.
    """

    path: str
    shape: tuple[int, ...]
    reason: str
    bits_per_weight: float


@dataclass(frozen=True)
class Assignment:
    """The decision for every module.

    Attributes:
        base: the format that config.json names for the whole model.
        schemes: format by path, None for unquantized; in the order of the targets.
        reasons: why, by path, for each module whose format differs from `base`.
        skipped: modules left unquantized only because the format does not fit them.
        notes: what a user should know about the whole.
    """

    base: Scheme
    schemes: Mapping[str, Scheme | None]
    reasons: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def to_config(self) -> dict[str, Any]:
        """The `quantization` entry of config.json: the base format, then each differing one."""
        differing = {
            path: scheme.to_config()
            for path, scheme in self.schemes.items()
            if scheme is not None and scheme != self.base
        }
        return {**self.base.to_config(), **differing}


def assign_schemes(
    targets: Sequence[QuantTarget],
    options: QuantOptions,
    layers: int,
    dtype: DType = DTYPES["BF16"],
) -> Assignment:
    """Decide the format of every module.

    Args:
        targets: the modules that the port can quantize, in the port's order.
        options: the user's wishes.
        layers: number of decoder layers; recipes treat the first and last eighth differently.
        dtype: dtype of unquantized weights, for the real bits per weight of skipped modules.

    Raises:
        OptionError: a pattern or option that matches no module, a recipe that does not fit the
            model, or, with `strict`, modules that the format does not fit.
    """
    _check_matches(targets, options)
    recipe = _recipe_rule(targets, options, layers)
    schemes: dict[str, Scheme | None] = {}
    reasons: dict[str, str] = {}
    skipped: list[Skipped] = []
    for target in targets:
        scheme, reason, divisor = _decide(target, options, recipe)
        obstacle = _obstacle(target, scheme, divisor)
        if scheme is not None and obstacle:
            scheme, reason = None, obstacle
            skipped.append(Skipped(target.path, target.shape, obstacle, 8.0 * dtype.itemsize))
        schemes[target.path] = scheme
        if scheme != options.base:
            reasons[target.path] = reason
    if skipped and options.strict:
        lines = "\n  ".join(f"{skip.path} {skip.shape}: {skip.reason}" for skip in skipped)
        raise OptionError(f"{len(skipped)} modules cannot be quantized as asked:\n  {lines}")
    notes = _recipe_notes(targets, options, schemes) if options.recipe else ()
    notes = (*notes, *_skipped_notes(skipped))
    return Assignment(options.base, schemes, reasons, tuple(skipped), notes)


def nothing_quantized(assignment: Assignment | None) -> OptionError:
    """The error where quantization was asked for and no module gets a format."""
    reasons = assignment.reasons.values() if assignment is not None else ()
    told = "; ".join(dict.fromkeys(reasons)) or "the model has no such modules"
    return OptionError(f"-q: no module would be quantized ({told}); leave out -q")


def parse_override(text: str) -> tuple[str, int | Scheme | None]:
    """Read "pattern=6" (bits), "pattern=4:32" (bits:group size), "pattern=mxfp8" (mode) or
    "pattern=keep" (unquantized).

    Raises:
        OptionError: the text has none of these forms, or MLX has no such format.
    """
    pattern, equals, value = text.rpartition("=")
    bits, colon, group = value.partition(":")
    if equals and pattern:
        if value == "keep":
            return pattern, None
        if value in MODES:
            return pattern, Scheme.resolve(None, None, value)
        if bits.isdecimal() and (group.isdecimal() or not colon):
            scheme = Scheme.resolve(int(bits), int(group) if group else None)
            return pattern, scheme if group else scheme.bits
    raise OptionError(
        f"'{text}' must be pattern=bits, pattern=bits:group_size, pattern=mode or pattern=keep, as "
        "in '*.down_proj=6', '*.down_proj=6:32' or '*.down_proj=mxfp8'."
    )


def override_text(pattern: str, value: int | Scheme | None) -> str:
    """An override as `parse_override` reads it."""
    if value is None:
        return f"{pattern}=keep"
    if isinstance(value, Scheme):
        affine = f"{value.bits}:{value.group_size}"
        return f"{pattern}={affine if value.affine else value.mode}"
    return f"{pattern}={value}"


_Rule = Callable[[str], Scheme]


def _decide(
    target: QuantTarget, options: QuantOptions, recipe: _Rule | None
) -> tuple[Scheme | None, str, int]:
    """(format, why, group size that the rows must also divide by)."""
    path = target.path
    for pattern in options.keep:
        if matches(pattern, path):
            return None, f"--keep '{pattern}'", 1
    for pattern, value in reversed(options.overrides):
        if matches(pattern, path):
            scheme = None if value is None else options.widen(value)
            return scheme, f"override '{pattern}'", 1
    for name, wish, applies in (
        ("embedding", options.embedding, is_embedding),
        ("head", options.head, is_head),
    ):
        if wish is not None and applies(target):
            scheme = options.widen(wish) if isinstance(wish, int) else None
            return scheme, f"{name} option: {wish if scheme is None else scheme}", 1
    if options.router != "same" and is_router(target):
        return _decide_router(target, options)
    # mlx-lm looks at the base's group size before it asks a recipe or the port.
    divisor = options.base.group_size
    if recipe is not None:
        return recipe(path), f"recipe {options.recipe}", divisor
    return *_port_choice(target, options.base), divisor


def _decide_router(target: QuantTarget, options: QuantOptions) -> tuple[Scheme | None, str, int]:
    if options.router == "keep":
        return None, "router: kept unquantized", 1
    scheme, reason = _port_choice(target, options.base)
    if scheme is None or scheme != options.base:
        return scheme, reason, 1
    if scheme.affine and scheme.bits == ROUTER_SCHEME.bits:
        return scheme, "", 1
    return ROUTER_SCHEME, ROUTER_BY_DEFAULT if options.router is None else "router: as asked", 1


def _port_choice(target: QuantTarget, base: Scheme) -> tuple[Scheme | None, str]:
    choice = target.port_choice
    if isinstance(choice, bool):
        return (base, "") if choice else (None, "the port keeps it unquantized")
    # Parameters that a port leaves out are the defaults of MLX, not the user's.
    scheme = Scheme.resolve(
        choice.get("bits"), choice.get("group_size"), choice.get("mode", "affine")
    )
    return scheme, f"the port asks for {scheme}"


def _obstacle(target: QuantTarget, scheme: Scheme | None, divisor: int) -> str | None:
    """Why a module cannot be stored in a format, or None."""
    if scheme is None:
        return None
    if target.kind == "FusedLinear":
        return "mlx-lm cannot load a quantized FusedLinear"
    width = target.shape[-1]
    blocking = next((g for g in (divisor, scheme.group_size) if width % g), None)
    if blocking is None:
        return None
    fitting = [group for group in MODES["affine"].group_sizes if width % group == 0]
    advice = f"; group size {max(fitting)} would fit" if fitting else "; no affine group size fits"
    return f"width {width} is not divisible by group size {blocking}{advice}"


def _recipe_rule(
    targets: Sequence[QuantTarget], options: QuantOptions, layers: int
) -> _Rule | None:
    """mlx-lm's mixed recipe as a function of the path (after llama.cpp's Q4_K_M): more bits for
    values and down projections in the first and last eighth of the layers and in every third
    one between, and for the head.
    """
    if options.recipe is None:
        return None
    down = [target.path for target in targets if "down_proj" in target.path]
    if not down:
        raise OptionError(
            f"recipe {options.recipe} decides by the names v_proj and down_proj, and this model "
            "has no down_proj; choose bits by pattern instead, as in --bits '*.layers.0.*=6'."
        )
    low, high = (Scheme(bits, options.scheme.group_size) for bits in RECIPES[options.recipe])
    # The last one, because mlx-lm walks the modules from the end.
    parts = down[-1].split(".")
    location = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)

    def rule(path: str) -> Scheme:
        at = path.split(".")[location : location + 1]
        index = int(at[0]) if at and at[0].isdigit() else 0
        eighth = layers // 8
        favoured = (
            index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2
        ) and any(name in path for name in ("v_proj", "v_a_proj", "v_b_proj", "down_proj"))
        return high if favoured or "lm_head" in path else low

    return rule


def _recipe_notes(
    targets: Sequence[QuantTarget],
    options: QuantOptions,
    schemes: Mapping[str, Scheme | None],
) -> tuple[str, ...]:
    notes = []
    high = RECIPES[options.recipe or ""][1]
    if not any("lm_head" in target.path for target in targets):
        embedding = next((target.path for target in targets if is_embedding(target)), None)
        scheme = schemes[embedding] if embedding else None
        notes.append(
            f"recipe {options.recipe} gives lm_head {high} bits, but this model has no module of "
            "that name"
            + (
                f"; if its embedding is also its head, it is stored as {scheme or 'unquantized'} "
                f"({embedding})"
                if embedding
                else ""
            )
            + "."
        )
    replaced = [target.path for target in targets if target.port_choice is not True]
    ignored = [path for path in replaced if schemes[path] is not None]
    if ignored:
        notes.append(
            f"as in mlx-lm, recipe {options.recipe} replaces the port's own choice for "
            f"{len(ignored)} modules (the first: {ignored[0]})."
        )
    return tuple(notes)


def _skipped_notes(skipped: Sequence[Skipped]) -> Iterator[str]:
    """One line for each reason, with the modules that it concerns, numbers as *."""
    by_reason: dict[tuple[str, float], list[str]] = {}
    for skip in skipped:
        by_reason.setdefault((skip.reason, skip.bits_per_weight), []).append(skip.path)
    for (reason, bits), paths in by_reason.items():
        yield (
            f"unquantized, {bits:g} bits per weight, because {reason} ({len(paths)} modules): "
            f"{', '.join(dict.fromkeys(re.sub(r'(?<=[.])[0-9]+(?=[.])', '*', p) for p in paths))}"
        )


def _check_matches(targets: Sequence[QuantTarget], options: QuantOptions) -> None:
    """Raise OptionError for patterns and options that no module answers to, all in one."""
    paths = [target.path for target in targets]
    problems = [
        f"'{pattern}' matches no quantizable module{close_names(pattern, paths)}"
        for pattern in (*options.keep, *(pattern for pattern, _ in options.overrides))
        if not any(matches(pattern, path) for path in paths)
    ]
    if options.embedding is not None and not any(map(is_embedding, targets)):
        problems.append("an embedding option was given, but the model has no quantizable embedding")
    if options.head is not None and not any(map(is_head, targets)):
        problems.append(
            "a head option was given, but the model has no separate output head: where it is "
            "tied to the embedding, use the embedding option"
        )
    if problems:
        raise OptionError("; ".join(problems) + ".")
