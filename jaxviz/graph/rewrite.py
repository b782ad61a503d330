"""The same function with some operations replaced by others: `rewrite` and the rules it takes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.made import made
from jaxviz.calls.public import public
from jaxviz.graph.axes import Axes, axes
from jaxviz.graph.entropies import with_own_logarithm
from jaxviz.graph.equations import bind_resized
from jaxviz.graph.exponentials import OUT, SHIFT, Part, parts
from jaxviz.graph.facts import fact
from jaxviz.graph.fold import LINEAR, fold
from jaxviz.graph.held import hold
from jaxviz.graph.interpreter import CUSTOM, Node, Program, Scalar, evaluate, run_node
from jaxviz.graph.kinds import ACTIVATION_KINDS, NORM_KINDS, RELU_KINDS, primitive_of
from jaxviz.graph.lines import source
from jaxviz.graph.roles import inner, leaves, roles, start
from jaxviz.graph.rows import LISTED, operation_names
from jaxviz.graph.signs import nonnegative
from jaxviz.graph.stopped import not_stopped
from jaxviz.graph.towers import turns_of, without_turns
from jaxviz.graph.trace import Traced, model
from jaxviz.graph.varying import check_numbers


class Op(NamedTuple):
    """An operation as a rule sees it.

    Attributes:
      kind: What it is in the field's terms: "conv", "dense", "relu", "max_pool", "batch_norm",
        "softmax", "add" (of two activations), "bias", ...; else the primitive's name.
      primitive: The JAX primitive, or the kind again for a recognised group.
      name: Path of the layer it belongs to, or its own name where it is a layer (`relu_0`).
      operands: For each operand in order, the position among `inputs`, or a literal's value in a
        `Scalar`. A group's operands are its inputs.
      inputs: Shapes and dtypes of its array inputs, each once.
      outputs: Shapes and dtypes of its outputs.
      depends: For each input, whether the explained input reaches it (else only params do).
      options: The equation's parameters (strides, padding, ...); empty for a group.
      evaluate: The operation as it stands: `(*inputs) -> outputs`, one array where it has one.
      resized: The same for inputs of other sizes, of an operation that acts on each place alone.
      node: Where it comes from.
      first: Whether it is a convolution or dense layer that no other one comes before.
      members: Of a group, each operation with where its inputs are found: their places in the list
        of the group's inputs followed by the outputs of the members before.
      makers: For each input, the operation that made it, where `lift` has come by it; else None.
      given: In `lift`, what it works on: a bundle, or an array that stays, for each input.
      roles: For rule sets that are `functional`, what each input is: "" (no relevance can reach it:
        params, and what was chosen by a comparison), "signal", "activation", "gate", "sigmoid" (a
        gate as well) or "divisor".
      channel_axis: For rule sets that are `placed`, the axis of the output that holds channels,
        where a convolution or dense layer put them; else the last.
      nonnegative: For rule sets that are `functional`, of each input whether it is known never to
        be negative, as after a ReLU.
      stopped: Whether a `stop_gradient` is on every way from it to the outputs.
    """

    kind: str
    primitive: str
    name: str
    operands: tuple[int | Scalar, ...]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    depends: tuple[bool, ...]
    options: Mapping[str, Any]
    evaluate: Callable
    resized: Callable
    node: Node
    first: bool = False
    members: tuple[tuple["Op", tuple[int, ...]], ...] = ()
    makers: tuple["Op | None", ...] = ()
    given: tuple[Any, ...] = ()
    roles: tuple[str, ...] = ()
    channel_axis: int = -1
    nonnegative: tuple[bool, ...] = ()
    stopped: bool = False

    @property
    def source(self) -> str:
        """The user's `file:line` that made it."""
        return source(self.node)


_KINDS = LISTED | {"add", "sub", "mul", "div", "bias", "sum", "max", "min", "first", "activation"}

