"""How a weight matrix is stored in few bits: MLX's own formats and the tensors they consist of.

A weight `[..., out, in]` is cut into groups of `group_size` consecutive elements of a row.
In mode "affine" an element is `scale * q + bias` with an unsigned integer q of `bits` bits;
in the modes "mxfp4", "mxfp8" (OCP microscaling) and "nvfp4" it is a small float times the
scale of its group.  Codes are packed from the lowest bit up into 32-bit words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.errors import OptionError

__all__ = ["MODES", "QUANTIZABLE_DTYPES", "ModeFormat", "Scheme"]

QUANTIZABLE_DTYPES = ("BF16", "F16", "F32")
"""Names of the dtypes that `mx.quantize` takes."""


@dataclass(frozen=True)
class ModeFormat:
    """What a mode allows.

    Attributes:
        bits, group_sizes: allowed values.
        default: (bits, group size) where the user names neither, as mlx-lm chooses.
        affine: True where scales (and biases) have the weight's dtype, False where a scale
            is one byte and there is no bias.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    default: tuple[int, int]
    affine: bool = False


# MLX also packs 1-bit affine weights; round-to-nearest makes nothing usable of them.
MODES: dict[str, ModeFormat] = {
    "affine": ModeFormat((2, 3, 4, 5, 6, 8), (32, 64, 128), (4, 64), affine=True),
    "mxfp4": ModeFormat((4,), (32,), (4, 32)),
    "nvfp4": ModeFormat((4,), (16,), (4, 16)),
    "mxfp8": ModeFormat((8,), (32,), (8, 32)),
}


@dataclass(frozen=True)
class Scheme:
    """A quantization format: bits an element, elements a group, and MLX's mode.

    Raises:
        OptionError: MLX has no such combination; the message lists what it has.
    """

    bits: int
    group_size: int
    mode: str = "affine"

    def __post_init__(self) -> None:
        form = _format(self.mode)
        for name, value, allowed in (
            ("bits", self.bits, form.bits),
            ("group size", self.group_size, form.group_sizes),
        ):
            if value not in allowed:
                raise OptionError(
                    f"quantization mode '{self.mode}': {name} must be {_one_of(allowed)}, "
                    f"not {value}."
                )

    @classmethod
    def resolve(cls, bits: int | None, group_size: int | None, mode: str = "affine") -> Scheme:
        """The scheme of a user's options; None means the mode's default, as in mlx-lm.

        Raises:
            OptionError: unknown mode, or a value that the mode does not allow.
        """
        default_bits, default_group = _format(mode).default
        return cls(
            default_bits if bits is None else bits,
            default_group if group_size is None else group_size,
            mode,
        )

    def __str__(self) -> str:
        if self.affine:
            return f"{self.bits}-bit affine, groups of {self.group_size}"
        return f"{self.mode}, groups of {self.group_size}"

    @property
    def affine(self) -> bool:
        """True where a group has a scale and a bias in the weight's dtype."""
        return MODES[self.mode].affine

    def bits_per_weight(self, dtype: DType) -> float:
        """Stored bits for each weight, scales and biases included.

        Args:
            dtype: dtype of the weight before quantization, hence of affine scales and biases.
        """
        overhead = 2 * 8 * dtype.itemsize if self.affine else 8
        return float(self.bits + Fraction(overhead, self.group_size))

    def to_config(self) -> dict[str, int | str]:
        """The entry of config.json's `quantization`, with mlx-lm's keys in its order."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def divides(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape can be stored so: a matrix (or a stack of matrices)
        whose rows are whole groups.
        """
        return len(shape) >= 2 and prod(shape) > 0 and shape[-1] % self.group_size == 0

    def layout(
        self, shape: Sequence[int], dtype: DType
    ) -> dict[str, tuple[DType, tuple[int, ...]]]:
        """The tensors that a weight becomes, by the suffix of their name, in MLX's order.

        Args:
            shape: `[..., out, in]`.
            dtype: dtype of the weight; scales and biases of mode "affine" keep it.

        Returns:
            "weight": U32 `[..., out, in * bits / 32]`;
            "scales" and, for mode "affine", "biases": `[..., out, in / group_size]` in `dtype`
            (U8 scales in the other modes).

        Raises:
            OptionError: the rows are no whole groups, or `dtype` is not BF16, F16 or F32.
        """
        self.require(shape, dtype)
        *rows, width = shape
        groups = (*rows, width // self.group_size)
        packed = (DTYPES["U32"], (*rows, width * self.bits // 32))
        if not self.affine:
            return {"weight": packed, "scales": (DTYPES["U8"], groups)}
        return {"weight": packed, "scales": (dtype, groups), "biases": (dtype, groups)}

    def require(self, shape: Sequence[int], dtype: DType) -> None:
        """Raise OptionError where a weight of this shape and dtype cannot be stored so."""
        if not self.divides(shape):
            raise OptionError(
                f"a weight of shape {tuple(shape)} cannot be quantized to {self}: it must have "
                f"two or more dimensions and a last one divisible by {self.group_size}. Choose "
                "another group size or keep it unquantized."
            )
        if dtype.name not in QUANTIZABLE_DTYPES:
            raise OptionError(
                f"a {dtype.name} weight cannot be quantized: MLX takes "
                f"{_one_of(QUANTIZABLE_DTYPES)}. Convert it with --dtype first."
            )


def _format(mode: str) -> ModeFormat:
    if mode not in MODES:
        raise OptionError(f"quantization mode must be {_one_of(tuple(MODES))}, not '{mode}'.")
    return MODES[mode]


def _one_of(values: Sequence[int | str]) -> str:
    names = [str(v) for v in values]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
