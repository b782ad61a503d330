"""The smallest change of an input that makes a model decide otherwise, by gradient."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import integers
from jaxviz.calls.models import moving
from jaxviz.calls.options import interval, maybe, real, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import program, under_trace
from jaxviz.engine.targets import output_shape
from jaxviz.graph.held import hold
from jaxviz.graph.rewrite import rewrite
from jaxviz.rules.fast import fast, is_large


class Counterfactual(NamedTuple):
    """Inputs for which the model decides otherwise.

    Attributes:
      x: `[N, ...]`, the nearest that was found; the input itself where none was.
      radius: `[N]`, its distance from the input, in the norm; infinity where none was found.
      classes: `[N]`, the model's class of each.
      found: `[N]`, whether the class is another (or the one wanted).
    """

    x: jax.Array
    radius: jax.Array
    classes: jax.Array
    found: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


def _array(who, option, value):
    found = moving(who, option, value)
    if not hasattr(found, "shape"):
        raise TypeError(f"{who}: {option} must be one array [N, ...]; got a pytree of several.")
    return found


@public(
    x=_array,
    wanted=maybe(integers),
    max_radius=real(0, above=True),
    num_radii=whole(1),
    num_steps=whole(1),
    value_range=maybe(interval),
)
def counterfactual(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    wanted: Any = None,
    *,
    norm: Literal["l2", "linf"] = "l2",
    max_radius: float = 10.0,
    num_radii: int = 12,
    num_steps: int = 40,
    value_range: tuple[float, float] | None = None,
) -> Counterfactual:
    """Finds the smallest ball around an input in which the model decides otherwise.

    In a ball of radius r, projected gradient ascent climbs the margin by which the wanted class
    leads (or any other class leads the input's own): steps of 2.5 r / `num_steps` along the
    gradient, of norm 1 ("l2") or by its signs ("linf"), each brought back into the ball and the
    range. The radius is halved in between: smaller where it found one, larger where not.

    What is found is real, so the radius is an upper bound of the distance to the boundary; of a
    linear model it is that distance, |margin| / |difference of the weights|, up to the halving.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, classes]`, two classes at least.
      params: Any pytree.
      x: `[N, ...]`, one floating array.
      wanted: A class, or one for each input; None is any class but the model's own.
      norm: Of the ball: "l2", over all numbers of an input, or "linf".
      max_radius: The largest ball that is tried, in units of x.
      num_radii: How many balls; the smallest radius is known to max_radius / 2 ** (num_radii - 1).
      num_steps: Steps in each. A call costs num_radii x num_steps gradients.
      value_range: Values that inputs can have, (0, 1) say; None is all.

    Returns:
      A `Counterfactual`. An input that has the wanted class already has radius 0.

    Raises:
      ValueError: Outputs of another shape, a class that there is not, or options out of range.

    Example:
      >>> net = lambda w, x: x @ w  # decides by the sign of x0: 3 from the boundary
      >>> w = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> found = counterfactual(net, w, jnp.array([[3.0, 5.0]]))
      >>> found.radius.round(1).tolist(), found.classes.tolist()
      ([3.0], [1])

    Reference:
      Madry et al. 2018, arXiv:1706.06083, section 2 (PGD; without its random start here); Wachter
      et al. 2017, arXiv:1711.00399, eq. 1 (counterfactuals; by a penalty there); Captum's
      MinParamPerturbation searches the radius one by one.
    """
    who = "counterfactual"
    apply_fn, params = hold(who, apply_fn, params)
    outputs: Any = output_shape(apply_fn, params, x)
    shape = getattr(outputs, "shape", ())
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(
            f"{who}: apply_fn must return outputs [N, classes], two classes at least; got "
            f"{shape or 'several arrays'}. Wrap it so that it does."
        )
    if wanted is not None:
        wanted = _wanted(who, wanted, shape)
    fixed = (norm, num_radii, num_steps, value_range)
    nested = under_trace((params, x, wanted))
    run = program(_found, (0, 1), nested, is_large(params))
    return run(apply_fn, fixed, params, jnp.asarray(x), wanted, jnp.asarray(max_radius, x.dtype))


def _wanted(who, wanted, shape):
    if np.shape(wanted) not in ((), shape[:1]):
        raise ValueError(
            f"{who}: wanted must be a class, or one for each of {shape[0]} inputs; got "
            f"{np.shape(wanted)}."
        )
    if not isinstance(wanted, Tracer):
        known = np.asarray(wanted)
        if known.min() < 0 or known.max() >= shape[1]:
            raise ValueError(
                f"{who}: wanted must be a class from 0 to {shape[1] - 1}; got {known.tolist()}."
            )
    return jnp.broadcast_to(jnp.asarray(wanted), shape[:1])


def _found(apply_fn, fixed, params, x, wanted, max_radius):
    norm, num_radii, num_steps, value_range = fixed
    model = rewrite(apply_fn, fast)
    own = apply_fn(params, x).argmax(1)

    def margin(x):
        outputs = model(params, x)
        index = (own if wanted is None else wanted)[:, None]
        chosen = jax.nn.one_hot(index[:, 0], outputs.shape[1], dtype=bool)
        one = jnp.take_along_axis(outputs, index, 1)[:, 0]
        other = jnp.where(chosen, -jnp.inf, outputs).max(1)
        lead = one - other
        return -lead if wanted is None else lead

    def per_example(a):
        return a.reshape(-1, *[1] * (x.ndim - 1))

    axes = tuple(range(1, x.ndim))

    def size(d):
        if norm == "linf":
            return jnp.abs(d).max(axes) if axes else jnp.abs(d)
        return jnp.sqrt((d * d).sum(axes))

    def along(slope):
        if norm == "linf":
            return jnp.sign(slope)
        length = size(slope)
        return slope / per_example(jnp.where(length > 0, length, 1))

    def within(moved, radius):
        d = moved - x
        if norm == "linf":
            d = jnp.clip(d, -per_example(radius), per_example(radius))
        else:
            length = size(d)
            d = d * per_example(jnp.minimum(radius / jnp.where(length > 0, length, 1), 1))
        moved = x + d
        return moved if value_range is None else jnp.clip(moved, *value_range)

    def climb(radius):
        """The first point of each climb at which the class is another, or its last."""

        def step(_, state):
            moved, best, done = state
            leads, pull = jax.vjp(margin, moved)
            (slope,) = pull(jnp.ones_like(leads))
            best = jnp.where(per_example(done), best, moved)
            done = done | (leads > 0)
            reach = per_example(radius * (2.5 / num_steps))
            return within(moved + reach * along(slope), radius), best, done

        start = (x, x, jnp.zeros(len(x), bool))
        moved, best, done = jax.lax.fori_loop(0, num_steps, step, start)
        last = margin(moved) > 0
        return jnp.where(per_example(done), best, moved), done | last

    def halve(_, state):
        low, high, best, found, radius = state
        moved, there = climb(radius)
        here = size(moved - x)
        better = there & (here < high)
        best = jnp.where(per_example(better), moved, best)
        high = jnp.where(better, here, high)
        found = found | there
        low = jnp.where(there, low, jnp.maximum(low, radius))
        # Until one is found the largest ball, which was tried first, is the only one.
        radius = jnp.where(found, (low + high) / 2, max_radius)
        return low, high, best, found, radius

    none = jnp.zeros(len(x), x.dtype)
    already = margin(x) > 0
    start = (none, none + max_radius * 2, x, already, none + max_radius)
    _, _, best, found, _ = jax.lax.fori_loop(0, num_radii, halve, start)
    best = jnp.where(per_example(already), x, best)
    radius = jnp.where(found, size(best - x), math.inf)
    return Counterfactual(best, radius, apply_fn(params, best).argmax(1), found)
