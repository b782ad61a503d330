"""DeepLIFT: complete on any net, equal to Captum where that is right, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_nets import avg_pool, close, double, net, plain, stored

import jaxviz as jv
from jaxviz.attribution.difference import deep_lift, deep_lift_shap
from jaxviz.attribution.path import completeness_gap

RULES = ("rescale", "reveal_cancel")


def baseline():
    return jnp.asarray(stored()["baseline"], jnp.float64)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "leakyrelu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_rescale_agrees_with_captum_without_max_pooling(act):  # Captum 0.9.0
    with net("plain") as (_, params, x, target):
        f = functools.partial(plain, pool=avg_pool, act=ACTIVATIONS[act])
        out = deep_lift(f, params, x, target, baseline=baseline())
        close(out, f"plain/deep_lift_{act}")


def test_baselines_agree_with_captum():
    with net("plain") as (_, params, x, target):
        f = functools.partial(plain, pool=avg_pool)
        close(deep_lift(f, params, x, target), "plain/deep_lift_zero")
        many = jnp.asarray(stored()["baselines"], jnp.float64)
        for chunk_size in (None, 3):  # 3: the last chunk of the 4 is not full
            out = deep_lift_shap(f, params, x, target, baselines=many, chunk_size=chunk_size)
            close(out, "plain/deep_lift_shap")
    with net("residual") as (f, params, x, target):
        close(deep_lift(f, params, x, target, baseline=baseline()), "residual/deep_lift")


@pytest.mark.parametrize(
    ("name", "rule"), [("plain", "rescale"), ("plain", "reveal_cancel"), ("residual", "rescale")]
)
def test_complete_with_max_pooling_where_captum_is_not(name, rule):
    with net(name) as (f, params, x, target):
        out = deep_lift(f, params, x, target, baseline=baseline(), rule=rule)
        gap = completeness_gap(f, params, x, baseline(), out, target)
        assert np.abs(gap).max() < 1e-12
        if name == "plain":
            peer = jnp.asarray(stored()["plain/deep_lift_max_pool"])
            assert np.abs(completeness_gap(f, params, x, baseline(), peer, target)).min() > 0.5


def affine(w, x):
    return x @ w


@jax.custom_jvp
def own_derivative(x):
    return jnp.sin(x) + jnp.exp(x)


own_derivative.defjvps(lambda t, out, x: 0 * t)


@jax.custom_vjp
def reversed_gradient(x):
    return jnp.tanh(x)


reversed_gradient.defvjp(lambda x: (jnp.tanh(x), None), lambda _, g: (-g,))


def flipped(x):
    return x[:, ::-1]


def largest_of_groups(x):  # the group in the middle has no member
    groups = jnp.array([0, 0, 0, 2, 2, 2])
    return jax.vmap(lambda row: jax.ops.segment_max(row, groups, 3))(x)[:, ::2]


ORDER = np.array([[3, 1, 2, 5, 0, 4]])
ODD = {
    "gelu": lambda x: jax.nn.gelu(x),
    "gelu exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "selu": jax.nn.selu,
    "relu twice": lambda x: jax.nn.relu(jax.nn.sigmoid(x) - 0.4),
    "softmax": jax.nn.softmax,
    "log softmax": jax.nn.log_softmax,
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True) * x,
    "product": lambda x: x * x[:, ::-1],
    "square": lambda x: x * x + x**3,
    "gate": lambda x: x * jax.nn.sigmoid(x[:, ::-1]),
    "quotient": lambda x: x / (1 + x[:, ::-1] ** 2),
    "quotient of any sign": lambda x: x / x[:, ::-1],
    "reciprocal": lambda x: 1 / (2 + x * x),
    "times a reciprocal": lambda x: x * (1 / (x[:, ::-1] + 0.3)) + x * (x[:, ::-1] ** -2),
    "attention": lambda x: (jax.nn.softmax(x[:, :, None] * x[:, None, :]) @ x[:, :, None])[:, :, 0],
    "layer norm": lambda x: (
        (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(x.var(1, keepdims=True) + 1e-3)
    ),
    "maximum": lambda x: jnp.maximum(x, x[:, ::-1] * 2),
    "minimum": lambda x: jnp.minimum(x, x[:, ::-1] * 2),
    "largest": lambda x: x.max(1, keepdims=True) - x.min(1, keepdims=True) * x,
    "clip": lambda x: jnp.clip(x, -0.5, 0.7),
    "overwritten in place": lambda x: x.at[:, 1:].set(jax.nn.relu(x[:, 1:])),
    "onto zeros, one place twice": lambda x: (0 * x).at[:, jnp.array([0, 2, 2])].set(x[:, :3]),
    "scaled in place": lambda x: x.at[:, 0].multiply(2.0).at[:, 1].multiply(x[:, 2]),
    "raised in place": lambda x: x.at[:, 0].max(x[:, 1]).at[:, 2].min(x[:, 3]),
    "changed in place": lambda x: x.at[:, 0].add(x[:, 1]).at[:, 2].subtract(x[:, 3] ** 2),
    "moved": lambda x: jnp.pad(jnp.concatenate([x[:, 1:], -x], 1), ((0, 0), (1, 0)))[:, ::2] - 1.0,
    "scan": lambda x: jax.lax.scan(lambda h, _: (jnp.tanh(h + 0.3 * x), h[:, :1]), x, length=3)[0],
    "fori": lambda x: jax.lax.fori_loop(0, 3, lambda i, h: jax.nn.relu(h) - 0.1 * x, x),
    "cond": lambda x: jax.lax.cond(x.shape[1] > 3, jax.nn.silu, jnp.tanh, x),
    "checkpoint": jax.checkpoint(lambda x: jnp.tanh(x) * x),
    "custom": own_derivative,
    "gradient reversal": reversed_gradient,
    "straight through": lambda x: x + jax.lax.stop_gradient(jnp.floor(9 * x) - x),
    "sorted": lambda x: jnp.sort(x, 1) * x,
    "argsort beside": lambda x: jax.lax.sort((x, 0 * x.astype(int)), num_keys=1)[0] * x,
    "sorted by what stays": lambda x: jax.lax.sort((jnp.tile(ORDER, (len(x), 1)), x))[1],
    "top k": lambda x: jax.lax.top_k(x, 2)[0].sum(1, keepdims=True) * x,
    "median": lambda x: jnp.median(x, 1, keepdims=True) * x,
    "quantile": lambda x: jnp.quantile(x, 0.3, axis=1, keepdims=True) * x,
    "running maximum": lambda x: jax.lax.cummax(x, 1) + jax.lax.cummin(x, 1) * x,
    "running product": lambda x: jnp.cumprod(x, 1),
    "product of all": lambda x: x.prod(1, keepdims=True) * jnp.ones(x.shape),
    "running logsumexp": lambda x: jax.lax.cumlogsumexp(x, 1),
    "logaddexp": lambda x: jnp.logaddexp(x, flipped(x)),
    "norm": lambda x: jnp.linalg.norm(x, axis=1, keepdims=True) * x,
    "power spectrum": lambda x: jnp.abs(jnp.fft.fft(x)) ** 2,
    "spectrum": lambda x: jnp.abs(jnp.fft.rfft(x)) * jnp.fft.fft(x).imag[:, 1:2],
    "filtered": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.array([[1.0, 1j, 2.0, 0.5]]), 6),
    "tiled": lambda x: jnp.tile(x, (1, 2))[:, 2:6],
    "broadcast maximum": lambda x: jnp.maximum(x[:, :, None], jnp.array([[[0.1, -0.2]]])).sum(2),
    "broadcast power": lambda x: (jnp.abs(x[:, :, None]) ** jnp.array([[[0.5, 2.0]]])).sum(2),
    "broadcast difference": lambda x: jnp.abs(x[:, :, None] - x[:, None]).max(2) * x,
    "power of two": lambda x: jnp.abs(x) ** flipped(x),
    "angle": lambda x: jnp.arctan2(x, flipped(x)),
    "remainder": lambda x: x % 0.3,
    "bounds that move": lambda x: jnp.clip(x, flipped(x) - 0.1, flipped(x) + 0.1),
    "choice by another": lambda x: jnp.where(flipped(x) > 0.2, jnp.tanh(x), x**2),
    "mask": lambda x: x * (flipped(x) > 0).astype(x.dtype),
    "logic": lambda x: jnp.where(((x > 0) & (flipped(x) < 0.3)) | ~(x < 1), x, flipped(x)),
    "any and all": lambda x: jnp.where(
        (x > 0).all(1, keepdims=True) ^ (x > 1).any(1, keepdims=True), x, 2 * x
    ),
    "largest of groups": lambda x: jnp.tile(largest_of_groups(x), (1, 3)) * x,
    "gated linear unit": lambda x: jnp.tile(jax.nn.glu(x, 1), (1, 2)),
    "missing are skipped": lambda x: jnp.nanmax(x, 1, keepdims=True) * jnp.nan_to_num(x),
    "solved": lambda x: (
        jax.scipy.linalg.solve_triangular(jnp.tri(6, dtype=x.dtype), x.T, lower=True).T
    ),
}


# Those where RevealCancel does something else than Rescale on both parts.
SIGNED = (
    "gelu exact, relu twice, softmax, product, gate, quotient, maximum, largest, moved, scan"
    ", custom, overwritten in place, scaled in place, raised in place, changed in place, sorted"
    ", median, running product, spectrum, filtered, broadcast maximum, broadcast difference"
    ", power of two, choice by another, logic, gated linear unit, straight through, angle"
).split(", ")


@pytest.mark.parametrize(("rule", "names"), [("rescale", list(ODD)), ("reveal_cancel", SIGNED)])
def test_complete_on_whatever_a_net_is_made_of(rule, names):
    def every_odd(w, x):  # one output for each of the functions
        hidden = [ODD[name](x @ w[0]) for name in names]
        return jnp.concatenate([h @ w[1][: h.shape[1], None] for h in hidden], axis=1)

    rng = np.random.default_rng(4)
    with double():
        w = [jnp.asarray(rng.normal(size=s)) for s in ((4, 6), (6,))]
        x, x0 = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
        x0[2, 2] = x[2, 2]  # what does not differ has no share
        x0[3] = x[3]  # nothing differs, no share at all
        target = np.repeat(np.arange(len(names)), 4)
        x, x0 = (jnp.asarray(np.tile(a, (len(names), 1))) for a in (x, x0))
        out = deep_lift(every_odd, w, x, target, baseline=x0, rule=rule)
        gains = jax.jit(lambda w, x, x0: every_odd(w, x) - every_odd(w, x0))(w, x, x0)
        gained = np.asarray(gains)[np.arange(len(x)), target]
    out = np.asarray(out)
    gap, out = (out.sum(1) - gained).reshape(-1, 4), out.reshape(-1, 4, 4)
    for name, shares, missing in zip(names, out, gap, strict=True):
        assert np.abs(missing).max() < 1e-11, name
        assert np.abs(shares[2, 2]) == 0, name
        assert np.abs(shares[3]).max() == 0, name
        assert np.abs(shares[:2]).max(0).min() > 0, name


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_net_is_weight_times_difference(rule):
    w, x, x0 = (
        jnp.array([[2.0, 1.0], [-3.0, 1.0]]),
        jnp.array([[1.0, 2.0]]),
        jnp.array([[3.0, 1.0]]),
    )
    out = deep_lift(affine, w, x, 0, baseline=x0, rule=rule)
    np.testing.assert_allclose(out, [[-4.0, -3.0]])


def test_min_of_two_as_in_the_paper():
    """Figure 3 of the paper: min(a, b) = a - max(0, a - b). Rescale sees one of them only."""
    f = lambda _, x: (x[:, 0] - jax.nn.relu(x[:, 0] - x[:, 1]))[:, None]
    x = jnp.array([[5.0, 3.0], [2.0, 6.0]])
    rescale = deep_lift(f, None, x, 0)
    np.testing.assert_allclose(rescale, [[0.0, 3.0], [2.0, 0.0]], atol=1e-6)
    reveal = deep_lift(f, None, x, 0, rule="reveal_cancel")
    np.testing.assert_allclose(reveal, [[1.5, 1.5], [1.0, 1.0]], atol=1e-6)


def test_rescale_by_hand():
    """One ReLU: a quarter of the difference passes."""
    f = lambda _, x: jax.nn.relu(x.sum(1, keepdims=True))
    out = deep_lift(f, None, jnp.array([[2.0, -1.0]]), 0, baseline=jnp.array([-4.0, 1.0]))
    # z goes from -3 to 1, y from 0 to 1: m = 1/4 for either.
    np.testing.assert_allclose(out, [[1.5, -0.5]])
    # A product gives each factor its Shapley value: (5 * 3 - 1 * 2) is 4 * 2.5 + 1 * 3.
    f = lambda _, x: x[:, :1] * x[:, 1:]
    out = deep_lift(f, None, jnp.array([[5.0, 3.0]]), 0, baseline=jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(out, [[10.0, 3.0]])
    # A quotient by y b = a: from 1 / 1 to 6 / 3 it is (5 - 2 * 1.5) / 2, however it is spelled.
    x, x0 = jnp.array([[6.0, 3.0]]), jnp.ones(2)
    quotients = (
        lambda _, x: x[:, :1] / x[:, 1:],
        lambda _, x: x[:, :1] * (1 / x[:, 1:]),
        lambda _, x: 2 * x[:, 1:] ** -1 * (0.5 * x[:, :1]),
    )
    for f in quotients:
        np.testing.assert_allclose(deep_lift(f, None, x, 0, baseline=x0), [[2.5, -1.5]], rtol=1e-6)
    # A maximum that grew belongs to the winner now, one that fell to the winner before.
    f = lambda _, x: x.max(1, keepdims=True)
    x, x0 = jnp.array([[5.0, 3.0], [1.0, 2.0]]), jnp.array([[1.0, 4.0], [7.0, 3.0]])
    out = deep_lift(f, None, x, 0, baseline=x0)
    np.testing.assert_allclose(out, [[1.0, 0.0], [-5.0, 0.0]])


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("function", [jax.nn.softmax, jax.nn.log_softmax])
@pytest.mark.parametrize(("shape", "axis"), [((2, 2, 2), 2), ((2, 2, 4), 1), ((2, 3, 2, 4), 2)])
def test_softmax_under_vmap_has_its_axes_in_another_order(rule, function, shape, axis):
    each = jax.vmap(function, axis, axis)
    f = lambda w, x: (each(x) * w).reshape(2, -1).sum(1)[:, None]
    w, x, start = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    found = deep_lift(f, w, x, 0, baseline=start, rule=rule).reshape(2, -1).sum(1)
    np.testing.assert_allclose(found, (f(w, x) - f(w, start))[:, 0], atol=1e-5)


def test_softmax_does_not_see_the_rest_of_the_batch():
    """Captum's softmax rule subtracts a mean over all numbers of the batch."""
    f = lambda w, x: jax.nn.softmax(x @ w)
    w = jax.random.normal(jax.random.key(0), (5, 4))
    x = jax.random.normal(jax.random.key(1), (2, 5))
    whole = deep_lift(f, w, x, 2)
    single = jnp.concatenate([deep_lift(f, w, row[None], 2) for row in x])
    np.testing.assert_allclose(whole, single, rtol=1e-5, atol=1e-6)


