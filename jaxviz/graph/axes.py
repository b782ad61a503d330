"""What the axes of a value are: the batch, the channels, or an axis of the input, moved on.

One walk over a program follows each axis of `x` through the operations: `jax.vmap` may put the
batch anywhere, and a convolution says by its dimension numbers which axis holds channels. What no
rule follows is not known (None), never guessed.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxviz.graph.activations import NAMED
from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import (
    CUSTOM,
    REMAT,
    Node,
    Program,
    Scalar,
    Value,
    equation_of,
    kept_positions,
    scan_arity,
)

BATCH, ROWS, CHANNELS = "batch", "rows", "channels"  # ROWS: the batch and more in one axis
Label = Any  # one of those, (leaf, axis) of x, Tokens, or None
Labels = tuple[Label, ...]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The label of an axis that has several axes of x in a row, as a transformer's tokens.

    Attributes:
      axes: Those, as (leaf, axis), in order.
      sizes: How many places each has.
      before: Places of the joint axis ahead of theirs, such as a class token.
      after: Places behind.
    """

    axes: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    before: int = 0
    after: int = 0


class Axes(NamedTuple):
    """The axes of a program's values.

    Attributes:
      labels: By value, a label for each axis; values that `x` does not reach are not in it, and
        None stands for those made by an operation without a rule.
      fed: For each leaf of `x` its axes that convolutions take for channels.
      count: The number of examples.
    """

    labels: dict[Value, Labels | None]
    fed: dict[int, set[int]]
    count: int

    def batch(self, value: Value) -> int | None:
        """The axis of the batch, or of rows that are a multiple of it; None where there is none."""
        found = self.labels.get(value)
        for label in (BATCH, ROWS):
            if found and label in found:
                return found.index(label)
        return None

    def has_none(self, value: Value) -> bool:
        """Whether the value is surely none of a batch; one example alone may be squeezed away."""
        if value not in self.labels:  # made of params alone
            return True
        known = self.labels[value] is not None
        return known and self.batch(value) is None and self.count > 1

    def channels(self, value: Value) -> int | None:
        """The axis that a convolution or dense layer put the channels on, or None."""
        found = self.labels.get(value)
        if not found or CHANNELS not in found:
            return None
        return len(found) - 1 - found[::-1].index(CHANNELS)

    def tokens(self, value: Value) -> tuple[int, Tokens] | None:
        """The axis that has several axes of x in a row, and what is known of it; None for none."""
        found = self.labels.get(value) or ()
        joint = [(a, label) for a, label in enumerate(found) if isinstance(label, Tokens)]
        return joint[0] if len(joint) == 1 else None

    def input_channels(self, leaf: int = 0) -> int | None:
        """The axis of a leaf of `x` that every convolution it reaches takes for channels."""
        found = self.fed.get(leaf, set())
        return min(found) if len(found) == 1 else None


@fact
def axes(traced: Any) -> Axes:
    """The axes of all values of a traced model (`trace.trace`)."""
    labels: dict[Value, Labels | None] = {}
    leaves = jax.tree.leaves(traced.x)
    for leaf, value in enumerate(leaves):
        rank = len(traced.program.avals[value].shape)
        labels[value] = tuple((leaf, a) if a else BATCH for a in range(rank))
    shapes = [traced.program.avals[v].shape for v in leaves]
    count = shapes[0][0] if shapes and shapes[0] else 0
    walk = _Walk(count, {leaf: set() for leaf in range(len(leaves))})
    walk.run(traced.program, traced.program.nodes, labels)
    return Axes(labels, walk.fed, count)


@fact
def apart(traced: Any) -> bool:
    """Whether no example has a part in the results of another: surely, or else False.

    One axis of each value on the way is then the batch's, and nothing moves along it. That an
    operation counts the examples, and treats them by their number, is not seen.
    """
    known = axes(traced)
    values = jax.tree.leaves(traced.x)
    walk = _Apart(known.count, {leaf: set() for leaf in range(len(values))})
    walk.run(traced.program, traced.program.nodes, {v: known.labels[v] for v in values})
    return known.count == 1 or walk.found


