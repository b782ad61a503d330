"""How good a trained network is: logits of many images, loss, accuracy, confusions."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import integers, numbers_list, rows
from jaxviz.calls.options import described, refused
from jaxviz.calls.public import public
from jaxviz.data import Dataset
from jaxviz.data.dataset import trainable
from jaxviz.models import apply_fn as inference
from jaxviz.training.epoch import Metrics, batched, evaluate_set

_LARGEST = 2**33  # bytes of a matrix of counts


def logits_of(who: str, net: nn.Module, variables: Any, images: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of a net's logits for two such images; refuses a net that gives none."""
    pair = jax.ShapeDtypeStruct((2, *images.shape[1:]), jnp.result_type(images))
    try:
        logits = jax.eval_shape(inference(net), variables, pair)
    except Exception as error:  # Flax's, of whatever kind
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"{who}: net must take images {pair.shape[1:]} with its variables; "
            f"{type(net).__name__} fails with {type(error).__name__}: {words}."
        ) from error
    shape, dtype = getattr(logits, "shape", ()), getattr(logits, "dtype", bool)
    if len(shape) != 2 or shape[0] != 2 or not shape[1] or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{who}: net must give floating logits [N, K]; got {described(logits)} for two images "
            f"{pair.shape[1:]}. End it with a dense layer of K outputs."
        )
    return logits


def _floating(who, option, value):
    found = numbers_list(who, option, value)
    if not np.ndim(found) or not len(found):
        raise ValueError(
            f"{who}: needs at least one image; got images {np.shape(found)}. Pass images [N, ...]."
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        advice = "Prepare them as for training: bytes / 255."
        raise refused(who, option, "floating", value, advice)
    return found


@public(images=_floating)
def predict(net: nn.Module, variables: Any, images: Any, *, batch_size: int = 128) -> jax.Array:
    """Logits of any number of images, `batch_size` at a time in one compiled program.

    Args:
      net: Linen module.
      variables: What training returned.
      images: `[N, ...]`, preprocessed as for training.
      batch_size: Images in memory at once, >= 1.

    Returns:
      `[N, K]`.

    Raises:
      TypeError: Images are not floating.
      ValueError: There is no image, `batch_size < 1`, or the net gives no logits for them.

    Example:
      >>> net = nn.Dense(2)
      >>> variables = net.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> predict(net, variables, jnp.ones((5, 3)), batch_size=2).shape
      (5, 2)
    """
    logits_of("predict", net, variables, images)
    return _logits(inference(net), variables, images, min(batch_size, len(images)))


@public(dataset=trainable)
def evaluate(net: nn.Module, variables: Any, dataset: Dataset, *, batch_size: int = 128) -> Metrics:
    """Mean cross entropy (nats) and accuracy on a data set, dropout off.

    Args:
      net: Linen module.
      variables: What training returned.
      dataset: Images preprocessed as for training, and their labels.
      batch_size: Images in memory at once, >= 1.

    Returns:
      `Metrics(loss, accuracy)`, float32 scalars.

    Raises:
      TypeError: Images are not floating, or labels no integers.
      ValueError: There is no image, `batch_size < 1`, labels that the net does not know, or a net
        that gives no logits for the images.

    Example:
      >>> net = nn.Dense(2, use_bias=False)
      >>> data = Dataset(np.eye(2, dtype=np.float32), np.arange(2, dtype=np.int32), ("a", "b"))
      >>> evaluate(net, {"params": {"kernel": jnp.eye(2)}}, data).accuracy.item()
      1.0
    """
    classes = logits_of("evaluate", net, variables, dataset.images).shape[1]
    low, high = int(np.min(dataset.labels)), int(np.max(dataset.labels))
    if low < 0 or high >= classes:
        raise ValueError(
            f"evaluate: labels must be 0 to {classes - 1}, the network's outputs; got {low} to "
            f"{high}. Take the set that the network was trained for."
        )
    arrays = dataset.images, dataset.labels
    return _metrics(inference(net), variables, *arrays, min(batch_size, len(dataset.labels)))


@public(labels=integers, predictions=integers)
def confusion_matrix(labels: Any, predictions: Any, num_classes: int) -> np.ndarray:
    """How often class `i` was taken for class `j`.

    Args:
      labels: True classes, integer `[N]`.
      predictions: Predicted classes, integer `[N]`.
      num_classes: K; every class is 0 to K - 1.

    Returns:
      int64 `[K, K]`: row the true class, column the predicted one; sums to N.

    Raises:
      ValueError: Shapes differ, a class is out of range or no integer, or the matrix takes more
        than 8 GiB.

    Example:
      >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
      [[1, 1], [0, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            "confusion_matrix: labels and predictions must both be [N]; got "
            f"{labels.shape}, {predictions.shape}. Pass class indices, not logits."
        )
    for what, given in (("labels", labels), ("predictions", predictions)):
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"confusion_matrix: {what} must be integers; got {given.dtype}. Pass class indices."
            )
    if num_classes < 1 or 8 * num_classes**2 > _LARGEST:
        raise ValueError(
            f"confusion_matrix: num_classes must be 1 or more, in at most {_LARGEST / 2**30:.0f} "
            f"GiB; got {num_classes}, which takes {8 * num_classes**2 / 2**30:.3g} GiB. Count the "
            "pairs that occur: np.unique(np.stack([labels, predictions]), axis=1, "
            "return_counts=True)."
        )
    classes = np.concatenate([labels, predictions])
    if classes.size and not (0 <= classes.min() and classes.max() < num_classes):
        raise ValueError(
            f"confusion_matrix: labels and predictions must be 0 to {num_classes - 1}; got "
            f"{classes.min()} to {classes.max()}. Raise num_classes."
        )
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels.astype(np.int64), predictions.astype(np.int64)), 1)
    return matrix


@public(matrix=rows(2, "[K, K]"))
def per_class_accuracy(matrix: Any) -> np.ndarray:
    """Share of each true class that was predicted right (its recall).

    Args:
      matrix: `[K, K]` as from `confusion_matrix`.

    Returns:
      float64 `[K]`; NaN for a class without an example.

    Raises:
      ValueError: The matrix is not square.

    Example:
      >>> per_class_accuracy([[1, 1], [0, 4]]).tolist()
      [0.5, 1.0]
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"per_class_accuracy: matrix must be square; got {matrix.shape}. Pass "
            "confusion_matrix(...)."
        )
    counts = matrix.sum(1)
    return np.divide(
        np.diagonal(matrix), counts, out=np.full(len(counts), np.nan), where=counts > 0
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(apply_fn, variables, images, batch_size):
    rows = jax.lax.map(lambda x: apply_fn(variables, x), batched(images, batch_size))
    return rows.reshape(-1, *rows.shape[2:])[: len(images)]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _metrics(apply_fn, variables, images, labels, batch_size):
    return evaluate_set(apply_fn, variables, images, labels, batch_size)
