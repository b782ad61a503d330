"""A sweep's arrays on disk: zarr v3 through TensorStore, one file an array and chunk of rows.

Each quantity is an array `[N, ...]` of its own, in chunks of `size` rows. The array `rows` says how
many rows of each chunk are there and is written last: a chunk that it does not count does not
exist, whatever files a killed process left. To zarr a file that is not there is zeros, so the array
`digests` says what each chunk holds and what it was made of; `reader.Reader` believes nothing else.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from jaxviz.calls.options import path, refused
from jaxviz.sweep.describe import digest

# Rows an array is declared with as long as nobody knows how many will come.
_MANY_CHUNKS = 2**24
ROWS, DIGESTS = "rows", "digests"
# Of what `digests` holds: SHA-256 of each array's rows in a chunk, then that of the chunk's inputs.
VERSION = 2


def location(out: Any) -> dict[str, Any]:
    """A TensorStore key-value spec of a local folder, a URL such as gs://…, or a spec itself."""
    if isinstance(out, Mapping):
        return {**out, "path": out.get("path", "")}
    text = os.fspath(out)
    if "://" in text:
        return ts.KvStore.Spec(text if text.endswith("/") else text + "/").to_json()
    return {"driver": "file", "path": os.path.abspath(text) + "/"}


def place(who: str, option: str, value: Any) -> Any:
    """A folder, URL or file in text or as a path, or a TensorStore spec."""
    if isinstance(value, Mapping):
        if isinstance(value.get("driver"), str):
            return value
        must = 'a folder, a URL or a key-value spec {"driver": ..., "path": ...}'
        raise refused(who, option, must, value, kind=ValueError)
    return path(who, option, value)


def in_words(error: Exception) -> str:
    """What TensorStore says, without where in its code."""
    return str(error).split(" [tensorstore")[0].split(" [source")[0].rstrip(" .")


def chunk_digest(
    about: Mapping[str, Any], inputs: np.ndarray, name: str, number: int, rows: np.ndarray
) -> np.ndarray:
    """SHA-256 `[32]` of an array's rows in a chunk, of the sweep and the place they belong to, and
    of the digest of what they were made of.

    Example:
      >>> none, rows = np.zeros(32, np.uint8), np.zeros(2, np.int32)
      >>> here, there = (chunk_digest({}, none, "labels", n, rows) for n in (0, 1))
      >>> here.tolist() == there.tolist()
      False
    """
    sweep = json.dumps({k: v for k, v in about.items() if k != "versions"}, sort_keys=True)
    key = (sweep, inputs.tobytes().hex(), name, number)
    return np.frombuffer(bytes.fromhex(digest({key: rows})), np.uint8)


def inputs_digest(x: Any, y: Any) -> np.ndarray:
    """SHA-256 `[32]` of the inputs and labels that a chunk is made of."""
    return np.frombuffer(bytes.fromhex(digest((x, y))), np.uint8)


def unwritable(out: Any, error: Exception) -> str:
    """What to say where nothing can be written, before any work is done for it."""
    told = in_words(error)
    return f"sweep: out must be a place to write to; {out} is none: {told}. Choose another one."


