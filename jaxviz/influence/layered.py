"""Layers that multiply by a weight, as matrices: their inputs, and the gradients at their outputs.

Whatever framework wrote a dense layer or a convolution, in the jaxpr it is a `dot_general` or a
`conv_general_dilated` with one operand that is made of a parameter by moving its numbers about. For
one example, with the layer's inputs A `[B, places, in]` and the gradients G `[B, places, out]` at
its outputs, the gradient by its weight is A^T G: from these alone come the gradients of single
examples without a pass back to the weights, Kronecker factors, and cheap projections. B counts the
groups of a convolution, or the heads that have a weight each.

What is recognised is proved: where each number of a parameter stands in an operand is followed
through the operations that move it (`moved`). A parameter that is read in any other way too, in a
loop over time or as an embedding beside a weight, belongs to no layer here.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.engine.copies import wide
from jaxviz.graph.interpreter import Node, Program, Scalar, run_node
from jaxviz.graph.rewrite import replacements
from jaxviz.graph.split import environment
from jaxviz.graph.trace import Traced, trace
from jaxviz.influence.moved import moved
from jaxviz.influence.parameters import leaf_names
from jaxviz.rules.fast import fast


class Use(NamedTuple):
    """One equation that reads a weight.

    Attributes:
      node: The equation.
      value: What is multiplied with the weight.
      weight: Which operand the weight is.
    """

    node: Node
    value: int
    weight: int


class Layer(NamedTuple):
    """A weight, and a bias that is added to what it gives.

    Attributes:
      name: The path of the weight in params, with a number where one leaf holds several.
      weight: `[B, in, out]`, the place of each of its numbers among all parameters that count.
      bias: `[B, out]`, or None.
      uses: Of an example, one for each time that the layer runs.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray | None
    uses: tuple[Use, ...]

    @property
    def index(self) -> np.ndarray:
        """`[B, in, out]`, or `[B, in + 1, out]` with the bias last."""
        if self.bias is None:
            return self.weight
        return np.concatenate([self.weight, self.bias[:, None]], 1)


class Plan(NamedTuple):
    """A model's layers.

    Attributes:
      traced: The model, for one example.
      nodes: Its operations, those of groups one by one.
      layers: What was recognised.
      rest: The places of the leaves of which not every number belongs to a layer.
      sizes: The numbers of parameters in the leaves that count, in order.
    """

    traced: Traced
    nodes: list[Node]
    layers: tuple[Layer, ...]
    rest: tuple[int, ...]
    sizes: tuple[int, ...]


