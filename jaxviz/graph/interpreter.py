"""A traced function as data, and its evaluation with some operations replaced.

Sharp edges, so that nobody has to find out again:

- Values are numbered here, not named by jaxpr variables: JAX caches inner jaxprs, so inlining one
  twice would bind the same variable twice.
- An inner `jit` is inlined; `custom_jvp`, `custom_vjp`, `remat` and control flow stay operations
  with bodies, and are only taken apart when something inside is replaced. Where layers are named
  and cut, a scan over layers (`towers.py`) is written out turn by turn. For rules that explain the
  function as it is computed `custom_jvp` and `custom_vjp` are inlined as well.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import jaxviz.graph.kinds as kinds
from jaxviz.graph.called import is_hypot, is_logaddexp, searched
from jaxviz.graph.equations import (
    Bound,
    DropVar,
    Literal,
    bind,
    inner_jaxpr,
    literal_value,
    read_results,
    scan_arity,
    variables,
)
from jaxviz.graph.names import are_wanted, join_scope, parse_scope, parse_tag, tag_name
from jaxviz.graph.pieces import Operand
from jaxviz.graph.through import INLINED, activation, through
from jaxviz.graph.towers import MOST_TURNS, numbered_turn

Value = int  # a value of the program, numbered in order of creation


class Scalar(NamedTuple):
    """A literal operand."""

    value: Any


class Node(NamedTuple):
    """One operation of a program, or a recognised group of them.

    `operands` are what the equation reads, in order; `inputs` the values among them, each once. A
    group has `members` and no equation; its inputs are in order of first use, those that depend on
    the explained input first.
    """

    kind: str
    operands: tuple[Value | Scalar, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    equation: Any
    scope: tuple[str, ...]
    members: tuple["Node", ...] = ()
    bodies: tuple["Program", ...] = ()
    callers: tuple[Any, ...] = ()  # the equations it was inlined from, for its line
    bound: Any = None  # the equation as a function of its inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A flat list of nodes over numbered values: what tracing a function gives."""

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    constants: dict[Value, Any]
    avals: dict[Value, Any]
    depends: frozenset[Value]  # those that an input marked as dependent reaches
    tags: tuple[tuple[str, str, Value], ...]  # (layer path, class name, value) in order
    facts: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)


CUSTOM = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
EXPANDED = "call_hi_primitive"  # since JAX 0.12, an operation that is written in Python
REMAT = {"remat2", "checkpoint", "remat"}


def build(
    jaxpr: Any,
    consts: Sequence[Any],
    depends: Sequence[bool],
    *,
    flat: bool,
    callers: tuple[Any, ...] = (),
    held: Sequence[bool] = (),
    plain: bool = False,
) -> Program:
    """The program of a jaxpr.

    Args:
      jaxpr: Open, as in `jax.make_jaxpr(...)(...).jaxpr`.
      consts: Values of its constants.
      depends: For each input, whether the explained input reaches it.
      flat: Whether to inline `remat` too, which changes memory and no number.
      callers: The equations around it.
      held: For each input, whether it is of the params: then scans over layers are written out
        turn by turn, each turn under its own name. Without it they stay loops.
      plain: Whether to inline functions with a derivative of their own, the function as it is
        computed; `jnp.logaddexp` is then the log-sum-exp that it is.
    """
    builder = _Builder(flat, callers, towers=bool(held), plain=plain)
    pairs = zip(jaxpr.invars, depends, strict=True)
    inputs = tuple(builder.new(variable.aval, moves) for variable, moves in pairs)
    builder.start(inputs, held)
    outputs = builder.walk(jaxpr, consts, inputs, ())
    program = Program(
        nodes=tuple(builder.nodes),
        inputs=inputs,
        outputs=outputs,
        constants=builder.constants,
        avals=builder.avals,
        depends=frozenset(builder.depends),
        tags=tuple(builder.tags),
    )
    return recognised(program)


def recognised(program: Program) -> Program:
    """A program with its operations' kinds, and groups of them that are known as one."""
    return dataclasses.replace(program, nodes=kinds.recognise(program, _through))


def _through(equation: Any, operands: Sequence[Operand]) -> Operand:
    return through(equation, operands, bind)


