"""Evaluations: what is kept is what the metrics say one by one, and statistics have oracles."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxviz as jv
from jaxviz import data
from jaxviz.metrics.catalogue import METRICS
from jaxviz.sweep.describe import method_words

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import judging  # noqa: E402

sys.path.pop(0)
KEY = jax.random.key(3)


def net(w, x):
    return jnp.tanh(x) @ w


def inputs(rows=7, seed=0):
    rng = np.random.default_rng(seed)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((rows, 6), (6, 3)))
    return x, w, rng.random((rows, 6)) > 0.5


@jax.jit
def inside(attribution, mask):
    return jnp.where(mask, jnp.abs(attribution), 0.0).sum(1)


@jax.jit
def size(attribution):
    return jnp.abs(attribution).sum(1)


class Curve(NamedTuple):
    curve: jax.Array
    area: jax.Array


def falling(apply_fn, params, x, attribution, target, *, steps=2):
    most = attribution.max(1, keepdims=True)
    kept = [jnp.where(attribution < most * k / steps, x, 0.0) for k in (2, 1)]
    at = jnp.arange(len(x))
    curve = jnp.stack([apply_fn(params, a)[at, target] for a in (x, *kept)], 1)
    return Curve(curve, curve.mean(1))


def again(method, apply_fn, params, x, target, attribution):
    return jnp.abs(method(apply_fn, params, x, target) - attribution).max(1)


def drawn(attribution, key):
    return jax.random.normal(key, attribution.shape[:1])


METHODS = {"plain": jv.gradient, "path": (jv.integrated_gradients, {"num_steps": 3})}


def test_scores_are_those_of_the_metrics_one_by_one():
    x, w, masks = inputs()
    metrics = [inside, (falling, {"steps": 4}), again]
    found = jv.evaluate(METHODS, metrics, net, w, (x, None, masks), batch_size=3, key=KEY)
    assert (found.methods, found.metrics) == (("plain", "path"), ("inside", "falling", "again"))
    top = net(w, x).argmax(1)
    for row, method in enumerate((jv.gradient, jv.integrated_gradients)):
        options = {"num_steps": 3} if row else {}
        maps = method(net, w, x, top, **options)
        np.testing.assert_allclose(found.scores[row, 0], inside(maps, masks), rtol=1e-5)
        curve = falling(net, w, x, maps, top, steps=4)
        np.testing.assert_allclose(found.scores[row, 1], curve.area, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.curves["falling"][row], curve.curve, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.scores[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(found.mean, found.scores.mean(-1), rtol=1e-5)
    error = stats.sem(found.scores.astype(np.float64), axis=-1)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-5)
    assert found.skipped.tolist() == [0, 0]
    assert not found.missing.any()


def test_all_forms_of_data_and_of_names_say_the_same():
    x, w, masks = inputs()
    y = np.arange(7) % 3

    class Set(NamedTuple):
        images: np.ndarray
        labels: np.ndarray
        masks: np.ndarray

    batches = [(x[i : i + 3], y[i : i + 3], masks[i : i + 3]) for i in (0, 3, 6)]
    ask = lambda methods, data: (
        jv.evaluate(methods, inside, net, w, data, target="label", batch_size=3).scores
    )
    want = ask("saliency", (x, y, masks))
    np.testing.assert_array_equal(want, ask(["saliency"], Set(x, y, masks)))
    np.testing.assert_array_equal(want, ask((jv.saliency, {}), iter(batches)))
    row = next(m for m in jv.methods() if m.name == "saliency")
    np.testing.assert_array_equal(want, ask(row, batches))
    np.testing.assert_array_equal(want, ask({"saliency": {}}, [*batches]))
    other = jv.evaluate("saliency", inside, net, w, (x, y, masks), target=1).scores
    assert not np.array_equal(want, other)


def test_keys_depend_on_the_label_and_the_batch_alone():
    x, w, _ = inputs()
    ask = lambda methods, metrics, key=KEY: (
        jv.evaluate(methods, metrics, net, w, x, batch_size=4, key=key).scores
    )
    noisy = jv.smooth_grad(jv.gradient, num_samples=2)
    both = ask({"a": noisy, "b": noisy}, {"one": drawn, "two": drawn, "size": size})
    np.testing.assert_array_equal(both[0, :2], both[1, :2])  # all methods meet the same draws
    assert not np.array_equal(both[0, 0], both[0, 1])
    assert not np.array_equal(both[0, 0, :3], both[0, 0, 4:])
    assert not np.array_equal(both[0, 2], both[1, 2])  # but draw their own
    alone = ask({"b": noisy}, {"size": size, "two": drawn})
    np.testing.assert_array_equal(alone[0], both[1, [2, 1]])
    other = ask({"b": noisy}, {"size": size, "two": drawn}, jax.random.key(4))
    assert (other != alone).all()


def test_what_has_no_score_is_counted_and_left_out():
    x, w, _ = inputs(5)
    holes = lambda f, p, x, t: jv.gradient(f, p, x, t).at[1, 0].set(jnp.nan)
    some = lambda attribution: jnp.where(jnp.arange(5) == 3, jnp.inf, jnp.arange(5.0))
    methods = {"whole": jv.gradient, "holes": holes}
    found = jv.evaluate(methods, {"some": some, "size": size}, net, w, x)
    assert found.skipped.tolist() == [0, 1]
    assert found.missing.tolist() == [[1, 0], [1, 0]]
    np.testing.assert_allclose(found.mean[:, 0], [7 / 4, 2.0])  # of 0, 1, 2, 4 and of 0, 2, 4
    text = found.table()
    assert "No finite score: some of every method 1\n" in text
    assert "Maps not finite, skipped: holes 1" in text
    zeros = lambda f, p, x, t: jnp.zeros_like(x)
    least = lambda attribution: jnp.log(jnp.abs(attribution).min(1))
    found = jv.evaluate({"whole": jv.gradient, "zeros": zeros}, {"least": least}, net, w, x)
    assert "No finite score: least of zeros 5" in found.table()


def test_nothing_scored_has_no_rank_and_stands_last():
    x, w, _ = inputs(3)
    lost = lambda f, p, x, t: jnp.full_like(x, jnp.nan)
    methods = {"lost": lost, "plain": jv.gradient, "same": jv.gradient}
    found = jv.evaluate(methods, size, net, w, x)
    assert found.rank[1:, 0].tolist() == [1.5, 1.5]
    assert np.isnan(found.rank[0, 0])
    assert np.isnan(found.mean_rank[0])
    rows = found.table().splitlines()
    assert next(i for i, r in enumerate(rows) if r.startswith("lost")) > max(
        i for i, r in enumerate(rows) if r.startswith(("plain", "same"))
    )


@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_agreement_are_those_of_scipy(seed):
    from jaxviz.sweep.evaluation import judged

    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=(5, 3, 8)), 0 if seed % 2 else 3).astype(np.float32)
    finite, names = np.ones((5, 8), bool), tuple("abc")
    better = ("higher", "lower", "higher")
    found = judged(tuple("vwxyz"), names, better, scores, finite, {}, {})
    mean = scores.mean(-1, dtype=np.float64)
    turned = mean * np.array([-1, 1, -1])
    np.testing.assert_allclose(found.rank, stats.rankdata(turned, axis=0))
    np.testing.assert_allclose(found.mean_rank, found.rank.mean(1))
    for i in range(3):
        for j in range(3):
            tau = stats.kendalltau(turned[:, i], turned[:, j]).statistic
            np.testing.assert_allclose(found.agreement[i, j], tau, atol=1e-12)
    for k in range(3):
        # Friedman's test corrects for ties, and W is its statistic over m (n - 1).
        chi = stats.friedmanchisquare(*scores[:, k]).statistic
        np.testing.assert_allclose(found.concordance[k], chi / (8 * 4), atol=1e-6)


def test_the_direction_of_a_metric_is_known():
    x, w, _ = inputs()
    ask = lambda metrics, **more: jv.evaluate(METHODS, metrics, net, w, x, **more)
    last = {"last": ("deletion", {"order": "least_first", "num_steps": 2})}
    found = ask({"deletion": ("deletion", {"num_steps": 2}), "insertion": "insertion"} | last)
    assert found.better == ("lower", "higher", "higher")
    assert found.curves["deletion"].shape == (2, 7, 3)
    np.testing.assert_allclose(found.curves["last"][..., 0], found.curves["deletion"][..., 0])
    own = ask({"size": size}, lower_is_better=["size"])
    assert own.better == ("lower",)
    assert own.rank[:, 0].tolist() == [3 - r for r in ask({"size": size}).rank[:, 0]]


def knows_the_mark(w, x):
    """Of each place how much one colour is above the other two: what tells the class, and no more.

    Grey has 0, and a hue between two classes' has as much of both.
    """
    above = jnp.maximum(x @ w - 0.3, 0.0)
    return above.sum((1, 2))


MOSAICS = "grid_pointing_game"  # explains again what it makes itself, and needs no planted mark


@pytest.fixture(scope="module")
def on_the_planted_set():
    test = data.planted_mark(jax.random.key(1), 32, size=12)
    w = 2 * np.eye(3, dtype=np.float32) - 1
    assert (np.asarray(knows_the_mark(w, test.images)).argmax(1) == test.labels).all()
    chance = lambda f, p, x, t, *, key: jax.random.normal(key, x.shape[:3])
    window = {"window": (2, 2), "stride": (2, 2), "fill": 0.5, "method": "full"}
    path = lambda *given: jv.integrated_gradients(*given, baseline=0.5, num_steps=8).sum(-1)
    ways = {"integrated_gradients": path, "occlusion": (jv.occlusion, window), "random": chance}
    families = ("faithfulness", "localisation")
    judges = [m for m in METRICS.values() if m.family in families and m.name != MOSAICS]
    given = {}
    for one in judges:
        options = inspect.signature(getattr(jv.metrics, one.name)).parameters
        few = {"num_steps": 12, "fill": 0.5, "k": 4, "tolerance": 0.0}
        given[one.name] = (one.name, {k: v for k, v in few.items() if k in options})
    return jv.evaluate(ways, given, knows_the_mark, w, test, target="label", batch_size=32, key=KEY)


# Whether each step adds, and whether less of an image is surer: of a model whose evidence only adds
# up, any order passes the one and fails the other.
BLIND = {"monotonicity", "increase_in_confidence"}


def test_what_must_win_on_the_planted_set_wins(on_the_planted_set):
    found = on_the_planted_set
    assert found.methods[-1] == "random"
    for metric, rank in zip(found.metrics, found.rank.T, strict=True):
        if metric in BLIND:
            assert rank.tolist() == [2, 2, 2]
        else:
            assert rank.argmax() == 2, (metric, found)
            assert (rank[:2] < 3).all(), (metric, found)


def test_a_random_map_loses_by_every_metric_of_faithfulness(on_the_planted_set):
    found = on_the_planted_set
    judges = [m for m in found.metrics if METRICS[m].family == "faithfulness" and m not in BLIND]
    assert len(judges) > 15
    for metric in judges:
        k = found.metrics.index(metric)
        means = found.mean[:, k] * (1 if found.better[k] == "higher" else -1)
        best = means[:2].argmax()
        error = np.hypot(*found.standard_error[[best, 2], k])
        assert means[best] - means[2] > 3 * error, (metric, found)


def test_the_table_fits_its_width_and_the_pictures_are_drawn(tmp_path):
    x, w, _ = inputs()
    metrics = {f"a_metric_with_a_long_name_{n}": size for n in range(9)} | {"falling": falling}
    methods = {f"{'a_method_with_a_very_long_name'}_{n}": jv.gradient for n in range(3)}
    found = jv.evaluate(methods, metrics, net, w, x)
    lines = found.table().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("mean rank" in line for line in lines) > 1  # several blocks
    assert repr(found) == found.table()
    assert "<caption>3 methods, 10 metrics, 7 examples" in found._repr_html_()
    assert "data:image/png;base64," in found._repr_html_()
    found.figure("falling").savefig(tmp_path / "curves.png")
    with pytest.raises(ValueError, match="figure: metric must be one with curves; got 'size'"):
        found.figure("size")


@pytest.mark.parametrize(
    ("methods", "metrics", "message"),
    [
        ("salience", size, "methods: no method 'salience', did you mean saliency"),
        (jv.gradient, "deletoin", "metrics: no metric 'deletoin', did you mean"),
        ([], size, "methods must name one at least; got none"),
        ([jv.gradient, "gradient"], size, "gradient stands there twice. Give labels"),
        ({"a.b": jv.gradient}, size, "a label must be text without / and"),
        (3, size, "methods must be names, functions, pairs"),
        ([(jv.gradient, 3)], size, "each of methods must be a name, function or pair"),
        ((jv.gradient, {"steps": 3}), size, "gradient takes no steps; it takes apply_fn"),
        ({"smooth_grad": {"samples": 3}}, size, "smooth_grad takes no samples; it takes"),
        (lambda f, p, x: x, size, r"must take \(apply_fn, params, x, target\)"),
        ("expected_gradients", size, "expected_gradients needs baselines"),
        (jv.gradient, inside, "data must have masks for inside; it has none"),
        (jv.gradient, lambda attribution, depth: 0, "it needs depth too. Give that as the pair"),
        (jv.gradient, lambda attribution: attribution, r"a number for each of the 7 examples"),
        (lambda f, p, x, t: x[0], size, "a map for each of the 7 examples"),
        ({"mine": (jv.grad_cam, {"layer": "no"})}, size, "mine: no layer|mine: .*layer"),
    ],
)
def test_what_does_not_fit_is_told(methods, metrics, message):
    x, w, _ = inputs()
    with pytest.raises((ValueError, TypeError), match=f"evaluate: .*{message}"):
        jv.evaluate(methods, metrics, net, w, x)


def test_more_that_does_not_fit_is_told():
    x, w, _ = inputs()
    with pytest.raises(ValueError, match='target="label" needs labels'):
        jv.evaluate(jv.gradient, size, net, w, x, target="label")
    with pytest.raises(ValueError, match="lower_is_better must name metrics that are there; got s"):
        jv.evaluate(jv.gradient, size, net, w, x, lower_is_better=["sizes"])
    with pytest.raises(TypeError, match="evaluate: data must be x, "):
        jv.evaluate(jv.gradient, size, net, w, 3)


def test_options_of_a_wrapped_method_are_part_of_its_words():
    twice = lambda n: jv.smooth_grad(jv.smooth_grad(jv.gradient, num_samples=n))
    assert method_words(twice(2)) == method_words(twice(2)) != method_words(twice(3))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_killed_and_started_again_ends_with_the_same_bytes(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "store"
    # In the fifth of ten batches. All the other runs are in this process, which is another one.
    stop = os.environ | {"STOP": f"{int(signal.SIGKILL)}:14:0.01"}
    told = f"import judging; judging.main({str(out)!r})"
    killed = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=240,
        env=stop | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    done = len(list(out.glob("rows/c/*")))
    assert 0 < done < 10
    judging.main(out)
    judging.main(whole)
    assert contents(out) == contents(whole)


def test_options_of_a_wrapper_reach_it_by_name():
    x, w, _ = inputs()
    few = {"num_samples": 2, "noise_scale": 0.5}
    named = jv.evaluate({"smooth_grad": few}, size, net, w, x, key=KEY).scores
    made = {"smooth_grad": jv.smooth_grad(jv.gradient, **few)}
    np.testing.assert_array_equal(named, jv.evaluate(made, size, net, w, x, key=KEY).scores)


def test_of_one_method_no_agreement_is_told():
    images = jnp.arange(6.0).reshape(2, 3)
    found = jv.evaluate(
        ["gradient"], ["sparseness"], lambda w, x: x @ w, jnp.eye(3), (images, jnp.array([0, 1]))
    )
    assert "Kendall" not in repr(found)
