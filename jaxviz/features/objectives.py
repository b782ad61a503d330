"""What an image is to excite: a unit, a channel, a direction, a class, and sums of these.

An `Objective` is data: the layers it reads, a pure function of their values, and the arrays (units,
weights, targets) that the function needs. The arrays are traced, so that one compiled climb serves
all units of a layer; objectives add, subtract and multiply. Values come with the batch first and
the channels last, wherever the model has them (`activations(..., channels_last=True)`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import rows
from jaxviz.calls.models import shapes_of
from jaxviz.calls.options import real, whole
from jaxviz.calls.public import public
from jaxviz.engine.copies import at_least_float32, is_floating
from jaxviz.features.closeness import (
    at_place,
    in_places,
    largest,
    toward,
    unit_length,
    weights_of_others,
)
from jaxviz.graph.indices import at_index, widened
from jaxviz.graph.split import OUTPUTS
from jaxviz.graph.symmetric import size

IMAGE = "<image>"  # stands for the image itself, as it is kept
KEPT = "<kept>/"  # before a layer's name: of the image as it is kept, before any transform


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """A number for each of M images, to be made large: `function(values, *data) -> [M]`.

    Attributes:
      function: A function that is equal (`==`) for equal objectives, such as one of a module; it
        gets the layers' values by name and the data.
      layers: Names of the layers that it reads, `OUTPUTS` and `IMAGE` among them.
      data: Arrays with a first axis of M or of 1, and other objectives.
      coupled: Whether an image's number depends on the other images.

    Example:
      >>> both = channel("conv", [3, 5]) - 0.1 * energy("conv")
      >>> both.layers, num_images(both)
      (('conv',), 2)
    """

    function: Callable = dataclasses.field(metadata={"static": True})
    layers: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    data: tuple = ()
    coupled: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, values: dict[str, jax.Array]) -> jax.Array:
        # Means, squares and products of half-precision numbers do not fit in half precision.
        wide = {name: a.astype(at_least_float32(a)) for name, a in values.items()}
        # Weights and directions are given before any layer is known, in 64 bits where these are on.
        kinds = [a.dtype for a in wide.values() if is_floating(a)]
        widest = max(kinds, key=lambda kind: kind.itemsize, default=None)
        data = jax.tree.map(lambda a: a.astype(widest) if is_floating(a) else a, self.data)
        return self.function(wide, *data)

    def __add__(self, other: Any) -> "Objective":
        return _combined(_sum, self, other)

    def __sub__(self, other: Any) -> "Objective":
        return _combined(_difference, self, other)

    def __mul__(self, other: Any) -> "Objective":
        return _combined(_times, self, other)

    def __neg__(self) -> "Objective":
        return self * -1.0

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Any) -> "Objective":
        return _combined(_sum, -self, other)


@public()
def num_images(objective: Objective) -> int:
    """How many images an objective is for: the longest first axis of its arrays, 1 if none."""
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(objective)} - {1}
    if len(sizes) > 1:
        raise ValueError(
            f"objective: its parts must be for one number of images, or for one; got "
            f"{sorted(sizes)}. Give as many units as weights and targets."
        )
    return sizes.pop() if sizes else 1


@public()
def neuron(layer: str, unit: Any, position: Sequence[int] | None = None) -> Objective:
    """One unit at one place of a layer.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[M, *space, C]`.
      unit: Index along the axis of channels, or M of them: one image each.
      position: Index along each axis of space; None is the middle.

    Example:
      >>> values = {"a": jnp.arange(9.0).reshape(1, 3, 3, 1)}
      >>> neuron("a", 0)(values).tolist(), neuron("a", 0, (0, 1))(values).tolist()
      ([4.0], [1.0])
    """
    return Objective(_At(layer, None if position is None else tuple(position)), (layer,), _i(unit))


@public()
def channel(layer: str, unit: Any) -> Objective:
    """The mean of one unit over all places of a layer.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[M, ..., C]`.
      unit: Index along the axis of channels, or M of them: one image each.

    Example:
      >>> channel("a", 1)({"a": jnp.array([[[1.0, 2.0], [3.0, 6.0]]])}).tolist()
      [4.0]
    """
    return Objective(_Mean(layer), (layer,), _i(unit))


@public()
def logit(unit: Any) -> Objective:
    """One of the model's outputs: the score of a class.

    Args:
      unit: Class index, or M of them: one image each.

    Example:
      >>> logit([1, 0])({OUTPUTS: jnp.array([[1.0, 2.0], [3.0, 4.0]])}).tolist()
      [2.0, 3.0]
    """
    return Objective(_Mean(OUTPUTS), (OUTPUTS,), _i(unit))


@public(vector=rows(1, "[C], or [M, C]"))
def direction(
    layer: str, vector: Any, *, cosine_power: float = 0.0, position: Sequence[int] | None = None
) -> Objective:
    """The projection of a layer onto a direction in the space of its units.

    The mean over places of `<a, v> * max(0.1, cos(a, v)) ** cosine_power`: with a power, being in
    the direction counts besides being large.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[M, ..., C]`.
      vector: `[C]`, or `[M, C]`: one image each.
      cosine_power: 0 or more.
      position: Index along each axis of space; None takes the mean over all.

    Reference:
      Carter et al. 2019, "Activation Atlas", Distill (the cosine); the floor of 0.1 keeps a
      gradient where the two point apart.
    """
    vector = jnp.atleast_2d(jnp.asarray(vector, float))
    where = None if position is None else tuple(position)
    data = (vector, jnp.full((1,), cosine_power, vector.dtype))
    return Objective(_Along(layer, where), (layer,), data)


@public()
def energy(layer: str) -> Objective:
    """The mean of a layer's squares: whatever it sees, more of it (the deep-dream objective).

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.

    Example:
      >>> energy("a")({"a": jnp.array([[1.0, 3.0]])}).tolist()
      [5.0]
    """
    return Objective(_Energy(layer), (layer,))


@public(first=whole(0), second=whole(0), num=whole(2))
def interpolation(layer: str, first: int, second: int, num: int) -> Objective:
    """From one channel to another in `num` images: `(1 - t) * first + t * second`.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[M, ..., C]`.
      first: The unit of the first image.
      second: The unit of the last one.
      num: How many images, >= 2.

    Example:
      >>> a = {"a": jnp.array([[8.0, 4.0]] * 3)}
      >>> interpolation("a", 0, 1, 3)(a).tolist()
      [8.0, 6.0, 4.0]
    """
    t = jnp.linspace(0.0, 1.0, num)
    return channel(layer, first) * _weights(1 - t) + channel(layer, second) * _weights(t)


@public(decay=real(1))
def alignment(layer: str, *, decay: float = 2.0) -> Objective:
    """Keeps similar things at one place in all images: minus their distances in a layer.

    For each image the mean over others of `-|a_i - a_j|^2 / decay^|i - j|`, squares averaged over
    the layer; subtract nothing, add it to what the images show, with a weight.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      decay: How much less images count that are further apart, >= 1.

    Reference:
      Mordvintsev et al. 2018, "Differentiable Image Parameterizations", Distill.
    """
    return Objective(_Alignment(layer), (layer,), (jnp.full((1,), float(decay)),), coupled=True)


@public()
def diversity(layer: str) -> Objective:
    """Makes images of one unit differ: minus the similarity of their textures.

    For each image the mean over the others of `-cos(gram(a_i), gram(a_j))`.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[M, ..., C]`.

    Reference:
      Olah et al. 2017, "Feature Visualization", Distill, section on diversity.
    """
    return Objective(_Diversity(layer), (layer,), coupled=True)


@public(target=rows(2, "[M or 1, ...], as the layer's output"))
def match(layer: str, target: jax.Array, *, transformed: bool = True) -> Objective:
    """Minus the distance from given activations: `-|a - target|^2 / |target|^2`.

    Of a target of zeros, which has no size to compare with, it is `-|a|^2`.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      target: `[M or 1, ...]`, as the layer's output.
      transformed: Whether the activations are of the image under the climb's transforms, else of
        the image as it is kept: one more run of the model in each step.

    Example:
      >>> match("a", jnp.array([[3.0, 4.0]]))({"a": jnp.array([[3.0, 9.0]])}).tolist()
      [-1.0]

    Reference:
      Mahendran and Vedaldi 2014, arXiv:1412.0035, eq. 2.
    """
    layer = layer if transformed else KEPT + layer
    return Objective(_Match(layer), (layer,), (jnp.asarray(target),))


@public(target=rows(2, "[M or 1, ..., C], as the layer's output"))
def resemblance(layer: str, target: jax.Array, *, cosine_power: float = 2.0) -> Objective:
    """More of what given activations hold, place by place: the caricature objective.

    The mean over places of `<a, t> * max(0.1, cos(a, t)) ** cosine_power`.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[M, ..., C]`.
      target: `[M or 1, ..., C]`, as the layer's output.
      cosine_power: 0 or more.
    """
    target = jnp.asarray(target)
    return Objective(
        _Resemblance(layer), (layer,), (target, jnp.full((1,), cosine_power, target.dtype))
    )


@public(target=rows(2, "[M or 1, ..., C], activations"))
def style(layer: str, target: jax.Array) -> Objective:
    """Minus the distance of a layer's texture from that of given activations.

    `-|gram(a) - gram(target)|_1` averaged over the C x C entries; `gram` is the mean over places of
    the products of units.

    Args:
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[M, ..., C]`.
      target: `[M or 1, ..., C]`: activations of the image whose style it is; its space may differ.

    Reference:
      Gatys et al. 2015, arXiv:1508.06576, eq. 3 to 5; there squares, here absolute differences.
    """
    return Objective(_Style(layer), (layer,), (gram(jnp.asarray(target)),))


@public(a=rows(2, "[M, ..., C]"))
def gram(a: jax.Array) -> jax.Array:
    """Mean products of a layer's units over its places: `[M, ..., C] -> [M, C, C]`.

    Example:
      >>> gram(jnp.array([[[1.0, 2.0], [3.0, 0.0]]])).tolist()
      [[[5.0, 1.0], [1.0, 2.0]]]
    """
    flat = a.reshape(a.shape[0], -1, a.shape[-1])
    return jnp.einsum("mpc,mpd->mcd", flat, flat) / flat.shape[1]


def check(objective: Objective, values: dict[str, Any], who: str, count: int) -> None:
    """Refuses units that a layer does not have, and layers that no image can climb.

    Args:
      objective: The objective.
      values: Shapes and dtypes of the layers by name.
      who: The public function, for errors.
      count: How many images there are.
    """
    for part in _parts(objective):
        layer = getattr(part.function, "layer", None)
        if type(part.function).__module__ != __name__ or layer not in values:
            continue  # a user's own function reads what it likes
        shape, dtype = getattr(values[layer], "shape", ()), getattr(values[layer], "dtype", bool)
        if not shape or shape[0] != count or not jnp.issubdtype(dtype, jnp.floating):
            told = "apply_fn's outputs" if layer == OUTPUTS else f"layer {layer!r}"
            came = shapes_of(values[layer]) if dtype is bool else f"{dtype} of shape {shape}"
            raise ValueError(
                f"{who}: {told} must be floating numbers [M, ..., C] of the M = {count} images "
                f"given; got {came}. Let apply_fn return what the objective reads."
            )
        if not isinstance(part.function, (_At, _Mean)):
            continue
        (units,) = part.data
        if isinstance(units, Tracer):
            continue
        wrong = [int(u) for u in np.asarray(units) if not 0 <= u < shape[-1]]
        if wrong:
            told = "the model's outputs have" if layer == OUTPUTS else f"layer {layer!r} has"
            raise ValueError(
                f"{who}: unit must be in [0, {shape[-1]}), for {told} shape {shape}; got "
                f"{wrong[0]}."
            )


def _parts(objective: Objective) -> Iterator[Objective]:
    yield objective
    for part in objective.data:
        if isinstance(part, Objective):
            yield from _parts(part)


def _i(unit: Any) -> tuple[jax.Array]:
    units = unit if isinstance(unit, jax.Array) else np.asarray(unit)
    if not jnp.issubdtype(units.dtype, jnp.integer) or units.ndim > 1 or units.size == 0:
        raise ValueError(
            f"objective: unit must be an index or a list of indices; got {units.dtype} of shape "
            f"{units.shape}."
        )
    return (jnp.atleast_1d(widened(units)),)


def _combined(function: Callable, left: Objective, right: Any) -> Objective:
    parts = (left, right if isinstance(right, Objective) else _weights(right))
    layers = tuple(dict.fromkeys(name for part in parts for name in part.layers))
    return Objective(function, layers, parts, any(part.coupled for part in parts))


def _weights(number: Any) -> Objective:
    """A number for every image, or one for each."""
    return Objective(_constant, (), (jnp.atleast_1d(jnp.asarray(number, float)),))


def _constant(values, weights):
    return weights


def _sum(values, left, right):
    return _broadcast(jnp.add, left(values), right(values))


def _difference(values, left, right):
    return _broadcast(jnp.subtract, left(values), right(values))


def _times(values, left, right):
    return _broadcast(jnp.multiply, left(values), right(values))


def _broadcast(function, left, right):
    return function(left, right.astype(left.dtype))


@dataclasses.dataclass(frozen=True)
class _Of:
    """A function of a layer, equal for equal layers."""

    layer: str


@dataclasses.dataclass(frozen=True)
class _Mean(_Of):
    def __call__(self, values, units):
        return at_index(in_places(values[self.layer]).mean(1), units)


@dataclasses.dataclass(frozen=True)
class _At(_Of):
    position: tuple[int, ...] | None

    def __call__(self, values, units):
        return at_index(at_place(values[self.layer], self.position), units)


@dataclasses.dataclass(frozen=True)
class _Along(_Of):
    position: tuple[int, ...] | None

    def __call__(self, values, vector, power):
        a = values[self.layer]
        a = in_places(a) if self.position is None else at_place(a, self.position)[:, None]
        return toward(a, vector[:, None].astype(a.dtype), power)


@dataclasses.dataclass(frozen=True)
class _Energy(_Of):
    def __call__(self, values):
        a = values[self.layer]
        return (a * a).reshape(a.shape[0], -1).mean(1)


@dataclasses.dataclass(frozen=True)
class _Match(_Of):
    def __call__(self, values, target):
        a = values[self.layer]
        axes = tuple(range(1, a.ndim))
        scale = largest(target, axes)
        off, whole = (a - jnp.broadcast_to(target, a.shape)) / scale, target / scale
        square = (whole * whole).sum(axes)
        return -(off * off).sum(axes) / jnp.where(square == 0, 1, square)


@dataclasses.dataclass(frozen=True)
class _Resemblance(_Of):
    def __call__(self, values, target, power):
        return toward(in_places(values[self.layer]), in_places(target), power)


@dataclasses.dataclass(frozen=True)
class _Style(_Of):
    def __call__(self, values, target):
        found = gram(values[self.layer])
        return -size(found - jnp.broadcast_to(target, found.shape)).mean((1, 2))


@dataclasses.dataclass(frozen=True)
class _Alignment(_Of):
    def __call__(self, values, decay):
        a = values[self.layer].reshape(values[self.layer].shape[0], -1)
        off = ((a[:, None] - a[None]) ** 2).mean(2)
        return -(off * weights_of_others(a, decay)).sum(1)


@dataclasses.dataclass(frozen=True)
class _Diversity(_Of):
    def __call__(self, values):
        grams = gram(values[self.layer])
        flat = grams.reshape(grams.shape[0], -1)
        unit = unit_length(flat, (1,))
        return -((unit @ unit.T) * weights_of_others(flat, jnp.ones((1,), flat.dtype))).sum(1)
