"""The numbers of a training, epoch by epoch."""

from typing import NamedTuple

import numpy as np

from jaxviz.calls.shown import shown, shown_html


class History(NamedTuple):
    """One number an epoch; float32 `[num_epochs run]` each.

    Attributes:
      loss: Mean cross entropy of the training steps, in nats, dropout and augmentation on.
      accuracy: Share of the training examples that those steps got right.
      validation_loss: Mean cross entropy on the validation set after the epoch; NaN without one.
      validation_accuracy: Share of it that is right; NaN without one.
      seconds: Wall time of the epoch, compilation included (the only numbers not set by the key).
    """

    loss: np.ndarray
    accuracy: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray
    seconds: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html
