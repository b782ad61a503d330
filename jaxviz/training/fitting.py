"""`fit`: trains a network on labelled images, epoch by compiled epoch, and keeps the best one."""

import functools
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz.calls.options import maybe, refused, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.data import Dataset
from jaxviz.data.dataset import trainable
from jaxviz.graph.rewrite import rewrite
from jaxviz.models import apply_fn as inference
from jaxviz.rules.fast import fast as fast_rules
from jaxviz.training.epoch import State, TrainingFunction, run_epoch
from jaxviz.training.evaluation import logits_of
from jaxviz.training.history import History as History
from jaxviz.training.progress import EpochBar

MONITORS = ("validation_accuracy", "validation_loss")


class Fit(NamedTuple):
    """What training made.

    Attributes:
      variables: Of the best epoch; the last one if there was no validation set.
      history: Of every epoch run.
      best_epoch: Which epoch `variables` is of, from 0.
    """

    variables: dict[str, Any]
    history: History
    best_epoch: int

    __repr__ = shown
    _repr_html_ = shown_html


@public(train=trainable, validation=maybe(trainable), num_checkpoints=whole(1))
def fit(
    net: nn.Module,
    train: Dataset,
    *,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    num_epochs: int,
    batch_size: int = 128,
    validation: Dataset | None = None,
    patience: int | None = None,
    monitor: str = "validation_accuracy",
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    initial: dict[str, Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    num_checkpoints: int = 1,
    fast: bool = True,
    on_epoch: Callable[[int, History], None] | None = None,
) -> Fit:
    """Trains a network to minimise cross entropy; the same arguments give the same numbers.

    Each epoch is one compiled program over data held on the device: a new random order, one
    optimizer step a batch (the last batch may be smaller; every example is used once), then the
    validation set. A progress bar with loss and accuracy is drawn if standard error is a terminal;
    nothing is printed otherwise.

    Args:
      net: Linen module, `net(images)` or `net(images, train=...)` -> logits `[N, K]`. Dropout draws
        from the stream "dropout"; collections other than "params" (batch statistics) are updated.
      train: Images, floating `[N, ...]`, and labels, integer `[N]`, 0 to K - 1.
      key: PRNG key: initial parameters, order, dropout and augmentation come from it.
      optimizer: Optax gradient transformation, such as `optax.adam(1e-3)`.
      num_epochs: At most this many epochs.
      batch_size: Examples in a step, at most N.
      validation: Other examples of the same shape; chooses the best epoch.
      patience: Stop after this many epochs in a row without a better `monitor`; None never stops.
      monitor: "validation_accuracy" (highest is best) or "validation_loss" (lowest is best).
      augment: `(key, images [B, ...]) -> images`, of the same shape, applied to each training
        batch.
      initial: Variables to start from; None draws them with `net.init`.
      checkpoint: Folder where the whole state is saved after each epoch. If it already holds one,
        of the same data and options, training goes on from there to the same numbers as if it had
        never been interrupted (`num_epochs` may have grown).
      num_checkpoints: How many of the newest epochs' states stay in `checkpoint`;
        `load_checkpoints` reads their variables, which `jaxviz.influence.trac_in` takes.
      fast: Replace operations whose gradients compile badly on this device by faster ones of the
        same value up to float rounding.
      on_epoch: `(epoch, history so far)`, called after each epoch, its checkpoint already written.

    Returns:
      The best variables, the history, and which epoch was best. A diverged training is no error:
      its history shows NaN.

    Raises:
      TypeError: `net` is no Linen module, or images or labels have the wrong dtype.
      ValueError: Shapes, labels or options that do not fit, or a checkpoint of other data or
        options.

    Example:
      >>> class Linear(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(2, name="dense")(x)
      >>> points = np.array([[-1.0], [-2.0], [1.0], [2.0]], np.float32)
      >>> data = Dataset(points, np.array([0, 0, 1, 1], np.int32), ("negative", "positive"))
      >>> result = fit(Linear(), data, key=jax.random.key(0), optimizer=optax.sgd(1.0),
      ...              num_epochs=5, batch_size=2)
      >>> float(result.history.accuracy[-1])
      1.0
    """
    state, epochs_key = beginning(
        net,
        train,
        key,
        optimizer,
        num_epochs=num_epochs,
        batch_size=batch_size,
        validation=validation,
        patience=patience,
        monitor=monitor,
        initial=initial,
    )
    start = state.variables
    loop = _Progress(best=start, best_epoch=-1, rows=[])
    checkpoints = None
    if checkpoint is not None:
        options = {
            "net": repr(net),
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "batch_size": batch_size,
            "monitor": monitor if validation is not None else None,
            "augment": augment is not None,
            "fast": fast,
            "train": _fingerprint(train),
            "validation": _fingerprint(validation),
        }
        from jaxviz.training.checkpoint import Checkpoints  # orbax takes its time to import

        checkpoints = Checkpoints(checkpoint, options, num_checkpoints)
        saved = checkpoints.latest((state, start))
        if saved is not None:
            (state, best), rows, best_epoch = saved
            loop = _Progress(best, best_epoch, rows)

    train_fn, apply_fn = training_function(net, fast), inference(net)
    if fast:
        apply_fn = rewrite(apply_fn, fast_rules)
    state = _copied(state)  # the epoch reuses its argument's memory
    train_arrays = _on_device(train)
    validation_arrays = None if validation is None else _on_device(validation)

    with EpochBar(num_epochs, len(loop.rows)) as bar:
        while len(loop.rows) < num_epochs and not _out_of_patience(loop, patience):
            epoch = len(loop.rows)
            started = time.perf_counter()
            state, metrics, checked = run_epoch(
                state,
                train_arrays,
                validation_arrays,
                jax.random.fold_in(epochs_key, epoch),
                train_fn=train_fn,
                apply_fn=apply_fn,
                optimizer=optimizer,
                batch_size=batch_size,
                augment=augment,
            )
            row = [float(v) for v in (*metrics, *(checked or (math.nan, math.nan)))]
            row.append(time.perf_counter() - started)
            better = checked is None or _better(row, loop, monitor)
            loop = _Progress(
                best=_copied(state.variables) if better else loop.best,
                best_epoch=epoch if better else loop.best_epoch,
                rows=[*loop.rows, row],
            )
            if checkpoints is not None:
                checkpoints.save(epoch, (state, loop.best), loop.rows, loop.best_epoch)
            bar.advance(row)
            if on_epoch is not None:
                on_epoch(epoch, _history(loop.rows))
    return Fit(loop.best, _history(loop.rows), loop.best_epoch)


def beginning(
    net: nn.Module,
    train: Dataset,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    num_epochs: int,
    batch_size: int,
    validation: Dataset | None = None,
    patience: int | None = None,
    monitor: str = MONITORS[0],
    initial: dict[str, Any] | None,
) -> tuple[State, jax.Array]:
    """The state before the first step, and the key of all epochs; arguments are checked."""
    init_key, epochs_key = jax.random.split(key)
    start = _initial_variables(net, train, init_key, initial)
    _check(net, start, train, validation, num_epochs, batch_size, patience, monitor)
    params = start["params"]
    collections = {name: value for name, value in start.items() if name != "params"}
    return State(params, collections, optimizer.init(params)), epochs_key


def training_function(net: nn.Module, fast: bool) -> Callable[[Any, Any], Any]:
    """The network as training calls it."""
    function = TrainingFunction(net)
    return rewrite(function, fast_rules) if fast else function


@jax.jit  # one program, not one for each shape
def _copied(tree):
    return jax.tree.map(jnp.copy, tree)


class _Progress(NamedTuple):
    best: Any
    best_epoch: int
    rows: list[list[float]]


def _better(row, loop, monitor):
    column = History._fields.index(monitor)
    sign = -1.0 if monitor == "validation_loss" else 1.0
    if loop.best_epoch < 0:
        return True
    best = loop.rows[loop.best_epoch][column]
    return math.isnan(best) or sign * row[column] > sign * best


def _out_of_patience(loop, patience):
    return patience is not None and len(loop.rows) - 1 - loop.best_epoch >= patience


def _history(rows):
    columns = np.asarray(rows, np.float32).reshape(-1, len(History._fields)).T
    return History(*columns)


def _on_device(dataset):
    return jax.device_put((dataset.images, dataset.labels))


def _fingerprint(dataset):
    if dataset is None:
        return None
    images, labels = np.ascontiguousarray(dataset.images), np.ascontiguousarray(dataset.labels)
    return [list(images.shape), zlib.crc32(labels.data, zlib.crc32(images.data))]


def _initial_variables(net, train, key, initial):
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"fit: net must be a Flax Linen module; got {type(net).__name__}. Pass the module "
            "itself, "
            "such as jaxviz.models.MNISTNetA()."
        )
    if initial is not None:
        return initial
    return _draw_variables(net, key, train.images[:1])