class Writer:
    """Writes chunks; what `commit` returned from is on the disk.

    Attributes:
      size: Rows of a chunk.
      total: Rows of all, None where only their end will tell.
    """

    def __init__(self, out: Any, about: Mapping[str, Any], size: int, total: int | None):
        self._out, self.size, self.total = out, size, total
        self._arrays: dict[str, Any] = {}
        self._chunks = _MANY_CHUNKS if total is None else -(-total // size)
        wanted = json.loads(json.dumps({"chunk_rows": size, **about}))
        try:
            self._place = location(out)
            self._kv = ts.KvStore.open(self._place).result()
            before = read_about(self._kv)
            if before is None:
                if self._kv.list().result() and read_about(self._kv) is None:
                    raise FileExistsError
                _write_group(self._kv, wanted)
        except FileExistsError:
            raise ValueError(
                f"sweep: {out} must be empty or hold a sweep; it holds other files, and no "
                "zarr.json of a sweep. Choose a new folder."
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(unwritable(out, error)) from error
        if before is not None:
            refuse_other(out, before, wanted)
            if "programs" not in before:  # of an older version: all is made anew
                _write_group(self._kv, wanted)
                before = wanted
        self._about = before or wanted

    def write(
        self, number: int, count: int, arrays: Mapping[str, np.ndarray], inputs: np.ndarray
    ) -> "Pending":
        """Begins to write the rows of one chunk, and what tells that they are those."""
        try:
            return self._write(number, count, arrays, inputs)
        except ValueError as error:
            raise self.failed(error) from error

    def _write(self, number, count, arrays, inputs):
        start, names = number * self.size, sorted(arrays)
        rows = {name: np.asarray(arrays[name])[:count] for name in names}
        pending = []
        for name, array in rows.items():
            opened = self._array(name, array.dtype, array.shape[1:], self.size)
            pending.append(opened[start : start + count].write(array))
        each = [chunk_digest(self._about, inputs, name, number, rows[name]) for name in names]
        digests = np.stack([*each, inputs])
        attributes = {"arrays": names, "version": VERSION}
        opened = self._array(DIGESTS, digests.dtype, digests.shape, 1, attributes)
        pending.append(opened[number].write(digests))
        return Pending(self, number, count, pending)

    def failed(self, error: Exception) -> Exception:
        """What to raise where the store takes no more."""
        told = f"sweep: {self._out} must take what is written to it; {in_words(error)}."
        return ValueError(f"{told} Remove what is in the way, or choose a new folder.")

    def count(self, number: int, count: int) -> None:
        """Declares a chunk written."""
        opened = self._array(ROWS, np.dtype(np.int32), (), 1)
        opened[number].write(np.int32(count)).result()

    def remove(self, number: int, files: Iterable[str]) -> None:
        """Takes a chunk for not written, and away with its files: the count first."""
        for key in (f"{ROWS}/c/{number}", *files):
            self._kv.write(key, None).result()

    def finish(self, counts: Mapping[int, int]) -> None:
        """Gives every array its true length; one process calls it, when all have written."""
        if self.total is not None:
            return
        last = max(counts)
        total = last * self.size + counts[last]
        for name in array_names(self._kv):
            array = open_array(self._place, name)
            rows = -(-total // self.size) if name in (ROWS, DIGESTS) else total
            # Not the data: what lies beyond was never written.
            array.resize(exclusive_max=[rows, *array.shape[1:]], resize_metadata_only=True).result()

    def _array(self, name, dtype, shape, size, attributes=None) -> Any:
        if name not in self._arrays:
            self._arrays[name] = self._create(name, dtype, shape, size, attributes or {})
        return self._arrays[name]

    def _create(self, name, dtype, shape, size, attributes) -> Any:
        of_examples = name not in (ROWS, DIGESTS)
        rows = self.total if of_examples and self.total is not None else self._chunks * size
        kind = ts.dtype(dtype)
        shuffle = "shuffle" if kind.numpy_dtype.itemsize > 1 else "noshuffle"
        blosc = {"cname": "zstd", "clevel": 1, "shuffle": shuffle, "blocksize": 0}
        metadata = {
            "shape": [rows, *shape],
            "data_type": kind.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size, *shape]}},
            "codecs": [
                # One byte has no order to write down.
                {"name": "bytes", "configuration": {"endian": "little"}}
                if kind.numpy_dtype.itemsize > 1
                else {"name": "bytes"},
                {
                    "name": "blosc",
                    "configuration": {**blosc, "typesize": kind.numpy_dtype.itemsize},
                },
            ],
            "dimension_names": ["row", *[f"axis_{i}" for i in range(1, len(shape) + 1)]],
            "attributes": attributes,
        }
        # What its zarr.json has to say, up to the number of rows: a run before may have left it at
        # its true length, and it may have been lost or changed since.
        spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": metadata}
        fresh: Any = ts.open(spec, create=True).result().kvstore
        described = fresh.read("zarr.json").result().value
        if not _alike(_json(self._kv, f"{name}/zarr.json"), json.loads(described)):
            self._kv.write(f"{name}/zarr.json", described).result()
        # Zeros get a file too: one that is not there was lost.
        array = open_array(self._place, name, store_data_equal_to_fill_value=True)
        if array.shape[0] < rows:
            array = array.resize(exclusive_max=[rows, *shape], expand_only=True).result()
        return array


