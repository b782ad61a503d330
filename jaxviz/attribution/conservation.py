"""Where relevance is lost on its way down: LRP's sum at every layer."""

import dataclasses
import html
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.propagation import start
from jaxviz.calls.public import public
from jaxviz.calls.shown import else_by, shown
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import at_least_float32, rows_of
from jaxviz.engine.targets import check_function
from jaxviz.graph.facts import fact
from jaxviz.graph.fold import fold
from jaxviz.graph.held import hold
from jaxviz.graph.interpreter import Node, Program, evaluate
from jaxviz.graph.recompute import copied, recomputed
from jaxviz.graph.rewrite import Op, Rule, RuleSet, replacements
from jaxviz.graph.rows import operation_names, rows
from jaxviz.graph.split import used
from jaxviz.graph.trace import Traced, model, trace
from jaxviz.rules import lrp_composites
from jaxviz.rules.lrp_maps import moving

INPUT = "<input>"


class Conservation(NamedTuple):
    """The sum of LRP's relevance at the input and after each layer, from the input up.

    Attributes:
      layers: "<input>" and names of `jaxviz.layers`, L in all.
      sums: `[N, L]`, the sum of all relevance there is right after the layer has run, on paths
        around the layer as well.
      lost: `[N, L]`, what was lost between there and the next one of `layers` (the outputs, after
        the last): biases and constants, an epsilon, what a softmax's logits do not get. Negative
        where relevance was gained.
      score: `[N]`, the relevance that went in at the outputs; `sums + lost` summed from a layer on
        is this.
    """

    layers: tuple[str, ...]
    sums: jax.Array
    lost: jax.Array
    score: jax.Array

    @else_by(shown)
    def __repr__(self) -> str:
        sums, lost, score = (np.asarray(a, float) for a in self[1:])
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.mean(sums / score[:, None], axis=0)
            gap = np.abs(lost / score[:, None]).max(0)
        wide = max(map(len, ("layer", *self.layers)))
        lines = [f"{'layer':{wide}}  sum / score  most lost after it / score"]
        for name, a, b in zip(self.layers, share, gap, strict=True):
            lines.append(f"{name:{wide}}  {a:11.4f}  {b:10.2e}".rstrip())
        examples = f"{len(score)} example{'' if len(score) == 1 else 's'}"
        return "\n".join([f"LRP's relevance, mean of {examples}, the outputs last", *lines])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


@public()
def lrp_conservation(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    rules: str | Mapping[str, Rule] | RuleSet = "attn_lrp",
) -> Conservation:
    """How much of the explained number LRP still has at every layer, and where the rest went.

    One pass back does it: each operation says what it was given less what it handed on. A layer's
    sum is the score less what all operations after it lost, which is the sum over everything alive
    at that point of the program, a residual path included.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such; integer leaves may stand beside floating ones.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      rules: As in `lrp`.

    Returns:
      A `Conservation`, which shows itself as a table. A dense layer or convolution is listed with
      its bias; one before its batch norm, which a rule takes as one with it, and layers inside
      loops over time are not in it. Costs about as much as `lrp`, and longer to compile.

    Raises:
      NotImplementedError: An operation without a rule.
      ValueError: The model makes something else of one example than of that one in a batch, as
        with params that have an entry for each example; or as in `lrp`.
      TypeError: As in `lrp`.

    Example:
      >>> w = {"a": jnp.array([[1.0, 1.0], [2.0, -1.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"] + 1
      >>> lrp_conservation(net, w, jnp.array([[1.0, 3.0]]), 0)  # 7 + 1, of which the bias takes 1
      LRP's relevance, mean of 1 example, the outputs last
      layer    sum / score  most lost after it / score
      <input>       0.8750    0.00e+00
      dense_0       0.8750    0.00e+00
      relu_0        0.8750    1.25e-01
      dense_1       1.0000    0.00e+00

    Reference:
      Bach et al. 2015, doi:10.1371/journal.pone.0130140, eq. 2; for transformers Ali et al. 2022,
      arXiv:2202.07304, section 4.
    """
    found = lrp_composites.resolve("lrp_conservation", rules)
    held, arrays = hold("lrp_conservation", apply_fn, params)
    names = tuple(_cuts(_alone(held, arrays, x, target)))
    sums, lost, score = _conservation(apply_fn, params, x, target, layers=names, rules=found)
    return Conservation((INPUT, *names), sums, lost, score)