@functools.partial(jax.jit, static_argnums=0)
def _draw_variables(net, key, images):
    params_key, dropout_key = jax.random.split(key)
    return net.init({"params": params_key, "dropout": dropout_key}, images)


def _check(net, start, train, validation, num_epochs, batch_size, patience, monitor):
    if not isinstance(start, Mapping):
        raise refused("fit", "initial", "a dict, as net.init returns it", start)
    if "params" not in start:
        raise ValueError(
            f'fit: the variables must have "params"; got {sorted(start)}. Pass what `net.init` '
            "returned."
        )
    shape, num_examples = train.images.shape[1:], len(train.labels)
    logits = logits_of("fit", net, start, train.images)
    for name, dataset in (("train", train), ("validation", validation)):
        if dataset is None:
            continue
        if dataset.images.shape[1:] != shape:
            raise ValueError(
                f"fit: {name} must have images [N, {', '.join(map(str, shape))}] and labels [N]; "
                "got "
                f"{dataset.images.shape}, {dataset.labels.shape}. Divide one data set with "
                "train_validation_split."
            )
        low, high = int(np.min(dataset.labels)), int(np.max(dataset.labels))
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(
                f"fit: labels must be 0 to {logits.shape[1] - 1}, the network's outputs; {name} "
                "has "
                f"{low} to {high}. Use a network with {high + 1} outputs."
            )
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"fit: batch_size must be 1 to the number of examples, {num_examples}; got "
            f"{batch_size}. "
            "Choose a smaller one."
        )
    if num_epochs < 1:
        raise ValueError(f"fit: num_epochs must be at least 1; got {num_epochs}. Raise it.")
    if monitor not in MONITORS:
        raise ValueError(f"fit: monitor must be one of {MONITORS}; got {monitor!r}. Choose one.")
    if patience is not None and (patience < 1 or validation is None):
        raise ValueError(
            "fit: patience must be at least 1 and needs a validation set; got "
            f"patience={patience}, "
            f"validation={'given' if validation is not None else None}. Pass validation=..., or "
            "leave patience out."
        )
