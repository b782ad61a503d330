"""What is explained: a class of each example, or what a function of the outputs picks."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import is_jax
from jaxviz.calls.models import shapes_of
from jaxviz.calls.naming import is_ours
from jaxviz.calls.options import described
from jaxviz.graph.axes import axes
from jaxviz.graph.indices import widened
from jaxviz.graph.interpreter import Node, Program, Scalar, equation_of, run_nodes
from jaxviz.graph.split import environment, needed
from jaxviz.graph.trace import model, trace


def output_shape(apply_fn: Callable, params: Any, x: Any) -> Any:
    """Shapes and dtypes of `apply_fn(params, x)`, whose trace is remembered."""
    return model(apply_fn, params, x).shape


def values_of(apply_fn: Callable, params: Any, x: Any) -> int:
    """Bytes of all that the model's operations make, from its trace, which is remembered."""
    return model(apply_fn, params, x).size


@dataclasses.dataclass(frozen=True)
class OneNumber:
    """A model of one number an example, `[N]`, as one of one class, `[N, 1]`."""

    apply_fn: Callable

    def __call__(self, params: Any, x: Any) -> jax.Array:
        return model(self.apply_fn, params, x)(params, x)[:, None]

    @property
    def is_tail(self) -> bool:
        return getattr(self.apply_fn, "is_tail", False)


def with_classes(apply_fn: Callable, params: Any, x: Any) -> Callable:
    """The model with outputs `[N, K]`: itself, but where it gives one number an example, `[N]`."""
    shape = getattr(output_shape(apply_fn, params, x), "shape", None)
    if shape != np.shape(jax.tree.leaves(x)[0])[:1] or not _rows_follow(apply_fn, params, x):
        return apply_fn
    return OneNumber(apply_fn)


def check_rows(name: str, apply_fn: Callable, params: Any, x: Any, outputs: Any) -> None:
    """Refuses outputs `[N, K]` whose rows are not the examples: averaged, or classes first."""
    count = np.shape(jax.tree.leaves(x)[0])[0]
    shape = outputs.shape
    if shape[0] != count:
        turned = "Its classes seem to come first: return outputs.T." if shape[1] == count else ""
        raise ValueError(
            f"{name}: apply_fn must return a row for each of the {count} examples, [{count}, K]; "
            f"got outputs {shape}. {turned or 'No axis of the batch may be summed up or added.'}"
        )
    # Where there are as many classes as examples, one example more says which axis is which.
    if shape[0] == shape[1] > 1 and not _rows_follow(apply_fn, params, x):
        raise ValueError(
            f"{name}: apply_fn must return outputs [N, K], examples first; got [K, N]: with one "
            "example more, the second axis of its outputs grows. Return outputs.T."
        )


def _rows_follow(apply_fn, params, x):
    """Whether outputs `[N, N]` or `[N]` have examples first; True where that cannot be told."""
    traced = trace(apply_fn, params, x, flat=False)
    place = axes(traced).batch(traced.outputs)
    if place is not None:
        return place == 0
    # Where the axes are lost, one example more says it; remembered, for the model runs again.
    if "rows follow" not in traced.facts:
        longer = lambda a: jax.ShapeDtypeStruct(
            (np.shape(a)[0] + 1, *np.shape(a)[1:]), jnp.result_type(a)
        )
        more = jax.tree.map(longer, x)
        try:
            (rows, *_) = jax.eval_shape(apply_fn, params, more).shape
        except Exception:  # of whatever kind: a model of one batch size cannot be asked
            rows = None
        traced.facts["rows follow"] = rows in (None, jax.tree.leaves(more)[0].shape[0])
    return traced.facts["rows follow"]


def _ready_made(shape: tuple[int, ...] | None) -> str:
    """Which of `jaxviz.targets` suits outputs of a shape, as the end of an advice."""
    if shape is not None and len(shape) == 3:  # of each token
        return ", such as `jaxviz.targets.position_and_class(position, index)`"
    if shape is not None and len(shape) > 3:  # of each pixel
        return ", such as `jaxviz.targets.masked_sum(mask, index)`"
    return ""


def _first_of(outputs: Any) -> str:
    """For a model that gives its state beside the logits, as Linen's does with `mutable`."""
    first = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else None
    is_logits = len(getattr(first, "shape", ())) == 2
    return "Return the first alone: `lambda p, x: apply_fn(p, x)[0]`. " if is_logits else ""


def _class_advice(index, shape):
    """For what labels are in other libraries: rows with a one at the class, floating, or names."""
    if index.shape == shape:
        return " Rows with a one at the class: pass target.argmax(-1)."
    if index.shape in ((), shape[:1]) and jnp.issubdtype(index.dtype, jnp.floating):
        return " Pass np.asarray(target, np.int32)."
    if index.shape == (*shape[:1], 1) and jnp.issubdtype(index.dtype, jnp.integer):
        return " Pass target[:, 0]."
    if isinstance(index, np.ndarray) and index.dtype.kind in "US":
        return " Names of classes: pass their places, names.index(name)."
    return ""


