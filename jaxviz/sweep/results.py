"""What a sweep leaves: arrays in memory, in an .npz file or read lazily from a store."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxviz.calls.public import public
from jaxviz.calls.shown import else_by, shown, shown_html
from jaxviz.sweep.reader import Reader
from jaxviz.sweep.store import in_words, place

MAPS, SUMMARIES, SCALES = "maps/", "summaries/", "scales/"
# What NumPy and zipfile raise where a file is not there, is another one or is damaged.
_UNREADABLE = (
    OSError, KeyError, TypeError, ValueError, EOFError, NotImplementedError,
    RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Summary(NamedTuple):
    """Numbers of each example's map, float32 `[N]`, of its unquantised values.

    Attributes:
      total: Sum; what a complete method shares out.
      magnitude: Sum of absolute values; not finite where any number of the map is not.
      lowest: Smallest number.
      highest: Largest number.
    """

    total: np.ndarray
    magnitude: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


class Sweep(NamedTuple):
    """Explanations of a whole set, one row an example, in the order of the batches.

    Attributes:
      maps: Method -> array `[N, ...]`; of a store a lazy one (`LazyArray`): slicing reads.
      summaries: Method -> `Summary`.
      labels: int32 `[N]`, or None where none were given.
      predicted: int32 `[N]`, the top class; None where outputs are no `[N, K]`, as the next two.
      outputs: float32 `[N, K]`, what the model returned.
      probabilities: float32 `[N, K]`, their softmax.
      about: What it was made with: methods, options, digest of the params, versions.
      rows: int64 `[N]`, each row's place in the set; of a store that is not finished some are left
        out.
    """

    maps: dict[str, Any]
    summaries: dict[str, Summary]
    labels: np.ndarray | None
    predicted: np.ndarray | None
    outputs: np.ndarray | None
    probabilities: np.ndarray | None
    about: dict[str, Any]
    rows: np.ndarray

    @else_by(shown)
    def __repr__(self) -> str:
        gaps = len(self.rows) and self.rows[-1] + 1 - len(self.rows)
        note = f"\n  {gaps} rows before the last one are not done" if gaps else ""
        return shown(self) + note

    _repr_html_ = shown_html

    def not_finite(self, method: str) -> np.ndarray:
        """Indices of the examples whose map holds a NaN or an infinity, as it was kept."""
        summary = self.summaries[method]
        kept = np.isfinite(summary.magnitude)
        if (dtype := self.about.get("dtype", "int8")) != "int8":
            kept &= np.isfinite(_largest(np.stack(summary, 1), dtype))
        return np.flatnonzero(~kept)

    def by_class(self, of: str = "labels") -> Iterator[tuple[int, np.ndarray]]:
        """`(class, indices)` of each class that occurs; `of` is "labels" or "predicted"."""
        classes = self._need(of)
        for index in np.unique(classes):
            yield int(index), np.flatnonzero(classes == index)

    def by_correctness(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the rightly and of the wrongly classified examples."""
        right = self._need("predicted") == self._need("labels")
        return np.flatnonzero(right), np.flatnonzero(~right)

    def by_confidence(self) -> np.ndarray:
        """All indices, the largest top probability first; equal ones in their order."""
        return np.argsort(-self._need("probabilities").max(-1), kind="stable")

    def _need(self, field: str) -> np.ndarray:
        value = getattr(self, field)
        if value is None:
            raise ValueError(
                f"this sweep has no {field}. Labels come with the batches, as (x, y); predictions "
                "need outputs [N, K]."
            )
        return value


