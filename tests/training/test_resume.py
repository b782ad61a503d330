"""A training that is interrupted goes on to the same numbers; half-written files never count."""

import os
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxviz import data, training
from jaxviz.training.checkpoint import Checkpoints, read_arrays, write_arrays

ADAM = optax.adam(1e-2)  # one object: an equal one would compile again


class Net(nn.Module):
    """Batch statistics and dropout, so that every kind of state must survive."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(8, name="dense1")(x))
        x = nn.BatchNorm(use_running_average=not train, name="bn1")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="dense2")(x)


def blobs(n, seed):
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, 3, n).astype(np.int32)
    points = (rng.randn(n, 5) + labels[:, None]).astype(np.float32)
    return data.Dataset(points, labels, ("a", "b", "c"))


def fit(train=None, **options):
    defaults = dict(
        key=jax.random.key(3), batch_size=7, num_epochs=5, validation=blobs(16, 1),
        optimizer=ADAM,
    )  # fmt: skip
    return training.fit(Net(), train or blobs(32, 0), **(defaults | options))


def train_and_be_killed(folder):
    """What the other process runs: it dies after its second epoch, with no time to tidy up."""

    def on_epoch(epoch, history):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(checkpoint=folder, on_epoch=on_epoch)


class StopTraining(Exception):
    """Raised by a callback in the middle of a training."""


def stop_after(last):
    def on_epoch(epoch, history):
        if epoch == last:
            raise StopTraining

    return on_epoch


def assert_same(a, b):
    for left, right in zip(jax.tree.leaves(a.variables), jax.tree.leaves(b.variables), strict=True):
        np.testing.assert_array_equal(left, right)
    for name in training.History._fields[:-1]:  # all but the seconds
        np.testing.assert_array_equal(getattr(a.history, name), getattr(b.history, name))
    assert a.best_epoch == b.best_epoch


@pytest.fixture(scope="module")
def uninterrupted():
    return fit()


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, capfd):
    for last in (0, 2):
        with pytest.raises(StopTraining):
            fit(checkpoint=tmp_path, on_epoch=stop_after(last))
    assert_same(fit(checkpoint=tmp_path), uninterrupted)
    # Once more, with nothing left to do.
    ran = []
    again = fit(checkpoint=tmp_path, on_epoch=lambda epoch, history: ran.append(epoch))
    assert_same(again, uninterrupted)
    assert ran == []
    assert capfd.readouterr() == ("", "")


def test_more_epochs_than_before(tmp_path, uninterrupted):
    fit(num_epochs=2, checkpoint=tmp_path)
    assert_same(fit(num_epochs=5, checkpoint=tmp_path), uninterrupted)


def test_killed_and_resumed_in_another_process(tmp_path, uninterrupted):
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=here, check=False)
    assert done.returncode == -signal.SIGKILL
    resumed = []
    out = fit(checkpoint=tmp_path, on_epoch=lambda epoch, history: resumed.append(epoch))
    assert resumed == [2, 3, 4]
    assert_same(out, uninterrupted)


def test_a_half_written_checkpoint_does_not_count(tmp_path, uninterrupted):
    with pytest.raises(StopTraining):
        fit(checkpoint=tmp_path, on_epoch=stop_after(2))
    names = os.listdir(tmp_path)
    assert names == ["2"]  # one whole checkpoint, nothing else
    half = tmp_path / "3.orbax-checkpoint-tmp-17"
    (half / "arrays").mkdir(parents=True)
    (half / "arrays" / "manifest.ocdbt").write_bytes(b"half")
    assert_same(fit(checkpoint=tmp_path), uninterrupted)


def test_patience_is_remembered(tmp_path):
    options = dict(num_epochs=40, patience=2)
    whole = fit(**options)
    assert len(whole.history.loss) < 40
    with pytest.raises(StopTraining):
        fit(checkpoint=tmp_path, on_epoch=stop_after(len(whole.history.loss) - 2), **options)
    assert_same(fit(checkpoint=tmp_path, **options), whole)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"key": jax.random.key(4)}, "key"),
        ({"batch_size": 8}, "batch_size"),
        ({"train": blobs(32, 5)}, "train"),
    ],
)
def test_other_options_are_refused(tmp_path, changes, name):
    fit(num_epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=rf"must come from the same {name}; it has"):
        fit(checkpoint=tmp_path, **changes)


def test_another_optimizer_is_refused(tmp_path):
    fit(num_epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"must hold the arrays of this network and optimizer"):
        fit(checkpoint=tmp_path, optimizer=optax.sgd(1e-2))


def test_arrays_of_other_shapes_are_named(tmp_path):
    write_arrays(tmp_path / "a", {"w": jnp.ones((2, 3)), "n": jnp.arange(2)})
    back = read_arrays(tmp_path / "a", {"w": jnp.zeros((2, 3)), "n": jnp.zeros(2, jnp.int32)})
    np.testing.assert_array_equal(back["n"], [0, 1])
    with pytest.raises(ValueError, match=r"0001w is \(\(2, 3\), .*\(\(3, 2\)"):
        read_arrays(tmp_path / "a", {"w": jnp.zeros((3, 2)), "n": jnp.zeros(2, jnp.int32)})


def test_only_the_newest_checkpoint_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    for epoch in range(3):
        checkpoints.save(epoch, {"w": jnp.full(2, float(epoch))}, [[0.0]] * (epoch + 1), epoch)
    assert os.listdir(tmp_path) == ["2"]
    assert Checkpoints(tmp_path, {}).latest({"w": jnp.zeros(2)})[0]["w"].tolist() == [2.0, 2.0]
    assert Checkpoints(tmp_path / "none", {}).latest({"w": jnp.zeros(2)}) is None


if __name__ == "__main__":
    train_and_be_killed(sys.argv[1])
