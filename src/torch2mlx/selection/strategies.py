"""Strategies side by side: exact sizes, memory, the Macs they fit, and how much they lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch2mlx.architectures.port import Port, PortMapping
from torch2mlx.errors import OptionError
from torch2mlx.options import ConvertOptions
from torch2mlx.planning.plan import Plan, build_plan
from torch2mlx.planning.shards import parse_size
from torch2mlx.selection.machines import smallest_mac
from torch2mlx.selection.memory import OVERHEAD, cache_bytes, prompt_bytes
from torch2mlx.sources.base import Checkpoint

__all__ = ["Selection", "Strategy", "select_strategies"]

_DEFAULT_CONTEXT = 8192  # tokens, where neither the user nor the config says less

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
    "4-bit": ({"quantize": True, "q_bits": 4}, 0.483),
    "mxfp4": ({"quantize": True, "q_mode": "mxfp4"}, 1.213),
    "mixed 3/6-bit": ({"quantize": True, "recipe": "mixed_3_6"}, 1.710),
    "3-bit": ({"quantize": True, "q_bits": 3}, 2.296),
}
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

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
) -> Selection:
    """Compare strategies for a checkpoint from its headers.

    Args:
        checkpoint: the opened source.
        port: of its config.
        fit: memory for weights, caches and intermediate results, such as "16GB".
        context: tokens of the longest text; None: what the config says, at most 8192.
        memory_limit: of the conversion.

    Raises:
        OptionError: a context below 1.
        PlanError: tensors and model do not fit.
    """
    if context is not None and context < 1:
        raise OptionError(f"--context {context}: at least 1 token")
    budget = None if fit is None else parse_size(fit)
    tokens = context or min(_DEFAULT_CONTEXT, _longest(port.config))
    caches = cache_bytes(port, tokens)
    running = (caches or 0) + prompt_bytes(port.config, tokens) + OVERHEAD
    mapping = port.map_state(checkpoint.state)
    found = []
    for name, (options, kl) in _STRATEGIES.items():
        plan = _plan(checkpoint, port, mapping, options)
        if plan is None:
            continue
        need = plan.nbytes + running
        found.append(
            Strategy(
                name=name,
                options=options,
                nbytes=plan.nbytes,
                bits_per_weight=8 * plan.nbytes / max(1, plan.parameters),
                shards=len(plan.shards),
                conversion_memory=parse_size(memory_limit),
                runtime_memory=need,
                mac=smallest_mac(need),
                kl=kl,
                fits=None if budget is None else need <= budget,
            )
        )
    parameters = sum(expr.size for expr in mapping.outputs.values())
    chosen, reason = _recommend(found, parameters, budget)
    return Selection(
        location=checkpoint.location,
        port=port.module,
        parameters=parameters,
        context=tokens,
        cache_bytes=caches,
        fit=budget,
        strategies=tuple(found),
        recommended=chosen.name if chosen else None,
        reason=reason,
    )


def _longest(config: Mapping[str, Any]) -> int:
    value = config.get("max_position_embeddings")
    return value if isinstance(value, int) and value > 0 else _DEFAULT_CONTEXT


def _plan(
    checkpoint: Checkpoint, port: Port, mapping: PortMapping, options: Mapping[str, Any]
) -> Plan | None:
    """The plan of a strategy; None where the model has no layer for it."""
    asked = replace(ConvertOptions(), **options)
    # A stacked expert tensor of the largest models is itself more than the usual file.
    largest = max(expr.size for expr in mapping.outputs.values())
    shard = max(parse_size(asked.max_shard_size), 4 * largest + 2**20)
    try:
        return build_plan(
            checkpoint,
            port,
            quantize=asked.quant_options(),
            max_shard_size=shard,
            mapping=mapping,
        )
    except OptionError:
        return None


def _recommend(
    strategies: list[Strategy], parameters: int, budget: int | None
) -> tuple[Strategy | None, str]:
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
