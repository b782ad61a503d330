"""From a data set to a run folder in one call: division, training, the best epoch, what is kept."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax

from jaxviz.calls.public import public
from jaxviz.data import Dataset, train_validation_split
from jaxviz.data.dataset import trainable
from jaxviz.folders import why_not
from jaxviz.training.fitting import History, fit
from jaxviz.training.run import Run, load_run, save_run


@public(train=trainable)
def train_run(
    folder: str | os.PathLike,
    net: nn.Module,
    train: Dataset,
    *,
    data: str,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    num_epochs: int,
    batch_size: int = 128,
    validation: float = 0.1,
    patience: int | None = None,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    checkpoints: str | None = "checkpoints",
    options: dict[str, Any] | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
) -> Run:
    """Trains a network, keeps its best epoch in a run folder, and returns that run.

    A part of the examples, drawn by `key`, is held out and chooses the best epoch. Called again
    with the same arguments it trains no more: it goes on from the folder's checkpoints.

    Args:
      folder: Of the run, made if it is not there; `load_run` and the command line read it.
      net: Linen module, as for `fit`.
      train: All labelled images; images in [0, 1] as the network is to get them.
      data: The data set's name.
      key: PRNG key: the division and all that `fit` draws.
      optimizer: Optax gradient transformation. It cannot be compared with that of a checkpoint:
        give another one another folder, or name in `checkpoints`.
      num_epochs: At most this many epochs.
      batch_size: Examples in a step.
      validation: Share of the examples that is held out, between 0 and 1.
      patience: Stop after so many epochs without a better validation accuracy; None never stops.
      augment: As for `fit`.
      checkpoints: Where in the folder the whole state is kept after each epoch; None keeps none.
      options: JSON values to remember in the run.
      on_epoch: As for `fit`.

    Returns:
      The run, as `load_run` gives it; its `config["options"]["best_epoch"]` counts from 0.

    Raises:
      TypeError: As for `fit`.
      ValueError: As for `fit`, a share that leaves one of the parts empty, or a folder that cannot
        be written to, before any training.

    Example:
      >>> import tempfile, numpy as np
      >>> points, labels = np.eye(8, dtype=np.float32), np.arange(8, dtype=np.int32) % 2
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     run = train_run(folder, nn.Dense(2), Dataset(points, labels, ("even", "odd")),
      ...                     data="corners", key=jax.random.key(0), optimizer=optax.sgd(0.1),
      ...                     num_epochs=2, batch_size=7, validation=0.125)
      >>> run.data, run.class_names, len(run.history.loss)
      ('corners', ('even', 'odd'), 2)
    """
    if why := why_not(Path(folder)):
        raise ValueError(
            f"train_run: folder must be one that can be written to; {folder}: {why}. Pass another."
        )
    split_key, fit_key = jax.random.split(key)
    part, held_out = train_validation_split(train, split_key, validation)
    result = fit(
        net,
        part,
        key=fit_key,
        optimizer=optimizer,
        num_epochs=num_epochs,
        batch_size=batch_size,
        validation=held_out,
        patience=patience,
        augment=augment,
        checkpoint=None if checkpoints is None else Path(folder) / checkpoints,
        on_epoch=on_epoch,
    )
    save_run(
        folder,
        net,
        result.variables,
        history=result.history,
        data=data,
        class_names=train.class_names,
        input_shape=train.images.shape[1:],
        options={**(options or {}), "best_epoch": result.best_epoch},
    )
    return load_run(folder, net=net)
