"""What any explanation ought to keep: unused inputs get nothing, a shift of all changes nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.attribution.ablation import feature_ablation
from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.models import shapes_of
from jaxviz.calls.options import real
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import fixed_target, is_floating
from jaxviz.graph.trace import model
from jaxviz.metrics.explaining import explainer, norm
from jaxviz.metrics.maps import in_rows, nan_where_not_finite, share


@explanation("chunk_size", sweeps=True, integers=True, threshold=real(0, traced=True))
def non_sensitivity(
    apply_fn: Callable,
    params: Any,
    x: Any,
    attribution: Any,
    target: Target = None,
    *,
    fill: Any = 0.0,
    threshold: float = 1e-5,
    chunk_size: int | None = None,
) -> jax.Array:
    """How many inputs matter and got nothing, or got something and do not matter. Lower is better.

    #{i: (|a_i| <= threshold max_j |a_j|) != (|f(x) - f(x with i filled)| <= threshold max_j ...)}

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, or a pytree of such; each number is one input.
      attribution: The shape of `x`.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      fill: What stands in place of an input: anything that broadcasts to `x`. An input that has
        this value already does not matter.
      threshold: What counts as nothing, >= 0, as a share of the largest of the example: of the
        attribution, and of the score's changes.
      chunk_size: Inputs at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, a count, floating as other metrics are: 0 at best, all inputs at worst. NaN where the
      attribution or the score holds NaN. Costs a forward pass an input.

    Raises:
      ValueError: `attribution` has another shape than `x`, or an option is out of its range.

    Example:
      >>> net = lambda _, x: x[:, :1] * x[:, 1:2]
      >>> x, a = jnp.array([[2.0, 3.0, 5.0]]), jnp.array([[1.0, 0.0, 1.0]])
      >>> non_sensitivity(net, None, x, a, 0).tolist()  # the second and the third are wrong
      [2.0]

    Reference:
      Nguyen and Martinez 2020, arXiv:2007.07584, section 3: there the change is the mean over
      values of the input. Quantus fills with the smallest number of the example
      ("black"), and has one threshold, in units of the output, for the changes.
    """
    name = "non_sensitivity"
    if shapes_of(attribution) != shapes_of(x):
        raise ValueError(
            f"{name}: attribution must have the shape of x, a number for each input; got "
            f"{shapes_of(attribution)}, x {shapes_of(x)}. Spread a map over channels with "
            "jnp.broadcast_to."
        )
    changes = feature_ablation(
        apply_fn, params, x, target, fill=fill, chunk_size=chunk_size, method="full"
    )
    a, d = in_rows(attribution), in_rows(changes)

    def nothing(m):
        size = jnp.abs(m)
        return size <= jnp.asarray(threshold, m.dtype) * size.max(1, keepdims=True)

    found = (nothing(a) != nothing(d)).sum(1).astype(a.dtype)
    return nan_where_not_finite(found, a, d)


@explanation("method", shift=numbers_list)
def input_invariance(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array | None = None,
    shift: Any = -1.0,
) -> jax.Array:
    """How much an explanation changes where the net undoes a shift of its input. Lower is better.

    ||e'(x + shift) - e(x)|| / ||e(x)||, e' of the net f'(x) = f(x - shift), whose outputs are the
    same. Gradients pass (0); gradient times input, and what goes by a fixed baseline, do not.

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, ...]` or a pytree of such.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      key: Of a method that draws; others need none.
      shift: What is added: anything that broadcasts to `x`; for a pytree to each floating leaf.

    Returns:
      `[N]`, >= 0, no unit, 0 up to rounding where the explanation is invariant. NaN where `e(x)` is
      zero everywhere, or an explanation holds NaN.

    Raises:
      ValueError: `shift` does not broadcast to `x`.

    Example:
      >>> from jaxviz.attribution.gradient import gradient, input_x_gradient
      >>> net, w, x = lambda w, x: x @ w, jnp.ones((2, 1)), jnp.array([[3.0, 4.0]])
      >>> input_invariance(gradient, net, w, x, 0).tolist()
      [0.0]
      >>> round(float(input_invariance(input_x_gradient, net, w, x, 0, shift=5.0)[0]), 4)
      1.4142

    Reference:
      Kindermans et al. 2017, arXiv:1711.00867, section 2: there the bias of the first layer takes
      the shift up, here a subtraction before it. Quantus tells whether all numbers agree to 1e-4.
    """
    name = "input_invariance"

    _check_shift(name, shift, x)
    target = fixed_target(apply_fn, params, x, target)
    here = in_rows(explainer(name, method, apply_fn, params, x, target, key)(x))
    there = _moved(x, shift, 1)
    given = (Shifted(apply_fn), (params, shift))
    explain = explainer(name, method, *given, there, target, key)
    return share(norm(in_rows(explain(there)) - here), norm(here))


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A model of inputs that a shift was added to: `((params, shift), x) -> outputs`."""

    apply_fn: Callable

    def __call__(self, params: Any, x: Any) -> Any:
        params, shift = params
        return model(self.apply_fn, params, x)(params, _moved(x, shift, -1))


def _moved(x, shift, sign):
    add = lambda a: a + sign * jnp.broadcast_to(jnp.asarray(shift, a.dtype), jnp.shape(a))
    return jax.tree.map(lambda a: add(a) if is_floating(a) else a, x)


def _check_shift(name, shift, x):
    for a in filter(is_floating, jax.tree.leaves(x)):
        try:
            fits = jnp.broadcast_shapes(jnp.shape(shift), jnp.shape(a)) == jnp.shape(a)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: shift must broadcast to x; got shift {jnp.shape(shift)}, x "
                f"{jnp.shape(a)}. Pass a number, or [...] of one example."
            )
