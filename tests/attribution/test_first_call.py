"""What a first call traces and compiles, counted: passes of a model, traces of what is summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.attribution import difference
from jaxviz.graph.lift import lift

KEY = jax.random.key(0)


def net(weights, x):
    """Dense layers with ReLUs between: one product each, on every backend."""
    *inner, last = weights
    for w in inner:
        x = jax.nn.relu(x @ w)
    return x @ last


def inputs(depth):
    keys = jax.random.split(KEY, depth + 1)
    return [jax.random.normal(k, (5, 5)) for k in keys[1:]], jax.random.normal(keys[0], (3, 5))


def products(function, *arguments):
    """Matrix products of a program, the body of a loop once, a function each time it is called."""

    def count(jaxpr):
        found = 0
        for equation in jaxpr.eqns:
            found += equation.primitive.name == "dot_general"
            for value in equation.params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    found += count(inner) if hasattr(inner, "eqns") else 0
        return found

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def kernel_shap(*call):
    return jv.kernel_shap(*call, key=KEY, num_samples=6, segments=np.arange(5) // 2)


# Products for each further layer of a net: what the method's formula asks for.
PER_LAYER = {
    "saliency": (jv.saliency, 2),  # forward, backward
    "integrated_gradients": (lambda *call: jv.integrated_gradients(*call, num_steps=8), 2),
    "smooth_grad": (lambda *call: jv.smooth_grad(jv.gradient)(*call, key=KEY), 2),
    "kernel_shap": (kernel_shap, 1),
    "feature_ablation": (jv.feature_ablation, 1),
    "epsilon": (lambda *call: jv.lrp(*call, rules="epsilon"), 2),
}


@pytest.mark.parametrize("name", PER_LAYER)
@pytest.mark.parametrize("given", [False, True])
def test_a_layer_more_costs_the_passes_that_the_formula_has(name, given):
    method, per_layer = PER_LAYER[name]

    def counted(depth):
        weights, x = inputs(depth)
        target = jnp.array([0, 4, 2]) if given else None
        return products(lambda weights, x: method(net, weights, x, target), weights, x)

    assert counted(5) - counted(3) == 2 * per_layer


def test_deep_lift_carries_differences_through_a_model_once(monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return lift(*args, **kwargs)

    monkeypatch.setattr(difference, "lift", counted)
    weights, x = inputs(3)
    jv.deep_lift(lambda weights, x: net(weights, x), weights, x, 1)
    assert len(calls) == 1


def test_lrp_asks_a_rule_once_for_each_operation():
    asked = []

    def rule(op):
        asked.append(op.name)
        return jv.rules.lrp.epsilon()(op)

    weights, x = inputs(3)
    jv.lrp(lambda weights, x: net(weights, x), weights, x, 1, rules={"dense": rule})
    assert len(asked) == 3


METHODS = {
    "integrated_gradients": lambda *call: jv.integrated_gradients(*call, num_steps=8),
    "one_point": lambda *call: jv.integrated_gradients(*call, num_steps=1),
    "one_at_a_time": lambda *call: jv.integrated_gradients(*call, num_steps=7, chunk_size=1),
    "expected_gradients": lambda *call: jv.expected_gradients(
        *call, baselines=jnp.zeros((1, 5)), key=KEY, num_samples=5
    ),
    "smooth_grad": lambda *call: jv.smooth_grad(jv.gradient, num_samples=9)(*call, key=KEY),
    "kernel_shap": lambda *call: kernel_shap(*call).values,
    "feature_ablation": lambda *call: jv.feature_ablation(*call, segments=np.arange(5)),
    "one_region": lambda *call: jv.feature_ablation(*call, segments=np.zeros(5, np.int32)),
}


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_no_class_given_is_the_top_class_at_the_input(monkeypatch, name, cores):
    """The copies have other top classes: most of them a mixture with zeros, where all are equal."""
    monkeypatch.setattr("jaxviz.engine.copies._SHARED", 0)
    for module in ("contract", "copies"):
        monkeypatch.setattr(f"jaxviz.engine.{module}.cores", lambda: cores)
    weights, x = inputs(3)
    model = lambda weights, x: net(weights, x) - jnp.square(x)  # a fresh one, compiled for `cores`
    top = np.asarray(model(weights, x)).argmax(1)
    found, expected = (METHODS[name](model, weights, x, target) for target in (None, top))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_the_top_class_among_copies_can_be_differentiated():
    """As any explanation can: by central differences of it."""
    weights, x = inputs(2)
    smooth = lambda weights, x: jnp.tanh(x @ weights[0]) @ weights[1]
    total = lambda x: (jv.integrated_gradients(smooth, weights, x, num_steps=4) ** 2).sum()
    way = jax.random.normal(jax.random.key(7), x.shape)
    along = (jax.grad(total)(x) * way).sum()
    step = 1e-2
    numeric = (total(x + step * way) - total(x - step * way)) / (2 * step)
    np.testing.assert_allclose(along, numeric, rtol=2e-2)
