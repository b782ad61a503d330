"""A model is traced once, and forgotten when it should be. Oracles are counts and lifetimes."""

import dataclasses
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxviz as jv
from jaxviz.graph import trace as module
from jaxviz.graph.rewrite import RuleSet, rewrite
from jaxviz.graph.trace import model, trace
from jaxviz.rules.fast import fast
from jaxviz.rules.relu import guided

W = {"a": jnp.ones((4, 3)), "b": jnp.arange(6.0).reshape(3, 2)}
X = jnp.arange(8.0).reshape(2, 4) - 3
NOTHING = RuleSet("nothing", {"tanh": lambda op: None})


def counted(function):
    """The function, and the list that grows at each run of its Python."""
    runs = []

    def run(params, x):
        runs.append(x.shape)
        return function(params, x)

    return run, runs


def net(w, x):
    return jax.nn.relu(x @ w["a"]) @ w["b"]


def held():
    """How many models are remembered."""
    return sum(len(models) for models in module._known.values())


def test_all_that_look_at_a_model_share_one_trace():
    f, runs = counted(net)
    jv.layers(f, W, X)
    jv.summary(f, W, X)
    head, tail = jv.split(f, W, X, "relu_0")
    a, carry = head(W, X)
    chex.assert_trees_all_close(tail((W, carry), a), net(W, X), rtol=1e-6)
    jv.activations(f, W, X, ["relu_0"])
    for rules in (NOTHING, fast, guided):
        chex.assert_trees_all_close(rewrite(f, rules)(W, X), net(W, X), rtol=1e-6)
    jv.saliency(f, W, X, 0)
    jv.integrated_gradients(f, W, X, 0, num_steps=4)
    jv.lrp(f, W, X, 0, rules="epsilon")
    assert runs == [X.shape]


def test_shapes_dtypes_and_structure_are_told_apart():
    f, runs = counted(net)
    first = model(f, W, X)
    assert model(f, W, X + 1) is first
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    assert model(f, jax.tree.map(shape, W), shape(X)) is first
    assert model(f, jax.tree.map(np.asarray, W), np.asarray(X)) is first
    assert model(f, W, X[:1]).shape.shape == (1, 2)
    assert model(f, {**W, "c": X}, X) is not first
    halves = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (W, X))
    assert model(f, *halves).shape.dtype == jnp.bfloat16
    assert len(runs) == 4


def test_a_weak_type_is_another_type():
    f, runs = counted(lambda w, x: x.astype(jnp.bfloat16) * w)
    assert model(f, 2.0, X).shape.dtype == jnp.bfloat16  # Python's number takes the array's type
    with jax.numpy_dtype_promotion("standard"):
        assert model(f, jnp.float32(2), X).shape.dtype == jnp.float32
        assert model(f, 2.0, X).shape.dtype == jnp.bfloat16
    assert len(runs) == 3


