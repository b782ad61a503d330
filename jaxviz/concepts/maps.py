"""Where in images the concepts of a dictionary are."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.concepts.dictionary import Dictionary, encode
from jaxviz.concepts.factorization import Factorization, nmf
from jaxviz.engine.layout import channels_of
from jaxviz.graph.held import hold
from jaxviz.graph.split import Values, run_values


@public()
def concept_maps(
    apply_fn: Callable,
    params: Any,
    x: Any,
    *,
    layer: str,
    dictionary: Dictionary,
    resize: bool = True,
) -> jax.Array:
    """The codes of a layer's places, one map a concept.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, or with channels first where the model has them so.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`, with output `[N, *places, channels]`,
        its channels on any axis.
      dictionary: Of K atoms in the layer's channels.
      resize: Whether maps become as large as `x`, bilinearly; else they have the layer's places.

    Returns:
      `[N, *space, K]`, in units of the layer (atoms of `nmf` have length 1). For tokens `[N, T, K]`
      without `resize`.

    Raises:
      ValueError: No such layer, one with another number of channels, or one without places.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda w, x: jax.nn.relu(x)
      >>> one = Dictionary(jnp.array([[1.0]]))
      >>> x = jnp.array([[[[2.0], [-1.0]]]])
      >>> concept_maps(net, None, x, layer="relu_0", dictionary=one)[0, 0, :, 0].tolist()
      [2.0, 0.0]

    Reference:
      Fel et al. 2023, arXiv:2211.10154, section 3.4.
    """
    a = _places("concept_maps", apply_fn, params, x, layer)
    return _resized("concept_maps", apply_fn, params, x, encode(dictionary, a), resize)


@public(num_concepts=whole(1), num_seeds=whole(1))
def dff(
    apply_fn: Callable,
    params: Any,
    x: Any,
    *,
    layer: str,
    num_concepts: int,
    key: jax.Array,
    num_seeds: int = 5,
    num_steps: int = 200,
    resize: bool = True,
) -> tuple[jax.Array, Factorization]:
    """Deep feature factorisation: what a set of images has in common, place by place.

    All places of all images are one matrix, `nmf` makes K atoms of it, and the codes of each place
    are maps: one atom lights up the same part of a thing in every image.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, or with channels first where the model has them so.
      layer: A name of `jaxviz.layers(apply_fn, params, x)` that is never negative.
      num_concepts: K, >= 1.
      key: Key of the starts.
      num_seeds: Starts, whose agreement is `stability`.
      num_steps: Of the factorisation, at most; it stops as `nmf` does.
      resize: Whether maps become as large as `x`.

    Returns:
      `(maps, factorization)`: maps `[N, *space, K]`, and what `nmf` returns for all places.

    Raises:
      ValueError: No such layer, or one with negative values.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda w, x: jax.nn.relu(x)
      >>> x = jnp.array([[[[1.0, 0.0], [0.0, 3.0]]]])
      >>> maps, found = dff(
      ...     net, None, x, layer="relu_0", num_concepts=2, key=jax.random.key(0), num_seeds=2
      ... )
      >>> maps.shape, bool(found.errors.min() < 0.01)
      ((1, 1, 2, 2), True)

    Reference:
      Collins et al. 2018, arXiv:1806.10206, section 3.
    """
    a = _places("dff", apply_fn, params, x, layer)
    found = nmf(
        a.reshape(-1, a.shape[-1]), num_concepts, key=key, num_seeds=num_seeds, num_steps=num_steps
    )
    maps = found.codes.reshape(*a.shape[:-1], num_concepts)
    return _resized("dff", apply_fn, params, x, maps, resize), found


def _places(who, apply_fn, params, x, layer):
    apply_fn, params = hold(who, apply_fn, params)
    a = run_values(Values(apply_fn, (layer,), who, channels_last=True), params, x)[layer]
    if a.ndim < 3:
        raise ValueError(
            f"{who}: layer must have places, [N, *places, channels]; {layer!r} has {a.shape}."
        )
    return a


def _resized(who, apply_fn, params, x, maps, resize):
    if not resize:
        return maps
    apply_fn, params = hold(who, apply_fn, params)
    moves = channels_of(apply_fn, params, x)
    axis = moves[0] if moves and moves[0] is not None else np.ndim(x) - 1
    space = tuple(n for k, n in enumerate(np.shape(x)) if k not in (0, axis))
    if len(space) != maps.ndim - 2:
        raise ValueError(
            f"{who}: layer must have as many axes of places as x has of space, to be resized; got "
            f"{maps.shape[1:-1]} for {space}. Pass resize=False."
        )
    return jax.image.resize(maps, (len(maps), *space, maps.shape[-1]), "bilinear")
