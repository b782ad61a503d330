"""Deep dream: photographs that show more of what a layer sees in them, at several sizes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxviz.calls.models import some_moving
from jaxviz.calls.public import public
from jaxviz.engine.layout import of_places
from jaxviz.features.maximization import maximize_activation
from jaxviz.features.objectives import Objective
from jaxviz.features.parametrizations import pixels
from jaxviz.features.transforms import Transform, jitter

_JITTER = (jitter(32),)


@public(x=some_moving)
@of_places
def deep_dream(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    objective: Objective,
    *,
    key: jax.Array,
    num_octaves: int = 4,
    octave_scale: float = 1.4,
    num_steps: int = 10,
    step_size: float = 0.01,
    value_range: tuple[float, float] = (0.0, 1.0),
    transforms: Sequence[Transform] = _JITTER,
    regularizers: Sequence[Objective] = (),
) -> jax.Array:
    """Climbs an objective from given images, first small, then larger, keeping what was added.

    At each size the image is the given one at that size plus the detail found so far, enlarged;
    then `num_steps` steps of the gradient, divided by its root mean square, are taken.

    Args:
      apply_fn: Pure `(params, x) -> outputs` that takes images of any size up to the layers that
        the objective reads. Compiled once for each size.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, floating, within `value_range`; or `[N, C, H, W]`, as the model has it.
      objective: One of `jaxviz.objectives`: `energy(layer)` for more of whatever is seen, a channel
        or class for more of that.
      key: PRNG key of the transforms.
      num_octaves: How many sizes, >= 1; the last is that of `x`.
      octave_scale: Ratio of one size to the one before, > 1.
      num_steps: Steps at each size, >= 1.
      step_size: Root mean square change of a pixel in a step, as a share of the range; towards the
        ends of the range pixels move less.
      value_range: Smallest and largest value of an image.
      transforms: Of `jaxviz.transforms`, seen by the model alone.
      regularizers: Penalties, of `jaxviz.regularizers`.

    Returns:
      The shape of `x`, within `value_range`.

    Raises:
      ValueError: As for `maximize_activation`; or an option out of its range.

    Example:
      >>> from jaxviz.features import objectives
      >>> net = lambda w, x: x.mean((1, 2)) * w  # of any size
      >>> x, key = jnp.full((1, 8, 8, 1), 0.5), jax.random.key(0)
      >>> dream = deep_dream(net, 1.0, x, objectives.logit(0), key=key, num_octaves=1)
      >>> dream.shape, bool((dream > 0.55).all())
      ((1, 8, 8, 1), True)

    Reference:
      Mordvintsev et al. 2015, "Inceptionism", Google Research Blog: four octaves of 1.4, ten steps.
      There a step is divided by the mean |gradient| and taken in the pixels' values, clipped.
    """
    who = "deep_dream"
    x = jnp.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"{who}: x must be [N, H, W, C]; got {x.shape}. One image is x[None].")
    detail = jnp.zeros_like(x)
    dream = x
    for octave in reversed(range(num_octaves)):
        size = tuple(max(1, round(n / octave_scale**octave)) for n in x.shape[1:3])
        shape = (x.shape[0], *size, x.shape[3])
        base = _resized(x, shape)
        climbed = maximize_activation(
            apply_fn,
            params,
            shape,
            objective,
            key=jax.random.fold_in(key, octave),
            num_steps=num_steps,
            optimizer=_sgd(step_size, *value_range),
            transforms=transforms,
            regularizers=regularizers,
            parametrization=pixels(*value_range),
            init=jnp.clip(base + _resized(detail, shape), *value_range),
            normalize_gradient=True,
            redirected_steps=0,
        )
        dream = climbed.images
        detail = dream - base
    return dream


def _resized(images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return images if images.shape == shape else jax.image.resize(images, shape, "linear")


@functools.cache
def _sgd(step_size: float, low: float, high: float) -> optax.GradientTransformation:
    """The same object for the same step, for it is a part of the compiled program."""
    # In the middle the slope of the sigmoid is (high - low) / 4, on the way there and back.
    return optax.sgd(16 * step_size / (high - low))
