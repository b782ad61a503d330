"""A function whose backward pass makes large values again instead of keeping them.

A gradient keeps what each operation made until the way back has come to it. Of a long sequence that
is many matrices of attention for each block, far more than any one block needs. Here a function is
cut where least is alive between its operations (a transformer's residual stream, say), and each
part is a `jax.checkpoint`: only what goes from part to part is kept, and one part's own values at a
time. It costs one more pass forward, and numbers differ by rounding alone.

XLA has to keep apart what is made twice. It does from JAX 0.12 on; on a CPU before (0.10.2) it
takes the second for the first, but for what stands in a loop or, as parts do there, in a
conditional.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.graph.affine import affine_outputs
from jaxviz.graph.equations import bytes_of
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import (
    REMAT,
    Node,
    Program,
    Value,
    build,
    run_node,
    with_bodies,
)
from jaxviz.graph.materialised import materialised

# Bytes of values that a way back may keep where the device does not say what it has: half of 8 GB.
# XLA keeps 0.8 to 1.3 times what is counted (a gradient, LRP and DeepLIFT of 12 blocks), and the
# way back needs more besides.
BUDGET = 2**32
# What a method keeps for each number of the model at most: a bundle of DeepLIFT, the terms of LRP.
_MOST_KEPT = 8

_values = contextvars.ContextVar("jaxviz_values", default=0)
_copies = contextvars.ContextVar("jaxviz_copies", default=1)


@contextlib.contextmanager
def explaining(size: int) -> Iterator[None]:
    """Says of how many bytes of values the model is whose gradients are traced meanwhile."""
    token = _values.set(size)
    try:
        yield
    finally:
        _values.reset(token)


@contextlib.contextmanager
def copied(count: int) -> Iterator[None]:
    """Says that what is traced meanwhile is batched: so many at once."""
    token = _copies.set(_copies.get() * count)
    try:
        yield
    finally:
        _copies.reset(token)


def recomputed(function: Callable, *arguments: Any) -> Callable:
    """The function, cut into parts that are made again on the way back where it keeps too much.

    Args:
      function: Of pytrees of floating arrays by which it is differentiated.
      arguments: Its arguments.

    Returns:
      A function of arguments of these shapes; `function` itself, untraced, if the model that is
      explained (`explaining`) is too small for it to matter.
    """
    copies = _copies.get()
    most = _budget()
    if _values.get() * copies * _MOST_KEPT <= most:
        return function
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    moves = [True] * len(closed.jaxpr.invars)
    program = build(closed.jaxpr, closed.consts, moves, flat=False)
    budget = most // copies
    if kept(program) <= budget:
        return function

    def run(*arguments):
        outputs = _evaluate(program, jax.tree.leaves(arguments), budget)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def _budget() -> int:
    """Bytes that a way back may keep: half of the memory of a device that tells it, if more."""
    told = jax.local_devices()[0].memory_stats() or {}
    return max(BUDGET, told.get("bytes_limit", 0) // 2)


def _evaluate(program: Program, arguments: Sequence[Any], budget: int) -> list[Any]:
    env: dict[Value, Any] = dict(program.constants)
    env.update(zip(program.inputs, arguments, strict=True))
    known = set(program.constants)  # weights and the like stay where they are
    parts = _parts(program, budget)
    for node in program.nodes if _in_conditionals() and len(parts) > 1 else ():
        # A conditional hands on all that it reads, copied: of one block's weights, not of all.
        if known.issuperset(node.inputs) and _is_part(program, node):
            run_node(node, env)
            known.update(node.outputs)
    for nodes, reads, wanted in parts:
        reads, wanted = (tuple(v for v in values if v not in known) for values in (reads, wanted))

        def part(given, nodes=nodes, wanted=wanted):
            here = {v: env[v] for node in nodes for v in node.inputs if v in known} | given
            for node in nodes:
                if not known.issuperset(node.outputs):
                    run_node(node, here, _again(node, program, budget))
            return {v: here[v] for v in wanted}

        keys = any(
            jnp.issubdtype(program.avals[v].dtype, jax.dtypes.extended) for v in (*reads, *wanted)
        )
        run = part if len(parts) == 1 else _again_later(part, keys)
        env.update(run({v: env[v] for v in reads}))
    return [env[v] for v in program.outputs]


def _again_later(part: Callable, keys: bool) -> Callable:
    """A part of which nothing is kept: it is made again on the way back. Of random keys a
    conditional could not make the like."""
    if _in_conditionals() and not keys:
        return functools.partial(materialised, jax.checkpoint(part, prevent_cse=False))
    return jax.checkpoint(part)


def _in_conditionals() -> bool:
    return jax.__version_info__ < (0, 12) and jax.default_backend() == "cpu"


def _is_part(program: Program, node: Node) -> bool:
    """Whether a node makes less than it reads."""
    return sum(_bytes(program, v) for v in node.outputs) < sum(
        _bytes(program, v) for v in node.inputs
    )


def _again(node: Node, program: Program, budget: int) -> Callable | None:
    """A loop whose turns are made again on the way back, where they keep too much together."""
    if not _is_loop(node) or node_kept(program, node) <= budget // 2:
        return None
    (body,) = node.bodies
    turn = lambda *values: _evaluate(body, values, budget // 2)
    return lambda *values: with_bodies(node, values, [turn], again=True)


@fact
def kept(program: Program) -> int:
    """Bytes of what a program's operations make that its way back reads, as far as shapes tell."""
    return sum(node_kept(program, node) for node in program.nodes)


