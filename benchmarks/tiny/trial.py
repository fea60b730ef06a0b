"""One model type: build it, run it, convert it, compare it."""

from __future__ import annotations

import inspect
import io
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiny.catalogue import Entry, family
from tiny.configs import EXCEPTIONS, LEVELS, tiny_config
from tiny.inputs import Inputs, NoInputsError, find_inputs, fresh

__all__ = ["LIMIT", "evened", "instance", "run_trial"]

LIMIT = 1e-4
"""Largest relative L2 error that counts as equal."""

_PARAMETERS = 150_000_000
_NEW_TOKENS = 16

Result = dict[str, Any]


def run_trial(entry: Entry, tell: Callable[[str, Any], None], forward_only: bool = False) -> None:
    """Take one type through all stages; `tell(key, value)` reports each finding at once."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tell("torch", torch.__version__.partition("+")[0])
    tell("stage", "build")
    instance = _instance(entry, tell)
    if instance is None:
        return
    task, model, inputs = instance
    tell("class", type(model).__name__)
    tell("parameters", sum(p.numel() for p in model.parameters()))
    tell("family", family(task, model))
    tell("inputs", {n: list(v.shape) for n, v in inputs.values.items() if hasattr(v, "shape")})
    tell("forward", True)
    tell("forward_seconds", round(time.perf_counter() - started, 2))
    if forward_only:
        return
    with tempfile.TemporaryDirectory() as scratch:
        if task == "causal" and list(inputs.values) == ["input_ids"]:
            tell("stage", "port")
            if _port(model, inputs, Path(scratch), tell):
                return
        tell("stage", "compile")
        _compiled(model, inputs, Path(scratch), tell)


def instance(entry: Entry) -> torch.nn.Module | None:
    """A tiny model of a type, or None where none runs."""
    found = _instance(entry, lambda name, value: None)
    return None if found is None else found[1]


def _instance(
    entry: Entry, tell: Callable[[str, Any], None]
) -> tuple[str, torch.nn.Module, Inputs] | None:
    """The first class, at the strongest cut, that runs forward to finite numbers."""
    import transformers

    objections: list[str] = []
    stage = "build"
    for task, name in entry.classes:
        kind = getattr(transformers, name, None)
        if kind is None:
            objections.append(f"transformers has no {name}")
            continue
        for level in range(1 if callable(EXCEPTIONS.get(entry.model_type)) else LEVELS):
            try:
                model = _build(kind, entry.model_type, level)
                tell("builds", True)
                stage = "forward"
                inputs, outputs = find_inputs(model)
                if not _finite(outputs):
                    raise NoInputsError("outputs are not finite")
                tell("level", level)
                return task, _sharpened(model, inputs, kind, entry.model_type, level), inputs
            except Exception as error:  # a configuration, a constructor or a forward
                text = (
                    str(error)
                    if isinstance(error, NoInputsError)
                    else f"{type(error).__name__}: {error}"
                )
                objections.append(f"{name} at cut {level}: {' '.join(text.split())[:300]}")
                stage = "forward" if isinstance(error, NoInputsError) else stage
    tell("failure", {"stage": stage, "reason": objections[0] if objections else "no class"})
    tell("objections", objections)
    return None


def _build(kind: Any, model_type: str, level: int) -> torch.nn.Module:
    config = tiny_config(model_type, level)
    size = 0
    with torch.device("meta"), suppress(Exception):  # some constructors need data
        size = sum(p.numel() for p in kind(config).parameters())
    if size > _PARAMETERS:
        raise ValueError(f"not tiny: {size:,} parameters")
    torch.manual_seed(0)
    return kind(config).float().eval()  # type: ignore[no-any-return]


def _sharpened(
    model: torch.nn.Module, inputs: Inputs, kind: Any, model_type: str, level: int
) -> torch.nn.Module:
    """Weights large enough that every part shows in the output, if that stays finite."""
    torch.manual_seed(1)
    with torch.no_grad():
        before = model(**inputs.values)
        for name, parameter in sorted(model.named_parameters()):
            if not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            noise = torch.randn(parameter.shape)
            if parameter.ndim < 2:
                parameter.add_(0.05 * noise)
                continue
            spread, fan = float(parameter.std()), parameter[0].numel()
            if spread > 3:  # frequencies: made with half of a width; published ones have 1
                parameter.copy_(noise)
            elif 0 < spread < 0.05 and "embed" not in name:
                parameter.copy_(noise * fan**-0.5)
    model.tie_weights()
    with torch.no_grad(), suppress(Exception):
        evened(model, inputs)
        outputs = model(**inputs.values)
        # What masks hold is as large without this; detectors have 1e4 and more.
        limit = max(1e4, 1.1 * _largest(before))
        if _finite(outputs) and _largest(outputs) < limit:
            return model
    return _build(kind, model_type, level)


def evened(model: torch.nn.Module, inputs: Inputs) -> None:
    """Variances of batch normalizations such that what comes out of each is of size 1.

    As they are made (1), signals vanish from layer to layer until the biases alone decide. One
    number for all channels: a channel's own could divide what is rounding and little else.
    """

    def measure(module: Any, args: tuple[Any, ...]) -> None:
        module.running_var.fill_(max(float(args[0].square().mean()), 1e-6))

    hooks = [
        module.register_forward_pre_hook(measure)
        for module in model.modules()
        if isinstance(getattr(module, "running_var", None), torch.Tensor)
    ]
    try:
        model(**inputs.values)
    finally:
        for hook in hooks:
            hook.remove()


def _largest(outputs: Any) -> float:
    """Magnitude of the largest number."""
    return max((float(v.abs().max()) for v in _leaves(outputs) if v.numel()), default=0.0)


def _leaves(outputs: Any) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_leaves

    return [
        v for v in tree_leaves(outputs) if isinstance(v, torch.Tensor) and v.is_floating_point()
    ]


def _finite(outputs: Any) -> bool:
    found = _leaves(outputs)
    return bool(found) and all(not v.isnan().any() for v in found)


def _distance(want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    if want.shape != got.shape:
        return float("inf")
    same = np.isfinite(want)
    if not np.array_equal(want[~same], got[~same], equal_nan=True):
        return float("inf")
    size = float(np.linalg.norm(want[same]))
    return float(np.linalg.norm(want[same] - got[same])) / (size or 1.0)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:1500]}"


def _convert(*args: Any, **kwargs: Any) -> str | None:
    """The reason why a conversion was refused, or None if it was made; other errors are told so."""
    import torch2mlx
    from torch2mlx.errors import Torch2MLXError

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            torch2mlx.convert(*args, **kwargs)
        except Torch2MLXError as error:
            return _reason(error)
        except Exception as error:  # a traceback: a fault of the converter
            return f"uncaught {_reason(error)}"
    return None


def _port(
    model: torch.nn.Module, inputs: Inputs, scratch: Path, tell: Callable[[str, Any], None]
) -> bool:
    """Through a port of mlx-lm's kind; False where none is right."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    source, out = scratch / "source", scratch / "port"
    started = time.perf_counter()
    try:
        model.save_pretrained(source)  # type: ignore[operator]
    except Exception as error:
        tell("port_refused", f"save_pretrained: {_reason(error)}")
        return False
    refused = _convert(str(source), str(out), dtype="float32")
    tell("port_seconds", round(time.perf_counter() - started, 2))
    if refused:
        tell("port_refused", refused)
        return False
    generated = (out / "model.py").exists()
    tell("route", "generated port" if generated else "mlx-lm port")
    ported = load_model(out, trust_remote_code=True)[0]
    errors = []
    for seed in (11, 12):
        ids = fresh(inputs, seed)["input_ids"]
        with torch.no_grad():
            want = model(input_ids=ids).logits.float().numpy()
        with mx.stream(mx.cpu):
            cache = make_prompt_cache(ported)
            got = np.array(ported(mx.array(ids.numpy()), cache=cache).astype(mx.float32))
        errors.append(_distance(want, got))
    tell("error", max(errors))
    prompt = fresh(inputs, 13)["input_ids"][:, :12]

    def step() -> list[int]:
        with mx.stream(mx.cpu):
            cache, tokens = make_prompt_cache(ported), mx.array(prompt.numpy())
            found: list[int] = []
            for _ in range(_NEW_TOKENS):
                logits = ported(tokens, cache=cache)[:, -1]
                found.append(int(mx.argmax(logits, axis=-1).item()))
                tokens = mx.array([[found[-1]]])
        return found

    _tell_tokens(model, {"input_ids": prompt}, step, tell)
    return True


