"""A model cut in two at a layer, and the values of its layers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.made import made
from jaxviz.calls.models import batch_or_shapes
from jaxviz.calls.public import public
from jaxviz.graph.axes import axes
from jaxviz.graph.facts import fact
from jaxviz.graph.held import hold
from jaxviz.graph.interpreter import Node, Program, Tagged, Value, opened, run_nodes
from jaxviz.graph.layers import find
from jaxviz.graph.rows import Row, rows
from jaxviz.graph.towers import turns_of, without_turns
from jaxviz.graph.trace import Traced, trace


@public(x=batch_or_shapes)
def split(apply_fn: Callable, params: Any, x: Any, layer: str) -> tuple[Callable, Callable]:
    """Cuts a model at a layer: `tail((params, carry), a)` of `head(params, x) -> (a, carry)`.

    Explaining a layer is explaining the tail, which keeps the contract of a model:
    `integrated_gradients(tail, (params, carry), a, target)`. The tail holds only the operations
    that the layer's value reaches, the head only those it is made of.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; arrays or shapes.
      x: `[N, ...]` or a pytree of such; arrays or shapes.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`. One in a scan over layers
        (`blocks[2]/mlp`) takes the scan apart: head and tail have its turns one after the other,
        and take as long to compile as if they had been written so.

    Returns:
      `(head, tail)`, plain functions to be jitted like the model itself, equal (`==`, `hash`) for
      equal arguments, so that what is compiled for one serves all. `a` is the layer's output.
      Its batch comes first, also where `jax.vmap` has it elsewhere in the program.
      `carry` is the tuple of what else the tail needs of the work before the layer; it is empty
      where every path goes through the layer.
      The tail also takes a multiple of N rows (many variants of each `a`), `carry` likewise.

    Raises:
      ValueError: No such layer (the nearest are named), one inside a loop or branch, or one that
        `x` does not reach.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w) + 1
      >>> head, tail = split(net, jnp.eye(2), jnp.ones((1, 2)), "relu_0")
      >>> a, carry = head(jnp.eye(2), jnp.array([[3.0, -4.0]]))
      >>> a.tolist(), carry, tail((jnp.eye(2), carry), a).tolist()
      ([[3.0, 0.0]], (), [[4.0, 1.0]])
    """
    held, arrays = hold("split", apply_fn, params)
    row = find_cut(trace(held, arrays, x), layer, "split").row
    leaves, structure = jax.tree.flatten(x)
    shapes = tuple((np.shape(a), jnp.result_type(a)) for a in leaves)
    # Where nothing says that they are elsewhere, the tail's own convolutions are asked.
    channels = None if row.layer.channel_axis == -1 else row.layer.channel_axis
    return Head(apply_fn, layer), Tail(apply_fn, layer, structure, shapes, channels)


def split_where_read(
    apply_fn: Callable, params: Any, x: Any, layer: str
) -> tuple[Callable, Callable]:
    """`split` for what is shared out to a layer: one that no output reads would get zeros.

    Raises:
      ValueError: As `split`; or no output is made of the layer.
    """
    parts = split(apply_fn, params, x, layer)
    traced = trace(*hold("split", apply_fn, params), x)
    if find(rows(traced), layer, "split").value not in used(traced):
        raise ValueError(
            f"split: layer must be one that the outputs are made of; got {layer!r}, which none of "
            "them reads, so all of it would be 0. Take another, from jaxviz.layers."
        )
    return parts


@public()
def activations(
    apply_fn: Callable,
    params: Any,
    x: Any,
    layers: Sequence[str],
    *,
    channels_last: bool = False,
) -> dict[str, Any]:
    """The outputs of some layers, in one run.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]` or a pytree of such.
      layers: Names of `jaxviz.layers(apply_fn, params, x)`. Without the numbers of its turns, the
        name of a layer in a scan over layers (`blocks/mlp` for `blocks[0]/mlp`, ...) is that of
        all of them, stacked `[N, turns, ...]` (of scans inside one another, the outer turns first).
      channels_last: Whether to move each layer's channels (`Layer.channel_axis`) to the last axis,
        where pictures and objectives have them; else they stay where the model has them.

    Returns:
      From name to value, batch first. Nothing is computed that no layer asked for needs.

    Raises:
      ValueError: No such layer, or one inside a loop or branch.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w) + 1
      >>> activations(net, jnp.eye(2), jnp.array([[3.0, -4.0]]), ["relu_0"])["relu_0"].tolist()
      [[3.0, 0.0]]
    """
    if isinstance(layers, str):
        raise TypeError(
            f"activations: layers must be a list of names; got {layers!r}. Pass a list."
        )
    apply_fn, params = hold("activations", apply_fn, params)
    return run_values(Values(apply_fn, tuple(layers), "activations", channels_last), params, x)


@functools.partial(jax.jit, static_argnums=0)
def run_values(values, params, x):
    """`values(params, x)`, compiled once for equal values."""
    return values(params, x)


OUTPUTS = "<outputs>"  # stands for the model's outputs among the names of layers


@dataclasses.dataclass(frozen=True)
class Values:
    """The part of a model that makes some layers: `(params, x) -> {name: value}`."""

    apply_fn: Callable
    layers: tuple[str, ...]
    who: str
    channels_last: bool = False

    def __call__(self, params: Any, x: Any) -> dict[str, Any]:
        apply_fn, params = hold(self.who, self.apply_fn, params)
        traced = trace(apply_fn, params, x)
        found = rows(traced)
        wanted = {
            name: [reachable(row, self.who) for row in rows_named(found, name, self.who)]
            for name in self.layers
            if name != OUTPUTS
        }
        values = [row.value for turns in wanted.values() for row in turns]
        if OUTPUTS in self.layers:
            values += jax.tree.leaves(traced.outputs)
        env = environment(traced.program, jax.tree.leaves((params, x)))
        run_nodes(needed(traced.program.nodes, values), env, {})

        def one(name):
            if name == OUTPUTS:
                return jax.tree.map(lambda value: env[value], traced.outputs)
            turns = [layer_of(row) for row in wanted[name]]
            if len(turns) == 1 and wanted[name][0].layer.name == name:
                return turns[0]
            sizes = turns_of(wanted[name][-1].layer.name)
            a = jnp.stack(turns, axis=1)
            return a.reshape(len(a), *(n + 1 for n in sizes), *a.shape[2:])

        def layer_of(row):
            a = batch_moved(env[row.value], row.batch, 0)
            return jnp.moveaxis(a, row.layer.channel_axis, -1) if self.channels_last else a

        return {name: one(name) for name in self.layers}


def rows_named(found: Sequence[Row], name: str, who: str) -> Sequence[Row]:
    """The row of a name, or those of all turns of a scan over layers, by number."""
    rows_of = [row for row in found if row.layer.name == name]
    if not rows_of and not turns_of(name):
        rows_of = [row for row in found if without_turns(row.layer.name) == name]
        rows_of.sort(key=lambda row: turns_of(row.layer.name))
    return rows_of or [find(found, name, who)]


def batch_moved(a: Any, source: int, place: int) -> jax.Array:
    """Moves the batch axis; a number of the net's own, as a solver's step, has none."""
    return jnp.moveaxis(a, source, place) if jnp.ndim(a) else jnp.asarray(a)


@dataclasses.dataclass(frozen=True)
class Head:
    """The part of a model that makes a layer: `(params, x) -> (a, carry)`."""

    apply_fn: Callable
    layer: str

    @made(lambda self: ("split", f"the head at {self.layer!r} takes (params, x) as apply_fn does"))
    def __call__(self, params: Any, x: Any) -> tuple[jax.Array, tuple]:
        apply_fn, params = hold("split", self.apply_fn, params)
        traced = trace(apply_fn, params, x)
        cut = find_cut(traced, self.layer, "split")
        env = environment(traced.program, jax.tree.leaves((params, x)))
        run_nodes(cut.head, env, {})
        passed = [batch_moved(env[v], batch, 0) for v, batch in cut.carried.items()]
        return batch_moved(env[cut.row.value], cut.row.batch, 0), tuple(passed)


@functools.partial(jax.jit, static_argnums=0)
def headed(head: Head, params: Any, x: Any) -> tuple[jax.Array, tuple]:
    """`head(params, x)`, compiled once for equal heads."""
    return head(params, x)


@dataclasses.dataclass(frozen=True)
class Tail:
    """The part of a model that reads a layer: `((params, carry), a) -> outputs`."""

    apply_fn: Callable
    layer: str
    structure: Any
    shapes: tuple
    channel_axis: int | None  # of a, as the model has it; None where that does not say
    is_tail = True  # rules for the first layer of a net have none to apply to in here

    @made(
        lambda self: (
            "split",
            f"the tail at {self.layer!r} takes ((params, carry), a), with a and carry as "
            "head(params, x) gives them, of the same dtypes",
        )
    )
    def __call__(self, params: tuple[Any, tuple], a: jax.Array) -> Any:
        params, carry = params
        apply_fn, params = hold("split", self.apply_fn, params)
        traced = _trace_for(self, apply_fn, params, a)
        row, _, nodes, carried = find_cut(traced, self.layer, "split")
        if len(carry) != len(carried):
            raise ValueError(
                f"split: the tail at {self.layer!r} takes ((params, carry), a) with a carry of "
                f"{len(carried)} arrays; got {len(carry)}. Pass the carry of head(params, x)."
            )
        env = environment(traced.program, jax.tree.leaves(params))
        env[row.value] = batch_moved(a, 0, row.batch)
        for (value, batch), array in zip(carried.items(), carry, strict=True):
            shape = traced.program.avals[value].shape
            shape = (*shape[batch : batch + 1], *shape[:batch], *shape[batch + 1 :])
            if jnp.shape(array) != shape:
                raise ValueError(
                    f"split: with a of shape {a.shape} the tail at {self.layer!r} takes a carry "
                    f"of shape {shape}; got {jnp.shape(array)}. Repeat its rows as those of a."
                )
            env[value] = batch_moved(array, 0, batch)
        run_nodes(nodes, env, {})
        return jax.tree.map(lambda value: env[value], traced.outputs)


def _trace_for(tail: Tail, apply_fn: Callable, params: Any, a: jax.Array) -> Traced:
    """The model traced for as many examples as make `a`."""

    def traced_for(factor: tuple[int, int]):
        times, over = factor
        shapes = [jax.ShapeDtypeStruct((s[0] * times // over, *s[1:]), d) for s, d in tail.shapes]
        traced = trace(apply_fn, params, jax.tree.unflatten(tail.structure, shapes))
        return traced, find(rows(traced), tail.layer, "split")

    traced, row = traced_for((1, 1))
    shape = row.layer.shape
    if a.shape == shape:
        return traced
    if a.shape[1:] == shape[1:] and shape:
        resized, row = traced_for((a.shape[0], shape[0]))
        if row.layer.shape == a.shape:
            return resized
    raise ValueError(
        f"split: the tail at {tail.layer!r} takes a of shape {shape}, or a multiple of its rows; "
        f"got {a.shape}. Call split again for an x of another shape."
    )


class Cut(NamedTuple):
    """Where a model is cut in two."""

    row: Row  # of the layer
    head: list[Node]  # in order, what makes the layer and what is carried
    tail: list[Node]  # in order, what makes the outputs of these
    carried: dict[Value, int]  # past the layer, with the axes of their batches


def find_cut(traced: Traced, layer: str, who: str) -> Cut:
    """The cut of a traced model at a layer."""
    row = reachable(find(rows(traced), layer, who), who)
    cut = _cut(traced, row.value)
    if cut is None:
        raise ValueError(
            f"{who}: layer {layer!r} does not depend on x, only on params. Take one that does."
        )
    head, tail, carried = cut
    return Cut(row, head, tail, carried)


def reaches(traced: Traced, layer: str) -> bool:
    """Whether the input has a part in a layer's value."""
    row = find(rows(traced), layer, "split")
    return row.value in reached(traced.program, jax.tree.leaves(traced.x))