class _Walk:
    """The walk: how many examples there are, and what convolutions have said of `x`."""

    def __init__(self, count: int, fed: dict[int, set[int]]):
        self.count, self.fed = count, fed

    def run(self, program: Program, nodes: Sequence[Node], env: dict[Value, Any]) -> None:
        """Labels what each node makes."""
        for node in nodes:
            if not any(v in env for v in node.inputs):
                continue
            if node.members:
                self.run(program, node.members, env)
                continue
            shapes = [program.avals[v].shape for v in node.outputs]
            if any(v in env and env[v] is None for v in node.inputs):
                found = [None] * len(shapes)
            elif node.bodies:
                found = self.bodies(program, node, env)
            else:
                given = [_given(program, o, env) for o in node.operands]
                rule = _RULES.get(equation_of(node).primitive.name, _alike)
                found = [rule(self, equation_of(node).params, given, s) for s in shapes]
            env.update(zip(node.outputs, found, strict=True))

    def bodies(self, program: Program, node: Node, env: dict[Value, Any]) -> list:
        """Labels of the outputs of an operation that calls functions."""
        name, equation = equation_of(node).primitive.name, equation_of(node)
        kept = kept_positions(equation)
        given = [env.get(o, ()) if not isinstance(o, Scalar) else () for o in node.operands]
        if name == "scan":
            consts, carried, _ = scan_arity(equation)
            rest = [labels[1:] if labels else labels for labels in given[consts + carried :]]
            carry = given[consts : consts + carried]
            made = self.turns(node.bodies[0], given[:consts], carry, rest)
            made = [*made[:carried], *((None, *m) if m is not None else m for m in made[carried:])]
        elif name == "while":
            c, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
            made = self.turns(node.bodies[1], given[c : c + b], given[c + b :], [])
            carry = [m if m is None or any(m) else () for m in made]
            self.call(node.bodies[0], [*given[:c], *carry])  # what is done there counts, too
        elif name == "cond":
            made = _agreed([self.call(body, given[1:]) for body in node.bodies])
        elif name in CUSTOM or name in REMAT:
            made = self.call(node.bodies[0], given)
        else:
            return [None] * len(node.outputs)
        return [made[i] for i in kept]

    def call(self, body: Program, given: Sequence[Any]) -> list:
        """Labels of a function's outputs, given those of its inputs; () is of no label."""
        inside = {v: labels for v, labels in zip(body.inputs, given, strict=True) if labels != ()}
        self.run(body, body.nodes, inside)
        return [_filled(inside, body, v) for v in body.outputs]

    def turns(self, body: Program, fixed: list, carry: list, rest: list) -> list:
        """Labels of a loop's outputs: what is carried keeps those that no turn changes."""
        made = self.call(body, [*fixed, *carry, *rest])
        grown = [m if g == () else g for g, m in zip(carry, made, strict=False)]
        made = self.call(body, [*fixed, *grown, *rest])
        same = _agreed([grown, made[: len(grown)]])
        return [*same, *made[len(grown) :]]


class _Apart(_Walk):
    """The walk, which looks at each value for an example's way into another."""

    found = True

    def run(self, program: Program, nodes: Sequence[Node], env: dict[Value, Any]) -> None:
        super().run(program, nodes, env)
        for node in nodes:
            reached = [v in env for v in node.inputs]
            if node.members or not any(reached):
                continue
            made = [env[v] for v in node.outputs]
            single = all(
                labels is not None and sum(a in (BATCH, ROWS) for a in labels) == 1
                for labels in made
            )
            primitive, params = equation_of(node).primitive.name, equation_of(node).params
            if not single:
                self.found = False
            elif not node.bodies and node.kind not in NAMED:
                given = [_given(program, o, env)[1] for o in node.operands]
                self.found &= not _moves_along(primitive, params, given, made, self.count)


