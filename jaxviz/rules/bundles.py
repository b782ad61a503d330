"""A value before and after a stretch of the input changes, and operations on such values."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.graph.rewrite import Op
from jaxviz.rules.spans import Spans, cut, paste, widened


class Changed(NamedTuple):
    """A value before and after.

    Attributes:
      clean: Before.
      part: The stretch that changed; None where nothing did.
      spans: Where it lies, one for each axis.
      origin: The same numbers in another shape in which they changed on a stretch, if they are
        whole here; None where that is not known.
    """

    clean: jax.Array
    part: Any
    spans: Spans
    origin: Any = None


def unchanged(array: jax.Array) -> Changed:
    """The bundle of a value that no change reaches."""
    return Changed(array, None, (None,) * jnp.ndim(array))


def before(v: Any) -> jax.Array:
    """A value before the change."""
    return v.clean if isinstance(v, Changed) else v


def after(v: Any) -> jax.Array:
    """A value after the change, whole."""
    if not isinstance(v, Changed):
        return v
    return v.clean if v.part is None else paste(v.clean, v.part, v.spans)


def changing(inputs: Sequence[Any]) -> list[Changed]:
    """Those of an operation's inputs that the change reaches."""
    return [v for v in inputs if isinstance(v, Changed) and v.part is not None]


def whole_on(v: Changed, axes: Sequence[int]) -> Changed:
    """The same change, its stretch all of the given axes."""
    assert v.part is not None
    spans = tuple(None if axis in axes else s for axis, s in enumerate(v.spans))
    return Changed(v.clean, widened(v.clean, v.part, v.spans, spans), spans)


def brought(v: Any, spans: Spans, shape: Sequence[int]) -> jax.Array:
    """An operand on the stretch `spans` of a result of `shape`, that it is broadcast to."""
    array = before(v)
    if jnp.ndim(array) == 0:
        return array
    pairs = zip(array.shape, shape, spans, strict=True)
    spans = tuple(s if size == full else None for size, full, s in pairs)
    if not isinstance(v, Changed) or v.part is None:
        return cut(array, spans)
    return widened(v.clean, v.part, v.spans, spans)


def whole(op: Op) -> Callable:
    """Any operation: on whole inputs."""

    def replaced(*inputs):
        clean = op.evaluate(*map(before, inputs))
        if not changing(inputs):
            return jax.tree.map(unchanged, clean)
        changed = op.evaluate(*map(after, inputs))
        if len(op.outputs) == 1:
            return Changed(clean, changed, (None,) * clean.ndim)
        return [Changed(a, b, (None,) * a.ndim) for a, b in zip(clean, changed, strict=True)]

    return replaced


def locally(op: Op, find: Callable[..., tuple[jax.Array, Spans] | None]) -> Callable:
    """An operation of one output whose changed stretch `find(*inputs)` computes, if it can."""

    def replaced(*inputs):
        changes = changing(inputs)
        if not changes or not any(any(v.spans) for v in changes):
            return whole(op)(*inputs)
        found = find(*inputs)
        if found is None:
            return whole(op)(*inputs)
        return Changed(op.evaluate(*map(before, inputs)), *found)

    return replaced
