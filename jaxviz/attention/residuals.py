"""Where a transformer's block adds to its tokens: what attention made, what dense layers made.

A sum of values of x that all ways from attention's weights lead through is a residual one where all
that it adds up is made of one of its terms: that one is the stream. So it is found however the
block is written, and a norm's own sums are told apart.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.attention.blocks import Stream, Ways, blocks, ways
from jaxviz.attention.found import Attention, found
from jaxviz.attention.softmaxes import COPIES, SHAPING, name_of
from jaxviz.attention.zeroing import handed_on
from jaxviz.engine.copies import wide
from jaxviz.graph.axis_labels import Tokens
from jaxviz.graph.changed import after
from jaxviz.graph.equations import scan_arity
from jaxviz.graph.interpreter import CUSTOM, Node, Scalar, Value, equation_of
from jaxviz.graph.lines import source
from jaxviz.graph.norms import PRIMITIVES
from jaxviz.graph.roles import leaves
from jaxviz.graph.split import needed
from jaxviz.graph.trace import Traced

# What norms and functions of one number are made of.
_NO_LAYER = PRIMITIVES | COPIES | CUSTOM.keys() | {"clamp", "erf", "erfc", "logistic", "tanh"}


class Residual(NamedTuple):
    """A sum in which a block adds to its tokens.

    Attributes:
      skip: The tokens that something is added to.
      total: The sum.
      carries: Whether attention is in what is added.
      others: What else is, params and numbers too: what the block's dense layers made.
    """

    skip: Value
    total: Stream
    carries: bool
    others: tuple[Any, ...]

    def read(self, a: jax.Array) -> jax.Array:
        """What is as the sum is, as `[N, tokens, width]` in float32 at least."""
        return wide(self.total.read(a))

    def added(self, read: Callable[[Value], jax.Array]) -> jax.Array:
        """`[N, tokens, width]`: what is added besides attention, of the values of a run."""
        like = read(self.total.value)
        made = [o.value if isinstance(o, Scalar) else read(o) for o in self.others]
        terms = (jnp.broadcast_to(jnp.asarray(a, like.dtype), like.shape) for a in made)
        return sum(map(self.read, terms), start=jnp.zeros((), self.read(like).dtype))


def residuals(name: str, traced: Traced, one: Attention) -> list[Residual]:
    """The sums of an attention's block in order, attention's first; refused if not plain."""
    known = ways(traced)
    start = known.made[one.value]
    end = known.made[handed_on(name, one, blocks(traced)[one.name]).value]
    carried = known.made_of((one.value,)) | {one.value}
    sums: list[Residual] = []
    for i in known.through(start):
        node, terms = known.nodes[i], _terms(known, i, end)
        if i > end:
            break
        moving = [t for t in terms or node.inputs if _moves(known, t)]
        if not sums and (not terms or carried.issuperset(moving)):
            continue  # attention's own output
        skip = _stream(known, moving) if terms else None
        of = sums[-1].total.value if sums else one.value
        made = _between(known, of if skip is None else _bare(known, skip), node.outputs[0])
        if sums and made <= _NO_LAYER and (skip is None or "reduce_sum" in made):
            continue  # a norm, or something else that is no layer: a mask, a condition's shift
        total = known.stream(i, one)
        ours = [t for t in moving if t in carried] if not sums else []
        others = tuple(t for t in terms if not _moves(known, t) or t not in (skip, *ours))
        if not terms:
            raise _unclear(name, one, node, "this is no sum, and the tokens go through it")
        if skip is None or total is None or (not sums and skip in carried):
            raise _unclear(name, one, node, "which of the terms are the tokens is not plain")
        _check(name, known, one, node, skip, others)
        _check_carrying(name, known, one, node, ours, carried)
        for start, t in [
            *((one.value, t) for t in ours),
            *((_bare(known, skip), t) for t in others),
        ]:
            if _moves(known, t):
                _check_mixing(name, known, one, node, after(traced, start, (t,)))
        layers = any(_moves(known, t) for t in others)
        sums.append(Residual(skip, total, bool(ours), others if layers else ()))
    if not sums:
        raise ValueError(
            f"{name}: what attention makes must be added to the tokens, as in a residual block; "
            f"no such sum follows {one.name!r}. Pass `layers`, names of attentions that have one, "
            "or take jaxviz.attention_relevance."
        )
    return sums


def _unclear(name: str, one: Attention, node: Node, why: str) -> ValueError:
    return ValueError(
        f"{name}: what attention and dense layers make of a block's tokens must be added to them; "
        f"of {name_of(node) or node.kind} at {source(node)}, in the block of {one.name!r}, {why}. "
        "Pass `layers`, names of attentions in other blocks, or take jaxviz.attention_relevance."
    )


def _check(name, known: Ways, one: Attention, node: Node, skip: Value, others: Sequence) -> None:
    """Refuses a sum with an attention in what dense layers are to have made."""
    for other in found(known.traced):
        if other.value != one.value:
            reached = known.made_of((other.value,))
            if skip not in reached and any(_moves(known, t) and t in reached for t in others):
                why = f"one term is made by {other.name!r}, which mixes tokens"
                raise _unclear(name, one, node, why)


def _check_carrying(name, known: Ways, one: Attention, node: Node, ours, carried) -> None:
    """Refuses an attention whose output has more in it than what its weights carry."""
    for way in needed(known.nodes, ours, stop={one.value}):
        if carried.isdisjoint(way.outputs):
            continue
        kind, given = name_of(way), way.operands
        given = given[1:] if kind == "select_n" else given
        beside = [o for o in given if _moves(known, o) and o not in carried]
        if beside and kind not in ("dot_general", "conv_general_dilated", "mul", "div"):
            raise _unclear(name, one, node, f"{kind} at {source(way)} joins attention's to others")


def _check_mixing(name, known: Ways, one: Attention, node: Node, made: Iterable[Node]) -> None:
    """Refuses layers that make what is added to a token of other ones."""
    tokens = {one.keys_of, *(one.tokens.axes if one.tokens else ())} - {None}
    for way in made:
        mixed = _mixed(known, way)
        along = {a for e in mixed for a in (e.axes if isinstance(e, Tokens) else (e,))}
        if not tokens.isdisjoint(along):
            kind = equation_of(way).primitive.name
            why = f"one term is made by {kind} at {source(way)}, which mixes tokens"
            raise _unclear(name, one, node, why)


def _mixed(known: Ways, node: Node) -> list[Any]:
    """The labels of axes along which params, a window or a loop's carry mix what x is made into.

    Products of two values of x are not among them: they take experts their tokens, and back.
    """
    kind, params = equation_of(node).primitive.name, equation_of(node).params
    moving = [_moves(known, o) for o in node.operands]
    labels = [None if isinstance(o, Scalar) else known.known.labels.get(o) for o in node.operands]
    axes: list[Any] = [()] * len(moving)
    if kind == "dot_general" and not all(moving):
        axes = list(params["dimension_numbers"][0])
    elif kind == "conv_general_dilated":
        numbers, window = params["dimension_numbers"], equation_of(node).invars[1].aval.shape
        pairs = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], strict=True)
        axes[0] = [a for a, b in pairs if window[b] > 1]
    elif "window_dimensions" in params:
        axes[0] = [a for a, n in enumerate(params["window_dimensions"]) if n > 1]
    elif kind == "fft":
        rank = len(known.program.avals[node.outputs[0]].shape)
        axes[0] = range(rank - len(params["fft_lengths"]), rank)
    elif kind == "scan":
        fixed, carried, scanned = scan_arity(equation_of(node))
        axes = [()] * (fixed + carried) + [(0,)] * (scanned if carried else 0)
    return [of[a] for of, gone in zip(labels, axes, strict=False) if of for a in gone]


def _is_sum(node: Node) -> bool:
    return name_of(node) == "add"


def _is_copy(node: Node) -> bool:
    return name_of(node) in COPIES and len(node.outputs) == 1


def _moves(known: Ways, operand: Any) -> bool:
    """Whether it is a value of x, not one of params or a number."""
    return not isinstance(operand, Scalar) and operand in known.program.depends


def _terms(known: Ways, i: int, end: int) -> list[Any]:
    """All that a sum of two values of x adds up; none if it is itself a term of a later one."""
    root = known.nodes[i]
    if not _is_sum(root) or len(known.moving(root)) < 2:
        return []
    j = known.only_reader(root.outputs[0])
    while j is not None and j <= end:
        node = known.nodes[j]
        if not (_is_sum(node) or _is_copy(node)):
            break
        if len(known.moving(node)) > 1:
            return []
        j = known.only_reader(node.outputs[0])

    def within(operand: Any) -> list[Any]:
        node = _maker(known, operand)
        while node is not None and known.only_reader(node.outputs[0]) is not None:
            if _is_sum(node):  # one of params is its other term's bias
                terms = [t for o in node.operands for t in within(o)]
                several = sum(_moves(known, t) for t in terms) > 1
                return terms if several else [operand]
            node = _maker(known, node.operands[0]) if name_of(node) in COPIES else None
        return [operand]

    return [t for operand in root.operands for t in within(operand)]


def _maker(known: Ways, operand: Any) -> Node | None:
    """The operation that makes a value of x, and nothing else."""
    if not _moves(known, operand) or operand not in known.made:
        return None
    node = known.nodes[known.made[operand]]
    return node if len(node.outputs) == 1 else None


def _stream(known: Ways, terms: Sequence[Value]) -> Value | None:
    """The term that all others are made of."""
    of = {t: known.made_of((_bare(known, t),)) for t in terms}
    fit = [t for t in terms if of[t].issuperset(u for u in terms if u != t)]
    return fit[0] if len(fit) == 1 else None


def _bare(known: Ways, value: Value) -> Value:
    """What a value is a copy of, or times numbers that x has no part in."""
    while (node := _maker(known, value)) is not None:
        moving = known.moving(node)
        plain = name_of(node) in COPIES | SHAPING | {"mul", "div", "neg"}
        if not plain or len(moving) != 1 or (name_of(node) == "div" and node.operands[1] in moving):
            return value
        (value,) = moving
    return value


def _between(known: Ways, start: Value, value: Value) -> set[str]:
    """The primitives that make a value of one."""
    return _primitives(after(known.traced, start, (value,)))


def _primitives(nodes: Iterable[Node]) -> set[str]:
    found: set[str] = set()
    for node in leaves(nodes):
        found.add(equation_of(node).primitive.name)
        found.update(*(_primitives(body.nodes) for body in node.bodies))
    return found
