"""What transformers has: every model type with the class of its main task."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "Entry", "catalogue", "family"]

FAMILIES = (
    "standard text",
    "MoE",
    "SSM/hybrid",
    "encoder",
    "encoder-decoder",
    "vision",
    "audio",
    "multimodal",
    "other",
)

# Task → auto mappings, the most telling task of a type first.
_TASKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("multimodal", ("IMAGE_TEXT_TO_TEXT", "VISUAL_QUESTION_ANSWERING")),
    ("speech", ("SPEECH_SEQ_2_SEQ", "CTC", "RNNT", "TDT")),
    ("multimodal", ("MULTIMODAL_LM",)),
    ("seq2seq", ("SEQ_TO_SEQ_CAUSAL_LM",)),
    ("masked", ("MASKED_LM",)),
    ("causal", ("CAUSAL_LM",)),
    ("zero-shot", ("ZERO_SHOT_OBJECT_DETECTION", "ZERO_SHOT_IMAGE_CLASSIFICATION")),
    (
        "vision",
        (
            "IMAGE_CLASSIFICATION",
            "OBJECT_DETECTION",
            "SEMANTIC_SEGMENTATION",
            "UNIVERSAL_SEGMENTATION",
            "INSTANCE_SEGMENTATION",
            "DEPTH_ESTIMATION",
            "KEYPOINT_DETECTION",
            "KEYPOINT_MATCHING",
            "IMAGE_TO_IMAGE",
            "IMAGE_MATTING",
            "VIDEO_CLASSIFICATION",
            "POSE_ESTIMATION",
            "MASK_GENERATION",
            "TEXT_RECOGNITION",
            "MASKED_IMAGE_MODELING",
        ),
    ),
    ("audio", ("AUDIO_CLASSIFICATION", "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM")),
    ("time series", ("TIME_SERIES_PREDICTION",)),
    ("token", ("TOKEN_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "QUESTION_ANSWERING")),
    ("base", ()),
    ("base", ("PRETRAINING", "DOCUMENT_QUESTION_ANSWERING", "MULTIPLE_CHOICE")),
)
# Types that stand in the mapping of another task than their main one.
_MAIN = {"clip": "base", "siglip": "base", "siglip2": "base", "metaclip_2": "base"}
_STATES = ("Mamba", "Rwkv", "xLSTM", "GatedDelta", "DeltaNet", "LinearAttention", "Recurrent")
_STATES += ("ShortConv", "KimiDelta", "LightningAttention", "SSM", "DeltaAttention", "mLSTM")
_EXPERTS = ("Experts", "SparseMoe", "TopKRouter", "TopkRouter", "MoeBlock", "MoE", "SparseMLP")


@dataclass(frozen=True)
class Entry:
    """A model type.

    Attributes:
        model_type: its key in CONFIG_MAPPING.
        classes: (task, class name), the main one first; the next is tried where that cannot run.
    """

    model_type: str
    classes: tuple[tuple[str, str], ...]


def catalogue() -> list[Entry]:
    """Every type of CONFIG_MAPPING that stands in any auto mapping."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    entries = []
    for model_type in sorted(CONFIG_MAPPING_NAMES):
        found: list[tuple[str, str]] = []
        for task, keys in _TASKS:
            names = [f"MODEL_FOR_{key}_MAPPING_NAMES" for key in keys] or ["MODEL_MAPPING_NAMES"]
            for name in names:
                classes = getattr(modeling_auto, name, {}).get(model_type, ())
                for cls in [classes] if isinstance(classes, str) else classes:
                    if cls not in [c for _, c in found]:
                        found.append((task, cls))
        if not found:  # only in a mapping of another kind, such as backbones
            for name in sorted(vars(modeling_auto)):
                if not (name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES")):
                    continue
                classes = getattr(modeling_auto, name).get(model_type)
                if classes:
                    found.append(("base", classes if isinstance(classes, str) else classes[0]))
        main = _MAIN.get(model_type)
        if main:
            found.sort(key=lambda pair: pair[0] != main)
        if found:
            entries.append(Entry(model_type, tuple(found[:3])))
    return entries


def family(task: str, model: object) -> str:
    """The family of a model, from its task, its modules and what its forward takes."""
    import inspect

    kinds = {type(m).__name__ for m in model.modules()}  # type: ignore[attr-defined]
    taken = set(inspect.signature(model.forward).parameters)  # type: ignore[attr-defined]
    text, image = "input_ids" in taken, bool(taken & {"pixel_values", "pixel_values_videos"})
    audio = bool(taken & {"input_features", "input_values", "audio_values"})
    if task in ("multimodal", "zero-shot") or (text and (image or audio) and task != "speech"):
        return "multimodal"
    if task in ("speech", "audio") or audio:
        return "audio"
    if task == "seq2seq":
        return "encoder-decoder"
    if task == "vision" or image or {"hidden_states", "grid_thw"} <= taken:
        return "vision"
    if not text:
        return "other"
    if task in ("masked", "token"):
        return "encoder"
    if any(state in kind for kind in kinds for state in _STATES):
        return "SSM/hybrid"
    if any(expert in kind for kind in kinds for expert in _EXPERTS):
        return "MoE"
    if "decoder_input_ids" in taken:
        return "encoder-decoder"
    cached = "past_key_values" in taken
    return "standard text" if task == "causal" or cached else "encoder"