def _moves_along(primitive: str, params: dict, given: list, made: list, count: int) -> bool:
    """Whether an operation takes places of the batch's axis for one another, or may do so."""
    if primitive not in _RULES and primitive not in _PLACE_BY_PLACE:
        return True
    batches = [_batch_of(labels) for labels in given]
    batch = _batch_of(made[0])
    if primitive == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        if batches[0] is None or given[1]:  # kernels made of x
            return True
        alone = batches[0] == numbers.lhs_spec[0] and params["batch_group_count"] == 1
        groups = params["feature_group_count"] % max(1, count) == 0
        return not alone and not (batches[0] == numbers.lhs_spec[1] and groups)
    if primitive == "dot_general":
        contracted, _ = params["dimension_numbers"]
        return any(b in axes for b, axes in zip(batches, contracted, strict=True))
    if primitive == "gather":
        numbers = params["dimension_numbers"]
        return batches[0] is not None and batches[0] in numbers.start_index_map
    if primitive.startswith("scatter"):
        numbers = params["dimension_numbers"]
        looked_up = numbers.scatter_dims_to_operand_dims
        # Without the batch in what is changed, rows of the updates would be put together there.
        return batches[0] is None or batches[0] in looked_up
    if primitive in ("rev", "sort", *_CUMULATIVE):
        told = params.get("dimensions", params.get("dimension", params.get("axis")))
        return batch in (told if isinstance(told, tuple) else (told,))
    if "window_dimensions" in params:
        return batch is not None and params["window_dimensions"][batch] > 1
    if primitive == "pad":
        return batch is not None and tuple(params["padding_config"][batch]) != (0, 0, 0)
    return primitive in ("fft", "top_k")  # along the last axes, which few batches are


def _batch_of(labels: Labels | None) -> int | None:
    return next((a for a, label in enumerate(labels or ()) if label in (BATCH, ROWS)), None)


# What gives each place a number made of the numbers at that place alone. Proof for `apart`, where
# all else without a rule may do anything with the examples.
_PLACE_BY_PLACE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e"
    " bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos"
    " cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag"
    " integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not"
    " or polygamma population_count pow real reduce_precision regularized_incomplete_beta rem"
    " round rsqrt shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square"
    " stop_gradient sub tan tanh xor zeta".split()
)
_CUMULATIVE = ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum")


def _given(program, operand, env):
    """The shape and labels of an operand; None for one that `x` does not reach."""
    if isinstance(operand, Scalar):
        return (), None
    return program.avals[operand].shape, env.get(operand)


def _filled(env, program, value):
    return env.get(value, (None,) * len(program.avals[value].shape))


def _agreed(found: list[list]) -> list:
    """For each output the labels that all ways to make it agree on."""

    def one(ways):
        if any(labels is None for labels in ways):
            return None
        return tuple(
            labels[0] if len(set(labels)) == 1 else None for labels in zip(*ways, strict=True)
        )

    return [one(ways) for ways in zip(*found, strict=True)]


def _merged(ways: Sequence[Labels], rank: int) -> Labels:
    """Of arrays that are combined place by place: each axis is what any of them says it is."""
    order = {BATCH: 0, ROWS: 1, CHANNELS: 2, None: 4}
    found = []
    for a in range(rank):
        said = [labels[a] for labels in ways]
        label = min(said, key=lambda label: order.get(label, 3), default=None)
        joint = {label for label in said if isinstance(label, Tokens)}
        found.append(None if len(joint) > 1 else label)
    return tuple(found)


def _alike(walk, params, given, out):
    """An operation place by place, axes of one place and numbers stretched; else not known."""
    ways = []
    for shape, labels in given:
        if shape and not _stretches(shape, out):
            return None
        if shape and labels:
            pairs = zip(labels, shape, out, strict=True)
            ways.append(tuple(a if n == m else None for a, n, m in pairs))
    return _merged(ways, len(out))


def _stretches(shape: tuple, out: tuple) -> bool:
    return len(shape) == len(out) and all(n in (1, m) for n, m in zip(shape, out, strict=True))


def _unknown(walk, params, given, out):
    return None


def _same_rank(walk, params, given, out):
    """Axes keep their places, and may change their lengths: cut, padded, pooled, joined."""
    ways = []
    for shape, labels in given:
        if labels and len(shape) == len(out):
            counted = [a in (BATCH, ROWS) or isinstance(a, Tokens) for a in labels]
            sides = zip(labels, counted, shape, out, strict=True)
            ways.append(tuple(None if of_all and n != m else a for a, of_all, n, m in sides))
    return _merged(ways, len(out))


def _moved(walk, params, given, out):
    """As `_same_rank`, but which place of a joint axis is which is not known any more."""
    labels = _same_rank(walk, params, given, out)
    return tuple(None if isinstance(label, Tokens) else label for label in labels)


