"""One epoch as one compiled program: shuffle, every batch's step, then the validation set."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.calls.options import described
from jaxviz.calls.shown import shown, shown_html
from jaxviz.graph.indices import widened

if TYPE_CHECKING:
    import optax


class State(NamedTuple):
    """What one training step hands to the next.

    Attributes:
      params: The network's parameters.
      collections: Its other variables, such as batch statistics; an empty dict where it has none.
      optimizer: The optimizer's state.
    """

    params: Any
    collections: dict[str, Any]
    optimizer: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `net.apply` takes.

        Example:
          >>> State({"w": 1}, {"batch_stats": {}}, ()).variables
          {'params': {'w': 1}, 'batch_stats': {}}
        """
        return {"params": self.params, **self.collections}


class Metrics(NamedTuple):
    """Means over a set of examples; scalars, float32.

    Attributes:
      loss: Cross entropy in nats.
      accuracy: Share of the examples whose largest logit is their label's.
    """

    loss: jax.Array
    accuracy: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@dataclasses.dataclass(frozen=True)
class TrainingFunction:
    """`(variables, (images, key)) -> (logits, new collections)`: the network as training calls it.

    A class for its equality alone: equal networks give equal functions, which compile once.

    Attributes:
      net: Linen module; `train=True` is passed if its `__call__` takes it.
    """

    net: nn.Module

    def __call__(self, variables, inputs):
        images, key = inputs
        return self.net.apply(
            variables,
            images,
            **_train_option(self.net),
            rngs={"dropout": key},
            mutable=[name for name in variables if name != "params"],
        )


def _train_option(net) -> dict[str, Any]:
    return {"train": True} if "train" in inspect.signature(net.__call__).parameters else {}


@functools.partial(
    jax.jit,
    static_argnames=("train_fn", "apply_fn", "optimizer", "batch_size", "augment"),
    donate_argnames=("state",),
)
def run_epoch(
    state: State,
    train: tuple[jax.Array, jax.Array],
    validation: tuple[jax.Array, jax.Array] | None,
    key: jax.Array,
    *,
    train_fn: Callable[[Any, Any], Any],
    apply_fn: Callable[[Any, Any], Any],
    optimizer: "optax.GradientTransformation",
    batch_size: int,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None,
) -> tuple[State, Metrics, Metrics | None]:
    """Takes one optimizer step for each batch, in an order drawn from `key`, then validates.

    Every example is used exactly once. Where `batch_size` does not divide their number, the epoch
    ends with one smaller batch of what is left: nothing is dropped, repeated or padded, so batch
    statistics and gradients see real examples only.

    Args:
      state: Parameters, other collections, optimizer state; its memory is reused.
      train: `(images [N, ...], labels [N])`.
      validation: The same of other examples, or None.
      key: PRNG key: order, dropout and augmentation come from it.
      train_fn: `(variables, (images, key)) -> (logits, new collections)`.
      apply_fn: `(variables, images) -> logits` for validation.
      optimizer: Optax gradient transformation.
      batch_size: Examples in a step.
      augment: `(key, images) -> images` of the same shape, or None.

    Returns:
      `(state, metrics, validation metrics or None)`. Training metrics are means over the epoch's
      steps, each taken before its update, dropout and augmentation on.

    Example:
      >>> net = nn.Dense(2)
      >>> images, labels = jnp.eye(2), jnp.arange(2)
      >>> params = net.init(jax.random.key(0), images)["params"]
      >>> import optax
      >>> optimizer = optax.sgd(1.0)
      >>> state, metrics, _ = run_epoch(
      ...     State(params, {}, optimizer.init(params)), (images, labels), None, jax.random.key(1),
      ...     train_fn=TrainingFunction(net), apply_fn=net.apply, optimizer=optimizer,
      ...     batch_size=2, augment=None)
      >>> metrics.loss.shape
      ()
    """
    images, labels = train[0], widened(train[1])
    num_examples = len(labels)
    num_full = num_examples // batch_size
    order, keys = order_and_keys(key, num_examples, batch_size)

    def step(state, batch):
        key, indices = batch
        x, y = jnp.take(images, indices, axis=0), jnp.take(labels, indices, axis=0)
        return training_step(
            state, x, y, key, train_fn=train_fn, optimizer=optimizer, augment=augment
        )

    batches = order[: num_full * batch_size].reshape(num_full, batch_size)
    state, (losses, rights) = jax.lax.scan(step, state, (keys[:num_full], batches))
    total, right = losses.sum(), rights.sum()
    if num_examples % batch_size:
        state, (loss, last_right) = step(state, (keys[-1], order[num_full * batch_size :]))
        total, right = total + loss, right + last_right
    metrics = _means(total, right, num_examples)
    if validation is None:
        return state, metrics, None
    return state, metrics, evaluate_set(apply_fn, state.variables, *validation, batch_size)


