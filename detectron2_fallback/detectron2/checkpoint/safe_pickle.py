"""Read pickles that strangers wrote: arrays, tensors and plain containers, and nothing else.

A pickle is a program.  The readers here answer each global that it names with a stand-in of our own, so that
no function of any library runs with arguments chosen by the file; numpy arrays are rebuilt from their bytes
after type and size have been checked.

Source: project choice.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
import torch

__all__ = ["SafeUnpickler", "load_pickle", "to_plain", "torch_safe_globals"]

_MAX_DEPTH = 100
_SCALARS = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic)
_NUMERIC_TYPE = re.compile(r"[?biufcSU]\d{0,9}")


class _Leaf:
    """A finished value inside a half-read pickle; refuses every later change by the file."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change a finished value")


class _DType(_Leaf):
    """Stand-in for ``numpy.dtype``: booleans, numbers and strings, never Python objects or records."""

    __slots__ = ()

    def __init__(self, name: str | bytes, align: Any = False, copy: Any = True) -> None:
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not _NUMERIC_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"arrays of type {name!r} are not allowed")
        super().__init__(np.dtype(name))

    def __setstate__(self, state: Any) -> None:
        """Accept the byte order of ``(version, order, subarray, names, fields, ...)``, refuse the rest."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("arrays of records are not allowed")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"unknown byte order {order!r}")
        if order in "<>":
            self.value = self.value.newbyteorder(order)


class _Array(_Leaf):
    """Stand-in for an array that is created empty and filled by ``__setstate__``."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(np.zeros(0, dtype=np.float32))

    def __setstate__(self, state: Any) -> None:
        """Fill from ``(version, shape, dtype, fortran order, bytes)``; the version may be absent."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("unknown state of a numpy array")
        shape, dtype, fortran, raw = state[-4:]
        self.value = _array_from_bytes(raw, dtype, shape, "F" if fortran else "C")


class _Callable:
    """What a global in the file becomes: can be called, cannot be altered."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change a function")


_NDARRAY = _Callable(lambda *_: _refuse("numpy.ndarray called directly"))


def _refuse(what: str) -> Any:
    raise pickle.UnpicklingError(f"not allowed in a checkpoint: {what}")


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)


