"""Rules of LRP for what stands between the layers: activations, products, quotients, maxima."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxviz.calls.public import public
from jaxviz.graph.exponentials import NUMERATOR
from jaxviz.graph.interpreter import Scalar
from jaxviz.graph.rewrite import Op, Rule
from jaxviz.graph.roles import rank
from jaxviz.rules.deeplift_softmax import TURNS, layout
from jaxviz.rules.lrp_maps import (
    contribution,
    contributions,
    derivative,
    is_complex,
    made_once,
    moving,
    number,
    replaced,
    share,
)


def pass_through(op: Op) -> Callable:
    """For activations and scalings: the input gets what the output has.

    An input that is broadcast (`x[:, :, None] * w`) gets the sum over its copies.
    """
    at = moving(op)
    if is_complex(op) and op.primitive not in ("conj", "neg", "stop_gradient"):
        raise NotImplementedError(
            f"lrp: no rule shares between the real and imaginary parts in {op.primitive!r} at "
            f"{op.source}; what is linear in them, products and magnitudes have one. Take the "
            "magnitude before it, or give it `epsilon()`."
        )
    if len(at) != 1 or not _spreads(op.inputs[at[0]].shape, op.outputs[0].shape):
        raise NotImplementedError(
            f"pass_through: needs one input of the output's shape; the operation {op.kind!r} at "
            f"{op.source} has {[op.inputs[i].shape for i in at]} -> {op.outputs[0].shape}. "
            "Give it `epsilon()`, say."
        )
    return _all_to(op, at[0])


def keep(op: Op) -> None:
    """For operations that move numbers or pick one: the own derivative moves relevance alike."""


@made_once
def _product(epsilon: float, least: int) -> Rule:
    """Shares among the factors that are most of a signal; roles from `least` on are told apart."""

    def rule(op: Op) -> Callable:
        at = moving(op)
        ranks = {i: _rank(op, i, least) for i in at}
        taking = [i for i in at if ranks[i] == min(ranks.values())]
        factors = [o for o in op.operands if o in taking and isinstance(o, int)]
        if op.primitive == "mul" and not is_complex(op):

            def halves(inputs, tangents):
                z = op.evaluate(*inputs)
                spread = [jnp.broadcast_to(tangents[i].astype(z.dtype), z.shape) for i in factors]
                return z, sum(spread[1:], spread[0]) / len(factors)

            return replaced(op, halves)

        def tangent(inputs, tangents, epsilon):
            given = [t if i in taking else None for i, t in enumerate(tangents)]
            z, d = derivative(op, inputs, contributions(inputs, given))
            return z, share(d / len(factors), z, epsilon)

        return replaced(op, tangent, epsilon=epsilon)

    rule.least, rule.epsilon = least, epsilon  # type: ignore[attr-defined]
    return rule


@made_once
def weighed(rule: Rule) -> tuple[Rule, Rule]:
    """How weights share with what they weigh before they are divided by their sum.

    As `rule` would if they had been divided first. From the logits on all is gradient times input;
    so the product carries what its values change by, each factor's part of that, and the quotient
    takes off the weights' part of what their sum changes by.

    Returns:
      A rule for the product and one for the quotient.
    """
    least: int | None = getattr(rule, "least", None)
    epsilon: float = getattr(rule, "epsilon", 0.0)

    def part(role: str) -> float:
        """The weights' part beside a factor of that role."""
        ranks = map(rank, ("gate", role))
        weights, other = (r if r >= (least or 0) else 0 for r in ranks)
        return 0.5 if weights == other else float(weights < other)

    def weighs(op: Op) -> Callable:
        if least is None:
            unnormalised(op)
        at = moving(op)
        (weights,) = (i for i in at if op.roles[i] == "weights")
        (other,) = (i for i in at if i != weights)
        mine = part(op.roles[other])

        def tangent(inputs, tangents):
            # Both move, so neither tangent is None.
            given = list(tangents)
            theirs = contribution(inputs[other], tangents[other])
            given[weights] = tangents[weights] * mine  # type: ignore[operator]
            given[other] = theirs * (1 - mine)  # type: ignore[operator]
            return derivative(op, inputs, given)

        return replaced(op, tangent)

    def after(op: Op) -> Callable:
        if least is None:
            unnormalised(op)
        at = moving(op)
        (top,) = (i for i in at if op.roles[i].startswith(NUMERATOR))
        (total,) = (i for i in at if i != top)
        mine = part(op.roles[top].removeprefix(NUMERATOR))

        def tangent(inputs, tangents, epsilon):
            given = [t * mine if i == total else t for i, t in enumerate(tangents)]
            z, d = derivative(op, inputs, given)
            return z, share(d, z, epsilon)

        return replaced(op, tangent, epsilon=epsilon)

    return weighs, after