def check_target(
    name: str, apply_fn: Callable, params: Any, x: Any, outputs: Any, target: Any
) -> jax.Array | None:
    """Refuses a target that names no number of `outputs` (shapes); returns it as an array."""
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"{name}: a target index (or None) needs outputs [N, K]; apply_fn returns "
            f"{shapes_of(outputs)}. {_first_of(outputs)}Pass a function `outputs -> [N]` as "
            f"target{_ready_made(shape)}."
        )
    check_rows(name, apply_fn, params, x, outputs)
    check_floating(name, "apply_fn's outputs", outputs.dtype)
    if not shape[1]:
        raise ValueError(
            f"{name}: apply_fn must return a class at least, [N, K]; got outputs {shape}. Return "
            "logits."
        )
    if target is None:
        return None
    try:
        index: Any = target if is_jax(type(target)) else np.asarray(target)
    except ValueError:  # a list of lists that differ
        index = np.asarray(None)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.shape not in ((), shape[:1]):
        raise ValueError(
            f"{name}: target must be None, an integer, integers [N] = {shape[:1]}, or a function "
            f"outputs -> [N]; got {described(target)}.{_class_advice(index, shape)}"
        )
    if not isinstance(index, Tracer):
        values = np.asarray(index)
        if not values.dtype.isnative:
            index = values = values.astype(values.dtype.newbyteorder("="))
        if values.size and not (values.min() >= 0 and values.max() < shape[1]):
            wrong = values[(values < 0) | (values >= shape[1])].ravel()[0]
            raise ValueError(
                f"{name}: target must be in [0, {shape[1]}), the classes of apply_fn's outputs; "
                f"got {wrong}.{_ONE if shape[1] == 1 and wrong == 1 else ''}"
            )
    return widened(index)


_ONE = (
    " One number an example has index 0: the logit of the positive class. For the other class pass "
    "lambda outputs: -outputs.reshape(-1)."
)


def _avals(arguments):
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple(
        (leaf.shape, leaf.dtype) if is_jax(type(leaf)) else (np.shape(leaf), jnp.result_type(leaf))
        for leaf in leaves
    )


def check_function(name: str, x: Any, outputs: Any, target: Callable) -> None:
    """Refuses a target function that fails, gives no number an example, or indexes outside."""
    try:
        hash(target)
    except TypeError:
        raise TypeError(
            f"{name}: target must be hashable, for it is compiled once and found again; got an "
            f"unhashable {type(target).__name__}. Pass a plain function of the outputs."
        ) from None
    count = np.shape(jax.tree.leaves(x)[0])[0]
    if fault := _fault(target, count, *_avals(outputs)):
        told, cause = fault
        raise ValueError(f"{name}: {told}") from cause


@functools.lru_cache(maxsize=64)
def _fault(target, count, structure, avals) -> tuple[str, Exception | None] | None:
    outputs = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    shapes = shapes_of(outputs)
    try:
        scores = jax.eval_shape(target, outputs)
        program = trace(lambda _, outputs: target(outputs), None, outputs).program
    except Exception as error:  # the function's own, of whatever kind
        if is_ours(error):
            raise
        words = " ".join(str(error).split())[:200].rstrip(".")
        must = f"target must be a function of outputs {shapes} that gives [N]"
        return f"{must}; it fails with {type(error).__name__}: {words}.", error
    shape = getattr(scores, "shape", None)
    if shape != (count,):
        told = f"shape {shape}" if shape is not None else described(scores)
        return (
            f"target: a function must return one number an example, [N] = ({count},); it returned "
            f"{told} from outputs {shapes}. Reduce all axes but the first."
        ), None
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        return f"target: a function must return floating numbers; it returned {scores.dtype}.", None
    for index, axis, size in _outside(program):
        return (
            f"target must be a function that indexes inside outputs {shapes}; it takes index "
            f"{index} of an axis ({axis}) of {size}. JAX would take the last one instead."
        ), None
    return None


def _outside(program: Program) -> Iterator[tuple[int, int, int]]:
    """Index, axis and size for each index that is known beforehand and lies outside its array."""
    for node in _each(program.nodes):
        for body in node.bodies:
            yield from _outside(body)
        kind = equation_of(node).primitive.name
        if kind not in ("dynamic_slice", "gather") or isinstance(node.operands[0], Scalar):
            continue
        shape = program.avals[node.operands[0]].shape
        known = [_known(program, operand) for operand in node.operands[1:]]
        starts = [start for start in known if start is not None]
        if len(starts) < len(known):
            continue
        p = equation_of(node).params
        if kind == "dynamic_slice":
            places = zip(range(len(shape)), starts, strict=True)
        else:
            axes = p["dimension_numbers"].start_index_map
            places = ((axis, starts[0][..., i]) for i, axis in enumerate(axes))
        for axis, start in places:
            most = shape[axis] - p["slice_sizes"][axis]
            for index in start[(start < 0) | (start > most)].ravel()[:1].tolist():
                yield index if index >= 0 else index - shape[axis], axis, shape[axis]


def _each(nodes: tuple[Node, ...]) -> Iterator[Node]:
    for node in nodes:
        if node.members:
            yield from _each(node.members)
        elif node.equation is not None:
            yield node


def _known(program: Program, operand: Any) -> np.ndarray | None:
    """The value of an operand that no output of the model reaches, if it is known now."""
    if isinstance(operand, Scalar):
        return np.asarray(operand.value)
    if operand in program.depends:
        return None
    with jax.ensure_compile_time_eval():
        env = environment(program, ())
        if operand not in env:
            try:
                run_nodes(needed(program.nodes, [operand]), env, {})
            except KeyError:  # a loop's counter, say: what comes in from around the body
                return None
        value = env[operand]
    return None if isinstance(value, Tracer) else np.asarray(value)


def check_floating(name: str, what: str, dtype: Any) -> None:
    """Refuses outputs of whole numbers, booleans or keys."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name}: {what} must be floating, for they are differentiated; got {dtype}. Return "
            "logits, not the class that wins."
        )
