"""Training on labels that mean nothing: what an explanation shows then is not what was learned."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.public import public
from jaxviz.data.dataset import Dataset, trainable
from jaxviz.training.fitting import Fit, fit


@public(train=trainable)
def fit_shuffled(net: nn.Module, train: Dataset, *, key: jax.Array, **options: Any) -> Fit:
    """`fit`, with the labels of the training set dealt out anew among its images.

    The net can only learn them by heart: train it until its accuracy says so. What an explanation
    shows of it, on images that it has seen, should not be what it shows of a net that has learned
    the true labels; where it is, the method draws the image and not the net.

    Args:
      net: Linen module, as for `fit`.
      train: Images `[N, ...]` and labels `[N]`.
      key: PRNG key; the new order comes from it too.
      **options: Those of `fit`. A `validation` set keeps its labels, and so chooses by chance.

    Returns:
      What `fit` returns.

    Example:
      >>> data = Dataset(np.eye(4, dtype=np.float32), np.arange(4, dtype=np.int32), tuple("abcd"))
      >>> shuffled_labels(data.labels, jax.random.key(1)).tolist() == data.labels.tolist()
      False

    Reference:
      Adebayo et al. 2018, arXiv:1810.03292, section 4 (the data randomisation test).
    """
    order_key, fit_key = jax.random.split(key)
    labels = shuffled_labels(train.labels, order_key)
    return fit(net, train._replace(labels=labels), key=fit_key, **options)


def shuffled_labels(labels: Any, key: jax.Array) -> np.ndarray:
    """The same labels `[N]` in a random order: as many of each."""
    return np.asarray(jax.random.permutation(key, jnp.asarray(labels)))
