"""Affine chains (batch norm in inference, scale and shift) and averages, as groups."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxviz.graph.regions import Graph, number_of, primitive_of


def affine(graph: Graph, position: int) -> None:
    """A chain of sums and products with params: batch norm in inference, or scale and shift."""
    depends = graph.program.depends

    def step(node):
        if node.kind not in ("add", "bias", "sub", "mul", "div") or node.equation is None:
            return False
        moving = graph.moving(node)
        held = [o for o in node.operands if type(o) is int and o not in depends]
        if node.kind == "div" and node.operands[0] not in moving:
            return False
        if len({graph.program.avals[v].shape for v in (*moving, *node.outputs)}) > 1:
            return False
        return len(moving) == 1 and len(held) == 1 and held[0] not in graph.uniform

    node = graph.nodes[position]
    if not step(node):
        return
    before = graph.made_by(graph.moving(node)[0])
    if node.kind == "bias" and before is not None and graph.nodes[before].kind in ("conv", "dense"):
        return
    chain = [position]
    while (following := graph.only_reader(graph.nodes[chain[-1]])) is not None:
        if not step(graph.nodes[following]):
            break
        chain.append(following)
    if len(chain) < 2 or not any(graph.nodes[p].kind in ("mul", "div") for p in chain):
        return
    held = {o for p in chain for o in graph.nodes[p].inputs if o not in depends}
    graph.group("batch_norm" if _takes_root(graph, held) else "affine", set(chain))


def _takes_root(graph: Graph, values: Iterable[int]) -> bool:
    """Whether a square root was taken to make one of these params-only values."""
    todo, seen = list(values), set()
    while todo:
        made = graph.made_by(todo.pop())
        if made is None or made in seen:
            continue
        seen.add(made)
        if primitive_of(graph.nodes[made]) in ("rsqrt", "sqrt"):
            return True
        todo.extend(graph.nodes[made].inputs)
    return False


def averaging(graph: Graph, position: int) -> None:
    """A sum over windows or axes, then divided by how many there are."""
    node = graph.nodes[position]
    kind = {"sum_pool": "avg_pool", "sum": "mean"}.get(node.kind)
    following = graph.only_reader(node) if kind else None
    if following is None:
        return
    divided = graph.nodes[following]
    if divided.kind not in ("div", "mul") or len(graph.moving(divided)) != 1:
        return
    if divided.equation is None or (
        divided.kind == "div" and divided.operands[0] != node.outputs[0]
    ):
        return
    held = next(o for o in divided.operands if o != node.outputs[0])
    if _counts(graph, node, held, reciprocal=divided.kind == "mul"):
        graph.group(kind, {position, following})  # type: ignore[arg-type]


def _counts(graph: Graph, node: Any, held: Any, reciprocal: bool) -> bool:
    """Whether a value is how many numbers each sum of a node has (or one over that)."""
    params = node.equation.params
    avals = graph.program.avals
    if node.kind == "sum":
        count = math.prod(avals[node.inputs[0]].shape[a] for a in params["axes"])
    else:
        count = math.prod(params["window_dimensions"])
    number = number_of(held, graph.uniform)
    if number is not None:
        dtype = avals[node.outputs[0]].dtype
        true = np.asarray(1 / count if reciprocal else count, dtype) if count else math.nan
        return float(np.asarray(number, dtype)) == float(true)
    # The count of each window, padding left out: the same sum over ones.
    made = None if type(held) is not int else graph.made_by(held)
    if made is None or reciprocal or node.kind != "sum_pool":
        return False
    other = graph.nodes[made]
    while primitive_of(other) in ("broadcast_in_dim", "reshape") and other.inputs:
        made = graph.made_by(other.inputs[0])
        if made is None:
            return False
        other = graph.nodes[made]
    same = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    shape, ones = avals[node.inputs[0]].shape, avals[other.outputs[0]].shape
    return (
        primitive_of(other) == primitive_of(node)
        and number_of(other.operands[0], graph.uniform) == 1
        and all(tuple(other.equation.params[k]) == tuple(params[k]) for k in same)
        and len(shape) == len(ones)
        and all(w == 1 or _size(avals, other, a) == shape[a] for a, w in enumerate(params[same[0]]))
    )


def _size(avals: dict, node: Any, axis: int) -> int:
    return avals[node.inputs[0]].shape[axis] if node.inputs else 0
