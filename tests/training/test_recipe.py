"""A run in one call: trained once, found again, and the same as doing it by hand."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from jaxviz import data, training

ADAM = optax.adam(1e-2)  # one object: an equal one would compile again
NET = nn.Dense(2)


def points(n=20):
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 2, n).astype(np.int32)
    return data.Dataset((rng.randn(n, 3) + labels[:, None]).astype(np.float32), labels, ("a", "b"))


def train(folder, **changes):
    options = dict(
        data="points", key=jax.random.key(1), optimizer=ADAM, num_epochs=2, batch_size=16,
        validation=0.2,
    )  # fmt: skip
    return training.train_run(folder, NET, points(), **(options | changes))


def test_a_second_start_trains_no_more_and_a_longer_one_goes_on(tmp_path):
    called = []
    first = train(tmp_path, on_epoch=lambda epoch, history: called.append(epoch))
    again = train(tmp_path, on_epoch=lambda epoch, history: called.append(epoch))
    assert called == [0, 1]
    for a, b in zip(
        jax.tree.leaves(first.variables), jax.tree.leaves(again.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    longer = train(tmp_path, num_epochs=3, on_epoch=lambda epoch, history: called.append(epoch))
    assert called == [0, 1, 2]
    np.testing.assert_array_equal(longer.history.loss[:2], first.history.loss)


def test_it_is_the_division_and_fit_of_the_same_key(tmp_path):
    run = train(tmp_path, checkpoints=None, options={"seed": 1})
    split_key, fit_key = jax.random.split(jax.random.key(1))
    part, held_out = data.train_validation_split(points(), split_key, 0.2)
    result = training.fit(
        NET, part, key=fit_key, optimizer=ADAM, num_epochs=2, batch_size=16, validation=held_out
    )
    np.testing.assert_array_equal(run.history.validation_loss, result.history.validation_loss)
    assert run.config["options"] == {"seed": 1, "best_epoch": result.best_epoch}
    assert not (tmp_path / "checkpoints").exists()


def test_another_division_is_refused(tmp_path):
    train(tmp_path, num_epochs=1)
    with pytest.raises(ValueError, match="must come from the same"):
        train(tmp_path, num_epochs=1, validation=0.1)


def test_a_folder_that_cannot_be_written_to_is_said_before_any_training(tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(ValueError, match="train_run: folder must be one that can be"):
        train(tmp_path / "file" / "run", on_epoch=lambda *_: pytest.fail("it was trained"))
