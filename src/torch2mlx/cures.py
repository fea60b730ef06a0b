"""What makes a quantized model better, the cheapest first; and the attempts of `--auto`.

Calibration costs time and no byte.  Then the layers that lose most get more bits, then every
group becomes smaller, then everything gets 8 bits.  Where the user named a size, only what keeps
the size is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2mlx.conversion.journal import sync
from torch2mlx.errors import PlanError
from torch2mlx.options import ConvertOptions
from torch2mlx.packaging.manifest import library_versions
from torch2mlx.quantization.targets import matches

if TYPE_CHECKING:
    from torch2mlx.planning.plan import Output, Plan
    from torch2mlx.sources.base import Checkpoint
    from torch2mlx.verification.blame import Suspect

__all__ = ["Attempt", "Attempts", "Cure", "cures", "layer_numbers"]

_MORE = {2: 4, 3: 5, 4: 6, 5: 8, 6: 8}
_ROUNDS = 3  # times that the worst layers get more bits
_SHARE = 0.6  # of what all suspects cost, that those who get more bits make up
_SMALL_GROUP = 32


@dataclass(frozen=True)
class Cure:
    """A way to a better result.

    Attributes:
        text: for people, with the options of the command line.
        options: of the conversion that tries it.
        rounds: times that the worst layers got more bits by then.
    """

    text: str
    options: ConvertOptions
    rounds: int = 0


@dataclass(frozen=True)
class Attempt:
    """One conversion of `--auto`, measured.

    Attributes:
        cure: what was changed; "as asked" for the first.
        changes: options that differ from those asked for.
        bits_per_weight: of the whole.
        figures: of the quantization budget.
        problems: bounds that did not hold; none: this one is published.
        blamed: what costs most, in words.
    """

    cure: str
    changes: Mapping[str, Any]
    bits_per_weight: float
    figures: Mapping[str, float]
    problems: tuple[str, ...] = ()
    blamed: tuple[str, ...] = ()


class Attempts:
    """The attempts so far, on the disk, so that a killed run goes on with the last one.

    Args:
        folder: exists.
        asked: the user's options.
        source: what the source files are, in plain values; other ones, and other versions of the
            libraries, start anew.
    """

    def __init__(self, folder: Path, asked: ConvertOptions, source: Mapping[str, Any]) -> None:
        self._path = folder / "attempts.json"
        self._asked = asked
        question = [asked.to_dict(), source, library_versions()]
        self._question = json.loads(json.dumps(question, default=str))
        self.done: list[Attempt] = []
        self.cure = Cure("as asked", asked)
        if self._path.exists():
            found = _object(self._path)
            if found.get("question") == self._question:
                self.done = [
                    Attempt(**{**a, "problems": tuple(a["problems"]), "blamed": tuple(a["blamed"])})
                    for a in found["done"]
                ]
                options = replace(asked, **_tuples(found["changes"]))
                self.cure = Cure(found["next"], options, found["rounds"])

    def failed(self, attempt: Attempt, cure: Cure) -> None:
        """Note that an attempt failed, and what is tried next."""
        self.done.append(attempt)
        self.cure = cure
        found = {
            "question": self._question,
            "done": [asdict(a) for a in self.done],
            "next": cure.text,
            "rounds": cure.rounds,
            "changes": self.changes,
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        sync(partial)
        partial.rename(self._path)

    @property
    def changes(self) -> dict[str, Any]:
        """Options of the present attempt that differ from those asked for."""
        asked, now = asdict(self._asked), asdict(self.cure.options)
        return {key: value for key, value in now.items() if asked[key] != value}


def _object(path: Path) -> dict[str, Any]:
    """What a file of attempts holds; nothing where it is damaged, so that all are made anew."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def cures(
    asked: ConvertOptions,
    now: Cure,
    plan: Plan,
    suspects: Sequence[Suspect],
    layers: Mapping[str, int | None],
) -> list[Cure]:
    """What could be tried next, the cheapest first.

    Args:
        asked: the user's options.
        now: the attempt that failed.
        plan: of that attempt.
        suspects: its worst parts, worst first.
        layers: number of the layer of each quantized module; None outside of layers.
    """
    options = now.options
    found = []
    if not options.calibrate:
        text = "--calibrate, at the same size"
        found.append(Cure(text, replace(options, calibrate=True), now.rounds))
    if asked.sized:
        if not options.distill:
            both = replace(options, calibrate=True, distill=True)
            found.append(Cure("--calibrate --distill, at the same size", both, now.rounds))
        return found
    more = _more_bits(plan, suspects, layers) if now.rounds < _ROUNDS else ()
    if more:
        flags = " ".join(f"--bits '{text}'" for text in more)
        wider = replace(options, bits=(*options.bits, *more))
        found.append(Cure(f"more bits where most is lost: {flags}", wider, now.rounds + 1))
    return found + list(_for_all(asked, now, plan))


