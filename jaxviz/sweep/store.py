"""A sweep's arrays on disk: zarr v3 through TensorStore, one file an array and chunk of rows.

Each quantity is an array `[N, ...]` of its own, in chunks of `size` rows. The array `rows` says how
many rows of each chunk are there and is written last: a chunk that it does not count does not
exist, whatever files a killed process left.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

# Rows an array is declared with as long as nobody knows how many will come.
_MANY_CHUNKS = 2**24
ROWS = "rows"


def location(out: Any) -> dict[str, Any]:
    """A TensorStore key-value spec of a local folder, a URL such as gs://…, or a spec itself."""
    if isinstance(out, Mapping):
        return dict(out)
    text = os.fspath(out)
    if "://" in text:
        return ts.KvStore.Spec(text if text.endswith("/") else text + "/").to_json()
    return {"driver": "file", "path": os.path.abspath(text) + "/"}


class Writer:
    """Writes chunks; what `commit` returned from is on the disk.

    Attributes:
      size: Rows of a chunk.
      done: Numbers of the chunks that are there.
    """

    def __init__(self, out: Any, about: Mapping[str, Any], size: int, total: int | None):
        self._place, self.size = location(out), size
        self._kv = ts.KvStore.open(self._place).result()
        self._arrays: dict[str, Any] = {}
        self._total = total
        self._chunks = _MANY_CHUNKS if total is None else -(-total // size)
        before = read_about(self._kv)
        wanted = json.loads(json.dumps({"chunk_rows": size, **about}))
        if before is None:
            if self._kv.list().result() and read_about(self._kv) is None:
                raise ValueError(
                    f"sweep: {out} must be empty or hold a sweep; it holds other files. "
                    "Choose a new folder."
                )
            _write_group(self._kv, wanted)
        else:
            refuse_other(out, before, wanted)
        self.done = done_chunks(self._kv)

    def write(self, number: int, count: int, arrays: Mapping[str, np.ndarray]) -> "Pending":
        """Begins to write the rows of one chunk."""
        start = number * self.size
        pending = []
        for name, array in arrays.items():
            if name not in self._arrays:
                self._arrays[name] = self._create(name, array.dtype, array.shape[1:], self.size)
            pending.append(self._arrays[name][start : start + count].write(array[:count]))
        return Pending(self, number, count, pending)

    def finish(self) -> None:
        """Gives every array its true length; one process calls it, when all have written."""
        if self._total is not None:
            return
        counts = row_counts(self._place)
        last = max(counts)
        total = last * self.size + counts[last]
        for name in array_names(self._kv):
            array = _open(self._place, name)
            rows = -(-total // self.size) if name == ROWS else total
            # Not the data: what lies beyond was never written.
            array.resize(exclusive_max=[rows, *array.shape[1:]], resize_metadata_only=True).result()

    def count(self, number: int, count: int) -> None:
        """Declares a chunk written."""
        if ROWS not in self._arrays:
            self._arrays[ROWS] = self._create(ROWS, np.dtype(np.int32), (), 1)
        self._arrays[ROWS][number].write(np.int32(count)).result()
        self.done.add(number)

    def _create(self, name, dtype, shape, size):
        known = self._chunks if name == ROWS else self._total
        rows = self._chunks * size if known is None else known
        kind = ts.dtype(dtype)
        shuffle = "shuffle" if kind.numpy_dtype.itemsize > 1 else "noshuffle"
        blosc = {"cname": "zstd", "clevel": 1, "shuffle": shuffle, "blocksize": 0}
        spec = {
            "driver": "zarr3",
            "kvstore": {**self._place, "path": f"{self._place['path']}{name}/"},
            "metadata": {
                "shape": [rows, *shape],
                "data_type": kind.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size, *shape]}},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {
                        "name": "blosc",
                        "configuration": {**blosc, "typesize": kind.numpy_dtype.itemsize},
                    },
                ],
                "dimension_names": ["row", *[f"axis_{i}" for i in range(1, len(shape) + 1)]],
            },
        }
        if kind.numpy_dtype.itemsize == 1:
            # One byte has no order to write down.
            spec["metadata"]["codecs"][0] = {"name": "bytes"}
        if read_shape(self._kv, name) is not None:  # a run before made it, maybe at its true length
            array = _open(self._place, name)
            if array.shape[0] < rows:
                array = array.resize(exclusive_max=[rows, *shape], expand_only=True).result()
            return array
        return ts.open(spec, create=True, open=True).result()


class Pending:
    """A chunk on its way to the disk."""

    def __init__(self, writer: Writer, number: int, count: int, futures: list):
        self._writer, self._number, self._count, self._futures = writer, number, count, futures

    def ready(self) -> bool:
        """Whether `commit` would not wait for them."""
        return all(future.done() for future in self._futures)

    def commit(self) -> None:
        """Waits for the arrays, then counts the chunk as done."""
        for future in self._futures:
            future.result()
        self._writer.count(self._number, self._count)


def refuse_other(out: Any, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to mix two sweeps, naming the first thing that differs."""
    for name, value in wanted.items():
        if name != "versions" and before.get(name) != value:
            raise ValueError(
                f"sweep: {out} holds another sweep: its {name} is {_short(before.get(name))}, this "
                f"one's is {_short(value)}. Choose a new folder, or pass what it was made with."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:197] + "..."


def read_about(kv: Any) -> dict[str, Any] | None:
    """What the sweep in this store was made with; None where there is none."""
    value = kv.read("zarr.json").result().value
    attributes = json.loads(value)["attributes"] if value else {}
    return attributes.get("jaxviz_sweep")


def _write_group(kv: Any, about: Mapping[str, Any]) -> None:
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"jaxviz_sweep": about}}
    kv.write("zarr.json", json.dumps(group, indent=1).encode()).result()


def array_names(kv: Any) -> list[str]:
    """Names of the arrays in a store."""
    keys = (key.decode() for key in kv.list().result())
    return sorted(key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json"))


def read_shape(kv: Any, name: str) -> tuple[int, ...] | None:
    """Declared shape of an array, None where it does not exist."""
    value = kv.read(f"{name}/zarr.json").result().value
    return tuple(json.loads(value)["shape"]) if value else None


def _open(place: Mapping[str, Any], name: str) -> Any:
    spec = {"driver": "zarr3", "kvstore": {**place, "path": f"{place['path']}{name}/"}}
    return ts.open(spec, open=True).result()


def open_place(out: Any) -> Any:
    """The key-value store of `out`."""
    return ts.KvStore.open(location(out)).result()


def row_counts(out: Any) -> dict[int, int]:
    """Chunk number -> rows that are done, of the chunks that are."""
    done = done_chunks(open_place(out))
    if not done:
        return {}
    numbers = sorted(done)
    counts = open_array(out, ROWS)[np.array(numbers)].read().result()
    return dict(zip(numbers, np.asarray(counts).tolist(), strict=True))


def done_chunks(kv: Any) -> set[int]:
    """Numbers of the chunks that are done."""
    prefix = f"{ROWS}/c/"
    # "0" follows "/" in ASCII: the range ends where the prefix does.
    keys = kv.list(ts.KvStore.KeyRange(prefix, f"{ROWS}/c0")).result()
    return {int(key.decode().removeprefix(prefix)) for key in keys}


def open_array(out: Any, name: str) -> Any:
    """A TensorStore array of a store, for reading."""
    return _open(location(out), name)
