"""Other pullbacks for ReLU: guided backpropagation, the deconvnet, and two smoother ones.

The function itself is never changed, only what its derivative lets through. A ReLU is found
however it is spelled (`jax.nn.relu`, `jnp.maximum(x, 0)`, `where(x > 0, x, 0)`, `x * (x > 0)`).
ReLU6 and any other clipped ReLU count as a ReLU, for they are one with a ceiling; a clamp that
keeps a variance or a squared distance from falling below zero does not, for it changes nothing.
Leaky ReLU, ELU, GELU, hard swish and the like let negative values through by design, whatever
maxima they are made of; the papers say nothing of them, so they keep their own derivative. To treat
one like a ReLU all the same, add a row:
`RuleSet("mine", {**dict(guided.table), "gelu": guided_rule})`.

A function with a derivative of its own (`custom_jvp`, `custom_vjp`) keeps it if there is no ReLU
inside (gradient reversal). With a ReLU inside, the derivative of its values takes the place of its
own; for a rounded ReLU with a straight-through gradient rewrite by
`RuleSet("mine", guided.table, into_custom=False)`, which keeps it.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxviz.calls.public import public
from jaxviz.graph.kinds import RELU_KINDS
from jaxviz.graph.rewrite import Op, RuleSet


def guided_rule(op: Op) -> Callable:
    """Of a gradient only what is positive, and that only where the activation lets it through."""
    return _with_pullback(op, lambda x, g, own: own(jnp.maximum(g, 0)))


def deconvnet_rule(op: Op) -> Callable:
    """Of a gradient only what is positive, wherever the activation stood in the forward pass."""
    return _with_pullback(op, lambda x, g, own: jnp.maximum(g, 0))


def redirected_rule(op: Op) -> Callable:
    """Where a whole example's gradient is blocked by dead units, lets it through to wake them.

    The gradient is that of what climbs: a dead unit that it would push further away stays closed,
    below zero and above a ceiling (6 for ReLU6).

    Reference:
      The `redirected_relu_grad` of Lucid, which descends: there the sign of the gradient is the
      other one. It redirects in its first 16 steps only; here that is up to the caller.
    """

    def pullback(x, g, own):
        dead = own(jnp.ones_like(g)) == 0
        away = dead & jnp.where(x > 0, g > 0, g < 0)
        plain = own(g)
        blocked = jnp.all(plain == 0, tuple(range(1, x.ndim)), keepdims=True)
        redirected = jnp.where(away, jnp.zeros_like(g), g)
        return jnp.where(jnp.broadcast_to(blocked, g.shape), redirected, plain)

    return _with_pullback(op, pullback)


@functools.cache
def softplus_rule(beta: float) -> Callable[[Op], Callable]:
    """The derivative of softplus(beta x) / beta in place of a step."""

    def rule(op: Op) -> Callable:
        at = op.depends.index(True)

        # Linear in the gradient, so a `custom_jvp`: forward mode works as well.
        @jax.custom_jvp
        def replaced(*inputs):
            return op.evaluate(*inputs)

        @replaced.defjvp
        def tangent(inputs, tangents):
            x = jnp.asarray(inputs[at])
            step = lambda x: jax.nn.sigmoid(jnp.asarray(beta, x.dtype) * x)
            slope = step(x) - step(x - _ceiling(op, inputs, at))
            return replaced(*inputs), tangents[at] * slope

        return replaced

    return rule


def _with_pullback(op: Op, pullback: Callable) -> Callable:
    """The operation as it stands, with `(x, g, own pullback) -> gradient` as its pullback."""
    at = op.depends.index(True)  # an array of zeros that only params reach may stand beside x

    @jax.custom_vjp
    def replaced(*inputs):
        return op.evaluate(*inputs)

    def backward(inputs, g):
        x = inputs[at]

        def own(g):
            if op.kind in RELU_KINDS:  # spelled as a maximum its derivative at zero would be a half
                lets_through = (x > 0) & (x < _ceiling(op, inputs, at))
                return jnp.where(lets_through, g, jnp.zeros_like(g))
            moved = lambda x: op.evaluate(*inputs[:at], x, *inputs[at + 1 :])
            return jax.vjp(moved, x)[1](g)[0]

        gradients: list = [None] * len(inputs)  # only x is differentiated
        gradients[at] = pullback(x, g, own)
        return tuple(gradients)

    replaced.defvjp(lambda *inputs: (op.evaluate(*inputs), inputs), backward)
    return replaced


def _ceiling(op: Op, inputs: Sequence[jax.Array], at: int) -> jax.Array:
    """The value that a ReLU never exceeds, at each place; infinite where it has none."""
    x = inputs[at]
    if op.kind not in RELU_KINDS or op.kind == "relu":
        return jnp.full_like(x, jnp.inf)
    highest = jnp.full_like(x, jnp.finfo(x.dtype).max)
    return op.evaluate(*inputs[:at], highest, *inputs[at + 1 :])


def _relus(name: str, rule: Callable) -> RuleSet:
    # A ReLU inside a function with a derivative of its own is a ReLU all the same.
    table = dict.fromkeys(sorted(RELU_KINDS), rule)
    if rule is not redirected_rule:  # which is a help alone: a climb goes on without
        table["call_exported"] = _hidden
    return RuleSet(name, table, into_custom=True, named=False)


def _hidden(op: Op) -> None:
    raise NotImplementedError(
        f"a program of jax.export (at {op.source}) hides its ReLUs, which would keep their plain "
        "derivative. Take the function that was exported."
    )


guided = _relus("guided", guided_rule)
deconvnet = _relus("deconvnet", deconvnet_rule)
redirected_relu = _relus("redirected_relu", redirected_rule)


@public()
def softplus_surrogate(beta: float = 10.0) -> RuleSet:
    """ReLUs whose derivative is that of a softplus, for second derivatives that are not zero.

    1[x > 0] becomes s(x) = 1 / (1 + exp(-beta x)), and that of a ReLU with a ceiling c
    s(x) - s(x - c); the values of the function stay those of ReLU.

    Args:
      beta: Sharpness, > 0; the derivative tends to the step as it grows.

    Returns:
      A rule set, equal for equal `beta`.

    Raises:
      ValueError: `beta` is not positive.

    Example:
      >>> from jaxviz.graph.rewrite import rewrite
      >>> f = rewrite(lambda _, x: jax.nn.relu(x), softplus_surrogate(2.0))
      >>> float(jax.grad(lambda x: f(None, x).sum())(jnp.zeros((1, 1)))[0, 0])
      0.5

    Reference:
      Dombrowski et al. 2019, arXiv:1906.07983, section 4. There the forward pass is softplus too;
      here only the derivative, so that what is explained is the net as it is.
    """
    if not beta > 0:
        raise ValueError(f"softplus_surrogate: beta must be positive; got {beta}. Try 10.")
    return _relus("softplus_surrogate", softplus_rule(float(beta)))