@public(epsilon=number)
def product(epsilon: float = 0.0) -> Rule:
    """For a product of two activations (gates, attention): half of the relevance to each factor.

    A factor that is one over something (`rsqrt`, a negative power, a reciprocal) makes a quotient
    of the product and takes nothing, as in `quotient`: so a layer norm is what Achtibat et al. ask
    for, centred, its deviation held, scaled and shifted, in whatever spelling.

    Args:
      epsilon: Added to the magnitude of a matrix product, in its units.

    Raises:
      ValueError: `epsilon` is negative or not finite.

    Reference:
      Achtibat et al. 2024, arXiv:2402.05602, proposition 3.3 (the uniform rule), 3.4 (norms).
    """
    return _product(epsilon, rank("divisor"))


@public(epsilon=number)
def signal_takes_all(epsilon: float = 0.0) -> Rule:
    """For a product of a signal and a gate (LSTM, GRU, GLU, SwiGLU): all of it to the signal.

    Beside `product`, which halves. A sigmoid, one minus it, and a softmax are gates; of two factors
    of which one alone was made by an activation function (silu in SwiGLU, gelu in GEGLU), that one
    is the gate. Where neither or both are, each takes half. Either way a product's relevance is
    what its factors get together; a gate's own part of the net gets none.

    Lay it over a composite: `lrp(..., rules={"mul": rules.lrp.signal_takes_all()})`; on "matmul"
    too, attention's weights are gates of its values (as in Ali et al. 2022).

    Args:
      epsilon: As in `product`.

    Raises:
      ValueError: `epsilon` is negative or not finite.

    Reference:
      Arras et al. 2019, doi:10.1007/978-3-030-28954-6_11, section 11.3 ("LRP-all"), for the
      sigmoids of an LSTM; Ali et al. 2022, arXiv:2202.07304, for attention. The order of
      activations for GLU variants is ours.
    """
    return _product(epsilon, rank("activation"))


def quotient(op: Op) -> Callable:
    """For a quotient of two activations (a normalisation): all relevance to the numerator."""
    at = moving(op)
    if is_complex(op) and op.operands[0] in at:
        return _in_one(op, op.operands[0], 0.0)  # type: ignore[arg-type]
    return pass_through(op) if len(at) == 1 else _all_to(op, op.operands[0])


@made_once
def modulus(epsilon: float = 0.0) -> Rule:
    """For |z|: of a complex number each part gets its square's part of |z|^2; else passed on."""
    return lambda op: _in_one(op, 0, epsilon) if is_complex(op) else pass_through(op)


def _in_one(op: Op, at: int, epsilon: float) -> Callable:
    """By contribution to what is linear, or of first degree, in one operand's parts."""

    def tangent(inputs, tangents, epsilon):
        given = [t if i == at else None for i, t in enumerate(tangents)]
        z, d = derivative(op, inputs, contributions(inputs, given))
        return z, share(d, z, epsilon)

    return replaced(op, tangent, epsilon=epsilon)


@made_once
def complement(rule: Rule) -> Rule:
    """The rule, but one minus a sigmoid is the sigmoid of the other sign, and is passed on.

    So a highway's and a GRU's `1 - sigmoid(x)` have what `sigmoid(-x)` has. Shared by contribution,
    the one would take the more the further the gate is open, without a bound. Not so one minus a
    softmax: its logits get gradient times input, whose sign is the other one here.
    """

    def found(op: Op) -> Callable | None:
        one = op.operands[0]
        from_one = isinstance(one, Scalar) and one.value == 1 and op.roles == ("sigmoid",)
        return pass_through(op) if from_one else rule(op)

    return found


def extremum(op: Op) -> Callable | None:
    """For max and min: between activations the winner takes all; against a constant, passed on."""
    return pass_through(op) if len(moving(op)) == 1 else None


def shifted(op: Op) -> Callable:
    """For a maximum taken off before exponentials, or added back to their logarithm: it takes none.

    So of a log-sum-exp each term gets its exponential's part of the sum.

    Reference:
      Kauffmann et al. 2019, arXiv:1906.07633 (soft minima and maxima as pooling).
    """
    return _all_to(op, next(i for i in moving(op) if op.roles[i] != "divisor"))


def logits(op: Op) -> Callable:
    """Where logits enter a softmax: from there to `normalised` all is gradient times input."""
    return replaced(op, lambda inputs, ts: derivative(op, inputs, contributions(inputs, ts)))


def normalised(op: Op) -> Callable:
    """Where a softmax divides by its sum: the derivative over the output."""

    def tangent(inputs, tangents):
        z, d = derivative(op, inputs, tangents)
        return z, share(d, z)

    return replaced(op, tangent)