def plan_of(apply_fn: Callable, params: Any, x: Any, places: Sequence[int]) -> Plan:
    """The layers of a model, for one example `x` (without an axis of the batch)."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *jnp.shape(a)), jnp.result_type(a)), x)
    traced = trace(apply_fn, params, one)
    key = ("layered", tuple(places))
    if key not in traced.facts:
        traced.facts[key] = _plan(traced, params, tuple(places))
    return traced.facts[key]


def _plan(traced: Traced, params: Any, places: tuple[int, ...]) -> Plan:
    program, nodes = traced.program, list(_single(traced.program.nodes))
    values = jax.tree.leaves(traced.params)
    where, offset, sizes = {}, 0, []
    for place in places:
        shape = program.avals[values[place]].shape
        size = math.prod(shape)
        where[values[place]] = np.arange(offset, offset + size).reshape(shape)
        offset += size
        sizes.append(size)
    uses, biases, other = _reads(program, nodes, where, offset)
    other[[i for v in program.outputs if v in where for i in where[v].ravel()]] = True

    found: dict[bytes, list] = {}
    for use, weight in uses:
        found.setdefault(weight.tobytes() + str(weight.shape).encode(), []).append((use, weight))
    alone = np.zeros(offset, int)
    for group in found.values():
        np.add.at(alone, group[0][1].ravel(), 1)
    names = leaf_names(params)
    ends, layers = np.cumsum(sizes), []
    for group in found.values():
        weight = group[0][1]
        if other[weight].any() or (alone[weight] != 1).any():
            continue
        said = [biases.get(id(use.node)) for use, _ in group]
        first = said[0]
        same = first is not None and all(b is not None and np.array_equal(b, first) for b in said)
        bias = first if same else None
        layers.append(Layer("", weight, bias, tuple(use for use, _ in group)))
    # A bias that anything else reads, another layer's add too, is no layer's own.
    reads = other.astype(int)
    for use, _ in uses:
        if (bias := biases.get(id(use.node))) is not None:
            reads[bias] += 1
    own = lambda one: one.bias is not None and (reads[one.bias] == len(one.uses)).all()
    layers = [one if own(one) else one._replace(bias=None) for one in layers]
    covered = np.zeros(offset, bool)
    named, counted = [], {}
    for one in layers:
        covered[one.index] = True
        leaf = names[places[int(np.searchsorted(ends, one.weight.flat[0], "right"))]]
        counted.setdefault(leaf, []).append(one)
    for leaf, group in counted.items():
        for number, one in enumerate(group):
            named.append(one._replace(name=leaf if len(group) == 1 else f"{leaf}[{number}]"))
    starts = ends - sizes
    rest = [p for p, a, b in zip(places, starts, ends, strict=True) if not covered[a:b].all()]
    return Plan(traced, nodes, tuple(named), tuple(rest), tuple(sizes))


def _single(nodes: Sequence[Node]):
    for node in nodes:
        if node.members:
            yield from _single(node.members)
        else:
            yield node


def _reads(program: Program, nodes: list[Node], where: dict, count: int):
    """The equations that multiply by weights, the biases added to them, and what else is read."""
    uses, biases, other = [], {}, np.zeros(count, bool)
    made: dict[int, tuple[Use, np.ndarray]] = {}  # outputs of uses, moved about
    where = where.copy()
    for node in nodes:
        read = [v for v in node.inputs if v in where]
        if read and (a := moved(program, node, where)) is not None:
            where[node.outputs[0]] = a
            continue
        for value in node.inputs:
            if value in made:
                use, order = made[value]
                if (a := moved(program, node, {value: order})) is not None:
                    made[node.outputs[0]] = use, a
        if not read:
            continue
        use = _use(program, node, where)
        if use is not None:
            uses.append((use, _weight(use, where[node.operands[use.weight]])))
            shape = program.avals[node.outputs[0]].shape
            made[node.outputs[0]] = use, np.arange(math.prod(shape)).reshape(shape)
            continue
        bias = _bias(node, where, made)
        if bias is not None:
            use, index = bias
            biases[id(use.node)] = index
            made = {v: one for v, one in made.items() if one[0] is not use}  # one bias each
            continue
        for value in read:
            other[where[value]] = True
    return uses, biases, other


def _use(program: Program, node: Node, where: dict) -> Use | None:
    name, p = node.equation.primitive.name, node.equation.params
    if name not in ("dot_general", "conv_general_dilated"):
        return None
    if name == "conv_general_dilated" and p["batch_group_count"] != 1:
        return None
    for weight in (1, 0) if name == "dot_general" else (1,):
        a, w = node.operands[1 - weight], node.operands[weight]
        if isinstance(a, Scalar) or isinstance(w, Scalar) or w not in where:
            continue
        if a in program.depends and len(np.unique(where[w])) == where[w].size:
            return Use(node, a, weight)
    return None


def _bias(node: Node, where: dict, made: dict):
    """The layer to whose output this node adds parameters, and which, `[B, out]`."""
    if node.equation.primitive.name not in ("add", "add_any") or len(node.inputs) != 2:
        return None
    for y, b in (node.inputs, node.inputs[::-1]):
        if y in made and b in where and b not in made:
            use, order = made[y]
            shape = use.node.equation.outvars[0].aval.shape
            added = np.broadcast_shapes(order.shape, where[b].shape)
            if added != order.shape or len(np.unique(order)) != math.prod(shape):
                return None
            placed = np.empty(order.size, int)
            placed[order.ravel()] = np.broadcast_to(where[b], order.shape).ravel()
            index = _matrix_of_outputs(use, placed.reshape(shape), np)
            if (index == index[:, :1]).all() and len(np.unique(index[:, 0])) == index[:, 0].size:
                return use, index[:, 0]
    return None


def _dims(use: Use):
    """Axes of a `dot_general`: contracted, batched, free; of the values and of the weight."""
    contracted, batched = use.node.equation.params["dimension_numbers"]
    sides = []
    for side in (1 - use.weight, use.weight):
        taken = (*contracted[side], *batched[side])
        ndim = use.node.equation.invars[side].aval.ndim
        free = tuple(i for i in range(ndim) if i not in taken)
        sides.append((tuple(contracted[side]), tuple(batched[side]), free))
    return sides


def _weight(use: Use, index: np.ndarray) -> np.ndarray:
    """The weight as `[B, in, out]`."""
    p = use.node.equation.params
    if use.node.equation.primitive.name == "dot_general":
        _, (contracted, batched, free) = _dims(use)
        size = lambda axes: math.prod(index.shape[i] for i in axes)
        turned = index.transpose(*batched, *contracted, *free)
        return turned.reshape(size(batched), size(contracted), size(free))
    groups = p["feature_group_count"]
    a = index.transpose(p["dimension_numbers"].rhs_spec)  # out, in, *window
    a = a.reshape(groups, a.shape[0] // groups, a.shape[1], -1)
    return a.transpose(0, 3, 2, 1).reshape(groups, -1, a.shape[1])


def _matrix_of_outputs(use: Use, a: Any, of: Any = jnp) -> Any:
    """A layer's outputs, or gradients there, as `[B, places, out]`."""
    p = use.node.equation.params
    if use.node.equation.primitive.name == "dot_general":
        _, (_, batched, free) = _dims(use)
        weight = use.node.equation.invars[use.weight].aval.shape
        blocks = math.prod(weight[i] for i in batched)
        out = math.prod(weight[i] for i in free)
        if use.weight == 1:
            return a.reshape(blocks, -1, out)
        return of.swapaxes(a.reshape(blocks, out, -1), 1, 2)
    batch, feature, *space = p["dimension_numbers"].out_spec
    groups = p["feature_group_count"]
    a = of.transpose(a, (batch, *space, feature))
    return of.swapaxes(a.reshape(-1, groups, a.shape[-1] // groups), 0, 1)


def _matrix_of_inputs(use: Use, a: jax.Array) -> jax.Array:
    """What a layer multiplies with its weight, as `[B, places, in]`."""
    p = use.node.equation.params
    if use.node.equation.primitive.name == "dot_general":
        (contracted, batched, free), _ = _dims(use)
        size = lambda axes: math.prod(a.shape[i] for i in axes)
        turned = a.transpose(*batched, *free, *contracted)
        return turned.reshape(size(batched), size(free), size(contracted))
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    batch, feature, *space = numbers.lhs_spec
    weight = use.node.equation.invars[1].aval.shape
    window = [weight[i] for i in numbers.rhs_spec[2:]]
    out_shape = use.node.equation.outvars[0].aval.shape
    sizes = [out_shape[i] for i in numbers.out_spec[2:]]
    a = a.transpose(batch, *space, feature)
    spread = [
        (low, high, d - 1) for (low, high), d in zip(p["padding"], p["lhs_dilation"], strict=True)
    ]
    a = jax.lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), *spread, (0, 0, 0)])

    def at(place):
        first = [i * d for i, d in zip(place, p["rhs_dilation"], strict=True)]
        steps = list(zip(first, sizes, p["window_strides"], strict=True))
        return jax.lax.slice(
            a,
            (0, *first, 0),
            (a.shape[0], *(f + (n - 1) * s + 1 for f, n, s in steps), a.shape[-1]),
            (1, *p["window_strides"], 1),
        )

    patches = jnp.stack([at(place) for place in itertools.product(*map(range, window))], -2)
    per_group = patches.shape[-1] // groups
    patches = patches.reshape(-1, patches.shape[-2], groups, per_group)
    return patches.transpose(2, 0, 1, 3).reshape(groups, patches.shape[0], -1)


