"""CAV and TCAV: probes against scikit-learn, scores by hand and by Captum, planted concepts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge

from jaxviz.concepts import cav, concept_sensitivity, tcav

RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
KEY = jax.random.key(0)
PEER = np.load(pathlib.Path(__file__).parent.parent / "reference" / "tcav.npz")


@pytest.mark.parametrize(
    ("features", "probe"), [(5, "logistic"), (60, "ridge"), (5, "pattern")]
)  # fewer numbers than examples, and more
def test_probes_are_those_of_scikit_learn(features, probe):
    # One example on each side is held out, the first in an order drawn from the key.
    concept, random = draw(12, features) + 0.3, draw(1, 20, features)
    options = {"key": KEY, "held_out": 0.01, "penalty": 2.0}
    keys = jax.random.split(KEY)
    drawn = [jax.random.uniform(k, (1, n))[0] for k, n in zip(keys, (12, 20), strict=True)]
    order = [np.argsort(a)[1:] for a in drawn]
    p, n = np.float64(concept)[order[0]], np.float64(random[0])[order[1]]
    x = np.concatenate([p, n]) - (p.mean(0) + n.mean(0)) / 2
    y, weight = np.r_[np.ones(11), -np.ones(19)], np.r_[np.full(11, 15 / 11), np.full(19, 15 / 19)]
    x /= np.sqrt((weight[:, None] * x * x).mean())
    if probe == "pattern":
        fitted = p.mean(0) - n.mean(0)
    elif probe == "ridge":
        fitted = Ridge(alpha=2.0).fit(x, y, sample_weight=weight).coef_
    else:
        logistic = LogisticRegression(C=0.5, class_weight="balanced", tol=1e-10, max_iter=10_000)
        fitted = logistic.fit(x, y).coef_[0]
    found = _unrefused(concept, random, probe, options)
    np.testing.assert_allclose(found, fitted / np.linalg.norm(fitted), atol=2e-4)


def _unrefused(concept, random, probe, options):
    """The vector, whatever its accuracy on one example is."""
    from jaxviz.concepts.cav import probes

    zero = np.zeros(1, int)
    rest = (options["key"], probe, options["penalty"], options["held_out"])
    return probes(jnp.asarray(concept)[None], jnp.asarray(random), zero, zero, *rest).vectors[0]


def test_accuracy_is_that_of_examples_held_out_and_chance_is_refused():
    far = draw(6, 3) + np.float32([20, 0, 0])
    found = cav(far, draw(1, 6, 3), key=KEY, probe="pattern")
    assert found.accuracy.tolist() == [1.0]
    assert (found.vectors[:, 0] > 0.9).all()
    same = np.ones((6, 3), np.float32)
    with pytest.raises(ValueError, match=r"cav: concept must be told from random .* got 0\.50"):
        cav(same, same[None], key=KEY, probe="pattern")
    traced = jax.jit(lambda a: cav(a, a[None], key=KEY, probe="pattern").vectors)(same)
    assert np.isnan(traced).all()


def test_scores_are_captums():
    def net(params, x):
        layout = ("NHWC", "HWIO", "NHWC")
        conv = jax.lax.conv_general_dilated
        a = jax.nn.relu(conv(x, params["kernel"], (1, 1), "SAME", dimension_numbers=layout))
        return (a**2).mean((1, 2)) @ params["dense"]

    params = {k: PEER[k] for k in ("kernel", "dense")}
    vectors = PEER["vectors"]
    slopes = concept_sensitivity(net, params, PEER["x"], 1, layer="relu_0", vectors=vectors)
    np.testing.assert_allclose((slopes > 0).mean(0), PEER["scores"], atol=1e-6)
    assert len(set(PEER["scores"])) > 2
    # A direction of channels is the same direction at every place.
    every = np.broadcast_to(vectors[:, :1, :1], vectors.shape)
    one, all_ = (
        concept_sensitivity(net, params, PEER["x"], 1, layer="relu_0", vectors=v)
        for v in (vectors[:, 0, 0], every)
    )
    np.testing.assert_allclose(one, all_, rtol=1e-5, atol=1e-7)


def test_sensitivity_of_a_quadratic_model_by_hand_with_channels_first_and_tokens():
    net = lambda w, x: (jnp.tanh(x) ** 2 * w[None]).sum((1, 2), keepdims=True)[:, 0]
    x, w, vectors = draw(4, 3, 2), draw(3, 2), draw(5, 2)
    found = concept_sensitivity(net, w, x, 0, layer="tanh_0", vectors=vectors)
    np.testing.assert_allclose(found, (2 * np.tanh(x) * w).sum(1) @ vectors.T, rtol=1e-4, atol=1e-5)
    kernel = draw(3, 2, 1, 1)
    first = lambda k, x: (jax.lax.conv(x, k, (1, 1), "SAME") ** 2).sum((1, 2, 3))[:, None]
    x, vectors = draw(4, 2, 2, 2), draw(5, 3)
    found = concept_sensitivity(first, kernel, x, 0, layer="conv_0", vectors=vectors)
    a = np.einsum("nchw,kc->nkhw", x, kernel[..., 0, 0])
    np.testing.assert_allclose(found, 2 * a.sum((2, 3)) @ vectors.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"concept_sensitivity: vectors must be \[V, 3\]"):
        concept_sensitivity(first, kernel, x, 0, layer="conv_0", vectors=draw(5, 4))


# Channels that raise the score, lower it, and have no part in it.
WEIGHTS = np.float32([[2, 0], [0, 1], [-2, 0.5], [0.5, 1], [0, 0], [0.5, 0]])


def linear(w, x):
    return jnp.tanh(x.mean((1, 2)) * 0.3) @ w


@pytest.fixture(scope="module")
def planted():
    concepts = {f"random{k}": draw(24, 2, 2, 6) for k in range(40)}
    for name, channel in {"raises": 0, "lowers": 2, "idle": 4}.items():
        concepts[name] = draw(24, 2, 2, 6)
        concepts[name][..., channel] += 1
    random, x = draw(12, 24, 2, 2, 6), draw(10, 2, 2, 6)
    options = {"concepts": concepts, "random": random, "layers": ["tanh_0", "dense_0"]}
    options["probe"] = "pattern"
    found = tcav(linear, WEIGHTS, x, 0, key=KEY, batch_size=8, **options)
    return found, concepts, random


def test_planted_concepts_are_found_and_an_idle_one_is_not(planted):
    found = planted[0]
    at = [found.concepts.index(name) for name in ("raises", "lowers", "idle")]
    p = found.p_values[at]
    assert (p[:2] < 1e-2).all()
    assert (p[2] > 0.05).all()
    np.testing.assert_allclose(found.scores[at[:2]].mean(2), [[1, 1], [0, 0]], atol=0.1)
    assert (found.effects[at[0]] > 0).all()
    assert (found.effects[at[1]] < 0).all()
    assert found.significant[at[0], 0] == (found.p_values[at[0], 0] < 0.05 / found.p_values.size)
    assert found.vectors["tanh_0"].shape == (43, 12, 6)
    np.testing.assert_allclose(np.linalg.norm(found.vectors["tanh_0"], axis=-1), 1, rtol=1e-5)


def test_random_concepts_are_insignificant_at_the_stated_level(planted):
    found = planted[0]
    told = np.isfinite(found.scores[:40, :, 0])
    assert told.mean() > 0.2
    # 40 at level 0.1, of which 4 are to be expected; more than 9 in less than one of 100 draws.
    assert (found.p_values[:40, 0] < 0.1).sum() <= 9
    assert not found.significant[:40].any()
    assert (found.p_values[:40][~told] == 1).all()


def test_the_test_by_hand(planted):
    found, concepts, random = planted
    slope = WEIGHTS[:, 0]  # of every example
    a = lambda images: np.tanh(0.3 * np.float64(images).mean((-3, -2)))
    middles = a(random).mean(1)
    effect = (a(concepts["raises"]).mean(0) - middles.mean(0)) @ slope
    null = [(middles[i] - np.delete(middles, i, 0).mean(0)) @ slope for i in range(12)]
    t = (effect - np.mean(null)) / (np.std(null, ddof=1) * np.sqrt(1 + 1 / 12))
    at = found.concepts.index("raises")
    np.testing.assert_allclose(found.effects[at, 0], effect, rtol=1e-4)
    np.testing.assert_allclose(found.null_effects[0], null, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.p_values[at, 0], 2 * stats.t.sf(abs(t), 11), rtol=1e-2)


def test_wrong_sets_are_refused():
    sets = {"concepts": {"one": draw(4, 2, 2, 6)}, "layers": ["tanh_0"], "key": KEY}
    call = lambda **more: tcav(linear, WEIGHTS, draw(2, 2, 2, 6), 0, **(sets | more))
    with pytest.raises(ValueError, match=r"tcav: random must be \[R, L, ...\]"):
        call(random=draw(4, 2, 2, 6))
    with pytest.raises(ValueError, match="tcav: random must have 3 sets"):
        call(random=draw(2, 4, 2, 2, 6))
    with pytest.raises(ValueError, match="tcav: concepts must have two examples"):
        call(random=draw(3, 4, 2, 2, 6), concepts={"one": draw(1, 2, 2, 6)})
    with pytest.raises(ValueError, match=r"cav: random must be \[R, L, ...\]"):
        cav(draw(4, 3), draw(4, 3, 2), key=KEY)


def test_of_200_random_concepts_five_percent_are_significant_at_five_percent():
    """What is no concept, against what is none: false alarms as often as is said."""
    rng = np.random.default_rng(0)  # its own: how many are found depends on what was drawn
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    apply_fn = lambda w, x: jnp.tanh(0.3 * x) @ w
    found = tcav(
        apply_fn, WEIGHTS, draw(10, 6), 0, concepts={str(k): draw(24, 6) for k in range(200)},
        random=draw(40, 24, 6), layers=["tanh_0"], key=KEY, probe="pattern",
    )  # fmt: skip
    effects, null = found.effects[:, 0], found.null_effects[0]
    t = (effects - null.mean()) / (null.std(ddof=1) * np.sqrt(1 + 1 / 40))
    by_effect = (2 * stats.t.sf(abs(t), 39) < 0.05).sum()
    low, high = stats.binom.interval(0.99, 200, 0.05)
    assert low <= by_effect <= high
    # Those that no probe tells from random are not even asked.
    assert (found.p_values < 0.05).sum() <= by_effect
    assert not found.significant.any()
