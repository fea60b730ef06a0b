"""The page of sources: what is read, and what was compared with what.

    python tests/sources/sources_page.py        write docs/sources.md

The rows of packed checkpoints and adapters come from the tables that the tests run over; each other
row names the test that proves it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "sources.md"


def _names(file: str, table: str) -> list[str]:
    """Names in a table that the tests run over."""
    for node in ast.parse((HERE / file).read_text()).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        target = node.targets[0] if isinstance(node, ast.Assign) else target
        if isinstance(target, ast.Name) and target.id == table:
            return [key.value for key in node.value.keys]
    raise LookupError(f"{file} has no {table}")


_CONVERSIONS = "test_conversions.py::test_a_kind_passes_the_gate"


# what, read from, compared with, file and name of the test
ROWS = {
    "Checkpoints of Hugging Face": [
        ("safetensors, one file or shards", "config.json, index", "safetensors, what was saved",
         "test_safetensors.py::test_rows_of_every_dtype_are_the_saved_bits"),
        ("torch zip files (.bin, .pt, .pth, .ckpt)", "config.json, index", "torch.load",
         "test_torch_zip.py::test_every_dtype"),
        ("checkpoints of trainers (Lightning's .ckpt): one prefix more before every name",
         "config.json", "mlx-lm's port of the checkpoint without it",
         "test_prefix.py::test_lightnings_checkpoint_goes_through_mlx_lms_port"),
        ("GGUF", "its metadata", "gguf's dequantization", "test_gguf.py::test_block_types_by_rows"),
        ("quantized MLX folders", "config.json", "mx.dequantize",
         "test_quantized.py::test_values_are_what_mlx_dequantizes"),
        ("tokenizer.model (SentencePiece) or vocab.json with merges.txt, without tokenizer.json",
         "tokenizer_config.json", "transformers: ids, text, chat templates",
         "../packaging/test_tokenizer_json.py::test_it_is_built_and_tokenizes_alike"),
    ],
    "Original releases": [
        ("Llama, `consolidated.*.pth` of 1, 2 and 8 ranks", "params.json",
         "the state that transformers has",
         "original/test_original.py::test_ranks_are_joined_and_heads_ordered"),
        ("Mistral, `consolidated.safetensors`", "params.json", "the state that transformers has",
         "original/test_original.py::test_a_mistral_release_converts_with_its_tokenizer"),
        ("Mixtral, `consolidated.*.pt`, fused experts", "params.json",
         "the state that transformers has",
         "original/test_original.py::test_mixtral_of_fused_experts"),
        ("Whisper, OpenAI's `.pt`", "`dims` in the file",
         "the state that transformers has; outputs of OpenAI's model within 1e-4",
         "original/test_whisper.py::test_the_state_and_settings_are_those_of_transformers"),
        ("tokenizer.model (SentencePiece)", "the file", "sentencepiece, ids and text",
         "original/test_tokenizer.py::test_sentencepiece_of_mistral"),
        ("tokenizer.model (tiktoken, Llama 3)", "the file", "tiktoken, ids and text",
         "original/test_tokenizer.py::test_tiktoken_of_llama_3"),
        ("tekken.json", "the file", "mistral-common, ids and text",
         "original/test_tokenizer.py::test_tekken"),
    ],
    "Pipelines of diffusers": [
        ("folders: Stable Diffusion 1.x, 2.x, XL, 3, Flux", "model_index.json",
         "outputs of every model in PyTorch, within 1e-4",
         "../compiler/diffusion/test_pipelines.py::test_every_model_of_a_pipeline_equals_pytorch"),
        ("single files (.safetensors, .ckpt) of the same",
         "configs beside the file; built in for 1.x, 2.x, XL",
         "the pipeline that was saved, and what `from_single_file` of diffusers reads",
         "../compiler/diffusion/test_single_file.py::test_every_model_has_its_weights"),
    ],
    "Speech": [
        ("VITS, folders of transformers", "config.json",
         "`VitsModel.forward` with the same noise, within 1e-4",
         "../compiler/speech/test_vits.py::test_a_checkpoint_converts_as_a_whole"),
        ("FastSpeech 2, alone and with a HiFi-GAN, folders of transformers", "config.json",
         "the model's own `forward`, within 1e-4",
         "../compiler/speech/test_fastspeech2.py::test_a_checkpoint_converts_as_a_whole"),
        ("Kokoro's release, for mlx-audio", "config.json",
         "every tensor; kokoro's `KModel` stage by stage, within 1e-4 (source: 1e-3)",
         "../audio/test_kokoro.py::test_a_release_becomes_a_folder_of_mlx_audio"),
    ],
    "The way back": [
        ("written files of: AWQ, packed experts, fp8 experts, nf4, Llama of 4 ranks, fused Mixtral",
         "the plan of the conversion",
         "every tensor of the source, from the written files (of a release: of each rank's file)",
         "test_way_back.py::test_every_tensor_comes_back_from_the_written_files"),
        ("experts that GPTQ packed", "the plan of the conversion", "the values packed",
         "packed/test_way_back.py::test_every_tensor_of_stacked_packed_experts_comes_back"),
    ],
    "Experts": [
        ("fused, as concatenated or in turns, transposed or not", "shapes, `--expert-layout`",
         "the state that transformers saves",
         "test_experts.py::test_fused_experts_become_those_of_the_family"),
        (f"each of {', '.join(_names('test_expert_families.py', 'FUSED'))}",
         "config.json, `--expert-layout`",
         "the state that transformers saves, and the checkpoint again by the inverse mapping",
         "test_expert_families.py::test_a_family_is_drawn_split_and_carried_back"),
        ("gpt-oss with experts of other layouts", "`--expert-layout`", "torch",
         "test_experts.py::test_gpt_oss_of_other_layouts"),
    ],
}  # fmt: skip
GATED = {
    "every layout of the table of packed checkpoints, with `-q` where codes are kept": _CONVERSIONS,
    **dict.fromkeys(_names("test_conversions.py", "OTHERS"), _CONVERSIONS),
    "DeepSeek-V3 with fp8 experts in blocks that are cut short, `-q`": (
        "packed/test_packed.py::test_fp8_experts_of_odd_sizes_pass_the_gate"
    ),
    "gpt-oss in MXFP4, `-q`": "packed/test_packed.py::test_gpt_oss_experts_keep_their_blocks",
    "LoRA of PEFT, `-q`": (
        "adapters/test_adapters.py::test_an_adapters_folder_converts_with_its_base"
    ),
    "Mistral's release, `-q`": (
        "original/test_original.py::test_a_mistral_release_converts_with_its_tokenizer"
    ),
    "OpenAI's Whisper file": (
        "original/test_whisper.py::test_it_converts_and_writes_the_tokens_that_transformers_does"
    ),
    "a `.ckpt` of each of Stable Diffusion 1.x, Stable Diffusion 3, Flux": (
        "../compiler/diffusion/test_single_file.py::test_a_single_file_converts"
    ),
    "the families of experts in another layout (`--expert-layout`)": (
        "test_expert_families.py::test_another_layout_passes_the_gate"
    ),
    "Mixtral with fused experts in turns, `-q`": (
        "test_experts.py::test_a_fused_mixtral_passes_the_gate"
    ),
}
_TEXT = """# Sources

