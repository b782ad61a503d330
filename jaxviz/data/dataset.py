"""The data set that everything here hands on, and pure functions that divide and rescale it."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxviz.calls.public import public
from jaxviz.calls.shown import shown


class Dataset(NamedTuple):
    """Labelled images on the host.

    Attributes:
      images: float32 `[N, H, W, C]`, 0 is black and 1 full intensity.
      labels: int32 `[N]`, indices into `class_names`.
      class_names: One name a class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    __repr__ = shown


@public()
def train_validation_split(
    dataset: Dataset, key: jax.Array, fraction: float
) -> tuple[Dataset, Dataset]:
    """Divides a data set at random in two; the same key gives the same division.

    Args:
      dataset: `[N]` examples.
      key: PRNG key; everything random comes from it.
      fraction: Share of the examples that goes to the second part, `round(fraction * N)` of them.

    Returns:
      `(train, validation)`: every example is in exactly one of them.

    Raises:
      ValueError: One of the parts would be empty.

    Example:
      >>> data = Dataset(np.zeros((10, 1, 1, 1), np.float32), np.arange(10, dtype=np.int32), ())
      >>> train, validation = train_validation_split(data, jax.random.key(0), 0.3)
      >>> len(train.labels), len(validation.labels)
      (7, 3)
    """
    num_examples = len(dataset.labels)
    num_validation = round(fraction * num_examples)
    if not 0 < num_validation < num_examples:
        raise ValueError(
            "train_validation_split: fraction must leave an example in both parts; got "
            f"fraction={fraction} of {num_examples} examples. Use one between 0 and 1, such as 0.1."
        )
    order = np.asarray(jax.random.permutation(key, num_examples))
    return _take(dataset, order[num_validation:]), _take(dataset, order[:num_validation])


@public()
def normalize(images: Any, mean: Any, std: Any) -> Any:
    """`(images - mean) / std`, channel by channel.

    Args:
      images: `[N, H, W, C]`, NumPy or JAX.
      mean: One number, or one a channel.
      std: One number, or one a channel; not zero.

    Returns:
      The same kind, shape and dtype as `images`.

    Raises:
      ValueError: `mean` or `std` has neither one number nor one a channel.

    Example:
      >>> normalize(np.full((1, 1, 1, 2), 0.5, np.float32), (0.5, 0.0), 0.25)[0, 0, 0].tolist()
      [0.0, 2.0]
    """
    channels = images.shape[-1]
    parts = []
    for name, value in (("mean", mean), ("std", std)):
        value = np.atleast_1d(np.asarray(value, images.dtype))
        if value.shape not in ((1,), (channels,)):
            raise ValueError(
                f"normalize: {name} must be one number or one for each channel; got {value.shape} "
                "for "
                f"images {tuple(images.shape)}. Pass a number or {channels} of them."
            )
        parts.append(value.reshape((1,) * (images.ndim - 1) + (-1,)))
    return (images - parts[0]) / parts[1]


def _take(dataset, indices):
    return dataset._replace(images=dataset.images[indices], labels=dataset.labels[indices])
