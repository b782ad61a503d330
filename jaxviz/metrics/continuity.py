"""Alike inputs, alike explanations: shifted images, and examples that are explained the same."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.arrays import fill as array_fill
from jaxviz.calls.models import shapes_of
from jaxviz.calls.options import whole
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import fixed_target, outputs_of, stacked
from jaxviz.metrics.explaining import explainer, norm, numbers
from jaxviz.metrics.maps import in_rows, nan_where_not_finite, rows_of_each, scaled, share
from jaxviz.metrics.robustness import largest
from jaxviz.parts.regions import fill_like


@explanation(
    *("method", "num_steps", "normalize", "chunk_size"), sweeps=True, places=True, fill=array_fill
)
def continuity(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    key: jax.Array | None = None,
    num_steps: int | None = None,
    fill: Any = 0.0,
    normalize: bool = True,
    chunk_size: int | None = None,
) -> jax.Array:
    """How fast an explanation changes as its input is shifted sideways, at most. Lower is better.

    max_s ||e(x_s) - e(x)||_1 / ||x_s - x||_2, x_s moved along the last axis of space, out of the
    picture on one side to out of it on the other.

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, ...]`, as `max_sensitivity`'s.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]` or `[N, L]`, floating, one array; W places along the axis.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class at
        `x`, which the shifted ones are explained for too.
      key: Of a method that draws; others need none.
      num_steps: Shifts, from 1 to 2 W + 1: -W + s ((2 W + 1) // num_steps), s = 1, 2, ...; None
        takes 28, or all where there are fewer.
      fill: What comes in from outside: anything that broadcasts to `x`.
      normalize: Whether each explanation is divided by its largest absolute value first; without
        that methods of different units cannot be compared.
      chunk_size: Shifts at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0, in units of the (normalised) explanation over those of `x`. Shifts that change
      nothing count for nothing; NaN where all do, or an explanation holds NaN.

    Raises:
      ValueError: `x` has no axis of space, or more steps than shifts.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> net = lambda _, x: (x**2).sum(1, keepdims=True)
      >>> x = jnp.array([[1.0, 0.0]])
      >>> out = continuity(gradient, net, None, x, 0, num_steps=5)
      >>> round(float(out[0]), 3)  # to [0, 1]: 2 over the root of 2
      1.414

    Reference:
      Montavon et al. 2018, "Methods for interpreting and understanding deep neural networks",
      section 7.1 (R(x), not normalised); steps as in Quantus, which shifts the
      smallest number in ("black"), and takes absolute values first unless told otherwise.
    """
    name = "continuity"
    if jax.tree.structure(x) != jax.tree.structure(0) or x.ndim < 2 or (x.ndim == 2 and not x.size):
        raise ValueError(
            f"{name}: x must be one array [N, *space, C] or [N, L]; got {shapes_of(x)}. Take one "
            "leaf, the others inside apply_fn."
        )
    axis = max(1, x.ndim - 2)
    width = x.shape[axis]
    num_steps = min(28, 2 * width + 1) if num_steps is None else num_steps
    if not 1 <= num_steps <= 2 * width + 1:
        raise ValueError(
            f"{name}: num_steps must be in [1, {2 * width + 1}], the shifts of {width} places; got "
            f"{num_steps}. Take {min(28, 2 * width + 1)}."
        )
    target = fixed_target(apply_fn, params, x, target)
    explain = explainer(name, method, apply_fn, params, x, target, key)
    read = scaled if normalize else lambda a: a
    here = read(in_rows(explain(x)))
    places = jnp.arange(width, dtype=jnp.int32)
    outside = fill_like(name, fill, x)

    def term(k):
        source = places + width - (k + 1) * ((2 * width + 1) // num_steps)
        inside = (source >= 0) & (source < width)
        taken = jnp.take(x, jnp.clip(source, 0, width - 1), axis=axis)
        column = inside.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        near = jnp.where(column, taken, outside)
        change = jnp.abs(read(in_rows(explain(near))) - here).sum(1)
        far = norm(numbers(near) - numbers(x))
        return jnp.where(far == 0, -jnp.inf, share(change, far))

    return largest(stacked(name, term, num_steps, chunk_size, x))


@explanation("num_top", integers=True, num_top=whole(1))
def consistency(
    apply_fn: Callable,
    params: Any,
    x: Any,
    attribution: Any,
    *,
    num_top: int = 5,
) -> jax.Array:
    """How many examples explained alike are classified alike. Higher is better: 1 is all of them.

    Two examples are explained alike where the `num_top` numbers of largest absolute value are at
    the same places with the same signs.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such: the examples among which others are looked for.
      attribution: `[N, ...]`, of these, or a pytree of such.
      num_top: How many numbers stand for an explanation, >= 1.

    Returns:
      `[N]`, in [0, 1]: among the other examples explained like this one the share that has its top
      class. NaN where no other one is explained alike, and where the attribution holds NaN.

    Raises:
      ValueError: Not a map for each example, fewer numbers than `num_top`, outputs that are not
        `[N, K]`.

    Example:
      >>> net = lambda _, x: x
      >>> x = jnp.array([[3.0, 1.0], [2.0, 1.0], [1.0, 2.0], [0.0, 1.0]])
      >>> maps = jnp.array([[5.0, 0.0], [4.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
      >>> consistency(net, None, x, maps, num_top=1).tolist()
      [0.5, 0.5, 0.0, nan]

    Reference:
      Dasgupta et al. 2022, arXiv:2202.00734, section 3.1. Quantus 0.6.0 takes the signs of the
      first five numbers, wherever they are, for its "top n", and 0 where no other one is alike.
    """
    name = "consistency"
    a = rows_of_each(name, attribution)
    outputs = outputs_of(apply_fn, params, x)
    if getattr(outputs, "ndim", 0) != 2 or len(outputs) != len(a):
        raise ValueError(
            f"{name}: apply_fn must return outputs [N, K] for the {len(a)} maps of attribution; "
            f"got {getattr(outputs, 'shape', type(outputs).__name__)}. Give both the same examples."
        )
    if num_top > a.shape[1]:
        raise ValueError(
            f"{name}: num_top must be at most {a.shape[1]}, the numbers of a map; got {num_top}. "
            f"Take {max(1, a.shape[1] // 10)}, say."
        )
    classes = outputs.argmax(1)
    places = jax.lax.top_k(jnp.abs(a), num_top)[1]
    signs = jnp.sign(jnp.take_along_axis(a, places, axis=1))
    order = jnp.argsort(places, axis=1)
    places, signs = (jnp.take_along_axis(m, order, axis=1) for m in (places, signs))
    alike = lambda m: (m[:, None, :] == m[None, :, :]).all(2)
    others = alike(places) & alike(signs) & ~jnp.eye(len(a), dtype=bool)
    same = others & (classes[:, None] == classes[None, :])
    found = share(same.sum(1).astype(a.dtype), others.sum(1).astype(a.dtype))
    return nan_where_not_finite(found, a)
