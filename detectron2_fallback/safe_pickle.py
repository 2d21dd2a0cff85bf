"""Read pickles that strangers wrote: arrays, tensors and plain containers, and nothing else.

A pickle is a program.  The readers here answer each global that it names with a stand-in of our own, so that
no function of any library runs with arguments chosen by the file; numpy arrays are rebuilt from their bytes
after type and size have been checked.

Source: project choice.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import IO, Any, ClassVar

import numpy as np
import torch

__all__ = ["SafeUnpickler", "load_pickle", "load_torch_file", "numpy_in_torch_files", "to_plain"]

_MAX_DEPTH = 100
_SCALARS = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic)
_NUMERIC_TYPE = re.compile(r"[?biufcSU]\d{0,9}")


class _Leaf:
    """A finished value inside a half-read pickle."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


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


def _stand_in(module: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` under the name of the global that it stands for, by which torch's reader looks it up."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__qualname__, call.__name__ = module, name, name
    return call


_NDARRAY = _stand_in("numpy", "ndarray", lambda *_: _refuse("numpy.ndarray called directly"))


def _numpy_globals() -> list[Callable[..., Any]]:
    globals_ = [_NDARRAY, _stand_in("numpy", "dtype", _DType), _stand_in("_codecs", "encode", _encode)]
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        globals_.append(_stand_in(f"{core}.multiarray", "_reconstruct", _reconstruct))
        globals_.append(_stand_in(f"{core}.multiarray", "scalar", _scalar))
        globals_.append(_stand_in(f"{core}.numeric", "_frombuffer", _frombuffer))
    return globals_


def _plain_globals() -> list[Callable[..., Any]]:
    globals_ = [
        _stand_in("collections", "OrderedDict", OrderedDict),
        _stand_in("torch.storage", "_load_from_bytes", _storage),
        _stand_in("torch._utils", "_rebuild_tensor_v2", _tensor),
        _stand_in("torch._utils", "_rebuild_parameter", _parameter),
    ]
    for builtins in ("builtins", "__builtin__"):  # in Python 3 and 2
        globals_ += [_stand_in(builtins, kind.__name__, kind) for kind in (set, frozenset, complex)]
        globals_ += [_stand_in(builtins, kind.__name__, _byte_string(kind)) for kind in (bytes, bytearray)]
    return globals_


_NUMPY_GLOBALS = _numpy_globals()
_GLOBALS = {(f.__module__, f.__qualname__): f for f in [*_NUMPY_GLOBALS, *_plain_globals()]}


class SafeUnpickler(pickle._Unpickler):
    """Unpickler for model files; every global outside a short list is refused.

    It is the one in Python: that in C makes room for as many memorised objects as an index in the file says,
    which can be 64 GB. Model files have few objects, so that speed is no concern.
    """

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    stack: list[Any]

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

    def load_build(self) -> None:
        """Opcode BUILD, which sets the state of an object: of arrays, their types, and ordered dicts."""
        if not isinstance(self.stack[-2], _DType | _Array | OrderedDict):
            _refuse(f"a change of a {type(self.stack[-2]).__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.BUILD[0]: load_build,
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


@contextlib.contextmanager
def numpy_in_torch_files() -> Iterator[None]:
    """Inside, ``torch.load(weights_only=True)`` reads numpy's arrays and numbers.

    It refuses them otherwise; but trainers of old put numpy scalars (best metrics, learning rates) into their
    files. What is loaded has stand-ins in it: pass it through :func:`to_plain`.
    """
    others = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([*_NUMPY_GLOBALS, _DType, _Array])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def load_torch_file(path: str) -> Any:
    """``torch.load`` onto the CPU, restricted to tensors, arrays and plain data; errors name the file.

    Raises:
        pickle.UnpicklingError: if the file holds anything else.
        RuntimeError: if it is damaged.
        OSError: if it cannot be opened.
    """
    try:
        with numpy_in_torch_files():
            return to_plain(torch.load(path, map_location="cpu", weights_only=True), strict=False)
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(f"Checkpoint {path} was refused: {error}") from error
    except OSError:
        raise  # names the file itself
    except Exception as error:
        # A damaged file can end in any exception; none of them means more than that.
        raise RuntimeError(
            f"Checkpoint {path} cannot be read (damaged or not a checkpoint): {error}"
        ) from error