def _tell_tokens(
    model: torch.nn.Module,
    prompt: dict[str, Any],
    greedy: Callable[[], list[int]],
    tell: Callable[[str, Any], None],
) -> None:
    """Whether greedy tokens equal those of transformers' generate."""
    tell("stage", "generate")
    try:
        want = _reference_tokens(model, prompt)
    except Exception as error:  # generate has needs of its own
        tell("generate_fails", _reason(error)[:200])
        return
    _tell_agreement(model, prompt, want, greedy(), tell)


def _tell_agreement(
    model: torch.nn.Module,
    prompt: dict[str, Any],
    want: list[int],
    found: list[int],
    tell: Callable[[str, Any], None],
) -> None:
    """Equal to `generate`; or, where its cache changes the tokens, to `generate` without one."""
    if found != want:
        anew = _reference_tokens(model, prompt, use_cache=False)[: len(want)]
        if anew != want:
            tell("cache_differs", True)
            want = anew
    tell("tokens_equal", found == want)
    if found != want:
        tell("tokens", [want, found])


def _reference_tokens(model: Any, prompt: dict[str, Any], use_cache: bool = True) -> list[int]:
    decoded = "decoder_input_ids" in prompt
    with torch.no_grad(), redirect_stdout(io.StringIO()):
        model.generation_config.eos_token_id = None
        model.generation_config.decoder_start_token_id = 1
        model.generation_config.max_length = None
        model.generation_config.return_timestamps = False
        model.generation_config.pad_token_id = 0
        model.generation_config.forced_eos_token_id = None
        model.generation_config.forced_bos_token_id = None
        model.generation_config.suppress_tokens = None
        model.generation_config.begin_suppress_tokens = None
        found = model.generate(
            **prompt, max_new_tokens=_NEW_TOKENS, do_sample=False, num_beams=1, use_cache=use_cache
        )
    start = prompt["decoder_input_ids" if decoded else "input_ids"].shape[1]
    tokens = found[0, start:].tolist()
    if len(tokens) != _NEW_TOKENS:
        raise ValueError(f"generate returned {len(tokens)} tokens")
    return [int(t) for t in tokens]