@made_once
def log_softmax(stabilizer: float = 0.0) -> Rule:
    """For the logarithm of a softmax, in any spelling: x_i less the log-sum-exp of all x.

    x_i has its own part of the difference, and of the log-sum-exp each x_j its part s_j of the sum.
    What keeps a softmax above zero before its logarithm is taken passes on or, where a number is
    added, gets its part.
    """

    def rule(op: Op) -> Callable | None:
        first = op.members[0][0]
        apart = first.kind == "softmax"
        found = layout(first if apart else op, op.depends.index(True))
        if found is None:
            return None
        before, axes, after = found
        after = (*after, *(m for m, _ in op.members[1:] if apart and m.primitive in TURNS))
        at = moving(op)[0]
        turn = lambda steps, a: functools.reduce(lambda a, step: step.evaluate(a), steps, a)

        def kept(inputs):
            """What is left for the softmax where a number was added to it."""
            values, left = list(inputs), 1.0
            for member, reads in op.members:
                values.append(member.evaluate(*(values[i] for i in reads)))
                if member.primitive in TURNS and not isinstance(left, float):
                    left = member.evaluate(left)
                log1p = op.members[-1][0].primitive == "log1p" and member is op.members[-2][0]
                if member.primitive in ("add", "sub") and not log1p:
                    (moved,) = (values[i] for i, d in zip(reads, member.depends, strict=True) if d)
                    left = left * share(moved, values[-1])
            return left

        def tangent(inputs, tangents, stabilizer):
            x, t = (turn(before, a) for a in (inputs[at], tangents[at]))
            total = jax.nn.logsumexp(x, axes, keepdims=True)
            mean = (jnp.exp(x - total) * t).sum(axes, keepdims=True)
            d = turn(after, share(contribution(x, t) - total * mean, x - total, stabilizer))
            return op.evaluate(*inputs), d * kept(inputs) if apart else d

        return replaced(op, tangent, stabilizer=stabilizer)

    return rule


def unnormalised(op: Op) -> None:
    raise NotImplementedError(
        f"the exponential at {op.source} is of a distance from a maximum, but is not divided by "
        "the sum of all of them, nor is the maximum added back to its logarithm, so nobody knows "
        "what the maximum's share is. Write the softmax out before its weights are used."
    )


def factors(op: Op) -> Callable:
    """For products along an axis: each of n factors gets 1/n (the uniform rule)."""

    if is_complex(op):
        return pass_through(op)  # which refuses it

    def tangent(inputs, tangents):
        (t,) = tangents
        z = op.evaluate(*inputs)
        axes = op.options.get("axes")
        if axes is not None:
            count = 1
            for axis in axes:
                count *= t.shape[axis]
            return z, t.sum(tuple(axes)) / max(count, 1)
        axis, reverse = op.options["axis"], op.options["reverse"]
        size = t.shape[axis]
        count = jnp.arange(1, size + 1, dtype=t.dtype)
        count = count[::-1] if reverse else count
        count = count.reshape([size if a == axis else 1 for a in range(t.ndim)])
        return z, jax.lax.cumsum(t, axis, reverse) / count

    return replaced(op, tangent)


def scattered_extremum(op: Op) -> Callable:
    """For maxima (minima) over segments: the winner takes all, winners alike share evenly.

    Where updates are constants the operand gets what the result has, as with a plain maximum.
    """
    operand, _, update = op.operands
    at = moving(op)
    if update not in at:
        return _all_to(op, operand)
    names = "dimension_numbers indices_are_sorted unique_indices mode".split()
    options = {name: op.options[name] for name in names}

    def tangent(inputs, tangents):
        z = op.evaluate(*inputs)
        base, indices, updates = (
            inputs[o] if isinstance(o, int) else jnp.asarray(o.value) for o in op.operands
        )

        def sums(u):
            return jax.lax.scatter_add(jnp.zeros_like(z), indices, u, **options)

        spread = lambda a: jax.vjp(sums, updates)[1](a)[0]  # what each update's place has
        won = (updates == spread(z)).astype(z.dtype)
        held = (base == z).astype(z.dtype) if operand in at else jnp.zeros_like(z)
        count = jnp.maximum(sums(won) + held, 1)
        d = sums(won * tangents[update])
        return z, (d + held * tangents[operand] if operand in at else d) / count

    return replaced(op, tangent)


def scattered_product(op: Op) -> Callable:
    """For an operand scaled at some places; products of several activations are refused."""
    operand = op.operands[0]
    if moving(op) != [operand]:
        raise NotImplementedError(
            f"the product over segments {op.primitive!r} at {op.source} has activations among its "
            "factors, and how many meet in a place is not known while tracing. Sum logarithms, or "
            "give it a rule of yours."
        )
    return _all_to(op, operand)


def solved(op: Op) -> Callable:
    """For a linear system with constant coefficients: linear in its right-hand side."""
    if moving(op) != [op.operands[1]] or op.operands[0] == op.operands[1]:
        raise NotImplementedError(
            f"the linear system {op.primitive!r} at {op.source} has coefficients that depend on "
            "the input, and no rule shares between those and the right-hand side."
        )

    def tangent(inputs, tangents):
        z, d = derivative(op, inputs, contributions(inputs, tangents))
        return z, share(d, z)

    return replaced(op, tangent)


def _all_to(op: Op, at: int | Scalar) -> Callable:
    assert isinstance(at, int)  # a literal has no relevance, so it is never asked for

    def tangent(inputs, tangents):
        z = op.evaluate(*inputs)
        return z, jnp.broadcast_to(tangents[at].astype(z.dtype), z.shape)

    return replaced(op, tangent)


def _rank(op: Op, i: int, least: int) -> int:
    found = rank(op.roles[i]) if op.roles else 0
    return found if found >= least else 0


def _spreads(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    pairs = zip(shape[::-1], to[::-1], strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in pairs)
