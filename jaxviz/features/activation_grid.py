"""What a layer sees at each place of an image, made visible: a grid of climbed images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.models import moving_images
from jaxviz.calls.options import maybe, real, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.features.maximization import maximize_activation
from jaxviz.features.objectives import direction
from jaxviz.graph.split import activations
from jaxviz.parts.channels import channel_axis


class ActivationGrid(NamedTuple):
    """What each place of a layer holds, as images.

    Attributes:
      images: `[N, rows, columns, H, W, C]`, or in the layout that the model has: what has the
        direction of the place's values.
      strengths: `[N, rows, columns]`, the length of those values; an image of length 0 means
        nothing.
    """

    images: jax.Array
    strengths: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(
    x=moving_images,
    shape=maybe(several(whole(1), "whole numbers, at least 1, such as (H, W, C)", count=3)),
    cosine_power=real(0),
    chunk_size=maybe(whole(1)),
)
def activation_grid(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    *,
    layer: str,
    key: jax.Array,
    shape: Sequence[int] | None = None,
    cosine_power: float = 1.0,
    chunk_size: int | None = None,
    **options: Any,
) -> ActivationGrid:
    """Shows what a layer sees at each place of an image: what units are there, told by pictures.

    For each place an image is climbed whose layer has the direction of the values there:
    `objectives.direction`, all places of all images in one program.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, or `[N, C, H, W]` as the model has it, floating.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`, with two axes of space.
      key: PRNG key of where climbs begin.
      shape: Of the climbed images; None is that of an image of `x`. Smaller ones, where the model
        takes them, cost less: (64, 64, 3) shows a place of a deep layer well enough.
      cosine_power: As for `objectives.direction`: how much the direction counts beside being large.
      chunk_size: Images that climb at once, at most; None as for `maximize_activation`.
      **options: Further ones of `maximize_activation`: `num_steps`, `transforms`, ...

    Returns:
      An `ActivationGrid`; `plot.activation_grid` draws it. Costs a pass up to the layer, and a
      climb of as many images as there are places.

    Raises:
      ValueError: No such layer, or one without two axes of space.

    Example:
      >>> from jaxviz import parametrizations
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(jnp.array([1.0, 0.0, 0.0]))
      >>> found = activation_grid(
      ...     net, jnp.eye(3), x, layer="relu_0", key=jax.random.key(0), num_steps=60,
      ...     transforms=(), parametrization=parametrizations.pixels(),
      ... )
      >>> found.images[0, 0, 0].mean((0, 1)).argmax().item(), found.strengths[0].tolist()
      (0, [[1.0, 0.0], [0.0, 0.0]])

    Reference:
      Olah et al. 2018, "The Building Blocks of Interpretability", Distill,
      doi:10.23915/distill.00010: semantic dictionaries and activation grids. There neighbouring
      cells share a part of their images, so that the grid looks smooth; here each is its own.
    """
    who = "activation_grid"
    axis = channel_axis(who, apply_fn, params, x, layer)
    values = jnp.moveaxis(activations(apply_fn, params, x, [layer])[layer], axis, -1)
    if values.ndim != 4:
        raise ValueError(
            f"{who}: layer must have two axes of space, [N, rows, columns, C]; {layer!r} has "
            f"{values.ndim - 2}. Take one of `jaxviz.layers` before the pooling."
        )
    vectors = values.reshape(-1, values.shape[-1])
    images = climbed_along(
        apply_fn, params, x.shape[1:] if shape is None else shape, layer, vectors,
        cosine_power=cosine_power, key=key, chunk_size=chunk_size, options=options,
    )  # fmt: skip
    grid = values.shape[:3]
    return ActivationGrid(
        jnp.asarray(images).reshape(*grid, *images.shape[1:]), jnp.linalg.norm(values, axis=-1)
    )


def climbed_along(
    apply_fn: Callable,
    params: Any,
    shape: Sequence[int],
    layer: str,
    vectors: Any,
    *,
    cosine_power: float,
    key: jax.Array,
    chunk_size: int | None,
    options: dict[str, Any],
) -> np.ndarray:
    """An image for each direction of a layer, `[M, *shape]`, at most `chunk_size` at once."""
    lengths = np.linalg.norm(np.asarray(vectors), axis=1, keepdims=True)
    # Of the same length, so that regularizers weigh as much in each; 0 climbs nowhere.
    vectors = np.asarray(vectors) / np.where(lengths > 0, lengths, 1)
    count = len(vectors)
    chunk = None if chunk_size is None else min(chunk_size, count)
    if chunk is not None:  # the last ones come twice where chunks ask for more
        vectors = np.concatenate([vectors, np.repeat(vectors[-1:], -count % chunk, 0)])
    objective = direction(layer, vectors, cosine_power=cosine_power)
    found = maximize_activation(
        apply_fn, params, shape, objective, key=key, chunk_size=chunk, **options
    )
    return np.asarray(found.images)[:count]
