"""What a layer keeps of an image: inversion, caricature, and one image in the style of another."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.models import moving_images
from jaxviz.calls.public import public
from jaxviz.features import objectives
from jaxviz.features.maximization import ROBUST, Maximization, maximize_activation
from jaxviz.features.objectives import Objective
from jaxviz.features.parametrizations import Parametrization
from jaxviz.features.regularizers import total_variation
from jaxviz.features.transforms import Transform
from jaxviz.graph.split import activations


@public(x=moving_images)
def invert(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    *,
    layer: str,
    key: jax.Array,
    num_steps: int = 256,
    regularizers: Sequence[Objective] | None = None,
    transforms: Sequence[Transform] = (),
    parametrization: Parametrization | None = None,
    init: Any = "noise",
    **options: Any,
) -> Maximization:
    """Images that a layer cannot tell from the given ones: what it has forgotten is free.

    Minimises `|a(image) - a(x)|^2 / |a(x)|^2 + penalties` from noise.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, or `[N, C, H, W]` as the model has it, floating.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      key: PRNG key.
      num_steps: Steps, >= 1.
      regularizers: Penalties, of `jaxviz.regularizers`: what is taken to be natural. None is
        `total_variation(1.0)`.
      transforms: Of `jaxviz.transforms`.
      parametrization: Of `jaxviz.parametrizations`; None is `fourier()`, in 0 to 1.
      init: "noise", "blank" or images.
      **options: Further ones of `maximize_activation`.

    Returns:
      A `Maximization`; its `scores` are minus the relative squared distances.

    Raises:
      ValueError: As for `maximize_activation`.

    Example:
      >>> net, x = lambda w, x: jnp.tanh(x * w), jnp.full((1, 2, 2, 1), 0.8)
      >>> found = invert(net, 1.0, x, layer="tanh_0", key=jax.random.key(0), num_steps=100)
      >>> bool((found.images > 0.65).all()), bool(found.scores[0] > -0.05)
      (True, True)

    Reference:
      Mahendran and Vedaldi 2014, arXiv:1412.0035, eq. 1 and 2.
    """
    target = _seen(apply_fn, params, x, layer)
    return maximize_activation(
        apply_fn,
        params,
        jnp.shape(x),
        objectives.match(layer, target),
        key=key,
        num_steps=num_steps,
        regularizers=(total_variation(1.0),) if regularizers is None else regularizers,
        transforms=transforms,
        parametrization=parametrization,
        init=init,
        **options,
    )


@public(x=moving_images)
def caricature(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    *,
    layer: str,
    key: jax.Array,
    num_steps: int = 256,
    cosine_power: float = 2.0,
    transforms: Sequence[Transform] = ROBUST,
    parametrization: Parametrization | None = None,
    init: Any = "noise",
    **options: Any,
) -> Maximization:
    """Images that say louder what a layer sees in the given ones.

    Maximises the mean over places of `<a(image), a(x)> cos(a(image), a(x)) ** cosine_power`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, or `[N, C, H, W]` as the model has it, floating.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[N, ..., C]`.
      key: PRNG key.
      num_steps: Steps, >= 1.
      cosine_power: How much likeness counts beside strength.
      transforms: Of `jaxviz.transforms`.
      parametrization: Of `jaxviz.parametrizations`; None is `fourier()`, in 0 to 1.
      init: "noise", "blank" or images.
      **options: Further ones of `maximize_activation`.

    Returns:
      A `Maximization`.

    Raises:
      ValueError: As for `maximize_activation`.

    Reference:
      Olah et al. 2018, "The Building Blocks of Interpretability", Distill.
    """
    target = _seen(apply_fn, params, x, layer)
    return maximize_activation(
        apply_fn,
        params,
        jnp.shape(x),
        objectives.resemblance(layer, target, cosine_power=cosine_power),
        key=key,
        num_steps=num_steps,
        transforms=transforms,
        parametrization=parametrization,
        init=init,
        **options,
    )


@public(x=moving_images, style=moving_images)
def restyle(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    style: jax.Array,
    *,
    layer: str,
    style_layers: Sequence[str],
    key: jax.Array,
    num_steps: int = 256,
    style_weight: float = 1.0,
    transforms: Sequence[Transform] = (),
    **options: Any,
) -> Maximization:
    """Images that keep what a layer sees in `x` and take the textures of `style`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, floating: the content.
      style: `[1 or N, H', W', C]`.
      layer: Whose activations are kept.
      style_layers: Whose textures (`objectives.gram`) are taken over.
      key: PRNG key.
      num_steps: Steps, >= 1.
      style_weight: Of all texture distances together, each relative to the size of its texture.
      transforms: Of `jaxviz.transforms`.
      **options: Further ones of `maximize_activation`.

    Returns:
      A `Maximization`.

    Raises:
      ValueError: As for `maximize_activation`.

    Reference:
      Gatys et al. 2015, arXiv:1508.06576, eq. 7.
    """
    objective = objectives.match(layer, _seen(apply_fn, params, x, layer))
    wanted = activations(apply_fn, params, style, list(style_layers), channels_last=True)
    for name in style_layers:
        size = jnp.abs(objectives.gram(wanted[name])).mean((1, 2))
        part = objectives.style(name, wanted[name])
        objective = objective + part * (style_weight / len(style_layers) / size)
    return maximize_activation(
        apply_fn,
        params,
        jnp.shape(x),
        objective,
        key=key,
        num_steps=num_steps,
        transforms=transforms,
        init=options.pop("init", x),
        **options,
    )


def _seen(apply_fn, params, x, layer):
    return activations(apply_fn, params, x, [layer], channels_last=True)[layer]
