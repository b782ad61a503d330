"""Token ids through every method that takes them: beside Captum, and what padding gets."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv

PEERS = np.load(pathlib.Path(__file__).parents[1] / "reference" / "token_peers.npz")
IDS = jnp.asarray(PEERS["ids"], jnp.int32)
PARAMS = {k: jnp.asarray(PEERS[k], jnp.float32) for k in "words query key value out".split()}
PADDING = np.asarray(IDS) == 0
KEY = jax.random.key(0)
SEGMENTS = np.where(PADDING, -1, np.array([0, 0, 1, 2, 3, 3]))  # of words; none of padding


def net(p, ids):
    real = ids > 0
    a = checkpoint_name(p["words"][ids], "embed")
    scores = (a @ p["query"]) @ (a @ p["key"]).mT
    a = a + jax.nn.softmax(jnp.where(real[:, None, :], scores, -jnp.inf)) @ (a @ p["value"])
    shown = real.astype(a.dtype)[..., None]
    return (jax.nn.relu(a) * shown).sum(1) / shown.sum(1) @ p["out"]


def test_the_net_is_captums():
    np.testing.assert_allclose(net(PARAMS, IDS), PEERS["outputs"], atol=1e-5)


@pytest.mark.parametrize("name", ["integrated_gradients", "input_x_gradient"])
def test_layers_as_captum_has_them(name):
    baseline = {"baseline": jnp.zeros_like(IDS)} if name == "integrated_gradients" else {}
    found = jv.at_layer(getattr(jv, name), "embed")(net, PARAMS, IDS, 1, **baseline)
    np.testing.assert_allclose(found, PEERS[name], atol=1e-4)


def test_ablation_as_captum_has_it():
    found = jv.feature_ablation(net, PARAMS, IDS, 1, segments=np.arange(6), fill=6)
    seen = np.where(PADDING, 0, PEERS["feature_ablation"])  # Captum's mask is ours of the ids
    np.testing.assert_allclose(np.where(PADDING, 0, found), seen, atol=1e-4)


GRADIENTS = {
    **{name: {} for name in ("gradient", "saliency", "input_x_gradient", "lrp", "guided_backprop")},
    **{name: {"baseline": jnp.zeros_like(IDS)} for name in ("integrated_gradients", "deep_lift")},
    "deep_lift_shap": {"baselines": jnp.zeros_like(IDS)},
    "expected_gradients": {"baselines": jnp.zeros_like(IDS), "key": KEY, "num_samples": 4},
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_padding_gets_nothing_at_the_embedding(name):
    found = jv.at_layer(getattr(jv, name), "embed")(net, PARAMS, IDS, 1, **GRADIENTS[name])
    assert np.isfinite(found).all()
    assert np.abs(np.asarray(found)[PADDING]).max() == 0
    assert np.abs(np.asarray(found)[~PADDING]).max() > 0
    if name in ("integrated_gradients", "deep_lift", "deep_lift_shap"):
        blank = jnp.broadcast_to(PARAMS["words"][0], (2, 6, 6))
        head, tail = jv.split(net, PARAMS, IDS, "embed")
        start = tail((PARAMS, head(PARAMS, IDS)[1]), blank)
        gained = (net(PARAMS, IDS) - start)[:, 1]
        close = 0.03 if name == "integrated_gradients" else 2e-4  # 50 points across kinks
        np.testing.assert_allclose(np.asarray(found).sum((1, 2)), gained, atol=close)


def score(ids):
    return np.asarray(net(PARAMS, jnp.asarray(ids)))[:, 1]


def shapley_by_hand():
    """Over the four words of the second sentence, every order of hiding them."""
    found = np.zeros(4)
    for bits in range(16):
        shown = [(bits >> g) & 1 for g in range(4)]
        for g in (g for g in range(4) if not shown[g]):
            size = sum(shown)
            weight = [1 / 4, 1 / 12, 1 / 12, 1 / 4][size]
            both = []
            for last in (0, 1):
                keep = np.array(shown)
                keep[g] = last
                both.append(score(np.where(keep[SEGMENTS[1:]], np.asarray(IDS[1:]), 6))[0])
            found[g] += weight * (both[1] - both[0])
    return found


HIDING = {
    "shapley_values": {},
    "shapley_sampling": {"key": KEY, "num_samples": 200},
    "kernel_shap": {"key": KEY, "num_samples": 64},
}


@pytest.fixture(scope="module")
def shares():
    return shapley_by_hand()


@pytest.mark.parametrize("name", HIDING)
def test_words_of_several_tokens_are_hidden_together(name, shares):
    out = getattr(jv, name)(net, PARAMS, IDS, 1, segments=SEGMENTS, fill=6, **HIDING[name])
    found = np.asarray(out[0])
    assert np.abs(found[PADDING]).max() == 0
    tolerance = 0.15 * np.abs(shares).max() if name == "shapley_sampling" else 1e-4
    np.testing.assert_allclose(found[1], shares[SEGMENTS[1]], atol=tolerance)
    np.testing.assert_allclose(
        found[1][[0, 2, 3, 4]].sum(), score(IDS)[1] - score(np.full((2, 6), 6))[1], atol=1e-3
    )
