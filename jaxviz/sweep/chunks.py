"""Any source of batches as numbered chunks of one size: what is computed, stored and resumed."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxviz.calls.arrays import array
from jaxviz.calls.options import refused


class Chunk(NamedTuple):
    """Consecutive examples.

    Attributes:
      number: Its place in the whole set; it holds the rows from `number * size` on.
      count: How many of its rows are examples; those after them repeat the first.
      x: Pytree of arrays `[size, ...]`.
      y: Labels `[size]`, or None.
    """

    number: int
    count: int
    x: Any
    y: Any


class Feed(NamedTuple):
    """A data set as chunks.

    Attributes:
      size: Rows of a chunk.
      total: Number of examples of the whole set, None where only its end will tell.
      sample: The first chunk's rows, `(x, y)`.
      chunks: `skip -> iterator`; chunks with `skip(number, x, y)` are left out.
    """

    size: int
    total: int | None
    sample: tuple[Any, Any]
    chunks: Callable[[Callable[[int, Any, Any], bool]], Iterator[Chunk]]


def feed(batches: Any, batch_size: int, first: int = 0, step: int = 1) -> Feed:
    """Cuts arrays into chunks, or numbers the batches of an iterable.

    Args:
      batches: `x`, `(x, y)` as arrays of the whole set, a `Dataset`, or an iterable of such batches
        of equal size, the last one maybe smaller.
      batch_size: Rows of a chunk where arrays are given; an iterable's first batch decides else.
      first: Number of this process's first chunk.
      step: Number of processes. Of arrays each takes every `step`-th chunk; an iterable gives its
        own chunks, and has to make those that are skipped.
    """
    whole = as_batch(batches)
    if whole is None:
        return _feed_of_batches(batches, first, step)
    total = check_batch(*whole)
    size = min(batch_size, total)

    def rows(number):
        return jax.tree.map(lambda a: _host(a[number * size : (number + 1) * size]), whole)

    def chunks(skip):
        for number in range(first, -(-total // size), step):
            x, y = rows(number)
            if not skip(number, x, y):
                yield filled(number, x, y, size)

    return Feed(size, total, rows(0), chunks)


def _feed_of_batches(batches: Iterable, first: int, step: int) -> Feed:
    try:
        rest = iter(batches)
    except TypeError:
        raise TypeError(
            "sweep: batches must be x, (x, y) or an iterable of those; got "
            f"{type(batches).__name__}. Pass arrays, a list or a loader."
        ) from None
    first_given = next(rest, None)
    sample = _batch(first_given)
    size, kind = check_batch(*sample), _kind(*sample)

    def chunks(skip):
        short = None
        for place, batch in enumerate(itertools.chain([first_given], rest)):
            x, y = _batch(batch)
            count = check_batch(x, y)
            if _kind(x, y) != kind:
                raise ValueError(
                    f"sweep: batches must be alike; the first had {kind[1]} {kind[0]}, batch "
                    f"{place} has {_kind(x, y)[1]} {_kind(x, y)[0]}. Three arrays of one batch are "
                    "one too many: a batch is x or (x, y)."
                )
            if short is not None or count > size:
                wrong = short or (place, count)
                raise ValueError(
                    f"sweep: batches must have one size, the last one maybe less; the first had "
                    f"{size} rows, batch {wrong[0]} has {wrong[1]}. Set the loader's batch size."
                )
            short = (place, count) if count < size else None
            if not skip(first + place * step, x, y):
                yield filled(first + place * step, x, y, size)

    return Feed(size, None, sample, chunks)


def _kind(x: Any, y: Any) -> tuple[str, str]:
    """What must be the same in each batch: the inputs' shapes, and whether there are labels."""
    shapes = jax.tree.map(lambda a: str(np.shape(a)[1:]), x)
    return str(shapes), "inputs alone" if y is None else "inputs and labels"


def _batch(given: Any) -> tuple[Any, Any]:
    if given is None:
        raise ValueError("sweep: batches must hold a batch; there was none. Was it used up before?")
    batch = as_batch(given)
    if batch is None:
        raise TypeError(
            f"sweep: a batch must be x or (x, y), arrays or dicts of arrays; got "
            f"{type(given).__name__}. Map your loader's items to that."
        )
    return jax.tree.map(_host, batch)


def _host(rows: Any) -> np.ndarray:
    """Rows of any library's array, as NumPy's of this machine's byte order."""
    if isinstance(rows, np.ma.MaskedArray):
        must = "arrays without a mask"
        raise refused("sweep", "batches", must, rows, "Fill it: x.filled(0.0).")
    return array("sweep", "batches", np.asarray(rows))


def filled(number: int, x: Any, y: Any, size: int) -> Chunk:
    """The chunk of these rows, its first row repeated up to `size`.

    Example:
      >>> filled(0, np.array([[1.0], [2.0]]), None, 3).x.tolist()
      [[1.0], [2.0], [1.0]]
    """
    count = check_batch(x, y)
    if count < size:
        fill = lambda a: np.concatenate([a, np.repeat(a[:1], size - count, axis=0)])
        x, y = jax.tree.map(fill, x), None if y is None else fill(y)
    return Chunk(number, count, x, y)


def check_batch(x: Any, y: Any) -> int:
    """Number of examples; refuses arrays that do not agree on it."""
    shapes = [np.shape(a) for a in jax.tree.leaves((x, y))]
    if not shapes or any(not s for s in shapes) or len({s[0] for s in shapes}) != 1:
        raise ValueError(
            f"sweep: x and y must be arrays [N, ...] of one N; got {shapes}. "
            "y holds one label a row."
        )
    if not shapes[0][0]:
        raise ValueError("sweep: a batch must hold an example; got none. Leave empty batches out.")
    if y is not None and (np.ndim(y) != 1 or not np.issubdtype(np.asarray(y).dtype, np.integer)):
        raise ValueError(
            f"sweep: labels must be integers [N]; got {np.asarray(y).dtype} {np.shape(y)}. "
            "One-hot labels are y.argmax(-1)."
        )
    return shapes[0][0]


def as_batch(value: Any) -> tuple[Any, Any] | None:
    """`(x, y)` where `value` is a batch, None where it is an iterable of them."""
    is_array = lambda a: hasattr(a, "shape") and hasattr(a, "dtype")
    if hasattr(value, "images") and hasattr(value, "labels"):  # a `jaxviz.data.Dataset`, and others
        value = value.images, value.labels
    x, y = value, None
    if isinstance(value, (tuple, list)) and len(value) == 2 and is_array(value[1]):
        # A loader's pair may be a list; so may two batches be, of inputs alone.
        if isinstance(value, tuple) or len(value[1].shape) == 1 != len(np.shape(value[0])):
            x, y = value
    if is_array(x) or (isinstance(x, dict) and x and all(map(is_array, jax.tree.leaves(x)))):
        return x, y
    return None


def ahead(items: Iterator, put: Callable) -> Iterator:
    """`put(item)` of each item, the next one made in a thread while this one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="jaxviz-feed") as thread:

        def take():
            item = next(items, None)
            return None if item is None else put(item)

        coming = thread.submit(take)
        while (item := coming.result()) is not None:
            coming = thread.submit(take)
            yield item
