"""The full gradient: the score shared among the inputs and every bias on the way."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import is_floating
from jaxviz.graph.axes import axes
from jaxviz.graph.axis_labels import of_batch
from jaxviz.graph.equations import scan_arity
from jaxviz.graph.interpreter import Scalar
from jaxviz.graph.lines import source
from jaxviz.graph.rewrite import Op, RuleSet, rewrite
from jaxviz.graph.stopped import stopped
from jaxviz.graph.trace import model
from jaxviz.parts.feature_maps import Resize, laid_out, pictured, resized
from jaxviz.parts.gradients import input_gradient


class FullGradient(NamedTuple):
    """The terms of the full gradient, signed.

    Attributes:
      inputs: x * d f / d x, the shape of `x`.
      biases: For each addition of something that `x` does not reach, in order of execution: what is
        added times d f / d sum, the shape of the sum, batch first.
    """

    inputs: Any
    biases: tuple[jax.Array, ...]

    __repr__ = shown
    _repr_html_ = shown_html


@explanation("resize", places=True)
def full_grad(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    resize: Resize = True,
) -> jax.Array:
    """Where the score comes from, inputs and the biases of all layers together.

    sum over channels |x * d f / d x| + sum over layers and channels |bias-gradient|, resized.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      resize: True brings all maps to the spatial size of `x`, a size `(h, w)` to that one.

    Returns:
      `[N, *space]`, non-negative, in units of the explained output. Biases of layers without
      spatial extent have no place in it; `full_gradient` has them all. Costs a forward and a
      backward pass, and the memory of one map for each bias.

    Raises:
      ValueError: `x` is not `[N, *space, C]`, or `target` names no output.

    Example:
      >>> net = lambda b, x: jax.nn.relu(x + b).mean((1, 2))
      >>> full_grad(net, jnp.array([[[[2.0]]]]), jnp.ones((1, 1, 2, 1)), 0).tolist()
      [[[1.5, 1.5]]]

    Reference:
      Srinivas and Fleuret 2019, arXiv:1905.00780, eq. 6. There each map is scaled to [0, 1] before
      the sum; here all keep the score's units, so a layer weighs what it contributes.
    """
    whole, channels = _terms(apply_fn, params, x, target)
    inputs = jax.tree.leaves(whole.inputs)
    ndim = jnp.ndim(jax.tree.leaves(x)[pictured(x)[0]])
    biases = [laid_out(a, axis, ndim) for a, axis in zip(whole.biases, channels, strict=True)]
    if resize is False or ndim < 3:
        raise ValueError(
            f"full_grad: x must be [N, *space, C] and resize True or a size; got x "
            f"{jax.tree.map(jnp.shape, x)}, resize {resize}. The layers' own maps are those of "
            "`full_gradient`."
        )
    placed = [jnp.abs(a).sum(-1) for a in (*inputs, *biases) if a.ndim == ndim]
    return sum(resized("full_grad", a, x, resize) for a in placed)  # type: ignore[return-value]


@explanation()
def full_gradient(apply_fn: Callable, params: Any, x: Any, target: Target = None) -> FullGradient:
    """The terms of which the score is the sum: one for each input, one for each bias at each place.

    f(x) = sum x * d f / d x + sum over biases b * d f / d b.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.

    Returns:
      A `FullGradient`, in units of the explained output. An example's terms sum to its score where
      the net is piecewise linear apart from pointwise activations. Batch norm counts as the
      additions it is made of; an activation that is no ReLU adds its intercept, a(z) - a'(z) z. A
      `custom_vjp` or `custom_jvp` around biases has the derivative of its values, unless there is a
      loop of unknown length or a kernel in the net: then its biases have no terms.

    Raises:
      ValueError: `x` is no batch, `target` names no output, or the net is called in a loop over
        the examples.

    Example:
      >>> net = lambda b, x: 3 * jax.nn.relu(x + b)
      >>> terms = full_gradient(net, jnp.array([[2.0]]), jnp.ones((1, 1)), 0)
      >>> terms.inputs.tolist(), [bias.tolist() for bias in terms.biases]
      ([[3.0]], [[[6.0]]])

    Reference:
      Srinivas and Fleuret 2019, arXiv:1905.00780, proposition 1, implicit biases included.
    """
    return _terms(apply_fn, params, x, target)[0]


def _terms(apply_fn, params, x, target):
    traced = model(apply_fn, params, x).flat
    _check_loops(traced)
    into = all(map(_has_derivative, traced.program.nodes))

    def probe(params, x):
        found.clear()
        return rewrite(apply_fn, _rules(found.append, into))(params, x)

    found: list[Op] = []
    jax.eval_shape(probe, params, x)

    def scaled(params, inputs):
        x, scales = inputs
        following = iter(scales)
        return rewrite(apply_fn, _rules(lambda op: next(following), into))(params, x)

    # Each bias is multiplied by ones: the gradient by those is the bias times its own gradient.
    scales = tuple(jnp.ones(op.outputs[0].shape, op.outputs[0].dtype) for op in found)
    gradients, biases = input_gradient(scaled, params, (x, scales), target)
    inputs = jax.tree.map(lambda a, g: a * g if is_floating(a) else g, x, gradients)
    return FullGradient(inputs, biases), [op.channel_axis for op in found]


def _has_derivative(node: Any) -> bool:
    """Whether what a function with a derivative of its own is made of has one too."""
    if node.kind in ("while", "pallas_call", "pure_callback", "io_callback", "ffi_call"):
        return False
    inside = (*node.members, *(n for body in node.bodies for n in body.nodes))
    return all(map(_has_derivative, inside))


def _check_loops(traced: Any) -> None:
    """Refuses biases of one example at a time: their terms would be sums over examples."""
    known = axes(traced)
    for node in traced.program.nodes:
        if not node.bodies or node.equation.primitive.name != "scan":
            continue
        first = sum(scan_arity(node.equation)[:2])
        rows = [known.labels.get(o) for o in node.operands[first:] if not isinstance(o, Scalar)]
        if any(labels and of_batch(labels[0]) for labels in rows):
            raise ValueError(
                "full_gradient: apply_fn must take all examples at once, for each bias has a term "
                f"in each; got a loop over examples at {source(node)}. Take jax.vmap in place of "
                "jax.lax.map."
            )


def _rules(scale: Callable[[Op], Any], into: bool) -> RuleSet:
    """Rules that multiply each bias by `scale(op)`, or leave it where that is None.

    `into` functions with a derivative of their own too, which is that of their values then.
    """

    def addition(op):
        if sum(op.depends) != 1 or len(op.operands) != 2:
            return None
        ones = scale(op)
        if ones is None:
            return None
        first = not isinstance(op.operands[0], Scalar) and op.depends[op.operands[0]]
        sign = -1 if op.primitive == "sub" else 1

        def replacement(*inputs):
            a, b = (o.value if isinstance(o, Scalar) else inputs[o] for o in op.operands)
            held = ones * jnp.broadcast_to(jnp.asarray(b if first else a, ones.dtype), ones.shape)
            return a + sign * held if first else held + sign * b

        return replacement

    def intercept(op):
        if op.kind in _THROUGH_ZERO or sum(op.depends) != 1:
            return op.evaluate  # as it stands: what it is made of adds no bias
        ones = scale(op)
        if ones is None:
            return op.evaluate
        at = op.depends.index(True)

        def replacement(*inputs):
            along = lambda z: op.evaluate(*inputs[:at], z, *inputs[at + 1 :])
            out, slope = jax.jvp(along, (inputs[at],), (inputs[at],))
            return out + (ones - 1) * stopped(out - slope)

        return replacement

    kept = dict.fromkeys(
        ("softmax", "log_softmax", "layer_norm", "rms_norm"), lambda op: op.evaluate
    )
    rows = {"add": addition, "sub": addition, "bias": addition, "activation": intercept}
    return RuleSet("full_grad", {**rows, **kept}, into_custom=into, named=False, placed=True)


_THROUGH_ZERO = frozenset({"relu", "leaky_relu"})  # a(z) = a'(z) z