def _sums(apply_fn, params, x, target=None, *, layers, rules):
    outputs = model(apply_fn, params, x)(params, x)
    target = jnp.argmax(outputs, axis=1) if target is None else target
    begun = jax.grad(lambda o: start(o, target).sum(), allow_int=True)(outputs)
    ends = jax.tree.leaves(model(apply_fn, params, _one_of(x)).shape)
    # What the target does not read is not of one example, or of whole numbers, hands nothing down.
    handed = {
        i: _by_example(a, end.shape, rows_of(x))
        for i, (a, end) in enumerate(zip(jax.tree.leaves(begun), ends, strict=True))
        if a.dtype != jax.dtypes.float0 and _by_rows(a.shape, end.shape, rows_of(x))
    }

    def one(x, handed):
        x = jax.tree.map(lambda a: a[None], x)
        traced = model(apply_fn, params, x).flat
        cuts = _cuts(traced)
        program, names = _folded(traced)
        where = {id(n): i for i, node in enumerate(program.nodes) for n in _inside(node)}
        after = frozenset(program.inputs if getattr(apply_fn, "is_tail", False) else ())

        def made(probes):
            plan = replacements(program, _counted(rules, probes, where), names, after)
            outputs = evaluate(program, jax.tree.leaves((params, x)), plan)
            return {i: outputs[i] for i in handed}

        total = _sum(handed.values())
        probes = jnp.zeros(len(program.nodes), total.dtype)
        _, pull = jax.vjp(recomputed(made, probes), probes)
        (lost,) = pull(handed)
        ends = [-1, *(cuts[name] for name in layers), len(program.nodes) - 1]
        later = jnp.cumsum(lost[::-1])[::-1]  # what the nodes from one on lose
        later = jnp.append(later, jnp.zeros((), total.dtype))
        kept = total - later[np.array(ends) + 1]
        return kept[:-1], jnp.diff(kept), total

    with copied(rows_of(x)):
        return jax.vmap(one)(x, handed)


_sums.__name__ = "lrp_conservation"  # the name that its errors begin with
_conservation = explanation("layers", "rules")(_sums)