def test_extremes_stay_finite():
    f = lambda w, x: jax.nn.softmax(jax.nn.relu(x) * 1e4) + jnp.tanh(x)
    x = jnp.array([[1e4, -1e4, 0.0], [0.0, 1e-30, -1e-30]])
    for rule in RULES:
        out = deep_lift(f, None, x, 0, baseline=jnp.array([0.0, 1e4, 0.0]), rule=rule)
        assert np.isfinite(out).all()


def test_a_function_as_target_has_its_differences_carried_too():
    with net("plain") as (f, params, x, _):
        margin = lambda o: jax.nn.softmax(o)[:, 0] * o[:, 1]
        out = deep_lift(f, params, x, margin, baseline=baseline())
        gap = completeness_gap(f, params, x, baseline(), out, margin)
        assert np.abs(gap).max() < 1e-12


def test_what_has_no_common_path_is_refused_by_name_and_line():
    branch = lambda _, x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)
    with pytest.raises(NotImplementedError, match=r"'cond' at .*test_deeplift\.py:\d+"):
        deep_lift(branch, None, jnp.ones((1, 2)), 0)
    by_another = lambda _, x: jax.lax.sort((x, 2 * x), dimension=1, num_keys=1)[1]
    with pytest.raises(NotImplementedError, match=r"'sort' .*test_deeplift\.py:\d+"):
        deep_lift(by_another, None, jnp.ones((1, 2)), 0)
    with pytest.raises(ValueError, match="rule must be 'rescale' or 'reveal_cancel'; got 'other'"):
        deep_lift(affine, jnp.eye(2), jnp.ones((1, 2)), 0, rule="other")
    with pytest.raises(ValueError, match=r"baselines must be \[B, \.\.\.\]"):
        deep_lift_shap(affine, jnp.eye(2), jnp.ones((1, 2)), 0, baselines=jnp.ones(2))


