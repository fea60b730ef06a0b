"""What a torch pickle describes, read without running any of it.

A pickle is a program for a stack machine that calls functions by name.  The machine here knows the
instructions that torch writes and answers each of the few names that a state dict needs by a
stand-in that only records shapes and strides; every other instruction or name ends the reading.  So
nothing that a file says is ever imported or called, and torch itself is not needed.  `pickle`
itself is not used: its BUILD sets attributes on whatever is on the stack, functions and classes
of this process included, and its memo is an array as long as the file asks for.

The set of names follows `torch.load(weights_only=True)`
(https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only); the instructions are
those of https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2mlx.dtypes import DTYPES, DType
from torch2mlx.errors import SourceError

__all__ = ["StoredTensor", "read_pickle"]

# Instructions of a file; each can leave one object of some 64 bytes.  A tensor takes about thirty.
_MOST_INSTRUCTIONS = 3_000_000
_MOST_AXES = 64  # torch's own limit


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
        or len(shape) > _MOST_AXES
        or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
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


def _listed(values: Any = ()) -> tuple[Any, ...]:
    """torch.Size, or a set: what the elements are, not how they are found."""
    return tuple(values)


def _inert(*_ignored: Any) -> None:
    """Stands for a value that no tensor depends on, such as a device."""


def _mapping(items: Any = (), *_ignored: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        _put(result, key, value)
    return result


def _empty(*_ignored: Any) -> dict[Any, Any]:
    return {}


def _encode(text: Any, _encoding: Any = None) -> bytes:
    if not isinstance(text, str):
        raise _RefusedError("it encodes something that is no text")
    return text.encode("latin-1", errors="replace")


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _listed,
    ("torch", "device"): _inert,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("collections", "defaultdict"): _empty,
    ("builtins", "set"): _listed,
    ("__builtin__", "set"): _listed,
    ("_codecs", "encode"): _encode,
}


def _named(module: str, name: str) -> Any:
    """What a name of the file stands for: a function of the table, a dtype or a storage class."""
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
    shown = f"{module}.{name}"
    raise _RefusedError(
        f"its pickle names {shown if shown.isprintable() else ascii(shown)}, which is not part of "
        "a state dict; nothing was run. Save tensors alone: torch.save(model.state_dict(), path), "
        "or use safetensors"
    )


def _stored(saved: Any) -> _Storage:
    """The storage that a persistent id describes."""
    try:
        kind, storage_type, key, _location, _count = saved
    except (TypeError, ValueError):
        kind = storage_type = key = None
    if kind != "storage" or not isinstance(storage_type, _Name) or not isinstance(key, str):
        raise _RefusedError("it refers to a storage in a way that torch does not write")
    if storage_type.name in ("UntypedStorage", "TypedStorage"):
        return _Storage(key, None)
    if storage_type.name not in _STORAGE_DTYPES:
        raise _RefusedError(f"a tensor is stored as {storage_type.name}, which is not supported")
    return _Storage(key, DTYPES[_STORAGE_DTYPES[storage_type.name]])


def _put(target: Any, key: Any, value: Any) -> None:
    if not isinstance(target, dict):
        raise _RefusedError("it puts an item into something that is no dict")
    # Hashing walks into tuples without end; a state dict has plain keys.
    if key is not None and not isinstance(key, str | int | float | bytes):
        raise _RefusedError(f"a dict in it has a {type(key).__name__} as key; expected names")
    target[key] = value


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "BININT BININT1 BININT2 INT LONG LONG1 BINFLOAT FLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_IGNORED = frozenset({"PROTO", "FRAME"})
_MARK = object()


class _Machine:
    """The stack and the memo of a pickle, and what its instructions do to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MOST_INSTRUCTIONS:
                raise _RefusedError(
                    f"its pickle has more than {_MOST_INSTRUCTIONS:,} instructions; save the "
                    "weights alone: torch.save(model.state_dict(), path)"
                )
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise _RefusedError("its pickle has no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _PUTS:
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self.memo[int(argument)])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(self.take(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "LIST":
            stack.append(self.since_mark())
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "APPEND":
            self.extend([stack.pop()])
        elif name in ("APPENDS", "ADDITEMS"):
            self.extend(self.since_mark())
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "DICT":
            values = self.since_mark()
            stack.append({})
            self.items(values)
        elif name == "SETITEM":
            self.items(self.take(2))
        elif name == "SETITEMS":
            self.items(self.since_mark())
        elif name == "GLOBAL":
            stack.append(_named(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = self.take(2)
            stack.append(_named(str(module), str(attribute)))
        elif name == "BINPERSID":
            stack.append(_stored(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            self.call()
        elif name == "BUILD":
            stack.pop()  # attributes of a container, such as a state dict's _metadata
        elif name == "POP":
            stack.pop()
        elif name not in _IGNORED:
            raise _RefusedError(f"its pickle has an instruction that torch does not write: {name}")

    def take(self, count: int) -> list[Any]:
        """The last `count` values, taken off the stack."""
        values = self.stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise _RefusedError("its pickle takes values that are not there")
        del self.stack[-count:]
        return values

    def since_mark(self) -> list[Any]:
        """The values after the last mark; both are taken off the stack."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _RefusedError("it appends to something that is no list")
        target.extend(values)

    def items(self, values: list[Any]) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            _put(self.stack[-1], key, value)

    def call(self) -> None:
        function, arguments = self.take(2)
        if function not in _FUNCTIONS.values() or not isinstance(arguments, tuple):
            raise _RefusedError("it calls something that is not part of a state dict")
        self.stack.append(function(*arguments))


def read_pickle(path: Path, data: bytes) -> Any:
    """The object a torch pickle describes, with a `StoredTensor` for each tensor.

    Raises:
        SourceError: it is damaged, or names something other than tensors and plain containers.
    """
    try:
        return _Machine().run(data)
    except _RefusedError as error:
        raise SourceError(f"{path}: not read: {error}") from None
    except Exception as error:
        # Damaged pickles end in any exception; none of them comes from code of the file.
        raise SourceError(
            f"{path}: its pickle is damaged: {type(error).__name__}: {str(error)[:200]}"
        ) from None
