"""Cascades over layers beside a loop that draws them one by one, on several frameworks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx
from scipy.stats import entropy, spearmanr

import jaxviz as jv
from jaxviz import metrics

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (3, 6))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="zed")(x))
        x = nn.tanh(nn.Dense(7, name="mid")(x))
        return nn.Dense(3, name="aaa")(x)


NET = Net()
PARAMS = NET.init(jax.random.key(2), X)


LINE = {"b": jax.random.normal(jax.random.key(4), (6, 5)), "a": jnp.arange(10.0).reshape(5, 2)}


def line(w, x):
    return jnp.tanh(x @ w["b"]) @ w["a"]


def redraw(key, params):
    return NET.init(key, X)


def one_by_one(seeds):
    """Mean and spread by a loop over seeds and layers, similarities by SciPy."""
    top = NET.apply(PARAMS, X).argmax(1)
    explain = lambda params: np.asarray(jv.gradient(NET.apply, params, X, top))
    curves = []
    for key in jax.random.split(jax.random.fold_in(KEY, 0), seeds):
        fresh, mixed, row = redraw(key, None)["params"], dict(PARAMS["params"]), [np.ones(3)]
        for name in ("aaa", "mid", "zed"):
            mixed = mixed | {name: fresh[name]}
            pairs = zip(explain(PARAMS), explain({"params": mixed}), strict=True)
            row.append(np.array([spearmanr(a, b)[0] for a, b in pairs]))
        curves.append(np.stack(row, axis=1))
    return np.mean(curves, 0), np.std(curves, 0)


def test_the_cascade_is_a_loop_over_layers_in_the_order_of_the_computation():
    order = "top_down"  # the others beside Quantus, in test_metric_peers.py
    out = metrics.parameter_randomization(
        jv.gradient, NET.apply, PARAMS, X, key=KEY, order=order, redraw=redraw
    )
    curve, spread = one_by_one(3)
    np.testing.assert_allclose(out.curve, curve, atol=1e-5)
    np.testing.assert_allclose(out.spread, spread, atol=1e-5)
    np.testing.assert_allclose(out.area, curve[:, 1:].mean(1), atol=1e-5)
    names = metrics.randomized_layers(NET.apply, PARAMS, X, order=order)
    assert names == ("aaa", "mid", "zed")


@pytest.mark.parametrize("draw", ["normal", "shuffle"])
def test_draws_keep_mean_and_deviation_of_each_layer_of_a_stack(draw):
    # Explaining by the parameters themselves shows what was drawn.
    def net(w, x):
        step = lambda x, w: (jnp.tanh(x @ w), None)
        return jax.lax.scan(step, x, w)[0]

    scale = jnp.array([1.0, 10.0, 100.0])[:, None, None]
    w = scale * (1 + jax.random.normal(KEY, (3, 6, 6)))
    seen = lambda f, p, x, target: jnp.broadcast_to(p.reshape(1, -1), (len(x), p.size))
    drawn = []

    def likeness(a, b):
        jax.debug.callback(lambda m: drawn.append(np.asarray(m)), b[0])
        return b.sum(1)

    metrics.parameter_randomization(
        *(seen, net, w, X, 0),
        key=KEY,
        order="bottom_up",
        redraw=draw,
        absolute=False,
        similarity=likeness,
        num_seeds=1,
        chunk_size=1,
    )
    jax.effects_barrier()
    steps = {int((m.reshape(3, -1) != w.reshape(3, -1)).any(1).sum()): m for m in drawn}
    assert sorted(steps) == [0, 1, 2, 3]
    for count, m in steps.items():
        m, original = m.reshape(3, -1), np.asarray(w).reshape(3, -1)
        np.testing.assert_array_equal(m[count:], original[count:])  # from the input up
        for new, old in zip(m[:count], original, strict=False):
            if draw == "shuffle":
                np.testing.assert_array_equal(np.sort(new), np.sort(old))
            else:
                assert 0.5 < new.std() / old.std() < 1.5
                assert abs(new.mean() - old.mean()) < old.std()


def test_statistics_and_whole_numbers_stay():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x))

    net = Normed()
    variables = net.init(KEY, X)
    seen = lambda f, p, x, target: jnp.broadcast_to(
        jnp.concatenate([a.ravel() for a in jax.tree.leaves(p["batch_stats"])])[None], (len(x), 12)
    )
    out = metrics.parameter_randomization(
        seen, net.apply, variables, X, 0, key=KEY, similarity="cosine"
    )
    np.testing.assert_allclose(out.curve, 1, rtol=1e-6)
    assert metrics.randomized_layers(net.apply, variables, X) == ("Dense_0", "BatchNorm_0")


@pytest.fixture(scope="module")
def linen():
    """The curve of the net for class 1, by each leaf's own mean and deviation."""
    return metrics.parameter_randomization(jv.gradient, NET.apply, PARAMS, X, 1, key=KEY)


