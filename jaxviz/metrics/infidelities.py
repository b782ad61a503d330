"""Infidelity: how far the attribution is from what small and large changes do to the score."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import described, real, several, whole
from jaxviz.calls.public import SIDES, public
from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import at_least_float32, check_one_array
from jaxviz.metrics.contract import metric
from jaxviz.metrics.ranked import attribution_like, scores_of
from jaxviz.parts.covered import covered
from jaxviz.parts.regions import fill_like, space_of
from jaxviz.rules.spans import Spans, span


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A change of the input, `(key, x) -> x - I`; equal ones are compiled once."""

    function: Callable
    options: tuple

    def __call__(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return self.function(key, x, *self.options)


@public(scale=real(0, above=True))
def gaussian_noise(scale: float = 0.2) -> Perturbation:
    """The change of `infidelity` by Gaussian noise on every number.

    Args:
      scale: Its standard deviation, in units of `x`.

    Example:
      >>> gaussian_noise(0.1)(jax.random.key(0), jnp.ones((1, 3))).shape
      (1, 3)
    """
    return Perturbation(_noise, (scale,))


@public(window=several(whole(1), SIDES), value=real())
def square_removal(window: tuple[int, ...], value: float = 0.0) -> Perturbation:
    """The change of `infidelity` by one window at a random place, filled.

    Args:
      window: Its size along each axis of space.
      value: What stands in it.

    Example:
      >>> float(square_removal((2, 2))(jax.random.key(0), jnp.ones((1, 4, 4, 1))).sum())
      12.0
    """
    return Perturbation(_square, (window, value))


def _noise(key, x, scale):
    noise = jax.random.normal(key, x.shape[1:], x.dtype)[None]
    return x + jnp.asarray(scale, x.dtype) * noise


def _square(key, x, window, value):
    inside, _ = _window(key, x, window)
    return jnp.where(inside, fill_like("infidelity", value, x), x)


def _window(key: jax.Array, x: jax.Array, window: tuple[int, ...]) -> tuple[jax.Array, Spans]:
    """A window at a random place: booleans that broadcast to `x`, and its stretch."""
    space = space_of(x)
    if len(window) != len(space) or any(w > n for w, n in zip(window, space, strict=True)):
        raise ValueError(
            f"infidelity: window must be at most {space}, one number an axis of space; got "
            f"{window}. Take a smaller one."
        )
    inside, spans = jnp.array(True), []
    keys = jax.random.split(key, len(space))
    for axis, (own, size, along) in enumerate(zip(keys, window, space, strict=True), start=1):
        start = jax.random.randint(own, (), 0, along - size + 1, jnp.int32)
        place = jnp.arange(along, dtype=jnp.int32)
        here = (place >= start) & (place < start + size)
        inside = inside & here.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        starts = np.arange(along - size + 1)
        spans.append(span(starts, np.full(len(starts), size), along, start))
    rest = [None] * (x.ndim - 1 - len(space))
    return inside, (None, *spans, *rest)


@metric("num_samples", "normalize", "chunk_size", integers=False)
def infidelity(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    key: jax.Array,
    perturb: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    num_samples: int = 100,
    normalize: bool = False,
    chunk_size: int | None = None,
) -> jax.Array:
    """How far the attribution is from telling what changes of the input do: lower is better, 0 is
    exact.

    mean over changes I of (I . a - (f(x) - f(x - I)))^2.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, one array.
      attribution: In units of the score per unit of the input, as a gradient has them, the shape of
        `x`; `[N, *space]` counts for each channel. Divide an attribution that is one of parts
        (integrated gradients) by `x - baseline`.
      target: As for `deletion`.
      key: Sample k is drawn with `jax.random.fold_in(key, k)`.
      perturb: `(key, x) -> x - I`, of the whole batch, channels last wherever the model has them:
        `gaussian_noise(scale)`, `square_removal(window)`, or your own. None is `gaussian_noise()`.
      num_samples: Changes.
      normalize: Scales each example's attribution by the number that makes its infidelity least,
        E[(I . a)(f(x) - f(x - I))] / E[(I . a)^2], so that scale does not count.
      chunk_size: Changes at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, in squared units of the explained output. A zero attribution gets the mean square of
      what the changes do, the value that a useful one is below. Costs `num_samples + 1` forward
      passes; of `square_removal` only what each window changes, where that is less work.

    Raises:
      ValueError: `perturb` gives another shape, and as for `deletion`.

    Example:
      >>> net = lambda w, x: x @ w
      >>> w, x = jnp.array([[3.0], [1.0]]), jnp.ones((1, 2))
      >>> bool(infidelity(net, w, x, w.T, 0, key=jax.random.key(0))[0] < 1e-10)
      True

    Reference:
      Yeh et al. 2019, arXiv:1901.09392, definition 2.1; sections 3.1 and 3.3 for the changes; the
      authors' code scales as `normalize` does, Captum by option. Quantus removes patches one after
      the other until none is left, so that a change is never one patch alone.
    """
    name = "infidelity"
    check_one_array(name, x)
    given = attribution_like(name, attribution, x)
    change = perturb or gaussian_noise()

    def copy(k):
        found = change(jax.random.fold_in(key, k), x)
        if getattr(found, "shape", None) != x.shape:
            raise ValueError(
                f"{name}: perturb must be a function (key, x) -> x - I, of the shape of x, "
                f"{x.shape}; it gave {described(found)}. Return the whole batch."
            )
        return found.astype(x.dtype)

    wide = at_least_float32(x)

    def told_by(moved):
        return ((x.astype(wide) - moved.astype(wide)) * given).reshape(len(x), -1).sum(1)

    if isinstance(change, Perturbation) and change.function is _square:
        window, value = change.options
        place = lambda k: _window(jax.random.fold_in(key, k), x, window)
        filled = fill_like(name, value, x)
        found = covered(
            *(name, apply_fn, params, x, lambda k: filled, target, select),
            mask=lambda k: place(k)[0],
            spans=lambda k: place(k)[1],
            num=num_samples,
            chunk_size=chunk_size,
            method="auto",
        )
        scores, clean = jax.tree.map(lambda a: a.astype(at_least_float32(a)), found)
        told = jax.lax.map(lambda k: told_by(copy(k)), jnp.arange(num_samples, dtype=jnp.int32))
    else:
        (scores, told), (clean, _) = scores_of(
            *(name, apply_fn, params, x, target, copy, num_samples, chunk_size), of_copy=told_by
        )
    told = told.astype(scores.dtype)
    done = clean[None] - scores
    if normalize:
        square = jnp.square(told).sum(0)
        best = jnp.where(square == 0, 0, (told * done).sum(0) / jnp.where(square == 0, 1, square))
        told = told * best[None]
    return jnp.square(told - done).mean(0)