class _Builder:
    def __init__(self, flat: bool, callers: tuple[Any, ...], towers: bool, plain: bool):
        self.flat = flat
        self.plain = plain
        self.log_sums: dict[Value, tuple[Value, ...]] = {}  # of which terms
        self.slices: dict[Any, Value] = {}  # the first one of those alike
        self.callers = callers
        self.towers = towers
        self.turns = 1  # of the scans that are being written out
        self.scans: dict[str, int] = {}  # written out so far, by path
        self.from_x: set[Value] = set()  # whatever x reaches, whole numbers too
        self.from_params: set[Value] = set()
        self.nodes: list[Node] = []
        self.constants: dict[Value, Any] = {}
        self.avals: dict[Value, Any] = {}
        self.depends: set[Value] = set()
        self.tags: list[tuple[str, str, Value]] = []

    def new(self, aval: Any, depends: bool) -> Value:
        value = len(self.avals)
        self.avals[value] = aval
        if depends:
            self.depends.add(value)
        return value

    def start(self, inputs: Sequence[Value], held: Sequence[bool]) -> None:
        """Tells which inputs are of the params, and which of x."""
        for value, is_held in zip(inputs, held, strict=False):
            (self.from_params if is_held else self.from_x).add(value)

    def constant(self, value: Any, aval: Any) -> Value:
        number = self.new(aval, False)
        self.constants[number] = value
        return number

    def walk(self, jaxpr: Any, consts: Iterable[Any], inputs: Sequence[Value], scope: tuple):
        """Adds the nodes of an open jaxpr; returns its outputs."""
        env: dict[Any, Value] = {}
        for variable, const in zip(jaxpr.constvars, consts, strict=True):
            env[variable] = self.constant(const, variable.aval)
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for equation in jaxpr.eqns:
            self.add(equation, env, scope + parse_scope(equation))
        return tuple(self.value(atom, env) for atom in jaxpr.outvars)

    def value(self, atom: Any, env: dict) -> Value:
        """The value of a variable; a literal becomes a constant."""
        if not isinstance(atom, Literal):
            return env[atom]
        return self.constant(literal_value(atom), atom.aval)

    def add(self, equation: Any, env: dict, scope: tuple) -> None:
        """Adds one equation: its node, or those of the jaxpr it wraps."""
        name = equation.primitive.name
        if name == "name" and (tag := parse_tag(equation.params["name"])):
            env[equation.outvars[0]] = self.value(equation.invars[0], env)
            named = (*tag, env[equation.outvars[0]])
            if named not in self.tags[-1:]:  # a call that is a call of its parent class
                self.tags.append(named)
            return
        moves = any(env[v] in self.depends for v in variables(equation.invars))
        kind = activation(equation, bind) if moves else None
        wraps = INLINED | REMAT if self.flat else INLINED
        if self.plain and moves and kind is None:
            if self.is_log_sum(equation, env, scope) or self.is_search(equation, env, scope):
                return
            if self.is_expanded(equation, env, scope):
                return
            if name in CUSTOM and not is_hypot(equation):
                wraps = wraps | CUSTOM.keys()
        if kind is None and name in wraps:
            inner, consts = inner_jaxpr(
                equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            )
            inputs = [self.value(atom, env) for atom in equation.invars]
            outside, self.callers = self.callers, (*self.callers, equation)
            env.update(zip(equation.outvars, self.walk(inner, consts, inputs, scope), strict=True))
            self.callers = outside
            return
        # What x reaches, not only what is explained of it: both programs have the same turns.
        reached = moves or any(env[v] in self.from_x for v in variables(equation.invars))
        if name == "scan" and reached and self.is_tower(equation, env):
            self.write_out(equation, env, scope)
            return
        operands = tuple(
            Scalar(atom.val) if isinstance(atom, Literal) else env[atom] for atom in equation.invars
        )
        inputs = tuple(env[v] for v in variables(equation.invars))
        bodies = ()
        if kind is None:
            flags = [isinstance(o, Value) and o in self.depends for o in operands]
            callers = (*self.callers, equation)
            bodies = _bodies(equation, flags, self.flat, callers, self.plain)
        kept = read_results(equation)
        env.update((variable, self.new(variable.aval, moves)) for variable in kept)
        outputs = tuple(env[v] for v in kept)
        for known in (self.from_x, self.from_params) if self.towers else ():
            if not known.isdisjoint(inputs):
                known.update(outputs)
        if name == "name":  # the user's own `checkpoint_name`
            self.tags.append((equation.params["name"], "", outputs[0]))
        self.nodes.append(
            Node(
                kind or name,
                operands,
                inputs,
                outputs,
                equation,
                scope,
                bodies=bodies,
                callers=self.callers,
                bound=Bound(equation),
            )
        )

    def is_log_sum(self, equation: Any, env: dict, scope: tuple) -> bool:
        """Adds the nodes of `jnp.logaddexp`, and of a term less one, as of a whole log-sum-exp.

        So that rules know it: what it takes off against overflow has no share.
        """
        name = equation.primitive.name
        if name in ("slice", "squeeze"):
            key = name, str(equation.params), self.first(env[equation.invars[0]])
            later = len(self.avals)
            self.slices[later] = self.slices.setdefault(key, later)  # what comes next
            return False
        if name == "custom_jvp_call":
            terms = [self.value(atom, env) for atom in equation.invars]
            alike = len({self.avals[v].shape for v in terms}) == 1
            if not alike or not self.depends.issuperset(terms) or not is_logaddexp(equation):
                return False
            out = lambda *a: jax.nn.logsumexp(jnp.stack(a), 0)
            (made,) = self.apply(out, terms, [self.avals[v] for v in terms], scope)
            every = [self.log_sums.get(v, (self.first(v),)) for v in terms]
            self.log_sums[made] = tuple(v for values in every for v in values)
        elif name == "sub" and all(not isinstance(a, Literal) for a in equation.invars):
            term, whole = (env[a] for a in equation.invars)
            term, terms = self.first(term), self.log_sums.get(whole, ())
            if terms.count(term) != 1:
                return False
            at = terms.index(term)
            out = lambda *a: jax.nn.log_softmax(jnp.stack(a), 0)[at]
            (made,) = self.apply(out, terms, [self.avals[v] for v in terms], scope)
        else:
            return False
        env[equation.outvars[0]] = made
        return True

    def first(self, value: Value) -> Value:
        """The slice that was written first of those alike."""
        return self.slices.get(value, value)

    def is_search(self, equation: Any, env: dict, scope: tuple) -> bool:
        """Adds the nodes of `jnp.searchsorted`: how many numbers are below each, or equal it."""
        side = searched(equation)
        if side is None:
            return False
        below = jnp.less if side == "left" else jnp.less_equal
        dtype = equation.outvars[0].aval.dtype

        def count(a, v):
            a = a.reshape(*[1] * v.ndim, -1)
            return below(a, v[..., None]).sum(-1, dtype=dtype)

        given = [self.value(atom, env) for atom in equation.invars]
        made = self.apply(count, given, [self.avals[v] for v in given], scope)
        env.update(zip(equation.outvars, made, strict=True))
        return True

    def is_expanded(self, equation: Any, env: dict, scope: tuple) -> bool:
        """Adds the nodes of what computes an operation that is written with its derivative.

        `jax.lax.custom_root` is one since JAX 0.12; it was a `custom_jvp` before.
        """
        if equation.primitive.name != EXPANDED:
            return False
        expand = functools.partial(equation.primitive.to_lojax, **equation.params)
        given = [self.value(atom, env) for atom in equation.invars]
        made = self.apply(expand, given, [self.avals[v] for v in given], scope)
        env.update(zip(equation.outvars, made, strict=True))
        return True

    def is_tower(self, equation: Any, env: dict) -> bool:
        """Whether a scan goes through layers, and not through time.

        Its turns read slices of the params and nothing of x but what is carried; or the same
        params over and over, with nothing of x beside what is carried.
        """
        length = equation.params["length"]
        if not self.towers or not length or self.turns * length > MOST_TURNS:
            return False
        consts, carried, _ = scan_arity(equation)
        fixed, scanned = equation.invars[:consts], equation.invars[consts + carried :]
        is_of = lambda atom, known: not isinstance(atom, Literal) and env[atom] in known
        if any(is_of(atom, self.from_x) for atom in scanned):
            return False
        stacked = [a for a in scanned if jnp.issubdtype(a.aval.dtype, jnp.inexact)]
        if stacked:  # times and noise levels are closed over, and no stacks of kernels
            return any(is_of(a, self.from_params) or a.aval.ndim > 2 for a in stacked)
        return not any(is_of(atom, self.from_x) for atom in fixed)

    def write_out(self, equation: Any, env: dict, scope: tuple) -> None:
        """Adds the nodes of all turns of a scan, each with its number in their names."""
        consts, carried, _ = scan_arity(equation)
        length, cut = equation.params["length"], consts + carried
        inner, constants = inner_jaxpr(equation.params["jaxpr"])
        given = [self.value(atom, env) for atom in equation.invars]
        path = join_scope(scope)
        number = self.scans[path] = self.scans.get(path, -1) + 1
        outside, self.callers = self.callers, (*self.callers, equation)
        self.turns *= length
        scans = self.scans
        avals = [atom.aval for atom in equation.invars[cut:]]
        turns = range(length)
        slices = self.apply(
            lambda *xs: [jax.lax.index_in_dim(a, i, keepdims=False) for i in turns for a in xs],
            given[cut:],
            avals,
            scope,
        )
        carry, stacked, width = given[consts:cut], {}, len(avals)
        for i in reversed(turns) if equation.params["reverse"] else turns:
            nodes, tags, self.scans = len(self.nodes), len(self.tags), {}
            turn = [*given[:consts], *carry, *slices[i * width : (i + 1) * width]]
            made = self.walk(inner, constants, turn, scope)
            carry, stacked[i] = list(made[:carried]), made[carried:]
            self.nodes[nodes:], self.tags[tags:] = numbered_turn(
                self.nodes[nodes:], self.tags[tags:], scope, number, i
            )
        env.update(zip(equation.outvars[:carried], carry, strict=True))
        for k, variable in enumerate(equation.outvars[carried:]):
            if not isinstance(variable, DropVar):
                parts = [stacked[i][k] for i in turns]
                one = [jax.ShapeDtypeStruct(variable.aval.shape[1:], variable.aval.dtype)] * length
                (env[variable],) = self.apply(lambda *a: jnp.stack(a), parts, one, scope)
        self.turns //= length
        self.callers, self.scans = outside, scans

    def apply(
        self, function: Callable, values: Sequence[Value], avals: Sequence[Any], scope: tuple
    ):
        """Adds the nodes of a function of our own; returns its outputs."""
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        closed = jax.make_jaxpr(function)(*shapes)
        return self.walk(closed.jaxpr, closed.consts, values, scope)