Written by `python tests/sources/sources_page.py` from the tests; do not edit.

What torch2mlx reads beside plain checkpoints, and what its tests compare every tensor with. "Equal"
is bit for bit: of packed weights the float32 values, rounded to the dtype in which the library
computes; of tokenizers the ids of 21 texts. What a source does not fit is refused, with the names
of the tensors concerned; what is not in these tables is refused as unknown.
"""
_GATE = """## Converted and compared with PyTorch

These fabricated checkpoints go through `convert` with all of its proofs; of the kinds of
`tests/sources/test_conversions.py`, the logits of what was written, loaded by mlx-lm, are compared
with those of the library that made the source as well:

"""
_PACKED = """## Packed checkpoints

`quant_method` in config.json names the method; `quantize_config.json`, `quant_config.json` and
`hf_quant_config.json` beside it are read as well. With `-q` alone, codes stay as they are where the
last column names a format of MLX, which has exactly these values; scales and zero points decide
that. Otherwise, and without `-q`, weights are dequantized; so are those of GPTQ whose groups are
made in the order of activations (`desc_act`), with a note, as MLX groups neighbours. Scales of
activations are left out, with a note.

Of every layout, scales that are missing or of another shape are refused with the name of the weight
(`tests/sources/packed/test_malformed.py`). HQQ takes most zero points away in its own dtype, which
rounds, so no format of MLX has these values. Of torchao, safetensors files of Int8Tensor,
IntxUnpackedToInt8Tensor and Float8Tensor are read, others (Int4Tensor ...) refused by name. The
rows of both are compared where their libraries are (`pip install -e '.[test,packers]'`).

AQLM, EETQ, HIGGS, Quanto, SpQR, VPTQ and sparse compressed-tensors are refused by name: dequantize
them with their own library.

| layout | equal to | values in | kept as |
|---|---|---|---|
"""
_ADAPTERS = """## Adapters