class Read(NamedTuple):
    """What one example shows of a model's layers.

    Attributes:
      outputs: Of the model, for a batch of one.
      inputs: For each layer `[B, places, in]`, of all its uses; a column of ones last, if it has a
        bias.
      pull: From a cotangent of the outputs to gradients at the layers' outputs, `[B, places, out]`
        each, and the gradients by the leaves in `rest`.
    """

    outputs: Any
    inputs: list[jax.Array]
    pull: Callable


def read(plan: Plan, params: Any, x: Any) -> Read:
    """Runs one example, and tells what goes into each layer and what comes back to it."""
    leaves = jax.tree.leaves(params)
    inputs = [jnp.asarray(a)[None] for a in jax.tree.leaves(x)]
    program = plan.traced.program
    uses = {id(use.node): use for layer in plan.layers for use in layer.uses}
    shapes = {key: program.avals[use.node.outputs[0]] for key, use in uses.items()}
    probes = {key: jnp.zeros(aval.shape, aval.dtype) for key, aval in shapes.items()}
    rest = {place: leaves[place] for place in plan.rest}
    # What XLA pulls back badly, in loops over examples above all.
    quick = replacements(dataclasses.replace(program, nodes=tuple(plan.nodes)), fast, {})

    def run(probes, rest):
        given = [rest.get(i, leaf) for i, leaf in enumerate(leaves)]
        env, seen = environment(program, [*given, *inputs]), {}
        for position, node in enumerate(plan.nodes):
            run_node(node, env, quick.get(position))
            if id(node) in probes:
                seen[id(node)] = env[uses[id(node)].value]
                env[node.outputs[0]] = env[node.outputs[0]] + probes[id(node)]
        return jax.tree.map(lambda v: env[v], plan.traced.outputs), seen

    outputs, back, seen = jax.vjp(run, probes, rest, has_aux=True)

    def pull(cotangent):
        found, others = back(cotangent)
        each = [
            [_matrix_of_outputs(use, found[id(use.node)]) for use in layer.uses]
            for layer in plan.layers
        ]
        return [jnp.concatenate(one, 1) for one in each], [others[p] for p in plan.rest]

    return Read(outputs, [_inputs_of(layer, seen) for layer in plan.layers], pull)


