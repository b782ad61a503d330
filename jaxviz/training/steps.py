"""What `fit` does, as steps that can be gone through again: for influence through training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxviz.calls.public import public
from jaxviz.data import Dataset
from jaxviz.data.dataset import trainable
from jaxviz.graph.indices import widened
from jaxviz.influence.steps import Steps
from jaxviz.training.epoch import order_and_keys, training_step
from jaxviz.training.fitting import beginning, training_function


@dataclasses.dataclass(frozen=True)
class FitStep:
    """One step of `fit`, of weighted examples.

    A class for its equality alone: equal networks and options are compiled once.
    """

    train_fn: Callable[[Any, Any], Any]
    optimizer: optax.GradientTransformation
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None

    def __call__(self, state, batch, weights, key):
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        x, y = batch
        return training_step(state, x, y, key, weights, **options)[0]


@public(train=trainable)
def fit_steps(
    net: nn.Module,
    train: Dataset,
    *,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    num_epochs: int,
    batch_size: int = 128,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    initial: dict[str, Any] | None = None,
    fast: bool = True,
) -> Steps:
    """The training run that `fit` makes with the same arguments, as data: nothing is trained yet.

    `influence.magic` goes through it forwards and backwards, `influence.retrained` with other
    weights of the examples. Its last state has the variables that `fit` returns without a
    validation set; with one, give the epochs up to the best: `num_epochs=result.best_epoch + 1`.
    An example of weight w adds `w * loss / B` to the loss of a batch of B.

    Args:
      net: Linen module, as for `fit`.
      train: Images and labels, as for `fit`.
      key: That of `fit`.
      optimizer: As for `fit`.
      num_epochs: All epochs that are gone through.
      batch_size: As for `fit`.
      augment: As for `fit`.
      initial: As for `fit`.
      fast: As for `fit`.

    Returns:
      The steps; a state has `params`, `collections` (batch statistics), `optimizer`, and
      `variables`, which is what `net.apply` takes.

    Raises:
      TypeError: As for `fit`.
      ValueError: As for `fit`.

    Example:
      >>> import numpy as np
      >>> data = Dataset(np.eye(4, dtype=np.float32), np.arange(4, dtype=np.int32) % 2, ("a", "b"))
      >>> steps = fit_steps(nn.Dense(2), data, key=jax.random.key(0), optimizer=optax.sgd(0.1),
      ...                   num_epochs=2, batch_size=3)
      >>> [len(rows) for rows in steps.order], sorted(steps.state.variables)
      ([3, 1, 3, 1], ['params'])
    """
    state, epochs_key = beginning(
        net,
        train,
        key,
        optimizer,
        num_epochs=num_epochs,
        batch_size=batch_size,
        initial=initial,
    )
    num_examples = len(train.labels)
    order, keys = [], []
    for epoch in range(num_epochs):
        rows, drawn = order_and_keys(
            jax.random.fold_in(epochs_key, epoch), num_examples, batch_size
        )
        order += [rows[i : i + batch_size] for i in range(0, num_examples, batch_size)]
        keys.append(drawn)
    return Steps(
        FitStep(training_function(net, fast), optimizer, augment),
        state,
        (jnp.asarray(train.images), widened(jnp.asarray(train.labels))),
        order,
        jnp.concatenate(keys),
    )
