"""`fit`: steps against NumPy, epochs, patience, what it keeps, what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxviz import data, training
from jaxviz.training.epoch import run_epoch

KEY = jax.random.key(0)
SGD = optax.sgd(1.0)  # one object: an equal one would compile again


class Linear(nn.Module):
    """Logits x @ kernel."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, use_bias=False, name="dense")(x)


class Small(nn.Module):
    """A convolution, batch normalisation and dropout: all that training must handle."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv1")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn1")(x)
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(3, name="dense")(x)


def blobs(n, seed=0):
    """Images whose class is the column that is bright."""
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, 3, n).astype(np.int32)
    images = 0.3 * rng.rand(n, 6, 6, 1)
    images[np.arange(n), :, 2 * labels] += 1.0
    return data.Dataset(images.astype(np.float32), labels, ("left", "middle", "right"))


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_one_step_is_the_gradient_worked_out_by_hand():
    """Softmax regression: d loss / d W = x^T (p - y) / N."""
    rng = np.random.RandomState(0)
    x = rng.randn(5, 3).astype(np.float32)
    y = np.array([0, 1, 1, 0, 1], np.int32)
    w = rng.randn(3, 2).astype(np.float32)
    out = training.fit(
        Linear(),
        data.Dataset(x, y, ("a", "b")),
        key=KEY,
        optimizer=optax.sgd(0.5),
        num_epochs=1,
        batch_size=5,
        initial={"params": {"dense": {"kernel": jnp.asarray(w)}}},
    )
    p = softmax(x @ w)
    expected = w - 0.5 * x.T @ (p - np.eye(2)[y]) / 5
    np.testing.assert_allclose(out.variables["params"]["dense"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(out.history.loss, [-np.log(p[np.arange(5), y]).mean()], rtol=1e-5)
    assert out.history.accuracy[0] == np.float32((p.argmax(1) == y).mean())
    assert out.best_epoch == 0
    assert np.isnan(out.history.validation_loss).all()


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(5, 2, 3), (6, 2, 3), (7, 7, 1), (7, 3, 3)])
def test_every_example_is_used_once_an_epoch(n, batch_size, steps):
    """With a learning rate of zero the mean loss is that of the whole set, whatever the batches."""
    rng = np.random.RandomState(1)
    x = (3.0 ** np.arange(n)[:, None] * [1, 0]).astype(np.float32)  # no two sums of losses agree
    w = np.array([[0.1, -0.1], [0.0, 0.0]], np.float32)
    y = rng.randint(0, 2, n).astype(np.int32)
    count = optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), state + 1),
    )
    counts = []
    out = training.fit(
        Linear(),
        data.Dataset(x, y, ("a", "b")),
        key=KEY,
        optimizer=optax.chain(count, optax.sgd(0.0)),
        num_epochs=2,
        batch_size=batch_size,
        initial={"params": {"dense": {"kernel": jnp.asarray(w)}}},
        augment=lambda key, images: (counts.append(len(images)), images)[1],
    )
    losses = -np.log(softmax(x.astype(np.float64) @ w)[np.arange(n), y])
    np.testing.assert_allclose(out.history.loss, [losses.mean()] * 2, rtol=1e-5)
    assert sorted(set(counts)) == sorted({batch_size} | ({n % batch_size} - {0}))
    assert -(-n // batch_size) == steps


def test_batches_come_in_a_new_order_each_epoch():
    """One example at a time at a high rate: the result depends on the order."""
    train = blobs(12)
    kernels = []
    for seed in (0, 1):
        out = training.fit(
            Linear(3),
            train,
            key=jax.random.key(seed),
            optimizer=SGD,
            num_epochs=1,
            batch_size=1,
            initial={"params": {"dense": {"kernel": jnp.zeros((36, 3))}}},
        )
        kernels.append(out.variables["params"]["dense"]["kernel"])
    assert jnp.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_it_learns_and_validates_with_dropout_off():
    train, validation = blobs(60), blobs(30, seed=1)
    options = dict(optimizer=optax.adam(3e-2), batch_size=16, num_epochs=8)
    out = training.fit(Small(), train, validation=validation, key=KEY, **options)
    assert out.history.validation_accuracy[out.best_epoch] >= 0.95
    assert all(len(column) == 8 for column in out.history)
    # An independent evaluation of the best variables gives the best epoch's number back.
    logits = Small().apply(out.variables, jnp.asarray(validation.images))
    accuracy = (np.argmax(logits, 1) == validation.labels).mean()
    np.testing.assert_allclose(accuracy, out.history.validation_accuracy[out.best_epoch], rtol=1e-6)
    p = softmax(np.asarray(logits, np.float64))[np.arange(30), validation.labels]
    np.testing.assert_allclose(
        -np.log(p).mean(), out.history.validation_loss[out.best_epoch], rtol=1e-4
    )
    assert (out.history.seconds > 0).all()


def test_batch_statistics_follow_the_batches():
    """One batch: running = 0.9 * initial + 0.1 * the batch's own, by definition."""

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
            return nn.Dense(2, name="dense")(x)

    x = np.random.RandomState(0).randn(8, 2).astype(np.float32)
    train = data.Dataset(x, np.arange(8, dtype=np.int32) % 2, ("a", "b"))
    out = training.fit(Norm(), train, key=KEY, optimizer=optax.sgd(0.1), num_epochs=1, batch_size=8)
    stats = out.variables["batch_stats"]["bn"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(0), rtol=1e-4)