class Pending:
    """A chunk on its way to the disk."""

    def __init__(self, writer: Writer, number: int, count: int, futures: list):
        self._writer, self._number, self._count, self._futures = writer, number, count, futures

    def ready(self) -> bool:
        """Whether `commit` would not wait for them."""
        return all(future.done() for future in self._futures)

    def commit(self) -> None:
        """Waits for the arrays, then counts the chunk as done."""
        try:
            for future in self._futures:
                future.result()
            self._writer.count(self._number, self._count)
        except ValueError as error:
            raise self._writer.failed(error) from error


def refuse_other(out: Any, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to mix two sweeps, naming the first thing that differs."""
    for name, value in wanted.items():
        if name == "programs":
            _refuse_other_programs(out, before.get(name) or {}, value)
        elif name != "versions" and before.get(name) != value:
            raise ValueError(
                f"sweep: {out} holds another sweep: its {name} is {_short(before.get(name))}, this "
                f"one's is {_short(value)}. Choose a new folder, or pass what it was made with."
            )


def _refuse_other_programs(out, before, wanted):
    if before.get("where") != wanted["where"]:
        return  # the same function may have another jaxpr there
    for name in sorted(before.keys() & wanted.keys()):
        if before[name] != wanted[name]:
            raise ValueError(
                f"sweep: {out} holds another sweep: its {name} computes something else than this "
                "one's, or spells it otherwise. Choose a new folder, or pass what it was made with."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:197] + "..."


def read_about(kv: Any) -> dict[str, Any] | None:
    """What the sweep in this store was made with; None where there is none."""
    attributes = (_json(kv, "zarr.json") or {}).get("attributes")
    about = attributes.get("jaxviz_sweep") if isinstance(attributes, dict) else None
    if not isinstance(about, dict) or not isinstance(about.get("chunk_rows"), int):
        return None
    return about if about["chunk_rows"] > 0 else None


def _json(kv: Any, key: str) -> dict[str, Any] | None:
    """The object that a file holds; None where it holds none."""
    try:
        value = json.loads(kv.read(key).result().value or b"null")
    except ValueError:  # half a file, or not in UTF-8
        return None
    return value if isinstance(value, dict) else None


def _alike(there: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """Whether two arrays differ in their number of rows at most."""
    if there is None or {**there, "shape": None} != {**wanted, "shape": None}:
        return False
    shape = there["shape"]
    rows = shape[0] if isinstance(shape, list) and shape else None
    return isinstance(rows, int) and 0 < rows and [rows, *wanted["shape"][1:]] == shape


def _write_group(kv: Any, about: Mapping[str, Any]) -> None:
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"jaxviz_sweep": about}}
    kv.write("zarr.json", json.dumps(group, indent=1).encode()).result()


def array_names(kv: Any) -> list[str]:
    """Names of the arrays in a store."""
    keys = (key.decode() for key in kv.list().result())
    return sorted(key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json"))


def open_array(out: Any, name: str, **options: Any) -> Any:
    """A TensorStore array of a store."""
    place = location(out)
    spec = {"driver": "zarr3", "kvstore": {**place, "path": f"{place['path']}{name}/"}, **options}
    return ts.open(spec, open=True).result()


def open_place(out: Any) -> Any:
    """The key-value store of `out`."""
    return ts.KvStore.open(location(out)).result()
