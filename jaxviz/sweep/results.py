"""What a sweep leaves: arrays in memory, in an .npz file or read lazily from a store."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxviz.sweep import store

MAPS, SUMMARIES, SCALES = "maps/", "summaries/", "scales/"


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
    """

    maps: dict[str, Any]
    summaries: dict[str, Summary]
    labels: np.ndarray | None
    predicted: np.ndarray | None
    outputs: np.ndarray | None
    probabilities: np.ndarray | None
    about: dict[str, Any]

    def not_finite(self, method: str) -> np.ndarray:
        """Indices of the examples whose map holds a NaN or an infinity."""
        return np.flatnonzero(~np.isfinite(self.summaries[method].magnitude))

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
    all. Quantised maps come out in float32.

    Attributes:
      shape: `[N, ...]`.
      dtype: Of what comes out.
    """

    def __init__(self, array: Any, rows: np.ndarray | None, num: int, scale: np.ndarray | None):
        self._array, self._rows, self._scale = array, rows, scale
        self.shape = (num, *array.shape[1:])
        self.dtype = np.dtype(np.float32) if scale is not None else array.dtype.numpy_dtype

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
        at = rows if self._rows is None else self._rows[rows]
        if at.size and at.ndim == 1 and (np.diff(at) == 1).all():
            at = slice(int(at[0]), int(at[-1]) + 1)  # neighbours, read at once
        out = np.asarray(self._array[at].read().result())
        if self._scale is not None:
            scale = self._scale[rows]
            out = out.astype(np.float32) * scale.reshape(*scale.shape, *[1] * (self.ndim - 1))
        return out[(slice(None),) * rows.ndim + tuple(others)] if others else out

    def __iter__(self):
        return (self[n] for n in range(len(self)))

    def __array__(self, dtype=None, copy=None):
        out = self[:]
        return out if dtype is None else out.astype(dtype)

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"


def collect(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> Sweep:
    """The `Sweep` of flat arrays by name."""
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
    )


def dequantised(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Maps in float32 again where they were quantised."""
    out = {k: v for k, v in arrays.items() if not k.startswith(SCALES)}
    for name, scale in arrays.items():
        if name.startswith(SCALES):
            of = MAPS + name.removeprefix(SCALES)
            shape = (len(scale), *[1] * (arrays[of].ndim - 1))
            out[of] = arrays[of].astype(np.float32) * scale.reshape(shape)
    return out


def open_sweep(out: Any) -> Sweep:
    """Opens what `sweep(..., out=out)` wrote, finished or not; maps are read when they are used.

    Args:
      out: Folder, URL, TensorStore key-value spec, or an .npz file.

    Returns:
      A `Sweep` of the rows that are done.

    Raises:
      ValueError: There is no sweep, or none of its rows is done.
    """
    if not isinstance(out, Mapping) and os.fspath(out).endswith(".npz"):
        try:
            with np.load(out) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays.pop("about")))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"open_sweep: {out} must be a sweep's .npz file; {error}.") from None
        return collect(dequantised(arrays), about)
    kv = store.open_place(out)
    about = store.read_about(kv)
    if about is None:
        raise ValueError(f"open_sweep: {out} holds no sweep. Pass what `sweep(..., out=...)` got.")
    counts = store.row_counts(out)
    if not counts:
        raise ValueError(f"open_sweep: no chunk of {out} is done yet. Run its sweep on.")
    size = about["chunk_rows"]
    rows = np.concatenate([np.arange(n * size, n * size + c) for n, c in sorted(counts.items())])
    whole = len(rows) == rows[-1] + 1
    arrays = {}
    order = list(about["methods"])
    place = lambda name: order.index(name.split("/")[1].split(".")[0]) if "/" in name else -1
    names = sorted((n for n in store.array_names(kv) if n != store.ROWS), key=place)
    opened = {name: store.open_array(out, name) for name in names}
    read = lambda name, scale=None: LazyArray(
        opened[name], None if whole else rows, len(rows), scale
    )
    for name in names:
        if name.startswith(MAPS):
            scale = SCALES + name.removeprefix(MAPS)
            arrays[name] = read(name, np.asarray(read(scale)) if scale in opened else None)
        elif not name.startswith(SCALES):
            arrays[name] = read(name)
    return collect(arrays, about)


def save_npz(out: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes all into one file, which appears whole or not at all."""
    partial = f"{out}.{os.getpid()}.part"
    try:
        with open(partial, "wb") as file:
            members: dict[str, Any] = {"about": np.array(json.dumps(about)), **arrays}
            np.savez_compressed(file, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