def is_flat(program: Program) -> bool:
    """Whether nothing inside is recomputed in the backward pass, and nothing scanned."""

    def has(node):
        inside = any(map(has, node.members)) or not all(map(is_flat, node.bodies))
        return node.kind in REMAT or node.kind == "scan" or inside

    return not any(map(has, program.nodes))


def _bodies(
    equation: Any, moves: list[bool], flat: bool, callers: tuple[Any, ...], plain: bool
) -> tuple[Program, ...]:
    """Programs of the functions that a higher-order equation calls."""
    name = equation.primitive.name

    def program(inner, flags):
        return build(*inner_jaxpr(inner), flags, flat=flat, callers=callers, plain=plain)

    def looped(inner, fixed, carried, rest):
        """The body of a loop; a carried value depends if any turn makes it depend."""
        while True:
            body = program(inner, [*fixed, *carried, *rest])
            reached = [c or o in body.depends for c, o in zip(carried, body.outputs, strict=False)]
            if reached == carried:
                return body
            carried = reached

    if name in CUSTOM:
        return (program(equation.params[CUSTOM[name]], moves),)
    if name in REMAT:
        return (program(equation.params["jaxpr"], moves),)
    if name == "scan":
        consts, carry, _ = scan_arity(equation)
        cut = consts + carry
        return (looped(equation.params["jaxpr"], moves[:consts], moves[consts:cut], moves[cut:]),)
    if name == "while":
        c, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        body = looped(equation.params["body_jaxpr"], moves[c : c + b], moves[c + b :], [])
        carried = [v in body.depends for v in body.inputs[b:]]
        return program(equation.params["cond_jaxpr"], moves[:c] + carried), body
    if name == "cond":
        return tuple(program(branch, moves[1:]) for branch in equation.params["branches"])
    return ()


