"""Models that the library made, called by a user with what they do not take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.rules.fast import fast

RNG = np.random.default_rng(0)
W = {"a": RNG.normal(size=(3, 3, 1, 2)), "d": RNG.normal(size=(2, 3))}
W = jax.tree.map(np.float32, W)
X = RNG.normal(size=(2, 4, 4, 1)).astype(np.float32)
DIMS = ("NHWC", "HWIO", "NHWC")


def net(w, x):
    x = jax.lax.conv_general_dilated(x, w["a"], (1, 1), "SAME", dimension_numbers=DIMS)
    return jax.nn.relu(x).mean((1, 2)) @ w["d"]


HEAD, TAIL = jv.split(net, W, X, "relu_0")
A, CARRY = HEAD(W, X)
PCA = jv.concepts.pca(np.abs(RNG.normal(size=(9, 2))).astype(np.float32), 2).dictionary
MODELS = {
    "head": ("split: ", HEAD, W, X),
    "tail": ("split: ", TAIL, (W, CARRY), A),
    "patched": ("patched: ", jv.patched(net, "relu_0", np.zeros(2, np.float32)), W, X),
    "rewritten": ("fast: ", jv.rewrite(net, fast), W, X),
    "scores": ("concept_scores: ", jv.concepts.concept_scores(net, "relu_0", PCA), W, X),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_made_model_does_not_take_is_said_by_who_made_it(name):
    begins, model, params, x = MODELS[name]
    gone = jnp.array(x)
    gone.delete()
    wrong = [
        (params, "text"),
        (params, None),
        (params, gone),
        (params, np.asarray(x).astype(object)),
    ]
    wrong += [(None, x), ("text", x), (jax.tree.map(jax.typeof, params), x), (params, x[0, 0])]
    for given in [*wrong, (x,), (params, x, 1)]:
        with pytest.raises((TypeError, ValueError)) as error:
            model(*given)
        told = str(error.value)
        assert told.startswith(begins), given
        assert told.count(begins) == 1
    for call in (jax.jit(model), jax.vmap(model, (None, 0)), lambda p, x: jax.vjp(model, p, x)):
        with pytest.raises((TypeError, ValueError), match=f"^{begins}"):
            call(params, x[0])


@pytest.mark.parametrize("name", MODELS)
def test_arrays_of_numpy_in_64_bits_are_taken_as_jax_takes_them(name):
    _, model, params, x = MODELS[name]
    wide = jax.tree.map(np.float64, (params, x))
    for a, b in zip(jax.tree.leaves(model(*wide)), jax.tree.leaves(model(params, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_users_own_error_at_run_time_stays_his():
    def stop(a):
        raise KeyError("his own")

    like = jax.ShapeDtypeStruct(X.shape, X.dtype)
    model = lambda w, x: net(w, jax.pure_callback(stop, like, x))
    with pytest.raises(Exception, match="his own") as error:
        jax.block_until_ready(jv.patched(model, "relu_0", 0.0)(W, X))
    assert "patched: params" not in str(error.value)
