"""Guided backpropagation, the deconvnet and the smoother ReLUs: by hand, and however spelled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import rules
from jaxviz.attribution.path import integrated_gradients


@jax.custom_vjp
def own_relu(x):
    return jnp.maximum(x, 0)


own_relu.defvjp(lambda x: (own_relu(x), x), lambda x, g: (jnp.where(x > 0, g, jnp.zeros_like(g)),))

ZERO, ZEROS = jnp.zeros(()), jnp.zeros((4, 7))  # closed over

SPELLINGS = {
    "jax.nn": jax.nn.relu,
    "jitted": jax.jit(lambda x: jnp.maximum(x, 0)),
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, zero first": lambda x: jnp.maximum(0.0, x),
    "maximum, zeros": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "maximum, a zero from outside": lambda x: jnp.maximum(x, ZERO),
    "where, zeros from outside": lambda x: jnp.where(x > ZEROS, x, ZEROS),
    "lax": lambda x: jax.lax.max(x, jnp.zeros((), x.dtype)),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where not": lambda x: jnp.where(x < 0, 0.0, x),
    "mask": lambda x: x * (x > 0).astype(x.dtype),
    "clip": lambda x: jnp.clip(x, 0),
    "clip both": lambda x: jnp.clip(x, 0, jnp.inf),
    "abs": lambda x: 0.5 * (x + jnp.abs(x)),
    "in place": lambda x: x.at[:].set(jax.nn.relu(x)),
    "custom_vjp": own_relu,
    "remat": jax.checkpoint(jax.nn.relu),
    "cond": lambda x: jax.lax.cond(x.shape[0] > 0, jax.nn.relu, lambda x: x, x),
    "scan": lambda x: jax.lax.scan(lambda c, r: (c, jax.nn.relu(r)), 0.0, x)[1],
    "map": lambda x: jax.lax.map(jax.nn.relu, x),
    "vmap": jax.vmap(jax.nn.relu),
    "twice": lambda x: jax.nn.relu(jax.nn.relu(x)),
}


def weights(seed=0, n=7):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": jax.random.normal(a, (5, n)),
        "b": jax.random.normal(b, (n, n)),
        "c": jax.random.normal(c, (n, 3)),
    }


def net(relu):
    return lambda w, x: relu(relu(x @ w["a"]) @ w["b"]) @ w["c"]


def by_hand(w, x, target, rule):
    """The backward pass of `net`, ReLU by ReLU."""
    w = {k: np.asarray(v, np.float64) for k, v in w.items()}
    x = np.asarray(x, np.float64)
    first = x @ w["a"]
    second = np.maximum(first, 0) @ w["b"]
    g = w["c"][:, target][None]
    for before, kernel in ((second, w["b"]), (first, w["a"])):
        g = rule(before, g) @ kernel.T
    return g


GUIDED = lambda x, g: g * (x > 0) * (g > 0)
DECONVNET = lambda x, g: np.maximum(g, 0) + 0 * x
SOFTPLUS = lambda x, g: g / (1 + np.exp(-3.0 * x))
X = jax.random.normal(jax.random.key(9), (4, 5))


@pytest.mark.parametrize(
    ("rule_set", "rule"),
    [
        (rules.guided, GUIDED),
        (rules.deconvnet, DECONVNET),
        (rules.softplus_surrogate(3.0), SOFTPLUS),
    ],
    ids=["guided", "deconvnet", "softplus"],
)
def test_every_spelling_is_a_relu(rule_set, rule):
    w = weights()
    expected = by_hand(w, X, 1, rule)
    for spelling, relu in SPELLINGS.items():
        if spelling == "twice" and rule is SOFTPLUS:
            continue  # a surrogate applied twice is not the surrogate
        f = jv.rewrite(net(relu), rule_set)
        out = jax.grad(lambda x, f=f: f(w, x)[:, 1].sum())(X)  # not compiled: quicker here
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-5, err_msg=spelling)


def guarded_norm(x):
    """As some libraries write it: rounding must not take the variance below zero."""
    centred = x - x.mean(1, keepdims=True)
    variance = jnp.maximum(0.0, (centred**2).mean(1, keepdims=True))
    return centred * jax.lax.rsqrt(variance + 1e-5)


def distances(x):
    """To the corners of a cube; rounding must not take a square below zero."""
    corners = jnp.eye(7, dtype=x.dtype)
    squares = (x * x).sum(1, keepdims=True) + 1 - 2 * x @ corners
    return jnp.sqrt(jnp.maximum(squares, 0.0))


OTHERS = {
    "hard sigmoid of slope 0.2": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
    "sparse sigmoid": jax.nn.sparse_sigmoid,
    "leaky, in halves": lambda x: jax.nn.relu(x) - 0.1 * jax.nn.relu(-x),
    "layer norm of Equinox": lambda x: jax.vmap(eqx.nn.LayerNorm(x.shape[-1]))(x),
    "distances": distances,
    "hard swish": jax.nn.hard_swish,
    "hard sigmoid": jax.nn.hard_sigmoid,
    "celu": lambda x: jax.nn.celu(x, 0.5),
    "prelu in halves": lambda x: jnp.maximum(x, 0) + 0.3 * jnp.minimum(x, 0),
    "soft shrinkage": lambda x: jnp.maximum(x - 0.5, 0) - jnp.maximum(-x - 0.5, 0),
    "layer norm": guarded_norm,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_maximum_inside_another_function_is_no_relu(name):
    w, f = weights(), net(OTHERS[name])
    for rule_set in (rules.guided, rules.deconvnet):
        ours, plain = (
            jax.grad(lambda x, g=g: g(w, x)[:, 1].sum())(X) for g in (jv.rewrite(f, rule_set), f)
        )
        np.testing.assert_allclose(ours, plain, rtol=2e-5, atol=1e-5)


def test_a_relu_before_and_after_other_functions_is_one():
    f = lambda _, x: jnp.tanh(-2 * jax.nn.relu(x + 1)) ** 2  # falls nowhere above -1
    x = jnp.array([[-2.0, -0.5, 0.3]])
    pulled = lambda sign: jax.grad(lambda x: sign * jv.rewrite(f, rules.guided)(None, x).sum())(x)
    plain = jax.grad(lambda x: f(None, x).sum())(x)
    np.testing.assert_allclose(pulled(1.0), plain)
    np.testing.assert_array_equal(pulled(-1.0), 0)


def with_pullback(f, pullback):
    """A function with a derivative of its own."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), x), lambda x, g: (pullback(x, g),))
    return g