def evaluate(
    program: Program,
    arguments: Sequence[Any],
    replacements: dict[int, Any] | None = None,
) -> list[Any]:
    """Runs a program, with the replacements that `rewrite` planned by position of the node.

    A replacement is a function of the node's inputs, or a plan: a dict for the members of a group,
    a tuple of dicts for the bodies of a higher-order operation.
    """
    env = Tagged(program)
    env.update(program.constants)
    env.update(zip(program.inputs, arguments, strict=True))
    run_nodes(program.nodes, env, replacements or {})
    return [env[value] for value in program.outputs]


class Tagged(dict):
    """Values by number; names are put back where they are wanted, so that a rewritten function has
    the same layers."""

    def __init__(self, program: Program):
        super().__init__()
        self.names: dict[Value, list[str]] = {}
        for path, class_name, value in program.tags if are_wanted() else ():
            if class_name:
                self.names.setdefault(value, []).append(tag_name(path, class_name))

    def update(self, *args: Any) -> None:
        for value, array in dict(*args).items():
            for name in self.names.get(value, ()):
                array = checkpoint_name(array, name)
            self[value] = array


def run_nodes(nodes: Iterable[Node], env: dict[Value, Any], replacements: dict[int, Any]) -> None:
    """Evaluates nodes in order, reading and filling `env`."""
    for position, node in enumerate(nodes):
        run_node(node, env, replacements.get(position))