@fact
def mean_over_places(traced: Traced, layer: str) -> str | None:
    """The layer that is the mean over all places of another, where nothing else reads that one."""
    row, _, tail, _ = find_cut(traced, layer, "split")
    shape, reads = row.layer.shape, [node for node in tail if row.value in node.inputs]
    if len(reads) != 1 or reads[0].kind != "mean" or row.value in traced.program.outputs:
        return None
    beside = {0, row.layer.channel_axis % len(shape)}
    places = [axis for axis in range(len(shape)) if axis not in beside]
    summed = sorted(reads[0].members[0].equation.params["axes"])
    if row.batch or not places or summed != places:
        return None
    means = (one for one in rows(traced) if one.value in reads[0].outputs and one.layer.can_cut)
    return next((one.layer.name for one in means), None)


@fact
def used(traced: Traced) -> frozenset[Value]:
    """The values that outputs are made of: what is made beside them, or instead, is not."""
    wanted = needed(traced.program.nodes, traced.program.outputs)
    return frozenset(traced.program.outputs).union(*(node.inputs for node in wanted))


@fact
def _cut(traced: Traced, value: Value) -> tuple[list[Node], list[Node], dict[Value, int]] | None:
    program, known = traced.program, axes(traced)
    from_x = reached(program, jax.tree.leaves(traced.x))
    if value not in from_x:
        return None
    after = reached(program, [value])
    wanted = needed(program.nodes, program.outputs, stop={value})
    tail = [n for n in wanted if any(v in after for v in n.outputs) and value not in n.outputs]
    read = {v for node in tail for v in node.inputs} | set(program.outputs)
    carried = sorted(v for v in read if v in from_x and v not in after)
    # What only params make is made again: it is no work of the head, and needs no carrying.
    fixed = needed(program.nodes, [v for v in read if v not in from_x])
    head = needed(program.nodes, [value, *carried])
    return head, [*fixed, *tail], {v: known.batch(v) or 0 for v in carried}


def reachable(row: Row, who: str) -> Row:
    if not row.layer.can_cut:
        raise ValueError(
            f"{who}: layer {row.layer.name!r} is inside a loop (over time, of as many turns as the "
            "numbers say, or of too many), a branch or a function with its own derivative, where "
            "it has no single value. Take a layer before or after that."
        )
    return row


def needed(nodes: Sequence[Node], values: Sequence[Value], stop: set[Value] = frozenset()):  # type: ignore[assignment]
    """The nodes without which the values cannot be made, in order; `stop` is given."""
    wanted, kept = set(values) - stop, []
    for node in reversed(list(opened(nodes))):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted |= set(node.inputs) - stop
    return kept[::-1]


def reached(program: Program, values: Sequence[Value]) -> set[Value]:
    """The values that some are made into, with them."""
    found = set(values)
    for node in opened(program.nodes):
        if found.intersection(node.inputs):
            found.update(node.outputs)
    return found


def environment(program: Program, arguments: Sequence[Any]) -> dict[Value, Any]:
    """What is known before any node has run: constants, and the first inputs."""
    env = Tagged(program)  # so that rules find the layers of a head or tail by name
    env.update({**program.constants, **dict(zip(program.inputs, arguments, strict=False))})
    return env
