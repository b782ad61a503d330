"""A training run as data: where it starts, what a step does, which examples each step sees."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz.calls.arrays import leaves_of, numbers_list, real_array, tree
from jaxviz.calls.models import own_or_told, shapes_of
from jaxviz.calls.options import described, refused
from jaxviz.calls.public import public


class Steps(NamedTuple):
    """A deterministic training run that can be gone through again, forwards and backwards.

    `training.fit_steps` makes it of what `training.fit` does, `weighted_steps` of a loss and an
    optimizer; a loop of your own is one function.

    Attributes:
      step_fn: Pure `(state, batch, weights [B], key) -> state`. `batch` is the rows of `data` that
        the step sees; `weights` says how often each row's loss counts (1 in the run itself); `key`
        is the step's own, or None. For magic it must be differentiable by the state and weights.
      state: Pytree of arrays before the first step: parameters, optimizer state, batch statistics.
      data: Pytree of arrays `[N, ...]`: all training examples.
      order: Indices of the examples of each step: `[T, B]`, or T lists whose lengths may differ
        (each length is one program more).
      keys: PRNG keys `[T]`, one a step; None hands None to each step.
    """

    step_fn: Callable[[Any, Any, jax.Array, Any], Any]
    state: Any
    data: Any
    order: Any
    keys: Any = None


class Trained(NamedTuple):
    """The state of `weighted_steps`.

    Attributes:
      params: Any pytree of arrays.
      optimizer: The optimizer's state.
    """

    params: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class WeightedStep:
    """One optimizer step by the weighted mean of a batch's losses.

    A class for its equality alone: equal losses and optimizers are compiled once.
    """

    loss_fn: Callable[..., Any]
    optimizer: optax.GradientTransformation

    def __call__(self, state, batch, weights, key):
        def loss_of(params):
            losses = self.loss_fn(*((params, batch) if key is None else (params, batch, key)))
            if jnp.shape(losses) != weights.shape:
                raise ValueError(
                    f"weighted_steps: loss_fn must return one loss an example, {weights.shape}; it "
                    f"returned shape {jnp.shape(losses)}. Leave the mean over the batch out."
                )
            return (losses * weights.astype(losses.dtype)).mean()

        gradient = jax.grad(loss_of)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it: decay ** count.
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
            return Trained(optax.apply_updates(state.params, updates), optimizer)


@public(params=tree, data=tree)
def weighted_steps(
    loss_fn: Callable[..., Any],
    params: Any,
    data: Any,
    order: Any,
    *,
    optimizer: optax.GradientTransformation,
    keys: Any = None,
) -> Steps:
    """A training run by an Optax optimizer, as data: each step minimises a batch's mean loss.

    With weights w, a step's loss is `sum_i w_i loss_i / B`: an example of weight 0 leaves no
    gradient, and the others count as before.

    Args:
      loss_fn: `(params, batch) -> losses [B]`, where `batch` is rows of `data`; with `keys`,
        `(params, batch, key) -> losses`.
      params: Any pytree of arrays: where the run starts.
      data: Pytree of arrays `[N, ...]`.
      order: Indices of the examples of each step, `[T, B]` or T lists.
      optimizer: Optax gradient transformation, such as `optax.sgd(0.1, momentum=0.9)`.
      keys: PRNG keys `[T]` for losses that draw (dropout, augmentation), or None.

    Returns:
      The run, for `magic` and `retrained`; its states are `(params, optimizer)`.

    Raises:
      ValueError: Indices that name no example, or keys that are not one a step.

    Example:
      >>> from jaxviz.influence import retrained
      >>> loss = lambda w, batch: (batch - w) ** 2
      >>> steps = weighted_steps(loss, jnp.array(0.0), jnp.array([1.0, 3.0]), [[0, 1], [1, 0]],
      ...                        optimizer=optax.sgd(0.25))
      >>> retrained(steps, lambda state: state.params, jnp.ones((1, 2))).tolist()
      [1.5]
    """
    step = WeightedStep(loss_fn, optimizer)
    params = jax.tree.map(jnp.asarray, params)
    return checked(
        "weighted_steps", Steps(step, Trained(params, optimizer.init(params)), data, order, keys)
    )


def checked(who: str, steps: Steps) -> Steps:
    """The run with its arrays as JAX's and its order as a tuple of NumPy arrays; or refused."""
    data = jax.tree.map(jnp.asarray, tree(who, "data", steps.data))
    sizes = {np.shape(a)[:1] for a in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"{who}: data must be arrays [N, ...] of one N; got {shapes_of(data)}. Pass all "
            "training examples, an axis of examples first."
        )
    order = _order(who, steps.order, *sizes.pop())
    keys = steps.keys
    if isinstance(keys, np.ndarray) and keys.dtype == np.uint32:  # of the old kind
        keys = jnp.asarray(keys)
    if keys is not None and not (isinstance(keys, jax.Array) and keys.shape[:1] == (len(order),)):
        raise ValueError(
            f"{who}: keys must be one a step, [{len(order)}]; got {described(keys)}. "
            "`jax.random.split(key, T)` makes them."
        )
    state = jax.tree.map(jnp.asarray, leaves_of(_array_or_key)(who, "state", steps.state))
    steps = steps._replace(state=state, data=data, order=order, keys=keys)
    _check_step(who, steps)
    return steps


