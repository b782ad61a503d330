"""How much an explanation changes where its input hardly does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import real
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import fixed_target, stacked
from jaxviz.graph.rewrite import rewrite
from jaxviz.metrics.explaining import Perturb, explainer, moved, norm, numbers
from jaxviz.metrics.maps import in_rows, scaled, share
from jaxviz.rules.relu import softplus_surrogate

_radius = real(0, above=True)
_sampled = explanation(
    "method", "radius", "perturb", "num_samples", "chunk_size", sweeps=True, radius=_radius
)


@_sampled
def max_sensitivity(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    radius: float = 0.02,
    perturb: Perturb = None,
    num_samples: int = 10,
    chunk_size: int | None = None,
) -> jax.Array:
    """The largest relative change of an explanation among some neighbours. Lower is better.

    max_k ||e(x_k) - e(x)|| / ||e(x)||, Euclidean norms of all numbers.

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, ...]` or a pytree of such;
        options are bound by `functools.partial`, once, for it is compiled for that object. One that
        takes a `key` gets the same one for every input.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class at
        `x`, which its neighbours are explained for too.
      key: Of the noise.
      radius: How far each number of a neighbour is from that of `x` at most, > 0, in units of `x`;
        neighbours are uniform in that box.
      perturb: A function `(key, x) -> x` that makes a neighbour of each example in place of noise
        in the box; `radius` has no part then.
      num_samples: Neighbours, >= 1. Time is linear in it, memory constant.
      chunk_size: Neighbours at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0, no unit; times ||e(x)|| it is the change itself. NaN where `e(x)` is zero
      everywhere, or an explanation holds NaN. Costs `num_samples` + 1 explanations.

    Raises:
      ValueError: An option is out of its range, or `method` gives no map an example.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> square = lambda _, x: (x**2).sum(1, keepdims=True)
      >>> x = jnp.array([[3.0, -4.0]])
      >>> double = lambda key, x: 2 * x
      >>> out = max_sensitivity(gradient, square, None, x, 0, key=jax.random.key(0), perturb=double)
      >>> out.tolist()
      [1.0]

    Reference:
      Yeh et al. 2019, arXiv:1901.09392, definition 3: there the change itself; Captum and Quantus
      divide by the norm of e(x), as here.
    """
    name = "max_sensitivity"
    return _changes(
        name, method, apply_fn, params, x, target, key, (radius, perturb), num_samples, chunk_size
    ).max(0)


@_sampled
def avg_sensitivity(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    radius: float = 0.02,
    perturb: Perturb = None,
    num_samples: int = 10,
    chunk_size: int | None = None,
) -> jax.Array:
    """The mean relative change of an explanation over some neighbours. Lower is better.

    mean_k ||e(x_k) - e(x)|| / ||e(x)||, Euclidean norms of all numbers.

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, ...]`, as `max_sensitivity`'s.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      key: Of the noise.
      radius: Of the box of neighbours, > 0, in units of `x`; as for `max_sensitivity`.
      perturb: What makes neighbours in place of it, `(key, x) -> x`.
      num_samples: Neighbours, >= 1. Time is linear in it, memory constant.
      chunk_size: Neighbours at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0, no unit; NaN as for `max_sensitivity`, whose neighbours it has for the same key.

    Raises:
      ValueError: An option is out of its range, or `method` gives no map an example.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> line = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [2.0]]), jnp.ones((1, 2))
      >>> avg_sensitivity(gradient, line, w, x, 0, key=jax.random.key(0)).tolist()
      [0.0]

    Reference:
      Yeh et al. 2019, arXiv:1901.09392, section 3, the mean in place of the maximum, as in Quantus.
    """
    name = "avg_sensitivity"
    return _changes(
        name, method, apply_fn, params, x, target, key, (radius, perturb), num_samples, chunk_size
    ).mean(0)


def _changes(name, method, apply_fn, params, x, target, key, noise, num_samples, chunk_size):
    def relative(here, there, _):
        return share(norm(there - here), norm(here))

    given = (method, apply_fn, params, x, target, key, noise, num_samples, chunk_size)
    return compared(name, *given, relative)


def compared(
    name, method, apply_fn, params, x, target, key, noise, num_samples, chunk_size, compare
):
    """`compare(e(x), e(x_k), x_k)` for each neighbour, `[num_samples, N]`."""
    target = fixed_target(apply_fn, params, x, target)
    explain = explainer(name, method, apply_fn, params, x, target, key)
    here = in_rows(explain(x))
    radius, perturb = noise

    def term(k):
        near = moved(name, radius, perturb, jax.random.fold_in(key, k), x)
        return compare(here, in_rows(explain(near)), near)

    return stacked(name, term, num_samples, chunk_size, x)


@explanation(
    *("method", "radius", "perturb", "num_samples", "normalize", "chunk_size"),
    sweeps=True,
    radius=_radius,
)
def local_lipschitz(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    radius: float = 0.02,
    perturb: Perturb = None,
    num_samples: int = 10,
    normalize: bool = True,
    chunk_size: int | None = None,
) -> jax.Array:
    """How fast an explanation changes with its input, at most. Lower is better.

    max_k ||e(x_k) - e(x)|| / ||x_k - x||, Euclidean norms of all numbers.

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, ...]`, as `max_sensitivity`'s.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      key: Of the noise.
      radius: Of the box of neighbours, > 0, in units of `x`; as for `max_sensitivity`.
      perturb: What makes neighbours in place of it, `(key, x) -> x`.
      num_samples: Neighbours, >= 1. Time is linear in it, memory constant.
      normalize: Whether each explanation is divided by its largest absolute value first; without
        that methods of different units cannot be compared.
      chunk_size: Neighbours at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0, in units of the (normalised) explanation over those of `x`: a lower bound of the
      Lipschitz constant. Neighbours equal to `x` count for nothing; NaN where all are, or an
      explanation holds NaN. An explanation of zeros stays one when it is normalised.

    Raises:
      ValueError: An option is out of its range, or `method` gives no map an example.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> square = lambda _, x: (x**2).sum(1, keepdims=True)
      >>> x, key = jnp.array([[3.0, -4.0]]), jax.random.key(0)
      >>> local_lipschitz(gradient, square, None, x, 0, key=key, normalize=False).round(3).tolist()
      [2.0]

    Reference:
      Alvarez-Melis and Jaakkola 2018, arXiv:1806.08049, eq. 2: there the explanation as it is.
    """

    noise = radius, perturb

    def slope(here, there, near):
        far = norm(numbers(near) - numbers(x))
        if normalize:
            here, there = scaled(here), scaled(there)
        return jnp.where(far == 0, -jnp.inf, share(norm(there - here), far))

    given = (method, apply_fn, params, x, target, key, noise, num_samples, chunk_size)
    return largest(compared("local_lipschitz", *given, slope))


def largest(found):
    """The largest along the first axis; -inf stands for what does not count."""
    most = found.max(0)
    return jnp.where(jnp.isneginf(most), jnp.nan, most)


@explanation(
    *("method", "radius", "num_samples", "num_steps", "chunk_size"),
    sweeps=True,
    radius=_radius,
)
def worst_case_sensitivity(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    radius: float = 0.02,
    num_samples: int = 1,
    num_steps: int = 10,
    chunk_size: int | None = None,
) -> jax.Array:
    """The largest relative change of an explanation that ascent finds in a box. Lower is better.

    max ||e(x + d) - e(x)|| / ||e(x)|| over the d that `num_steps` steps of gradient ascent through
    the explanation pass, from each of `num_samples` points of the box |d_i| <= radius: steps of
    radius / 4 along the sign of the gradient, cut back to the box. The start counts too, so the
    result is never below `max_sensitivity` with the same key, radius and samples; both are lower
    bounds of the true maximum.

    Args:
      method: Any explanation that can be differentiated, `(apply_fn, params, x, target) ->
        [N, ...]`, as for `max_sensitivity`. One that is constant in pieces (masks by rank) has no
        gradient to climb, and keeps the start.
      apply_fn: Pure `(params, x) -> outputs`. For the direction of the climb alone its ReLUs have
        the derivative of a softplus (`rules.softplus_surrogate`), as theirs has none of its own.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class at
        `x`, which its neighbours are explained for too.
      key: Of the starts, which are the neighbours of `max_sensitivity`.
      radius: Of the box, > 0, in units of `x`. It shapes the program.
      num_samples: Starts, >= 1: there are several maxima.
      num_steps: Of each climb, >= 1.
      chunk_size: Climbs at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0, no unit. NaN where `e(x)` is zero everywhere, or an explanation at a start holds
      NaN; one on the way ends the climb there. Costs about 4 explanations a step.

    Raises:
      ValueError: An option is out of its range, or `method` gives no map an example.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> cubic = lambda _, x: (x**3).sum(1, keepdims=True)
      >>> x, key = jnp.array([[1.0, 1.0]]), jax.random.key(0)
      >>> options = {"radius": 0.5, "num_samples": 16}
      >>> out = worst_case_sensitivity(gradient, cubic, None, x, 0, key=key, **options)
      >>> out.round(4).tolist()  # at a corner: 3 (1.5^2 - 1) / 3
      [1.25]

    Reference:
      The maximum is that of Yeh et al. 2019, arXiv:1901.09392, definition 3; ascent on an
      explanation is Ghorbani et al. 2017, arXiv:1710.10547, and Dombrowski et al. 2019,
      arXiv:1906.07983, who aim at a map of their choice.
    """
    name = "worst_case_sensitivity"
    target = fixed_target(apply_fn, params, x, target)
    explain = explainer(name, method, apply_fn, params, x, target, key)
    smooth = rewrite(apply_fn, softplus_surrogate())
    climb = explainer(name, method, smooth, params, x, target, key)
    here, here_smooth = in_rows(explain(x)), in_rows(climb(x))

    def change(near):
        return share(norm(in_rows(explain(near)) - here), norm(here))

    def steepest(near):
        def total(floats):
            away = in_rows(climb(_with(near, floats))) - here_smooth
            return norm(away).sum()

        return jax.grad(total)(_floats(near))

    def one_step(carry, _):
        near, best = carry
        step = jax.tree.map(lambda g: _finite_sign(g) * (radius / 4), steepest(near))
        near = _with(
            near,
            [
                jnp.clip(a + d.astype(a.dtype), b - radius, b + radius)
                for a, d, b in zip(_floats(near), step, _floats(x), strict=True)
            ],
        )
        return (near, jnp.fmax(best, change(near)) + 0 * best), None

    def term(k):
        start = moved(name, radius, None, jax.random.fold_in(key, k), x)
        (_, best), _ = jax.lax.scan(one_step, (start, change(start)), length=num_steps)
        return best

    return stacked(name, term, num_samples, chunk_size, x).max(0)


def _floats(x):
    return [a for a in map(jnp.asarray, jax.tree.leaves(x)) if _moves(a)]


def _moves(a):
    return jnp.issubdtype(a.dtype, jnp.floating)


def _with(x, floats):
    """The input with other floating leaves."""
    leaves, structure = jax.tree.flatten(x)
    rest = iter(floats)
    return jax.tree.unflatten(
        structure, [next(rest) if _moves(jnp.asarray(a)) else a for a in leaves]
    )


def _finite_sign(g):
    return jnp.where(jnp.isnan(g), jnp.zeros_like(g), jnp.sign(g))
