"""Modules as params: what is no array shapes the program, arrays are traced."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz

KEY = jax.random.key(0)


def net(module, x):
    return jax.vmap(module)(x)


class Conv(eqx.Module):
    """All that eqx.nn keeps among its leaves: functions, a pool's start, a rate and a flag."""

    layers: eqx.nn.Sequential
    head: eqx.nn.MLP

    def __init__(self, key=KEY):
        one, two = jax.random.split(key)
        self.layers = eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(2, 3, 3, key=one),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Dropout(0.5, inference=True),
            ]
        )
        self.head = eqx.nn.MLP(12, 2, 4, 1, key=two)

    def __call__(self, image):
        return self.head(self.layers(jnp.moveaxis(image, -1, 0)).ravel())


IMAGES = jax.random.normal(jax.random.key(1), (2, 6, 6, 2))


def apart(module, x):
    """The same by Equinox: its arrays, and a function of them."""
    arrays, static = eqx.partition(module, eqx.is_array)
    return (lambda arrays, x: net(eqx.combine(arrays, static), x)), arrays, x


METHODS = {
    "layers": lambda *net: str(jaxviz.layers(*net)),
    "summary": jaxviz.summary,
    "gradient": functools.partial(jaxviz.gradient, target=1),
    "guided": jaxviz.guided_backprop,
    "integrated": functools.partial(jaxviz.integrated_gradients, target=1, num_steps=4),
    "ablation": functools.partial(jaxviz.feature_ablation, target=1),
    "smooth": functools.partial(
        jaxviz.smooth_grad(jaxviz.gradient, num_samples=2), target=1, key=KEY
    ),
    "activations": lambda *net: jaxviz.activations(*net, ["max_pool_0"]),
    "graph": lambda *net: str(jaxviz.layer_graph(*net)),
    "field": lambda *net: jaxviz.receptive_field(*net, "max_pool_0"),
    "filters": lambda *net: jaxviz.filters(*net, "conv_0"),
    "softmax": lambda f, p, x: jaxviz.gradient(jaxviz.softmax(f), p, x, 0),
    "rewrite": lambda f, p, x: jaxviz.rewrite(f, jaxviz.rules.guided)(p, x),
    "sweep": lambda f, p, x: dict(
        jaxviz.sweep(jaxviz.saliency, f, p, np.asarray(x), batch_size=2, progress=False).maps
    ),
    "climb": lambda f, p, x: jaxviz.maximize_activation(
        *(f, p, x.shape[1:], jaxviz.objectives.logit(1)),
        **{"key": KEY, "num_steps": 2, "redirected_steps": 0, "transforms": ()},
        parametrization=jaxviz.parametrizations.pixels(),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_module_as_params(name):  # oracle: the module divided by Equinox
    found = METHODS[name](net, Conv(), IMAGES)
    expected = METHODS[name](*apart(Conv(), IMAGES))
    if isinstance(found, str):
        assert found == expected
    else:
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gradient_is_equinox():
    expected = eqx.filter_grad(lambda x: net(Conv(), x)[:, 1].sum())(IMAGES)
    chex.assert_trees_all_close(jaxviz.gradient(net, Conv(), IMAGES, 1), expected, rtol=1e-5)


def test_split_takes_the_module_and_gives_a_model():
    module = Conv()
    head, tail = jaxviz.split(net, module, IMAGES, "max_pool_0")
    a, carry = head(module, IMAGES)
    chex.assert_trees_all_close(tail((module, carry), a), net(module, IMAGES), rtol=1e-5)
    grad = jaxviz.gradient(tail, (module, carry), a, 0)
    expected = jax.grad(lambda a: tail((module, carry), a)[:, 0].sum())(a)
    chex.assert_trees_all_close(grad, expected, rtol=1e-5)
    assert (head, tail) == jaxviz.split(net, Conv(jax.random.key(5)), IMAGES, "max_pool_0")


def test_other_arrays_compile_nothing_other_functions_do():
    traces = []

    def counted(params, x):
        traces.append(None)
        return params["act"](x * params["w"])

    x = jnp.array([[1.0, -2.0]])
    explain = lambda act, w: jaxviz.gradient(counted, {"act": act, "w": jnp.float32(w)}, x, 1)
    assert explain(jnp.abs, 3.0).tolist() == [[0.0, -3.0]]
    count = len(traces)
    assert explain(jnp.abs, 4.0).tolist() == [[0.0, -4.0]]
    assert len(traces) == count
    assert explain(jnp.square, 3.0).tolist() == [[0.0, -36.0]]
    assert len(traces) > count


def test_numbers_beside_arrays_alone_are_traced():
    traces = []

    def counted(params, x):
        traces.append(None)
        return params["by"] * x

    x = jnp.array([[1.0]])
    assert jaxviz.gradient(counted, {"by": 2.0, "w": jnp.ones(1)}, x, 0).item() == 2.0
    count = len(traces)
    assert jaxviz.gradient(counted, {"by": 3.0, "w": jnp.ones(1)}, x, 0).item() == 3.0
    assert len(traces) == count


def test_strings_flags_and_types():
    def chosen(params, x):
        y = x.astype(params["dtype"]) * params["w"]
        return y if params["flip"] is False and params["mode"] == "same" else -y

    params = {"dtype": jnp.float32, "w": 2.0, "flip": False, "mode": "same", "none": None}
    x = jnp.array([[1.0]])
    assert jaxviz.gradient(chosen, params, x, 0).item() == 2.0
    assert jaxviz.gradient(chosen, {**params, "flip": True}, x, 0).item() == -2.0
    assert jaxviz.gradient(chosen, {**params, "mode": "other"}, x, 0).item() == -2.0


def test_a_store_knows_the_functions_of_its_params(tmp_path):
    act = lambda params, x: params["act"](x)
    x, options = np.ones((2, 2), np.float32), {"batch_size": 2, "progress": False}
    jaxviz.sweep({}, act, {"act": jnp.abs}, x, out=tmp_path / "store", **options)
    with pytest.raises(ValueError, match="params"):
        jaxviz.sweep({}, act, {"act": jnp.square}, x, out=tmp_path / "store", **options)


class Unhashable:
    __hash__ = None


class Foreign:
    """An array of another library."""

    def __array__(self):
        return np.ones(2)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (Unhashable(), r"gradient: params .*hashed.*Unhashable at \['a'\]"),
        (np.array(["word"]), r"gradient: params .*numpy.ndarray of <U4 at \['a'\]"),
        (Foreign(), r"gradient: params .*Foreign at \['a'\]. Convert .*jax.numpy.asarray"),
    ],
)
def test_what_can_be_neither_is_refused(leaf, words):
    with pytest.raises(TypeError, match=words):
        jaxviz.gradient(lambda p, x: x, {"a": leaf}, jnp.ones((1, 2)), 0)
