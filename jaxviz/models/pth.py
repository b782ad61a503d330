"""Reads tensors from files of `torch.save` without PyTorch, and without running what they hold.

Such a file is a pickle with the tensors' numbers beside it. Here the pickle may name nothing but
the few things that a state dict is made of; any other name is refused before it is called.
"""

import collections
import functools
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# What a file of the older kind begins with: PyTorch's magic number and protocol, each pickled.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_pth(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors of a state dict by name.

    Args:
      path: What `torch.save` wrote, in its zip format (the default since version 1.6) or the one
        before it, on a little-endian machine.

    Returns:
      Name -> array, in the file's order.

    Raises:
      ValueError: The file is neither, is damaged, or holds something else than tensors by name.

    Example:
      >>> read_pth(__file__)
      Traceback (most recent call last):
      ...
      ValueError: read_pth: ...pth.py must be a file of torch.save; ... Save the weights as ...
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            out = _read_zip(file) if zipfile.is_zipfile(path) else _read_older(file)
    except (ValueError, OSError) as error:
        raise _refused(path, str(error)) from None
    # A damaged pickle can raise nearly anything, none of it an error of ours.
    except Exception as error:
        raise _refused(path, f"it breaks off or is damaged ({type(error).__name__})") from None
    if not isinstance(out, dict) or not all(
        isinstance(k, str) and isinstance(v, np.ndarray) for k, v in out.items()
    ):
        raise _refused(path, "it holds something else than tensors by name")
    return {name: np.array(value) for name, value in out.items()}


def _refused(path, reason):
    return ValueError(
        f"read_pth: {path} must be a file of torch.save; {reason}. Save the weights as "
        ".safetensors: safetensors.torch.save_file(net.state_dict(), file)."
    )


class _Kind(NamedTuple):
    """Stands for a class of storages. It cannot be called, and a pickle cannot change it."""

    dtype: np.dtype


def _tensor(storage, offset, size, stride, *_):
    # NumPy refuses a view that reaches beyond its buffer.
    steps = tuple(step * storage.itemsize for step in stride)
    return np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, steps)


def _parameter(tensor, *_):
    return tensor


_ADMITTED = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{f"torch.{name}": _Kind(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Finds the names in `_ADMITTED` and no others; `storage` gives a tensor's numbers."""

    def __init__(self, file: IO[bytes], storage: Callable[[_Kind, str, int], np.ndarray]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in _ADMITTED:
            raise ValueError(f"it names {name}, which no file of tensors needs")
        return _ADMITTED[name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _Kind) or any(part is not None for part in view):
            raise ValueError("its numbers are of an unknown kind")
        return self._storage(kind, key, count)


def _read_zip(file: IO[bytes]) -> Any:
    """A folder with the pickle `data.pkl` and a file of numbers for each storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        table = next((n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")), None)
        if table is None:
            raise ValueError("it is another zip file")
        folder = table.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it is of a big-endian machine")

        @functools.cache  # tensors may share a storage
        def storage(kind, key, count):
            return np.frombuffer(archive.read(f"{folder}data/{key}"), kind.dtype, count)

        return _Unpickler(io.BytesIO(archive.read(table)), storage).load()


def _read_older(file: IO[bytes]) -> Any:
    """Five pickles, of which the fourth is the tensors, then the storages one after another."""
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, np.ndarray] = {}

    def storage(kind, key, count):
        if count * kind.dtype.itemsize > size:
            raise ValueError("it is shorter than its tensors")
        return storages.setdefault(key, np.empty(count, kind.dtype))  # filled below

    def read():
        return _Unpickler(file, storage).load()

    try:
        magic = read()
    except pickle.UnpicklingError:  # a text, say
        magic = None
    if magic != _MAGIC or read() != _PROTOCOL:
        raise ValueError("it does not begin like one")
    if not read()["little_endian"]:
        raise ValueError("it is of a big-endian machine")
    out, keys = read(), read()
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        values = storages[key]
        if count != len(values):
            raise ValueError("it is damaged")
        values[:] = np.frombuffer(file.read(values.nbytes), values.dtype, count)
    return out
