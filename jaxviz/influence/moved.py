"""Which parameter stands where in an array that is made by moving parameters about."""

from typing import Any

import numpy as np

from jaxviz.graph.interpreter import Node, Program, Scalar
from jaxviz.graph.kinds import SAME_PLACE


def moved(program: Program, node: Node, known: dict[int, np.ndarray]) -> np.ndarray | None:
    """What `known` says of a node's operands, moved as the node moves its numbers.

    Args:
      program: The node's.
      node: One operation, no group.
      known: Of values, an integer for each of their numbers.

    Returns:
      The same of its one output; None where the node does more than move numbers, or moves some by
      an index that is not known.
    """
    name, p = node.equation.primitive.name, node.equation.params
    if len(node.outputs) != 1 or not node.operands:
        return None
    if name == "concatenate":
        given = [known.get(v) if not isinstance(v, Scalar) else None for v in node.operands]
        whole = [a for a in given if a is not None]
        return np.concatenate(whole, p["dimension"]) if len(whole) == len(given) else None
    first = node.operands[0]
    a = None if isinstance(first, Scalar) else known.get(first)
    if a is None:
        return None
    shape = program.avals[node.outputs[0]].shape
    if name in SAME_PLACE:
        return a
    if name == "reshape":
        return None if p.get("dimensions") is not None else a.reshape(shape)
    if name in ("squeeze", "expand_dims"):
        return a.reshape(shape)
    if name == "transpose":
        return a.transpose(p["permutation"])
    if name == "rev":
        return np.flip(a, p["dimensions"])
    if name == "broadcast_in_dim":
        along = [1] * len(shape)
        for axis, size in zip(p["broadcast_dimensions"], a.shape, strict=True):
            along[axis] = size
        return np.broadcast_to(a.reshape(along), shape)
    if name == "slice":
        strides = p["strides"] or (1,) * a.ndim
        limits = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
        return a[tuple(slice(*one) for one in limits)]
    if name == "dynamic_slice":
        starts = [_number(program, v) for v in node.operands[1:]]
        if any(start is None for start in starts):
            return None
        sizes = zip(starts, p["slice_sizes"], a.shape, strict=True)
        begins = [(min(max(start, 0), n - size), size) for start, size, n in sizes]
        return a[tuple(slice(start, start + size) for start, size in begins)]
    return None


def _number(program: Program, operand: Any) -> Any:
    value = operand.value if isinstance(operand, Scalar) else program.constants.get(operand)
    is_known = isinstance(value, (int, np.ndarray, np.generic)) and np.size(value) == 1
    return int(np.asarray(value).reshape(())) if is_known else None