def _compiled(
    model: torch.nn.Module, inputs: Inputs, scratch: Path, tell: Callable[[str, Any], None]
) -> None:
    """As a compiled module, on the whole of its inputs; else as transformers' exporters do it."""
    started = time.perf_counter()
    refused = _convert(model, str(scratch / "compiled"), example_kwargs=dict(inputs.values))
    tell("compile_seconds", round(time.perf_counter() - started, 2))
    if refused:
        tell("failure", {"stage": "convert", "reason": refused})
        _like_exporters(model, inputs, scratch, tell)
        return
    tell("route", "compiled module")
    config = json.loads((scratch / "compiled" / "config.json").read_text(encoding="utf-8"))
    tell("fixed", [i["name"] for i in config["inputs"] if i.get("fixed")])
    tell("stage", "compare")
    run = _runner(scratch / "compiled")
    tell("error", _module_error(model, inputs, run))
    if getattr(model, "can_generate", lambda: False)():
        _tell_compiled_tokens(model, inputs, run, tell)


Run = Callable[[dict[str, Any]], list[np.ndarray[Any, Any]]]


def _runner(folder: Path) -> Run:
    """Calls of a compiled folder with what the original takes."""
    import mlx.core as mx
    from torch.utils._pytree import tree_map_only

    from torch2mlx.compiler.parity.running import flat_outputs, import_model, mlx_array

    loaded = import_model(folder).load(str(folder))
    names = set(inspect.signature(type(loaded).__call__).parameters)

    def run(values: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
        given = {n: v for n, v in values.items() if n in names}
        with mx.stream(mx.cpu):
            outputs = loaded(**tree_map_only(torch.Tensor, mlx_array, given))
            return [np.array(v) for v in flat_outputs(outputs) if isinstance(v, mx.array)]

    return run


def _module_error(model: torch.nn.Module, inputs: Inputs, run: Run) -> float:
    errors = []
    for seed in (11, 12):
        values = fresh(inputs, seed)
        with torch.no_grad():
            outputs = model(**values)
        want = [v.float().numpy() for v in _leaves(outputs)]
        got = [v for v in run(values) if v.dtype.kind in "fc"]
        same = want and len(want) == len(got)
        errors.append(max(map(_distance, want, got)) if same else float("inf"))
    return max(errors)


def _like_exporters(
    model: torch.nn.Module, inputs: Inputs, scratch: Path, tell: Callable[[str, Any], None]
) -> None:
    """With what transformers' exporters compute beforehand; a multimodal model in its parts.

    Tells `prepared`, the largest error, where every part converts; nothing else.
    """
    from transformers.exporters.utils import decompose_multimodal, is_multimodal

    tell("stage", "prepare")
    parts: dict[str, tuple[torch.nn.Module, dict[str, Any]]]
    try:
        several = is_multimodal(model)
        parts = decompose_multimodal(model, dict(inputs.values)) if several else {}
    except Exception as error:  # what exporters cannot take apart
        tell("prepared_refused", _reason(error)[:300])
        return
    errors = {}
    for name, (module, values) in (parts or {"": (model, dict(inputs.values))}).items():
        found = _prepared_error(module.eval(), values, scratch / f"part{name}")
        if isinstance(found, str):
            tell("prepared_refused", f"{name}: {found[:600]}")
            return
        errors[name or "whole"] = found
    tell("parts", errors)
    tell("prepared", max(errors.values()))


def _prepared_error(module: torch.nn.Module, values: dict[str, Any], out: Path) -> float | str:
    """The error of one part on its prepared inputs, or why it is refused."""
    from transformers.exporters.exporter_dynamo import patch_forward_signature
    from transformers.exporters.utils import apply_patches, prepare_for_export

    given = {n: v for n, v in values.items() if v is not None}
    try:
        _, ready, _ = prepare_for_export(module, dict(given))
        ready = {n: v for n, v in ready.items() if v is not None}
        with torch.no_grad():
            module(**ready)
    except Exception as error:  # a preparation that does not fit the part
        return _reason(error)
    with apply_patches("dynamo"), patch_forward_signature(module, ready):
        refused = _convert(module, str(out), example_kwargs=dict(ready))
    if refused:
        return refused
    computed = frozenset(set(ready) - set(given))
    return _module_error(module, Inputs(ready, {}, computed), _runner(out))


def _is_causal(model: torch.nn.Module, values: dict[str, Any], name: str, start: int) -> bool:
    """Whether the outputs before `start` stay as they are when later tokens change."""
    later = values[name].clone()
    later[:, start:] = later[:, start:].roll(1, -1) // 2 + 3
    with torch.no_grad():
        found = [_leaves(model(**{**values, name: ids})) for ids in (values[name], later)]
    length = later.shape[1]
    places = [i for i, v in enumerate(found[0]) if v.ndim == 3 and v.shape[1] == length]
    return bool(places) and torch.allclose(
        found[0][places[0]][:, : start - 1], found[1][places[0]][:, : start - 1], atol=1e-4
    )


def _tell_compiled_tokens(
    model: torch.nn.Module,
    inputs: Inputs,
    run: Run,
    tell: Callable[[str, Any], None],
) -> None:
    """Greedy steps without a cache: later places of the fixed length hold any token, unseen."""
    values = fresh(inputs, 13)
    name = "decoder_input_ids" if "decoder_input_ids" in values else "input_ids"
    if name not in values or values[name].ndim != 2:
        return
    length = values[name].shape[1]
    # The steps whose tokens lie behind all placeholders and inside the length.
    start = max(1, length - _NEW_TOKENS) if not inputs.placeholders else length - 11
    steps = min(_NEW_TOKENS, length - start + 1)
    beside = ("_mask", "type_ids")  # what has one value a token, too
    prompt = {
        n: v[:, :start]
        if n == name or (n.endswith(beside) and v.ndim == 2 and v.shape[1] == length)
        else v
        for n, v in values.items()
    }

    def step() -> list[int]:
        ids = values[name].clone()
        found: list[int] = []
        with torch.no_grad():
            place = next(
                i
                for i, v in enumerate(_leaves(model(**values)))
                if v.ndim == 3 and v.shape[1] == length
            )
        for number in range(steps):
            outputs = [v for v in run({**values, name: ids}) if v.dtype.kind == "f"]
            token = int(outputs[place][0, start - 1 + number].argmax())
            found.append(token)
            if start + number < length:
                ids[0, start + number] = token
        return found

    if not _is_causal(model, values, name, start):
        tell("generate_fails", "earlier outputs depend on later tokens")
        return
    tell("stage", "generate")
    try:
        want = _reference_tokens(model, prompt)[:steps]
        found = step()
    except Exception as error:  # generate has needs of its own
        tell("generate_fails", _reason(error)[:200])
        return
    tell("token_steps", steps)
    _tell_agreement(model, prompt, want, found, tell)