def _concatenate(walk, params, given, out):
    found, at = list(_same_rank(walk, params, given, out)), params["dimension"]
    lengths = [shape[at] for shape, _ in given]
    joint = [i for i, (_, a) in enumerate(given) if a and isinstance(a[at], Tokens)]
    if len(joint) == 1:
        (i,) = joint
        label = given[i][1][at]
        before, after = sum(lengths[:i]), sum(lengths[i + 1 :])
        found[at] = dataclasses.replace(
            label, before=label.before + before, after=label.after + after
        )
    return tuple(found)


def _slice(walk, params, given, out):
    found = list(_same_rank(walk, params, given, out))
    shape, labels = given[0]
    for a, label in enumerate(labels):
        first, end = params["start_indices"][a], params["limit_indices"][a]
        if isinstance(label, Tokens) and (params["strides"] or [1] * len(shape))[a] == 1:
            before, after = label.before - first, label.after - (shape[a] - end)
            whole = before >= 0 and after >= 0
            found[a] = dataclasses.replace(label, before=before, after=after) if whole else None
    return tuple(found)


def _transpose(walk, params, given, out):
    return tuple(given[0][1][a] for a in params["permutation"])


def _broadcast(walk, params, given, out):
    (shape, labels), found = given[0], [None] * len(out)
    for n, label, a in zip(shape, labels, params["broadcast_dimensions"], strict=True):
        found[a] = label if n == out[a] else None
    return tuple(found)


def _squeeze(walk, params, given, out):
    gone = params["dimensions"]
    return tuple(label for a, label in enumerate(given[0][1]) if a not in gone)


def _reduce(walk, params, given, out):
    labels = next(a for _, a in given if a)
    gone = params.get("axes", params.get("dimensions", ()))
    kept = tuple(label for a, label in enumerate(labels) if a not in gone)
    return kept if len(kept) == len(out) else None


def _stack(walk, params, given, out):
    if "axis" not in params:
        return None
    inner = [labels for _, labels in given if labels]
    merged = _merged(inner, len(out) - 1)
    at = params["axis"] % len(out)
    return (*merged[:at], None, *merged[at:])


def _reshape(walk, params, given, out):
    shape, labels = given[0]
    if params.get("dimensions") is not None:
        return None
    return _regrouped(walk.count, shape, labels, out)


def _regrouped(count: int, before: tuple, labels: Labels, after: tuple) -> Labels:
    """Labels after a reshape: axes stay, join or divide; axes of one place come and go."""
    found: list[Label] = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        ones, left = _ones(before, i), _ones(after, j)
        spare = ones - left
        if spare > 0 and labels[i] != BATCH:
            i += 1
        elif before[i] == after[j]:
            found[j] = labels[i]
            i, j = i + 1, j + 1
        elif spare > 0 and labels[i] not in (BATCH, ROWS):
            i += 1
        elif after[j] == 1 and not (count == 1 and labels[i] in (BATCH, ROWS)):
            j += 1
        else:
            first, start = i, j
            a, b, i, j = before[i], after[j], i + 1, j + 1
            while a != b and (i < len(before) if a < b else j < len(after)):
                if a < b:
                    a, i = a * before[i], i + 1
                else:
                    b, j = b * after[j], j + 1
            sizes, parts = before[first:i], after[start:j]
            if len(parts) == 1 and _follow(labels[first:i]):
                found[start] = Tokens(labels[first:i], sizes)
            elif len(sizes) == 1 and _is_grid(labels[first], parts):
                found[start:j] = labels[first].axes
            elif len(sizes) == 1 and isinstance(labels[first], tuple):
                found[start] = labels[first]  # patches: the places within one come after
            elif labels[first] in (BATCH, ROWS) and count:
                # Rows of the batch come first in the joint axis, so they can be told apart again.
                size = after[start]
                if size % count == 0:
                    found[start] = BATCH if size == count else ROWS
    return tuple(found)


def _follow(labels: Sequence[Label]) -> bool:
    """Whether axes are some of one leaf of x, in order."""
    pairs = [label for label in labels if isinstance(label, tuple)]
    return len(pairs) == len(labels) > 1 and all(
        leaf == other and a < b for (leaf, a), (other, b) in itertools.pairwise(pairs)
    )


def _is_grid(label: Label, sizes: tuple[int, ...]) -> bool:
    """Whether a joint axis has those places and no other."""
    return isinstance(label, Tokens) and label == Tokens(label.axes, sizes)


