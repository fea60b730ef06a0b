"""Strategies side by side: exact sizes, memory, the Macs they fit, and how much they lose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch2mlx.architectures.catalog import runs_sharded
from torch2mlx.architectures.port import Port, PortMapping
from torch2mlx.errors import OptionError
from torch2mlx.options import ConvertOptions
from torch2mlx.planning.plan import Plan, build_plan
from torch2mlx.planning.shards import parse_size
from torch2mlx.quantization.recipe import QuantOptions
from torch2mlx.selection.fitting import Running, running_memory
from torch2mlx.selection.machines import smallest_mac
from torch2mlx.selection.memory import OVERHEAD, prompt_bytes, share_of_weights
from torch2mlx.selection.plan_file import fingerprint
from torch2mlx.sources.base import Checkpoint

__all__ = ["Selection", "Strategy", "select_strategies", "strategy_options"]

# name → options of `convert`, best quality first, and mean KL divergence (nats a token) of the
# quantized SmolLM2-135M from the original: round to nearest, groups of 64, by this package's own
# text-quality measure.  A small model suffers most, so these are upper bounds for larger ones of
# the same kind; None: not measured.
_STRATEGIES: dict[str, tuple[dict[str, Any], float | None]] = {
    "direct": ({}, 0.0),
    "8-bit": ({"quantize": True, "q_bits": 8}, 0.0019),
    "6-bit": ({"quantize": True, "q_bits": 6}, None),
    "5-bit": ({"quantize": True, "q_bits": 5}, None),
    "mixed 4/6-bit": ({"quantize": True, "recipe": "mixed_4_6"}, 0.374),
    "nvfp4": ({"quantize": True, "q_mode": "nvfp4"}, 0.400),
    "4-bit calibrated": ({"quantize": True, "q_bits": 4, "calibrate": True}, 0.126),
    "4-bit": ({"quantize": True, "q_bits": 4}, 0.483),
    "mxfp4": ({"quantize": True, "q_mode": "mxfp4"}, 1.213),
    "mixed 3/6-bit": ({"quantize": True, "recipe": "mixed_3_6"}, 1.710),
    "3-bit calibrated": ({"quantize": True, "q_bits": 3, "calibrate": True}, 0.463),
    "3-bit": ({"quantize": True, "q_bits": 3}, 2.296),
}
_BY_MODULE = "by module"
# name → machines that each hold a part of every layer, as mlx.launch starts them.
_SHARDED = {"direct on 2 Macs": 2, "direct on 4 Macs": 4}
# Below so many parameters, 4 bits of round to nearest cost more than most uses bear.
_LARGE = 6_000_000_000


@dataclass(frozen=True)
class Strategy:
    """One way to convert a model.

    Attributes:
        name: for people ("4-bit").
        options: of `torch2mlx.convert`, as keyword arguments.
        nbytes: of the weight files, exactly.
        bits_per_weight: those bytes over the number of parameters.
        shards: number of weight files.
        conversion_memory: bytes that the conversion may take beside its imports.
        runtime_memory: bytes of weights, caches and intermediate results at the context.
        mac: GB of the smallest Mac that runs it, or None.
        kl: measured on SmolLM2-135M with round to nearest; None: not measured.
        fits: within the memory that was asked for; None: nothing was asked.
        predicted: KL divergence of this very model, to second order from its own gradients; None:
            not asked for, or nothing is quantized.
        machines: that it is split over with mlx.launch; `runtime_memory` and `mac` are of each.
    """

    name: str
    options: Mapping[str, Any]
    nbytes: int
    bits_per_weight: float
    shards: int
    conversion_memory: int
    runtime_memory: int
    mac: int | None
    kl: float | None
    fits: bool | None
    predicted: float | None = None
    machines: int = 1


def strategy_options(name: str) -> dict[str, Any] | None:
    """Options of `torch2mlx.convert` that a strategy has for every model; None: there is none."""
    if name in _SHARDED:
        return {}
    if name == _BY_MODULE:
        return {"quantize": True}
    return dict(_STRATEGIES[name][0]) if name in _STRATEGIES else None


@dataclass(frozen=True)
class Selection:
    """Strategies for a checkpoint, and the one to take.

    Attributes:
        location: of the checkpoint.
        port: of mlx-lm that it becomes a model of.
        parameters: number of weights.
        context: tokens that the caches are counted for.
        cache_bytes: of those caches; None: this port does not tell.
        fit: bytes that the model may take, or None.
        strategies: best quality first.
        recommended: name of one of them; None where nothing fits.
        reason: of the recommendation.
        chosen: name of the strategy that `convert --plan` carries out.
        options: of `torch2mlx.convert` for it.
        fingerprint: of the source's files.
    """

    location: str
    port: str
    parameters: int
    context: int
    cache_bytes: int | None
    fit: int | None
    strategies: tuple[Strategy, ...]
    recommended: str | None
    reason: str
    chosen: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which `convert --plan` reads."""
        from torch2mlx.selection.plan_file import SCHEMA_VERSION, seal

        return seal(json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)})))

    def command(self, strategy: Strategy, destination: str = "DST") -> str:
        """The command line that carries out a strategy."""
        flags = []
        for key, value in strategy.options.items():
            flag = "-q" if key == "quantize" else f"--{key.replace('_', '-')}"
            flags.append(flag if value is True else f"{flag} {value}")
        return " ".join(["torch2mlx convert", self.location, destination, *flags])


