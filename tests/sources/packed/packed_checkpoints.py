"""Tiny packed checkpoints: a Llama whose linear layers a library or its published layout packs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file


def require_library(name):
    """Skip where the library that makes a layout is not installed."""
    for library in ("bitsandbytes", "hqq", "torchao"):
        if name.startswith(library):
            pytest.importorskip(library)


def linears(tensors):
    """Names of the weights that quantizers pack: those of the layers, routers aside."""
    layers = [n for n, t in tensors.items() if ".layers." in n and t.ndim == 2]
    return [n for n in layers if not n.endswith(".gate.weight")]


def repacked(folder, destination, settings, pack):
    """A copy of a checkpoint whose linear weights are what `pack` makes of them.

    Args:
        pack: (module, float32 weight) → tensors by suffix, and the values that they stand for.

    Returns:
        the float32 state dict of those values.
    """
    shutil.copytree(folder, destination)
    tensors = load_file(destination / "model.safetensors")
    values = {n: t.float() for n, t in tensors.items()}
    for name in linears(tensors):
        module = name.removesuffix(".weight")
        parts, values[name] = pack(module, tensors.pop(name).float())
        tensors.update({f"{module}.{suffix}": part.contiguous() for suffix, part in parts.items()})
    header = {"format": "pt", **getattr(pack, "header", {})}
    save_file(tensors, destination / "model.safetensors", metadata=header)
    describe(destination, settings)
    return values


def describe(folder, settings):
    config = json.loads((folder / "config.json").read_text())
    if settings is None:
        config.pop("quantization_config", None)
    else:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))


def bitstream(codes, bits):
    """Codes [n, m] as words [n * bits / 32, m] of a little-endian stream down each column."""
    expanded = (codes.astype(np.uint8)[:, None, :] >> np.arange(bits, dtype=np.uint8)[:, None]) & 1
    octets = np.packbits(expanded.reshape(-1, codes.shape[1]), axis=0, bitorder="little")
    words = octets.T.copy().view("<i4").T
    return torch.from_numpy(np.ascontiguousarray(words))


def groupwise(weight, bits, group, symmetric, seed=0):
    """Codes, float16 scales and zero points [out, groups] of round-to-nearest."""
    grouped = weight.reshape(len(weight), -1, group)
    top = 2**bits - 1
    if symmetric:
        scales = (grouped.abs().amax(-1) / (top / 2)).half()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = ((high - low) / top).half()
        zeros = (-low / scales.float()).round().clamp(1, top).half()
    codes = (grouped / scales.float()[..., None] + zeros.float()[..., None]).round().clamp(0, top)
    return codes.reshape(weight.shape), scales, zeros


def gptq(bits, group, symmetric=True, order=None, version=1):
    def pack(module, weight):
        size = group if group > 0 else weight.shape[1]
        index = torch.arange(weight.shape[1]) // size
        if order == "activations":
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(3))]
            permutation = torch.argsort(index, stable=True)
            codes, scales, zeros = groupwise(weight[:, permutation], bits, size, symmetric)
            codes = codes[:, torch.argsort(permutation)]
        else:
            codes, scales, zeros = groupwise(weight, bits, size, symmetric)
        stored = zeros.T.numpy() - (1 if version == 1 else 0)
        parts = {
            "qweight": bitstream(codes.T.numpy(), bits),
            "qzeros": bitstream(stored.T, bits).T,
            "scales": scales.T,
            "g_idx": index.int(),
        }
        # AutoGPTQ: scales[g_idx] * (weight - zeros[g_idx]), in float16.
        half = scales.T[index] * (codes.T.half() - zeros.T[index])
        return parts, half.T.float()

    settings = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order is not None,
        "sym": symmetric, "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }  # fmt: skip
    return settings, pack


def awq(group=64):
    def words(codes):
        """AutoAWQ: nibble i of a word holds element [0, 2, 4, 6, 1, 3, 5, 7][i]."""
        eights = codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].int()
        packed = torch.zeros(eights.shape[:2], dtype=torch.int32)
        for i in range(8):
            packed |= eights[:, :, i] << (4 * i)
        return packed

    def pack(module, weight):
        codes, scales, zeros = groupwise(weight, 4, group, symmetric=False)
        parts = {"qweight": words(codes.T), "qzeros": words(zeros.T), "scales": scales.T}
        spread = [t.repeat_interleave(group, 1) for t in (scales, zeros)]
        return parts, ((codes.half() - spread[1]) * spread[0]).float()

    settings = {
        "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True,
        "version": "gemm",
    }  # fmt: skip
    return settings, pack


def compressed(form, weights, dtype=torch.bfloat16):
    """By the compressor of compressed-tensors itself, which also gives the values."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)

    def pack(module, weight):
        weight = weight.to(dtype)
        out = len(weight)
        state = {"weight": weight}
        grouped = {
            "group": lambda: weight.reshape(out, -1, args.group_size),
            "tensor_group": lambda: weight.reshape(out, -1, args.group_size),
            "channel": lambda: weight[:, None],
            "tensor": lambda: weight.reshape(1, 1, -1),
            "block": lambda: _blocks(weight, args.block_structure),
        }[str(args.strategy)]()
        factor = None
        if args.strategy == "tensor_group":
            factor = state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, factor)
        if args.strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        state |= {"weight_scale": scale, "weight_zero_point": zero}
        packed = compressor.compress(dict(state), scheme)
        value = compressor.decompress(dict(packed), scheme)["weight"]
        if args.symmetric:
            packed.pop("weight_zero_point", None)
        return packed, value.float()

    settings = {
        "quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}
        },
    }  # fmt: skip
    return settings, pack


