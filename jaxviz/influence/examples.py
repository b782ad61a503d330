"""Examples with their labels as arguments, and functions run over them a chunk at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import array
from jaxviz.calls.models import batch, shapes_of
from jaxviz.calls.naming import is_ours
from jaxviz.calls.options import described, refused
from jaxviz.engine.targets import output_shape
from jaxviz.graph.held import hold
from jaxviz.influence.parameters import chosen
from jaxviz.parts.losses import check_labels, cross_entropy, margin

# Numbers of gradients that are alive at once where nobody said.
_ALIVE = {"cpu": 2**24}
_ALIVE_ELSEWHERE = 2**28


class Model(NamedTuple):
    """What shapes a program: hashable, equal for equal models and losses.

    Attributes:
      apply_fn: Pure `(params, x) -> outputs`.
      loss: `(outputs, labels) -> [N]`.
      places: Of the parameters that count, among the leaves of params.
    """

    apply_fn: Callable
    loss: Callable
    places: tuple[int, ...]


def labels(who: str, option: str, value: Any) -> Any:
    """Labels `[N]`, or a pytree of arrays `[N, ...]`."""
    if isinstance(value, (list, range)):
        value = array(who, option, np.asarray(value))
    return batch(who, option, value)


def pair(who: str, option: str, value: Any) -> tuple[Any, Any]:
    """Examples and their labels, `(x, y)`, of one N."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise refused(who, option, "examples with their labels, (x, y)", value)
    x, y = batch(who, option, value[0]), labels(who, option, value[1])
    check_rows(who, option, x, y)
    return x, y


def check_rows(who: str, option: str, x: Any, y: Any) -> None:
    """Refuses labels that are not one an example."""
    if num_rows(x) != num_rows(y):
        raise ValueError(
            f"{who}: {option} must hold a label for each example; got x {shapes_of(x)} and "
            f"y {shapes_of(y)}. Cut both alike."
        )


def num_rows(tree: Any) -> int:
    """How many examples there are."""
    return np.shape(jax.tree.leaves(tree)[0])[0]


def prepared(
    who: str,
    apply_fn: Callable,
    params: Any,
    data: dict[str, tuple[Any, Any]],
    loss: Callable,
    layers: Sequence[str] | None,
) -> tuple[Model, Any]:
    """The model with its loss, and its params, held; what does not fit is refused.

    Args:
      who: The public function, for errors.
      apply_fn, params, loss, layers: As for `example_gradients`.
      data: Examples and labels, by the names of arguments.
    """
    apply_fn, params = hold(who, apply_fn, params)
    places = chosen(who, params, layers)
    try:
        hash(loss)
    except TypeError:
        raise refused(who, "loss", "a hashable function (outputs, labels) -> [N]", loss) from None
    for option, (x, y) in data.items():
        if option == "train" and num_rows(x) == 0:
            raise ValueError(
                f"{who}: train must hold an example at least; got x {shapes_of(x)}. Pass those "
                "that the model was trained on."
            )
        _check_loss(who, option, apply_fn, params, x, y, loss)
    return Model(apply_fn, loss, places), params


def _check_loss(who, option, apply_fn, params, x, y, loss):
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)[1:]), jnp.result_type(a)), (x, y)
    )
    outputs = output_shape(apply_fn, params, one[0])
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(outputs)}
    if not any(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        came = " and ".join(sorted(map(str, dtypes))) or "nothing"
        raise ValueError(
            f"{who}: apply_fn must return floating numbers, for the loss has a gradient; got {came}"
            ". Return logits, not the class that wins."
        )
    if loss in (cross_entropy, margin):
        check_labels(who, option, outputs, y)
    told = f"loss must give one number an example, [N], of outputs {shapes_of(outputs)} and labels"
    try:
        found = jax.eval_shape(loss, outputs, one[1])
    except Exception as error:  # the function's own, of whatever kind
        if is_ours(error):
            raise
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"{who}: {told} {shapes_of(one[1])}; it fails with {type(error).__name__}: {words}. "
            "It is called with one example, N = 1."
        ) from error
    is_floating = jnp.issubdtype(getattr(found, "dtype", bool), jnp.floating)
    if getattr(found, "shape", None) != (1,) or not is_floating:
        raise ValueError(
            f"{who}: {told}; for N = 1 it returned {described(found)}. Take no mean over examples."
        )


def batch_of_one(row: Any) -> Any:
    """One example as a batch."""
    return jax.tree.map(lambda a: jnp.asarray(a)[None], row)


def over_rows(function: Callable, rows: Any, chunk_size: int) -> Any:
    """`function` of each row of arrays `[N, ...]`, stacked, `chunk_size` of them at once.

    Example:
      >>> over_rows(lambda a: 2 * a, jnp.arange(3), 2).tolist()
      [0, 2, 4]
    """
    count = num_rows(rows)
    if count == 0:
        row = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows)
        found = jax.eval_shape(function, row)
        return jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), found)
    each = jax.vmap(function)
    if chunk_size >= count:
        return each(rows)
    found = jax.lax.map(each, chunks(rows, chunk_size)[0])
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)


def chunks(rows: Any, chunk_size: int) -> tuple[Any, jax.Array]:
    """Arrays `[N, ...]` as `[chunks, size, ...]` of even size, and which rows are no filling."""
    count = num_rows(rows)
    number = -(-count // chunk_size)
    size = -(-count // number)

    def cut(a):
        a = jnp.asarray(a)
        filling = jnp.broadcast_to(a[:1], (number * size - count, *a.shape[1:]))
        return jnp.concatenate([a, filling]).reshape(number, size, *a.shape[1:])

    counts = (jnp.arange(number * size) < count).reshape(number, size)
    return jax.tree.map(cut, rows), counts


def default_chunk(params: Any, places: Sequence[int]) -> int:
    """How many gradients are alive at once where nobody said."""
    leaves = jax.tree.leaves(params)
    size = sum(int(np.size(leaves[i])) for i in places)
    alive = _ALIVE.get(jax.default_backend(), _ALIVE_ELSEWHERE)
    return min(256, max(1, alive // max(size, 1)))