def select_strategies(
    checkpoint: Checkpoint,
    port: Port,
    *,
    fit: str | int | None = None,
    context: int | None = None,
    memory_limit: str | int = "1GB",
    quality: bool = False,
    strategy: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Selection:
    """Compare strategies for a checkpoint from its headers.

    Args:
        checkpoint: the opened source.
        port: of its config.
        fit: memory for weights, caches and intermediate results, such as "16GB".
        context: tokens of the longest text; None: what the config says, at most 8192.
        memory_limit: of the conversion.
        quality: also predict what each strategy costs this model, which reads all weights and
            runs PyTorch; with `fit`, bits by module are one more strategy.
        strategy: name of the one to carry out; None: the one that is recommended.
        revision: of a hub id, for `convert --plan`.
        trust_remote_code: allow the checkpoint's own code, for `quality`.

    Raises:
        OptionError: a context below 1, or no such strategy.
        PlanError: tensors and model do not fit.
        UnsupportedError: `quality`, and layers of this model cannot be run on their own.
    """
    running = running_memory(port, context=context, fit=fit)
    budget = running.limit
    mapping = port.map_state(checkpoint.state)
    made: dict[QuantOptions | None, Plan | None] = {}

    def planned_for(options: Mapping[str, Any]) -> Plan | None:
        asked = ConvertOptions(**options).quant_options()
        if asked not in made:
            made[asked] = _plan(checkpoint, port, mapping, asked)
        return made[asked]

    planned = {
        name: (options, kl, plan)
        for name, (options, kl) in _STRATEGIES.items()
        if (plan := planned_for(options))
    }
    predictions: dict[str, float] = {}
    if quality:
        judge = _Judge(checkpoint, planned["4-bit"][2], trust_remote_code)
        predictions = {
            name: judge.predict(plan)
            for name, (options, _, plan) in planned.items()
            if "calibrate" not in options  # the prediction is of rounding to nearest
        }
        if fit is not None and planned["8-bit"][2].nbytes > running.room:
            options = {"quantize": True, "fit": fit, "context": running.context}
            allocated = judge.allocate(
                port, lambda asked: _required(_plan(checkpoint, port, mapping, asked)), running
            )
            if allocated is not None:
                planned[_BY_MODULE] = (options, None, allocated)
                predictions[_BY_MODULE] = judge.predict(allocated)
    found = []
    for name, (options, kl, plan) in planned.items():
        need = plan.nbytes + running.beside
        found.append(
            Strategy(
                name=name,
                options=options,
                nbytes=plan.nbytes,
                bits_per_weight=8 * plan.nbytes / max(1, plan.parameters),
                shards=len(plan.shards),
                conversion_memory=parse_size(memory_limit, "--memory-limit"),
                runtime_memory=need,
                mac=smallest_mac(need),
                kl=kl,
                fits=None if budget is None else need <= budget,
                predicted=predictions.get(name),
            )
        )
    if quality:
        found.sort(key=lambda s: s.kl or 0.0 if s.predicted is None else s.predicted)
    if runs_sharded(port.module.rpartition(".")[2]):
        shares = {name: share_of_weights(port, count) for name, count in _SHARDED.items()}
        found[1:1] = [
            _split(found[0], name, _SHARDED[name], share, running, port)
            for name, share in shares.items()
            if share is not None
        ]
    parameters = sum(expr.size for expr in mapping.outputs.values())
    recommended, reason = _recommend(found, parameters, budget)
    ordered = strategy or (recommended.name if recommended else None)
    carried = next((s for s in found if s.name == ordered), None)
    if strategy is not None and carried is None:
        raise OptionError(
            f"--strategy {strategy}: this model has {', '.join(s.name for s in found)}"
        )
    options = {} if carried is None else dict(carried.options)
    if revision is not None:
        options["revision"] = revision
    if parse_size(memory_limit) != parse_size(ConvertOptions().memory_limit):
        options["memory_limit"] = memory_limit
    shard = _shard_size(mapping)
    if shard != parse_size(ConvertOptions().max_shard_size):
        options["max_shard_size"] = shard
    return Selection(
        location=checkpoint.location,
        port=port.module,
        parameters=parameters,
        context=running.context,
        cache_bytes=running.caches,
        fit=budget,
        strategies=tuple(found),
        recommended=recommended.name if recommended else None,
        reason=reason,
        chosen=ordered,
        options=options,
        fingerprint=fingerprint(checkpoint),
    )


def _split(
    whole: Strategy, name: str, machines: int, share: float, running: Running, port: Port
) -> Strategy:
    """A strategy of which each of several machines holds a part of every layer."""
    prompt = prompt_bytes(port.config, running.context, machines=machines)
    need = int(share * whole.nbytes) + (running.caches or 0) // machines + prompt + OVERHEAD
    limit = running.limit
    return replace(
        whole,
        name=name,
        runtime_memory=need,
        mac=smallest_mac(need),
        fits=None if limit is None else need <= limit,
        machines=machines,
    )


class _Judge:
    """Predicts what quantization costs one model."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, trust_remote_code: bool) -> None:
        from torch2mlx.calibration.budget import Sensitivity

        assert plan.assignment is not None
        self._base = plan.assignment.base
        self._sensitivity = Sensitivity(checkpoint, trust_remote_code=trust_remote_code)
        self._choices = self._sensitivity.choices(plan.outputs, self._base)

    def predict(self, plan: Plan) -> float:
        """Mean KL divergence of a plan's formats, rounded to nearest."""
        return self._sensitivity.predict(plan, self._choices, self._base)

    def allocate(
        self, port: Port, planned: Callable[[QuantOptions | None], Plan], running: Running
    ) -> Plan | None:
        """The plan with bits by module that fits, or None."""
        from torch2mlx.calibration.budget import choose_for_memory

        asked = ConvertOptions(quantize=True).quant_options()
        assert asked is not None
        try:
            return planned(
                choose_for_memory(self._sensitivity, port, planned, asked, running).options
            )
        except OptionError:
            return None


def _required(plan: Plan | None) -> Plan:
    assert plan is not None
    return plan


def _plan(
    checkpoint: Checkpoint, port: Port, mapping: PortMapping, asked: QuantOptions | None
) -> Plan | None:
    """The plan of a strategy; None where the model has no layer for it."""
    shard = _shard_size(mapping)
    try:
        return build_plan(checkpoint, port, quantize=asked, max_shard_size=shard, mapping=mapping)
    except OptionError:
        return None


def _shard_size(mapping: PortMapping) -> int:
    """Bytes of the largest weight file: a stacked expert tensor may be more than is usual."""
    largest = max(expr.size for expr in mapping.outputs.values())
    return max(parse_size(ConvertOptions().max_shard_size), 4 * largest + 2**20)


def _recommend(
    found: list[Strategy], parameters: int, budget: int | None
) -> tuple[Strategy | None, str]:
    """One that needs nothing but time to write it: no calibration, no second machine."""
    strategies = [s for s in found if s.machines == 1 and "calibrate" not in s.options]
    if budget is not None:
        chosen = next((s for s in strategies if s.fits), None)
        if chosen is None:
            least = min(strategies, key=lambda s: s.runtime_memory)
            return None, (
                f"nothing fits {budget / 1e9:.3g} GB: {least.name} needs "
                f"{least.runtime_memory / 1e9:.3g} GB; a shorter --context needs less"
            )
        return chosen, f"the best quality that fits {budget / 1e9:.3g} GB"
    by_name = {strategy.name: strategy for strategy in strategies}
    if parameters >= _LARGE and "4-bit" in by_name:
        return by_name["4-bit"], "large models bear 4 bits, and it is read fastest; see --fit"
    if "8-bit" in by_name:
        return by_name["8-bit"], "small models lose much below 8 bits; see --fit"
    return strategies[0], "no layer of this model can be quantized"
