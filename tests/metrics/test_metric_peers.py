"""The same net, inputs, maps, neighbours and redrawn weights as Quantus 0.6.0's, and its numbers.

`reference/run_metric_peers.py` wrote them. Where Quantus and the paper differ, a test says how.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import metrics

PEERS = dict(np.load(pathlib.Path(__file__).parent.parent / "reference" / "metric_peers.npz"))
X, MAPS = PEERS["x"].astype(np.float32), PEERS["maps"].astype(np.float32)
MASKS, TARGET = PEERS["masks"][:, 0], PEERS["y"]
NOISE = jnp.asarray(PEERS["noise"], jnp.float32).reshape(-1, *X.shape)
KEY = jax.random.key(0)
# The neighbours in Quantus' order: the k-th key that a metric folds makes the k-th.
WORDS = jnp.stack([jax.random.key_data(jax.random.fold_in(KEY, k)) for k in range(len(NOISE))])


def weights(name):
    found = {k.split(".", 1)[1]: jnp.asarray(v, jnp.float32) for k, v in PEERS.items() if name in k}
    return {k: v for k, v in found.items() if k.startswith(("conv.", "fc."))}


PARAMS = weights("weights.")


def net(w, x):
    dimensions = ("NCHW", "OIHW", "NCHW")
    x = jax.lax.conv_general_dilated(
        x, w["conv.weight"], (1, 1), "VALID", dimension_numbers=dimensions
    )
    x = jnp.tanh(x + w["conv.bias"][None, :, None, None])
    return x.reshape(len(x), -1) @ w["fc.weight"].T + w["fc.bias"][None]


def neighbour(key, x):
    return x + NOISE[(jax.random.key_data(key)[None] == WORDS).all(1).argmax()]


BLACK = X.min((1, 2, 3), keepdims=True)  # what Quantus calls so
GIVEN = (jv.gradient, net, PARAMS, X, TARGET)
SAMPLED = {"key": KEY, "perturb": neighbour, "num_samples": len(NOISE)}
OURS = {
    "pointing_game": lambda: metrics.pointing_game(MAPS, MASKS, tolerance=0),
    "relevance_mass": lambda: metrics.relevance_mass(MAPS, MASKS),
    "relevance_rank": lambda: metrics.relevance_rank(MAPS, MASKS),
    "top_k_intersection": lambda: metrics.top_k_intersection(MAPS, MASKS, k=10),
    "auc": lambda: metrics.auc(MAPS, MASKS),
    "attribution_localisation": lambda: metrics.attribution_localisation(MAPS, MASKS),
    "focus": lambda: metrics.focus(MAPS, np.kron([[1, 0], [0, 1]], np.ones((4, 8, 8))[:, :4, :4])),
    "sparseness": lambda: metrics.sparseness(MAPS),
    "complexity": lambda: metrics.complexity(MAPS),
    "max_sensitivity": lambda: metrics.max_sensitivity(*GIVEN, **SAMPLED),
    "avg_sensitivity": lambda: metrics.avg_sensitivity(*GIVEN, **SAMPLED),
    "local_lipschitz": lambda: metrics.local_lipschitz(*GIVEN, **SAMPLED, normalize=False),
    "relative_input_stability": lambda: metrics.relative_input_stability(*GIVEN, **SAMPLED),
    "relative_output_stability": lambda: metrics.relative_output_stability(*GIVEN, **SAMPLED),
    "continuity": lambda: metrics.continuity(*GIVEN, num_steps=8, fill=BLACK, normalize=False),
    "random_logit": lambda: metrics.random_logit(*GIVEN, key=KEY, similarity="spearman"),
}


@pytest.mark.parametrize("name", OURS)
def test_the_same_numbers_as_quantus(name):
    # The stabilities divide by numbers near 0, where single precision loses digits.
    loose = {"relative_input_stability": 1e-3, "relative_output_stability": 1e-3}
    np.testing.assert_allclose(OURS[name](), PEERS[name], rtol=loose.get(name, 1e-5), atol=1e-5)


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
def test_the_same_cascade_as_quantus(order):
    run = functools.partial(metrics.parameter_randomization, *GIVEN, key=KEY, order=order)
    out = run(redraw=lambda key, params: weights("redrawn."), num_seeds=1, absolute=True)
    np.testing.assert_allclose(out.curve, PEERS[f"parameter_randomization.{order}"], atol=1e-5)
    ours = metrics.randomized_layers(net, PARAMS, X, order=order)
    kinds = [{"conv_0": "conv", "dense_0": "fc"}[name] for name in ours]
    assert kinds == PEERS[f"layers.{order}"][1:].tolist()
    # Its average has the similarity of the net to itself, 1, among those of the random nets.
    assert (out.area < PEERS[f"parameter_randomization.{order}"].mean(1)).all()


def test_the_rise_of_the_entropy_is_quantus():
    out = metrics.efficient_parameter_randomization(
        *GIVEN, key=KEY, redraw=lambda key, params: weights("redrawn."), num_seeds=1
    )
    # A number at the edge of a bin may fall to its other side: 1 of 64 places.
    np.testing.assert_allclose(out, PEERS["efficient"], atol=1e-5)


def test_quantus_measures_an_example_by_the_largest_number_of_the_batch():
    # Its `normalise` divides all maps by one number, so that what is beside an example counts.
    largest = abs(MAPS).max((1, 2, 3))
    assert len(set(largest)) == 4
    one = lambda i, t: metrics.effective_complexity(MAPS[i : i + 1], threshold=t)[0]
    by_batch = [one(i, 0.3 * largest.max() / largest[i]) for i in range(4)]
    np.testing.assert_array_equal(by_batch, PEERS["effective_complexity"])
    ours = metrics.effective_complexity(MAPS, threshold=0.3)
    np.testing.assert_array_equal(ours, [one(i, 0.3) for i in range(4)])
    assert (np.asarray(ours) != PEERS["effective_complexity"]).any()


def test_quantus_ssim_is_that_of_rows_joined_up_and_the_papers_of_pictures():
    flat = lambda a, b: metrics.ssim(a.reshape(len(a), -1), b.reshape(len(b), -1))
    found = metrics.random_logit(*GIVEN, key=KEY, similarity=flat)
    np.testing.assert_allclose(found, PEERS["random_logit_ssim"], atol=2e-5)
    pictures = lambda a, b: metrics.ssim(a[:, 0], b[:, 0])
    found = metrics.random_logit(*GIVEN, key=KEY, similarity=pictures)
    assert (abs(np.asarray(found) - PEERS["random_logit_ssim"]) > 1e-3).any()


def test_the_inputs_that_got_nothing_or_do_not_matter_are_quantus():
    blind = np.asarray(jv.gradient(*GIVEN[1:])).copy()
    blind[:, :, :3] = 0
    run = functools.partial(metrics.non_sensitivity, net, PARAMS, X, blind, TARGET)
    np.testing.assert_array_equal(run(fill=BLACK), PEERS["non_sensitivity"])
    np.testing.assert_array_equal(run(), 24)  # 3 rows of 8, by construction; no input is 0
