"""Arrays as text that a browser reads: blocks of rows, deflated, in base64."""

import base64
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

BLOCK = 2**21  # bytes of a block before it is deflated: what is decoded to show one example

Blocks = dict[str, str]


def rows_of(shape: tuple[int, ...], dtype: str) -> int:
    """How many rows of an array `[N, ...]` a block holds."""
    return max(1, BLOCK // max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize))


def parts(values: Any, size: int) -> Iterator[np.ndarray]:
    """So many rows of an array at a time; of one in a store no more is read."""
    for start in range(0, len(values), size):
        yield np.asarray(values[start : start + size])


def packed(
    name: str, shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray]
) -> tuple[dict[str, Any], Blocks]:
    """What the page has to know of an array, and its blocks by name.

    Args:
      name: Of the array; its blocks are numbered.
      shape: Of the whole.
      dtype: "float32", "int32" or "uint8", the least byte first.
      blocks: Its rows, `rows_of(shape, dtype)` at a time.

    Example:
      >>> about, blocks = packed("ones", (2, 3), "uint8", [np.ones((2, 3))])
      >>> about
      {'shape': [2, 3], 'dtype': 'uint8', 'rows': 699050, 'blocks': ['ones-0']}
      >>> zlib.decompress(base64.b64decode(blocks["ones-0"]))
      b'\\x01\\x01\\x01\\x01\\x01\\x01'
    """
    stored = np.dtype(dtype).newbyteorder("<")
    found = {
        f"{name}-{number}": base64.b64encode(
            zlib.compress(np.ascontiguousarray(block, stored).tobytes(), 6)
        ).decode()
        for number, block in enumerate(blocks)
    }
    about = {"shape": list(shape), "dtype": dtype, "rows": rows_of(shape, dtype)}
    return {**about, "blocks": list(found)}, found
