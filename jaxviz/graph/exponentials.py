"""Exponentials that are only a way to compute a softmax or a log-sum-exp, however it is spelled.

`exp(x - max x)` alone is no function of the net's design: the maximum is there against overflow
and cancels where the exponentials are divided by their sum, or where it is added back to the
logarithm of their sum. A rule that shares relevance by contribution must not see such a difference
(the winner's is exactly 0), so what belongs together is found here by following the exponentials
forward: over axes, over segments (graph nets), behind masks, with any weights.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxviz.graph.interpreter import Node, Program, Value
from jaxviz.graph.roles import REARRANGING, leaves

# Linear in what it reads, if all else it reads is constant.
_SUMMING = frozenset(
    "reduce_sum cumsum scatter-add reduce_window_sum dot_general conv_general_dilated".split()
)
LINEAR = REARRANGING | _SUMMING | frozenset("add add_any mul div neg abs select_n max min".split())
_EXTREME = frozenset(
    "reduce_max reduce_min scatter-max scatter-min cummax cummin reduce_window_max max min".split()
)
_JOINING = frozenset("add add_any concatenate dynamic_update_slice select_n scatter-add".split())
KEPT = frozenset({"softmax", "log_softmax"})

LOG_OF_QUOTIENT = "log_of_quotient"  # a group that is one logarithm: `jaxviz.graph.logarithms`
IN, INSIDE, OUT = "softmax_in", "softmax_inside", "softmax_out"
SHIFT, ALONE, LOGGED = "shift", "unnormalised", "logged"
# Where weights meet what they weigh before they are normalised, and where that is made up for; by
# the kind of product, whose rule is asked.
WEIGHS = {"mul": "softmax_weighs_mul", "dot_general": "softmax_weighs_matmul"}
NUMERATOR = "numerator of a "
WEIGHED = {"mul": "softmax_weighed_mul", "dot_general": "softmax_weighed_matmul"}


class Part(NamedTuple):
    """An operation's part in a softmax or log-sum-exp.

    Attributes:
      kind: "softmax_in" (the logits come in), "softmax_inside", "softmax_out" (the quotient),
        "softmax_weighs_..." and "softmax_weighed_..." (a product with weights that are divided by
        their sum after it, and that quotient), "shift" (a maximum is taken off, or added back),
        "unnormalised" (an exponential of a distance from a maximum that is neither), "logged" (the
        logarithm of probabilities that a softmax made).
      value: Of a "shift", the value that is taken off or added back; of a product the weights, of
        its quotient the numerator.
      role: The role that this value has for the operation: "divisor" of a shift, "weights", or
        "numerator of a " and the role of what was weighed.
    """

    kind: str
    value: Value | None = None
    role: str = ""


class Entry(NamedTuple):
    exponential: Node
    path: tuple[Node, ...]  # from the difference, which comes first, up to the exponential
    shift: Value | None  # the maximum that the difference is from


class Search:
    """What is made from exponentials alone, followed forward through a program."""

    def __init__(self, program: Program, reached: Mapping[Value, str]):
        self.reached = reached
        self.results = program.outputs
        self.nodes = list(leaves(n for n in program.nodes if n.kind != LOG_OF_QUOTIENT))
        self.made = {v: n for n in self.nodes for v in n.outputs}
        self.readers: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                self.readers.setdefault(value, []).append(node)
        self.entries: list[Entry] = []
        self.sets: dict[Value, frozenset[int]] = {}  # which exponentials a value is made from
        self.summed: set[Value] = set()
        self.inverse: set[Value] = set()
        self.logged: set[Value] = set()
        self.weighed: dict[Value, tuple[str, str]] = {}  # by which product, the other factor's role
        self.inside: list[tuple[frozenset[int], Node]] = []
        self.weighing: list[tuple[frozenset[int], Node, Value]] = []
        self.leaving: list[tuple[frozenset[int], Node, Part]] = []
        self.added: list[tuple[frozenset[int], Node, Value]] = []
        self.log_sums: dict[Value, tuple[frozenset[int], Node]] = {}  # with the maximum added back
        # Whether a sum is below zero, of which there is no logarithm.
        self.signs: set[Value] = set()
        # From one of those log-sum-exps.
        self.distances: list[tuple[frozenset[int], Node, Node | None, Value]] = []
        self.broken: set[int] = set()
        for node in self.nodes:
            self.follow(node)
        for value in program.outputs:
            self.broken |= self.sets.get(value, frozenset())

    def is_read(self, value: Value) -> bool:
        return value in self.readers or value in self.results

    def within(self, value: Value) -> bool:
        """Whether a value is made from exponentials, up to a log-sum-exp and where it is moved."""
        return any(value in known for known in (self.sets, self.log_sums, self.signs))

    def carrying(self, node: Node) -> list[Value]:
        return [o for o in node.operands if isinstance(o, Value) and o in self.reached]

    def follow(self, node: Node) -> None:
        carrying = self.carrying(node)
        touched = [v for v in carrying if v in self.sets]
        ids = frozenset().union(*(self.sets[v] for v in touched))
        name = "" if node.equation is None or node.bodies else node.equation.primitive.name
        self.follow_log_sum(node, name, carrying)
        if name in ("exp", "exp2") and carrying:
            self.broken |= ids
            self.sets[node.outputs[0]] = frozenset({len(self.entries)})
            self.entries.append(self.entry(node))
        elif name == "sign":
            return  # of a sum of exponentials it stays where it is
        elif not touched or not any(v in self.reached and self.is_read(v) for v in node.outputs):
            return
        elif len(touched) < len(carrying):
            self.meet(node, name, touched, ids)
        elif name == "log" and touched[0] in self.summed and touched[0] not in self.weighed:
            self.keep(node, ids, touched, logs=True)
        elif self.is_quotient(node, name, touched):
            self.leave(node, ids, touched)
        elif self.is_linear(node, name, touched):
            self.keep(node, ids, touched)
        else:
            self.broken |= ids

    def follow_log_sum(self, node: Node, name: str, carrying: list[Value]) -> None:
        """A log-sum-exp moved about, and taken off what its exponentials, or one more, are of."""
        known = [v for v in carrying if v in self.log_sums]
        if name in ("sign", "lt") and any(v in self.sets or v in self.signs for v in node.inputs):
            self.signs.update(node.outputs)
        if len(known) != 1:
            return
        ids, added = self.log_sums[known[0]]
        checked = name == "select_n" and node.operands[0] in self.signs
        if len(carrying) == 1 and (name in REARRANGING or checked):
            self.log_sums[node.outputs[0]] = ids, added
        elif len(carrying) == 2 and self.is_distance(node, name, known[0]):
            self.distances.append((ids, node, added, known[0]))

    def is_distance(self, node: Node, name: str, total: Value) -> bool:
        """Whether something is taken off a log-sum-exp, or that off it."""
        (other,) = (o for o in node.operands if o != total)
        made = self.made.get(other)  # type: ignore[arg-type]
        negated = made is not None and made.equation is not None and not made.bodies
        negated = negated and made.equation.primitive.name == "neg"  # type: ignore[union-attr]
        return name == "sub" or (name == "add" and negated)

    def is_quotient(self, node: Node, name: str, touched: list[Value]) -> bool:
        if len(touched) != 2:
            return False
        sums = [v in self.summed and v not in self.weighed for v in touched]
        if name == "div":
            return sums[1] and touched[1] not in self.inverse and touched[0] not in self.inverse
        ends = [v in self.inverse and known for v, known in zip(touched, sums, strict=True)]
        return name == "mul" and sum(ends) == 1

    def leave(self, node: Node, ids: frozenset[int], touched: list[Value]) -> None:
        top = next((v for v in touched if v in self.weighed), None)
        if top is None:
            self.leaving.append((ids, node, Part(OUT)))
            return
        name, role = self.weighed[top]
        self.leaving.append((ids, node, Part(WEIGHED[name], top, f"{NUMERATOR}{role}")))

    def is_linear(self, node: Node, name: str, touched: list[Value]) -> bool:
        if any(v in self.logged for v in touched) and name not in REARRANGING:
            return False
        if name == "integer_pow":
            return node.equation.params["y"] == -1
        return name in LINEAR and (len(touched) == 1 or name in _JOINING)

    def keep(self, node: Node, ids: frozenset[int], touched: list[Value], logs=False) -> None:
        name, out = node.equation.primitive.name, node.outputs[0]
        self.sets[out] = ids
        self.inside.append((ids, node))
        turned = name == "integer_pow" or (name == "div" and node.operands[0] != touched[0])
        several = len({self.sets[v] for v in touched}) > 1
        for flag, sets in (
            (name in _SUMMING or (name in ("add", "add_any") and several), self.summed),
            (turned, self.inverse),
            (logs, self.logged),
        ):
            if flag or any(v in sets for v in touched):
                sets.update(node.outputs)
        by = {self.weighed.get(v) for v in touched}
        if len(by) > 1 or (turned and by != {None}):
            self.broken |= ids
        elif how := by.pop():
            self.weighed[out] = how

    def meet(self, node: Node, name: str, touched: list[Value], ids: frozenset[int]) -> None:
        """Exponentials meet something else: the logits, the maximum, or what they are to weigh."""
        value = touched[0]
        other = next((o for o in self.carrying(node) if o != value), None)
        known = (self.summed, self.inverse, self.logged, self.weighed)
        if name in WEIGHS and len(touched) == 1 and not any(value in sets for sets in known):
            out = node.outputs[0]
            self.sets[out] = ids
            self.weighed[out] = (name, self.reached[other])  # type: ignore[index]
            self.weighing.append((ids, node, value))
            return
        logged = value in self.logged and len(ids) == 1 and other is not None
        entry = self.entries[next(iter(ids))]
        if logged and name == "sub":
            own = self.equal(other, entry.exponential.operands[0])
            if own and node.operands[0] == other:
                self.leaving.append((ids, node, Part(OUT)))
                return
            self.distances.append((ids, node, None, value))
        elif logged and self.is_distance(node, name, value):
            self.distances.append((ids, node, None, value))
        if logged and name == "add" and entry.shift is not None:
            if self.equal(self.root(other), self.root(entry.shift)):
                self.added.append((ids, node, other))  # type: ignore[arg-type]
                self.log_sums[node.outputs[0]] = ids, node
                return
        self.broken |= ids

    def entry(self, node: Node) -> Entry:
        """The maximum that was taken off what an exponential reads, and the way from there."""
        path, value = [node], node.operands[0]
        while isinstance(value, Value) and (made := self.made.get(value)) is not None:
            if made.equation is None or made.bodies:
                break
            name, carrying = made.equation.primitive.name, self.carrying(made)
            path.append(made)
            if name == "sub" and len(carrying) == 2:
                for shift in reversed(carrying):
                    top = self.made.get(self.root(shift))
                    if top is not None and top.equation.primitive.name in _EXTREME:
                        return Entry(node, tuple(reversed(path)), shift)
                break
            if len(carrying) != 1 or name not in REARRANGING | {"mul", "div", "neg", "select_n"}:
                break
            value = carrying[0]
        return Entry(node, (node,), None)

    def root(self, value: Any) -> Any:
        """Where a value comes from, moved about, kept finite and with its gradient stopped."""
        while (made := self.made.get(value)) is not None and made.equation is not None:
            carrying = self.carrying(made)
            clipped = made.equation.primitive.name in ("max", "min", "select_n", "clamp")
            clipped |= made.kind == "relu"
            if made.bodies or len(carrying) != 1:
                break
            if not clipped and made.equation.primitive.name not in REARRANGING:
                break
            value = carrying[0]
        return value

    def equal(self, a: Any, b: Any) -> bool:
        """Whether two values are one, or made from one by the same equation written twice."""
        if a == b:
            return True
        one, two = self.made.get(a), self.made.get(b)
        if one is None or two is None or one.bodies or two.bodies:
            return False
        same = one.equation.primitive.name == two.equation.primitive.name
        options = str(one.equation.params) == str(two.equation.params)
        return same and options and one.operands == two.operands

    def only_for(self, entry: Entry, leaving: Iterable[Node]) -> bool:
        """Whether what is between the shift and the exponential is read by nothing else."""
        allowed = {id(n) for n in (*entry.path, *leaving)}
        steps = entry.path[:-1]
        return all(id(r) in allowed for n in steps for v in n.outputs for r in self.readers[v])


def parts(program: Program, reached: Mapping[Value, str]) -> dict[int, Part]:
    """The operations of a program that belong to a softmax or log-sum-exp, by `id` of the node.

    Args:
      program: As traced or folded; groups that are known to be a softmax are left to their kind.
      reached: The values that relevance can reach, as from `roles`.

    Returns:
      The part of each operation; a group that holds one has the part "softmax_inside".
    """
    search = Search(program, reached)
    found: dict[int, Part] = {}
    for together in _components(search):
        entries = [search.entries[i] for i in together]
        leaving = [(n, part) for ids, n, part in search.leaving if ids & together]
        weighing = [(n, value) for ids, n, value in search.weighing if ids & together]
        added = [(n, shift) for ids, n, shift in search.added if ids & together]
        ends = [n for n, _ in leaving]
        whole = together.isdisjoint(search.broken) and all(
            search.only_for(entry, ends) for entry in entries
        )
        if whole and leaving and not added:
            for entry in entries:
                found[id(entry.path[0])] = Part(IN)
                found.update((id(n), Part(INSIDE)) for n in entry.path[1:])
            found.update((id(n), Part(INSIDE)) for ids, n in search.inside if ids & together)
            for node, value in weighing:
                kind = WEIGHS[node.equation.primitive.name]
                found[id(node)] = Part(kind, value, "weights")
            found.update((id(n), part) for n, part in leaving)
        elif whole and added and not leaving and not weighing:
            for entry in entries:
                if entry.shift is not None:
                    found[id(entry.path[0])] = Part(SHIFT, entry.shift, "divisor")
            found.update((id(n), Part(SHIFT, shift, "divisor")) for n, shift in added)
        else:
            for entry in entries:
                if entry.shift is not None:
                    found[id(entry.exponential)] = Part(ALONE)
    _logarithms(program, search, found)
    if found:
        _mark_groups(program.nodes, found)
    return found


def _logarithms(program: Program, search: Search, found: dict[int, Part]) -> None:
    """The logarithms of what a softmax made, clipped or raised a little, picked or added up."""
    made = {v for n in program.nodes if n.kind == "softmax" for v in n.outputs}
    made |= {
        v
        for n in search.nodes
        if id(n) in found and found[id(n)].kind == OUT and n.equation.primitive.name != "sub"
        for v in n.outputs
    }
    for node in search.nodes if made else ():
        carrying = search.carrying(node)
        if node.equation is None or node.bodies or made.isdisjoint(carrying):
            continue
        name = node.equation.primitive.name
        if name in ("log", "log2", "log1p"):
            found[id(node)] = Part(LOGGED)
        elif len(carrying) == 1 and name in LINEAR | {"sub", "clamp"}:
            made.update(node.outputs)


def _components(search: Search) -> list[frozenset[int]]:
    """Exponentials that meet somewhere."""
    together = [frozenset({i}) for i in range(len(search.entries))]
    links = [ids for ids, *_ in (*search.inside, *search.weighing, *search.leaving, *search.added)]
    for ids in links:
        if len(ids) > 1:
            joined = frozenset().union(*(c for c in together if c & ids))
            together = [c for c in together if not c & ids] + [joined]
    return together


def _mark_groups(nodes: Iterable[Node], found: dict[int, Part]) -> None:
    for node in nodes:
        if node.members and node.kind not in KEPT:
            _mark_groups(node.members, found)
            if any(id(member) in found for member in node.members):
                found[id(node)] = Part(INSIDE)
