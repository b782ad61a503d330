"""Rules of layer-wise relevance propagation (LRP): how a layer hands relevance to its inputs.

Relevance travels as the cotangent does. A rule replaces an operation's derivative by the linear map

    t -> d(t),  whose transpose takes the relevance R of the outputs to that of the inputs,

so `jax.vjp` of the rewritten function, started at the explained number, gives the relevance of the
input, and what several branches send to one value adds up. For the epsilon rule
d(t) = W (x t) / (z + eps), hence R -> x W^T (R / (z + eps)). Every rule is `rule(op) -> function`,
equal for equal arguments, so that what was compiled for one table is found again for its equal.

A convolution or dense layer is seen with its bias, and with the batch norm right after it folded
in: z = W x + b. The relevance that b takes is lost unless a rule is made with `bias=False`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.graph.fold import LINEAR, MOVING, kernel_axes, moved_axes
from jaxviz.graph.interpreter import Scalar
from jaxviz.graph.rewrite import Op, Rule
from jaxviz.rules.fast import fast

STABILIZER = 1e-6


class _Layer(NamedTuple):
    """A linear layer at its input: `z = apply(x, w) + b`, b broadcasting to z."""

    apply: Callable
    x: jax.Array
    w: jax.Array
    b: jax.Array

    def along(self, t: jax.Array, w: jax.Array) -> jax.Array:
        """`apply(t, w)` of what is carried: a derivative, for it has the quicker transpose."""
        return jax.jvp(lambda x: self.apply(x, w), (self.x,), (t,))[1]


@functools.cache
def epsilon(epsilon: float = STABILIZER, *, bias: bool = True) -> Rule:
    """Shares relevance by contribution: R_i = sum_j x_i w_ij R_j / (z_j + eps sign z_j).

    For any operation: of one that is not linear, its derivative takes the place of w, so R is what
    the first-order (gradient times input) share is.

    Where winners of a max pooling nearly tie, rounding turns some: on a SqueezeNet photograph,
    float32 moves single relevances by 3e-4 of the largest (3e-3 in PyTorch), else by 1e-7.

    Args:
      epsilon: Added to |z|, in units of z; relevance where |z| is below it fades out.
      bias: Whether the bias of a convolution or dense layer takes its share.

    Reference:
      Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 58.
    """

    def rule(op: Op) -> Callable:
        def tangent(inputs, tangents):
            scaled = [None if t is None else x * t for x, t in zip(inputs, tangents, strict=True)]
            z, d = _derivative(op, inputs, scaled)
            if not bias and _is_layer(op):
                layer = _layer(op, inputs)
                denominator = layer.apply(layer.x, layer.w)
                return z, d / _stable(denominator, epsilon)
            return z, jax.tree.map(lambda z, d: d / _stable(z, epsilon), z, d)

        return _replaced(op, tangent)

    return rule


@functools.cache
def gamma(gamma: float = 0.25, *, bias: bool = True, stabilizer: float = STABILIZER) -> Rule:
    """Like epsilon, with the contributions of the output's own sign enlarged by 1 + gamma.

    All four sign branches: where z > 0 the contributions x w > 0 are enlarged, of positive inputs
    through positive weights and of negative inputs through negative ones; where z < 0 those < 0.

    Args:
      gamma: How much, >= 0. Zero is epsilon, infinity alpha-beta with (1, 0) on either sign.
      bias: Whether the bias takes its share (enlarged alike).
      stabilizer: Added to |denominator|.

    Reference:
      Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10, section 10.2.2, for x >= 0 and z > 0;
      Andeol et al. 2021, arXiv:2106.13166, for all signs. Captum's GammaRule has the first branch
      only and leaves the bias as it is.
    """

    def tangent(layer: _Layer, t):
        x, w, b = layer.x, layer.w, layer.b if bias else jnp.zeros_like(layer.b)
        g = jnp.asarray(gamma, w.dtype)
        up, down = w + g * _pos(w), w + g * _neg(w)
        z = layer.apply(x, w) + layer.b
        zero = jnp.zeros_like(z)

        def share(keep, for_pos, for_neg, b):
            whole = layer.apply(_pos(x), for_pos) + layer.apply(_neg(x), for_neg) + b
            part = layer.along(_pos(x) * t, for_pos) + layer.along(_neg(x) * t, for_neg)
            return jnp.where(keep, part / _stable(whole, stabilizer), zero)

        g = g.astype(b.dtype)
        return share(z > 0, up, down, b + g * _pos(b)) + share(z < 0, down, up, b + g * _neg(b))

    return _layer_rule("gamma", tangent)


@functools.cache
def alpha_beta(
    alpha: float = 2.0, beta: float = 1.0, *, bias: bool = True, stabilizer: float = STABILIZER
) -> Rule:
    """Shares alpha R among the positive contributions and -beta R among the negative ones.

    Args:
      alpha: >= 0.
      beta: >= 0, with alpha - beta = 1, which conserves relevance where an output has contributions
        of both signs; with none of a sign that share is lost.
      bias: Whether the bias takes its share, by its sign.
      stabilizer: Added to |denominator|.

    Raises:
      ValueError: alpha - beta is not 1, or one of them is negative.

    Reference:
      Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 60. Captum's Alpha1_Beta0 does not
      split the inputs by sign, so it differs where an input is negative.
    """
    if alpha < 0 or beta < 0 or abs(alpha - beta - 1) > 1e-9:
        raise ValueError(
            f"alpha_beta: needs alpha - beta = 1, both >= 0; got {alpha} and {beta}. "
            "Take (1, 0) or (2, 1)."
        )

    def tangent(layer: _Layer, t):
        x, w = layer.x, layer.w

        def share(for_pos, for_neg, b):
            whole = layer.apply(_pos(x), for_pos) + layer.apply(_neg(x), for_neg)
            part = layer.along(_pos(x) * t, for_pos) + layer.along(_neg(x) * t, for_neg)
            whole = whole + b if bias else whole
            return part / _stable(whole, stabilizer)

        d = jnp.asarray(alpha, w.dtype) * share(_pos(w), _neg(w), _pos(layer.b))
        if beta:
            d = d - jnp.asarray(beta, w.dtype) * share(_neg(w), _pos(w), _neg(layer.b))
        return d

    return _layer_rule("alpha_beta", tangent)


def z_plus(*, bias: bool = True, stabilizer: float = STABILIZER) -> Rule:
    """Shares relevance among the positive contributions alone: `alpha_beta(1, 0)`.

    Reference:
      Montavon et al. 2017, arXiv:1512.02479, section IV-B: there for inputs >= 0 and without the
      bias (`bias=False`).
    """
    return alpha_beta(1.0, 0.0, bias=bias, stabilizer=stabilizer)


def z_box(
    low: float | Sequence[float], high: float | Sequence[float], *, stabilizer: float = STABILIZER
) -> Rule:
    """For a first layer whose inputs lie in a box: shares by w x - w+ low - w- high.

    Args:
      low: Least value an input can take: a number, or one for each channel (the last axis).
      high: Greatest.
      stabilizer: Added to |denominator|.

    Raises:
      ValueError: `low` is above `high`.

    Reference:
      Montavon et al. 2017, arXiv:1512.02479, section IV-D. The bias has no part in it.
    """
    low_, high_ = _numbers(low), _numbers(high)
    if not np.all(np.asarray(low_) <= np.asarray(high_)):
        raise ValueError(
            f"z_box: low must not be above high; got {low} and {high}. They are the least and "
            "greatest value of an input as the net sees it (after normalisation)."
        )
    return _z_box(low_, high_, stabilizer)


@functools.cache
def _z_box(low, high, stabilizer) -> Rule:
    def tangent(layer: _Layer, t):
        x, w = layer.x, layer.w
        down = jnp.broadcast_to(_at_rank(low, x), x.shape)
        up = jnp.broadcast_to(_at_rank(high, x), x.shape)

        def box(apply, x, down, up):
            return apply(x, w) - apply(down, _pos(w)) - apply(up, _neg(w))

        whole = box(layer.apply, x, down, up)
        return box(layer.along, x * t, down * t, up * t) / _stable(whole, stabilizer)

    return _layer_rule("z_box", tangent)


@functools.cache
def w_square(*, stabilizer: float = STABILIZER) -> Rule:
    """For a first layer of unbounded inputs: shares by squared weights, whatever the input is.

    Deeper in a residual net it feeds dead units too, and sums there that nearly cancel enlarge what
    they get: in every layer of a CIFAR ResNet-20, rounding weights to float32 moves the relevance
    by up to 13 % of the largest (PyTorch's float32 is off by 5 %, ours by 2 %). So does `flat`.

    Reference:
      Montavon et al. 2017, arXiv:1512.02479, section IV-C. Biases have no part there nor here;
      zennit's WSquare adds their squares to the denominator unless told not to.
    """

    def tangent(layer: _Layer, t):
        square = layer.w * layer.w
        whole = layer.apply(jnp.ones_like(layer.x), square)
        return layer.along(t, square) / _stable(whole, stabilizer)

    return _layer_rule("w_square", tangent)


@functools.cache
def flat(*, stabilizer: float = STABILIZER) -> Rule:
    """For a first layer: shares evenly among the inputs that an output sees.

    In every layer of a residual net it is as ill-conditioned as `w_square`.

    Reference:
      Lapuschkin et al. 2019, arXiv:1902.10178, methods.
    """

    def tangent(layer: _Layer, t):
        ones = jnp.ones_like(layer.w)
        whole = layer.apply(jnp.ones_like(layer.x), ones)
        return layer.along(t, ones) / _stable(whole, stabilizer)

    return _layer_rule("flat", tangent)


def norm(*, stabilizer: float = STABILIZER) -> Rule:
    """For sums and averages: shares by contribution; `epsilon` under the name it has there."""
    return epsilon(stabilizer)


def pass_through(op: Op) -> Callable:
    """For activations and scalings: the input gets what the output has."""
    moving = _moving(op)
    if len(moving) != 1 or op.inputs[moving[0]].shape != op.outputs[0].shape:
        raise NotImplementedError(
            f"pass_through: needs one input of the output's shape; the operation {op.kind!r} at "
            f"{op.source} has {[op.inputs[i].shape for i in moving]} -> {op.outputs[0].shape}. "
            "Give it `epsilon()`, say."
        )

    def tangent(inputs, tangents):
        z = op.evaluate(*inputs)
        return z, tangents[moving[0]].astype(z.dtype)

    return _replaced(op, tangent)


def keep(op: Op) -> None:
    """For operations that move numbers or pick one: the own derivative moves relevance alike."""


@functools.cache
def product(epsilon: float = STABILIZER) -> Rule:
    """For a product of two activations (gates, attention): half of the relevance to each factor.

    Reference:
      Achtibat et al. 2024, arXiv:2402.05602, proposition 3.3 (the uniform rule).
    """

    def rule(op: Op) -> Callable:
        if op.primitive == "mul":
            if len(op.operands) == 2 and len(_moving(op)) == 2:
                return _replaced(op, lambda inputs, ts: (op.evaluate(*inputs), (ts[0] + ts[1]) / 2))
            return pass_through(op)

        def tangent(inputs, tangents):
            scaled = [None if t is None else x * t for x, t in zip(inputs, tangents, strict=True)]
            z, d = _derivative(op, inputs, scaled)
            return z, d / (2 * _stable(z, epsilon))

        return _replaced(op, tangent)

    return rule


def quotient(op: Op) -> Callable:
    """For a quotient of two activations (a normalisation): all relevance to the numerator."""
    if len(_moving(op)) == 1:
        return pass_through(op)
    top = op.operands[0]
    return _replaced(op, lambda inputs, tangents: (op.evaluate(*inputs), tangents[top]))


def extremum(op: Op) -> Callable | None:
    """For max and min: between activations the winner takes all; against a constant, passed on."""
    return pass_through(op) if len(_moving(op)) == 1 else None


def _layer_rule(name: str, tangent: Callable[[_Layer, jax.Array], jax.Array]) -> Rule:
    """A rule that needs a layer's weights, from its map of tangents."""

    def rule(op: Op) -> Callable:
        if not _is_layer(op):
            raise NotImplementedError(
                f"{name}: needs a convolution or dense layer with weights that do not depend on "
                f"the input; got the operation {op.kind!r} at {op.source}. Give it `epsilon()`."
            )

        def layered(inputs, tangents):
            layer = _layer(op, inputs)
            return op.evaluate(*inputs), tangent(layer, tangents[op.depends.index(True)])

        return _replaced(op, layered)

    rule.__name__ = name
    return rule


def _replaced(op: Op, tangent: Callable) -> Callable:
    """The operation as it stands, `(inputs, tangents) -> (outputs, tangent)` its derivative.

    The outputs in `tangent` come from the operation itself, so a derivative of the explanation
    differentiates the net's true values.
    """
    moving = _moving(op)

    @jax.custom_jvp
    def replaced(*inputs):
        return op.evaluate(*inputs)

    @replaced.defjvp
    def jvp(inputs, tangents):
        return tangent(inputs, [t if i in moving else None for i, t in enumerate(tangents)])

    return replaced


def _derivative(op: Op, inputs: Sequence[jax.Array], tangents: Sequence[jax.Array | None]):
    """The operation and its own derivative along the tangents that are not None."""
    moving = [i for i, t in enumerate(tangents) if t is not None]
    evaluate = _quick(op)

    def moved(*values):
        given = dict(zip(moving, values, strict=True))
        return evaluate(*(given.get(i, a) for i, a in enumerate(inputs)))

    return jax.jvp(moved, [inputs[i] for i in moving], [tangents[i] for i in moving])


def _quick(op: Op) -> Callable:
    """The operation by faster kernels of the same numbers, where there are some."""

    def evaluate(*inputs):
        values = list(inputs)
        for member, reads in op.members:
            values.append(_quick(member)(*(values[i] for i in reads)))
        return values[-1]

    return fast.find(op)[1] or (evaluate if op.members and _is_layer(op) else op.evaluate)


def _moving(op: Op) -> list[int]:
    pairs = enumerate(zip(op.depends, op.inputs, strict=True))
    return [i for i, (d, a) in pairs if d and jnp.issubdtype(a.dtype, jnp.inexact)]


def _is_layer(op: Op) -> bool:
    core = op.members[0][0] if op.members else op
    return core.kind in LINEAR and len(core.inputs) == 2 and len(_moving(core)) == 1


def _layer(op: Op, inputs: Sequence[jax.Array]) -> _Layer:
    """A linear layer with the scale and shift after it folded into its weights."""
    core, reads = op.members[0] if op.members else (op, (0, 1))
    at = core.depends.index(True)
    x, w = inputs[reads[at]], inputs[reads[1 - at]]
    moves = [step for step, _ in op.members[1:] if step.primitive in MOVING]
    evaluate = fast.find(core)[1] or core.evaluate

    def apply(x, w):
        z = evaluate(*((x, w) if at == 0 else (w, x)))
        return functools.reduce(lambda z, step: step.evaluate(z), moves, z)

    shape = core.outputs[0].shape
    axes = kernel_axes(core.kind, core.options, core.operands.index(1 - at), w.shape, len(shape))
    # Scale and shift have the kernel's axes, of length 1 but along the output channels.
    scale, shift = jnp.ones((1,) * w.ndim, w.dtype), jnp.zeros((1,) * w.ndim, w.dtype)
    for step, found in op.members[1:]:
        if step.primitive in MOVING:
            before, shape = shape, step.outputs[0].shape
            axes = moved_axes(step.primitive, step.options, axes, before, shape) or {}
            continue
        order = step.operands.index(step.depends.index(True))
        other = step.operands[1 - order]
        c = jnp.asarray(other.value) if isinstance(other, Scalar) else inputs[found[other]]
        c = _on_kernel(c.astype(w.dtype), axes, w.ndim)
        if step.primitive == "mul":
            scale, shift = scale * c, shift * c
        elif step.primitive == "div":
            scale, shift = scale / c, shift / c
        elif step.primitive == "sub" and order == 1:
            scale, shift = -scale, c - shift
        else:
            shift = shift - c if step.primitive == "sub" else shift + c
    b = jnp.transpose(shift, sorted(range(w.ndim), key=lambda k: k not in axes.values()))
    sizes = {a: shift.shape[k] for a, k in axes.items()}
    order = sorted(axes, key=lambda a: axes[a])
    b = b.reshape([sizes[a] for a in order])  # channels in the kernel's order, then in the output's
    b = b.transpose([order.index(a) for a in sorted(axes)])
    b = b.reshape([sizes.get(a, 1) for a in range(len(shape))])
    return _Layer(apply, x, w * scale, b.astype(op.outputs[0].dtype))


def _on_kernel(c: jax.Array, axes: dict[int, int], rank: int) -> jax.Array:
    """An array along the output's channel axes, laid along the kernel's."""
    if not c.ndim:
        return c.reshape((1,) * rank)
    kept = sorted(axes, key=lambda a: axes[a])
    sizes = {axes[a]: c.shape[a] for a in kept}
    c = c.transpose([*kept, *(a for a in range(c.ndim) if a not in axes)])
    return c.reshape([sizes.get(k, 1) for k in range(rank)])


def _stable(z: jax.Array, epsilon: float) -> jax.Array:
    e = jnp.asarray(epsilon, z.dtype)
    return z + jnp.where(z < 0, -e, e)


def _pos(a: jax.Array) -> jax.Array:
    return jnp.maximum(a, 0)


def _neg(a: jax.Array) -> jax.Array:
    return jnp.minimum(a, 0)


def _numbers(value: Any) -> float | tuple[float, ...]:
    array = np.asarray(value, float)
    return float(array) if array.ndim == 0 else tuple(array.ravel().tolist())


def _at_rank(value: float | tuple[float, ...], x: jax.Array) -> jax.Array:
    array = jnp.asarray(value, x.dtype)
    return array.reshape((1,) * (x.ndim - array.ndim) + array.shape)
