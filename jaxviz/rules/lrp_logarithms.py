"""LRP through the logarithm of a quotient of exponentials: one log-sum-exp less another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxviz.graph.logarithms import QUOTIENT
from jaxviz.graph.rewrite import Op, Rule
from jaxviz.rules.deeplift_exponentials import Sums
from jaxviz.rules.differences import divided, wide
from jaxviz.rules.lrp_maps import made_once, replaced, share

_CLIPS = ("max", "min", "clamp")


@made_once
def log_of_quotient(stabilizer: float = 0.0) -> Rule:
    """log (sum a exp x / sum b exp x): each exponent has its part of either sum's logarithm.

    So log softmax is x_i less the log-sum-exp of all x. Where probabilities were added up before
    the logarithm each has its part of that; what keeps them above zero passes on.
    """

    def rule(op: Op) -> Callable:
        at = [i for i, (m, _) in enumerate(op.members) if m.kind == QUOTIENT]
        inner = op._replace(members=op.members[: at[0] + 1]) if at else op
        sums = Sums(inner)

        def tangent(inputs, tangents, stabilizer):
            exponents, moved = sums.relative(inputs, tangents)
            e = {i: jnp.exp(here) for i, (here, _) in exponents.items()}
            totals = lambda e: sums.ends(inputs, e)
            whole = totals(e)
            part = lambda a: jax.jvp(totals, (e,), ({i: e[i] * a[i] for i in e},))[1]
            shifts = part({i: jnp.where(jnp.isinf(x), 0, x - h) for i, (h, x) in exponents.items()})
            linear = part({i: jnp.ones_like(a) for i, a in e.items()})
            parts = part(moved)
            logs = [
                jnp.log(a) + divided(s, b) for a, s, b in zip(whole, shifts, linear, strict=True)
            ]
            shares = [a * divided(p, b) for a, p, b in zip(logs, parts, whole, strict=True)]
            z = op.evaluate(*inputs)
            if sums.how == "sub":
                (own,) = (i for i in sums.places if sums.exponent(i) == sums.top)
                x, t = exponents[own][1], moved[own]
                top = jnp.where(jnp.isinf(x), 0, x) * t
                return z, share(top - shares[1], wide(z), stabilizer).astype(z.dtype)
            ratio = share(shares[0] - shares[1], jnp.log(whole[0]) - jnp.log(whole[1]), stabilizer)
            values = sums.values(inputs, {})
            p = values[-1]
            ts = {len(values) - 1: (wide(p) * jnp.where(p == 0, 0, ratio)).astype(p.dtype)}
            for member, reads in op.members[at[0] + 1 :]:
                (moving,) = (r for r in reads if r in ts)
                given, t = [values[r] for r in reads], ts[moving]
                if member.primitive in ("log", "log2", "log1p"):
                    one = 1 if member.primitive == "log1p" else 0
                    return z, share(t, values[moving] + one)
                if member.primitive not in _CLIPS:
                    t = jax.jvp(
                        _of_one(member, given, reads.index(moving)), (values[moving],), (t,)
                    )[1]
                ts[len(values)] = t
                values.append(member.evaluate(*given))
            raise AssertionError("no logarithm at the end")

        return replaced(op, tangent, stabilizer=stabilizer)

    return rule


def _of_one(op: Op, inputs: list[jax.Array], at: int) -> Callable:
    return lambda value: op.evaluate(*inputs[:at], value, *inputs[at + 1 :])
