"""Scores against other training runs: a convex run where they are known, and ranks by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxviz import influence
from jaxviz.influence import SubsetRuns

KEY = jax.random.key(0)
SGD = optax.sgd(0.1, momentum=0.9)


def logistic(w, batch):
    x, y = batch
    return jnp.log1p(jnp.exp(-y * (x @ w)))


@pytest.fixture(scope="module")
def run():
    """A logistic regression, its scores by MAGIC, and 20 runs on half of the examples."""
    rng = np.random.RandomState(0)
    x = rng.randn(16, 3).astype(np.float32)
    y = np.sign(x @ np.array([1, -1, 0.5]) + 0.5 * rng.randn(16)).astype(np.float32)
    order = np.concatenate([rng.permutation(16).reshape(4, 4) for _ in range(5)])
    steps = influence.weighted_steps(
        logistic, np.zeros(3, np.float32), (x, y), order, optimizer=SGD
    )
    test = (jnp.asarray(rng.randn(4, 3), jnp.float32), jnp.ones(4))
    test_fn = lambda state: -logistic(state.params, test)
    runs = influence.subset_runs(steps, test_fn, key=KEY, num_runs=20)
    return steps, test_fn, influence.magic(steps, test_fn).scores, runs


def test_magic_predicts_training_on_random_halves(run):
    _, _, scores, runs = run
    assert (runs.kept.sum(1) == 8).all()
    assert len({row.tobytes() for row in runs.kept}) > 15
    lds = influence.datamodeling_score(scores, runs)
    assert lds.mean() >= 0.9
    wanted = [
        stats.spearmanr(runs.kept @ np.asarray(s, np.float64), v)[0]
        for s, v in zip(scores, runs.values.T, strict=True)
    ]
    np.testing.assert_allclose(lds, wanted, atol=1e-12)
    np.testing.assert_allclose(influence.datamodeling_score(-3 * scores, runs), -lds, atol=1e-12)


def test_leaving_one_out_is_predicted_in_the_units_of_the_quantity(run):
    steps, test_fn, scores, runs = run
    out = influence.subset_runs(steps, test_fn, key=KEY, num_runs=20, share=15 / 16)
    found = influence.leave_some_out(scores, out)
    left = np.argmin(out.kept, 1)
    np.testing.assert_allclose(found.predicted, -np.asarray(scores).T[left], rtol=1e-6)
    np.testing.assert_allclose(out.whole, runs.whole)
    assert (found.explained > 0.9).all()


def test_removal_curves_are_runs_without_the_most_helpful(run):
    steps, test_fn, scores, runs = run
    curves = influence.removal_curves(scores, steps, test_fn, counts=(1, 5), chunk_size=3)
    helpful = np.argsort(-np.asarray(scores[2]))
    weights = np.ones((2, 16))
    weights[0, helpful[:1]] = weights[1, helpful[:5]] = 0
    wanted = influence.retrained(steps, test_fn, weights)[:, 2] - runs.whole[2]
    np.testing.assert_allclose(curves[2], wanted, rtol=1e-4, atol=1e-6)
    assert curves.shape == (4, 2)
    assert (curves[:, 1] < curves[:, 0]).all()
    assert (curves[:, 0] < 0).all()


def test_all_parts_of_a_judgement(run):
    steps, test_fn, scores, _ = run
    flipped = np.arange(16) < 3
    found = influence.judged(
        {"magic": scores, "none": np.zeros((4, 16))},
        steps,
        test_fn,
        key=KEY,
        num_runs=20,
        counts=(1,),
        suspicions={"order": -np.arange(16.0)},
        flipped=flipped,
    )
    np.testing.assert_allclose(
        found.lds["magic"], influence.datamodeling_score(scores, found.runs), atol=1e-12
    )
    assert np.isnan(found.lds["none"]).all()
    assert found.removal["magic"].shape == (4, 1)
    assert found.detection["order"].average_precision == 1.0


def test_ranks_by_hand():
    found = influence.mislabelled([3.0, 1.0, 2.0, 0.0], np.array([False, True, True, False]))
    np.testing.assert_allclose(found.recall, [0, 0.5, 1, 1])
    np.testing.assert_allclose(found.precision, [0, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(found.average_precision, (1 / 2 + 2 / 3) / 2)
    runs = SubsetRuns(np.eye(3, dtype=bool), np.array([[1.0], [np.nan], [2.0]]), np.zeros(1))
    assert np.isnan(influence.datamodeling_score([[1.0, 2.0, 3.0]], runs)).all()


def test_what_does_not_fit_is_refused(run):
    steps, test_fn, scores, runs = run
    with pytest.raises(ValueError, match=r"datamodeling_score: scores must be \[4, 16\]"):
        influence.datamodeling_score(scores[:, 1:], runs)
    with pytest.raises(ValueError, match="removal_curves: counts must be less than the 16"):
        influence.removal_curves(scores, steps, test_fn, counts=(16,))
    with pytest.raises(ValueError, match="mislabelled: flipped must be True of some"):
        influence.mislabelled([1.0, 2.0], np.zeros(2, bool))
    with pytest.raises(ValueError, match=r"subset_runs: test_fn must return .* \[K\]"):
        influence.subset_runs(steps, lambda state: state.params.sum(), key=KEY, num_runs=2)
    with pytest.raises(ValueError, match="judged: suspicions and flipped must be given together"):
        influence.judged({"m": scores}, steps, test_fn, key=KEY, flipped=np.ones(16, bool))
