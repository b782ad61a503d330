"""What a row of the table of models is, and what the nets in it share."""

import contextlib
import contextvars
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Row(NamedTuple):
    """A small random net, and what is true of it.

    Attributes:
      apply_fn: `(params, x) -> [N, K]`, K >= 2; its ReLUs are `relu` of this module.
      params: Any pytree.
      x: `[N, ...]`, N = 2, or a pytree of such.
      lrp: "sum" where LRP's epsilon rule promises the score: no bias, and every operation linear,
        of f(0) = 0 or a product, which is halved. "finite" where something takes a part of it.
      refuses: The methods that refuse it by name, for something in it has no rule.
      cam: A layer with maps, for Grad-CAM, and the axis of its channels.
      grid: The image's patches that its places are, where they lie in one axis.
      baseline: For paths and differences; None is zeros.
      relaxed: Whether the framework's own code needs JAX's lax promotion.
      known: What is known not to hold, and why.
    """

    apply_fn: Callable
    params: Any
    x: Any
    lrp: str = "sum"
    refuses: tuple[str, ...] = ()
    cam: tuple[str, int] | None = None
    grid: tuple[int, ...] = ()
    baseline: Any = None
    relaxed: bool = False
    known: Mapping[str, str] = {}


@jax.custom_vjp
def _guided(x):
    return jax.nn.relu(x)


_guided.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, g: (jnp.where((x > 0) & (g > 0), g, 0.0),))

_backward = contextvars.ContextVar("backward", default=jax.nn.relu)


def relu(x):
    """JAX's ReLU, and inside `guided_by_hand` one with the pullback of guided backpropagation."""
    return _backward.get()(x)


@contextlib.contextmanager
def guided_by_hand():
    token = _backward.set(_guided)
    try:
        yield
    finally:
        _backward.reset(token)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def matrices(*shapes, seed=0):
    """A weight of each shape, of variance one over its inputs (all axes but the last)."""
    keys = jax.random.split(jax.random.key(seed + 100), len(shapes))
    fan = lambda shape: max(1, jnp.prod(jnp.array(shape[:-1])).item())
    return [jax.random.normal(k, s) / fan(s) ** 0.5 for k, s in zip(keys, shapes, strict=True)]


def conv(x, w, **options):
    """A convolution of `[N, *space, C]`, kernels `[*window, in, out]`."""
    space = "DHW"[-(x.ndim - 2) :]
    names = (f"N{space}C", f"{space}IO", f"N{space}C")
    options = {"padding": "SAME", "window_strides": (1,) * len(space), **options}
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=names, **options)


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def rms_norm(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def attention(w, x, mask=None):
    """Two heads; w: queries, keys, values, output."""
    queries, keys, values = (
        (x @ m).reshape(*x.shape[:2], 2, -1).transpose(0, 2, 1, 3) for m in w[:3]
    )
    logits = queries @ keys.transpose(0, 1, 3, 2) / queries.shape[-1] ** 0.5
    if mask is not None:
        logits = jnp.where(jnp.broadcast_to(mask, logits.shape), logits, -jnp.inf)
    mixed = jax.nn.softmax(logits, -1) @ values
    return mixed.transpose(0, 2, 1, 3).reshape(x.shape) @ w[3]
