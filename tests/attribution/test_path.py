"""Path methods along the straight line: against Captum, by hand, and by the axioms they promise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from small_net import close

from jaxviz.attribution.path import (
    completeness_gap,
    expected_gradients,
    gauss_legendre,
    integrated_gradients,
    quadrature,
)
from jaxviz.graph.split import split

CAPTUM = 1e-7  # its path points are float32 even where all else is float64
RULES = ("gausslegendre", "left", "right", "middle", "trapezoid")
product = lambda w, x: w * x[:, :1] * x[:, 1:]
smooth = lambda w, x: jnp.tanh(x @ w) ** 2


@pytest.mark.parametrize("rule", RULES)
def test_rules_agree_with_captum(rule):
    with jax.enable_x64(True):
        params, x, target, baseline, _ = small_net.inputs(jnp.float64)
        out = integrated_gradients(
            small_net.apply_fn, params, x, target, baseline=baseline, num_steps=11, rule=rule
        )
        theirs = small_net.peers()[f"ig_{rule}"]
        if rule == "trapezoid":  # its 11 weights, 1/11 and half of it at the ends, sum to 10/11
            theirs = theirs * 11 / 10
        close(out, theirs, CAPTUM)


def test_single_precision_agrees_with_captum():
    params, x, target, baseline, _ = small_net.inputs(jnp.float32)
    out = integrated_gradients(
        small_net.apply_fn, params, x, target, baseline=baseline, num_steps=11
    )
    assert out.dtype == jnp.float32
    close(out, small_net.peers()["ig_gausslegendre"], 1e-5)


def test_expected_gradients_agree_with_captum():  # the same draws handed to both
    with jax.enable_x64(True):
        params, x, target, _, baselines = small_net.inputs(jnp.float64)
        draws = {"key": jax.random.key(7), "num_samples": 4, "noise_scale": 0.15}
        out = expected_gradients(
            small_net.apply_fn, params, x, target, baselines=baselines, **draws
        )
        close(out, small_net.peers()["gradient_shap"], 1e-12)


# Layers: the cut makes each a few lines. Neurons are in test_conductance.py.


def test_layer_integrated_gradients_are_those_of_the_tail():
    with jax.enable_x64(True):
        params, x, target, baseline, _ = small_net.inputs(jnp.float64)
        head, tail = split(small_net.apply_fn, params, x, "conv2")
        a, carry = head(params, x)
        a0, _ = head(params, jnp.broadcast_to(baseline, x.shape))
        out = integrated_gradients(tail, (params, carry), a, target, baseline=a0, num_steps=11)
        close(out, small_net.peers()["layer_ig"], CAPTUM)


def test_all_classes_at_once_share_the_forward_pass():
    params, x, _, baseline, _ = small_net.inputs(jnp.float32)
    explain = functools.partial(
        integrated_gradients, small_net.apply_fn, params, x, baseline=baseline, num_steps=4
    )
    together = jax.vmap(explain)(jnp.arange(4))
    for k in range(4):
        close(together[k], explain(k), 1e-5)


def test_product_is_shared_equally():  # oracle: the integral done by hand
    out = integrated_gradients(product, 3.0, jnp.array([[2.0, 5.0]]), 0, num_steps=4)
    chex.assert_trees_all_close(out, jnp.array([[15.0, 15.0]]), rtol=1e-6)


def test_square_by_hand_under_each_rule():
    # f = x^2 from 1 to 3: 2 * mean of 2 x(t); exact 8, and the error of each rule with two points.
    expected = {"gausslegendre": 8, "left": 6, "right": 10, "middle": 8, "trapezoid": 8}
    for rule, value in expected.items():
        x = jnp.array([[3.0]])
        out = integrated_gradients(
            lambda _, x: x**2, None, x, 0, baseline=1.0, num_steps=2, rule=rule
        )
        chex.assert_trees_all_close(out, jnp.array([[value]], jnp.float32), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_axioms(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    x, baseline = (jax.random.normal(k, (3, 6)) for k in keys[:2])
    w, v = (0.5 * jax.random.normal(k, (6, 4)) for k in keys[2:])
    w = w.at[2].set(0)  # an input that nothing reads
    explain = functools.partial(integrated_gradients, baseline=baseline, num_steps=64)
    out = explain(smooth, w, x, 1)
    # Completeness, and its own measure of it. Gauss-Legendre on a smooth path: float rounding.
    gap = completeness_gap(smooth, w, x, baseline, out, 1)
    assert jnp.abs(gap).max() < 1e-5
    gained = smooth(w, x)[:, 1] - smooth(w, baseline)[:, 1]
    chex.assert_trees_all_close(out.sum(1), gained, atol=1e-5)
    # Sensitivity: what is not read gets nothing; a lone difference that changes the score gets it.
    assert not out[:, 2].any()
    alone = baseline.at[:, 3].set(x[:, 3])
    only = explain(smooth, w, alone, 1)
    gained = smooth(w, alone)[:, 1] - smooth(w, baseline)[:, 1]
    chex.assert_trees_all_close(only[:, 3], gained, atol=1e-5)
    assert not jnp.delete(only, 3, axis=1).any()
    # Implementation invariance: the same function written another way.
    other = lambda w, x: 1 - 1 / jnp.cosh(jnp.einsum("ni,ij->nj", x, w)) ** 2
    chex.assert_trees_all_close(out, explain(other, w, x, 1), atol=1e-5)
    # Linearity.
    both = explain(lambda p, x: 2 * smooth(p[0], x) - 3 * smooth(p[1], x), (w, v), x, 1)
    chex.assert_trees_all_close(both, 2 * out - 3 * explain(smooth, v, x, 1), atol=2e-5)
    # Symmetry: inputs that enter alike, with equal values and baselines, share alike.
    alike = lambda w, x: smooth(w, x + x[:, ::-1])
    even = explain(alike, w, x + x[:, ::-1], 1, baseline=baseline + baseline[:, ::-1])
    chex.assert_trees_all_close(even, even[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 3, 50])
def test_chunks_change_nothing(chunk_size):
    keys = jax.random.split(jax.random.key(0), 3)
    w, x, b = (jax.random.normal(k, s) for k, s in zip(keys, ((6, 4), (3, 6), (5, 6)), strict=True))
    explain = functools.partial(integrated_gradients, smooth, w, x, 1, baseline=b[0], num_steps=10)
    close(explain(chunk_size=chunk_size), explain(chunk_size=10), 1e-5)
    draw = {"baselines": b, "key": keys[0], "num_samples": 7}
    explain = functools.partial(expected_gradients, smooth, w, x, 1, **draw)
    close(explain(chunk_size=chunk_size), explain(chunk_size=7), 1e-5)


def test_memory_does_not_grow_with_steps():
    w, x = jnp.ones((64, 512)), jnp.ones((8, 64))

    def temporaries(num_steps):
        def explain(w, x):
            return integrated_gradients(smooth, w, x, 0, num_steps=num_steps, chunk_size=2)

        for f in (explain, jax.grad(lambda w, x: explain(w, x).sum(), argnums=1)):
            memory = jax.jit(f).lower(w, x).compile().memory_analysis()
            yield memory.temp_size_in_bytes

    few, many = list(temporaries(4)), list(temporaries(64))
    assert many[0] < 1.1 * few[0]
    # Its own derivative keeps one running sum a chunk, nothing of the net.
    assert many[1] - few[1] < 2 * 32 * x.nbytes


def test_class_is_chosen_at_the_input():
    # The top class changes on the way: near the baseline it is class 1.
    f = lambda _, x: jnp.concatenate([x, 0.5 - x], axis=1)
    x = jnp.array([[2.0]])
    chex.assert_trees_all_close(integrated_gradients(f, None, x), jnp.array([[2.0]]), rtol=1e-6)
    draw = {"baselines": jnp.zeros((1, 1)), "key": jax.random.key(0)}
    chex.assert_trees_all_close(expected_gradients(f, None, x, **draw), x, rtol=1e-6)


def test_pytrees_with_integer_leaves():
    def f(w, x):
        return w[x["token"]] * x["pixel"]

    w = jnp.array([[2.0], [3.0]])
    x = {"pixel": jnp.array([[1.0], [1.0]]), "token": jnp.array([1, 0])}
    out = integrated_gradients(f, w, x, 0)
    chex.assert_trees_all_close(out["pixel"], jnp.array([[3.0], [2.0]]), rtol=1e-6)
    assert not out["token"].any()
    gap = completeness_gap(f, w, x, None, out, 0)
    chex.assert_trees_all_close(gap, jnp.zeros(2), atol=1e-5)
    baselines = {"pixel": jnp.zeros((1, 1)), "token": jnp.zeros((1,), jnp.int32)}
    out = expected_gradients(f, w, x, 0, baselines=baselines, key=jax.random.key(0))
    chex.assert_trees_all_close(out["pixel"], jnp.array([[3.0], [2.0]]), rtol=1e-6)


def test_half_precision_is_kept_and_summed_in_single():
    dtype = jnp.bfloat16
    x = jnp.array([[2.0, 5.0]], dtype)
    w = jnp.asarray(3.0, dtype)
    out = integrated_gradients(product, w, x, 0)
    assert out.dtype == dtype
    chex.assert_trees_all_close(out.astype(jnp.float32), jnp.full((1, 2), 15.0), rtol=1e-2)
    draw = {"baselines": jnp.zeros((2, 2), dtype), "key": jax.random.key(0)}
    assert expected_gradients(product, w, x, 0, **draw).dtype == dtype


def test_gradient_through_the_path_is_that_of_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w, x, v = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (2, 4), (2, 4)))

        def loss(w, x):
            return (v * integrated_gradients(smooth, w, x, 0, num_steps=6, chunk_size=4)).sum()

        jax.test_util.check_grads(loss, (w, x), order=1, modes=("rev",), rtol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_expected_gradients_are_complete_in_expectation(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    w, x = jax.random.normal(keys[0], (6, 2)), jax.random.normal(keys[1], (2, 6))
    baselines = jax.random.normal(keys[2], (5, 6))
    draw = {"baselines": baselines, "key": keys[0], "num_samples": 5000, "chunk_size": 500}
    out = expected_gradients(smooth, w, x, 1, **draw)
    gained = smooth(w, x)[:, 1] - smooth(w, baselines)[:, 1].mean()
    # 5000 draws of a sum of standard deviation below 3: three standard errors are 0.13.
    chex.assert_trees_all_close(out.sum(1), gained, atol=0.13)


def test_linear_models_need_one_draw():
    w, x, b = jnp.arange(6.0).reshape(3, 2), jnp.ones((4, 3)), jnp.full((1, 3), 0.5)
    out = expected_gradients(
        lambda w, x: x @ w, w, x, 1, baselines=b, key=jax.random.key(0), num_samples=1
    )
    chex.assert_trees_all_close(out, jnp.broadcast_to(0.5 * w[:, 1], (4, 3)), rtol=1e-6)


def test_gap_is_what_is_missing():
    x = jnp.array([[2.0, 5.0]])
    out = integrated_gradients(product, 3.0, x, 0, num_steps=4, rule="left")
    gap = completeness_gap(product, 3.0, x, None, out, 0)
    chex.assert_trees_all_close(gap, jnp.array([-7.5]), rtol=1e-5)  # 22.5 of 30: by hand


def test_errors_say_what_came():
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match=r"integrated_gradients: .*baseline \(3,\), x \(1, 2\)"):
        integrated_gradients(product, 1.0, x, 0, baseline=jnp.ones(3))
    with pytest.raises(ValueError, match="pytree like x"):
        integrated_gradients(product, 1.0, x, 0, baseline={"a": x, "b": x})
    with pytest.raises(ValueError, match=r"rule must be 'gausslegendre'.*got 'simpson'"):
        integrated_gradients(product, 1.0, x, 0, rule="simpson")
    with pytest.raises(ValueError, match=r"num_steps must be at least 1; got 0"):
        integrated_gradients(product, 1.0, x, 0, num_steps=0)
    with pytest.raises(ValueError, match=r"num_steps must be at least 2; got 1"):
        integrated_gradients(product, 1.0, x, 0, num_steps=1, rule="trapezoid")
    with pytest.raises(ValueError, match=r"chunk_size must be at least 1.*got 0"):
        integrated_gradients(product, 1.0, x, 0, chunk_size=0)
    with pytest.raises(ValueError, match=r"expected_gradients: baselines must be \[B, ...\]"):
        expected_gradients(product, 1.0, x, 0, baselines=x[0], key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"expected_gradients: missing a required argument: 'key'"):
        expected_gradients(product, 1.0, x, 0, baselines=x)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="attribution must have the shape of x"):
        completeness_gap(product, 1.0, x, None, x[0], 0)


def test_new_data_and_labels_do_not_retrace():
    traces = []

    def f(w, x):
        traces.append(1)
        return x @ w

    w, x = jnp.ones((3, 2)), jnp.ones((2, 3))
    integrated_gradients(f, w, x, 0, num_steps=3)
    count = len(traces)
    integrated_gradients(f, 2 * w, 3 * x, 1, num_steps=3)
    assert len(traces) == count


SEQUENCE = jax.random.normal(jax.random.key(1), (2, 6, 4))
MASK = jnp.arange(6)[None] < jnp.array([[4], [6]])  # the first sequence is padded
LOWEST = float(jnp.finfo(jnp.float32).min)


def pooled(nothing):
    def net(w, h):  # attention over what is there
        weights = jax.nn.softmax(jnp.where(MASK, h @ w[:, 0], nothing))
        return jnp.tanh((weights[..., None] * (h @ w)).sum(1))

    return net


def largest(w, h):
    return jnp.where(MASK[..., None], h @ w, -jnp.inf).max(1)


def smallest(w, h):
    return jnp.where(MASK[..., None], h @ w, jnp.inf).min(1) ** 2


def padded(w, h):  # NaN and infinities where a window has nothing
    rows = jnp.pad(h @ w, ((0, 0), (1, 1), (0, 0)), constant_values=jnp.nan)
    rows = jnp.where(jnp.isnan(rows), -jnp.inf, rows)
    tops = jnp.stack([rows[:, :-1:2], rows[:, 1::2]]).max(0)
    return jax.nn.relu(tops).mean(1)


@pytest.mark.parametrize("rule", ["gausslegendre", "left", "right", "trapezoid"])
@pytest.mark.parametrize(
    "net",
    [pooled(-jnp.inf), pooled(LOWEST), largest, smallest, padded],
    ids=["pooled", "lowest", "largest", "smallest", "padded"],
)
def test_what_is_infinite_at_both_ends_is_so_between_them(net, rule):
    w = jax.random.normal(jax.random.key(0), (4, 3))
    points, weights = (np.asarray(a, np.float32) for a in quadrature("f", rule, 5))
    slope = jax.grad(lambda h: net(w, h)[:, 1].sum())
    expected = SEQUENCE * sum(c * slope(t * SEQUENCE) for t, c in zip(points, weights, strict=True))
    assert np.isfinite(expected).all()
    found = integrated_gradients(net, w, SEQUENCE, 1, num_steps=5, rule=rule)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_only_points_of_the_sum_are_run():
    """At the input itself the first layer overflows float16; at no point of the sum does it."""
    w, x = jnp.full((2, 1), 250, jnp.float16), jnp.full((1, 2), 140, jnp.float16)
    net = lambda w, x: jnp.minimum(x @ w, 1000)
    assert np.isinf((x @ w)[0, 0])
    out = integrated_gradients(net, w, x, 0, num_steps=4, rule="left")
    # Of the points 0, 35, 70, 105 the first alone is not capped.
    np.testing.assert_allclose(out, [[140 * 250 / 4] * 2], rtol=1e-3)


def test_an_input_that_is_infinite_and_stays_so_has_no_part():
    x = jnp.array([[1.0, -jnp.inf, 2.0]])
    net = lambda _, x: jax.nn.logsumexp(x, axis=1, keepdims=True)
    baseline = jnp.array([0.0, -jnp.inf, 0.0])
    out = integrated_gradients(net, None, x, 0, baseline=baseline)
    np.testing.assert_allclose(out.sum(), jax.nn.logsumexp(x) - np.log(2), rtol=1e-5)
    assert out[0, 1] == 0
    draw = {"baselines": baseline[None], "key": jax.random.key(0)}
    assert expected_gradients(net, None, x, 0, **draw)[0, 1] == 0
    slope = jax.grad(lambda x: integrated_gradients(product, 1.0, x, 0, num_steps=2).sum())
    # x y, whatever the baseline: an input that stands at its baseline still has a slope.
    np.testing.assert_allclose(slope(jnp.array([[0.0, 3.0]])), [[3.0, 0.0]], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 50, 51])
def test_gauss_legendre_points_are_numpys(count):
    points, weights = gauss_legendre(count)
    nodes, expected = np.polynomial.legendre.leggauss(count)
    np.testing.assert_allclose(points, (1 + nodes) / 2, rtol=1e-13)
    np.testing.assert_allclose(weights, expected / 2, rtol=1e-12)


def test_thousands_of_points_are_still_a_quadrature():
    points, weights = gauss_legendre(2001)
    assert (np.diff(points) > 0).all()
    for power in (0, 1, 7, 100):
        np.testing.assert_allclose(weights @ points**power, 1 / (power + 1), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_loses_its_own_digits_and_no_more(dtype):
    """Weights, points and sums are in float32: 300 equal steps of bfloat16 would lose a percent."""
    w = jax.random.normal(jax.random.key(0), (4, 2))
    x = jax.random.uniform(jax.random.key(1), (1, 4), minval=0.5)
    half = lambda a: a.astype(dtype)
    exact = jnp.asarray(half(w), jnp.float32), jnp.asarray(half(x), jnp.float32)
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    # No layer is left to half precision: each gradient is its own input, of which sums are taken.
    net = lambda _, x: (x.astype(jnp.float32) ** 3).sum(1, keepdims=True)
    out = integrated_gradients(net, None, half(x), 0, num_steps=300, rule="middle")
    np.testing.assert_allclose(out.astype(jnp.float32), exact[1] ** 3, rtol=tolerance)
    gap = completeness_gap(net, None, half(x), None, half(x) ** 3, 0)
    assert gap.dtype == jnp.float32
    assert abs(gap[0]) < tolerance * (exact[1] ** 3).sum()