def _one_of(x: Any) -> Any:
    """The shapes of one example."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)[1:]), a.dtype), x)


def _by_example(a: jax.Array, alone: tuple[int, ...], count: int) -> jax.Array:
    """`[N, *alone]`, from what is N times as long along one axis."""
    if count == 1:
        return a[None]
    (axis,) = (i for i, (n, m) in enumerate(zip(a.shape, alone, strict=True)) if n != m)
    return jnp.expand_dims(jnp.moveaxis(a, axis, 0), axis + 1)


def _by_rows(many: tuple[int, ...], alone: tuple[int, ...], count: int) -> bool:
    """Whether one axis is of the examples, and all others are as of one alone."""
    if len(many) != len(alone):
        return False
    apart = [pair for pair in zip(many, alone, strict=True) if pair[0] != pair[1]]
    return apart == ([] if count == 1 else [(count, 1)])


def _alone(apply_fn: Any, params: Any, x: Any, target: Target) -> Traced:
    """The model of one example; refused if it is not what it is in a batch."""
    whole = model(apply_fn, params, x).shape  # the model's own errors are about this one
    told = "lrp_conservation: params and the model must be the same for each example; "
    advice = "Take one example at a time, with its own params."
    try:
        traced = model(apply_fn, params, _one_of(x)).flat
    except (TypeError, ValueError) as error:
        raise ValueError(f"{told}got a model that fails on one alone. {advice}") from error
    alone = model(apply_fn, params, _one_of(x)).shape
    pairs = list(zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True))
    read = [i for i, (a, _) in enumerate(pairs) if a.shape[:1] == (rows_of(x),)]  # others later
    if callable(target):
        check_function("lrp_conservation", x, whole, target)
        scored = trace(lambda _, outputs: target(outputs), None, whole)
        read = [i for i, v in enumerate(jax.tree.leaves(scored.x)) if v in used(scored)]
    for a, b in (pairs[i] for i in read):
        if not _by_rows(a.shape, b.shape, rows_of(x)):
            raise ValueError(
                f"{told}got outputs {b.shape} of one alone, {a.shape} of {rows_of(x)}. {advice}"
            )
    return traced


@fact
def _folded(traced: Traced) -> tuple[Program, Mapping[int, str]]:
    names = operation_names(traced)
    return fold(traced.program, names)


def _cuts(traced: Traced) -> dict[str, int]:
    """The layers by name, with the node of the program that ends each, in the order they end."""
    program, _ = _folded(traced)
    made = {v: i for i, node in enumerate(program.nodes) for v in node.outputs}
    # What ids alone make stands beside what is explained: no relevance goes through it.
    listed = [(r.layer.name, r.value) for r in rows(traced) if r.value in traced.program.depends]
    found = {name: made[value] for name, value in listed if value in made}
    # A layer that vanished into a group, with its bias say, ends where that does; unless another
    # one, such as its batch norm, is listed there.
    parts = {v: i for i, n in enumerate(program.nodes) for m in n.members for v in m.outputs}
    ends = set(found.values())
    found |= {name: parts[v] for name, v in listed if v in parts and parts[v] not in ends}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _inside(node: Node):
    """A node and all that it is made of."""
    yield node
    for part in (*node.members, *(n for body in node.bodies for n in body.nodes)):
        yield from _inside(part)


def _counted(rules: RuleSet, probes: jax.Array, where: Mapping[int, int]) -> RuleSet:
    """The rules, with each operation's loss as the cotangent of its probe."""

    def over(rule: Rule) -> Rule:
        def counting(op: Op) -> Callable | None:
            replacement = rule(op)
            if replacement is None and (op.members or op.node.bodies or not moving(op)):
                return None
            probe = probes[where[id(op.node)]]
            return _counting(replacement or op.evaluate, probe, moving(op))

        return counting

    table = {key: over(rule) for key, rule in dict(rules.table).items()}
    default = None if rules.default is None else over(rules.default)
    return dataclasses.replace(rules, table=table, default=default)


def _counting(function: Callable, probe: jax.Array, at: list[int]) -> Callable:
    dtype = probe.dtype  # JAX keeps `backward`, which is to hold no traced value

    @jax.custom_vjp
    def counted(probe, *inputs):
        return function(*inputs)

    def forward(probe, *inputs):
        return jax.vjp(function, *inputs)

    def backward(pull, given):
        handed = pull(given)
        lost = _sum(jax.tree.leaves(given)) - _sum([handed[i] for i in at])
        return (lost.astype(dtype), *handed)

    counted.defvjp(forward, backward)
    return lambda *inputs: counted(probe, *inputs)


def _sum(relevances) -> jax.Array:
    """Of all floating numbers, in float32 at the least."""
    total = jnp.zeros((), jnp.float32)
    for a in relevances:
        if jnp.iscomplexobj(a):  # JAX has the imaginary part's with the other sign
            a = a.real - a.imag
        if a.dtype != jax.dtypes.float0 and jnp.issubdtype(a.dtype, jnp.floating):
            wide = np.promote_types(total.dtype, at_least_float32(a))
            total = total.astype(wide) + a.astype(wide).sum()
    return total
