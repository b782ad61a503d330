"""Images held to what is natural while they climb: by their spectrum, or by a photograph."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from jaxviz.calls.models import moving_images
from jaxviz.calls.public import public
from jaxviz.features import objectives
from jaxviz.features.maximization import Maximization, maximize_activation
from jaxviz.features.objectives import Objective
from jaxviz.features.parametrizations import fourier, phases
from jaxviz.features.transforms import Transform, jitter, zoom
from jaxviz.graph.split import activations

_NADAM = optax.nadam(0.1)
_ADAM = optax.adam(0.02)
_CROPS = (zoom(0.25, 0.75),)
_LITTLE = (zoom(0.7, 1.0), jitter(1 / 32))


@public()
def maco(
    apply_fn: Callable,
    params: Any,
    shape: Sequence[int],
    objective: Objective,
    *,
    magnitude: jax.Array | None = None,
    key: jax.Array,
    num_steps: int = 256,
    num_views: int = 4,
    optimizer: optax.GradientTransformation = _NADAM,
    transforms: Sequence[Transform] = _CROPS,
    value_range: tuple[float, float] = (0.0, 1.0),
    **options: Any,
) -> Maximization:
    """Feature visualisation that moves phases alone: every image has the spectrum of photographs.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      shape: `(H, W, C)`, or `(M, H, W, C)`.
      objective: One of `jaxviz.objectives`.
      magnitude: `[C, H, W // 2 + 1]`: `parametrizations.spectrum(photographs, (H, W, C))`; None is
        `parametrizations.natural_spectrum`.
      key: PRNG key.
      num_steps: Steps, >= 1.
      num_views: Crops averaged in each step.
      optimizer: Any optax transformation.
      transforms: Of `jaxviz.transforms`: random crops at full size.
      value_range: Smallest and largest value of an image.
      **options: Further ones of `maximize_activation`.

    Returns:
      A `Maximization`, whose `importance` is the paper's transparency mask.

    Raises:
      ValueError: As for `maximize_activation`, or `magnitude` of another shape.

    Reference:
      Fel et al. 2023, arXiv:2306.06805, section 3 and algorithm 1. There 32 crops of a share that
      shrinks from 0.5 to 0.05, of images of 1,280 pixels; here shares from 0.25 to 0.75 throughout.
    """
    return maximize_activation(
        apply_fn,
        params,
        shape,
        objective,
        key=key,
        num_steps=num_steps,
        num_views=num_views,
        optimizer=optimizer,
        transforms=transforms,
        parametrization=phases(magnitude, *value_range),
        **options,
    )


@public(x=moving_images)
def accentuate(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    objective: Objective,
    *,
    layer: str,
    key: jax.Array,
    weight: float = 1.0,
    num_steps: int = 100,
    num_views: int = 2,
    optimizer: optax.GradientTransformation = _ADAM,
    transforms: Sequence[Transform] = _LITTLE,
    value_range: tuple[float, float] = (0.0, 1.0),
    **options: Any,
) -> Maximization:
    """Photographs changed to show more of a feature where they have it, and else kept.

    Maximises `objective - weight * |a(image) - a(x)|^2 / |a(x)|^2` from `x` in waves (`fourier`).

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, or `[N, C, H, W]` as the model has it, floating, within `value_range`.
      objective: One of `jaxviz.objectives`.
      layer: Where the image is to stay what it was.
      key: PRNG key.
      weight: Of staying; in units of the objective.
      num_steps: Steps, >= 1.
      num_views: Draws of the transforms averaged in each step.
      optimizer: Any optax transformation.
      transforms: Of `jaxviz.transforms`; the objective is seen through them, staying is not.
      value_range: Smallest and largest value of an image.
      **options: Further ones of `maximize_activation`.

    Returns:
      A `Maximization`, whose `importance` says which pixels mattered.

    Raises:
      ValueError: As for `maximize_activation`.

    Reference:
      Hamblin et al. 2024, arXiv:2402.10039, eq. 2. There the distance is taken under the same
      draw of the transforms for both; here without any.
    """
    target = activations(apply_fn, params, x, [layer], channels_last=True)[layer]
    return maximize_activation(
        apply_fn,
        params,
        x.shape,
        objective + weight * objectives.match(layer, target, transformed=False),
        key=key,
        num_steps=num_steps,
        num_views=num_views,
        optimizer=optimizer,
        transforms=transforms,
        parametrization=fourier(*value_range),
        init=x,
        redirected_steps=options.pop("redirected_steps", 0),
        **options,
    )