def test_same_key_same_numbers_and_one_compilation():
    train = blobs(20)
    optimizer = optax.adam(1e-2)

    def run(seed):
        return training.fit(
            Small(),
            train,
            key=jax.random.key(seed),
            optimizer=optimizer,
            num_epochs=2,
            batch_size=8,
        )

    first = run(0)
    before = run_epoch._cache_size()
    second, other = run(0), run(1)
    assert run_epoch._cache_size() == before
    for a, b in zip(
        jax.tree.leaves(first.variables), jax.tree.leaves(second.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.history.loss, second.history.loss)
    assert first.history.loss[0] != other.history.loss[0]


def test_patience_stops_and_the_best_epoch_is_kept():
    """Climbing the loss from its optimum: every epoch is worse than the first."""
    train = blobs(30)
    good = jnp.zeros((6, 6, 3)).at[:, [0, 2, 4], [0, 1, 2]].set(1.0).reshape(36, 3)
    for monitor in ("validation_accuracy", "validation_loss"):
        out = training.fit(
            Linear(3),
            train,
            validation=train,
            key=KEY,
            optimizer=optax.sgd(-3.0),
            num_epochs=10,
            batch_size=10,
            patience=3,
            monitor=monitor,
            initial={"params": {"dense": {"kernel": good}}},
        )
        assert len(out.history.loss) == out.best_epoch + 1 + 3
        column = getattr(out.history, monitor)
        best = column.max() if monitor == "validation_accuracy" else column.min()
        assert column[out.best_epoch] == best
        logits = train.images.reshape(30, -1) @ out.variables["params"]["dense"]["kernel"]
        assert (np.argmax(logits, 1) == train.labels).mean() == np.float32(
            out.history.validation_accuracy[out.best_epoch]
        )


def test_a_diverged_training_is_shown_not_raised():
    out = training.fit(
        Linear(3),
        blobs(12),
        validation=blobs(6),
        key=KEY,
        optimizer=optax.sgd(jnp.inf),
        num_epochs=5,
        batch_size=4,
        patience=2,
    )
    assert np.isnan(out.history.loss).any()
    assert len(out.history.loss) <= 5


def test_fast_gives_the_same_training_up_to_rounding():
    train = blobs(24)
    outs = [
        training.fit(
            Small(), train, key=KEY, optimizer=optax.sgd(0.1), num_epochs=2, batch_size=8, fast=fast
        )
        for fast in (True, False)
    ]
    np.testing.assert_allclose(outs[0].history.loss, outs[1].history.loss, rtol=1e-4)


def test_augmentation_gets_keys_and_batches():
    seen = []

    def augment(key, images):
        seen.append((key.shape, images.shape))
        return jnp.zeros_like(images)

    out = training.fit(
        Linear(3), blobs(8), key=KEY, optimizer=SGD, num_epochs=1, batch_size=4,
        augment=augment,
    )  # fmt: skip
    assert seen == [((), (4, 6, 6, 1))]
    np.testing.assert_allclose(out.history.loss, np.log(3.0), rtol=1e-6)  # it saw black images


def test_nothing_is_printed_without_a_terminal(capfd, tmp_path):
    epochs = []
    training.fit(
        Linear(3),
        blobs(8),
        key=KEY,
        optimizer=SGD,
        num_epochs=2,
        batch_size=4,
        checkpoint=tmp_path / "run",
        on_epoch=lambda epoch, history: epochs.append((epoch, len(history.loss))),
    )
    assert capfd.readouterr() == ("", "")
    assert epochs == [(0, 1), (1, 2)]


def test_a_terminal_shows_loss_and_accuracy(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    training.fit(
        Linear(3), blobs(8), key=KEY, optimizer=SGD, num_epochs=1, batch_size=4,
        validation=blobs(4),
    )  # fmt: skip
    shown = capfd.readouterr().err
    assert "1/1" in shown
    assert "loss" in shown
    assert "validation" in shown


GOOD = blobs(8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"net": "mnist_a"}, TypeError, r"net must be a Flax Linen module; got 'mnist_a'"),
        ({"train": GOOD._replace(images=np.zeros((8, 6, 6, 1), np.uint8))}, TypeError, "got uint8"),
        ({"train": GOOD._replace(labels=np.zeros(8, np.float32))}, TypeError, "labels must be int"),
        ({"train": GOOD._replace(labels=GOOD.labels[:7])}, ValueError, r"one label for each image"),
        ({"train": GOOD._replace(labels=GOOD.labels + 1)}, ValueError, r"labels must be 0 to 2"),
        ({"validation": blobs(4)._replace(images=np.zeros((4, 5, 5, 1), np.float32))},
         ValueError, r"validation must have images \[N, 6, 6, 1\].*\(4, 5, 5, 1\)"),
        ({"net": nn.Dense(3)}, ValueError, r"logits \[N, K\]; got .*\(2, 6, 6, 3\)"),
        ({"batch_size": 9}, ValueError, "must be 1 to the number of examples, 8; got 9"),
        ({"batch_size": 0}, ValueError, r"got 0"),
        ({"num_epochs": 0}, ValueError, r"num_epochs must be at least 1; got 0"),
        ({"patience": 2}, ValueError, r"patience.*needs a validation set"),
        ({"validation": GOOD, "patience": 0}, ValueError, r"patience must be at least 1"),
        ({"monitor": "loss"}, ValueError, r"monitor must be one of .*got 'loss'"),
        ({"initial": {"kernel": jnp.zeros(3)}}, ValueError, r"must have \"params\""),
        ({"initial": [1]}, TypeError, "initial must be a dict"),
        ({"initial": {"params": {"dense": {}}}}, ValueError, r"net must take images \(6, 6, 1\)"),
        ({"train": (GOOD.images, GOOD.labels)}, TypeError, "train must be a Dataset"),
        ({"train": GOOD._replace(images=np.ma.masked_array(GOOD.images))}, TypeError, "a mask"),
        ({"train": GOOD._replace(images=GOOD.images.astype(object))}, TypeError, "of numbers"),
        ({"train": GOOD._replace(images=GOOD.images[:0], labels=GOOD.labels[:0])}, ValueError,
         "at least one"),
        ({"train": GOOD._replace(labels=["a"] * 8)}, TypeError, "labels must be an array of num"),
        ({"train": GOOD._replace(labels=None)}, TypeError, "labels must be an array of numbers"),
        ({"validation": GOOD._replace(labels=np.eye(3)[GOOD.labels])}, ValueError, "one label for"),
        ({"validation": GOOD._replace(labels=GOOD.labels > 1)}, TypeError, "labels must be int"),
        ({"validation": GOOD._replace(images=GOOD.images.astype(np.uint8))}, TypeError, "uint8"),
        ({"augment": lambda key: key}, ValueError, "augment must be a function"),
        ({"augment": lambda key, images: images[:1]}, ValueError, "augment must return floating"),
        ({"augment": lambda key, images: images.astype(int)}, ValueError, "augment must return"),
        ({"augment": lambda key, images: images.sum()}, ValueError, "augment must return"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(changes, error, message):
    arguments = {"net": Linear(3), "train": GOOD, "batch_size": 4, "num_epochs": 1, **changes}
    net, train = arguments.pop("net"), arguments.pop("train")
    with pytest.raises(error, match=f"^fit: .*{message}"):
        training.fit(net, train, key=KEY, optimizer=SGD, **arguments)


class Odd(nn.Module):
    """Outputs that are no logits `[N, K]`."""

    kind: str

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(3, name="dense")(x.reshape(len(x), -1))
        return {
            "one axis": lambda: logits[:, 0],
            "averaged": lambda: logits.mean(0, keepdims=True),
            "turned": lambda: logits.T,
            "pair": lambda: (logits, logits),
            "classes": lambda: logits.argmax(1, keepdims=True),
            "complex": lambda: jax.lax.complex(logits, logits),
            "nothing": lambda: None,
            "no class": lambda: logits[:, :0],
        }[self.kind]()


@pytest.mark.parametrize(
    "kind",
    ["one axis", "averaged", "turned", "pair", "classes", "complex", "nothing", "no class"],
)
def test_nets_without_logits_are_refused(kind):
    variables = Odd("turned").init(KEY, GOOD.images)
    with pytest.raises(ValueError, match=r"^fit: net must give floating logits"):
        training.fit(Odd(kind), GOOD, key=KEY, optimizer=SGD, num_epochs=1, batch_size=4)
    with pytest.raises(ValueError, match=r"^predict: net must give floating logits"):
        training.predict(Odd(kind), variables, GOOD.images)
    with pytest.raises(ValueError, match=r"^evaluate: net must give floating logits"):
        training.evaluate(Odd(kind), variables, GOOD)


def test_other_byte_orders_and_lists_train_to_the_same_numbers():
    options = {"key": KEY, "optimizer": SGD, "num_epochs": 1, "batch_size": 4}
    foreign = GOOD._replace(images=GOOD.images.astype(">f4"), labels=GOOD.labels.tolist())
    a, b = (training.fit(Linear(3), data, **options) for data in (GOOD, foreign))
    for first, second in zip(*map(jax.tree.leaves, (a.variables, b.variables)), strict=True):
        np.testing.assert_array_equal(first, second)
    same = training.evaluate(Linear(3), a.variables, foreign)
    assert same.accuracy == training.evaluate(Linear(3), a.variables, GOOD).accuracy
