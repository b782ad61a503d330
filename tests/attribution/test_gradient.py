"""Gradients of the explained number: hand-solved cases, finite differences, targets, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxviz as jv
from jaxviz.parts.gradients import input_gradient


def product(w, x):
    """[N, 2] -> [N, 2]: w * x0 * x1 and x0 - x1."""
    return jnp.stack([w * x[:, 0] * x[:, 1], x[:, 0] - x[:, 1]], axis=1)


X = jnp.array([[2.0, 5.0], [-1.0, 3.0]])


def mlp(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def mlp_params(seed=0):
    a, b = jax.random.split(jax.random.key(seed))
    return {"a": jax.random.normal(a, (4, 8)), "b": jax.random.normal(b, (8, 3))}


def test_product_by_hand():
    chex.assert_trees_all_close(jv.gradient(product, 3.0, X, 0), 3 * X[:, ::-1])
    chex.assert_trees_all_close(jv.saliency(product, 3.0, X, 0), jnp.abs(3 * X[:, ::-1]))
    both = 3 * X[:, :1] * X[:, 1:] * jnp.ones((2, 2))
    chex.assert_trees_all_close(jv.input_x_gradient(product, 3.0, X, 0), both)


def test_every_kind_of_target():
    of_class = [jv.gradient(product, 3.0, X, k) for k in (0, 1)]
    chex.assert_trees_all_equal(of_class[1], jnp.array([[1.0, -1.0], [1.0, -1.0]]))
    mixed = jnp.stack([of_class[1][0], of_class[0][1]])
    for labels in (jnp.array([1, 0]), np.array([1, 0]), [1, 0]):
        chex.assert_trees_all_equal(jv.gradient(product, 3.0, X, labels), mixed)
    # Outputs are (30, -3) and (-9, -4): the top classes are 0 and 1.
    top = jnp.stack([of_class[0][0], of_class[1][1]])
    chex.assert_trees_all_equal(jv.gradient(product, 3.0, X), top)
    margin = jv.gradient(product, 3.0, X, lambda out: out[:, 0] - out[:, 1])
    chex.assert_trees_all_close(margin, of_class[0] - of_class[1])


@pytest.mark.parametrize("seed", range(4))
def test_against_finite_differences(seed):
    params, x = mlp_params(seed), jax.random.normal(jax.random.key(seed), (2, 4))
    got = jv.gradient(mlp, params, x, 1)
    step = 1e-2
    for i in range(4):
        ahead, behind = (mlp(params, x.at[:, i].add(s))[:, 1] for s in (step, -step))
        chex.assert_trees_all_close(got[:, i], (ahead - behind) / (2 * step), atol=2e-3)


def test_input_times_gradient_sums_to_the_output_of_a_bias_free_relu_net():
    params, x = mlp_params(), jax.random.normal(jax.random.key(1), (5, 4))
    net = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    out = jv.input_x_gradient(net, params, x, 2)
    chex.assert_trees_all_close(out.sum(1), net(params, x)[:, 2], rtol=1e-4, atol=1e-5)


def test_an_unused_input_gets_zero():
    out = jv.gradient(lambda _, x: x[:, :2] ** 2, None, jnp.ones((3, 4)), 0)
    chex.assert_trees_all_equal(out[:, 1:], jnp.zeros((3, 3)))


def test_pytrees_with_integers_beside_floats():
    def net(params, x):
        return params[x["ids"]] * x["scale"][:, None]

    x = {"ids": jnp.array([0, 2]), "scale": jnp.array([2.0, 3.0])}
    out = jv.gradient(net, jnp.arange(6.0).reshape(3, 2), x, 1)
    chex.assert_trees_all_equal(out, {"ids": jnp.zeros(2), "scale": jnp.array([1.0, 5.0])})


def test_infinite_logits_of_other_classes_do_not_spoil_the_gradient():
    masked = lambda _, x: jnp.concatenate([x, jnp.full((x.shape[0], 1), -jnp.inf)], axis=1)
    chex.assert_trees_all_equal(
        jv.gradient(masked, None, jnp.ones((1, 2)), 0), jnp.array([[1.0, 0.0]])
    )


def test_dict_outputs_take_a_function():
    net = lambda _, x: {"a": x**2, "b": x}
    out = jv.gradient(net, None, jnp.ones((2, 3)), lambda o: o["a"][:, 0])
    chex.assert_trees_all_equal(out[:, 0], jnp.full(2, 2.0))
    with pytest.raises(ValueError, match=r"a target index \(or None\) needs outputs \[N, K\]"):
        jv.gradient(net, None, jnp.ones((2, 3)), 0)


def test_explanations_can_be_differentiated():
    params, x = mlp_params(), jax.random.normal(jax.random.key(2), (2, 4))
    check_grads(lambda p: jv.gradient(mlp, p, x, 0), (params,), order=1, modes=["rev"], atol=0.1)


CUT = {"layer": "tanh_0"}
AGAIN = {"shapley_cam": CUT, "full_grad": {}, "neuron_conductance": {**CUT, "neuron": (1, 1, 1)}}


@pytest.mark.parametrize("name", AGAIN)
def test_what_is_held_for_one_gradient_is_not_for_the_next(name):  # oracle: central differences
    def net(w, x):
        place = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        x = jnp.tanh(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", **place) + 0.5)
        return jnp.tanh(x.sum((1, 2)) / 4)

    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        w, (x, along) = draw.normal(size=(3, 3, 2, 3)), draw.normal(size=(2, 2, 4, 4, 2))
        explain = lambda x: (getattr(jv, name)(net, w, x, 1, **AGAIN[name]) ** 2).sum()
        slope = (explain(x + 1e-5 * along) - explain(x - 1e-5 * along)) / 2e-5
        ours = (jax.grad(explain)(jnp.asarray(x)) * along).sum()
        np.testing.assert_allclose(ours, slope, rtol=1e-5)


def test_all_classes_at_once_by_vmap():
    params, x = mlp_params(), jax.random.normal(jax.random.key(2), (2, 4))
    every = jax.vmap(lambda k: jv.gradient(mlp, params, x, k))(jnp.arange(3))
    for k in range(3):
        chex.assert_trees_all_close(every[k], jv.gradient(mlp, params, x, k), rtol=1e-5)


def test_nothing_is_pulled_back_to_params():
    """The kernel gradient of a convolution would be as dear as the input's: it is not there."""
    params = jnp.ones((3, 3, 3, 8))
    net = lambda w, x: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).mean((1, 2))
    x = jnp.ones((1, 8, 8, 3))
    pulled = jax.jit(lambda w, x: input_gradient(net, w, x, 0)).lower(params, x)
    forward = jax.jit(net).lower(params, x).cost_analysis()["flops"]
    assert pulled.cost_analysis()["flops"] < 2.6 * forward


