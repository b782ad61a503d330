"""Models small enough that the right attribution is a formula: Shapley values, exactly."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import fill
from jaxviz.calls.options import described, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html

_SHAPE = several(whole(1), "whole numbers, at least 1, (H, W, C)", count=3)


class Solved(NamedTuple):
    """Inputs, a model, and what each input is worth to it.

    Attributes:
      images: float32 `[N, H, W, C]`, in [0, 1).
      labels: int32 `[N]`, the model's top class.
      masks: bool `[N, H, W]`, the places that the label's output depends on.
      apply_fn: Pure `(params, x) -> [N, K]`.
      params: Of the model.
      baseline: float32 `[H, W, C]`, what stands for an input that is not there.
      attribution: float32 `[N, H, W, C]`, Shapley values of the label's output.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    apply_fn: Callable
    params: Any
    baseline: np.ndarray
    attribution: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


@public(shape=_SHAPE, num_classes=whole(1), num_relevant=whole(1), baseline=fill)
def planted_linear(
    key: jax.Array,
    num_images: int,
    *,
    shape: Sequence[int] = (8, 8, 1),
    num_classes: int = 3,
    num_relevant: int = 12,
    baseline: Any = 0.0,
) -> Solved:
    """A linear model with few weights, and its Shapley values `w * (x - baseline)`.

    Each class has `num_relevant` inputs of its own draw, with normal weights; of all others its
    output knows nothing.

    Args:
      key: PRNG key.
      num_images: N.
      shape: (H, W, C) of an input.
      num_classes: K.
      num_relevant: Inputs with a weight, for each class.
      baseline: Number, or `[H, W, C]`.

    Returns:
      A `Solved`.

    Raises:
      ValueError: There are fewer inputs than `num_relevant`.

    Example:
      >>> one = planted_linear(jax.random.key(0), 4)
      >>> gain = one.apply_fn(one.params, one.images) - one.apply_fn(one.params, one.baseline[None])
      >>> np.allclose(one.attribution.sum((1, 2, 3)), gain[np.arange(4), one.labels], atol=1e-5)
      True

    Reference:
      Lundberg and Lee 2017, arXiv:1705.07874, corollary 1.
    """
    base = _baseline("planted_linear", baseline, shape)
    size = _enough("planted_linear", "num_relevant", num_relevant, num_relevant, shape)
    x_key, place_key, weight_key = jax.random.split(key, 3)
    draw = jax.random.uniform(place_key, (num_classes, size))
    chosen = draw >= jnp.sort(draw, 1)[:, -num_relevant, None]
    weights = jnp.where(chosen, jax.random.normal(weight_key, draw.shape), 0.0)
    x = jax.random.uniform(x_key, (num_images, *shape))
    labels = np.asarray(_linear(weights, x)).argmax(1).astype(np.int32)
    own = np.asarray(weights)[labels].reshape(x.shape)
    inputs = np.asarray(x)
    return Solved(inputs, labels, (own != 0).any(-1), _linear, weights, base, own * (inputs - base))


def _linear(weights, x):
    return x.reshape(len(x), -1) @ weights.T


@public(shape=_SHAPE, num_classes=whole(1), num_pairs=whole(1), baseline=fill)
def planted_pairs(
    key: jax.Array,
    num_images: int,
    *,
    pair: Callable[[jax.Array, jax.Array], jax.Array] = jnp.multiply,
    shape: Sequence[int] = (8, 8, 1),
    num_classes: int = 3,
    num_pairs: int = 8,
    baseline: Any = 0.0,
) -> Solved:
    """A model of pairs of inputs that act together, and its Shapley values.

    An output is `sum_p w_p pair(x_i, x_j)` over `num_pairs` pairs of different inputs. With x' for
    the baseline, i gets of its pair the mean of what it adds alone and what it adds to the other,
    `w_p / 2 * (pair(x_i, x_j') - pair(x_i', x_j') + pair(x_i, x_j) - pair(x_i', x_j))`. Of a
    product, integrated gradients give the same; of `jnp.minimum` with a baseline of zero they give
    all to the smaller input, where this halves it.

    Args:
      key: PRNG key.
      num_images: N.
      pair: Function of two numbers, elementwise: `jnp.multiply`, `jnp.minimum`, `jnp.maximum`.
      shape: (H, W, C) of an input.
      num_classes: K; each has pairs of its own.
      num_pairs: For each class.
      baseline: Number, or `[H, W, C]`.

    Returns:
      A `Solved`.

    Raises:
      ValueError: There are fewer inputs than `2 * num_pairs`.

    Example:
      >>> one = planted_pairs(jax.random.key(0), 4, pair=jnp.minimum)
      >>> bool((one.attribution[~one.masks] == 0).all())
      True

    Reference:
      Shapley 1953, "A value for n-person games".
    """
    base = _baseline("planted_pairs", baseline, shape)
    size = _enough("planted_pairs", "num_pairs", num_pairs, 2 * num_pairs, shape)
    x_key, place_key, weight_key = jax.random.split(key, 3)
    draw = jax.random.uniform(place_key, (num_classes, size))
    places = jnp.argsort(draw, 1)[:, : 2 * num_pairs].reshape(num_classes, 2, num_pairs)
    weights = jax.random.normal(weight_key, (num_classes, num_pairs))
    x = jax.random.uniform(x_key, (num_images, *shape))
    apply_fn, params = _Pairs(pair), {"places": places, "weights": weights}
    labels = np.asarray(apply_fn(params, x)).argmax(1).astype(np.int32)
    first, second = np.asarray(places)[labels].swapaxes(0, 1)
    own, rows = np.asarray(weights)[labels], np.arange(num_images)[:, None]
    inputs = np.asarray(x).reshape(num_images, size)
    empty = np.broadcast_to(base.ravel(), inputs.shape)
    made = lambda a, b: own * np.asarray(pair(a[rows, first], b[rows, second]))
    together = made(inputs, inputs) - made(empty, empty)
    alone = made(inputs, empty) - made(empty, inputs)  # what the first adds more than the second
    shares, known = np.zeros((num_images, size), np.float32), np.zeros((num_images, size), bool)
    shares[rows, first], shares[rows, second] = (together + alone) / 2, (together - alone) / 2
    known[rows, first] = known[rows, second] = True
    masks = np.any(known.reshape(x.shape), axis=-1)
    return Solved(np.asarray(x), labels, masks, apply_fn, params, base, shares.reshape(x.shape))


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """The model; equal for the same function of a pair, so that nothing compiles twice."""

    pair: Callable

    def __call__(self, params, x):
        flat = x.reshape(len(x), -1)
        first, second = (flat[:, params["places"][:, side]] for side in (0, 1))
        return (params["weights"][None] * self.pair(first, second)).sum(-1)


def _baseline(name: str, baseline: Any, shape: Sequence[int]) -> np.ndarray:
    try:
        return np.broadcast_to(np.asarray(baseline, np.float32), tuple(shape))
    except (ValueError, TypeError):
        raise ValueError(
            f"{name}: baseline must be a number or of shape {tuple(shape)}; got "
            f"{described(baseline)}. Pass one for an input."
        ) from None


def _enough(name: str, option: str, wanted: int, needed: int, shape: Sequence[int]) -> int:
    size = math.prod(shape)
    if needed > size:
        raise ValueError(
            f"{name}: {option} must leave room in {size} inputs; got {wanted}, which take {needed}."
            " Take fewer, or a larger shape."
        )
    return size
