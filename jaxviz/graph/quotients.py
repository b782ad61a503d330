"""What exponentials come to in the end, as one operation with all that leads to it.

Of a softmax that is not known to be one (behind a mask, over segments, with a sink, divided late)
or a log-sum-exp, the last step: a quotient of two sums of exponentials, or the logarithm of one.
With the steps from the exponents on it is a function of the exponents alone, to which no maximum
belongs that was taken off against overflow. What is between may be read by others too: it stays.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jaxviz.graph.exponentials import KEPT, Entry, Search
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Node, Program, Value
from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.leads import is_weighed, leads, masked, of_one_array, squeezed, unsliced
from jaxviz.graph.roles import REARRANGING, leaves, roles, start
from jaxviz.graph.summed_rows import STILL, Labels, weighed

# Whether each exponential is known to be divided by the sum of those of its own row.
ROWS, SUMS = "exponential_rows", "exponential_sums"
PART = "exponential_part"  # parts of one array: some of it less the log-sum-exp of some of it
STRETCHES = "exponential_stretches"  # the same of exponentials, some over the sum of some
SHIFTED = "shifted"  # the step that takes the maximum off
RESTORED = "restored"  # the step that adds it back
OWN = "own"  # the exponential of what a log-sum-exp is taken off
BESIDE = "beside"  # an exponential that is in another one's sum, and moves by itself
_WHOLE = frozenset((*KEPT, *ACTIVATION_KINDS))
_TOLD = frozenset(
    "broadcast_in_dim div exp exp2 max mul neg reduce_max reshape select_n slice squeeze"
    " stop_gradient sub".split()
)


@fact
def with_quotients(program: Program) -> Program:
    """The program with each such end as one node, members and all.

    Its kind is `ROWS` or `SUMS`, that of the member that takes a maximum off `SHIFTED`.
    """
    if not any(_has_exponential(node) for node in program.nodes):
        return program
    program = _told_once(program)
    search = Search(program, roles(program, start(program)))
    ends = [(n, ids) for ids, n, _ in search.leaving] + [(n, ids) for ids, n, _ in search.added]
    groups = {id(n): joined for n, ids in ends if (joined := group(program, search, n, ids))}
    for ids, end, added, total in search.distances:
        if joined := _distance(program, search, end, added, total, ids):
            groups[id(end)] = joined
    return dataclasses.replace(program, nodes=_replaced(program.nodes, groups))


def _told_once(program: Program) -> Program:
    """The program in which what is written twice (exp(x - max) above and below) is read once."""
    first: dict[Any, Value] = {}
    same: dict[Value, Value] = {}
    nodes = []
    for node in program.nodes:
        renamed = tuple(same.get(v, v) for v in node.inputs)
        if renamed != node.inputs and len(set(renamed)) == len(renamed) and not node.members:
            operands = tuple(same.get(o, o) if isinstance(o, Value) else o for o in node.operands)
            node = node._replace(inputs=renamed, operands=operands)
        nodes.append(node)
        if node.members or node.bodies or not program.depends.intersection(node.inputs):
            continue
        if (name := node.equation.primitive.name) in _TOLD and len(node.outputs) == 1:
            key = name, str(node.equation.params), str(node.operands)
            same[node.outputs[0]] = first.setdefault(key, node.outputs[0])
    return dataclasses.replace(program, nodes=tuple(nodes))


def _has_exponential(node: Node) -> bool:
    if node.members:
        return node.kind not in _WHOLE and any(map(_has_exponential, node.members))
    return node.kind in ("exp", "exp2")


def _replaced(nodes: Sequence[Node], groups: dict[int, Node]) -> tuple[Node, ...]:
    return tuple(
        node._replace(members=_replaced(node.members, groups))
        if node.members and node.kind not in _WHOLE
        else groups.get(id(node), node)
        for node in nodes
    )


def group(
    program: Program, search: Search, end: Node, ids: frozenset[int], *, masks: bool = False
) -> Node | None:
    """One end of such exponentials as one node.

    None where a maximum is added back that is not the one that was taken off, or where a mask
    depends on the explained input, unless `masks` may.
    """
    entries = [search.entries[i] for i in ids]
    end = _once(search, end, entries)
    paths = _without_shift(program, search, end, entries)
    if paths is None and end.equation.primitive.name == "add":
        return None  # the maximum that is added back is not the one that was taken off
    starts = [(e.exponential,) for e in entries] if paths is None else paths
    marks = {} if paths is None else {id(path[0]): SHIFTED for path in paths}
    beside = _in_rows(program, search, end, entries, starts)
    marks |= {id(n): BESIDE for n in beside or ()}
    kind = SUMS if beside is None else ROWS
    if beside is None and _are_stretches(program, search, end, entries):
        kind = STRETCHES
    return _joined(program, search, end, starts, marks, kind, masks)


def _are_stretches(program: Program, search: Search, end: Node, entries: Any) -> bool:
    """Whether the end is some exponentials over the sum of some, of each row by itself."""
    if end.equation.primitive.name not in ("div", "mul") or len(entries) != 1:
        return False
    value = entries[0].exponential.outputs[0]
    shape, out = program.avals[value].shape, program.avals[end.outputs[0]].shape
    summed: set[int] = set()
    sides = []
    for operand in end.operands:
        labels = Labels(program, search, value, rows=True)
        sides.append((labels.of(operand), labels.sums, labels.plain))
        summed |= labels.summed
    kept = [i for i in range(len(shape)) if i not in summed]
    places = kept if len(out) == len(kept) else range(len(shape))
    if len(out) != len(places) or any(found is None or not plain for found, _, plain in sides):
        return False
    rows = [out[k] == shape[i] for k, i in enumerate(places) if i in kept]
    for found, *_ in sides:
        pairs = list(zip(found, places, shape if len(out) > len(kept) else out, strict=True))
        rows += [a == i or n == 1 for a, i, n in pairs if i in kept]
    still = [
        all(a is None for a, i in zip(f, places, strict=True) if i in summed) for f, *_ in sides
    ]
    return all(rows) and bool(summed) and sorted(s for _, s, _ in sides)[0] == 0 and any(still)


def _joined(program, search, end, starts, marks, kind, masks=False) -> Node | None:
    parts = _reachable(program, search, _slice(search, end, starts))
    inside = {v for n in parts for v in n.outputs}
    read = {v for n in parts for v in n.inputs if v in program.depends} - inside
    if not masks and not read <= search.reached.keys():
        return None
    members = tuple(n._replace(kind=marks.get(id(n), n.kind)) for n in parts)
    read = dict.fromkeys(v for m in members for v in m.inputs if v not in inside)
    inputs = (
        *(v for v in read if v in program.depends),
        *(v for v in read if v not in program.depends),
    )
    return end._replace(kind=kind, inputs=inputs, operands=inputs, equation=None, members=members)


def _distance(
    program: Program,
    search: Search,
    end: Node,
    added: Node | None,
    total: Value,
    ids: frozenset[int],
) -> Node | None:
    """x less a log-sum-exp of x behind a mask, or the reverse: as the logarithm of a softmax."""
    entries = [search.entries[i] for i in ids]
    (x,) = (o for o in end.operands if o != total)
    if added is None:  # of the exponents as they are
        paths = [(e.exponential,) for e in entries]
    else:
        paths = _without_shift(program, search, added, entries)
    if paths is None or len(paths) < len(entries):
        return None
    adds = end.equation.primitive.name == "add"  # of what is negative
    found = [
        e.exponential.outputs[0]
        for e, path in zip(entries, paths, strict=True)
        if not adds and masked(program, search, path, x)
    ]
    if not found and (root := of_one_array(search, x, paths, adds)) is not None:
        return _in_part(program, search, end, added, total, paths, x, root)
    if len(found) != 1 or not _of_each_row(program, search, end, found[0], total):
        return None
    others = zip(entries, paths, strict=True)
    if not all(e.exponential.outputs[0] in found or _is_still(search, p) for e, p in others):
        return None
    marks = {id(search.made[found[0]]): OWN}
    if added is not None:
        marks |= {id(path[0]): SHIFTED for path in paths} | {id(added): RESTORED}
    return _joined(program, search, end, paths, marks, ROWS)


def _in_part(program, search, end, added, total, paths, x, root) -> Node | None:
    """Such a distance, where all parts are along the axes that are summed, with its root inside.

    Where x was moved otherwise than by slices, the rule sees which row each of it is of.
    """
    (path,) = paths
    own, shape = path[-1].outputs[0], program.avals[root].shape
    of_own = program.avals[own].shape
    labels = Labels(program, search, own, rows=True)
    found = labels.of(total)
    steps = {"sub", *STILL}
    plain = all(n.equation.primitive.name in steps for n in path[:-1])
    if (
        found is None
        or not labels.whole
        or not plain
        or len(program.avals[own].shape) != len(shape)
    ):
        return None
    kept = [i for i in range(len(shape)) if i not in labels.summed]
    sizes = [shape[i] for i in kept]
    if [n for i, n in enumerate(of_own) if i in kept] != sizes:
        return None
    is_sum = is_weighed(search, x, root, labels.summed)
    if is_sum is None:
        return None
    if is_sum or unsliced(search, x) == root:
        out = program.avals[end.outputs[0]].shape
        if len(out) == len(shape):
            rows = [a for i, a in enumerate(found) if i in kept]
        else:
            rows = list(found)
        told = [None if shape[i] == 1 else i for i in kept]
        alike = [n for i, n in enumerate(out) if len(out) == len(kept) or i in kept]
        if rows != told or len(out) not in (len(kept), len(shape)) or alike != sizes:
            return None
        if is_sum and len(out) == len(shape):
            return None
        if not is_sum and not squeezed(search, x, root, labels.summed, len(out) == len(shape)):
            return None
    marks = {id(path[-1]): OWN}
    if added is not None:
        marks |= {id(path[0]): SHIFTED, id(added): RESTORED}
    group = _joined(program, search, end, paths, marks, PART)
    if group is None:
        return None
    sums = [m for m in group.members if m.equation.primitive.name == "reduce_sum"]
    turned = any(m.equation.primitive.name == "transpose" for m in group.members)
    alike = [program.avals[s.inputs[0]].shape == of_own for s in sums]
    if (turned and (is_sum or unsliced(search, x) == root)) or alike != [True]:
        return None
    group = _rooted(program, search, group, root)
    shifts = set() if added is None else {path[0].operands[1], *added.operands}
    moving = {v for v in group.inputs if v in program.depends}
    return group if moving <= {root, *shifts} else None


def _rooted(program: Program, search: Search, group: Node, root: Value) -> Node:
    """The group with what leads from the root, its first input, to what it reads of it inside."""
    members = list(group.members)
    while True:
        made = {v for m in members for v in m.outputs}
        read = [v for m in members for v in m.inputs if v not in made and v != root]
        more = [search.made[v] for v in read if leads(search, v, root)]
        if not more:
            break
        members = [*{id(n): n for n in more}.values(), *members]
    read = dict.fromkeys(v for m in members for v in m.inputs if v not in made)
    inputs = tuple(sorted(read, key=lambda v: (v != root, v not in program.depends)))
    return group._replace(members=tuple(members), inputs=inputs, operands=inputs)


def _once(search: Search, end: Node, entries: Sequence[Entry]) -> Node:
    """The end of a logarithm, with the exponent for what was made alike once more."""
    if end.equation.primitive.name != "sub":
        return end
    other = end.operands[0]
    same = [v for e in entries if search.equal(v := e.exponential.operands[0], other)]
    renamed = lambda values: tuple(same[0] if v == other else v for v in values)
    return end._replace(operands=renamed(end.operands), inputs=renamed(end.inputs))


def _reachable(program: Program, search: Search, parts: list[Node]) -> list[Node]:
    """The operations with those that make what they read inside of other groups."""
    inside = {v for n in parts for v in n.outputs}
    hidden = {v for n in _hidden(program.nodes) for v in n.outputs} - inside
    needed = {id(n) for n in parts}
    todo = [v for n in parts for v in n.inputs]
    while todo:
        value = todo.pop()
        if value in hidden:
            hidden.discard(value)
            needed.add(id(search.made[value]))
            todo += search.made[value].inputs
    return [*(n for n in search.nodes if id(n) in needed and n is not parts[-1]), parts[-1]]


def _hidden(nodes: Sequence[Node]) -> Iterator[Node]:
    """The members of groups that stay whole, but for those that make what a group is read for."""
    for node in nodes:
        if node.members and node.kind in _WHOLE:
            yield from (n for n in leaves(node.members) if set(node.outputs).isdisjoint(n.outputs))
        elif node.members:
            yield from _hidden(node.members)


def _slice(search: Search, end: Node, starts: Sequence[tuple[Node, ...]]) -> list[Node]:
    """The operations from the exponents to the end, in order."""
    paths = {id(path[-1]): path for path in starts}
    needed: dict[int, Node] = {}
    todo = [end]
    while todo:
        node = todo.pop()
        if id(node) not in needed:
            path = paths.get(id(node))
            needed.update((id(n), n) for n in path or (node,))
            if path is None:
                todo += [search.made[v] for v in node.inputs if search.within(v)]
    return [*(n for n in search.nodes if id(n) in needed and n is not end), end]


def _without_shift(program: Program, search: Search, end: Node, entries: Sequence[Entry]) -> Any:
    """The ways from where the maximum is taken off to each exponential, if it has no share.

    That is where all have taken off the same one, and the end is of the same place of it above and
    below: then it cancels. None otherwise, or where there is none.
    """
    shifts = [entry.shift for entry in entries if entry.shift is not None]
    if not shifts:
        return None
    root = _root(search, shifts[0])
    if not all(search.equal(_root(search, shift), root) for shift in shifts):
        return None
    paths = [e.path if e.shift is not None else _sink(search, e, root) for e in entries]
    paths = [path for path in paths if path is not None]
    if len(paths) < len(entries):
        return None
    frames = Labels(program, search, root, rows=False)
    for path in paths:
        taken = [o for o in path[0].operands if isinstance(o, Value) and o in search.reached]
        shift = next(o for o in taken if search.equal(_root(search, o), root))
        frames.starts[path[0].outputs[0]] = shift
    one, other = (frames.of(o) for o in end.operands)
    return paths if one is not None and one == other else None


def _root(search: Search, value: Any) -> Any:
    """Where a value comes from, moved about."""
    while (made := search.made.get(value)) is not None and made.equation is not None:
        carrying = search.carrying(made)
        if len(carrying) != 1 or made.equation.primitive.name not in REARRANGING:
            break
        value = carrying[0]
    return value


def _sink(search: Search, entry: Entry, root: Value) -> tuple[Node, ...] | None:
    """The way of exp(c - max), where nothing but the maximum depends on the explained input."""
    path, value = [entry.exponential], entry.exponential.operands[0]
    while (made := search.made.get(value)) is not None and not made.bodies:  # type: ignore[arg-type]
        carrying = search.carrying(made)
        if made.equation is None or len(carrying) != 1:
            return None
        path.append(made)
        name = made.equation.primitive.name
        if name == "neg" or (name == "sub" and made.operands[1] == carrying[0]):
            of_it = search.equal(_root(search, carrying[0]), root)
            return tuple(reversed(path)) if of_it else None
        if name not in REARRANGING:
            return None
        value = carrying[0]
    return None


def _in_rows(
    program: Program, search: Search, end: Node, entries: Any, paths: Any
) -> list[Node] | None:
    """If the end is e / (sum of its row + what else there is), or the logarithm of that: which
    other exponentials of what moves there are."""
    name = end.equation.primitive.name
    if name == "add" or any(not isinstance(o, Value) for o in end.operands):
        return None
    own = {e.exponential.outputs[0]: path for e, path in zip(entries, paths, strict=True)}
    for top in end.operands if name == "mul" else end.operands[:1]:
        if name == "sub":
            found = [e.exponential for e in entries if e.exponential.operands[0] == top]
            value = exponential = found[0].outputs[0] if found else None
        else:
            value, exponential = top, weighed(program, search, top)
        if exponential in own:
            break
    else:
        return None
    assert isinstance(value, Value)
    if end.operands.count(top) > 1:
        return None
    (bottom,) = (o for o in end.operands if o != top)
    moving = [v for v, path in own.items() if v != exponential and not _is_still(search, path)]
    if not all(_in_its_row(program, search, end, v, bottom) for v in moving):
        return None
    found = _of_each_row(program, search, end, value, bottom)
    return [search.made[v] for v in moving] if found else None


def _in_its_row(program: Program, search: Search, end: Node, value: Value, bottom: Any) -> bool:
    """Whether each number is in the sum of one place of the end, and of no other one."""
    labels = Labels(program, search, value, rows=True)
    found, shape = labels.of(bottom), program.avals[end.outputs[0]].shape
    if found is None or len(found) != len(shape) or labels.sums > 1:
        return False
    told = [a for n, a in zip(shape, found, strict=True) if n != 1]
    return all(isinstance(a, int) for a in told) and len(set(told)) == len(told)


def _of_each_row(program: Program, search: Search, end: Node, value: Value, bottom: Any) -> bool:
    """Whether the bottom has, for each place of the end, the sum of that place's row of a value."""
    shape = program.avals[value].shape
    labels = Labels(program, search, value, rows=True)
    found = labels.of(bottom)
    if program.avals[end.outputs[0]].shape != shape or found is None or len(found) != len(shape):
        return False
    expected = [None if i in labels.summed else i for i in range(len(shape))]
    return labels.whole and all(
        n == 1 or a == b for n, a, b in zip(shape, found, expected, strict=True)
    )


def _is_still(search: Search, path: tuple[Node, ...]) -> bool:
    """Whether an exponential is of a number that stays, less the maximum."""
    reads = [o for o in path[0].operands if isinstance(o, Value) and o in search.reached]
    return len(path) > 1 and len(reads) == 1