`--adapter`, or a folder that is an adapter and names its base. Merged weights equal those of
`merge_and_unload` (PEFT, in float32) within 2e-6 relative and of `fuse` (mlx-lm) within 2e-5;
products are formed in float64 here.

| adapter | compared with |
|---|---|
"""


def _packed() -> Iterator[str]:
    sys.path.insert(0, str(HERE / "packed"))
    from test_packed import FORMATS

    libraries = {
        "gptq": "AutoGPTQ's formula", "awq": "AutoAWQ's formula", "modelopt nvfp4": "ModelOpt",
        "modelopt": "ModelOpt's formula", "fbgemm": "FBGEMM's formula",
        "fp8 blocks, the last": "DeepSeek's formula",
        "fp8": "transformers", "bitsandbytes": "bitsandbytes, on a CPU",
        "hqq": "HQQ", "torchao": "torchao",
    }  # fmt: skip
    for name, (_, dtype, scheme) in FORMATS.items():
        first = next((library for key, library in libraries.items() if name.startswith(key)), None)
        kept = "dequantized" if scheme is None else str(scheme)
        yield (
            f"| {name} | {first or 'compressed-tensors'} | {str(dtype).removeprefix('torch.')} | "
            f"{kept} |"
        )
    yield "| mxfp4 experts (gpt-oss) | transformers | bfloat16 | mxfp4, groups of 32 |"


def _adapters() -> Iterator[str]:
    sys.path[:0] = [str(HERE / "adapters"), str(HERE.parent / "tiny")]
    from test_adapters import VARIANTS

    for name, options in VARIANTS.items():
        shown = ", ".join(f"{k}={v}" for k, v in options.items()) or "the defaults"
        yield f"| PEFT, {name}: {shown} | PEFT |"
    for kind in ("lora", "dora"):
        yield f"| mlx-lm, {kind} | mlx-lm |"


_MEMORY = """## Memory

`python benchmarks/sources.py FOLDER` converts a Llama of 8 ranks (8.31 GB, to 4 bits) and one of
8-bit packed integers (8.68 GB, codes kept) with the default `--memory-limit 1GB`, without the
comparison with PyTorch. Resident memory grew by 42 MB and 52 MB above the imports, sampled every
20 ms.

"""
_FAMILIES = """## Families beyond language models

Pipelines of diffusers, generating encoder-decoders (Whisper, T5 ...) and speech models
([speech.md](speech.md)) convert as folders or files, and so do encoders, classifiers and
detectors of transformers ([encoders.md](encoders.md)). What is left, a program builds, with its
own library's `from_pretrained`, and `torch2mlx convert package.module:factory` compiles it. Either
way the result needs MLX alone (`model.py` loads it) and is no folder of mlx-whisper, mlx-vlm or
another library, but for Kokoro's, which mlx-audio loads.
Compared with PyTorch on tiny random models, relative L2 error at most 1e-4:

"""
_OTHERS = """
[diffusion.md](diffusion.md) has Stable Diffusion's parts and other models of diffusers, and
[coverage.md](coverage.md) says of every type of transformers whether it compiles. Weights that are
kept as direction and length (`weight_norm`) are written as one tensor; the two biases of an LSTM
stay two, under their names in PyTorch: each is the constant of one `mx.addmm`, so their sum would
save no operation, it would round in half types, and neither could be carried back from it.
"""


def _families() -> Iterator[str]:
    sys.path.insert(0, str(HERE.parent / "compiler"))
    from test_families import FAMILIES

    return (f"- {name}" for name in FAMILIES)


def page() -> str:
    """The text of docs/sources.md."""
    parts = [_TEXT]
    for title, rows in ROWS.items():
        parts.append(f"## {title}\n\n| source | described by | equal to |\n|---|---|---|")
        parts.append("\n".join(f"| {a} | {b} | {c} |" for a, b, c, _ in rows) + "\n")
    parts += [_PACKED + "\n".join(_packed()) + "\n", _ADAPTERS + "\n".join(_adapters()) + "\n"]
    parts.append(_GATE + "\n".join(f"- {name}" for name in GATED) + "\n")
    parts += [_MEMORY + _FAMILIES + "\n".join(_families()) + "\n" + _OTHERS]
    return "\n".join(parts)


def tests_named() -> set[tuple[Path, str]]:
    """File and name of every test that a row stands on."""
    named = [row[3] for rows in ROWS.values() for row in rows] + list(GATED.values())
    return {(HERE / n.partition("::")[0], n.partition("::")[2]) for n in named}


def functions(file: Path) -> set[str]:
    """Names of the functions of a file."""
    return {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)}


if __name__ == "__main__":
    PAGE.write_text(page())