class LazyArray:
    """An array in a store that reads what is asked of it; NumPy functions take it as it is.

    Rows may be chosen by an index, a slice, or an array of indices or booleans, `np.asarray` reads
    all. Quantised maps come out in float32. Whole chunks are read, and compared with what was
    written: rows that were lost or changed since are a ValueError, and the others can be read.

    Attributes:
      shape: `[N, ...]`.
      dtype: Of what comes out.
    """

    def __init__(self, reader: Reader, name: str, rows: np.ndarray, scale: np.ndarray | None):
        array = reader.arrays[name]
        self._reader, self._name, self._rows, self._scale = reader, name, rows, scale
        self._last: tuple[int, np.ndarray] | None = None
        self._stored = array.dtype.numpy_dtype
        self.shape = (len(rows), *array.shape[1:])
        self.dtype = self._stored if scale is None else np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key):
        first, *others = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis or first is None:
            return np.asarray(self)[key]
        rows = np.arange(len(self))[first]  # NumPy's own meaning, and its errors
        out = self._read(self._rows[rows].ravel()).reshape(*rows.shape, *self.shape[1:])
        if self._scale is not None:
            scale = self._scale[rows]
            out = out.astype(np.float32) * scale.reshape(*scale.shape, *[1] * (self.ndim - 1))
        return out[(slice(None),) * rows.ndim + tuple(others)] if others else out

    def _read(self, places: np.ndarray) -> np.ndarray:
        """The rows at these places of the set."""
        size = self._reader.size
        out = np.empty((len(places), *self.shape[1:]), self._stored)
        order = np.argsort(places // size, kind="stable")
        numbers, starts = np.unique(places[order] // size, return_index=True)
        wanted = dict(zip(numbers.tolist(), np.split(order, starts)[1:], strict=True))
        for number, chunk in self._chunks(list(wanted)):
            here = wanted[number]
            out[here] = chunk[places[here] - number * size]
        return out

    def _chunks(self, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        # Rows are often asked for one by one: the chunk of the last one is at hand.
        if self._last is not None and [self._last[0]] == numbers:
            yield self._last
            return
        for number, rows in self._reader.read_all(self._name, numbers):
            if rows is None:
                raise ValueError(self._reader.lost_words([number], f"{self._name} of "))
            self._last = number, rows
            yield number, rows

    def __iter__(self):
        return (self[n] for n in range(len(self)))

    def __array__(self, dtype=None, copy=None):
        out = self[:]
        return out if dtype is None else out.astype(dtype)

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"


def collect(arrays: Mapping[str, Any], about: Mapping[str, Any], rows: np.ndarray) -> Sweep:
    """The `Sweep` of flat arrays by name, of these rows of the set."""
    part = lambda prefix: {
        k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
    }
    summaries = {k: Summary(*np.asarray(v).T) for k, v in part(SUMMARIES).items()}
    one = lambda name: None if name not in arrays else np.asarray(arrays[name])
    return Sweep(
        maps=part(MAPS),
        summaries=summaries,
        labels=one("labels"),
        predicted=one("predicted"),
        outputs=one("outputs"),
        probabilities=one("probabilities"),
        about=dict(about),
        rows=rows,
    )


def beyond(columns: np.ndarray, dtype: str) -> np.ndarray:
    """Which maps with these summaries `[N, 4]` are infinite or zero in `dtype` alone: bool `[N]`.

    Example:
      >>> columns = np.array([[0, 9, -1, 8], [0, 9, -1, 7e4], [0, 1e-9, 0, 1e-9]], np.float32)
      >>> beyond(columns, "float16").tolist()
      [False, True, True]
    """
    kept, is_zero = _largest(columns, dtype), columns[:, 1] == 0
    return np.isfinite(columns[:, 1]) & ~is_zero & ((kept == 0) | ~np.isfinite(kept))


def _largest(columns: np.ndarray, dtype: str) -> np.ndarray:
    """The largest magnitude of each map, as a number of `dtype`."""
    with np.errstate(over="ignore"):
        return np.abs(columns[:, 2:]).max(1).astype(jnp.dtype(dtype)).astype(np.float32)


def dequantised(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Maps in float32 again where they were quantised."""
    out = {k: v for k, v in arrays.items() if not k.startswith(SCALES)}
    for name, scale in arrays.items():
        if name.startswith(SCALES):
            of = MAPS + name.removeprefix(SCALES)
            shape = (len(scale), *[1] * (arrays[of].ndim - 1))
            out[of] = arrays[of].astype(np.float32) * scale.reshape(shape)
    return out


@public(out=place)
def open_sweep(out: Any) -> Sweep:
    """Opens what `sweep(..., out=out)` wrote, finished or not; maps are read when they are used.

    A store knows what it holds: of each chunk that was written it is asked whether all files are
    there, and what is read is compared with the SHA-256 that was written with it.

    Args:
      out: Folder, URL, TensorStore key-value spec, or an .npz file.

    Returns:
      A `Sweep` of the rows that are done; its `rows` says which.

    Raises:
      ValueError: There is no sweep, none of its rows is done, or files of it were lost or changed.
        Maps that were changed are found when they are read.
    """
    if not isinstance(out, Mapping) and os.fspath(out).endswith(".npz"):
        return _open_npz(out)
    try:
        reader = Reader(out)
    except ValueError as error:  # TensorStore's: no such place, no way to it
        told = f"open_sweep: out must be a sweep's folder or file; {in_words(error)}."
        raise ValueError(told) from error
    if reader.about is None:
        raise ValueError(f"open_sweep: {out} holds no sweep. Pass what `sweep(..., out=...)` got.")
    if not reader.counts:
        raise ValueError(f"open_sweep: no chunk of {out} is done yet. Run its sweep on.")
    if not reader.names:
        raise ValueError(
            f"open_sweep: nothing tells whether {out} is whole: its array 'digests' was lost, or "
            "it is of an older version. Run its sweep again: it makes every row anew."
        )
    if lost := reader.missing():
        raise ValueError(reader.lost_words(lost))
    size = reader.size
    rows = np.concatenate([np.arange(n * size, n * size + c) for n, c in reader.counts.items()])
    order = list(reader.about["methods"])
    place = lambda name: order.index(of) if (of := _method_of(name)) in order else -1
    read = lambda name, scale=None: LazyArray(reader, name, rows, scale)
    arrays = {}
    for name in sorted(reader.names, key=place):
        if name.startswith(MAPS):
            scale = SCALES + name.removeprefix(MAPS)
            arrays[name] = read(name, np.asarray(read(scale)) if scale in reader.names else None)
        elif not name.startswith(SCALES):
            arrays[name] = read(name)
    return collect(arrays, reader.about, rows)


def _method_of(name: str) -> str:
    """Of `maps/method.field`."""
    return name.partition("/")[2].split(".")[0]


def _open_npz(file: Any) -> Sweep:
    try:
        # By hand, for NumPy leaves a file open that it cannot read.
        with open(file, "rb") as content, np.load(content) as opened:
            arrays = {name: opened[name] for name in opened.files}
        about = json.loads(str(arrays.pop("about")))
        counts = {len(array) for array in arrays.values()}
        written = set(about.pop("arrays", arrays))  # a damaged name hides an array
        if written != arrays.keys():
            raise ValueError(f"it lacks {', '.join(sorted(written - arrays.keys())) or 'names'}")
        lacking = set(about["methods"]) - {_method_of(n) for n in arrays if n.startswith(MAPS)}
        if lacking or len(counts) != 1:
            raise ValueError(f"it lacks maps of {', '.join(lacking)}" if lacking else "rows differ")
    except _UNREADABLE as error:
        raise ValueError(f"open_sweep: {file} must be a sweep's .npz file; {error}.") from None
    return collect(dequantised(arrays), about, np.arange(counts.pop()))


def save_npz(out: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes all into one file, which appears whole or not at all."""
    partial = f"{out}.{os.getpid()}.part"
    try:
        with open(partial, "wb") as file:
            told = {**about, "arrays": sorted(arrays)}
            members: dict[str, Any] = {"about": np.array(json.dumps(told)), **arrays}
            np.savez_compressed(file, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
