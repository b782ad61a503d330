"""The checkpoints that a training leaves are its variables after each epoch."""

import jax
import numpy as np
import optax
from flax import linen as nn

from jaxviz import training
from jaxviz.data import Dataset


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


def test_the_newest_epochs_are_kept_and_read_back(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    data = Dataset(x, np.arange(6, dtype=np.int32) % 2, ("a", "b"))
    options = {"key": jax.random.key(0), "optimizer": optax.adam(0.1), "batch_size": 6}
    last = training.fit(
        Net(), data, num_epochs=3, checkpoint=tmp_path, num_checkpoints=2, **options
    )
    kept = training.load_checkpoints(tmp_path)
    before = training.fit(Net(), data, num_epochs=2, **options)
    assert len(kept) == 2
    jax.tree.map(np.testing.assert_array_equal, kept[1], last.variables)
    jax.tree.map(np.testing.assert_allclose, kept[0], before.variables)