def test_gradient_reversal_stays_reversed():
    turn = with_pullback(lambda x: x, lambda x, g: -g)
    f = lambda w, x: net(jax.nn.relu)(w, turn(x))
    ours, back = (jv.guided_backprop(g, weights(), X, 1) for g in (net(jax.nn.relu), f))
    np.testing.assert_allclose(back, -ours, rtol=1e-5, atol=1e-6)


def test_values_are_untouched():
    w, f = weights(), net(jax.nn.relu)
    sets = (rules.guided, rules.deconvnet, rules.redirected_relu, rules.softplus_surrogate())
    for rule_set in sets:
        np.testing.assert_array_equal(jv.rewrite(f, rule_set)(w, X), f(w, X))


def test_relu6_is_a_relu_with_a_ceiling():
    f = lambda _, x: jax.nn.relu6(x) * jnp.array([[1.0, 1.0, 1.0, -1.0]])
    x = jnp.array([[-1.0, 3.0, 7.0, 3.0]])
    grad = lambda s: jax.grad(lambda x: jv.rewrite(f, s)(None, x).sum())(x).tolist()[0]
    assert grad(rules.guided) == [0.0, 1.0, 0.0, 0.0]
    assert grad(rules.deconvnet) == [1.0, 1.0, 1.0, 0.0]


CAPPED = {
    "minimum": lambda x, c: jnp.minimum(jax.nn.relu(x), c),
    "clip": lambda x, c: jnp.clip(x, 0, c),
    "where": lambda x, c: jnp.where(x > c, c, jnp.maximum(x, 0)),
}


