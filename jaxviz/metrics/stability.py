"""The change of an explanation over what changed: the input, the outputs, a layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import real
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import outputs_of
from jaxviz.graph.split import OUTPUTS, Values
from jaxviz.metrics.explaining import Perturb, norm, numbers
from jaxviz.metrics.maps import in_rows
from jaxviz.metrics.robustness import compared, largest

_stable = explanation(
    *("method", "radius", "perturb", "num_samples", "chunk_size"),
    sweeps=True,
    radius=real(0, above=True),
    stabilizer=real(0, above=True, traced=True),
)


@_stable
def relative_input_stability(
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
    stabilizer: float = 1e-6,
    chunk_size: int | None = None,
) -> jax.Array:
    """Relative change of an explanation over that of its input. Lower is better.

    max_k ||(e(x) - e(x_k)) / e(x)|| / max(||(x - x_k) / x||, stabilizer), over the neighbours that
    have the top class of `x`; divisions number by number, one by 0 by `stabilizer`.

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
      stabilizer: What stands in for a zero below a fraction, > 0. Where `x` or `e(x)` has many
        zeros (black pixels) the result hangs on it.
      chunk_size: Neighbours at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0; it spans many orders of magnitude, and papers show its logarithm. NaN where no
      neighbour has the class, or an explanation holds NaN. Costs a forward pass a neighbour more
      than `max_sensitivity`; outputs that are no `[N, K]` have no class and restrict nothing.

    Raises:
      ValueError: An option is out of its range, or `method` gives no map an example.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> square = lambda _, x: (x**2).sum(1, keepdims=True)
      >>> x, double = jnp.array([[3.0, -4.0]]), lambda key, x: 2 * x
      >>> key = jax.random.key(0)
      >>> relative_input_stability(gradient, square, None, x, 0, key=key, perturb=double).tolist()
      [1.0]

    Reference:
      Agarwal et al. 2022, arXiv:2203.06877, eq. 2. Quantus 0.6.0 gives NaN where any neighbour
      changes the class; the paper leaves such neighbours out, as here.
    """
    of = lambda _, near: numbers(near)
    options = ((radius, perturb), num_samples, chunk_size, stabilizer, of, True, None)
    return _stability("relative_input_stability", method, apply_fn, params, x, target, key, options)


@_stable
def relative_output_stability(
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
    stabilizer: float = 1e-6,
    chunk_size: int | None = None,
) -> jax.Array:
    """Relative change of an explanation over the change of the outputs. Lower is better.

    max_k ||(e(x) - e(x_k)) / e(x)|| / max(||f(x) - f(x_k)||, stabilizer), over the neighbours that
    have the top class of `x`; f are all outputs, logits for what returns logits.

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
      stabilizer: What stands in for a zero below a fraction, > 0.
      chunk_size: Neighbours at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0, over units of the outputs; NaN as for `relative_input_stability`.

    Raises:
      ValueError: An option is out of its range, or `method` gives no map an example.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> square = lambda _, x: (x**2).sum(1, keepdims=True)
      >>> x, double = jnp.array([[3.0, -4.0]]), lambda key, x: 2 * x
      >>> out = relative_output_stability(
      ...     gradient, square, None, x, 0, key=jax.random.key(0), perturb=double
      ... )
      >>> round(float(out[0]) * 75, 5), round(2**0.5, 5)  # outputs 25 and 100
      (1.41421, 1.41421)

    Reference:
      Agarwal et al. 2022, arXiv:2203.06877, eq. 5. For NaN see `relative_input_stability`.
    """
    of = lambda found, _: in_rows(found)
    options = ((radius, perturb), num_samples, chunk_size, stabilizer, of, False, None)
    return _stability(
        "relative_output_stability", method, apply_fn, params, x, target, key, options
    )


@explanation(
    *("method", "layer", "radius", "perturb", "num_samples", "chunk_size"),
    sweeps=True,
    radius=real(0, above=True),
    stabilizer=real(0, above=True, traced=True),
)
def relative_representation_stability(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    layer: str,
    radius: float = 0.02,
    perturb: Perturb = None,
    num_samples: int = 10,
    stabilizer: float = 1e-6,
    chunk_size: int | None = None,
) -> jax.Array:
    """Relative change of an explanation over that of a layer's values. Lower is better.

    max_k ||(e(x) - e(x_k)) / e(x)|| / max(||(l(x) - l(x_k)) / l(x)||, stabilizer), over the
    neighbours that have the top class of `x`; divisions as in `relative_input_stability`.

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, ...]`, as `max_sensitivity`'s.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      key: Of the noise.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      radius: Of the box of neighbours, > 0, in units of `x`; as for `max_sensitivity`.
      perturb: What makes neighbours in place of it, `(key, x) -> x`.
      num_samples: Neighbours, >= 1. Time is linear in it, memory constant.
      stabilizer: What stands in for a zero below a fraction, > 0. Behind a ReLU much is zero, and
        the result hangs on it.
      chunk_size: Neighbours at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `[N]`, >= 0; NaN as for `relative_input_stability`.

    Raises:
      ValueError: No such layer, an option out of its range, or no map an example.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> net = lambda _, x: jax.nn.relu(x).sum(1, keepdims=True) ** 2
      >>> x, double = jnp.array([[3.0, 4.0]]), lambda key, x: 2 * x
      >>> key, layer = jax.random.key(0), "relu_0"
      >>> relative_representation_stability(
      ...     gradient, net, None, x, 0, key=key, layer=layer, perturb=double
      ... ).tolist()
      [1.0]

    Reference:
      Agarwal et al. 2022, arXiv:2203.06877, eq. 3. For NaN see `relative_input_stability`.
    """
    of = lambda found, _: in_rows(found)
    options = ((radius, perturb), num_samples, chunk_size, stabilizer, of, True, layer)
    return _stability(
        "relative_representation_stability", method, apply_fn, params, x, target, key, options
    )


def _stability(name, method, apply_fn, params, x, target, key, options):
    noise, num_samples, chunk_size, stabilizer, of, relative, layer = options

    def run(near):
        """The outputs, and what of the model the change is compared to."""
        if layer is None:
            outputs = outputs_of(apply_fn, params, near)
            return outputs, outputs
        values = Values(apply_fn, (layer, OUTPUTS), name)(params, near)
        return values[OUTPUTS], values[layer]

    run = jax.jit(run)
    outputs, value = run(x)
    value = of(value, x)

    def part(change, base):
        small = jnp.asarray(stabilizer, base.dtype)
        return change / jnp.where(base == 0, small, base)

    def compare(here, there, near):
        found, moved_value = run(near)
        change = value - of(moved_value, near)
        below = norm(part(change, value) if relative else change)
        ratio = norm(part(here - there, here)) / jnp.maximum(below, stabilizer)
        return jnp.where(_same_class(outputs, found), ratio, -jnp.inf)

    given = (method, apply_fn, params, x, target, key, noise, num_samples, chunk_size)
    return largest(compared(name, *given, compare))


def _same_class(a, b):
    """Which examples have the same top class; all, where outputs have no classes."""
    if getattr(a, "ndim", 0) != 2:
        return True
    return a.argmax(1) == b.argmax(1)