def test_gradient_by_params_through_softmax_and_products():  # against central differences
    rng = np.random.default_rng(2)
    with double():
        w = jnp.asarray(rng.normal(size=(4, 5)))
        x = jnp.asarray(rng.normal(size=(2, 4)))
        f = lambda w, x: jax.nn.softmax(jnp.tanh(x @ w) * jax.nn.gelu(x @ w))
        number = jax.jit(lambda w: (deep_lift(f, w, x, 1)[:, :2] ** 2).sum())
        direction = jnp.asarray(rng.normal(size=w.shape))
        h = 1e-6
        slope = (number(w + h * direction) - number(w - h * direction)) / (2 * h)
        found = (jax.jit(jax.grad(number))(w) * direction).sum()
        np.testing.assert_allclose(found, slope, rtol=1e-5)


CHOOSING = {
    "argmax": lambda w, x: jnp.take_along_axis(x @ w, jnp.argmax(x, 1)[:, None], 1) * w[:1],
    "codebook": lambda w, x: w[jnp.argmax(x, 1)] + x @ w,
    "parity": lambda w, x: (x * (jnp.floor(x).astype(jnp.int32) % 2 == 0).astype(x.dtype)) @ w,
}


@pytest.mark.parametrize(
    ("name", "rule"), list(zip(CHOOSING, ("rescale", "reveal_cancel", "rescale"), strict=True))
)
def test_what_an_integer_of_the_input_chose_is_complete(name, rule):
    w, x = jnp.eye(3) + 1, 3 * jax.random.normal(jax.random.key(5), (8, 3))
    f, start = CHOOSING[name], jax.random.normal(jax.random.key(6), x.shape)
    found = deep_lift(f, w, x, 0, baseline=start, rule=rule)
    np.testing.assert_allclose(found.sum(1), (f(w, x) - f(w, start))[:, 0], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_what_a_count_in_a_loop_chose_is_refused_by_name(rule):
    w, x = jnp.eye(3), jax.random.normal(jax.random.key(5), (2, 3))

    def f(w, x):
        count = lambda i, n: n + (x[:, i] > 0).astype(n.dtype)
        above = jax.lax.fori_loop(0, 2, count, jnp.zeros(len(x), jnp.int32))
        return jnp.take_along_axis(x @ w, above[:, None], 1)

    with pytest.raises(NotImplementedError, match=r"^deep_lift: .*_deeplift\.py:\d+ chooses by"):
        jax.eval_shape(lambda x: deep_lift(f, w, x, 0, rule=rule), x)


def test_pytree_with_an_integer_leaf():
    f = lambda w, x: jax.nn.relu(w[x["ids"]] + x["v"] @ w) @ jnp.ones((3, 2))
    w = jax.random.normal(jax.random.key(3), (3, 3))
    x = {"ids": jnp.array([0, 2]), "v": jax.random.normal(jax.random.key(4), (2, 3))}
    out = deep_lift(f, w, x, 0)
    assert out["ids"].tolist() == [0, 0]
    gained = f(w, x)[:, 0] - f(w, {**x, "v": 0 * x["v"]})[:, 0]
    np.testing.assert_allclose(out["v"].sum(1), gained, rtol=1e-5)


def test_layers_are_explained_through_the_cut():
    with net("plain") as (f, params, x, target):
        head, tail = jv.split(f, params, x, "max_pool_0")
        a, _ = head(params, x)
        a0, _ = head(params, jnp.broadcast_to(baseline(), x.shape))
        out = deep_lift(tail, (params, ()), a, target, baseline=a0)
        gap = completeness_gap(tail, (params, ()), a, a0, out, target)
        assert np.abs(gap).max() < 1e-12


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_a_choice_among_several_changes_as_its_conditions_do(rule):
    """Of one number alone each share is the whole change, whatever was chosen at both ends."""
    f = lambda _, x: jnp.select([x > 1, x > 0, x > -1], [x**2, x, 3 * x], jnp.exp(x)).sum(
        1, keepdims=True
    )
    x = jnp.array([[0.5, 2.0, -0.5, -3.0, 1.5], [-2.0, 4.0, 1.0, 0.2, -0.1]])
    start = jnp.array([[-2.0, 0.3, 0.4, 5.0, 1.2], [0.5, 2.0, -0.5, -3.0, 1.5]])
    found = jv.deep_lift(f, None, x, 0, baseline=start, rule=rule)
    alone = jax.vmap(jax.vmap(lambda a: f(None, a.reshape(1, 1))[0, 0]))
    np.testing.assert_allclose(found, alone(x) - alone(start), rtol=1e-5)


WINNERS = {
    "row of a table": lambda x: jnp.array([[1.0], [5.0], [2.0]])[x.argmax(1)],
    "one-hot": lambda x: jax.nn.one_hot(x.argmax(1), 3) @ jnp.array([[1.0], [5.0], [2.0]]),
    "branch": lambda x: jax.vmap(
        lambda i: jax.lax.switch(i, [lambda v=v: jnp.full(1, v) for v in (1.0, 5.0, 2.0)])
    )(x.argmax(1)),
    "smallest": lambda x: jnp.array([[1.0], [5.0], [2.0]])[(-x).argmin(1)],
}


@pytest.mark.parametrize(
    ("name", "rule"), list(zip(WINNERS, ("rescale", "reveal_cancel") * 2, strict=True))
)
def test_a_winner_that_changed_is_explained_by_who_overtook_whom(name, rule):
    """By hand: x1 - x0 went from -2 to 2, 3 of these 4 by x1 and 1 by x0; the change is 4."""
    x, start = jnp.array([[1.0, 3.0, 0.0], [1.0, 3.0, 0.0]]), jnp.array([[2.0, 0, 1], [0.0, 1, 0]])
    found = jv.deep_lift(lambda _, x: WINNERS[name](x), None, x, 0, baseline=start, rule=rule)
    np.testing.assert_allclose(found, [[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_counts_and_rows_of_what_moves_are_complete(rule):
    x = jax.random.normal(jax.random.key(0), (4, 6))

    def f(_, x):
        count = (x > 0.2).sum(1, keepdims=True)
        row = jax.vmap(lambda a: a.reshape(2, 3)[a[:2].argmax()])(x)
        kept = jax.lax.scan(lambda n, a: (n + (a > 0).astype(int), a), jnp.zeros(4, int), x.T)[1].T
        sparse = (x - 1).sum(1, keepdims=True) / (1 + count.astype(x.dtype))
        level = jnp.array([0.0, 2.0, 5.0, 1.0])[jnp.clip(jnp.floor(x).astype(int) + 1, 0, 3)]
        return sparse + row.sum(1, keepdims=True) + (kept * level).sum(1, keepdims=True)

    start = jax.random.normal(jax.random.key(1), x.shape)
    found = jv.deep_lift(f, None, x, 0, baseline=start, rule=rule)
    np.testing.assert_allclose(found.sum(1), (f(None, x) - f(None, start))[:, 0], rtol=1e-5)