@pytest.mark.parametrize("ceiling", [1.0, 6.0, 20.0, 1000.0])
@pytest.mark.parametrize("spelling", CAPPED)
def test_a_relu_with_any_ceiling_is_flat_above_it(spelling, ceiling):
    """A ceiling beyond every usual activation is one all the same."""
    f = lambda _, x: CAPPED[spelling](x, ceiling)
    x = ceiling * jnp.array([[-1.0, 0.5, 2.0]])
    grad = lambda s: jax.grad(lambda x: jv.rewrite(f, s)(None, x).sum())(x)
    assert grad(rules.guided).tolist() == [[0.0, 1.0, 0.0]]
    smooth = grad(rules.softplus_surrogate(30.0 / ceiling))  # of a step that is flat on both sides
    np.testing.assert_allclose(smooth, [[0.0, 1.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("other", [jax.nn.leaky_relu, jax.nn.gelu, jax.nn.silu, jnp.tanh])
def test_other_activations_keep_their_derivative_unless_given_a_row(other):
    w, f = weights(), net(other)
    np.testing.assert_array_equal(jv.guided_backprop(f, w, X, 0), jv.gradient(f, w, X, 0))
    kind = next(row.kind for row in jv.layers(f, w, X) if row.kind != "dense")
    mine = jv.RuleSet("mine", {**dict(rules.guided.table), kind: rules.guided_rule})
    derivative = jax.vmap(jax.vmap(jax.grad(other)))
    rule = lambda x, g: np.asarray(derivative(jnp.asarray(x, jnp.float32))) * np.maximum(g, 0)
    w64 = {k: np.asarray(v, np.float64) for k, v in w.items()}
    first = np.asarray(X, np.float64) @ w64["a"]
    second = np.asarray(other(jnp.asarray(first, jnp.float32)), np.float64) @ w64["b"]
    expected = rule(first, rule(second, w64["c"][:, 0][None]) @ w64["b"].T) @ w64["a"].T
    out = jv.gradient(jv.rewrite(f, mine), w, X, 0)
    np.testing.assert_allclose(out, expected, rtol=2e-4, atol=1e-4)


def test_a_relu_used_twice_and_a_maximum_of_two_values():
    """One function object called at two places; a maximum of two activations is no ReLU."""
    f = lambda w, x: jnp.maximum(jax.nn.relu(x), -x) * w
    x = jnp.array([[2.0, -3.0]])
    for rule_set in (rules.guided, rules.deconvnet):
        out = jax.grad(lambda x, s=rule_set: jv.rewrite(f, s)(1.0, x).sum())(x)
        assert out.tolist() == [[1.0, -1.0]]


def test_redirected_relu_wakes_only_examples_that_are_all_dead():
    f = jv.rewrite(lambda w, x: jax.nn.relu(x) * w, rules.redirected_relu)
    w = jnp.array([[1.0, -1.0]])
    x = jnp.array([[-1.0, -1.0], [-1.0, 2.0]])  # the first example is dead
    grad = jax.grad(lambda x: f(w, x).sum())(x)
    assert grad.tolist() == [[1.0, 0.0], [0.0, -1.0]]  # where -1 would push it down it stays shut


def test_redirected_relu_leaves_both_ends_of_relu6():
    f = jv.rewrite(lambda w, x: jax.nn.relu6(x) * w, rules.redirected_relu)
    w, x = jnp.array([[1.0, -1.0, 1.0]]), jnp.array([[7.0, 7.0, -1.0]])
    assert jax.grad(lambda x: f(w, x).sum())(x).tolist() == [[0.0, -1.0, 1.0]]


def test_softplus_surrogate_has_a_second_derivative():
    f = jv.rewrite(lambda _, x: jax.nn.relu(x), rules.softplus_surrogate(2.0))
    second = jax.grad(jax.grad(lambda x: f(None, x)))(0.3)
    s = 1 / (1 + np.exp(-0.6))
    np.testing.assert_allclose(second, 2 * s * (1 - s), rtol=1e-6)
    forward = jax.jvp(lambda x: f(None, x), (0.3,), (1.0,))[1]
    np.testing.assert_allclose(forward, s, rtol=1e-6)
    assert rules.softplus_surrogate(2.0) == rules.softplus_surrogate(2)
    with pytest.raises(ValueError, match="beta must be positive; got 0"):
        rules.softplus_surrogate(0.0)


def test_rule_sets_serve_any_gradient_method():
    w, f = weights(), net(jax.nn.relu)
    guided = jv.rewrite(f, rules.guided)
    one_step = integrated_gradients(guided, w, X, 0, num_steps=1, rule="right")
    np.testing.assert_allclose(one_step, X * jv.guided_backprop(f, w, X, 0), rtol=1e-5, atol=1e-6)