ERRORS = [
    (lambda: jv.gradient(product, 3.0, X, 2), ValueError, r"in \[0, 2\).*got 2"),
    (lambda: jv.gradient(product, 3.0, X, -1), ValueError, r"in \[0, 2\).*got -1"),
    (lambda: jv.gradient(product, 3.0, X, np.array([0, 5])), ValueError, "got 5"),
    (lambda: jv.gradient(product, 3.0, X, 0.5), ValueError, "target must be None, an integer"),
    (lambda: jv.gradient(product, 3.0, X, jnp.zeros(3, int)), ValueError, r"int32 of shape \(3,\)"),
    (
        lambda: jv.gradient(product, 3.0, X, lambda o: o),
        ValueError,
        "one number an example",
    ),
    (lambda: jv.gradient(3, 3.0, X, 0), TypeError, "apply_fn must be a function"),
    (lambda: jv.gradient(product, 3.0, jnp.float32(1), 0), ValueError, r"x must be an array \[N"),
    (lambda: jv.gradient(product, 3.0, jnp.ones((2, 2), int), 0), TypeError, "x must be floating"),
    (lambda: jv.gradient(product, 3.0, X, 0, steps=3), TypeError, "unexpected keyword .*'steps'"),
    (lambda: jv.gradient(product, 3.0), TypeError, "missing a required argument: 'x'"),
    (lambda: jv.gradient(product, 3.0, {"a": X, "b": X[:1]}, 0), ValueError, "with one N"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_wrong_input_is_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).startswith(("gradient: ", "target: "))


def test_an_unhashable_model_is_refused():
    class Model:
        __hash__ = None

        def __call__(self, params, x):
            return x

    with pytest.raises(TypeError, match="apply_fn must be hashable"):
        jv.gradient(Model(), None, X, 0)


@pytest.mark.parametrize(
    "name", ["gradient", "saliency", "guided_backprop", "deconvnet", "fem", "internal_influence"]
)
def test_of_a_score_that_is_nan_the_map_is_nan(name):
    net = lambda w, x: jax.nn.relu(jnp.einsum("nhwc,cd->nhwd", x, w)).mean((1, 2))
    w = np.float32([[1.0, -2.0], [0.5, 1.0]])
    x = np.ones((2, 3, 3, 2), np.float32)
    x[1, 1, 1] = np.nan  # of which a ReLU hands back zeros
    options = {"layer": "relu_0"} if name in ("fem", "internal_influence") else {}
    found = getattr(jv, name)(net, w, x, 0, **options)
    alone = getattr(jv, name)(net, w, x[:1], 0, **options)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[0], alone[0], rtol=1e-6)
