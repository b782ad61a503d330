"""The data set that everything here hands on, and pure functions that divide and rescale it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.options import refused
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html


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
    _repr_html_ = shown_html


def labelled(who: str, option: str, value: Any) -> Dataset:
    """A data set of arrays, with one label for each image and one image at least."""
    if not isinstance(value, Dataset):
        advice = "Make one: jaxviz.data.Dataset(images, labels, class_names)."
        raise refused(who, option, "a Dataset", value, advice)
    images = numbers_list(who, f"{option}.images", value.images)
    labels = numbers_list(who, f"{option}.labels", value.labels)
    if not np.size(images) or np.shape(labels) != np.shape(images)[:1]:
        raise ValueError(
            f"{who}: {option} needs one label for each image, at least one; got images "
            f"{np.shape(images)}, labels {np.shape(labels)}. Pass images [N, ...], labels [N]."
        )
    if images is value.images and labels is value.labels:
        return value
    return value._replace(images=images, labels=labels)


def trainable(who: str, option: str, value: Any) -> Dataset:
    """A data set with floating images and integer labels."""
    found = labelled(who, option, value)
    for name, array, kind, wanted in (
        ("images", found.images, np.floating, "floating"),
        ("labels", found.labels, np.integer, "integer"),
    ):
        if not jnp.issubdtype(array.dtype, kind):
            raise TypeError(
                f"{who}: {name} must be {wanted}; got {array.dtype}. Convert them first (bytes / "
                "255 for images)."
            )
    return found


@public(dataset=labelled)
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


def _images(who, option, value):
    found = numbers_list(who, option, value)
    if not np.ndim(found) or not jnp.issubdtype(found.dtype, jnp.floating):
        must = "floating, channels last"
        raise refused(who, option, must, value, "Convert bytes first: images / 255.")
    return found


def _statistics(who, option, value):
    found = np.atleast_1d(np.asarray(numbers_list(who, option, value), np.float64))
    if isinstance(value, (bool, np.bool_)):
        raise refused(who, option, "a number, or one for each channel", value)
    if not np.isfinite(found).all() or (option == "std" and not (found > 0).all()):
        must = "finite numbers" + (" above 0" if option == "std" else "")
        raise refused(who, option, must, value, kind=ValueError)
    return found


@public(images=_images, mean=_statistics, std=_statistics)
def normalize(images: Any, mean: Any, std: Any) -> Any:
    """`(images - mean) / std`, channel by channel.

    Args:
      images: `[N, H, W, C]`, NumPy or JAX.
      mean: One number, or one a channel.
      std: One number, or one a channel; not zero.

    Returns:
      The same kind, shape and dtype as `images`.

    Raises:
      TypeError: `images` are not floating.
      ValueError: `mean` or `std` has neither one number nor one a channel, or is not finite; a
        `std` is not above 0.

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