def _for_all(asked: ConvertOptions, now: Cure, plan: Plan) -> Iterator[Cure]:
    """Smaller groups, then 8 bits; the user's own patterns hold."""
    assert plan.assignment is not None
    base = plan.assignment.base
    size = base.bits + (32 / base.group_size if base.affine else 0)
    for bits, group in ((base.bits, _SMALL_GROUP), (8, 64), (8, _SMALL_GROUP)):
        if bits + 32 / group <= size:
            continue
        changed = replace(
            now.options,
            recipe=None,
            q_mode=None,
            q_bits=bits,
            q_group_size=group,
            bits=(now.options if bits == base.bits else asked).patterns,
        )
        yield Cure(f"--q-bits {bits} --q-group-size {group} for all", changed, _ROUNDS)


def layer_numbers(checkpoint: Checkpoint, plan: Plan, count: int) -> dict[str, int | None]:
    """The layer of each quantized module, None outside of layers.

    Args:
        checkpoint: whose tensors are numbered by layer.
        plan: of its conversion.
        count: number of layers.
    """
    from torch2mlx.planning.expressions import sources_of
    from torch2mlx.verification.thinning import LayerNames

    try:
        names = LayerNames.of(checkpoint.state, count)
    except PlanError:
        return {}
    found: dict[str, int | None] = {}
    for output in plan.outputs:
        if output.scheme is not None:
            numbers = {names.number(leaf.name) for leaf in sources_of(output.expr)}
            found[output.module] = numbers.pop() if len(numbers) == 1 else None
    return found


def _more_bits(
    plan: Plan, suspects: Sequence[Suspect], layers: Mapping[str, int | None]
) -> tuple[str, ...]:
    """Values of --bits for the modules of the worst suspects that may have more."""
    total = sum(max(0.0, suspect.share) for suspect in suspects)
    found: list[str] = []
    covered = 0.0
    for suspect in suspects:
        if covered >= _SHARE * total or suspect.share <= 0:
            break
        covered += suspect.share
        found += _wider(plan, suspect, layers)
    return tuple(found)


def _wider(plan: Plan, suspect: Suspect, layers: Mapping[str, int | None]) -> Iterator[str]:
    own = [
        output
        for output in plan.outputs
        if output.scheme is not None
        and output.packed is None
        and layers.get(output.module) == suspect.layer
        and (suspect.layer is not None or _same_end(output.module, suspect.name))
    ]
    for bits in sorted({o.scheme.bits for o in own if o.scheme is not None}):
        more = _MORE.get(bits)
        modules = [o for o in own if o.scheme is not None and o.scheme.bits == bits]
        if more is None:
            continue
        pattern = f"layers.{suspect.layer}.*"
        assert plan.assignment is not None
        known = list(plan.assignment.schemes)
        if {m for m in known if matches(pattern, m)} == {o.module for o in modules}:
            yield f"{pattern}={more}"
        else:
            yield from (f"{_shortest(o, known)}={more}" for o in modules)


def _shortest(output: Output, modules: Sequence[str]) -> str:
    """The shortest dotted end of a module's path that names it alone."""
    parts = output.module.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[start:])
        if sum(matches(end, module) for module in modules) == 1:
            return end
    return output.module


def _same_end(module: str, name: str) -> bool:
    return module.rpartition(".")[2] == name.rpartition(".")[2]
