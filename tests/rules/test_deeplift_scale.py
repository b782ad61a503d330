"""DeepLIFT is relative: as exact at 1e-8 as at 1e8, near its baseline as far from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_nets import double

import jaxviz as jv
from jaxviz.rules.differences import secant

RULES = ("rescale", "reveal_cancel")
NEAR = 2.0**-27  # about 1e-8; a power of two, so that scaling rounds nothing
FAR = 2.0**27


def inputs(seed, *shape):
    keys = jax.random.split(jax.random.key(seed), 2)
    return [jax.random.normal(k, shape) for k in keys]


def of_first_degree(w, x):
    """f(c x) = c f(x): ReLUs, pooling, norms, sorting and choices without a constant."""
    y = x @ w
    h = jax.nn.relu(y) + 0.1 * jnp.abs(y) + jax.nn.leaky_relu(y)
    pooled = jnp.maximum(h[:, ::2], h[:, 1::2]) + h.max(1, keepdims=True)
    norms = jnp.sqrt((h * h).sum(1, keepdims=True)) + jnp.std(h, axis=1, keepdims=True)
    gated = jnp.where(h[:, ::2] > h[:, 1::2], pooled, norms) * pooled / norms
    return jnp.median(h, axis=1, keepdims=True) + gated + jnp.sort(pooled, 1)


def of_degree_zero(w, x):  # layer norm and softmax of a cosine; w scales with x, its square too
    x, eps = x @ w["mix"], w["eps"]
    normed = (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(x.var(1, keepdims=True) + eps)
    cosine = x @ x.T[:, :1] / jnp.linalg.norm(x, axis=1, keepdims=True) / w["size"]
    return jax.nn.softmax(normed * (1 + cosine)) + jax.nn.gelu(normed)


@pytest.mark.parametrize("rule", RULES)
def test_shares_scale_with_the_input_to_the_last_bit(rule):  # oracle: homogeneity
    w = jax.random.normal(jax.random.key(0), (6, 8))
    x, x0 = inputs(1, 3, 6)
    shares = lambda c: jv.deep_lift(of_first_degree, w, c * x, 1, baseline=c * x0, rule=rule)
    one = np.asarray(shares(1.0))
    assert np.abs(one).min() > 0
    for scale in (NEAR, FAR):
        np.testing.assert_array_equal(np.asarray(shares(scale)), scale * one)


@pytest.mark.parametrize("rule", RULES)
def test_norms_of_small_and_large_inputs(rule):  # oracle: a norm does not see the scale
    mix = jax.random.normal(jax.random.key(2), (6, 6))
    x, x0 = inputs(3, 3, 6)

    def shares(c):
        w = {"mix": mix, "eps": jnp.float32(1e-3) * c * c, "size": jnp.float32(c)}
        return np.asarray(jv.deep_lift(of_degree_zero, w, c * x, 1, baseline=c * x0, rule=rule))

    one = shares(1.0)
    for scale in (NEAR, FAR):
        np.testing.assert_allclose(shares(scale), one, rtol=1e-5, atol=1e-6 * np.abs(one).max())


SMOOTH = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "exp": jnp.exp,
    "sine": jnp.sin,
    "cube": lambda x: x**3,
    "root": lambda x: jnp.sqrt(jnp.abs(x)),
    "logarithm": lambda x: jnp.log(jnp.abs(x)),
    "reciprocal": lambda x: 1 / x,
    "reciprocal root": lambda x: jax.lax.rsqrt(x * x + 1e-6),
    "product": lambda x: x * jnp.roll(x, 1, axis=1),
    "quotient": lambda x: x / jnp.roll(x, 1, axis=1),
    "softmax": lambda x: jax.nn.softmax(x) * jnp.exp(x),
    "log softmax": lambda x: jax.nn.log_softmax(x),
    "power": lambda x: jnp.abs(x) ** jnp.roll(x, 1, axis=1),
    "running product": lambda x: jnp.cumprod(x, 1),
    "clip": lambda x: jnp.clip(x, -0.4, 0.8),
}
# Of one variable: RevealCancel takes their secants too, by parts, so that tanh, root and others
# stand for these, and its program compiles in two thirds of the time.
ALIKE = {"sigmoid", "exp", "sine", "cube", "softplus", "logarithm"}


@pytest.mark.parametrize("rule", RULES)
def test_single_precision_near_the_baseline_and_far_from_it(rule):
    """Against the same in double precision, at distances of 1e-7 to 1e7 of the input."""
    smooth = {k: f for k, f in SMOOTH.items() if rule == "rescale" or k not in ALIKE}

    def every(_, x):
        return jnp.stack([f(x).sum(1) for f in smooth.values()], axis=1)

    x = np.array([[0.9, -1.3, 0.4, 0.7, -0.2]], np.float32)
    moved = 1 + np.outer(10.0 ** -np.arange(1, 8), [1, -1, 2, 3, 1])
    start = np.concatenate([x * moved, x * 1e-7, -x]).astype(np.float32)
    count = len(start)
    target = np.repeat(np.arange(len(smooth)), count)
    x, start = (np.tile(np.broadcast_to(a, start.shape), (len(smooth), 1)) for a in (x, start))
    single = np.asarray(jv.deep_lift(every, None, x, target, baseline=start, rule=rule))
    with double():
        wide = [jnp.asarray(a, jnp.float64) for a in (x, start)]
        exact = np.asarray(jv.deep_lift(every, None, wide[0], target, baseline=wide[1], rule=rule))
    for i, name in enumerate(smooth):
        rows = slice(i * count, (i + 1) * count)
        error, whole = (np.abs(a).max(1) for a in (single[rows] - exact[rows], exact[rows]))
        # Quotients lose eps / distance, derivatives distance squared: eps^(2/3) at most.
        assert (error <= 2e-4 * whole).all(), (name, error / whole)


def test_a_secant_is_told_from_a_derivative_by_the_values_alone():
    """By hand: a kink, a step, a false derivative and an infinite one between near ends."""
    near = np.float32(1) + np.array([-300, 500], np.float32) * np.finfo(np.float32).eps
    a, b = jnp.asarray(near[1:]), jnp.asarray(near[:1])
    slope = lambda f, a=a, b=b: float(secant(f, a, b)[2][0])
    above = float((near[1] - 1) / (near[1] - near[0]))
    assert slope(lambda x: x * x) == pytest.approx(2.0, rel=1e-4)
    assert slope(lambda x: jnp.maximum(x, 1)) == pytest.approx(above)
    assert slope(lambda x: (x > 1).astype(x.dtype)) == pytest.approx(1 / (near[1] - near[0]))
    passed = lambda x: x + jax.lax.stop_gradient(jnp.floor(x) - x)
    assert slope(passed) == pytest.approx(1 / (near[1] - near[0]))
    nothing = jnp.zeros(1)
    assert slope(jnp.sqrt, nothing, nothing) == 0
    assert slope(jnp.sqrt, jnp.full(1, 1e-30), nothing) == pytest.approx(1e15)
    assert slope(jnp.exp, jnp.full(1, -jnp.inf), jnp.full(1, -jnp.inf)) == 0


NORMS = [
    lambda h: (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-6),
    lambda h: h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-6),
    lambda h: (
        (h - h.mean(-1, keepdims=True))
        * (1.1 * jax.lax.rsqrt(jnp.var(h, -1, keepdims=True) + 1e-6))
    ),
    lambda h: h / jnp.maximum(jnp.abs(h).max(-1, keepdims=True), 1e-3),
]


def test_norms_in_a_row_lose_no_digits_at_a_baseline_of_zeros():
    """1 / sqrt(eps) = 1000 at the baseline; four times of each in a row, that would be 1e48."""
    first, second, third, last = NORMS

    def transformer(p, x):
        def block(h, weights):
            halves = weights[:4], weights[4:]
            for attended, fed, w in ((first, second, halves[0]), (third, last, halves[1])):
                u = attended(h)
                h = h + jax.nn.softmax(u @ w[0] @ u.swapaxes(1, 2)) @ u @ w[1]
                h = h + jax.nn.gelu(fed(h) @ w[2]) @ w[3]
            return h, None

        h = jax.lax.scan(block, x, p["blocks"])[0]
        return (first(h) + last(h)).mean(1) @ p["out"]

    rng = np.random.default_rng(0)
    p = {"blocks": rng.normal(size=(4, 8, 8, 8)) / 8**0.5, "out": rng.normal(size=(8, 2))}
    p, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (p, rng.normal(size=(2, 3, 8))))
    out = np.asarray(jv.deep_lift(transformer, p, x, 0))
    ends = np.asarray(transformer(p, jnp.concatenate([x, 0 * x])))[:, 0]
    gained = ends[:2] - ends[2:]
    assert np.abs(out.sum((1, 2)) - gained).max() < 1e-5 * np.abs(out).sum((1, 2)).max()
    assert np.abs(out).max() < 100 * np.abs(gained).max()


DEAD = {  # channel 0 is zero at both ends, and no function has a derivative there
    "root": lambda h: jnp.sqrt(h),
    "power": lambda h: h**0.3,
    "cube root": lambda h: jnp.cbrt(h),
    "deviation": lambda h: jnp.std(h[:, :, None] * jnp.array([[[0.0, 1.0, 3.0]]]), axis=2),
    "norm": lambda h: jnp.linalg.norm(jnp.stack([h, 2 * h], 2), axis=2),
    "masked by infinity": lambda h: jax.nn.softmax(jnp.where(h > 0, h, -jnp.inf)),
    "mean of logarithms": lambda h: jnp.log1p(h) / jnp.sqrt(1 + h),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_is_dead_at_both_ends_has_no_share_and_no_nan(rule):
    def every(w, x):
        h = jax.nn.relu(x @ w)
        return jnp.concatenate([f(h).sum(1, keepdims=True) for f in DEAD.values()], axis=1)

    w = jnp.array([[-1.0, 1.0, 0.5], [-1.0, 0.3, 2.0]])
    x, x0 = jnp.array([[0.7, 0.4]]), jnp.array([[0.2, 0.1]])
    target = np.arange(len(DEAD))
    x, x0 = (jnp.tile(a, (len(DEAD), 1)) for a in (x, x0))
    out = np.asarray(jv.deep_lift(every, w, x, target, baseline=x0, rule=rule))
    gained = np.asarray(every(w, x) - every(w, x0))[target, target]
    np.testing.assert_allclose(out.sum(1), gained, rtol=1e-5, atol=1e-6)


HIDDEN = {  # zero by zero at the baseline, but never seen
    "a safe quotient": lambda x: jnp.where(
        x.sum(1, keepdims=True) > 0, x / x.sum(1, keepdims=True), 0
    ),
    "a safe norm": lambda x: jnp.where(
        (x * x).sum(1, keepdims=True) > 0, x * jax.lax.rsqrt((x * x).sum(1, keepdims=True)), 0
    ),
    "a safe logarithm": lambda x: jnp.where(x[:, ::-1] > 0, jnp.log(x), 0),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_is_undefined_is_hidden_by_a_choice_or_seen_in_the_shares(rule):
    x = jnp.array([[0.7, 0.4]])
    for name in ("a safe quotient", "a safe norm", "a safe logarithm"):
        f = lambda _, x, name=name: HIDDEN[name](x) @ jnp.array([[1.0], [3.0]])
        out = np.asarray(jv.deep_lift(f, None, x, 0, rule=rule))
        np.testing.assert_allclose(out.sum(1), f(None, x)[:, 0], rtol=1e-6, err_msg=name)
    undefined = lambda _, x: jnp.stack([jnp.log(x).sum(1), x.sum(1)], 1)
    assert np.isnan(jv.deep_lift(undefined, None, x, 0, rule=rule)).all()
    np.testing.assert_allclose(jv.deep_lift(undefined, None, x, 1, rule=rule), x, rtol=1e-6)


def test_reveal_cancel_where_one_part_alone_leaves_the_domain():
    """sqrt(3 a - b) from 0: b alone would put the root below zero, so both share as in Rescale."""
    f = lambda _, x: jnp.sqrt(3 * x[:, :1] - x[:, 1:])
    x = jnp.array([[1.0, 2.0]])
    out = jv.deep_lift(f, None, x, 0, rule="reveal_cancel")
    np.testing.assert_allclose(out, [[3.0, -2.0]], rtol=1e-6)
    # From (1, 0), a square root of 3, either part alone stays inside: by hand, from 3 to 5 - 2.
    out = jv.deep_lift(
        f, None, jnp.array([[5 / 3, 2.0]]), 0, baseline=jnp.array([1.0, 0.0]), rule="reveal_cancel"
    )
    first, last = np.sqrt(5.0) - np.sqrt(3.0), np.sqrt(3.0) - np.sqrt(1.0)
    np.testing.assert_allclose(out, [[(first + last) / 2, -(first + last) / 2]], rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "dtype"), list(zip(RULES, (jnp.bfloat16, jnp.float16), strict=True))
)
def test_half_precision(dtype, rule):  # oracle: the same numbers in single precision
    f = lambda w, x: jax.nn.softmax(jnp.tanh(x @ w["a"]) @ w["b"]) + jax.nn.gelu(x @ w["a"])[:, :2]
    w = {"a": inputs(5, 4, 8)[0], "b": inputs(6, 8, 2)[0]}
    for scale in (1.0, 1e-3):
        x, x0 = (scale * a for a in inputs(7, 3, 4))
        halves = jax.tree.map(lambda a: a.astype(dtype), (w, x, x0))
        single = jax.tree.map(lambda a: a.astype(jnp.float32), halves)
        out, exact = (
            jv.deep_lift(f, w, x, 0, baseline=x0, rule=rule) for w, x, x0 in (halves, single)
        )
        assert out.dtype == dtype
        error = np.abs(np.asarray(out, np.float32) - np.asarray(exact)).max()
        assert error < 16 * float(jnp.finfo(dtype).eps) * np.abs(np.asarray(exact)).max()


def test_large_and_small_logits():  # oracle: double precision
    f = lambda _, x: jax.nn.softmax(x)
    rows = jnp.array([[1.0, 0.5, -2.0, 0.0], [3.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.999]])
    x = jnp.concatenate([1e-8 * rows, rows, 1e4 * rows, 1e8 * rows])
    x0 = jnp.concatenate([1e-8 * rows[::-1], rows[::-1], 1e4 * rows[::-1], 1e8 * rows[::-1]])
    out = np.asarray(jv.deep_lift(f, None, x, 0, baseline=x0))
    with double():
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, x0)]
        exact = np.asarray(jv.deep_lift(f, None, wide[0], 0, baseline=wide[1]))
    np.testing.assert_allclose(out, exact, rtol=1e-4, atol=1e-6 * np.abs(exact).max(1).min())


def test_order_statistics_by_hand():
    """Of (1, 5, 3) from (4, 2, 3): the median stays 3, the largest 5 is what rose from 2."""
    x, x0 = jnp.array([[1.0, 5.0, 3.0]]), jnp.array([[4.0, 2.0, 3.0]])
    shares = lambda f: np.asarray(jv.deep_lift(lambda _, x: f(x), None, x, 0, baseline=x0))
    np.testing.assert_allclose(shares(lambda x: jnp.sort(x, 1)[:, 2:]), [[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(shares(lambda x: x.max(1, keepdims=True)), [[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(shares(lambda x: jnp.sort(x, 1)), [[-1.0, 0.0, 0.0]])
    np.testing.assert_allclose(shares(lambda x: jnp.median(x, 1, keepdims=True)), [[0.0, 0, 0]])
    # Two places crossed the middle together: (5, 7, 1) from (1, 2, 3) has 5 for 2, by both.
    x, x0 = jnp.array([[5.0, 7.0, 1.0]]), jnp.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(shares(lambda x: jnp.sort(x, 1)[:, 1:]), [[1.5, 1.5, 0.0]])


def top_experts(w, x):
    """A mixture whose experts beyond the top two are masked out before the softmax."""
    logits = x @ w["gate"]
    least = jax.lax.top_k(logits, 2)[0][:, -1:]
    weights = jax.nn.softmax(jnp.where(logits >= least, logits, -jnp.inf))
    return jnp.einsum("ne,neo->no", weights, jnp.einsum("ni,eio->neo", x, w["experts"]))


def largest_of_some(w, x):
    h = x @ w["gate"]
    return jnp.where(h > h.mean(1, keepdims=True), h, -jnp.inf).max(1, keepdims=True) @ w["out"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", [top_experts, largest_of_some])
def test_choices_of_an_infinity_are_complete(net, rule):  # oracle: completeness
    keys = jax.random.split(jax.random.key(5), 3)
    w = {"gate": jax.random.normal(keys[0], (6, 4)), "out": jnp.ones((1, 2))}
    w["experts"] = jax.random.normal(keys[1], (4, 6, 2))
    x, x0 = inputs(6, 5, 6)
    for scale in (1.0, 1e-3):
        shares = jv.deep_lift(net, w, scale * x, 1, baseline=scale * x0, rule=rule)
        gained = (net(w, scale * x) - net(w, scale * x0))[:, 1]
        np.testing.assert_allclose(shares.sum(1), gained, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("rule", RULES)
def test_a_hypotenuse_at_every_scale(rule):
    """By hand: of y^2 = a^2 + b^2 each side has (a + a0) (a - a0) / (y + y0)."""
    rows, starts = np.array([[3.0, 4.0], [-1.0, 0.5]]), np.array([[1.0, -2.0], [0.0, 0.0]])
    scales = np.repeat([1e-30, 1e-8, 1e-3, 1.0, 1e8, 1e30], 2)[:, None]
    x, x0 = (np.float32(scales * np.tile(a, (6, 1))) for a in (rows, starts))
    f = lambda _, x: 3 * jnp.hypot(x[:, :1], x[:, 1:])
    found = np.asarray(jv.deep_lift(f, None, x, 0, baseline=x0, rule=rule))
    x, x0 = (a.astype(np.float64) for a in (x, x0))
    ends = np.hypot(*x.T) + np.hypot(*x0.T)
    exact = 3 * (x + x0) * (x - x0) / ends[:, None]
    np.testing.assert_allclose(found.sum(1), exact.sum(1), rtol=1e-4)
    if "custom_jvp" in str(
        jax.make_jaxpr(jnp.hypot)(1.0, 1.0)
    ):  # else by the larger side, JAX 0.10
        np.testing.assert_allclose(found, exact, rtol=1e-4)