def weight_gradients(inputs: Sequence[jax.Array], back: Sequence[jax.Array]) -> list[jax.Array]:
    """The gradient of each layer's weight, `[B, in, out]`, bias last, from what was read."""
    pairs = zip(wide(inputs), wide(back), strict=True)
    return [jnp.einsum("bpi,bpo->bio", a, g) for a, g in pairs]


def leaf_gradients(
    plan: Plan, places: Sequence[int], weights: Sequence[jax.Array], rest: Sequence[jax.Array]
) -> list[jax.Array]:
    """The gradient of each leaf, from those of the layers and of the leaves that are in none."""
    order = np.concatenate([layer.index.ravel() for layer in plan.layers])
    stands = np.full(sum(plan.sizes), -1)
    stands[order] = np.arange(order.size)
    flat = jnp.concatenate([a.reshape(-1) for a in weights])
    others, found, start = dict(zip(plan.rest, rest, strict=True)), [], 0
    shapes = [plan.traced.program.avals[v].shape for v in jax.tree.leaves(plan.traced.params)]
    for place, size in zip(places, plan.sizes, strict=True):
        if place in others:
            found.append(others[place])
        else:
            index = stands[start : start + size]
            first = int(index[0])
            in_order = (index == np.arange(first, first + size)).all()
            leaf = flat[first : first + size] if in_order else flat[index]
            found.append(leaf.reshape(shapes[place]))
        start += size
    return found


def _inputs_of(layer: Layer, seen: dict) -> jax.Array:
    each = [_matrix_of_inputs(use, seen[id(use.node)]) for use in layer.uses]
    a = jnp.concatenate(each, 1)
    if layer.bias is None:
        return a
    return jnp.concatenate([a, jnp.ones((*a.shape[:2], 1), a.dtype)], 2)
