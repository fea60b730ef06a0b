"""Single files of Stable Diffusion and its like: all models under their authors' names.

diffusers maps the names; what it would look up on the hub, the sizes of the models, is beside the
file (a model_index.json with a config.json for each model) or in `configs`.  Files are read without
running any of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch2mlx.compiler.pipelines.configs import RELEASES
from torch2mlx.compiler.pipelines.kinds import DENOISERS, INDEX, weights_of_file
from torch2mlx.compiler.pipelines.source import (
    Pipeline,
    checked_weights,
    class_of,
    read_pipeline,
)
from torch2mlx.errors import SourceError, Torch2MLXError, UnsupportedError
from torch2mlx.sources.base import TensorSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["SingleFile", "opened_single_file"]

# What names of other models begin with, by the start of their class names.
_PREFIXES = {
    "Autoencoder": ("first_stage_model.", "vae."),
    "CLIPText": ("cond_stage_model.", "conditioner.embedders.", "text_encoders.clip"),
    "T5": ("text_encoders.t5",),
}


@dataclass(frozen=True)
class SingleFile(Pipeline):
    """A pipeline whose weights are all in one file.

    Attributes:
        file: with the weights.
        tensors: by their name in it.
    """

    file: Path = Path()
    tensors: Mapping[str, torch.Tensor] | None = None

    def load(self, component: str) -> Any:
        """The float32 model of a component, its weights named by diffusers."""
        library, class_name = self.models[component]
        kind = class_of(library, class_name)
        tensors = dict(self.tensors or {})
        load = _denoiser_or_autoencoder if library == "diffusers" else _text_encoder
        try:
            model, missing = load(kind, tensors, self.folder, component)
        except Torch2MLXError:
            raise
        except Exception as error:  # whatever a damaged file provokes
            raise SourceError(
                f"{self.file}: diffusers finds no {class_name} in it for {component}: "
                f"{str(error)[:400]}; {_REMEDY}"
            ) from error
        checked_weights(str(self.file), f"{component} ({class_name})", missing)
        return model.float().eval()


# Of fp8 and integers as ComfyUI packs them, of bitsandbytes' 4 bits.
_SCALES = re.compile(
    r"(.*\.)?(scaled_fp8|scale_weight|scale_input|weight_scale\w*|input_scale|comfy_quant|"
    r"absmax|SCB|quant_state\.\w+)"
)
_REMEDY = (
    f"where it is not a release of the usual sizes, put {INDEX} and the models' config.json "
    "files, as in the pipeline's folder on the hub, beside the file"
)


@contextmanager
def opened_single_file(path: Path) -> Iterator[SingleFile]:
    """The pipeline that a file holds, while its configs are on the disk.

    Raises:
        SourceError: it is damaged, or no such file.
        UnsupportedError: what sizes its models have is not known.
    """
    from torch2mlx.dtypes import to_torch

    with closing(weights_of_file(path)) as source, TemporaryDirectory() as scratch:
        names = source.tensors
        if not any(n.startswith(DENOISERS) for n in names):
            raise SourceError(
                f"{path}: none of its {len(names)} tensors are a denoiser's ("
                f"{' or '.join(f'{n}*' for n in DENOISERS)}); expected a single file of a "
                "diffusion pipeline"
            )
        scaled = next((n for n in names if _SCALES.fullmatch(n)), None)
        if scaled is not None:
            raise UnsupportedError(
                f"{path}: {scaled} belongs to a packed weight, which diffusers would read without "
                "its scales; convert the file in float16, bfloat16 or float32"
            )
        folder = path.parent
        if not (folder / INDEX).is_file():
            folder = Path(scratch)
            _write_configs(path, source, folder)
        tensors = {n: to_torch(source.read(n).reshape(i.shape), i.dtype) for n, i in names.items()}
        pipeline = read_pipeline(folder)
        here = {n: m for n, m in pipeline.models.items() if _holds(m[1], names)}
        absent = [n for n in pipeline.models if n not in here]
        notes = [f"left out {', '.join(absent)}: not in {path.name}"] if absent else []
        if not any(n.startswith("tokenizer") for n in pipeline.others):
            notes.append(
                f"{path.name} holds no tokenizer: take that of the pipeline's folder on the hub"
            )
        yield SingleFile(
            pipeline.name,
            folder,
            here,
            pipeline.others,
            (*pipeline.notes, *notes),
            path,
            tensors,
        )


def _holds(class_name: str, names: Iterable[str]) -> bool:
    prefixes = next((p for start, p in _PREFIXES.items() if class_name.startswith(start)), None)
    return any(n.startswith(prefixes or DENOISERS) for n in names)


def _write_configs(path: Path, source: TensorSource, folder: Path) -> None:
    """The configs of a release, told by the sizes of two tensors."""
    release = next((r for r in RELEASES if r.fits(source.tensors)), None)
    if release is None:
        raise UnsupportedError(
            f"{path}: the sizes of its models are known of {', '.join(r.name for r in RELEASES)}, "
            f"and it is none of them; {_REMEDY}"
        )
    index: dict[str, Any] = {"_class_name": release.pipeline}
    for component, (library, class_name, config) in release.models.items():
        index[component] = [library, class_name]
        (folder / component).mkdir()
        text = json.dumps({"_class_name": class_name, **config})
        (folder / component / "config.json").write_text(text)
    (folder / INDEX).write_text(json.dumps(index))


def _denoiser_or_autoencoder(
    kind: Any, tensors: dict[str, torch.Tensor], folder: Path, component: str
) -> tuple[Any, list[str]]:
    """The model, and the names of weights that it lacks."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    config = kind.load_config(str(folder), subfolder=component, local_files_only=True)
    model = kind.from_config(config)
    classes: Any = SINGLE_FILE_LOADABLE_CLASSES
    renamed = classes[kind.__name__]["checkpoint_mapping_fn"]
    loaded = model.load_state_dict(renamed(config=config, checkpoint=tensors), strict=False)
    return model, list(loaded.missing_keys)


def _text_encoder(
    kind: Any, tensors: dict[str, torch.Tensor], folder: Path, component: str
) -> tuple[Any, list[str]]:
    from diffusers.loaders import single_file_utils

    clip = kind.__name__.startswith("CLIP")
    name = "clip_model_from_ldm" if clip else "t5_model_from_checkpoint"
    make: Any = getattr(single_file_utils, f"create_diffusers_{name}")
    model = make(kind, tensors, subfolder=component, config=str(folder), local_files_only=True)
    model.tie_weights()  # files hold a shared embedding once
    return model, [n for n, t in model.state_dict().items() if t.device.type == "meta"]
