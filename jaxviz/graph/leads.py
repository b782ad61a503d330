"""How one value came from another: moved, weighed and added up, behind masks."""

from typing import Any

from jaxviz.graph.exponentials import Search
from jaxviz.graph.interpreter import Node, Program, Value
from jaxviz.graph.summed_rows import STILL

# What only takes numbers somewhere else, the first operand's by the others, which stay.
MOVED = frozenset(
    "broadcast_in_dim dynamic_slice expand_dims gather reshape rev slice squeeze transpose".split()
)
_WEIGHING = frozenset("mul reduce_sum select_n".split())


def of_one_array(search: Search, x: Any, paths: Any, negative: bool) -> Value | None:
    """What x was moved from, of which the exponents, those of one exponential, are a stretch."""
    if len(paths) != 1:
        return None
    root = unsliced(search, paths[0][0].operands[0])
    if root not in search.reached:
        return None
    return root if leads(search, x, root, negative) else None


def unsliced(search: Search, value: Any) -> Any:
    while (made := search.made.get(value)) is not None and made.equation is not None:
        if made.equation.primitive.name not in ("slice", "squeeze", *STILL):
            break
        value = made.operands[0]
    return value


def leads(search: Search, value: Any, root: Value, negative: bool | None = None) -> bool:
    """Whether a value is the root moved, or weighed and added up, and its sign turned if told."""
    turned = False
    while value != root and (made := search.made.get(value)) is not None:
        carrying = search.carrying(made)
        if made.equation is None or made.bodies or len(carrying) != 1:
            return False
        name = made.equation.primitive.name
        if name in MOVED | STILL and carrying[0] != made.operands[0]:
            return False
        if name not in MOVED | STILL | _WEIGHING | {"neg"}:
            return False
        turned ^= name == "neg"
        value = carrying[0]
    return value == root and negative in (None, turned)


def is_weighed(search: Search, x: Any, root: Value, axes: set[int]) -> bool | None:
    """Whether x is a weighed sum of the root's numbers, of each row those along axes; None where it
    is something else of them than that, or than moved ones."""
    names, sums, moved = set[str](), [], False
    while x != root:
        made = search.made[x]
        name = made.equation.primitive.name
        names.add(name)
        if name == "reduce_sum":
            sums.append(set(made.equation.params["axes"]))
        moved |= name in MOVED
        (x,) = search.carrying(made)
    if names.isdisjoint(_WEIGHING):
        return False
    return True if not moved and sums == [axes] else None


def squeezed(search: Search, value: Any, root: Value, axes: set[int], whole: bool) -> bool:
    """Whether the steps from the root leave its axes, or drop the summed ones and no others."""
    while value != root:
        made = search.made[value]
        if made.equation.primitive.name == "squeeze":
            if whole or set(made.equation.params["dimensions"]) != axes:
                return False
            whole = True
        value = made.operands[0]
    return whole


def masked(program: Program, search: Search, path: tuple[Node, ...], x: Any) -> bool:
    """Whether an exponential is of x, place by place, behind masks and with constants added."""
    shape = lambda value: program.avals[value].shape
    value = path[-1].operands[0]
    while value != x and not search.equal(value, x):
        made = search.made.get(value)  # type: ignore[arg-type]
        if made is None or made.equation is None or made.bodies or shape(value) != shape(x):
            return False
        name, carrying = made.equation.primitive.name, search.carrying(made)
        if made is path[0] and name == "sub":
            carrying = [o for o in made.operands[:1] if o in carrying]  # the maximum is taken off
        places = {"select_n": made.operands[1:], "sub": made.operands[:1], "add": made.operands}
        if len(carrying) != 1 or carrying[0] not in places.get(name, made.operands):
            return False
        if name not in STILL and name not in places:
            return False
        value = carrying[0]
    return True
