"""Agreement with Quantus 0.6.0 and Captum on the same weights, attributions and sets, to 1e-5.

draw_faithfulness_inputs.py and run_faithfulness_peers.py of tests/reference made what is stored.
Where Quantus does something else than the paper, a test says which and shows both.
"""

import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import metrics

FOLDER = pathlib.Path(__file__).parent.parent / "reference"
sys.path.insert(0, str(FOLDER))
from draw_faithfulness_inputs import CHANGES, HELD, SETS, drawn  # noqa: E402

sys.path.remove(str(FOLDER))
GIVEN = drawn()
PEERS = dict(np.load(FOLDER / "faithfulness_peers.npz"))
X, A = GIVEN["x"], GIVEN["a"]
W = {name: GIVEN[name] for name in ("kernel", "dense", "bias")}
KEY = jax.random.key(3)


def net(w, x):
    x = jax.lax.conv_general_dilated(
        x, w["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(x).mean((1, 2)) @ w["dense"] * 4 + w["bias"][None]


TOP = PEERS["logits"].argmax(1)


def close(ours, name, peers=None):
    want = np.asarray(PEERS[name] if peers is None else peers, np.float32)
    chex.assert_trees_all_close(np.asarray(ours), want, atol=1e-5, rtol=1e-5)


def test_the_nets_are_the_same():
    close(net(W, X), "logits")


def test_pixel_flipping():
    out = metrics.pixel_flipping(net, W, X, A, TOP, num_steps=16)
    close(out.curve[:, 1:], "pixel_flipping")


@pytest.mark.parametrize(("order", "theirs"), [("most_first", "morf"), ("least_first", "lerf")])
def test_region_perturbation(order, theirs):
    told = {"window": (2, 2), "num_steps": 10, "order": order}
    out = metrics.region_perturbation(net, W, X, A, TOP, **told)
    close(out.curve[:, 1:], f"region_{theirs}")


def test_selectivity():
    close(metrics.selectivity(net, W, X, A, TOP, window=(2, 2)).curve[:, 1:], "selectivity")


def test_faithfulness_estimate_and_monotonicity_correlation():
    told = {"num_steps": 16, "unit": "number"}
    close(metrics.faithfulness_estimate(net, W, X, A, TOP, **told), "faithfulness_estimate")
    zero = np.zeros((1, *X.shape[1:]), np.float32)
    found = metrics.monotonicity_correlation(
        net, W, X, A * np.sign(A), TOP, key=KEY, baselines=zero, num_samples=1, **told
    )
    close(found, "monotonicity_correlation")


def test_faithfulness_correlation_on_the_same_sets():
    found = metrics.faithfulness_correlation(
        net, W, X, A, TOP, key=KEY, num_samples=SETS, fraction=HELD / X[0].size, unit="number"
    )
    close(found, "faithfulness_correlation")


def test_infidelity_on_the_same_changes():
    told = {"key": KEY, "num_samples": CHANGES, "perturb": metrics.gaussian_noise(0.2)}
    plain = metrics.infidelity(net, W, X, A, TOP, **told)
    close(plain, "infidelity")
    close(plain, "captum_infidelity")
    scaled = metrics.infidelity(net, W, X, A, TOP, normalize=True, **told)
    close(scaled, "captum_infidelity_normalized")


def test_road_and_its_imputation():
    removed = (1, 20, 50, 60)
    order = np.argsort(-A.sum(-1).reshape(len(X), -1), axis=1)
    for count, want in zip(removed, PEERS["imputed"], strict=True):
        hidden = np.zeros((len(X), 64), bool)
        np.put_along_axis(hidden, order[:, :count], True, axis=1)
        found = metrics.noisy_linear_imputation(X, hidden.reshape(len(X), 8, 8), key=KEY, noise=0.0)
        close(jnp.moveaxis(found, -1, 1), "imputed", want)
    shares = tuple(count / 64 for count in removed)
    out = metrics.road(net, W, X, A, TOP, key=KEY, fractions=shares, noise=0.0)
    close(out.curve[:, 1:].T, "road")


def test_sufficiency():
    shares = (0.94, 0.97, 1.0)
    close([metrics.sufficiency(net, W, X, A, threshold=share) for share in shares], "sufficiency")
    assert PEERS["sufficiency"].any()


def test_irof_of_quantus_leaves_out_the_first_point_and_the_length():
    # Rieger and Hansen 2020, section 3.1: l runs from 0 to L, and the area is divided by L.
    cells = np.add.outer(np.arange(8) // 4 * 2, np.arange(8) // 4)
    softmax = lambda w, x: jax.nn.softmax(net(w, x))
    out = metrics.irof(softmax, W, X, A, TOP, segments=cells)
    close(4 - np.trapezoid(out.curve[:, 1:], axis=1), "irof")
    close(out.area, "irof", 1 - np.trapezoid(out.curve, axis=1) / 4)


def test_monotonicity_of_quantus_is_true_of_anything():
    # Arya et al. 2019 put x back, unit by unit; Quantus fills again what is filled.
    assert PEERS["monotonicity"].all()
    out = metrics.monotonicity(net, W, X, A, TOP, num_steps=16, unit="number")
    start = net(W, jnp.zeros_like(X))
    chex.assert_trees_all_close(out.curve[:, 0], jnp.take_along_axis(start, TOP[:, None], 1)[:, 0],
                                atol=1e-5)  # fmt: skip
    assert out.holds.tolist() == [0.0] * 4


def test_sensitivity_n_of_quantus_takes_no_random_sets():
    # Ancona et al. 2018, section 4: random sets of n for each example. Quantus correlates over the
    # four examples what the first groups of the ranking lose together and the last is given.
    assert PEERS["sensitivity_n"].shape == (8,)  # one a step, none an example
    curve = metrics.pixel_flipping(net, W, X, A, TOP, num_steps=16).curve
    lost = np.asarray(curve[:, :1] - curve[:, 1:])
    given = -np.sort(-A.reshape(4, -1), axis=1).reshape(4, 16, 8).sum(2)
    theirs = [np.corrcoef(lost[:, k], given[:, k])[0, 1] for k in range(8)]
    close(np.array(theirs, np.float32), "sensitivity_n")
    ours = metrics.sensitivity_n(
        net, W, X, A, TOP, key=KEY, fractions=(HELD / X[0].size,), num_samples=SETS, unit="number"
    )
    close(ours.area, "faithfulness_correlation")
