"""Load a converted language model for use, through mlx-lm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch2mlx.architectures.catalog import ENDS_PROGRAM
from torch2mlx.errors import SourceError, Torch2MLXError
from torch2mlx.precision import CONFIG_KEY, check_patterns, parse_precision
from torch2mlx.sources.local_files import read_json_object

__all__ = ["load_language_model"]


def load_language_model(
    folder: str | Path,
    *,
    trust_remote_code: bool = False,
    tokenizer: bool = True,
    as_stored: bool = False,
) -> tuple[Any, Any]:
    """The model and mlx-lm's tokenizer of an MLX folder.

    On a GPU each module computes in the type that `runtime_precision` in config.json names for
    it, or in the stored one.  On a CPU all compute in float32: MLX's CPU kernels for half types
    are up to sixty times slower, and the values of the weights stay the same.

    Args:
        folder: with config.json and model*.safetensors.
        trust_remote_code: allow a model file or tokenizer code in the folder to run.  A model
            file that torch2mlx writes for this config.json needs no permission.
        tokenizer: load it; without, the second result is None.
        as_stored: on a CPU too, compute as on a GPU.

    Raises:
        OptionError: a type or pattern in config.json that does not fit the model.
        SourceError: the folder is no MLX language model, or not one that mlx-lm can load.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise SourceError(f"{folder}: no MLX model here (config.json is missing)")
    config = read_json_object(folder / "config.json")
    if "model_class" in config and "model_type" not in config:
        raise SourceError(
            f"{folder}: a compiled module, not a language model; call it from Python, as its "
            "README.md shows"
        )
    import mlx.core as mx
    from mlx_lm.utils import load_model, load_tokenizer

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        generated = None if trust_remote_code else _generated_port(folder)
        if generated is not None:
            options |= {
                "model_config": {"model_file": None},
                "get_model_classes": lambda config: generated.classes,
            }
        model, config = load_model(folder, **options)
        words = None
        if tokenizer:
            words = load_tokenizer(  # type: ignore[no-untyped-call]
                folder,
                {"trust_remote_code": trust_remote_code},
                eos_token_ids=config.get("eos_token_id"),
            )
    except Torch2MLXError:
        raise
    except SystemExit as error:
        raise SourceError(f"{folder}: {ENDS_PROGRAM}") from error
    except Exception as error:  # whatever a damaged folder provokes in two libraries
        raise SourceError(f"{folder}: mlx-lm cannot load it: {error}") from error
    if as_stored or mx.default_device() != mx.cpu:
        if generated is not None or not config.get("model_file"):  # else its own code does it
            _apply_precision(model, config)
    else:
        from torch2mlx.verification.candidate import to_float32

        to_float32(model)
    return model, words


def _apply_precision(model: Any, config: dict[str, Any]) -> None:
    from torch2mlx.compiler.runtime.precision import set_precision

    written = config.get(CONFIG_KEY)
    if isinstance(written, dict):
        policy = parse_precision("", {str(k): str(v) for k, v in written.items()})
        check_patterns(policy, [path for path, _ in model.named_modules() if path])
        set_precision(model, policy)


def _generated_port(folder: Path) -> Any:
    """The port that torch2mlx generates for a folder's config.json, if the folder holds just that.

    The folder's own file is only read, never run: a hash beside it would prove nothing of a
    folder from elsewhere.
    """
    from torch2mlx.architectures.port import MODEL_FILE, load_port
    from torch2mlx.sources.local_files import read_json_object, read_small

    config = read_json_object(folder / "config.json")
    if config.get("model_file") != MODEL_FILE:
        return None
    policy = config.pop(CONFIG_KEY, None) or {}
    port = load_port(config)
    if not port.is_source(read_small(folder / MODEL_FILE).decode(errors="replace"), policy):
        raise SourceError(
            f"{folder / MODEL_FILE}: not what this version of torch2mlx and transformers writes "
            "for config.json; read it, and run it with --trust-remote-code if you trust it"
        )
    return port