def _array_or_key(who, option, value):
    return value if isinstance(value, jax.Array) else real_array(who, option, value)


def _order(who, order, num_examples):
    wanted = "indices of the examples of each step, [T, B] or T lists"
    is_array = isinstance(order, (np.ndarray, jax.Array))
    listed = isinstance(order, Sequence) and not isinstance(order, (str, bytes))
    if not (listed or (is_array and order.ndim == 2)) or not len(order):
        raise refused(who, "order", wanted, order)
    found = []
    for rows in order:
        if not isinstance(rows, (np.ndarray, jax.Array, Sequence)) or isinstance(
            rows, (str, bytes)
        ):
            raise refused(who, "order", wanted, order)
        if isinstance(rows, jax.Array) and jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
            raise refused(who, "order", wanted, order)
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
            raise refused(who, "order", wanted, order)
        if rows.min() < 0 or rows.max() >= num_examples:
            raise ValueError(
                f"{who}: order must name examples 0 to {num_examples - 1}, as data has; got "
                f"{rows.min()} to {rows.max()}. Count from 0."
            )
        found.append(rows.astype(np.int32))
    return tuple(found)


def _check_step(who, steps):
    keys = None if steps.keys is None else steps.keys[:1]
    span = spans(steps._replace(order=steps.order[:1], keys=keys), 1)[0]
    weights = given_weights(who, steps, None)
    step = lambda state, weights: one_step(steps.step_fn, state, steps.data, weights, span, 0)
    try:
        after = jax.eval_shape(step, steps.state, weights)
    except Exception as error:  # the function's own, of whatever kind
        raise own_or_told(
            error, who, "params, data and keys must be such as the step takes"
        ) from error
    if jax.tree.structure(after) != jax.tree.structure(steps.state):
        raise ValueError(
            f"{who}: step_fn must return a state of the same structure as it was given; got "
            f"{shapes_of(after)}, given {shapes_of(steps.state)}. Return all of it."
        )
    given = jax.tree_util.tree_leaves_with_path(steps.state)
    for (path, old), new in zip(given, jax.tree.leaves(after), strict=True):
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise ValueError(
                f"{who}: step_fn must keep the shapes and dtypes of the state; "
                f"{jax.tree_util.keystr(path)} is {old.dtype} {old.shape} before a step, "
                f"{new.dtype} {new.shape} after it. Begin with what a step returns."
            )


class Span(NamedTuple):
    """Consecutive steps with batches of one size, filled up to a fixed number of them."""

    rows: jax.Array  # [length, B]
    keys: Any  # [length] or None
    count: jax.Array  # how many of them are steps


def spans(steps: Steps, length: int) -> list[Span]:
    """The run's steps, divided where the batch's size changes and after `length` steps."""
    found = []
    for first, last in divided([len(rows) for rows in steps.order], length):
        here = np.minimum(np.arange(first, first + length), last - 1)
        rows = np.stack([steps.order[t] for t in here])
        keys = None if steps.keys is None else steps.keys[here]
        found.append(Span(jnp.asarray(rows), keys, jnp.asarray(last - first, jnp.int32)))
    return found


def divided(sizes: Sequence[int], length: int) -> list[tuple[int, int]]:
    """First and last of each span of at most `length` equal sizes.

    Example:
      >>> divided([4, 4, 4, 1, 4], 2)
      [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    found, first = [], 0
    for t in range(1, len(sizes) + 1):
        if t == len(sizes) or sizes[t] != sizes[first] or t - first == length:
            found.append((first, t))
            first = t
    return found


def one_step(step_fn: Callable, state: Any, data: Any, weights: jax.Array, span: Span, t: Any):
    """The state after the span's step `t`; `weights` are those of all examples, `[N]`."""
    return step_fn(state, *drawn(data, weights, span, t))


def drawn(data: Any, weights: jax.Array, span: Span, t: Any) -> tuple[Any, jax.Array, Any]:
    """What the span's step `t` sees: its batch, the batch's weights, and its key."""
    rows = span.rows[t]
    batch = jax.tree.map(lambda a: jnp.take(a, rows, axis=0), data)
    return batch, jnp.take(weights, rows), None if span.keys is None else span.keys[t]


def given_weights(who: str, steps: Steps, weights: Any) -> jax.Array:
    """Weights `[..., N]` in float32, or in float64 where the state is; None is ones `[N]`."""
    leaves = [jnp.result_type(leaf) for leaf in jax.tree.leaves(steps.state)]
    dtype = jnp.float64 if jnp.float64 in leaves else jnp.float32
    num_examples = len(jax.tree.leaves(steps.data)[0])
    if weights is None:
        return jnp.ones(num_examples, dtype)
    weights = numbers_list(who, "weights", weights)
    if np.shape(weights)[-1:] != (num_examples,):
        raise ValueError(
            f"{who}: weights must be one for each of the {num_examples} examples; got "
            f"{described(weights)}. 1 counts an example once, 0 not at all."
        )
    return jnp.asarray(weights).astype(dtype)