Rule = Callable[[Op], Callable | None]


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """Which operations to replace, and with what.

    Attributes:
      name: Said in errors.
      table: From a layer's name (if that is no kind; `blocks/mlp` for all turns of a scan over
        layers, `blocks[2]/mlp` for one), "first" (convolutions and dense layers with
        none before them), a kind, "activation" (any pointwise function of one value) or a primitive
        to a rule, looked up in this order. A rule gets an `Op` and answers with a replacement,
        `(*inputs) -> outputs` of the same shapes, or None to leave it. A group that is left is
        offered member by member.
      default: The rule for operations on floats that depend on the input and are in no row of
        the table; None leaves them. `refuse` is one.
      into_custom: Whether to look inside functions with a derivative of their own (`custom_jvp`,
        `custom_vjp`); a match inside replaces that derivative by the one of the rewritten body.
      named: Whether rules need layer names, which take a little time to find.
      folded: Whether a convolution or dense layer comes as one operation with its bias and the
        scale and shift (batch norm) right after it, its own name standing for all.
      functional: Whether the rules explain the function as it is computed, whatever derivative the
        model gives it: `custom_jvp` and `custom_vjp` are always taken apart, operations come with
        the `roles` of their inputs, and what belongs to a softmax or log-sum-exp that is no group
        comes under the kinds of `jaxviz.graph.exponentials`.
      placed: Whether operations outside of loops come with their `channel_axis`.
      derivative: Of rules that are `functional`, whether they are of the derivative after all:
        `custom_jvp` and `custom_vjp` with nothing replaced inside keep theirs, and outputs that
        depend on the input through comparisons alone are not refused.
      by_primitive: Whether all rows are for primitives, wherever these stand, so that nothing that
        is recognised by the model's numbers changes what is made: such rules run where no number
        can be read, inside `shard_map` with its checks.
    """

    name: str
    table: Any
    default: Rule | None = None
    into_custom: bool = False
    named: bool = True
    folded: bool = False
    functional: bool = False
    placed: bool = False
    derivative: bool = False
    by_primitive: bool = False

    def __post_init__(self):
        if isinstance(self.table, Mapping):
            object.__setattr__(self, "table", tuple(self.table.items()))
        object.__setattr__(self, "_rules", dict(self.table))

    @property
    def by_turn(self) -> bool:
        """Whether a rule is for one turn of a scan over layers, which is written out for it."""
        return any(map(turns_of, self._rules))  # type: ignore[attr-defined]

    @property
    def traced(self) -> bool:
        """Whether a rule holds a number under trace: what is made of it is kept nowhere."""
        rules = [*self._rules.values(), self.default]  # type: ignore[attr-defined]
        return any(getattr(rule, "traced", False) for rule in rules)

    def find(self, op: Op) -> tuple[bool, Callable | None]:
        """Whether the table has a row for an operation, and what its rule answers."""
        rule = self.rule(op.kind, op.primitive, op.name, op.first)
        return rule is not None, rule(op) if rule is not None else None

    def rule(self, kind: str, primitive: str, name: str, first: bool) -> Rule | None:
        """The rule for an operation, by what can be said of it before it is looked at."""
        table: dict[str, Rule] = self._rules  # type: ignore[attr-defined]
        # A layer that somebody called "conv" has no row of its own by that name.
        if name not in _KINDS and name in table:
            return table[name]
        if self.by_turn and turns_of(name) and without_turns(name) in table:
            return table[without_turns(name)]
        if first and "first" in table:
            return table["first"]
        if kind in table:
            return table[kind]
        if "activation" in table and kind in ACTIVATION_KINDS:
            return table["activation"]
        return table.get(primitive)


def refuse(op: Op) -> None:
    """The default rule of sets that must handle everything: raises, naming the operation."""
    shapes = ", ".join(str(a.shape) for a in op.inputs)
    raise NotImplementedError(
        f"no rule for the operation {op.kind!r} of shapes {shapes} at {op.source} "
        f"(layer {op.name!r}). Write one, `rule(op) -> replacement`, under its kind in the table, "
        "or explain a part of the net without it (`jaxviz.split`)."
    )


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """`rewrite`'s result: a function equal to others of the same model and rules."""

    apply_fn: Callable
    rules: RuleSet

    @made(lambda self: (self.rules.name, "params and x must be what apply_fn takes"))
    def __call__(self, params: Any, x: Any) -> Any:
        apply_fn, params = hold(self.rules.name, self.apply_fn, params)
        whole = model(apply_fn, params, x)
        if self.rules.functional and not self.rules.derivative:
            traced = whole.plain(flat=self.rules.by_turn)
        else:
            traced = whole.flat if self.rules.by_turn else whole.as_written
        if not self.rules.by_primitive:
            check_numbers(self.rules.name, traced.program)
        program, names = _prepared(traced, self.rules.named, self.rules.folded)
        after = program.inputs if getattr(self.apply_fn, "is_tail", False) else ()
        known = axes(traced) if self.rules.placed else None
        plan = replacements(program, self.rules, names, frozenset(after), known=known)
        if not plan:
            return whole(params, x)
        outputs = evaluate(program, jax.tree.leaves((params, x)), plan)
        return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs)


@fact
def _prepared(traced: Traced, named: bool, folded: bool) -> tuple[Program, Mapping[int, str]]:
    """The program as rules ask for it, with the names of its nodes."""
    program, names = traced.program, operation_names(traced) if named else {}
    return fold(program, names) if folded else (program, names)


