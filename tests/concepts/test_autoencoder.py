"""Training of autoencoders: planted units come back, many at once are each alone, files go on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxviz import concepts
from jaxviz.concepts import autoencoder_training, sparse_autoencoder, transcode, transcoder
from jaxviz.concepts.autoencoder_losses import Fixed, first_weights, losses

RNG = np.random.default_rng(0)
PLANTED = RNG.normal(size=(10, 8)).astype(np.float32)
PLANTED /= np.linalg.norm(PLANTED, axis=1, keepdims=True)
CODES = np.where(np.argsort(RNG.random((1024, 10)), 1) < 2, RNG.uniform(0.5, 1.5, (1024, 10)), 0)
VALUES = (3 * CODES @ PLANTED + 1).astype(np.float32)
QUICK = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
KEY = jax.random.key(0)
SMALL = {"key": KEY, "batch_size": 64, "optimizer": QUICK}


OPTIONS = {**SMALL, "num_units": [8, 16], "keep": 2, "num_seeds": 2, "dead_after": 50}


@pytest.fixture(scope="module")
def top_k():
    return sparse_autoencoder(VALUES, **OPTIONS, num_steps=400)


def test_planted_units_are_found(top_k):
    wide = top_k.num_units == 16
    for index in np.flatnonzero(wide):
        matched = concepts.matched_atoms(PLANTED, top_k.dictionaries[index])
        assert matched.mean() > 0.95  # 10 random directions of 16: 0.6
    assert (top_k.explained_variance[wide] > 0.93).all()
    assert top_k.num_units.tolist() == [8, 8, 16, 16]
    assert top_k.seed.tolist() == [0, 1, 0, 1]


def test_the_final_numbers_are_those_of_the_dictionaries(top_k):
    for index, dictionary in enumerate(top_k.dictionaries):
        codes = np.asarray(concepts.encode(dictionary, VALUES))
        off = ((np.asarray(concepts.decode(dictionary, codes)) - VALUES) ** 2).sum()
        variance = ((VALUES - VALUES.mean(0)) ** 2).sum()
        np.testing.assert_allclose(top_k.explained_variance[index], 1 - off / variance, atol=1e-4)
        np.testing.assert_allclose(top_k.l0[index], (codes > 0).sum(1).mean(), rtol=1e-5)
        np.testing.assert_allclose(top_k.dead[index], (codes == 0).all(0).mean(), rtol=1e-5)
    agreement = concepts.matched_atoms(*top_k.dictionaries[2:]).mean()
    np.testing.assert_allclose(top_k.stability[2:], agreement, rtol=1e-5)
    assert top_k.history.loss.shape == (4, 400)
    np.testing.assert_allclose(
        top_k.history.explained_variance[:, -20:].mean(1), top_k.explained_variance, atol=0.03
    )


def test_the_first_step_is_that_of_each_alone(top_k):
    fixed = Fixed("top_k", False, "dead", 1.0, 0.05, (), 1.0, 50)
    scaled = (VALUES - VALUES.mean(0)) / VALUES.std()
    scaled /= np.sqrt(((scaled - scaled.mean(0)) ** 2).mean())
    batch = scaled[jax.random.randint(jax.random.fold_in(KEY, 0), (64,), 0, len(VALUES))]

    @jax.jit
    def loss(seed):
        first = first_weights(fixed, jax.random.fold_in(KEY, seed), 16, 8, 8, None)
        dead = jnp.zeros(16, bool)
        keep = jnp.float32(2)
        return losses(fixed, first, batch, batch, keep, 2, dead, dead[0], None)[0].total()

    np.testing.assert_allclose(top_k.history.loss[2:, 0], [loss(0), loss(1)], rtol=1e-5)


def jit_alone(function, static_argnums):
    return jax.jit(function, static_argnums=static_argnums)


def test_one_core_trains_what_several_do(monkeypatch):
    options = OPTIONS | {"num_steps": 20}
    several = sparse_autoencoder(VALUES, **options)
    monkeypatch.setattr(autoencoder_training, "shared_program", jit_alone)
    one = sparse_autoencoder(VALUES, **options)
    np.testing.assert_allclose(one.history.loss, several.history.loss, rtol=1e-4)
    assert one.history.loss.shape == (4, 20)


def test_a_file_goes_on_to_the_same_bytes(top_k, tmp_path):
    path = tmp_path / "state.safetensors"
    own = OPTIONS | {"checkpoint": path}
    sparse_autoencoder(VALUES, **own, num_steps=70)
    resumed = sparse_autoencoder(VALUES, **own, num_steps=400)
    for a, b in zip(jax.tree.leaves(top_k), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"checkpoint must be of the same .* another keep"):
        sparse_autoencoder(VALUES, **(own | {"keep": 1}), num_steps=400)
    with pytest.raises(ValueError, match=r"another rows"):
        sparse_autoencoder(VALUES[1:], **own, num_steps=400)
    with pytest.raises(ValueError, match="num_steps must be at least 400"):
        sparse_autoencoder(VALUES, **own, num_steps=10)
    path.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="sparse_autoencoder: checkpoint must be a file that"):
        sparse_autoencoder(VALUES, **own, num_steps=400)


def test_a_transcoder_finds_the_units_of_an_mlp_block_by_block():
    x = RNG.normal(size=(1024, 4)).astype(np.float32)
    writes = RNG.normal(size=(4, 6)).astype(np.float32)
    y = np.maximum(x - 0.5, 0) @ writes + 2
    asked = []

    def block(number):
        asked.append(number)
        part = slice(number % 2 * 512, number % 2 * 512 + 512)
        return x[part].reshape(8, 64, 4), y[part].reshape(8, 64, 6)

    units = {"num_units": 10, "kind": "standard", "penalty": 0.02}
    found = transcoder(block, **SMALL, **units, num_steps=330)
    assert asked == list(range(42))  # 512 rows are 8 steps of 64
    matched = concepts.matched_atoms(writes, found.dictionaries[0].atoms)
    assert matched.mean() > 0.95
    made = transcode(found.dictionaries[0], x[512:])  # the last block
    error = ((made.outputs - y[512:]) ** 2).sum() / ((y[512:] - y[512:].mean(0)) ** 2).sum()
    assert error < 0.05
    with pytest.raises(TypeError, match="what activations"):
        sparse_autoencoder(lambda n: [1.0], **SMALL, num_units=2)
    with pytest.raises(TypeError, match="transcoder: outputs must be given"):
        transcoder(x, **SMALL, num_units=2)
    with pytest.raises(ValueError, match="transcoder: inputs and outputs must have the same"):
        transcoder(x, y[1:], **SMALL, num_units=2)


def test_activations_of_a_layer_are_all_of_them_once_an_epoch():
    net = lambda w, x: jax.nn.relu(x * w).sum((1, 2))
    x = np.arange(24, dtype=np.float32).reshape(6, 2, 1, 2)
    block = concepts.activations_of(net, 2.0, x, layer="relu_0", key=KEY, num_rows=6, batch_size=2)
    rows = np.concatenate([block(0), block(1)])
    assert rows.shape == (12, 2)
    np.testing.assert_array_equal(np.sort(rows, 0), 2 * x.reshape(12, 2))
    np.testing.assert_array_equal(block(1), rows[6:])
    assert (np.asarray(block(2)) != rows[:6]).any()
    with pytest.raises(ValueError, match=r"activations_of: .*relu_0"):
        concepts.activations_of(net, 2.0, x, layer="relu_9", key=KEY)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep": 5}, "keep must be at most num_units, 4"),
        ({"keep": 1.5}, "keep must be whole"),
        ({"penalty": 1.0}, "penalty must be left out"),
        ({"kind": "gated", "keep": 1}, "keep must be left out"),
        ({"points": VALUES}, "points must be left out"),
        ({"kind": "archetypal", "points": VALUES[:, 1:]}, r"points must be \[P, 8\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, told):
    with pytest.raises(ValueError, match=f"sparse_autoencoder: {told}"):
        sparse_autoencoder(VALUES, **SMALL, num_units=4, num_steps=1, **options)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="activations must be finite"):
        sparse_autoencoder(jnp.full((4, 3), jnp.nan), key=KEY, num_units=4)


def test_partners_are_chosen_together():
    a = np.array([[1.0, 0.0], [0.9, 0.1]])
    b = np.array([[1.0, 0.0], [0.0, 1.0]])
    sizes = np.linalg.norm(a, axis=1)
    np.testing.assert_allclose(concepts.matched_atoms(a, b), [1, 0.1 / sizes[1]], rtol=1e-5)
    np.testing.assert_allclose(concepts.matched_atoms(a, b[:1]), [1, 0])
    assert concepts.matched_atoms(a[:1], -a[:1], absolute=True).tolist() == [1]
    with pytest.raises(ValueError, match="same number of channels"):
        concepts.matched_atoms(a, np.ones((2, 3)))


def test_the_loss_recovered_is_that_of_the_model_with_its_layer_decoded():
    w = {"a": RNG.normal(size=(3, 4)), "b": RNG.normal(size=(4, 3))}
    w = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), w)
    net = lambda w, x: (jax.nn.relu(jnp.moveaxis(x, 1, -1) @ w["a"]) @ w["b"]).mean((1, 2))
    x = RNG.normal(size=(10, 3, 2, 2)).astype(np.float32)
    labels = np.arange(10) % 3
    encoder = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    dictionary = concepts.Dictionary(encoder.T, encoder, threshold=jnp.zeros(()))
    found = concepts.loss_recovered(net, w, x, labels, dictionary, layer="relu_0", batch_size=5)
    a = np.maximum(np.moveaxis(x, 1, -1) @ np.asarray(w["a"]), 0)
    rebuilt = np.maximum(a @ np.asarray(encoder), 0) @ np.asarray(encoder).T

    def loss(a):
        logits = (a @ np.asarray(w["b"])).mean((1, 2))
        return -(logits - np.log(np.exp(logits).sum(1))[:, None])[np.arange(10), labels].mean()

    expected = [loss(a), loss(rebuilt), loss(0 * a)]
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5)
    share = (expected[2] - expected[1]) / (expected[2] - expected[0])
    np.testing.assert_allclose(found.recovered, share, rtol=1e-4)
    with pytest.raises(ValueError, match="dictionary must have the layer's 4 channels"):
        concepts.loss_recovered(net, w, x, labels, concepts.Dictionary(jnp.eye(3)), layer="relu_0")
    with pytest.raises(
        ValueError, match=r"loss_recovered: labels must hold .* pass loss_fn\(outputs, labels\)"
    ):
        concepts.loss_recovered(net, w, x, labels / 2, dictionary, layer="relu_0")
