"""Rules of layer-wise relevance propagation (LRP): how a layer hands relevance to its inputs.

Relevance travels as the cotangent does. A rule replaces an operation's derivative by the linear map

    t -> d(t),  whose transpose takes the relevance R of the outputs to that of the inputs,

so `jax.vjp` of the rewritten function, started at the explained number, gives the relevance of the
input, and what several branches send to one value adds up. For the epsilon rule
d(t) = W (x t) / (z + eps), hence R -> x W^T (R / (z + eps)). Every rule is `rule(op) -> function`,
equal for equal arguments, so that what was compiled for one table is found again for its equal.

What divides by z has no scale of its own: without an epsilon (the default, LRP-0) an output that is
exactly 0 hands nothing on, and inputs c times as large, of a net without biases, get relevances c
times as large, for any c and in any precision. An epsilon or `stabilizer` that is given is added to
|z| as it is, in units of z, as in the papers and their peers (zennit's default is 1e-6).

Numbers (gamma, epsilon, stabilizer) may be traced: under `jit`, `vmap` and `grad` new ones compile
nothing. A traced one that would be refused, below 0 or not finite, makes the relevance NaN.

A convolution or dense layer is seen with its bias, and with the batch norm right after it folded
in: z = W x + b. The relevance that b takes is lost unless a rule is made with `bias=False`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.public import public
from jaxviz.graph.fold import LINEAR, MOVING, kernel_axes, moved_axes
from jaxviz.graph.interpreter import Scalar
from jaxviz.graph.rewrite import Op, Rule
from jaxviz.rules.fast import weighed
from jaxviz.rules.lrp_maps import (
    at_least_zero,
    contributions,
    derivative,
    is_complex,
    made_once,
    moving,
    number,
    quick,
    replaced,
    share,
)
from jaxviz.rules.lrp_operations import (
    extremum as extremum,
    factors as factors,
    keep as keep,
    pass_through as pass_through,
    product as product,
    quotient as quotient,
    signal_takes_all as signal_takes_all,
)


class _Layer(NamedTuple):
    """A linear layer at its input: `z = apply(x, w) + b`, b broadcasting to z."""

    apply: Callable
    x: jax.Array
    w: jax.Array
    b: jax.Array
    nonnegative: bool  # whether x is, whatever the net's input

    def by_sign(self, t: jax.Array, for_pos: jax.Array, for_neg: jax.Array):
        """The sum of `apply(x+, for_pos)` and `apply(x-, for_neg)`, and what it carries of t."""
        if self.nonnegative:
            return self.apply(self.x, for_pos), self.along(self.x * t, for_pos)
        up, down = _pos(self.x), _neg(self.x)
        whole = self.apply(up, for_pos) + self.apply(down, for_neg)
        return whole, self.along(up * t, for_pos) + self.along(down * t, for_neg)

    def along(self, t: jax.Array, w: jax.Array) -> jax.Array:
        """`apply(t, w)` of what is carried: a derivative, for it has the quicker transpose."""
        return jax.jvp(lambda x: self.apply(x, w), (self.x,), (t,))[1]


@public(epsilon=number)
def epsilon(epsilon: float = 0.0, *, bias: bool = True) -> Rule:
    """Shares relevance by contribution: R_i = sum_j x_i w_ij R_j / (z_j + eps sign z_j).

    For any operation: of one that is not linear, its derivative takes the place of w, so R is what
    the first-order (gradient times input) share is.

    Where winners of a max pooling nearly tie, rounding turns some: on a SqueezeNet photograph,
    float32 moves single relevances by 3e-4 of the largest (3e-3 in PyTorch), else by 1e-7.

    Args:
      epsilon: Added to |z|, in units of z; relevance where |z| is below it fades out.
      bias: Whether the bias of a convolution or dense layer takes its share.

    Raises:
      ValueError: `epsilon` is negative or not finite.

    Reference:
      Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 58; without an epsilon eq. 56.
    """
    return _epsilon(epsilon, bias)


@made_once
def _epsilon(epsilon: float, bias: bool) -> Rule:
    def rule(op: Op) -> Callable:
        def tangent(inputs, tangents, epsilon):
            if _is_layer(op):
                given = [
                    None if t is None else x * t for x, t in zip(inputs, tangents, strict=True)
                ]
            else:
                given = contributions(inputs, tangents)
            z, d = derivative(op, inputs, given)
            if not bias and _is_layer(op):
                layer = _layer(op, inputs)
                denominator = layer.apply(layer.x, layer.w)
                return z, share(d, denominator, epsilon)
            return z, jax.tree.map(lambda z, d: share(d, z, epsilon), z, d)

        return replaced(op, tangent, epsilon=epsilon)

    return rule


@public(gamma=number, stabilizer=number)
def gamma(gamma: float = 0.25, *, bias: bool = True, stabilizer: float = 0.0) -> Rule:
    """Like epsilon, with the contributions of the output's own sign enlarged by 1 + gamma.

    All four sign branches: where z > 0 the contributions x w > 0 are enlarged, of positive inputs
    through positive weights and of negative inputs through negative ones; where z < 0 those < 0.

    Args:
      gamma: How much, >= 0. Zero is epsilon; it tends to alpha-beta with (1, 0) on either sign.
      bias: Whether the bias takes its share (enlarged alike).
      stabilizer: Added to |denominator|.

    Raises:
      ValueError: `gamma` or `stabilizer` is negative or not finite.

    Reference:
      Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10, section 10.2.2, for x >= 0 and z > 0;
      Andeol et al. 2021, arXiv:2106.13166, for all signs. Captum's GammaRule has the first branch
      only and leaves the bias as it is.
    """
    return _gamma(gamma, stabilizer, bias)


@made_once
def _gamma(gamma: float, stabilizer: float, bias: bool) -> Rule:

    def tangent(layer: _Layer, t, gamma, stabilizer):
        w, b = layer.w, layer.b if bias else jnp.zeros_like(layer.b)
        g = at_least_zero(gamma, w.dtype)
        up, down = w + g * _pos(w), w + g * _neg(w)
        z = layer.apply(layer.x, w) + layer.b
        zero = jnp.zeros_like(z)

        def part_of(keep, for_pos, for_neg, b):
            whole, part = layer.by_sign(t, for_pos, for_neg)
            return jnp.where(keep, share(part, whole + b, stabilizer), zero)

        g = g.astype(b.dtype)
        d = part_of(z > 0, up, down, b + g * _pos(b))
        return d + part_of(z < 0, down, up, b + g * _neg(b))

    return _layer_rule("gamma", tangent, gamma=gamma, stabilizer=stabilizer)


@public(stabilizer=number)
def alpha_beta(
    alpha: float = 2.0, beta: float = 1.0, *, bias: bool = True, stabilizer: float = 0.0
) -> Rule:
    """Shares alpha R among the positive contributions and -beta R among the negative ones.

    Args:
      alpha: >= 0.
      beta: >= 0, with alpha - beta = 1, which conserves relevance where an output has contributions
        of both signs; with none of a sign that share is lost.
      bias: Whether the bias takes its share, by its sign.
      stabilizer: Added to |denominator|.

    Raises:
      ValueError: alpha - beta is not 1, or a number is negative or not finite.

    Reference:
      Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 60. Captum's Alpha1_Beta0 does not
      split the inputs by sign, so it differs where an input is negative.
    """
    if alpha < 0 or beta < 0 or abs(alpha - beta - 1) > 1e-9:
        raise ValueError(
            f"alpha_beta: needs alpha - beta = 1, both >= 0; got {alpha} and {beta}. "
            "Take (1, 0) or (2, 1)."
        )
    return _alpha_beta(alpha, beta, stabilizer, bias)


@made_once
def _alpha_beta(alpha: float, beta: float, stabilizer: float, bias: bool) -> Rule:

    def tangent(layer: _Layer, t, stabilizer):
        w = layer.w

        def part_of(for_pos, for_neg, b):
            whole, part = layer.by_sign(t, for_pos, for_neg)
            return share(part, whole + b if bias else whole, stabilizer)

        d = jnp.asarray(alpha, w.dtype) * part_of(_pos(w), _neg(w), _pos(layer.b))
        if beta:
            d = d - jnp.asarray(beta, w.dtype) * part_of(_neg(w), _pos(w), _neg(layer.b))
        return d

    return _layer_rule("alpha_beta", tangent, stabilizer=stabilizer)


@public(stabilizer=number)
def z_plus(*, bias: bool = True, stabilizer: float = 0.0) -> Rule:
    """Shares relevance among the positive contributions alone: `alpha_beta(1, 0)`.

    Reference:
      Montavon et al. 2017, arXiv:1512.02479, section IV-B: there for inputs >= 0 and without the
      bias (`bias=False`).
    """
    return alpha_beta(1.0, 0.0, bias=bias, stabilizer=stabilizer)


@public(stabilizer=number)
def z_box(
    low: float | Sequence[float], high: float | Sequence[float], *, stabilizer: float = 0.0
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


@made_once
def _z_box(low, high, stabilizer) -> Rule:
    def tangent(layer: _Layer, t, stabilizer):
        x, w = layer.x, layer.w
        down = jnp.broadcast_to(_at_rank(low, x), x.shape)
        up = jnp.broadcast_to(_at_rank(high, x), x.shape)

        def box(apply, x, down, up):
            return apply(x, w) - apply(down, _pos(w)) - apply(up, _neg(w))

        whole = box(layer.apply, x, down, up)
        d = box(layer.along, x * t, down * t, up * t)
        return share(d, whole, stabilizer)

    return _layer_rule("z_box", tangent, stabilizer=stabilizer)


@public(stabilizer=number)
def w_square(*, stabilizer: float = 0.0) -> Rule:
    """For a first layer of unbounded inputs: shares by squared weights, whatever the input is.

    Deeper in a residual net it feeds dead units too, and sums there that nearly cancel enlarge what
    they get: in every layer of a CIFAR ResNet-20, rounding weights to float32 moves the relevance
    by up to 13 % of the largest (PyTorch's float32 is off by 5 %, ours by 2 %). So does `flat`.

    Reference:
      Montavon et al. 2017, arXiv:1512.02479, section IV-C. Biases have no part there nor here;
      zennit's WSquare adds their squares to the denominator unless told not to.
    """

    return _w_square(stabilizer)


@made_once
def _w_square(stabilizer: float) -> Rule:
    def tangent(layer: _Layer, t, stabilizer):
        square = layer.w * layer.w
        whole = layer.apply(jnp.ones_like(layer.x), square)
        return share(layer.along(t, square), whole, stabilizer)

    return _layer_rule("w_square", tangent, stabilizer=stabilizer)


@public(stabilizer=number)
def flat(*, stabilizer: float = 0.0) -> Rule:
    """For a first layer: shares evenly among the inputs that an output sees.

    In every layer of a residual net it is as ill-conditioned as `w_square`.

    Reference:
      Lapuschkin et al. 2019, arXiv:1902.10178, methods.
    """

    return _flat(stabilizer)


@made_once
def _flat(stabilizer: float) -> Rule:
    def tangent(layer: _Layer, t, stabilizer):
        ones = jnp.ones_like(layer.w)
        whole = layer.apply(jnp.ones_like(layer.x), ones)
        return share(layer.along(t, ones), whole, stabilizer)

    return _layer_rule("flat", tangent, stabilizer=stabilizer)


@public(stabilizer=number)
def norm(*, stabilizer: float = 0.0) -> Rule:
    """For sums and averages: shares by contribution; `epsilon` under the name it has there."""
    return _epsilon(stabilizer, True)


def _layer_rule(name: str, tangent: Callable[..., jax.Array], **numbers: Any) -> Rule:
    """A rule that needs a layer's weights, from its map of tangents `(layer, t, **numbers)`."""

    def rule(op: Op) -> Callable:
        if not _is_layer(op):
            raise NotImplementedError(
                f"{name}: needs a convolution or dense layer with weights that do not depend on "
                f"the input; got the operation {op.kind!r} at {op.source}. Give it `epsilon()`."
            )

        def layered(inputs, tangents, **numbers):
            layer = _layer(op, inputs)
            return quick(op)(*inputs), tangent(layer, tangents[op.depends.index(True)], **numbers)

        return replaced(op, layered, **numbers)

    rule.__name__ = name
    return rule


def _is_layer(op: Op) -> bool:
    core = op.members[0][0] if op.members else op
    weights = core.kind in LINEAR and len(core.inputs) == 2 and len(moving(core)) == 1
    return weights and not is_complex(core)


def _layer(op: Op, inputs: Sequence[jax.Array]) -> _Layer:
    """A linear layer with the scale and shift after it folded into its weights."""
    core, reads = op.members[0] if op.members else (op, (0, 1))
    at = core.depends.index(True)
    x, w = inputs[reads[at]], inputs[reads[1 - at]]
    moves = [step for step, _ in op.members[1:] if step.primitive in MOVING]
    evaluate = weighed().find(core)[1] or core.evaluate

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
    nonnegative = bool(op.nonnegative) and op.nonnegative[reads[at]]
    return _Layer(apply, x, w * scale, b.astype(op.outputs[0].dtype), nonnegative)


def _on_kernel(c: jax.Array, axes: dict[int, int], rank: int) -> jax.Array:
    """An array along the output's channel axes, laid along the kernel's."""
    if not c.ndim:
        return c.reshape((1,) * rank)
    kept = sorted(axes, key=lambda a: axes[a])
    # Along other axes it is one number, maybe spread out.
    c = c[tuple(slice(None) if a in axes else slice(1) for a in range(c.ndim))]
    sizes = {axes[a]: c.shape[a] for a in kept}
    c = c.transpose([*kept, *(a for a in range(c.ndim) if a not in axes)])
    return c.reshape([sizes.get(k, 1) for k in range(rank)])


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