def test_the_settings_of_jax_are_told_apart():
    f, runs = counted(lambda w, x: x @ w["a"])

    def precision():
        (node,) = trace(f, W, X).program.nodes
        return node.equation.params["precision"]

    assert precision() is None
    with jax.default_matmul_precision("highest"):
        assert precision() == (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    assert precision() is None
    assert len(runs) == 2


def test_equal_functions_share():
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        by: float

        def __call__(self, params, x):
            runs.append(self.by)
            return self.by * x

    runs = []
    assert model(Scaled(2.0), None, X) is model(Scaled(2.0), None, X)
    model(Scaled(3.0), None, X)
    assert runs == [2.0, 3.0]

    linen = nn.Dense(3)
    variables = linen.init(jax.random.key(0), X)
    assert model(linen.apply, variables, X) is model(linen.apply, variables, X)


def test_under_other_transformations_it_is_the_same_model():
    f, runs = counted(net)
    jv.layers(f, W, X)
    g = rewrite(f, NOTHING)
    expected = jax.vmap(jax.grad(lambda x: net(W, x).sum()))(jnp.stack([X, 2 * X]))
    found = jax.jit(jax.vmap(jax.grad(lambda x: g(W, x).sum())))(jnp.stack([X, 2 * X]))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert len(runs) == 1


def test_a_model_of_the_callers_traced_values_is_not_remembered(checking_leaks):
    before = held()

    @jax.jit
    def outer(scale, x):
        f = lambda w, x: scale * net(w, x)
        apply = dataclasses.make_dataclass("F", ["f"], frozen=True, namespace={"__call__": _call})
        g = rewrite(apply(f), NOTHING)  # held by value, not weakly as functions are
        return jax.grad(lambda x: g(W, x).sum())(x)

    for scale in (2.0, 3.0):
        expected = scale * jax.grad(lambda x: net(W, x).sum())(X)
        chex.assert_trees_all_close(outer(scale, X), expected, rtol=1e-6)
    with checking_leaks():
        outer(4, X)
    assert held() == before


def _call(self, params, x):
    return self.f(params, x)


def test_constants_go_with_their_function():
    constant = jnp.full((4, 2), 2.0)
    watched = weakref.ref(constant)
    f = _closing_over(constant)
    assert model(f, None, X).shape.shape == (2, 2)
    del constant, f
    gc.collect()
    assert watched() is None


def _closing_over(constant):
    return lambda w, x: x @ constant


def test_jax_clears_it_too():
    @dataclasses.dataclass(frozen=True)
    class Times:
        by: float

        def __call__(self, params, x):
            return self.by * x

    found = weakref.ref(model(Times(5.0), None, X))
    assert found() is not None
    jax.clear_caches()
    gc.collect()
    assert found() is None
    assert held() == 0


def test_only_so_many_are_kept():
    @dataclasses.dataclass(frozen=True)
    class Plus:
        number: int

        def __call__(self, params, x):
            runs.append(self.number)
            return x + self.number

    runs = []
    for number in range(module._MOST + 3):
        model(Plus(number), None, X)
        model(Plus(0), None, X)  # used again and again, so never the oldest
    assert held() <= module._MOST * len(module._known)
    assert runs == list(range(module._MOST + 3))
    model(Plus(1), None, X)
    assert runs[-1] == 1


def test_errors_are_said_each_time_in_the_name_of_who_was_called():
    f, runs = counted(lambda w, x: x @ w["a"].T)
    for method in (jv.saliency, jv.layers, jv.saliency, jv.grad_cam):
        with pytest.raises(
            TypeError, match=rf"^{method.__name__}: apply_fn\(params, x\) must take"
        ):
            method(f, W, X)
    assert len(runs) >= 4


def test_a_user_s_jit_traced_before_has_its_names():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="last")(nn.relu(nn.Dense(3, name="first")(x)))

    outer = Net()
    params = outer.init(jax.random.key(1), X)
    apply = jax.jit(outer.apply)
    apply(params, X)  # JAX has it without names
    named = [layer.name for layer in jv.layers(lambda w, x: apply(w, x), params, X)]
    assert named == ["first", "relu_0", "last"]


def test_names_leave_no_trace_in_what_is_run():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="b")(nn.tanh(nn.Dense(3, name="a")(x)))

    f = Net()
    params = f.init(jax.random.key(1), X)
    double = RuleSet("double", {"tanh": lambda op: lambda a: op.evaluate(a)})
    text = str(jax.make_jaxpr(rewrite(f.apply, double))(params, X))
    assert "jaxviz<" not in text
    assert "name[" not in text
    # Where names are asked for, a rewritten model has those of the model.
    assert [one.name for one in jv.layers(rewrite(f.apply, double), params, X)] == [
        "a",
        "tanh_0",
        "b",
    ]


def test_what_linen_cannot_name_it_still_runs():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return {1: x, "one": 2 * x}  # no order of keys: no pytree

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(Odd()(x)["one"])

    f = Net()
    params = f.init(jax.random.key(1), X)
    kernel = np.asarray(params["params"]["Dense_0"]["kernel"])
    chex.assert_trees_all_close(
        jv.gradient(f.apply, params, X, 1), np.broadcast_to(2 * kernel[:, 1], X.shape), rtol=1e-6
    )