def _ones(shape: tuple, at: int) -> int:
    """How many axes of one place follow each other there."""
    run = 0
    while at + run < len(shape) and shape[at + run] == 1:
        run += 1
    return run


def _dot(walk, params, given, out):
    """Batch axes, free axes of the left, free axes of the right; the weights' last are channels."""
    contracted, batched = params["dimension_numbers"]
    free: list[list[Label]] = []
    for side, (shape, labels) in enumerate(given):
        rest = [a for a in range(len(shape)) if a not in (*contracted[side], *batched[side])]
        free.append([labels[a] if labels else None for a in rest])
        if not labels and rest:
            free[-1][-1] = CHANNELS
    both = [given[side][1] and tuple(given[side][1][a] for a in batched[side]) for side in (0, 1)]
    shared = _merged([labels for labels in both if labels], len(batched[0]))
    return (*shared, *free[0], *free[1])


def _conv(walk, params, given, out):
    """The output's channels are where the dimension numbers put them; so were the input's."""
    numbers, (_, labels) = params["dimension_numbers"], given[0]
    found: list[Label] = [None] * len(out)
    if labels is None:  # only the kernel comes from x
        return None
    source = labels[numbers.lhs_spec[1]]
    if isinstance(source, tuple):
        leaf, axis = source
        walk.fed[leaf].add(axis)
    for before, after in zip(numbers.lhs_spec, numbers.out_spec, strict=True):
        found[after] = labels[before]
    # Examples with kernels of their own come as groups of channels, example by example.
    found[numbers.out_spec[1]] = ROWS if source in (BATCH, ROWS) else CHANNELS
    return tuple(found)


def _gather(walk, params, given, out):
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    (shape, labels), (places, index_labels) = given[:2]
    labels = labels or (None,) * len(shape)
    index_labels = index_labels or (None,) * len(places)
    batching = getattr(numbers, "operand_batching_dims", ())
    paired = dict(zip(getattr(numbers, "start_indices_batching_dims", ()), batching, strict=True))
    whole = [
        labels[a] if sizes[a] == shape[a] else None
        for a in range(len(shape))
        if a not in (*numbers.collapsed_slice_dims, *batching)
    ]
    picked = [labels[paired[a]] if a in paired else index_labels[a] for a in range(len(places) - 1)]
    parts = {True: iter(whole), False: iter(picked)}
    return tuple(next(parts[a in numbers.offset_dims]) for a in range(len(out)))


def _scatter(walk, params, given, out):
    numbers = params["dimension_numbers"]
    (_, labels), _, (updated, update_labels) = given[:3]
    ways = [labels] if labels else []
    if update_labels:
        batching = getattr(numbers, "operand_batching_dims", ())
        paired = dict(
            zip(getattr(numbers, "scatter_indices_batching_dims", ()), batching, strict=True)
        )
        window = [a for a in range(len(out)) if a not in (*numbers.inserted_window_dims, *batching)]
        found: list[Label] = [None] * len(out)
        for a, u in zip(window, numbers.update_window_dims, strict=True):
            found[a] = update_labels[u] if updated[u] == out[a] else None
        scattered = [u for u in range(len(updated)) if u not in numbers.update_window_dims]
        for i, u in enumerate(scattered):
            if i in paired:
                found[paired[i]] = update_labels[u]
        ways.append(tuple(found))
    return _merged(ways, len(out))


_RULES: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "gather": _gather,
    "concatenate": _concatenate,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": lambda walk, params, given, out: _reduce(
        walk, {"axes": (params["axis"],)}, given, out
    ),
    **dict.fromkeys(
        "cumlogsumexp cummax cummin cumprod cumsum dynamic_slice dynamic_update_slice"
        " reduce_window reduce_window_max reduce_window_min reduce_window_sum"
        " select_and_gather_add select_n split tile".split(),
        _same_rank,
    ),
    **dict.fromkeys("fft pad rev sort top_k".split(), _moved),
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split(),
        _reduce,
    ),
    **dict.fromkeys(
        "scatter scatter-add scatter_add scatter-max scatter_max scatter-min scatter_min"
        " scatter-mul scatter_mul".split(),
        _scatter,
    ),
    # Shapes say nothing of what these do.
    **dict.fromkeys(
        "custom_call ffi_call io_callback pure_callback pallas_call shard_map".split(), _unknown
    ),
}
