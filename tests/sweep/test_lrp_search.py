"""Numbers of LRP's rules under trace, and the search that they make one program of."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import metrics, rules

DRAW = np.random.default_rng(0)
SIZES = {"a": (6, 5), "b": (5, 5), "c": (5, 3)}
W = {name: jnp.asarray(DRAW.normal(size=size), jnp.float32) for name, size in SIZES.items()}
X = jnp.asarray(DRAW.normal(size=(4, 6)), jnp.float32)


def net(w, x):
    """With a loop, whose body is differentiated when what it closed over may be gone."""
    x = jnp.tanh(x @ w["a"])
    x, _ = jax.lax.scan(lambda x, _: (jax.nn.relu(x @ w["b"]) + x, None), x, None, length=2)
    return jax.nn.softmax(x) * x @ w["c"]


def relevance(gamma, epsilon):
    return jv.lrp(net, W, X, 0, rules=rules.attn_lrp(epsilon, gamma=gamma))


GAMMA, EPSILON = [0.0, 0.2], [0.0, 0.5]
PAIRS = list(itertools.product(GAMMA, EPSILON))
judge = functools.partial(metrics.deletion, num_steps=3)


def test_numbers_under_trace_give_what_fixed_ones_do():
    fixed = jnp.stack([relevance(*pair) for pair in PAIRS])
    traced = jax.jit(jax.vmap(relevance))(*jnp.array(PAIRS).T)
    np.testing.assert_allclose(traced, fixed, rtol=1e-4, atol=1e-5)
    array = relevance(jnp.float32(0.0), jnp.float32(0.5))  # one that holds a number is a number
    np.testing.assert_array_equal(array, relevance(0.0, 0.5))


def test_no_number_is_traced_anew_and_none_leaks(checking_leaks):
    traces = []

    @jax.jit
    def explained(gamma, epsilon):
        traces.append(0)
        return relevance(gamma, epsilon)

    with checking_leaks():
        explained(0.1, 0.1)
    before = len(traces)
    explained(0.1, 0.1), explained(0.2, 0.3)
    assert len(traces) <= before + 1  # the first was traced beside the cache


def test_the_derivative_by_gamma():  # oracle: central differences
    with jax.enable_x64(True):
        w, x = (jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree) for tree in (W, X))
        two = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["c"]
        total = lambda g: (jv.lrp(two, w, x, 0, rules=rules.attn_lrp(0.1, gamma=g)) ** 2).sum()
        slope = jax.jit(jax.grad(total))(0.2)
        np.testing.assert_allclose(slope, (total(0.2001) - total(0.1999)) / 2e-4, rtol=1e-5)


LAYERS = {
    "epsilon": (rules.lrp.epsilon, {"epsilon": 0.3}),
    "gamma": (rules.lrp.gamma, {"gamma": 0.3, "stabilizer": 0.1}),
    "alpha_beta": (rules.lrp.alpha_beta, {"stabilizer": 0.1}),
    "z_box": (functools.partial(rules.lrp.z_box, -3.0, 3.0), {"stabilizer": 0.1}),
    "w_square": (rules.lrp.w_square, {"stabilizer": 0.1}),
    "flat": (rules.lrp.flat, {"stabilizer": 0.1}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_rule_takes_its_numbers_under_trace(name):
    make, numbers = LAYERS[name]

    def attends(w, x):
        x = x.reshape(len(x), 2, 3) @ w["a"][:3]
        x = jax.nn.softmax(x @ x.mT) @ x * jax.nn.sigmoid(x)
        return jax.nn.log_softmax(x.mean(1) @ w["c"])

    def explain(numbers, others):
        products = {"mul": rules.lrp.signal_takes_all(others), "matmul": rules.lrp.product(others)}
        table = {"dense": make(**numbers), **products, "add": rules.lrp.norm(stabilizer=others)}
        whole = rules.composite("mine", table, stabilizer=others)
        return jv.lrp(attends, W, X, 0, rules=whole)

    fixed = explain(numbers, 0.1)
    assert jnp.abs(fixed).max() > 0
    np.testing.assert_allclose(jax.jit(explain)(numbers, 0.1), fixed, rtol=1e-4, atol=1e-5)


def test_a_wrong_number_is_refused_or_nan():
    for wrong in (-0.1, jnp.float32(-0.1)):
        with pytest.raises(ValueError, match=r"gamma: gamma must be at least 0; got -0.1"):
            rules.lrp.gamma(wrong)
    with pytest.raises(TypeError, match=r"gamma must be a number, at least 0; got a traced array"):
        jax.jit(lambda g: rules.lrp.gamma(g) and g)(jnp.ones(2))
    explained = jax.jit(relevance)
    for gamma, epsilon in ((-0.1, 0.1), (0.1, -0.1), (jnp.inf, 0.1)):
        assert jnp.isnan(explained(gamma, epsilon)).all()


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_search_scores_as_a_loop_does(chunk_size):
    """Oracle: fixed rules, one at a time."""
    candidates = {"gamma": GAMMA, "epsilon": EPSILON}
    found = jv.lrp_search(net, W, X, 0, metric=judge, candidates=candidates, chunk_size=chunk_size)
    given = np.stack([found.candidates["gamma"], found.candidates["epsilon"]], 1)
    np.testing.assert_array_equal(given, np.float32(PAIRS))
    for pair, scores in zip(PAIRS, found.scores, strict=True):
        alone = judge(net, W, X, relevance(*pair), 0).area
        np.testing.assert_allclose(scores, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mean, np.mean(found.scores, 1), rtol=1e-6)
    np.testing.assert_allclose(found.error, np.std(found.scores, 1, ddof=1) / 2, rtol=1e-5)
    best = PAIRS[int(np.argmin(found.mean))]  # of deletion less is better
    assert tuple(map(float, found.best.values())) == tuple(map(float, np.float32(best)))
    assert "best" in repr(found)
    rules.attn_lrp(**found.best)


def test_other_candidates_compile_nothing():
    traces = []

    def counted(*call):
        traces.append(0)
        return judge(*call).area

    for scale in (1.0, 0.5):
        candidates = {"gamma": [0.0, 0.1 * scale, scale], "epsilon": [0.0, 0.5 * scale]}
        jv.lrp_search(net, W, X, 0, metric=counted, candidates=candidates, chunk_size=3)
    assert len(traces) == 1


def test_a_mean_that_is_nan_is_not_the_best():
    def scored(apply_fn, params, x, attribution, target):
        total = attribution.sum(1)
        return jnp.where(total > 1e6, jnp.nan, total)

    made = lambda size: {"dense": lambda op: lambda *inputs: op.evaluate(*inputs) * size}
    linear = lambda w, x: x @ w
    search = functools.partial(jv.lrp_search, linear, jnp.ones((6, 3)), jnp.abs(X), 0,
                               metric=scored, rules=made)  # fmt: skip
    candidates = {"size": [2.0, 1e9, 3.0]}
    assert float(search(candidates=candidates).best["size"]) == 3
    assert float(search(candidates=candidates, lower_is_better=True).best["size"]) == 2
    assert jnp.isnan(search(candidates={"size": [1e9]}).best["size"])


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"lrp_search: candidates must name numbers.*attn_lrp"):
        jv.lrp_search(net, W, X, 0, metric=judge, candidates={"gama": [0.0]})
    with pytest.raises(ValueError, match=r"lrp_search: gamma must be at least 0; got -1.0"):
        jv.lrp_search(net, W, X, 0, metric=judge, candidates={"gamma": [-1.0]})
    with pytest.raises(TypeError, match="lrp_search: candidates must be a table"):
        jv.lrp_search(net, W, X, 0, metric=judge, candidates=[0.1])
    whole = lambda *call: jnp.zeros(())
    with pytest.raises(ValueError, match=r"lrp_search: .* must give a number for each of the 4"):
        jv.lrp_search(net, W, X, 0, metric=whole, candidates={"gamma": [0.1]})