def test_frameworks_give_the_same_curve(linen):
    class Module(nnx.Module):
        def __init__(self, rngs):
            self.aaa = nnx.Linear(7, 3, rngs=rngs)
            self.mid = nnx.Linear(8, 7, rngs=rngs)
            self.zed = nnx.Linear(6, 8, rngs=rngs)

        def __call__(self, x):
            return self.aaa(jnp.tanh(self.mid(jnp.tanh(self.zed(x)))))

    module = Module(nnx.Rngs(0))
    for name, held in PARAMS["params"].items():
        for leaf, a in held.items():
            getattr(getattr(module, name), leaf).set_value(a)
    apply_fn, params = jv.from_nnx(module)
    found = metrics.parameter_randomization(jv.gradient, apply_fn, params, X, 1, key=KEY)
    np.testing.assert_allclose(found.curve, linen.curve, atol=1e-5)


def test_what_depends_on_no_parameter_stays_and_constants_are_nan():
    # Of two examples one is explained by itself and one by a constant.
    blind = lambda f, p, x, target: jnp.stack([x[0], jnp.ones_like(x[1])])
    out = metrics.parameter_randomization(blind, line, LINE, X[:2], 0, key=KEY)
    np.testing.assert_allclose(out.curve[0], 1, rtol=1e-6)
    assert np.isnan(out.curve[1]).all()
    assert np.isnan(out.area).tolist() == [False, True]


def test_contract(linen):
    traces = []

    def counted(w, x):
        traces.append(1)
        return NET.apply(w, x)

    def run(x, params=PARAMS, **more):
        return metrics.parameter_randomization(jv.gradient, counted, params, x, 1, key=KEY, **more)

    run(X + 1, jax.tree.map(lambda a: 2 * a, PARAMS))
    first = len(traces)
    np.testing.assert_allclose(run(X).curve, linen.curve, atol=1e-5)
    assert len(traces) == first
    # Under jit, in chunks that do not divide the nets, and an example alone: in one program.
    alone = jax.jit(functools.partial(run, chunk_size=4))(X[1:2])
    np.testing.assert_allclose(alone.curve, linen.curve[1:2], atol=1e-5)
    assert run(X[:0]).curve.shape == (0, 4)
    with pytest.raises(ValueError, match=r"^parameter_randomization: params must hold floating"):
        metrics.parameter_randomization(
            jv.gradient, lambda _, x: NET.apply(PARAMS, x), None, X, key=KEY
        )
    with pytest.raises(ValueError, match=r"^parameter_randomization: redraw must be a function"):
        run(X, redraw=lambda key, params: {})


def test_the_smooth_test_compares_means_over_noise():
    given = (line, LINE, X, jnp.array([0, 1, 1]))
    options = {"key": KEY, "order": "bottom_up", "num_seeds": 1, "similarity": "cosine"}
    mean = jv.smooth_grad(jv.gradient, num_samples=2, noise_scale=0.2)
    plain = metrics.parameter_randomization(mean, *given, **options)
    found = metrics.smooth_parameter_randomization(
        jv.gradient, *given, num_samples=2, noise_scale=0.2, **options
    )
    np.testing.assert_allclose(found.curve, plain.curve, atol=1e-6)


def test_the_efficient_test_is_the_rise_of_the_entropy():
    explain = lambda params: np.abs(np.asarray(jv.gradient(line, params, X, 1), np.float64))
    held = lambda e: np.array([entropy(np.histogram(row, bins=10)[0]) for row in e])
    mixed = lambda key, w: {k: jax.random.normal(key, a.shape) for k, a in w.items()}
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    before = held(explain(LINE))
    rise = [(held(explain(mixed(key, LINE))) - before) / before for key in keys]
    found = metrics.efficient_parameter_randomization(
        jv.gradient, line, LINE, X, 1, key=KEY, num_bins=10, redraw=mixed
    )
    np.testing.assert_allclose(found, np.mean(rise, 0), rtol=1e-4, atol=1e-6)
    still = lambda f, p, x, target: jnp.ones_like(x)
    out = metrics.efficient_parameter_randomization(still, line, LINE, X, 1, key=KEY, redraw=mixed)
    assert np.isnan(out).all()


def test_random_logit_takes_another_class():
    seen = lambda f, p, x, target: jax.nn.one_hot(target, 3)
    many = jnp.tile(X, (40, 1))
    other = []
    like = lambda a, b: b @ jnp.arange(3.0) + 10 * (a @ jnp.arange(3.0))
    out = metrics.random_logit(seen, NET.apply, PARAMS, many, 1, key=KEY, similarity=like)
    other, own = np.asarray(out) % 10, np.asarray(out) // 10
    assert set(own) == {1.0}
    assert set(other) == {0.0, 2.0}
    assert 35 < (other == 0).sum() < 85  # of 120, each with one half: four deviations
    straight = lambda w, x: x @ w
    opposite = jnp.array([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
    out = metrics.random_logit(
        jv.gradient, straight, opposite, jnp.ones((2, 3)), key=KEY, similarity="cosine"
    )
    np.testing.assert_allclose(out, -1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^random_logit: target must be a class"):
        metrics.random_logit(jv.gradient, lambda w, x: x @ w, jnp.ones((6, 1)), X, key=KEY)
