"""What ready-made targets are made of: arguments that can be compared, and numbers picked."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.naming import calling
from jaxviz.calls.options import described, refused
from jaxviz.engine.copies import at_least_float32


@dataclasses.dataclass(frozen=True)
class Held:
    """An array that is compared by what is in it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.bytes, self.dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Target:
    """`outputs -> [N]`; equal for equal arguments."""

    function: Callable
    arguments: tuple

    def __call__(self, outputs: Any) -> jax.Array:
        name = self.function.__name__.strip("_")
        with calling(name):
            given = [a.array if isinstance(a, Held) else a for a in self.arguments]
            return self.function(name, outputs, *given)


def held(who: str, option: str, value: Any, kinds: str, must: str) -> Held:
    """An array of these kinds, known before anything is traced."""
    found = value if isinstance(value, Tracer) else numbers_list(who, option, value)
    if isinstance(found, Tracer):
        raise refused(who, option, f"{must}, known when it is compiled", value, "Pass NumPy's.")
    found = np.asarray(found)
    if found.dtype.kind not in kinds or not found.size:
        kind = ValueError if found.dtype.kind in kinds else TypeError
        raise refused(who, option, must, value, kind=kind)
    found = found.astype(np.int64) if found.dtype.kind in "iu" else found
    return Held(found.shape, found.dtype.str, found.tobytes())


def shape_of(who: str, outputs: Any, axes: int | None, must: str) -> tuple[int, ...]:
    """The shape of outputs with so many axes; others are refused."""
    shape = getattr(outputs, "shape", None)
    if shape is None or (axes is not None and len(shape) != axes) or len(shape) < 2:
        told = described(outputs) if shape is None else shape
        raise ValueError(f"{who}: outputs must be {must}; got {told}. Pick them in the model.")
    return shape


def inside(
    who: str, option: str, value: np.ndarray, low: float, high: float, count: int | None
) -> None:
    """Refuses numbers outside of [low, high), and arrays that are neither one nor `[count]`."""
    if count is not None and value.shape not in ((), (count,)):
        raise ValueError(
            f"{who}: {option} must be one number, or one for each of {count} examples; got shape "
            f"{value.shape}. Targets of other examples are made anew."
        )
    if value.min() < low or value.max() >= high:
        wrong = value[(value < low) | (value >= high)].ravel()[0]
        raise ValueError(
            f"{who}: {option} must be in [{low}, {high}), of the outputs; got {wrong}. Start at 0."
        )


def taken(outputs: jax.Array, index: Any) -> jax.Array:
    """`outputs[..., index]`, an index for each place."""
    return jnp.take_along_axis(outputs, jnp.asarray(index, jnp.int32)[..., None], -1)[..., 0]


def contrast(
    who: str, outputs: jax.Array, index: Any, alpha: Any, num_references: int
) -> jax.Array:
    """`[N]`: a class's score less `alpha` times the mean of those nearest to it."""
    count, classes = shape_of(who, outputs, 2, "[N, K]")
    if classes < 2:
        raise ValueError(
            f"{who}: outputs must have two classes, to tell one from others; got {outputs.shape}. "
            "Take `grad_cam`."
        )
    own = jnp.broadcast_to(index, (count,)).astype(jnp.int32)
    score = taken(outputs, own)
    apart = jnp.abs(jax.lax.stop_gradient(outputs) - jax.lax.stop_gradient(score)[:, None])
    apart = jnp.where(jnp.arange(classes, dtype=own.dtype)[None, :] == own[:, None], jnp.inf, apart)
    nearest = jax.lax.top_k(-apart, min(num_references, classes - 1))[1]
    others = jnp.take_along_axis(outputs, nearest, 1).mean(1)
    return score - jnp.asarray(alpha, outputs.dtype) * others


def overlap(boxes: jax.Array, box: jax.Array) -> jax.Array:
    """Intersection over union, `[N, B]`, of boxes `[N, B, 4]` with one each, `[N, 4]`."""
    box = box.astype(at_least_float32(boxes))[:, None]
    boxes = boxes.astype(box.dtype)
    sides = lambda a: jnp.maximum(a[..., 2:] - a[..., :2], 0)
    low, high = jnp.maximum(boxes[..., :2], box[..., :2]), jnp.minimum(boxes[..., 2:], box[..., 2:])
    both = sides(jnp.concatenate([low, high], -1)).prod(-1)
    return both / (sides(boxes).prod(-1) + sides(box).prod(-1) - both)