@public()
def rewrite(apply_fn: Callable, rules: RuleSet) -> Callable:
    """The same function with the operations that `rules` match replaced.

    The model is traced to its jaxpr, and every operation, or recognised group of them, that a rule
    answers for is evaluated by the rule's replacement; the others are bound as they stand, inside
    `jit`, `remat`, `scan`, `while` and `cond` too. The result is an ordinary function: it can be
    jitted, vmapped, differentiated, sharded and rewritten again.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      rules: A `RuleSet`, as in `jaxviz.rules`.

    Returns:
      `(params, x) -> outputs`. Equal (`==`, `hash`) for equal arguments, so compiled once. The
      model is traced the first time for these shapes; at run time it costs nothing.

    Raises:
      NotImplementedError: When called, if a rule refuses an operation; the message names it with
        the user's file and line.

    Example:
      >>> double = RuleSet("double", {"tanh": lambda op: lambda x: 2 * op.evaluate(x)})
      >>> f = rewrite(lambda params, x: jnp.tanh(x) + 1, double)
      >>> f(None, jnp.zeros((1, 2))).tolist(), bool(f(None, jnp.ones((1, 1)))[0, 0] > 2.5)
      ([[1.0, 1.0]], True)
    """
    if not callable(apply_fn):
        raise TypeError(
            "rewrite: apply_fn must be a function (params, x) -> outputs; got "
            f"{type(apply_fn).__name__}. Pass `module.apply`, say."
        )
    if not isinstance(rules, RuleSet):
        raise TypeError(
            f"rewrite: rules must be a RuleSet; got {type(rules).__name__}. Take one of "
            'jaxviz.rules, or make one: RuleSet("mine", {"relu": rule}).'
        )
    return Rewritten(apply_fn, rules)


def replacements(
    program: Program,
    rules: RuleSet,
    names: Mapping[int, str],
    after: frozenset = frozenset(),
    given: Mapping[int, str] | None = None,
    known: Axes | None = None,
) -> dict[int, Any]:
    """What to do at each node, by position; nodes left alone are not in it.

    `after` are the inputs that a linear layer comes before, `given` the roles of the inputs, which
    are signals unless told, `known` the axes of the program's values.
    """
    mixed = set(after)
    refused = None if rules.derivative else rules.name
    flow = _flow(program, given, refused) if rules.functional else None
    positive = nonnegative(program) if rules.functional else frozenset()

    def node_plan(node: Node) -> Any:
        moving = [v in (program.depends if flow is None else flow.roles) for v in node.inputs]
        if not any(moving):
            return None
        first = node.kind in LINEAR and not mixed.intersection(node.inputs)
        if node.kind in LINEAR or not mixed.isdisjoint(node.inputs):
            mixed.update(node.outputs)

        def op():  # most operations have no rule, and are never made into one
            made = make_op(program, node, names, first, flow)
            if rules.functional:
                made = made._replace(nonnegative=tuple(v in positive for v in node.inputs))
            channels = known.channels(node.outputs[0]) if known and node.outputs else None
            return made if channels is None else made._replace(channel_axis=channels)

        part = None if flow is None else flow.parts.get(id(node))
        kind = node.kind if part is None else part.kind
        rule = rules.rule(kind, primitive_of(node), names.get(id(node), ""), first)
        replacement = None if rule is None else rule(op())
        if replacement is not None:
            return replacement
        if node.members:
            return nodes_plan(node.members, _pieces(program, node)) or None
        if flow is not None and node.kind == "while":
            raise NotImplementedError(
                f"{rules.name}: the loop at {source(node)} turns as often as its numbers say, and "
                "nothing is handed back through such a loop. Write it as a scan, or a fori_loop of "
                "a fixed number of turns."
            )
        custom = bool(node.bodies) and primitive_of(node) in CUSTOM
        if node.bodies and (rules.into_custom or not custom):
            told = [None] * len(node.bodies) if flow is None else inner(node, flow.roles)
            bodies = tuple(
                replacements(body, rules, names, inner_after(node, body, mixed), roles)
                for body, roles in zip(node.bodies, told, strict=True)
            )
            if any(
                v in program.depends and _has_linear(b) for b in node.bodies for v in node.inputs
            ):
                mixed.update(node.outputs)
            apart = custom and rules.functional and not rules.derivative
            return bodies if apart or any(bodies) else None
        if rule is not None or rules.default is None or node.bodies:
            return None
        if not any(jnp.issubdtype(program.avals[v].dtype, jnp.inexact) for v in node.outputs):
            return None
        try:
            return rules.default(op())
        except NotImplementedError as error:
            raise NotImplementedError(f"{rules.name}: {error}") from None

    def nodes_plan(nodes, pieces=frozenset()) -> dict[int, Any]:
        plans = ((i, node_plan(node)) for i, node in enumerate(nodes) if i not in pieces)
        return {i: plan for i, plan in plans if plan is not None}

    return nodes_plan(program.nodes)