def node_kept(program: Program, node: Node) -> int:
    """Bytes of what one node makes that the way back reads; a loop's are those of all turns."""
    own = sum(_bytes(program, v) for v in node.outputs if v in _read_back(program))
    if node.members:
        return sum(node_kept(program, member) for member in node.members)
    name = node.equation.primitive.name
    if not node.bodies or name in REMAT:
        return own
    inside = [kept(body) for body in node.bodies]
    if name != "scan":
        return own + max(inside)
    (body,) = node.bodies
    turn = inside[0] + sum(_bytes(body, v) for v in body.outputs if v in body.depends)
    return own + turn * node.equation.params["length"]


@fact
def _read_back(program: Program) -> frozenset[Value]:
    """The values that the derivatives of the operations read."""
    found: set[Value] = set()

    def see(node: Node) -> None:
        moving = {v for v in node.inputs if v in program.depends}
        if node.members:
            for member in node.members:
                see(member)
        elif moving and affine_outputs(program, node, moving):
            found.update(v for v in node.inputs if v not in moving)
        elif moving:
            found.update(node.inputs)

    for node in program.nodes:
        see(node)
    return frozenset(found)


def _bytes(program: Program, value: Value) -> int:
    return bytes_of(program.avals[value])


class _Part(NamedTuple):
    nodes: tuple[Node, ...]
    reads: tuple[Value, ...]
    wanted: tuple[Value, ...]


@fact
def _parts(program: Program, budget: int) -> tuple[_Part, ...]:
    """The program's nodes, cut into as few parts as keep within the budget, or else least."""
    nodes, found, later = program.nodes, [], set(program.outputs)
    for start, end in reversed(_cuts(program, budget)):
        made = {v for node in nodes[start:end] for v in node.outputs}
        read = {v for node in nodes[start:end] for v in node.inputs} - program.constants.keys()
        found.append(
            _Part(nodes[start:end], tuple(sorted(read - made)), tuple(sorted(made & later)))
        )
        later |= read
    return tuple(reversed(found))


def _cuts(program: Program, budget: int) -> tuple[tuple[int, int], ...]:
    sizes = [
        0 if _is_loop(node) and size > budget // 2 else size  # made again turn by turn
        for node in program.nodes
        for size in [node_kept(program, node)]
    ]
    best, least = ((0, len(sizes)),), sum(sizes)
    made, last = _lives(program)
    change = [0] * (len(sizes) + 2)
    for v, first in made.items():
        change[first + 1] += _bytes(program, v)
        change[last[v] + 1] -= _bytes(program, v)
    alive = list(itertools.accumulate(change))  # ahead of each node
    size = least
    while least > budget // 2 and size > sum(sizes) // 256:
        size //= 2
        found = _cut(sizes, alive, size)
        part = [i for i, (start, end) in enumerate(found) for _ in range(start, end)] + [len(found)]
        # A value that crosses several cuts is kept once.
        cost = sum(_bytes(program, v) for v in made if part[last[v]] > part[made[v]])
        cost += max(sum(sizes[a:b]) for a, b in found)
        if cost < least:
            best, least = found, cost
    return best


def _lives(program: Program) -> tuple[dict[Value, int], dict[Value, int]]:
    """Where each value is made and where it is read for the last time."""
    made = {v: i for i, node in enumerate(program.nodes) for v in node.outputs}
    last = {v: i for i, node in enumerate(program.nodes) for v in node.inputs}
    last.update(dict.fromkeys(program.outputs, len(program.nodes)))
    return {v: i for v, i in made.items() if v in last}, last


def _cut(sizes: Sequence[int], alive: Sequence[int], size: int) -> tuple[tuple[int, int], ...]:
    """Parts of between half of `size` and all of it, each ending where least is alive."""
    found, start = [], 0
    while start < len(sizes):
        within, end, ends = 0, start, []
        while end < len(sizes) and (not ends or within + sizes[end] <= size):
            within += sizes[end]
            end += 1
            if 2 * within >= size:
                ends.append(end)
        if end == len(sizes):
            ends = [end]
        stop = min(ends, key=lambda e: (alive[e], -e))
        found.append((start, stop))
        start = stop
    return tuple(found)


def _is_loop(node: Node) -> bool:
    return node.kind == "scan" and node.equation is not None