def order_and_keys(
    key: jax.Array, num_examples: int, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """What an epoch draws: the order of its examples `[N]`, and a key for each of its steps.

    Example:
      >>> order, keys = order_and_keys(jax.random.key(0), 5, 2)
      >>> sorted(order.tolist()), keys.shape
      ([0, 1, 2, 3, 4], (3,))
    """
    order_key, steps_key = jax.random.split(key)
    numbers = jnp.arange(-(-num_examples // batch_size))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(steps_key, numbers)
    return jax.random.permutation(order_key, num_examples), keys


def training_step(
    state: State,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    weights: jax.Array | None = None,
    *,
    train_fn: Callable[[Any, Any], Any],
    optimizer: "optax.GradientTransformation",
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None,
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """One optimizer step on one batch, by the mean of its losses; for use inside `jax.jit`.

    Args:
      state: Before the step.
      x: Images `[B, ...]`.
      y: Labels `[B]`.
      key: PRNG key: dropout and augmentation come from it.
      weights: `[B]`: each example's loss counts so many times, `sum(w * loss) / B`. None: once.
      train_fn: As for `run_epoch`.
      optimizer: As for `run_epoch`.
      augment: As for `run_epoch`.

    Returns:
      The state after it; the sum of the losses and the number of right answers before it.
    """
    import optax  # takes its time to import; predictions need none of it

    def loss_of(params):
        logits, new = train_fn({"params": params, **state.collections}, (x, dropout_key))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        counted = losses if weights is None else losses * weights.astype(losses.dtype)
        return counted.mean(), (losses.sum(), _num_right(logits, y), new)

    augment_key, dropout_key = jax.random.split(key)
    if augment is not None:
        x = _augmented(augment, augment_key, x)
    gradient, (loss, right, collections) = jax.grad(loss_of, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it: decay ** count.
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
    return State(params, dict(collections), optimizer_state), (loss, right)


def evaluate_set(
    apply_fn: Callable[[Any, Any], Any],
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    batch_size: int,
) -> Metrics:
    """Mean loss and accuracy, `batch_size` examples at a time; for use inside `jax.jit`.

    The last batch is filled up with copies of the first example, which are not counted.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]]))
      >>> metrics = evaluate_set(lambda _, x: x, None, logits, jnp.array([0, 1, 1]), 2)
      >>> round(float(metrics.accuracy), 3)
      0.667
    """

    import optax

    def one(batch):
        x, y, counts = batch
        logits = apply_fn(variables, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.where(counts, losses, 0.0).sum(), _num_right(logits, y, counts)

    labels, counts = widened(labels), jnp.ones(len(labels), bool)
    batches = [batched(array, batch_size) for array in (images, labels)]
    losses, rights = jax.lax.map(one, (*batches, batched(counts, batch_size, fill=False)))
    return _means(losses.sum(), rights.sum(), len(labels))


def _augmented(augment, key, images):
    try:
        made = augment(key, images)
    except Exception as error:  # the function's own, of whatever kind
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"fit: augment must be a function (key, images {images.shape}) -> images; it fails "
            f"with {type(error).__name__}: {words}."
        ) from error
    floating = jnp.issubdtype(getattr(made, "dtype", bool), jnp.floating)
    if getattr(made, "shape", None) != images.shape or not floating:
        raise ValueError(
            f"fit: augment must return floating images of the same shape, {images.shape}; it "
            f"returned {described(made)}."
        )
    return made


def batched(array: jax.Array, batch_size: int, fill: Any = None) -> jax.Array:
    """`[N, ...] -> [ceil(N / batch_size), batch_size, ...]`, filled up with `fill` or row 0.

    Example:
      >>> batched(jnp.array([3, 1, 2]), 2).tolist()
      [[3, 1], [2, 3]]
    """
    missing = -len(array) % batch_size
    rest = array[:1] if fill is None else jnp.full((1, *array.shape[1:]), fill, array.dtype)
    rows = jnp.concatenate([array, jnp.broadcast_to(rest, (missing, *array.shape[1:]))])
    return rows.reshape(-1, batch_size, *array.shape[1:])


def _num_right(logits, labels, counts=True):
    return ((jnp.argmax(logits, -1).astype(labels.dtype) == labels) & counts).sum(dtype=jnp.int32)


def _means(total, right, num_examples):
    return Metrics(total / num_examples, right.astype(jnp.float32) / num_examples)
