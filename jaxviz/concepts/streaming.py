"""Values of a layer as rows: of an array, of a store that is read in parts, or made as needed."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.options import layers as some_layers, refused, whole
from jaxviz.calls.public import public
from jaxviz.engine.contract import program
from jaxviz.graph.held import hold
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.split import Values
from jaxviz.rules.fast import fast, is_large

_RESIDENT = 2**30  # bytes of an array that is held whole
_PIECES = 16  # from how many places the rows of a block are read


def _set_of_inputs(who, option, value):
    if isinstance(value, jax.ShapeDtypeStruct):
        raise refused(who, option, "an array of examples [N, ...]", value)
    if not hasattr(value, "shape") or len(value.shape) < 2 or not value.shape[0]:
        kind = ValueError if hasattr(value, "shape") else TypeError
        raise refused(who, option, "an array of examples [N, ...]", value, kind=kind)
    if not _is_real(getattr(value, "dtype", None)) or hasattr(value, "mask"):
        raise refused(who, option, "an array of real numbers", value)
    return value


@public(x=_set_of_inputs, layer=some_layers, num_rows=whole(1))
def activations_of(
    apply_fn: Callable,
    params: Any,
    x: Any,
    *,
    layer: Any,
    key: jax.Array,
    num_rows: int = 65_536,
    batch_size: int = 64,
) -> Callable[[int], Any]:
    """Values of a layer, made block by block as a training asks for them; none is kept.

    Block n is of examples drawn by the key and n, all of their places, in random order; the
    examples of an epoch are each used once. A block is the same whenever it is asked for.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]`, the examples; anything with a shape that takes arrays of indices, a memory map
        too.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; or two, for `transcoder`.
      key: PRNG key.
      num_rows: Rows of a block, at most; at least those of one example.
      batch_size: Examples at once.

    Returns:
      A function `number -> [rows, C]`, or a pair of them for two layers, that
      `sparse_autoencoder` and `transcoder` take for activations.

    Raises:
      ValueError: No such layer, or two layers of different numbers of places.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w)
      >>> block = activations_of(
      ...     net, jnp.eye(2), np.ones((5, 2), "f4"), layer="relu_0", key=jax.random.key(0)
      ... )
      >>> block(0).shape, block(7).shape
      ((5, 2), (5, 2))
    """
    who = "activations_of"
    apply_fn, params = hold(who, apply_fn, params)
    names = (layer,) if isinstance(layer, str) else tuple(layer)
    size = min(batch_size, len(x))
    values = rewrite(Values(apply_fn, names, who, channels_last=True), fast)
    shapes = jax.eval_shape(values, params, jnp.asarray(x[:size]))
    places = {int(np.prod(shapes[name].shape[1:-1])) for name in names}
    if len(places) > 1:
        raise ValueError(
            f"{who}: layers must have the same number of places; got "
            + ", ".join(f"{name} {shapes[name].shape}" for name in names)
            + ". Take two layers of one size."
        )
    count = min(len(x), max(1, num_rows // places.pop()))
    run = program(_rows, (0, 1), nested=False, large=is_large(params))

    def block(number: int) -> Any:
        epoch, part = divmod(number, max(1, len(x) // count))
        rng = np.random.default_rng([*_bits(key), epoch])
        chosen = np.sort(rng.permutation(len(x))[part * count : (part + 1) * count])
        found: list[list[Any]] = [[] for _ in names]
        for at in range(0, count, size):
            few = chosen[at : at + size]
            filled = np.concatenate([few, np.repeat(few[-1:], size - len(few))])
            rows = run(values, names, params, jnp.asarray(x[filled]))
            for one, a in zip(found, rows, strict=True):
                one.append(a[: len(few)].reshape(-1, a.shape[-1]))
        wholes = [jnp.concatenate(one) for one in found]
        order = rng.permutation(len(wholes[0]))
        wholes = [a[order] for a in wholes]
        return wholes[0] if len(names) == 1 else tuple(wholes)

    return block


def _rows(values, names, params, x):
    found = values(params, x)
    return [found[name] for name in names]


def _bits(key: jax.Array) -> list[int]:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return np.asarray(key).ravel().tolist()


def source(who: str, option: str, value: Any) -> Any:
    """An array `[..., C]`, something lazy of such a shape, or a function of a block's number."""
    if isinstance(value, Tracer):
        raise refused(who, option, "known: a training is a loop of its own", value)
    if callable(value) and not isinstance(value, type) and not hasattr(value, "shape"):
        return value
    if not hasattr(value, "shape") or not hasattr(value, "dtype") or hasattr(value, "mask"):
        told = "an array [..., C] or a function of a block's number"
        raise refused(who, option, told, value)
    if isinstance(value, jax.ShapeDtypeStruct) or not _is_real(value.dtype):
        raise refused(who, option, "an array of real numbers", value)
    if len(value.shape) < 2 or 0 in value.shape:
        raise refused(who, option, "[..., C], rows of channels", value, kind=ValueError)
    return value


def _is_real(dtype):
    try:
        return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    except (TypeError, ValueError):  # of another library, or none
        return False


class Rows:
    """The rows that a training goes through, block by block: `[R, C]`, and what it decodes to.

    Arrays up to a gigabyte are one block; larger ones, and lazy ones, are read in parts, each from
    many places.
    """

    def __init__(self, who: str, given: tuple[Any, ...], key: jax.Array, batch_size: int):
        self._who, self._given, self._bits = who, given, _bits(key)
        self._number, self._block = -1, ()
        self._count = 0  # of examples in a block that is read from an array
        if not callable(given[0]):
            sizes = {a.shape[:-1] for a in given}
            if len(sizes) > 1:
                raise ValueError(
                    f"{who}: inputs and outputs must have the same places; got "
                    f"{given[0].shape} and {given[1].shape}. Take them from one run."
                )
            rows = int(np.prod(given[0].shape[1:-1]))
            each = rows * sum(a.shape[-1] for a in given) * 4
            self._count = min(len(given[0]), max(1, _RESIDENT // each))
        first = self.block(0)
        self.steps = max(1, len(first[0]) // batch_size) if self.moves else 0
        digest = 0
        for a in first:
            digest = zlib.crc32(np.ascontiguousarray(a).data, digest)
        self.digest = digest

    @property
    def moves(self) -> bool:
        """Whether there is more than one block."""
        return callable(self._given[0]) or self._count < len(self._given[0])

    def at(self, step: int) -> tuple[jax.Array, ...]:
        """The block that a step draws from."""
        return self.block(step // self.steps if self.moves else 0)

    def until(self, step: int) -> int:
        """The step at which the next block begins."""
        return (step // self.steps + 1) * self.steps if self.moves else np.iinfo(np.int32).max

    def block(self, number: int) -> tuple[jax.Array, ...]:
        if number != self._number:
            found = self._made(number) if callable(self._given[0]) else self._read(number)
            checked = tuple(_finite(self._who, a) for a in found)
            if self._block and [a.shape[1] for a in checked] != [a.shape[1] for a in self._block]:
                raise ValueError(
                    f"{self._who}: block {number} must have the channels of those before; got "
                    f"{[a.shape for a in checked]}. Give the same layer's values."
                )
            self._number, self._block = number, checked
        return self._block

    def _made(self, number):
        found = self._given[0](number)
        found = found if isinstance(found, tuple) else (found,)
        wanted = 2 if self._who == "transcoder" else 1
        arrays = all(hasattr(a, "shape") and hasattr(a, "dtype") for a in found)
        if len(found) != wanted or not arrays or {len(a.shape) >= 2 for a in found} != {True}:
            must = "a pair of arrays [..., C], [..., D]" if wanted == 2 else "an array [..., C]"
            raise refused(self._who, "what activations(number) gives", must, self._given[0](number))
        sizes = {a.shape[:-1] for a in found}
        if len(sizes) > 1:
            raise ValueError(
                f"{self._who}: a block must have the same places twice; got {sorted(sizes)}."
            )
        return found

    def _read(self, number):
        total = len(self._given[0])
        if self._count == total:
            return self._given
        rng = np.random.default_rng([*self._bits, number])
        length = max(1, self._count // _PIECES)
        starts = np.sort(rng.integers(0, total - length + 1, size=self._count // length))
        read = lambda a: np.concatenate([np.asarray(a[s : s + length]) for s in starts])
        return tuple(map(read, self._given))


def _finite(who, a):
    if not isinstance(a, jax.Array):
        a = np.asarray(a, np.float32)
    flat = jnp.asarray(a.reshape(-1, a.shape[-1])).astype(jnp.float32)
    if not bool(_all_finite(flat)):
        raise ValueError(
            f"{who}: activations must be finite; got NaN or infinity. Leave those examples out."
        )
    return flat


@jax.jit
def _all_finite(a):
    return jnp.isfinite(a).all()