def _array_from_bytes(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """Native-endian copy of ``raw`` as an array; raises UnpicklingError when sizes or types are wrong."""
    if isinstance(raw, str):  # Python 2 wrote byte strings, read as latin-1
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _DType):
        _refuse("an array that does not hold plain numbers")
    if not _is_shape(shape) or order not in ("C", "F"):
        _refuse(f"an array of shape {shape!r}")
    kind: np.dtype = dtype.value
    if math.prod(shape) * kind.itemsize != len(raw) or kind.itemsize == 0:
        _refuse(f"an array of shape {shape} and type {kind} in {len(raw)} bytes")
    if not raw:
        return np.zeros(shape, dtype=kind.newbyteorder("="))
    flat = np.frombuffer(bytes(raw), dtype=kind).astype(kind.newbyteorder("="))
    return flat.reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(subtype: Any, *_: Any) -> _Array:
    return _Array() if subtype is _NDARRAY else _refuse("a subclass of numpy.ndarray")


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Leaf:
    return _Leaf(_array_from_bytes(raw, dtype, shape, order))


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    return _array_from_bytes(raw, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """``_codecs.encode``, by which Python 3 writes bytes in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        _refuse(f"text in encoding {encoding!r}")
    return text.encode("latin-1")


def _byte_string(kind: type) -> Callable[..., Any]:
    """``bytes`` or ``bytearray`` without the integer argument that would claim memory."""

    def build(data: Any = b"", encoding: Any = "latin-1") -> Any:
        return kind(data if isinstance(data, bytes | bytearray) else _encode(data, encoding))

    return build


def _storage(raw: Any) -> _Leaf:
    """``torch.storage._load_from_bytes``: a tensor pickled without torch.save carries a small torch file."""
    if not isinstance(raw, bytes):
        _refuse("a tensor without bytes")
    return _Leaf(torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Leaf:
    if not isinstance(storage, _Leaf) or not isinstance(storage.value, torch.TypedStorage):
        _refuse("a tensor without storage")
    if not (_is_shape((offset,)) and _is_shape(size) and _is_shape(stride) and len(size) == len(stride)):
        _refuse(f"a tensor of size {size!r}, stride {stride!r} and offset {offset!r}")
    # PyTorch would enlarge a storage that is too small, with whatever is in memory.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = storage.value._untyped_storage.nbytes() // storage.value.dtype.itemsize
    if 0 not in size and last >= count:
        _refuse(f"a tensor of size {size}, stride {stride} and offset {offset} in {count} elements")
    return _Leaf(torch._utils._rebuild_tensor(storage.value, offset, size, stride))


def _parameter(data: Any, *_: Any) -> _Leaf:
    return data if isinstance(data, _Leaf) else _refuse("a parameter without tensor")


def _global_table() -> dict[tuple[str, str], Callable[..., Any]]:
    table: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    }
    for builtins in ("builtins", "__builtin__"):
        table[builtins, "set"] = set
        table[builtins, "frozenset"] = frozenset
        table[builtins, "complex"] = complex
        table[builtins, "bytes"] = _byte_string(bytes)
        table[builtins, "bytearray"] = _byte_string(bytearray)
    return {**table, **_numpy_table()}


def _numpy_table() -> dict[tuple[str, str], Callable[..., Any]]:
    table: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _DType,
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        table[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        table[f"{core}.multiarray", "scalar"] = _scalar
        table[f"{core}.numeric", "_frombuffer"] = _frombuffer
    return table


_GLOBALS = {
    key: function if isinstance(function, _Callable) else _Callable(function)
    for key, function in _global_table().items()
}


class SafeUnpickler(pickle._Unpickler):
    """Unpickler for model files; every global outside a short list is refused.

    It is the one in Python: that in C makes room for as many memorised objects as an index in the file says,
    which can be 64 GB. Model files have few objects, so that speed is no concern.
    """

    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Stand-in for a global of the file; raises UnpicklingError for any that is not on the list."""
        try:
            return _GLOBALS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file wants to use {module_name}.{global_name}; "
                "only numpy arrays, tensors and plain containers are allowed in a checkpoint"
            ) from None

    def load_bytearray8(self) -> None:
        """Opcode BYTEARRAY8 with the memory that the file fills, not that which it announces."""
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) < size:
            raise EOFError
        self.append(bytearray(data))

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def load_pickle(file: IO[bytes]) -> Any:
    """Read one pickle of arrays, tensors, numbers, text and plain containers, written by Python 2 or 3.

    Raises:
        pickle.UnpicklingError: if the file asks for anything else, or is broken.

    Source: project choice; the zoo's files are dictionaries of numpy arrays.
    """
    try:
        return to_plain(SafeUnpickler(file, encoding="latin1").load())
    except pickle.UnpicklingError:
        raise
    except EOFError as error:
        raise pickle.UnpicklingError("the file ends too early") from error
    except Exception as error:
        # A broken pickle can end in any exception; none of them means more than that.
        raise pickle.UnpicklingError(f"not a readable pickle of arrays: {error}") from error


def to_plain(value: Any, *, strict: bool = True, _depth: int = 0) -> Any:
    """Replace stand-ins inside plain containers by what they stand for.

    Args:
        value: what an unpickler returned.
        strict: refuse any other type; otherwise keep it (torch's own restricted reader has vetted it).

    Raises:
        pickle.UnpicklingError: for a type that is not allowed, or containers nested without end.
    """
    if _depth > _MAX_DEPTH:
        raise pickle.UnpicklingError(f"containers are nested more than {_MAX_DEPTH} deep")

    def inner(item: Any) -> Any:
        return to_plain(item, strict=strict, _depth=_depth + 1)

    if isinstance(value, _Leaf):
        value = value.value
    kind = type(value)
    if kind in (dict, OrderedDict):
        result: Any = kind((inner(key), inner(item)) for key, item in value.items())
        if isinstance(
            metadata := getattr(value, "_metadata", None), dict
        ):  # versions of modules in a state dict
            result._metadata = inner(metadata)
        return result
    if kind in (list, tuple, set, frozenset):
        return kind(inner(item) for item in value)
    if strict and not isinstance(value, _SCALARS) and kind not in (np.ndarray, torch.Tensor):
        _refuse(f"a value of type {kind.__module__}.{kind.__qualname__}")
    return value


def torch_safe_globals() -> list[Any]:
    """What ``torch.serialization.safe_globals`` needs so that numbers of numpy in a ``.pth`` can be read.

    Trainers of old put numpy scalars (best metrics, learning rates) into their files, which torch's own
    restricted reader refuses.  Pass the loaded object through :func:`to_plain` where arrays may occur.
    """
    named = [(_GLOBALS[key], ".".join(key)) for key in _numpy_table()]
    return [*named, (_GLOBALS["_codecs", "encode"], "_codecs.encode"), _DType, _Array]
