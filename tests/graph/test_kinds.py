"""Kinds are proved: spellings of one function, near misses, odd derivatives, whole programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from scipy import special

import jaxviz as jv
from jaxviz.graph.flops import call_flops
from jaxviz.graph.interpreter import evaluate
from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.trace import trace

still = jax.lax.stop_gradient
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)


def kinds(f, x=X):
    return [layer.kind for layer in jv.layers(lambda _, x: f(x), None, x)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# In NumPy, float64: what each name means.
MEANS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    ),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x * special.ndtr(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "log_sigmoid": lambda x: -np.logaddexp(-x, 0),
    "soft_sign": lambda x: x / (1 + np.abs(x)),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "squareplus": lambda x: 0.5 * (x + np.sqrt(x * x + 4)),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "leaky_relu": None,
    "clipped_relu": None,
}
SPELLINGS = {
    "relu": {
        "1 x|x| halves": lambda x: 0.5 * x + 0.5 * jnp.abs(x),
        "a mask": lambda x: jnp.where(x >= 0, 1.0, 0.0) * x,
        "a sign": lambda x: x * (jnp.sign(x) + 1) / 2,
        "negated": lambda x: -jnp.minimum(-x, 0),
        "less": lambda x: jnp.where(0 < x, x, 0),
        "not": lambda x: jnp.where(~(x > 0), 0.0, x),
        "three cases": lambda x: jax.lax.select_n(
            (x > 0).astype(jnp.int32) + (x > 1).astype(jnp.int32), jnp.zeros_like(x), x, x
        ),
        "capped at infinity": lambda x: jnp.clip(x, 0, jnp.inf),
        "jit in jit": jax.jit(lambda x: jax.jit(lambda y: jnp.maximum(y, 0))(x)),
        "a held condition": lambda x: jnp.where(still(x) > 0, x, 0),
        "vmapped": jax.vmap(jax.vmap(jax.nn.relu)),
        "a clamp": lambda x: jax.lax.clamp(0.0, x, jnp.inf),
    },
    "relu6": {
        "clip": lambda x: jnp.clip(x, 0, 6),
        "min last": lambda x: jnp.minimum(jax.nn.relu(x), 6.0),
        "max last": lambda x: jnp.maximum(jnp.minimum(x, 6.0), 0.0),
        "clamp": lambda x: jax.lax.clamp(0.0, x, 6.0),
        "jax": jax.nn.relu6,
    },
    "clipped_relu": {
        "20": lambda x: jnp.minimum(jnp.maximum(x, 0), 20),
        "a million": lambda x: jnp.clip(x, 0, 1e6),
        "one": lambda x: jax.lax.clamp(0.0, x, 1.0),
    },
    "leaky_relu": {
        "jax": jax.nn.leaky_relu,
        "maximum": lambda x: jnp.maximum(x, 0.2 * x),
        "factor": lambda x: x * jnp.where(x > 0, 1.0, 0.2),
    },
    "elu": {
        "jax": jax.nn.elu,
        "celu": jax.nn.celu,
        "sum": lambda x: jnp.maximum(x, 0) + jnp.minimum(jnp.exp(x) - 1, 0),
    },
    "selu": {"jax": jax.nn.selu},
    "sigmoid": {
        "jax": jax.nn.sigmoid,
        "quotient": lambda x: 1 / (1 + jnp.exp(-x)),
        "other quotient": lambda x: jnp.exp(x) / (jnp.exp(x) + 1),
        "tanh": lambda x: 0.5 * (jnp.tanh(0.5 * x) + 1),
    },
    "tanh": {"sigmoid": lambda x: 2 * jax.nn.sigmoid(2 * x) - 1},
    "silu": {
        "jax": jax.nn.silu,
        "product": lambda x: jax.nn.sigmoid(x) * x,
        "quotient": lambda x: x / (1 + jnp.exp(-x)),
    },
    "gelu": {"jax": jax.nn.gelu},
    "gelu_exact": {
        "jax": lambda x: jax.nn.gelu(x, approximate=False),
        "erf": lambda x: x * (1 + jax.lax.erf(x / jnp.sqrt(2.0))) / 2,
    },
    "softplus": {
        "jax": jax.nn.softplus,
        "log1p": lambda x: jnp.log1p(jnp.exp(x)),
        "log": lambda x: jnp.log(1 + jnp.exp(x)),
        "stable": lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))),
    },
    "log_sigmoid": {"jax": jax.nn.log_sigmoid},
    "soft_sign": {"jax": jax.nn.soft_sign},
    "hard_tanh": {
        "jax": jax.nn.hard_tanh,
        "clip": lambda x: jnp.clip(x, -1, 1),
    },
    "hard_sigmoid": {
        "jax": jax.nn.hard_sigmoid,
        "clip": lambda x: jnp.clip(x / 6 + 0.5, 0, 1),
        "multiplied": lambda x: jnp.clip(x + 3, 0, 6) * (1 / 6),
    },
    "hard_silu": {"jax": jax.nn.hard_silu},
    "squareplus": {"jax": jax.nn.squareplus},
    "mish": {"jax": jax.nn.mish},
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_function_is_told_however_it_is_spelled_and_is_what_its_name_says(kind):
    grid = np.sort(
        np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 6, 6.0001, -3, 3, 19, 21]])
    )
    for spelling, f in SPELLINGS[kind].items():
        assert kinds(f) == [kind], spelling
        if MEANS[kind]:
            values = f(jnp.asarray(grid[None], jnp.float32))[0]
            np.testing.assert_allclose(
                values, MEANS[kind](grid), rtol=3e-5, atol=3e-6, err_msg=spelling
            )


@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0])
def test_celu_of_any_alpha(alpha):
    f = lambda x: jax.nn.celu(x, alpha)
    assert kinds(f) == ["celu"]
    assert kinds(lambda x: jnp.where(x > 0, x, alpha * jnp.expm1(x / alpha))) == ["celu"]
    assert kinds(lambda x: jnp.where(x > 0, x, 1.01 * alpha * jnp.expm1(x / alpha))) != ["celu"]


def test_arrays_of_one_number_that_the_model_holds_are_that_number():
    zeros, ones, six = jnp.zeros((4, 6)), np.ones((4, 6), np.float32), jnp.full((4, 6), 6.0)
    assert kinds(lambda x: jnp.maximum(x, zeros)) == ["relu"]
    assert kinds(lambda x: jnp.where(x > zeros, x, 0)) == ["relu"]
    assert kinds(lambda x: jnp.clip(x, zeros, six)) == ["relu6"]
    assert kinds(lambda x: jnp.maximum(x, zeros.at[0, 0].set(1e-6))) != ["relu"]
    assert "relu" not in kinds(lambda x: jnp.maximum(x, ones))
    params = lambda p, x: jnp.maximum(x, p)  # what is given may be trained
    assert [layer.kind for layer in jv.layers(params, zeros, X)] != ["relu"]


def test_every_name_has_a_meaning():
    assert set(MEANS) == ACTIVATION_KINDS - {"pointwise", "celu"} == set(SPELLINGS)


def test_half_precision_and_double_are_told_too():
    for kind in ("gelu", "gelu_exact", "selu", "silu", "hard_sigmoid", "softplus"):
        assert kinds(SPELLINGS[kind]["jax"], X.astype(jnp.bfloat16)) == [kind]
        assert kinds(SPELLINGS[kind]["jax"], X.astype(jnp.float16)) == [kind]


MISSES = {
    "relu, no more": lambda x: jnp.where(x < 100, jnp.maximum(x, 0), 0.0),
    "relu, shifted": lambda x: jnp.maximum(x, 0) + 1e-5,
    "relu, later": lambda x: jnp.maximum(x, 1e-5),
    "relu, steeper": lambda x: jnp.maximum(x, 0) * 1.00001,
    "relu, a tail": lambda x: jnp.where(x > 50, x + jnp.sin(x), jnp.maximum(x, 0)),
    "relu, a dent far out": lambda x: jnp.where((x > 1e5) & (x < 2e5), 0.0, jnp.maximum(x, 0)),
    "relu, one value": lambda x: jnp.where(x == 0.5, 1.0, jnp.maximum(x, 0)),
    "relu6 of 6.00001": lambda x: jnp.clip(x, 0, 6.00001) - jnp.clip(x, 0, 6.0),
    "relu squared": lambda x: jnp.square(jnp.maximum(x, 0)),
    "negative part": lambda x: jnp.minimum(x, 0),
    "absolute value": lambda x: jnp.maximum(x, -x),
    "sigmoid of 1.0001 x": lambda x: 1 / (1 + jnp.exp(-1.0001 * x)),
    "quick gelu": lambda x: x / (1 + jnp.exp(-1.702 * x)),
    "gelu of another constant": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.7072)),
    "softplus, sharper": lambda x: jnp.log1p(jnp.exp(1.001 * x)),
    "elu of 0.999": lambda x: jnp.where(x > 0, x, 0.999 * jnp.expm1(jnp.minimum(x, 0))),
    "squareplus of 4.001": lambda x: 0.5 * (x + jnp.sqrt(x * x + 4.001)),
    "hard tanh to 1.01": lambda x: jnp.clip(x, -1, 1.01),
    "a step": lambda x: jnp.where(x > 0, 1.0, 0.0) + 0 * x,
}


@pytest.mark.parametrize("name", MISSES)
def test_what_is_nearly_a_function_has_not_its_name(name):
    program = trace(lambda _, x: MISSES[name](x), None, X).program
    from_x_to_the_end = {
        node.kind
        for node in program.nodes
        if node.outputs == program.outputs and node.inputs[:1] == program.inputs[-1:]
    }
    assert from_x_to_the_end <= {
        "pointwise",
        "select_n",
        "mul",
        "add",
        "min",
        "max",
        "clamp",
        "sub",
    }


def test_a_group_that_stops_a_gradient_is_not_the_function_of_its_values():
    for f in (
        lambda x: x - still(x) + still(jnp.maximum(x, 0)),
        lambda x: x + still(jax.nn.relu(x) - x),
        lambda x: still(jnp.maximum(x, 0)),
        lambda x: x * still(jax.nn.sigmoid(x)),
        lambda x: still(x) * jax.nn.sigmoid(x),
    ):
        for node in trace(lambda _, x, f=f: f(x), None, X).program.nodes:
            assert all(member.kind != "stop_gradient" for member in node.members)
        gradient = jv.gradient(lambda _, x, f=f: f(x), None, X, 0)
        np.testing.assert_array_equal(gradient, jax.grad(lambda x, f=f: f(x)[:, 0].sum())(X))


def with_slope(value, slope):
    f = jax.custom_jvp(value)
    f.defjvp(lambda p, t: (f(*p), t[0] * slope(*p)))
    return f


def test_a_derivative_of_its_own_must_be_that_of_the_values():
    step = lambda x: (x > 0).astype(x.dtype)
    inner = jax.jit(lambda x: jnp.maximum(x, 0))
    assert kinds(with_slope(inner, step)) == ["relu"]
    assert kinds(with_slope(jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2)) == ["tanh"]
    assert kinds(with_slope(jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))) == [
        "sigmoid"
    ]
    for slope in (jnp.ones_like, lambda x: -step(x), lambda x: step(x) * (x < 50), jnp.sin):
        assert "custom_jvp" in kinds(with_slope(inner, slope))

    def refuses(primals, tangents):
        raise RuntimeError("there is no derivative")

    sealed = jax.custom_jvp(inner)
    sealed.defjvp(refuses)
    assert "custom_jvp" in kinds(
        sealed
    )  # named by what it is, and what it raises is not ours to raise
    one_rule = lambda p, t: (p[0], t[0] * step(p[0]))  # a rule two functions share
    first, second = jax.custom_jvp(inner), jax.custom_jvp(jnp.tanh)
    first.defjvp(one_rule)
    second.defjvp(one_rule)
    assert kinds(first) == ["relu"]
    assert "custom_jvp" in kinds(second)


NORMS = {
    "layer_norm": {
        "by hand": lambda x: (
            (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        ),
        "std": lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-5),
        "unbiased": lambda x: (
            (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1))
        ),
        "one row": jax.vmap(
            lambda r: (r - r.mean()) * jax.lax.rsqrt(jnp.mean((r - r.mean()) ** 2) + 1e-6)
        ),
        "jax": lambda x: jax.nn.standardize(x, axis=-1),
        "columns": lambda x: (x - x.mean(0)[None]) * jax.lax.rsqrt(x.var(0)[None] + 1e-5),
    },
    "rms_norm": {
        "by hand": lambda x: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6),
        "unit length": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    },
    "softmax": {
        "jax": jax.nn.softmax,
        "plain": lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
        "shifted": lambda x: (
            jnp.exp(x - x.max(-1, keepdims=True))
            / jnp.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
        ),
        "columns": lambda x: jax.nn.softmax(x, axis=0),
    },
    "log_softmax": {
        "jax": jax.nn.log_softmax,
        "logsumexp": lambda x: x - jnp.log(jnp.exp(x).sum(-1, keepdims=True)),
    },
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_are_told_however_they_are_spelled(kind):
    for spelling, f in NORMS[kind].items():
        assert kind in kinds(f), spelling
        assert "relu" not in kinds(f), spelling


SQUARE = jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)), jnp.float32)
NEARLY_NORMS = {
    "another count": lambda x: (
        (x - x.sum(-1, keepdims=True) / 5) * jax.lax.rsqrt(x.var(-1, keepdims=True))
    ),
    "another axis": lambda x: (
        (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(0, keepdims=True))
    ),
    "another axis of the mean": lambda x: (
        (x - x.mean(0)[None]) * jax.lax.rsqrt(x.var(-1, keepdims=True))
    ),
    "rows for columns": lambda x: (x - x.mean(-1)[None]) * jax.lax.rsqrt(x.var(-1)[None]),
    "variance": lambda x: (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + 1),
    "not centred": lambda x: x * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5),
    "half centred": lambda x: (
        (x - 0.5 * x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True))
    ),
    "a negative epsilon": lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) - 1e-6),
    "held": lambda x: (
        (x - x.mean(-1, keepdims=True)) * still(jax.lax.rsqrt(x.var(-1, keepdims=True)))
    ),
    "held mean": lambda x: (
        (x - still(x.mean(-1, keepdims=True))) * jax.lax.rsqrt(x.var(-1, keepdims=True))
    ),
    "softmax, more below": lambda x: jnp.exp(x) / (1 + jnp.exp(x).sum(-1, keepdims=True)),
    "softmax, another axis": lambda x: jnp.exp(x) / jnp.exp(x).sum(-1)[None],
    "softmax, another top": lambda x: jnp.exp(2 * x) / jnp.exp(x).sum(-1, keepdims=True),
    "softmax, one held": lambda x: jnp.exp(x) / still(jnp.exp(x).sum(-1, keepdims=True)),
    "log of a mean": lambda x: x - jnp.log(jnp.exp(x).mean(-1, keepdims=True)),
    "linear": lambda x: x / x.sum(-1, keepdims=True),
}


@pytest.mark.parametrize("name", NEARLY_NORMS)
def test_what_is_nearly_a_norm_is_none(name):
    assert set(kinds(NEARLY_NORMS[name], SQUARE)).isdisjoint(NORMS)


def test_a_mean_divides_by_how_many_there_are():
    assert kinds(lambda x: x.mean(1)) == ["mean"]
    assert kinds(lambda x: x.sum(1) * (1 / 6)) == ["mean"]
    assert kinds(lambda x: x.sum(1) / 5) == []
    assert kinds(lambda x: 6 / x.sum(1)) == []
    image = jnp.ones((2, 4, 4, 3))
    window = lambda x: jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
    )
    assert kinds(lambda x: window(x) / 4, image) == ["avg_pool"]
    assert kinds(lambda x: window(x) / window(jnp.ones_like(x)), image) == ["avg_pool"]
    assert kinds(lambda x: window(x) / 3, image) == ["sum_pool"]
    assert kinds(lambda x: window(x) / window(2 * jnp.ones((2, 4, 4, 3))), image) == ["sum_pool"]


def guided(f):
    return jax.grad(lambda x: jv.rewrite(lambda _, x: f(x), jv.rules.guided)(None, x).sum())


def test_guided_backpropagation_knows_ceilings_and_leaves_clamps_alone():
    signs = jnp.array([[1.0, -1.0, 1.0, 1.0, -1.0, 1.0]])
    x = jnp.array([[2.0, 2.0, -1.0, 30.0, 30.0, 15.0]])
    for cap in (6.0, 10.0, 20.0):
        for f in (lambda x, c=cap: jnp.clip(x, 0, c), lambda x, c=cap: jax.lax.clamp(0.0, x, c)):
            by_hand = (signs > 0) & (x > 0) & (x < cap)
            np.testing.assert_array_equal(guided(lambda x, f=f: f(x) * signs)(x), by_hand)
    zeros = jnp.zeros((1, 6))
    assert not guided(lambda x: jnp.clip(x, 0, 20))(zeros).any()  # a ReLU is dead at 0
    # A variance is never below zero: no unit is dead there and no gradient is dropped.
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6)), jnp.float32)

    def pooled(x):
        mean, square = x.mean(-1), (x * x).mean(-1)
        return jnp.sqrt(jnp.maximum(square - mean**2, 0) + 1e-5)

    def clamped(x):
        mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
        return (x - mean) / (jnp.clip(square - mean**2, 0) + 0.3) * weights

    for f in (lambda x: -pooled(x), clamped, lambda x: jax.nn.standardize(x, axis=-1) * weights):
        np.testing.assert_allclose(
            guided(f)(X), jax.grad(lambda x, f=f: f(x).sum())(X), rtol=1e-5, atol=1e-6
        )


def test_surrogate_of_a_clipped_relu_is_flat_above_its_ceiling():
    f = jv.rewrite(lambda _, x: jnp.clip(x, 0, 3), jv.rules.softplus_surrogate(2.0))
    x = jnp.array([[-1.0, 0.5, 2.9, 9.0]])
    slope = jax.grad(lambda x: f(None, x).sum())(x)
    np.testing.assert_allclose(
        slope, sigmoid(2.0 * np.asarray(x)) - sigmoid(2.0 * (np.asarray(x) - 3)), rtol=1e-5
    )


ODD = {
    "whole numbers": lambda x: x + jnp.maximum(jnp.argsort(x), 0).astype(x.dtype),
    "yes or no": lambda x: x * ((x > 0) & ~(x > 1)).astype(x.dtype),
    "complex": lambda x: jnp.abs(jnp.fft.fft(x.astype(jnp.complex64)) * 2),
    "one number": lambda x: x * jnp.maximum(x.sum(), 0),
    "an array of constants": lambda x: (
        jnp.maximum(x, jnp.arange(6.0)[None]) * jnp.where(x > 0, jnp.arange(6.0)[None], 0.2)
    ),
    "f(x) + x - f(x)": lambda x: jnp.tanh(x) + x - jnp.tanh(x),
    "shared": lambda x: (
        (lambda a: (a * a + a, jnp.maximum(a, 0) - a))(x * 0.5)[0]
        + (lambda a: jnp.where(a > 0, a, 0))(x * 0.5)
    ),
    "kept inside": lambda x: checkpoint_name(jnp.exp(-x), "e") + 1,
    "overlap": lambda x: (lambda e: e / (1 + e) + e / e.sum(-1, keepdims=True))(jnp.exp(x)),
    "scan": lambda x: (
        jax.lax.scan(lambda c, r: (jnp.maximum(c * 0.5, r), jnp.tanh(c) * c), x[:, 0], x.T)[1].T
    ),
    "cond": lambda x: jax.lax.cond(
        x.sum() > 0, jnp.tanh, lambda x: x * jnp.where(x > 0, 1.0, 0.2), x
    ),
    "while": lambda x: jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.sin(c[1]) * c[1]), (0, x)
    )[1],
    "rounded": lambda x: x.astype(jnp.float16).astype(jnp.float32) * jnp.floor(x),
    "random": lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape).astype(x.dtype),
    "huge constants": lambda x: jnp.exp(x * 1e30 * 1e-30) * jnp.where(x > 1e38, 1e38 * x, x),
    "no axis left": lambda x: jnp.sum(x[:, :0], 1, keepdims=True) + x,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_programs_have_layers_flops_and_their_own_gradient(name):
    f = ODD[name]
    whole(trace(lambda _, x: f(x), None, X).program)
    jv.layers(lambda _, x: f(x), None, X)
    jv.summary(lambda _, x: f(x), None, X)
    if name not in ("complex", "while"):
        expected = jax.grad(lambda x: f(x)[:, 0].sum())(X)
        gradient = jv.gradient(lambda _, x: f(x), None, X, 0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_empty_arrays_and_single_numbers():
    for x in (jnp.zeros((0, 3)), jnp.zeros((2, 0))):
        program = trace(lambda _, x: jnp.maximum(x, 0) / (1 + x.sum(0)[None]), None, x).program
        assert "relu" in [node.kind for node in program.nodes]
    program = trace(lambda _, x: jnp.where(x > 0, x, 0), None, jnp.zeros(())).program
    assert [node.kind for node in program.nodes if node.members] == ["relu"]


def whole(program):
    """Asserts that nodes read what was made before them, and groups hide only their own."""
    known = {*program.inputs, *program.constants}
    kept = {*program.outputs, *(v for *_, v in program.tags)}

    def walk(nodes):
        for node in nodes:
            assert set(node.inputs) <= known
            if node.members:
                before = set(known)
                walk(node.members)
                hidden = known - before - set(node.outputs)
                assert not hidden & kept
                known.difference_update(hidden)
            for body in node.bodies:
                whole(body)
            known.update(node.outputs)

    walk(program.nodes)
    assert kept <= known


def random_program(seed):
    """A program of shared values, with the parts of activations and norms strewn among them."""
    draw = np.random.default_rng(seed)
    one = [
        *(jnp.tanh, jnp.exp, jnp.abs, jax.nn.relu, jax.nn.gelu, jax.nn.softplus, still, jnp.square),
        *(lambda a: jnp.maximum(a, 0), lambda a: jnp.minimum(a, 6), lambda a: a + 1, lambda a: -a),
        *(
            lambda a: a / 2,
            lambda a: jnp.where(a > 0, a, 0),
            lambda a: a.mean(-1, keepdims=True) + 0 * a,
        ),
        *(lambda a: a - a.mean(-1, keepdims=True), lambda a: jnp.log1p(jnp.abs(a)), jax.nn.softmax),
        *(
            lambda a: a.sum(0)[None] + 0 * a,
            lambda a: jax.lax.rsqrt(a.var(-1, keepdims=True) + 1) + 0 * a,
        ),
    ]
    two = [jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, lambda a, b: a / (1 + jnp.abs(b))]
    two += [lambda a, b: jnp.where(a > 0, a, b)]
    steps = [
        (one[draw.integers(len(one))],)
        if draw.random() < 0.6
        else (two[draw.integers(len(two))], draw.integers(3))
        for _ in range(14)
    ]

    def f(x):
        values = [x]
        for step in steps:
            last = values[-1]
            out = (
                step[0](last)
                if len(step) == 1
                else step[0](last, values[-1 - min(step[1], len(values) - 1)])
            )
            values.append(jnp.clip(out, -9, 9))
        return sum(values[-3:])

    return f


@pytest.mark.parametrize("seed", range(20))
def test_grouping_keeps_programs_whole_and_their_numbers(seed):
    f = random_program(seed)
    program = trace(lambda _, x: f(x), None, X).program
    whole(program)
    jv.layers(lambda _, x: f(x), None, X)

    def again(x):
        return evaluate(program, [x])[0]

    np.testing.assert_allclose(again(X), f(X), rtol=1e-6, atol=1e-6)
    ours, theirs = (jax.grad(lambda x, g=g: jnp.sum(g(x) * X))(X) for g in (again, f))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [jax.nn.relu, jax.nn.relu6, jax.nn.softplus])
def test_an_activation_is_one_whatever_axis_vmap_has_its_examples_on(function):
    def net(w, x):
        return jax.vmap(lambda x: jnp.exp(function(w @ x)))(x)  # w @ x becomes [places, examples]

    w = jnp.ones((6, 6))
    (found,) = [one for one in jv.layers(net, w, X) if function.__name__ in one.name]
    assert (found.name, found.shape) == (f"{function.__name__}_0", (4, 6))
    head, tail = jv.split(net, w, X, found.name)
    a, carry = head(w, X)
    np.testing.assert_allclose(a, function(X @ w.T), rtol=1e-5)
    np.testing.assert_allclose(tail((w, carry), a), net(w, X), rtol=1e-5)


def test_a_slope_with_its_axes_turned_is_not_that_of_the_values():
    turned = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    turned.defjvp(lambda p, t: (turned(*p), jnp.where(p[0].T > 0, t[0], 0)))
    back = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    back.defjvp(lambda p, t: (back(*p), jnp.where(p[0] > 0, t[0], 0).T))
    square = X[:, :4]
    for function in (turned, back):
        assert "relu_0" not in [
            one.name for one in jv.layers(lambda _, x, f=function: f(x), None, square)
        ]


def test_flops_do_not_depend_on_what_is_recognised():
    plain = lambda x: jnp.maximum(x, 0)
    hidden = jax.custom_jvp(plain)
    hidden.defjvp(lambda p, t: (hidden(*p), t[0] * 2))  # no ReLU, for its derivative
    assert call_flops(jax.nn.relu, X) == call_flops(plain, X) == call_flops(hidden, X) == X.size
    assert (
        call_flops(jax.nn.relu6, X)
        == call_flops(lambda x: jnp.minimum(plain(x), 7), X)
        == 2 * X.size
    )
    assert call_flops(jax.nn.leaky_relu, X) == 3 * X.size  # a comparison, a product, a choice


def test_an_adaptive_solver_has_layers():
    diffrax = pytest.importorskip("diffrax")
    term = diffrax.ODETerm(lambda t, y, a: -jnp.tanh(y))
    steps = diffrax.PIDController(1e-3, 1e-3)

    def solve(_, x):
        solved = lambda y: diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, 0.1, y, stepsize_controller=steps
        )
        return jax.vmap(lambda y: solved(y).ys[-1])(x)

    assert jv.layers(solve, None, X)
