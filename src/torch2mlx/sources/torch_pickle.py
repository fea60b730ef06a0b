"""What a torch pickle describes, read without running any of it.

A torch file's data.pkl calls functions by name to rebuild tensors.  Here each of the few names
that a state dict needs is answered by a stand-in that only records shapes and strides; every
other name ends the reading.  So nothing that a file says is ever imported or called, and torch
itself is not needed (same rule as `torch.load(weights_only=True)`, which it follows in the set of
names, docs: https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only).
"""

from __future__ import annotations

import collections
import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.errors import SourceError

__all__ = ["StoredTensor", "read_pickle"]


@dataclass(frozen=True)
class _Storage:
    """A run of bytes in the archive; `dtype` is None where only its tensors know theirs."""

    key: str
    dtype: DType | None


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage.

    Attributes:
        key: of the storage in the archive.
        dtype: of the elements.
        offset, shape, stride: in elements.
    """

    key: str
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """Something harmless that a pickle names: a dtype, a storage class, a tensor class."""

    module: str
    name: str


class _RefusedError(Exception):
    """The reason why a pickle is not read further."""


_STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
_BY_TORCH = {dtype.torch_name: dtype for dtype in DTYPES.values()}


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: DType | None
) -> StoredTensor:
    dtype = dtype or (storage.dtype if isinstance(storage, _Storage) else None)
    numbers = (offset, *shape, *stride)
    if (
        not isinstance(storage, _Storage)
        or dtype is None
        or len(shape) != len(stride)
        or not all(type(n) is int and n >= 0 for n in numbers)
    ):
        raise _RefusedError("a tensor is described in a way that torch does not write")
    return StoredTensor(storage.key, dtype, offset, tuple(shape), tuple(stride))


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    return _tensor(storage, offset, shape, stride, None)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, flags: Any = None
) -> StoredTensor:
    if isinstance(flags, dict) and any(flags.values()):
        raise _RefusedError("a tensor is a lazy conjugate or negative; resolve it before saving")
    return _tensor(storage, offset, shape, stride, None)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    if not isinstance(dtype, _Name) or dtype.name not in _BY_TORCH:
        raise _RefusedError(
            f"a tensor has dtype torch.{getattr(dtype, 'name', dtype)}, not supported"
        )
    return _tensor(storage, offset, shape, stride, _BY_TORCH[dtype.name])


def _rebuild_parameter(data: Any, *_ignored: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    if function not in (_rebuild_tensor, _rebuild_tensor_v2, _rebuild_tensor_v3):
        raise _RefusedError("a tensor subclass is described in a way that is not supported")
    return function(*args)


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _inert(*_ignored: Any) -> None:
    """Stands for a value that no tensor depends on, such as a device."""


def _encode(text: Any, _encoding: Any = None) -> bytes:
    return str(text).encode("latin-1", errors="replace")


_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _size,
    ("torch", "device"): _inert,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): collections.Counter,
    ("collections", "defaultdict"): lambda *_ignored: {},
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Answers the names of `_FUNCTIONS` and of dtypes and storages; refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage"):
            return _Name(module, name)
        if module == "torch" and (name in _BY_TORCH or name.startswith(("float", "complex"))):
            return _Name(module, name)
        if (module, name) in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
            return _Name(module, name)
        if module == "torch._utils" and name.startswith("_rebuild"):
            raise _RefusedError(
                f"it holds a tensor of a kind that is not supported ({module}.{name}); save plain "
                "dense tensors"
            )
        raise _RefusedError(
            f"its pickle names {module}.{name}, which is not part of a state dict; nothing was "
            "run. Save tensors alone: torch.save(model.state_dict(), path), or use safetensors"
        )

    def persistent_load(self, saved: Any) -> _Storage:
        try:
            kind, storage_type, key, _location, _count = saved
        except (TypeError, ValueError):
            kind = storage_type = key = None
        if kind != "storage" or not isinstance(storage_type, _Name) or not isinstance(key, str):
            raise _RefusedError("it refers to a storage in a way that torch does not write")
        if storage_type.name in ("UntypedStorage", "TypedStorage"):
            return _Storage(key, None)
        if storage_type.name not in _STORAGE_DTYPES:
            raise _RefusedError(
                f"a tensor is stored as {storage_type.name}, which is not supported"
            )
        return _Storage(key, DTYPES[_STORAGE_DTYPES[storage_type.name]])


def read_pickle(path: Path, data: bytes) -> Any:
    """The object a torch pickle describes, with a `StoredTensor` for each tensor.

    Raises:
        SourceError: it is damaged, or names something other than tensors and plain containers.
    """
    try:
        return _Unpickler(io.BytesIO(data), encoding="utf-8").load()
    except _RefusedError as error:
        raise SourceError(f"{path}: not read: {error}") from None
    except Exception as error:
        # Damaged pickles end in any exception; none of them comes from code of the file.
        raise SourceError(f"{path}: its pickle is damaged: {error}") from None
