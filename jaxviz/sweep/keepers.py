"""Where a sweep's rows go: into memory (and at the end an .npz file) or into a store."""

import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from jaxviz.calls.naming import warn
from jaxviz.sweep import results
from jaxviz.sweep.chunks import Chunk, Feed
from jaxviz.sweep.reader import Reader
from jaxviz.sweep.store import Writer, inputs_digest, unwritable

# Chunks whose files are on their way to the disk while the next ones are worked on.
_IN_FLIGHT = 6


class Memory:
    """Keeps all rows in memory; writes them at the end if `file` is given."""

    def __init__(self, about, file: str | None):
        self._about, self._file = about, file
        self._parts: list[dict[str, np.ndarray]] = []

    def has(self, number: int, x: Any, y: Any) -> bool:
        return False

    def keep(self, chunk: Chunk, arrays: Mapping[str, np.ndarray]) -> None:
        self._parts.append({name: np.asarray(a)[: chunk.count] for name, a in arrays.items()})

    def settle(self) -> None:
        pass

    def close(self, process: int, processes: int) -> results.Sweep:
        whole = {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}
        if self._file is not None:
            results.save_npz(self._file, whole, self._about)
        rows = np.arange(sum(len(next(iter(part.values()))) for part in self._parts))
        return results.collect(results.dequantised(whole), self._about, rows)


class Store:
    """Keeps rows in a store, a few chunks on their way at once."""

    def __init__(self, out, about, source: Feed, resume: bool):
        self._out = out
        self._writer = Writer(out, about, source.size, source.total)
        self._before = Reader(out)
        self._pending: deque = deque()
        self._asked = -1  # the last chunk of the set as far as it is known
        self._lost: list[int] = []
        self._given: dict[int, np.ndarray] = {}  # digests of the inputs of chunks in work
        if self._before.counts and not resume:
            raise ValueError(
                f"sweep: {out} must be new where resume is False; it holds "
                f"{len(self._before.counts)} chunks. Choose another folder, or let it go on."
            )

    def has(self, number: int, x: Any, y: Any) -> bool:
        """Whether the chunk is there as it was written: the store's own word for it is not enough.

        Reads it, in the thread that reads ahead, and refuses rows that were made of other inputs.
        """
        self._asked = number
        inputs = inputs_digest(x, y)
        if self._before.whole(number):
            held = self._before.inputs(number)
            if held is None or not np.array_equal(inputs, held):
                raise ValueError(
                    f"sweep: {self._out} holds another sweep: its {self._before.spans([number])} "
                    "were made of other inputs or labels than this one's. Choose a new folder, or "
                    "pass what it was made with, in the same order."
                )
            return True
        self._given[number] = inputs
        if number in self._before.counts:
            self._lost.append(number)
        if files := self._before.files.get(number):
            # A file of which a part is written anew is read first, and this one may be damaged.
            self._writer.remove(number, files)
        return False

    def keep(self, chunk: Chunk, arrays: Mapping[str, np.ndarray]) -> None:
        inputs = self._given.pop(chunk.number)
        self._pending.append(self._writer.write(chunk.number, chunk.count, arrays, inputs))
        while self._pending and (self._pending[0].ready() or len(self._pending) > _IN_FLIGHT):
            self._pending.popleft().commit()

    def settle(self) -> None:
        while self._pending:
            self._pending.popleft().commit()

    def close(self, process: int, processes: int) -> results.Sweep:
        if processes > 1:
            multihost_utils.sync_global_devices("jaxviz.sweep: all rows are written")
        if process == 0:
            now = Reader(self._out)
            for number in [n for n in now.counts if n > self._asked and not now.whole(n)]:
                self._writer.remove(number, now.files[number])  # no chunk of this set
                del now.counts[number]
            self._writer.finish(now.counts)
        if processes > 1:
            multihost_utils.sync_global_devices("jaxviz.sweep: the store is whole")
        if self._lost:
            warn(
                f"sweep: {self._before.spans(self._lost)} of {self._out} were lost or changed "
                "since they were written; they were made again.",
            )
        return results.open_sweep(self._out)


def keeper(
    out: Any, about: Mapping[str, Any], source: Feed, resume: bool, processes: int
) -> Memory | Store:
    """What keeps the rows of `sweep(..., out=out)`."""
    if isinstance(out, Mapping) or (out is not None and not os.fspath(out).endswith(".npz")):
        return Store(out, about, source, resume)
    if processes > 1:
        raise ValueError(
            f"sweep: out must be a store that all {processes} processes reach, a folder or URL; "
            f"got {out}. Each of them writes its own rows there."
        )
    if out is not None and os.path.exists(out):
        raise ValueError(f"sweep: {out} must not exist yet. Choose another name, or remove it.")
    if out is not None:
        folder = os.path.dirname(os.path.abspath(out))
        try:
            os.makedirs(folder, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder} is read-only")
        except OSError as error:
            raise ValueError(unwritable(out, error)) from error
    return Memory(about, None if out is None else os.fspath(out))
