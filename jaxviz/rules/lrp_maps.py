"""How a rule of LRP becomes a replacement: linear maps of tangents, and how they are divided."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxviz.calls.options import real
from jaxviz.graph.rewrite import Op, Rule, RuleSet
from jaxviz.rules.fast import weighed

number = real(0, traced=True)
"""The check of a rule's number. Of a traced one only its numbers tell, so `share` gives NaN."""


def made_once(make: Callable) -> Callable:
    """The same rule for equal arguments; nothing is kept of what holds a number under trace."""
    kept = functools.cache(make)

    @functools.wraps(make)
    def found(*args):
        if not any(map(holds_traced, args)):
            return kept(*args)
        made = make(*args)
        for rule in made if isinstance(made, tuple) else (made,):
            if not isinstance(rule, RuleSet):
                rule.traced = True  # as `RuleSet.traced` reads it
        return made

    return found


def holds_traced(value: Any) -> bool:
    """Whether a rule's argument is a number under trace, or holds one."""
    return isinstance(value, Tracer) or getattr(value, "traced", False)


def replaced(op: Op, tangent: Callable, **numbers: Any) -> Callable:
    """The operation as it stands, `(inputs, tangents) -> (outputs, tangent)` its derivative.

    The outputs in `tangent` come from the operation itself, so a derivative of the explanation
    differentiates the net's true values. It gets the rule's `numbers` by name: those under trace
    are inputs too, for a derivative is taken when what it closed over may be gone (in a loop).
    """
    reached = moving(op)
    traced = {k: v for k, v in numbers.items() if isinstance(v, Tracer)}

    @jax.custom_jvp
    def replaced(traced, *inputs):
        return op.evaluate(*inputs)

    @replaced.defjvp
    def jvp(inputs, tangents):
        (traced, *inputs), (_, *tangents) = inputs, tangents
        along = [t if i in reached else None for i, t in enumerate(tangents)]
        return tangent(inputs, along, **(numbers | traced))

    return functools.partial(replaced, traced)


def derivative(
    op: Op, inputs: Sequence[jax.Array], tangents: Sequence[jax.Array | None]
) -> tuple[Any, Any]:
    """The operation and its own derivative along the tangents that are not None."""
    along = [i for i, t in enumerate(tangents) if t is not None]
    evaluate = quick(op)

    def moved(*values):
        given = dict(zip(along, values, strict=True))
        return evaluate(*(given.get(i, a) for i, a in enumerate(inputs)))

    return jax.jvp(moved, [inputs[i] for i in along], [tangents[i] for i in along])


def quick(op: Op) -> Callable:
    """The operation by faster kernels of the same numbers, where there are some."""

    def evaluate(*inputs):
        values = list(inputs)
        for member, reads in op.members:
            values.append(quick(member)(*(values[i] for i in reads)))
        return values[-1]

    linear = op.members and op.kind in ("conv", "dense")
    return weighed().find(op)[1] or (evaluate if linear else op.evaluate)


def over_fast(rules: RuleSet) -> RuleSet:
    """The rules, and the fast operations wherever they leave one as it stands.

    So one rewriting does what another one of the rewritten function would be needed for. Of rules
    that are `functional` alone: others leave functions with a derivative of their own untouched
    inside.
    """
    return _over(rules, weighed())


@made_once
def _over(rules: RuleSet, under: RuleSet) -> RuleSet:
    rows: dict[str, Rule] = {key: _Or(rule, under) for key, rule in dict(rules.table).items()}
    if rules.default is None:
        return dataclasses.replace(rules, table={**dict(under.table), **rows})
    return dataclasses.replace(rules, table=rows, default=_Or(rules.default, under))


@dataclasses.dataclass(frozen=True)
class _Or:
    """A rule, and under it a set of others for what it leaves."""

    rule: Rule
    under: RuleSet

    @property
    def traced(self) -> bool:
        return holds_traced(self.rule)

    def __call__(self, op: Op) -> Callable | None:
        return self.rule(op) or self.under.find(op)[1]


def moving(op: Op) -> list[int]:
    """Which inputs relevance can go to."""
    reached = op.roles or ["signal" if d else "" for d in op.depends]
    pairs = enumerate(zip(reached, op.inputs, strict=True))
    return [i for i, (r, a) in pairs if r and jnp.issubdtype(a.dtype, jnp.inexact)]


def is_complex(op: Op) -> bool:
    """Whether an operation reads or makes complex numbers."""
    return any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in (*op.inputs, *op.outputs))


def contribution(x: jax.Array, t: jax.Array | None) -> jax.Array | None:
    """x t, and nothing of what is infinite (a masked logit): all that it makes has no relevance.

    A complex number is two real ones: each of its parts has its own t, and `share` its own z.
    """
    if t is None:
        return None
    if jnp.iscomplexobj(x):
        return jax.lax.complex(*(contribution(f(x), f(t)) for f in (jnp.real, jnp.imag)))  # type: ignore[arg-type]
    return jnp.where(jnp.isinf(x), jnp.zeros_like(x), x) * t


def contributions(inputs: Sequence[jax.Array], tangents: Sequence) -> list[jax.Array | None]:
    return [contribution(x, t) for x, t in zip(inputs, tangents, strict=True)]


def at_least_zero(value: Any, dtype: Any) -> jax.Array:
    """A rule's number as an array; NaN for one under trace that the rule would refuse."""
    a = jnp.asarray(value, dtype)
    if not isinstance(value, Tracer):
        return a
    return jnp.where((a >= 0) & jnp.isfinite(a), a, jnp.full_like(a, jnp.nan))


def share(d: jax.Array, z: jax.Array, epsilon: Any = 0.0) -> jax.Array:
    """d / (z + epsilon sign z); nothing where that is infinite, or 0 (less than a normal number).

    Without an epsilon there is no scale in it: what is c times as large is shared alike.
    """
    if jnp.iscomplexobj(z):
        return jax.lax.complex(*(share(f(d), f(z), epsilon) for f in (jnp.real, jnp.imag)))
    traced = isinstance(epsilon, Tracer)
    if traced or epsilon:
        e = at_least_zero(epsilon, z.dtype)
        z = z + jnp.where(z < 0, -e, e)
    least = jnp.finfo(z.dtype).tiny
    if traced or epsilon < least:
        z = jnp.where(jnp.abs(z) < least, jnp.full_like(z, jnp.inf), z)
    return d / z