def run_node(node: Node, env: dict[Value, Any], replacement: Any = None) -> None:
    if replacement is None and node.members:
        replacement = {}
    if isinstance(replacement, dict):
        run_nodes(node.members, env, replacement)
        return
    values = [env[v] for v in node.inputs]
    if replacement is None:
        if node.equation.primitive.name in CUSTOM:  # a model's own rule may index what it gets
            values = [jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in values]
        outputs = node.bound(*values)
    elif isinstance(replacement, tuple):
        functions = [
            lambda *xs, body=body, plan=plan: evaluate(body, xs, plan)
            for body, plan in zip(node.bodies, replacement, strict=True)
        ]
        outputs = with_bodies(node, values, functions)
    else:
        outputs = replacement(*values)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    env.update(zip(node.outputs, outputs, strict=True))


def arguments_of(node: Node, values: Mapping[Value, Any]) -> list[Any]:
    """What a node's equation is bound to: its own numbers, and of values the rest."""
    return [
        jnp.asarray(literal_value(atom)) if isinstance(operand, Scalar) else values[operand]
        for operand, atom in zip(node.operands, equation_of(node).invars, strict=True)
    ]


def with_bodies(
    node: Node, values: Sequence[Any], functions: Sequence[Callable], again: bool = False
) -> list[Any]:
    """A higher-order operation bound anew around other bodies; with `again`, of a scan, each turn
    is made again on the way back."""
    equation, name = node.equation, node.equation.primitive.name
    arguments = arguments_of(node, dict(zip(node.inputs, values, strict=True)))
    if name in CUSTOM:  # the custom derivative goes: what is inside has another one now
        outputs = functions[0](*arguments)
    elif name in REMAT:
        outputs = jax.checkpoint(
            lambda *xs: functions[0](*xs),
            prevent_cse=equation.params["prevent_cse"],
            policy=equation.params["policy"],
        )(*arguments)
    elif name == "scan":
        outputs = _scan(equation, functions[0], arguments, again)
    elif name == "while":
        c, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        head, body = functions
        outputs = jax.lax.while_loop(
            lambda carry: head(*arguments[:c], *carry)[0],
            lambda carry: body(*arguments[c : c + b], *carry),
            list(arguments[c + b :]),
        )
    else:
        outputs = jax.lax.switch(arguments[0], functions, *arguments[1:])
    pairs = zip(equation.outvars, outputs, strict=True)
    return [o for v, o in pairs if not isinstance(v, DropVar)]


def _scan(equation: Any, function: Callable, arguments: Sequence[Any], again: bool) -> list[Any]:
    consts, carried, _ = scan_arity(equation)
    cut = consts + carried

    def step(carry, xs):
        outputs = function(*arguments[:consts], *carry, *xs)
        return list(outputs[:carried]), list(outputs[carried:])

    p = equation.params
    last, stacked = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False) if again else step,
        list(arguments[consts:cut]),
        list(arguments[cut:]),
        length=p["length"],
        reverse=p["reverse"],
        unroll=p["unroll"],
    )
    return [*last, *stacked]


def opened(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes, with the members of groups that have no name in their place.

    Only for rules is such a group one function of one number; who lists or cuts sees through it.
    """
    for node in nodes:
        if node.kind == "pointwise":
            yield from opened(node.members)
        else:
            yield node


def equation_of(node: Node) -> Any:
    """A node's equation; that of a group is its last member's."""
    while node.equation is None:
        node = node.members[-1]
    return node.equation