def _pieces(program: Program, group: Node) -> frozenset[int]:
    """Members of a group that would be a ReLU elsewhere and are a piece of another function here.

    hard_swish has a clamp inside, CELU and a norm a maximum with 0: they let through what a ReLU
    would not, on a way around it. What was written as `jax.nn.relu` is one wherever it stands, but
    in a function with a name of its own.
    """
    named = group.kind in ACTIVATION_KINDS | NORM_KINDS and group.kind != "pointwise"

    def passed(position: int) -> bool:
        reached = {v for v in group.inputs if v in program.depends}
        for i, member in enumerate(group.members):
            if i != position and reached.intersection(member.inputs):
                reached.update(member.outputs)
        return not reached.isdisjoint(group.outputs)

    return frozenset(
        i
        for i, member in enumerate(group.members)
        if member.kind in RELU_KINDS
        and (
            named
            or (
                group.kind == "pointwise"
                and not member.bodies
                and primitive_of(member) not in CUSTOM
                and passed(i)
            )
        )
    )


class _Flow(NamedTuple):
    roles: Mapping[int, str]
    parts: Mapping[int, Part]


def _flow(program: Program, given: Mapping[int, str] | None, who: str | None) -> _Flow:
    """The roles of a program's values and the parts of its operations."""
    start_ = start(program) if given is None else given
    found = roles(program, start_)
    part = parts(program, found)
    for i, p in with_own_logarithm(program).items():
        # p log p is a function of the logarithm alone, which has all of it.
        part.setdefault(i, Part(SHIFT, p, "divisor"))
    gates = [
        v
        for n in leaves(program.nodes)
        if id(n) in part
        for v in n.outputs
        if part[id(n)].kind == OUT
    ]
    if gates:
        found = roles(program, start_, frozenset(gates))
    if who and given is None and start_ and not any(v in found for v in program.outputs):
        if any(v in program.depends for v in program.outputs):
            raise NotImplementedError(
                f"{who}: the outputs depend on the input only through comparisons or integers, and "
                "no relevance goes back through a choice. Explain a part of the net that ends "
                "before them (`jaxviz.split`)."
            )
    return _Flow(found, part)


def inner_after(node: Node, body: Program, mixed: set) -> frozenset:
    """Of a body's inputs, those that a linear layer comes before; all of them in a loop."""
    if node.kind in ("scan", "while"):
        return frozenset(body.inputs)
    given = node.operands[len(node.operands) - len(body.inputs) :]  # a branch's index is left out
    return frozenset(v for v, o in zip(body.inputs, given, strict=True) if o in mixed)


def _has_linear(program: Program) -> bool:
    return any(n.kind in LINEAR or any(map(_has_linear, n.bodies)) for n in program.nodes)


def make_op(
    program: Program,
    node: Node,
    names: Mapping[int, str],
    first: bool = False,
    flow: _Flow | None = None,
) -> Op:
    """A node as a rule sees it."""

    def aval(value):
        return jax.ShapeDtypeStruct(program.avals[value].shape, program.avals[value].dtype)

    def as_it_stands(*inputs):
        env = dict(zip(node.inputs, inputs, strict=True))
        run_node(node, env)
        outputs = [env[v] for v in node.outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    where = {value: i for i, value in enumerate(node.inputs)}
    places, members = dict(where), []
    for member in node.members:
        part = make_op(program, member, names, flow=flow)
        members.append((part, tuple(places[v] for v in member.inputs)))
        places.update((v, len(places) + i) for i, v in enumerate(member.outputs))
    own = None if flow is None else flow.parts.get(id(node))
    told = () if flow is None else tuple(flow.roles.get(v, "") for v in node.inputs)
    if own is not None and own.value is not None:
        told = tuple(
            own.role if v == own.value else r for v, r in zip(node.inputs, told, strict=True)
        )
    return Op(
        kind=node.kind if own is None else own.kind,
        primitive=primitive_of(node),
        stopped=not_stopped(program).isdisjoint(node.outputs),
        name=names.get(id(node), ""),
        operands=tuple(o if isinstance(o, Scalar) else where[o] for o in node.operands),
        inputs=tuple(aval(v) for v in node.inputs),
        outputs=tuple(aval(v) for v in node.outputs),
        depends=tuple(v in program.depends for v in node.inputs),
        options={} if node.equation is None else node.equation.params,
        evaluate=as_it_stands,
        resized=lambda *inputs: bind_resized(node.equation, inputs),
        node=node,
        first=first,
        members=tuple(members),
        roles=told,
    )
