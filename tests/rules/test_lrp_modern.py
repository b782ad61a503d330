"""LRP through what nets hold today: norms, softmax, gates, segments, derivatives of one's own.

Oracles: the rules of AttnLRP written as a gradient with held values, whose product with the input
is the relevance; plain gradients where nothing is held; sums and cases by hand.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxviz as jv
from jaxviz import rules
from jaxviz.attribution.propagation import lrp

hold = lax.stop_gradient


def drawn(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def relevance(f, x, **options):
    """Of all numbers that `f(x)` has, together."""
    options = {"rules": "epsilon"} | options
    total = lambda outputs: outputs.reshape(len(outputs), -1).sum(1)
    return np.asarray(lrp(lambda _, x: f(x), None, x, total, **options))


def times_gradient(f, x):
    return np.asarray(x * jax.grad(lambda x: f(x).sum())(x))


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(np.asarray(b)).max())


SCALE, SHIFT, HEAD = (1 + 0.3 * drawn(1, 8), 0.2 * drawn(1, 8, seed=2), drawn(8, 3, seed=3))


def moments(x):
    c = x - x.mean(-1, keepdims=True)
    return c, (c * c).mean(-1, keepdims=True)


def keras(x):  # inputs times inverse, plus what is left of the mean
    v = moments(x)[1]
    inverse = lax.rsqrt(v + 1e-5) * SCALE
    return x * inverse + (-x.mean(-1, keepdims=True) * inverse + SHIFT)


def fast_variance(x):
    mean = x.mean(-1, keepdims=True)
    v = jnp.maximum(0.0, (x * x).mean(-1, keepdims=True) - mean * mean)
    return (x - mean) * (lax.rsqrt(v + 1e-5) * SCALE) + SHIFT


def linen(x):
    params = {"scale": SCALE[0], "bias": SHIFT[0]}
    return nn.LayerNorm(epsilon=1e-5).apply({"params": params}, x)


def by_hand(divide):
    return lambda x: divide(*moments(x)) * SCALE + SHIFT


NORMS = {
    "linen": linen,
    "keras": keras,
    "fast variance": fast_variance,
    "rsqrt": by_hand(lambda c, v: c * lax.rsqrt(v + 1e-5)),
    "quotient": by_hand(lambda c, v: c / jnp.sqrt(v + 1e-5)),
    "reciprocal": by_hand(lambda c, v: c * (1 / jnp.sqrt(v + 1e-5))),
    "power": by_hand(lambda c, v: (v + 1e-5) ** -0.5 * c),
    "einsum": by_hand(lambda c, v: jnp.einsum("ni,n->ni", c, lax.rsqrt(v[:, 0] + 1e-5))),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("table", ["epsilon", "epsilon_plus"])
def test_a_norm_is_centred_held_scaled_and_shifted_in_any_spelling(name, table):
    def held(x):
        c, v = moments(x)
        return (c * hold(lax.rsqrt(v + 1e-5)) * SCALE + SHIFT) @ HEAD

    x = drawn(3, 8, seed=4) + 0.5
    f = lambda x: NORMS[name](x) @ HEAD
    close(relevance(f, x, rules=table), times_gradient(held, x), 1e-4)


def test_norms_over_groups_and_without_a_mean():
    x = drawn(2, 4, 8, seed=5)
    rms = lambda hold: lambda x: x * hold(lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6))
    root = nn.RMSNorm(use_scale=False)
    close(relevance(lambda x: root.apply({}, x), x), times_gradient(rms(hold), x))

    def group(x):
        g = x.reshape(2, 4, 2, 4)
        c = g - g.mean((1, 3), keepdims=True)
        return (c * hold(lax.rsqrt((c * c).mean((1, 3), keepdims=True) + 1e-6))).reshape(x.shape)

    weigh = lambda f: lambda x: f(x) @ HEAD  # the plain sum of a centred thing is nothing
    module = nn.GroupNorm(num_groups=2, use_scale=False, use_bias=False)
    got = relevance(weigh(lambda x: module.apply({}, x)), x)
    close(got, times_gradient(weigh(group), x), 1e-4)


def attention(x, hold):
    """Attention by itself with half of each product to either side, as AttnLRP has it."""
    both = lambda e, a, b: (jnp.einsum(e, a, hold(b)) + jnp.einsum(e, hold(a), b)) / 2
    weights = jax.nn.softmax(both("bqhd,bkhd->bhqk", x, x) / np.sqrt(x.shape[-1]))
    return both("bhqk,bkhd->bqhd", weights, x)


def test_attention_halves_its_products():
    x, head = drawn(2, 4, 2, 3, seed=16), drawn(3, 2, seed=17)
    f = lambda x: jax.nn.dot_product_attention(x, x, x) @ head
    held = lambda x: attention(x, hold) @ head
    close(relevance(f, x), times_gradient(held, x), 1e-4)


SEGMENTS = jnp.array([0, 0, 1, 1, 1, 2])


def segment_softmax(x):
    def one(row):
        e = jnp.exp(row - jax.ops.segment_max(row, SEGMENTS, 3)[SEGMENTS])
        return e / jax.ops.segment_sum(e, SEGMENTS, 3)[SEGMENTS]

    return jax.vmap(one)(x)


def by_reciprocal(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e * (1 / e.sum(-1, keepdims=True))


def masked(x):
    keep = jnp.arange(6)[None] < 4
    return jax.nn.softmax(jnp.where(keep, x, -jnp.inf), -1)


def with_sink(x):  # the last logit's weight is thrown away
    m = jnp.maximum(x.max(-1, keepdims=True), 0.5)
    e = jnp.exp(x - m)
    return e / (e.sum(-1, keepdims=True) + jnp.exp(0.5 - m))


SOFTMAXES = {
    "jax.nn": jax.nn.softmax,
    "by hand": lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
    "shifted": lambda x: (
        jnp.exp(x - x.max(-1, keepdims=True))
        / jnp.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
    "reciprocal": by_reciprocal,
    "vmapped": jax.vmap(jax.nn.softmax),
    "masked": masked,
    "sink": with_sink,
    "segments": segment_softmax,
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_is_gradient_times_input_in_any_spelling(name):
    x, head = drawn(2, 6, seed=6), drawn(6, 2, seed=7)
    f = lambda x: SOFTMAXES[name](x) @ head
    close(relevance(f, x), times_gradient(f, x))


def test_softmax_of_equal_logits_keeps_the_winners():
    x = jnp.zeros((1, 4)) + 2.0  # each is the largest: x - max x is 0 everywhere
    head = drawn(4, 1, seed=8)
    f = lambda x: by_reciprocal(x) @ head
    close(relevance(f, x), times_gradient(f, x))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: jax.nn.logsumexp(x, -1, keepdims=True),
        lambda x: jnp.log(jnp.exp(x).sum(-1, keepdims=True)),
        lambda x: (
            jnp.log(jnp.exp(x - x.max(-1, keepdims=True)).sum(-1))[:, None]
            + x.max(-1, keepdims=True)
        ),
        lambda x: lax.cumlogsumexp(x, 1)[:, -1:],
    ],
)
def test_log_sum_exp_gives_each_term_its_part_of_the_sum(pool):
    x = drawn(3, 5, seed=9) + 2
    x = x.at[0, 2].set(x[0].max())  # two winners alike
    expected = jax.nn.softmax(x) * jax.nn.logsumexp(x, -1, keepdims=True)
    close(relevance(pool, x), expected)


def test_an_exponential_of_a_distance_from_a_maximum_alone_is_refused():
    with pytest.raises(NotImplementedError, match=r"the exponential at .*test_lrp_modern"):
        relevance(lambda x: jnp.exp(x - x.max(-1, keepdims=True)), drawn(2, 4))


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_jvp
def binary(x):
    return jnp.sign(x)


binary.defjvp(lambda x, t: (binary(x[0]), 7 * t[0]))


def test_relevance_goes_through_the_function_not_through_its_derivative():
    x, head = drawn(2, 4, seed=10), drawn(4, 2, seed=11)
    through = lambda f: relevance(lambda x: f(x) @ head, x)
    plain = through(lambda x: x)
    for same in (
        reversed_gradient,
        hold,
        lambda x: jax.lax.cond(True, reversed_gradient, hold, x),
        lambda x: jax.lax.scan(lambda c, _: (reversed_gradient(c), None), x, None, length=2)[0],
    ):
        np.testing.assert_array_equal(through(same), plain)
    signs = np.sign(x) * np.asarray(head.sum(1))
    for step in (
        jnp.sign,
        binary,
        lambda x: x + hold(jnp.sign(x) - x),
        lambda x: x - hold(x) + hold(jnp.sign(x)),
    ):
        close(through(step), signs)
    # The gradient has the rule that the model gives it.
    got = jv.gradient(lambda _, x: reversed_gradient(x) @ head, None, x, 0)
    close(got, jnp.broadcast_to(-head[:, 0][None], x.shape))


def test_broadcast_operands_get_the_sum_over_their_copies():
    x, w = jnp.abs(drawn(2, 3)), jnp.abs(drawn(3, 4, seed=12))
    outer = lambda op: lambda x: op(x[:, :, None], w[None])
    for op in (jnp.multiply, jnp.divide, jnp.maximum, jnp.minimum, jnp.power):
        close(relevance(outer(op), x), op(x[:, :, None], w[None]).sum(2))
    two = relevance(lambda x: x[:, :, None] * x[:, None, :], x)
    close(two, x * x.sum(1, keepdims=True))


def test_winners_over_segments_take_all():
    to = jnp.array([0, 2, 2, 1])  # as many edges as nodes
    x = jnp.array([[1.0, 5.0, 2.0, 3.0], [4.0, 6.0, 6.0, 1.0]])
    most = lambda x: jax.vmap(lambda r: jax.ops.segment_max(r, to, 4))(x)[:, :3]
    close(relevance(most, x), [[1, 5, 0, 3], [4, 3, 3, 1]])
    least = lambda x: jax.vmap(lambda r: jax.ops.segment_min(r, to, 4))(x)[:, :3]
    close(relevance(least, x), [[1, 0, 2, 3], [4, 3, 3, 1]])
    close(relevance(lambda x: x.at[:, 0].max(x[:, 3]), x), [[0, 5, 2, 6], [4, 6, 6, 1]])
    close(relevance(lambda x: x.at[:, 0].max(9.0), x), [[9, 5, 2, 3], [9, 6, 6, 1]])
    product = lambda x: jax.vmap(lambda r: jax.ops.segment_prod(r, to, 4))(x)
    with pytest.raises(NotImplementedError, match="product over segments 'scatter-mul'"):
        relevance(product, x)


def test_each_factor_of_a_product_along_an_axis_gets_the_same():
    x = jnp.array([[2.0, 3.0, 4.0]])
    close(relevance(lambda x: x.prod(1, keepdims=True), x), [[8, 8, 8]])
    close(relevance(lambda x: jnp.cumprod(x, 1), x), [[2 + 3 + 8, 3 + 8, 8]])
    close(relevance(lambda x: lax.cumprod(x, 1, reverse=True), x), [[8, 8 + 6, 8 + 6 + 4]])


def test_what_a_comparison_chose_is_a_constant():
    x = jnp.array([[1.0, 0.0, 3.0, -2.0]])
    mask = lambda x: (x > 0.5).astype(x.dtype)
    close(relevance(lambda x: x * mask(x), x), [[1, 0, 3, 0]])
    mean = lambda x: ((x * mask(x)).sum(1) / mask(x).sum(1))[:, None]
    close(relevance(mean, x), [[0.5, 0, 1.5, 0]])
    rows = lambda x: jnp.einsum("ni,ni->n", x, mask(x))[:, None]
    close(relevance(rows, x), [[1, 0, 3, 0]])
    loop = lambda x: lax.scan(lambda c, m: (c + m[0] * m[1], None), x[:, 0] * 0, (x.T, mask(x).T))[
        0
    ]
    close(relevance(lambda x: loop(x)[:, None], x), [[1, 0, 3, 0]])
    for choice in (mask, lambda x: jnp.round(x).astype(jnp.int32).astype(x.dtype)):
        with pytest.raises(NotImplementedError, match="only through comparisons"):
            relevance(choice, x)


def test_the_signal_takes_all_and_halves_beside_it():
    x = jnp.array([[2.0, 3.0, -1.0]])
    taking = {"mul": rules.lrp.signal_takes_all()}
    both = lambda f: (relevance(f, x)[0].tolist(), relevance(f, x, rules=taking)[0].tolist())
    part = lambda i: lambda x: x[:, i : i + 1]
    for gate, made in (
        (jax.nn.sigmoid, lambda v: 1 / (1 + np.exp(-v))),
        (lambda v: 1 - jax.nn.sigmoid(v), lambda v: 1 / (1 + np.exp(v))),
        (lambda v: 1 / (1 + jnp.exp(-v)), lambda v: 1 / (1 + np.exp(-v))),
        (jax.nn.silu, lambda v: v / (1 + np.exp(-v))),
    ):
        score = 2 * made(3.0)
        halves, signal = both(lambda x, gate=gate: part(0)(x) * gate(part(1)(x)))
        assert sum(signal) == pytest.approx(score, rel=1e-5)
        assert signal == pytest.approx([score, 0, 0], rel=1e-5)
        assert halves[0] == pytest.approx(score / 2, rel=1e-5)
    # An LSTM's output o tanh(c): the sigmoid is the gate though both are activations.
    score = float(np.tanh(2.0) / (1 + np.exp(-3.0)))
    lstm = lambda x: jax.nn.sigmoid(part(1)(x)) * jnp.tanh(part(0)(x))
    assert both(lstm)[1] == pytest.approx([score, 0, 0], rel=1e-5)
    # Neither is a gate, and each takes half.
    assert both(lambda x: part(0)(x) * part(1)(x))[1] == pytest.approx([3, 3, 0], rel=1e-5)


def small_net(w, x):
    h = lax.conv_general_dilated(
        x, w[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.nn.relu(h)
    h = h + jax.nn.relu(h @ w[1])
    return h.mean((1, 2)) @ w[2]


TABLES = {
    "epsilon": "epsilon",
    "epsilon_plus": "epsilon_plus",
    "epsilon_alpha2_beta1_flat": "epsilon_alpha2_beta1_flat",
    "excitation_backprop": "excitation_backprop",
    "gamma": {"conv": rules.lrp.gamma(), "dense": rules.lrp.gamma()},
}


@pytest.mark.parametrize("table", TABLES)
def test_relevance_scales_with_its_input(table):
    w = [0.3 * drawn(3, 3, 2, 4), 0.3 * drawn(4, 4), drawn(4, 3)]
    x = drawn(2, 4, 4, 2, seed=13)
    explain = jax.jit(lambda x: jv.lrp(small_net, w, x, 1, rules=TABLES[table]))
    whole = np.asarray(explain(x))
    for c in (1e-8, 1e-3, 1e8):
        close(np.asarray(explain(c * x)) / c, whole, 1e-4)
    if table == "epsilon":  # and without biases it is gradient times input, and conserves
        close(whole, jv.input_x_gradient(small_net, w, x, 1))
        np.testing.assert_allclose(whole.sum((1, 2, 3)), small_net(w, x)[:, 1], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near_single(dtype):
    w = [0.3 * drawn(3, 3, 2, 4), 0.3 * drawn(4, 4), drawn(4, 3)]
    x = drawn(2, 4, 4, 2, seed=13)
    few = jax.tree.map(lambda a: a.astype(dtype), (w, x))
    out = jv.lrp(small_net, *few, 1)
    assert out.dtype == dtype
    close(np.asarray(out, np.float32), jv.lrp(small_net, w, x, 1), 0.1)


def test_an_output_of_zero_hands_nothing_on():
    out = relevance(lambda x: jnp.exp(x[:, :1] - x[:, 1:]), jnp.array([[1.0, 1.0]]))
    np.testing.assert_array_equal(out, [[0, 0]])


CONSERVING = {
    "sort": lambda x: jnp.sort(x, 1),
    "top_k": lambda x: lax.top_k(x, 2)[0],
    "cummax": lambda x: lax.cummax(x, 1),
    "median": lambda x: jnp.median(x, 1, keepdims=True),
    "tile": lambda x: jnp.tile(x, (1, 2)),
    "moving slice": lambda x: jax.vmap(lambda r: lax.dynamic_slice_in_dim(r, r.argmax(), 2))(x),
    "taken": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1)[:, 1:], 1),
    "resized": lambda x: jax.image.resize(x, (2, 7), "bilinear"),
    "solved": lambda x: jax.scipy.linalg.solve_triangular(jnp.eye(6) + 1, x.T, lower=True).T,
    "norm": lambda x: jnp.linalg.norm(x, axis=1, keepdims=True),
    "std": lambda x: x.std(1, keepdims=True),
    "magnitudes of a spectrum": lambda x: jnp.abs(jnp.fft.rfft(x)),
    "running products": lambda x: lax.associative_scan(jnp.multiply, x, axis=1),
}


@pytest.mark.parametrize("name", CONSERVING)
def test_functions_without_constants_conserve(name):
    x = jnp.abs(drawn(2, 6, seed=14)) + 0.1
    score = CONSERVING[name](x).sum(1)
    np.testing.assert_allclose(relevance(CONSERVING[name], x).sum(1), score, rtol=1e-4)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.exp(jnp.fft.rfft(x)).real,
        lambda x: x[:, :3] ** x[:, 3:],
        lambda x: jnp.arctan2(x[:, :3], x[:, 3:]),
        lambda x: x % 1.5,
        lambda x: jnp.linalg.cholesky(x[:, :2, None] * x[:, None, :2] + jnp.eye(2)[None]),
        lambda x: lax.reduce_window(x, 1.0, lax.mul, (1, 2), (1, 2), "VALID"),
    ],
)
def test_what_has_no_rule_is_refused_by_name_and_line(f):
    with pytest.raises(NotImplementedError, match=r"lrp: .*test_lrp_modern\.py:\d+"):
        relevance(f, jnp.abs(drawn(2, 6, seed=15)))


@pytest.mark.parametrize(
    ("who", "make"),
    [
        ("epsilon", lambda bad: rules.lrp.epsilon(bad)),
        ("gamma", lambda bad: rules.lrp.gamma(bad)),
        ("gamma", lambda bad: rules.lrp.gamma(stabilizer=bad)),
        ("alpha_beta", lambda bad: rules.lrp.alpha_beta(stabilizer=bad)),
        ("z_plus", lambda bad: rules.lrp.z_plus(stabilizer=bad)),
        ("z_box", lambda bad: rules.lrp.z_box(0, 1, stabilizer=bad)),
        ("w_square", lambda bad: rules.lrp.w_square(stabilizer=bad)),
        ("flat", lambda bad: rules.lrp.flat(stabilizer=bad)),
        ("product", lambda bad: rules.lrp.product(bad)),
        ("signal_takes_all", lambda bad: rules.lrp.signal_takes_all(bad)),
        ("epsilon_plus", lambda bad: rules.epsilon_plus(bad)),
        ("epsilon_alpha2_beta1", lambda bad: rules.epsilon_alpha2_beta1(stabilizer=bad)),
        ("epsilon_gamma_box", lambda bad: rules.epsilon_gamma_box(-1.0, 1.0, gamma=bad)),
        ("excitation_backprop", lambda bad: rules.excitation_backprop(stabilizer=bad)),
    ],
)
def test_parameters_that_make_no_sense_are_refused(who, make):
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"^{who}: .* at least 0; got"):
            make(bad)
    with pytest.raises(TypeError, match=f"^{who}: "):
        make("0.1")
    assert make(np.float32(0.5)) == make(0.5)


def test_a_loop_of_unknown_length_is_refused_by_name():
    half = lambda x: jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x / 2, x)
    with pytest.raises(NotImplementedError, match=r"^lrp: .*the loop at .*test_lrp_modern\.py:\d+"):
        jv.lrp(lambda w, x: half(jnp.tanh(x)) @ w, jnp.eye(3), jnp.ones((2, 3)), 0)


def test_one_minus_a_gate_is_the_other_sides_gate():  # oracle: the same function, spelled otherwise
    w = [drawn(4, 4), drawn(4, 4, seed=8), drawn(4, 2, seed=9)]

    def highway(other):
        def net(w, x):
            gate = jax.nn.sigmoid(x @ w[0])
            return (gate * jax.nn.relu(x @ w[1]) + other(gate, x @ w[0]) * x) @ w[2]

        return net

    x = drawn(3, 4, seed=10)
    one_minus, negative = highway(lambda g, t: 1 - g), highway(lambda g, t: jax.nn.sigmoid(-t))
    found = np.asarray(jv.lrp(one_minus, w, x, 0))
    close(found, jv.lrp(negative, w, x, 0))
    np.testing.assert_allclose(found.sum(1), one_minus(w, x)[:, 0], rtol=1e-4)  # and conserves


@pytest.mark.parametrize("composite", ["epsilon", "attn_lrp", "epsilon_plus"])
def test_one_minus_a_softmax_is_no_sigmoid(composite):  # oracle: what is left is the other class
    w, x = drawn(4, 2), drawn(1, 4, seed=2)
    two = lambda x: jax.nn.softmax(x @ w)
    expected = relevance(lambda x: two(x)[:, 1:], x, rules=composite)
    close(relevance(lambda x: 1 - two(x)[:, :1], x, rules=composite), expected)
    close(relevance(lambda x: 1 - (1 - two(x)[:, 1:]), x, rules=composite), expected)


def test_one_minus_a_part_of_sigmoids_is_passed_on():
    w, x = drawn(4, 4), drawn(3, 4, seed=2)
    both = lambda x, other: (lambda r, z: r * other(z))(*jnp.split(jax.nn.sigmoid(x @ w), 2, 1))
    negative = jnp.concatenate([w[:, :2], -w[:, 2:]], 1)
    expected = relevance(lambda x: jnp.prod(jax.nn.sigmoid(x @ negative).reshape(3, 2, 2), 1), x)
    close(relevance(lambda x: both(x, lambda z: 1 - z), x), expected)
    hard = lambda x: jax.nn.hard_sigmoid(x @ w)
    close(relevance(lambda x: 1 - hard(x), x).sum(1), (1 - hard(x)).sum(1))


def test_equal_winners_get_what_the_gradient_gives_them():
    x = jnp.array([[2.0, 2.0, 1.0]])
    window = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 1), "VALID")
    close(relevance(window, x), [[2, 0, 0]])
    close(relevance(lambda x: x.max(1, keepdims=True), x), [[1, 1, 0]])
