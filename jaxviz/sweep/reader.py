"""What a store holds, believed only where its digest says so: lost is never read as zeros."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxviz.sweep import store

# How TensorStore's errors begin where files are not there, or are not what they should be; the
# others (no permission, no network) are about the way to them.
_DAMAGE = ("NOT_FOUND", "FAILED_PRECONDITION", "DATA_LOSS", "OUT_OF_RANGE", "INVALID_ARGUMENT")


class Reader:
    """The chunks of a store, as they were counted when it was opened.

    Attributes:
      about: What its sweep was made with; None where there is no sweep.
      size: Rows of a chunk.
      counts: Chunk number -> its rows, of the chunks that are counted; 0 where that was lost.
      files: Chunk number -> all files of it, counted or not.
      names: The arrays that each chunk has; none where the array `digests` was lost, or where the
        store is of an older version, whose digests say less.
    """

    def __init__(self, out: Any):
        self._out, self._kv = out, store.open_place(out)
        self.about = store.read_about(self._kv)
        self.files: dict[int, set[str]] = {}
        for key in sorted(key.decode() for key in self._kv.list().result()):
            if (number := _number(key)) is not None:
                self.files.setdefault(number, set()).add(key)
        numbers = sorted(n for n, keys in self.files.items() if f"{store.ROWS}/c/{n}" in keys)
        rows, digests = self._open(store.ROWS), self._open(store.DIGESTS)
        self.size = self.about["chunk_rows"] if self.about else 0
        self.counts = {
            number: 0 if count is None or not 0 < count <= self.size else int(count)
            for number, count in self._each(rows, numbers).items()
        }
        self._digests = self._each(digests, numbers)
        self.names: list[str] = []
        if digests is not None:
            attributes = digests.spec().to_json()["metadata"].get("attributes", {})
            if isinstance(attributes, dict) and attributes.get("version") == store.VERSION:
                self.names = [str(name) for name in attributes.get("arrays", ())]
        self.arrays: Mapping[str, Any] = {name: self._open(name) for name in self.names}

    def read_all(self, name: str, numbers: Iterable[int], ahead: int = 4):
        """`(number, rows or None)` of each chunk, a few of them asked for ahead."""
        asked: list[tuple[int, Any]] = []
        for number in numbers:
            asked.append((number, self._ask(name, number)))
            if len(asked) > ahead:
                number, rows = asked.pop(0)
                yield number, self._checked(name, number, rows)
        for number, rows in asked:
            yield number, self._checked(name, number, rows)

    def whole(self, number: int) -> bool:
        """Whether a chunk is counted and all of its arrays are what was written: reads them."""
        if not self.names or not self.counts.get(number):
            return False
        asked = [(name, self._ask(name, number)) for name in self.names]
        return all(self._checked(name, number, rows) is not None for name, rows in asked)

    def inputs(self, number: int) -> np.ndarray | None:
        """SHA-256 `[32]` of what a whole chunk was made of."""
        digests = self._digests[number]
        return None if digests is None else digests[-1]

    def missing(self) -> list[int]:
        """Numbers of the counted chunks of which a file is not there: reads none of the others."""
        return [
            number
            for number, count in self.counts.items()
            if not count
            or self._digests[number] is None
            or not all(self._there(name, number) for name in self.names)
        ]

    def lost_words(self, numbers: Iterable[int], what: str = "") -> str:
        """What to say where rows of a store cannot be read."""
        return (
            f"open_sweep: {what}{self.spans(numbers)} of {self._out} must be what was written; "
            "files of it were lost or changed since. Run its sweep again, which makes them anew."
        )

    def spans(self, numbers: Iterable[int]) -> str:
        """The rows of these chunks in words: of chunks 0, 1 and 3 "rows 0 to 7, 12 to 15"."""
        size = self.size
        words: list[list[int]] = []
        for number in sorted(numbers):
            start, stop = number * size, number * size + (self.counts.get(number) or size) - 1
            if words and words[-1][1] == start - 1:
                words[-1][1] = stop
            else:
                words.append([start, stop])
        shown = ", ".join(f"{a} to {b}" if a < b else f"{a}" for a, b in words[:8])
        return f"rows {shown}" + (f" and {len(words) - 8} more spans" if len(words) > 8 else "")

    def _there(self, name: str, number: int) -> bool:
        array = self.arrays[name]
        return array is not None and (
            f"{name}/c/{number}" + "/0" * (array.rank - 1) in self.files[number]
        )

    def _open(self, name: str) -> Any:
        try:
            return store.open_array(self._out, name)
        except ValueError as error:
            return _lost(error)

    def _each(self, array: Any, numbers: list[int]) -> dict[int, Any]:
        if array is None:
            return dict.fromkeys(numbers)
        asked = [_begin(array, number) for number in numbers]
        return {n: _result(future) for n, future in zip(numbers, asked, strict=True)}

    def _ask(self, name: str, number: int) -> Any:
        start, count = number * self.size, self.counts[number]
        if not self._there(name, number):
            return None  # which zarr would read as zeros
        return _begin(self.arrays[name], slice(start, start + count))

    def _checked(self, name: str, number: int, asked: Any) -> np.ndarray | None:
        assert self.about is not None  # nothing is counted elsewhere
        rows, digests = _result(asked), self._digests[number]
        if rows is None or digests is None or len(digests) != len(self.names) + 1:
            return None
        found = store.chunk_digest(self.about, digests[-1], name, number, rows)
        return rows if np.array_equal(found, digests[self.names.index(name)]) else None


def _begin(array: Any, at: Any) -> Any:
    """Asks for a part of an array; None where it has no such part."""
    try:
        return array[at].read()
    except (ValueError, IndexError):
        return None


def _result(asked: Any) -> np.ndarray | None:
    try:
        return None if asked is None else np.asarray(asked.result())
    except ValueError as error:
        return _lost(error)


def _lost(error: ValueError) -> None:
    """Nothing, where an error says that files were lost or changed; else the error."""
    if not str(error).startswith(_DAMAGE):
        raise error


def _number(key: str) -> int | None:
    """Of the chunk that a file belongs to."""
    _, chunk, number = key.partition("/c/")
    number = number.partition("/")[0]
    return int(number) if chunk and number.isdecimal() and number == str(int(number)) else None