def _blocks(weight, structure):
    rows, columns = structure
    out, width = weight.shape
    return weight.reshape(out // rows, rows, width // columns, columns).transpose(1, 2).flatten(2)


def fp8(block=(64, 32), powers=False):
    """DeepSeek's layout; values by transformers' own dequantization where that takes the blocks.

    It wants whole blocks.  Where the last ones are cut short, as DeepSeek's own kernel allows,
    each code is multiplied by the scale of its block.
    """
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    def pack(module, weight):
        out, width = weight.shape
        padded = torch.nn.functional.pad(weight, (0, -width % block[1], 0, -out % block[0]))
        scales = _blocks(padded, block).abs().amax(-1) / 448
        if powers:
            scales = torch.exp2(torch.ceil(torch.log2(scales)))
        spread = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        spread = spread[:out, :width]
        codes = (weight / spread).to(torch.float8_e4m3fn)
        if out % block[0] or width % block[1]:
            value = codes.float() * spread
        else:
            value = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
        return {"weight": codes, "weight_scale_inv": scales}, value

    return {"quant_method": "fp8", "weight_block_size": list(block)}, pack


def bitsandbytes(kind, nested=False):
    """By bitsandbytes' own kernels for the CPU, which also give the values."""
    from bitsandbytes import functional

    def four_bits(module, weight):
        packed, state = functional.quantize_4bit(
            weight.half(), blocksize=64, quant_type=kind, compress_statistics=nested
        )
        parts = {"weight": packed}
        for key, value in state.as_dict(packed=True).items():
            parts[f"weight.{key}"] = value
        state.dtype = torch.float32
        return parts, functional.dequantize_4bit(packed, state)

    def eight_bits(module, weight):
        largest = weight.abs().amax(1)
        codes = (weight * (127 / largest[:, None])).round().to(torch.int8)
        value = functional.int8_vectorwise_dequant(codes, largest)
        return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0).char()}, value

    settings = {
        "quant_method": "bitsandbytes", "load_in_4bit": kind != "int8",
        "load_in_8bit": kind == "int8", "bnb_4bit_quant_type": kind,
    }  # fmt: skip
    return settings, eight_bits if kind == "int8" else four_bits


def fbgemm():
    """FBGEMM's layout as transformers writes it: a scale for each output."""

    def pack(module, weight):
        scales = weight.abs().amax(1, keepdim=True) / 448
        codes = (weight / scales).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scales}, codes.float() * scales

    return {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, pack


def modelopt_fp8():
    """ModelOpt's FP8: a scale for the tensor, and one of activations that is left out."""

    def pack(module, weight):
        scale = weight.abs().max() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        parts = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}
        return parts, codes.float() * scale

    return {"quant_method": "modelopt", "quant_algo": "FP8"}, pack


def modelopt():
    """NVFP4 as ModelOpt lays it out; values in float32."""
    table = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def pack(module, weight):
        grouped = weight.reshape(len(weight), -1, 16)
        factor = weight.abs().max() / (6 * 448)
        scales = (grouped.abs().amax(-1) / 6 / factor).to(torch.float8_e4m3fn)
        spread = (scales.float() * factor)[..., None]
        signed = (grouped / spread)[..., None]
        codes = (signed.abs() - table).abs().argmin(-1)
        value = table[codes] * signed[..., 0].sign() * spread
        codes = (codes + 8 * (signed[..., 0] < 0)).reshape(weight.shape).to(torch.uint8)
        packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
        parts = {"weight": packed, "weight_scale": scales, "weight_scale_2": factor}
        return parts, value.reshape(weight.shape)

    return {"quant_method": "modelopt", "quant_algo": "NVFP4"}, pack


def hqq(bits, group, axis=1, dtype=torch.float16, optimize=True):
    """By HQQ itself, on a CPU; also the values, in the dtype that it computes in."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def pack(module, weight):
        linear = torch.nn.Linear(*weight.shape[::-1], bias=False)
        linear.weight.data = weight.to(dtype)
        options = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
        options["weight_quant_params"]["optimize"] = optimize
        packed = HQQLinear(linear, options, compute_dtype=dtype, device="cpu")
        return packed.state_dict(), packed.dequantize().float()

    return {"quant_method": "hqq", "quant_config": {}}, pack


def torchao(make, dtype=torch.bfloat16):
    """By torchao's own classes, on a CPU; what its safetensors support puts in the header too."""

    def pack(module, weight):
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
        from torchao.quantization import quantize_

        linear = torch.nn.Linear(*weight.shape[::-1], bias=False)
        linear.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        quantize_(linear, make())
        name = f"{module}.weight"
        tensors, header = flatten_tensor_state_dict({name: linear.weight.data})
        header.pop("tensor_names")
        pack.header.update(header)
        parts = {n.removeprefix(f"{module}."): t for n, t in tensors.items()}
        return parts, linear.weight.dequantize().float()

    pack.header = {}
    return {"quant_method": "torchao"}, pack
