"""Models that run, and fail where they are differentiated or batched: whose words are said then."""

import functools
import re

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax.experimental import checkify, io_callback

import jaxviz as jv

W = jnp.array([[1.0, 2.0, 4.0], [-1.0, 0.5, 3.0]])
X = jnp.array([[1.0, 2.0], [3.0, -1.0]])
OCCLUSION = functools.partial(jv.occlusion, window=(1,), stride=(1,))
ABLATION = jv.feature_ablation


def looping(w, x):  # as often as its numbers say
    return jax.lax.while_loop(lambda h: h.sum() < 0, lambda h: h + 1, x) @ w


def asking_python(w, x, **how):
    there = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.asarray, there, x, **how) @ w


def telling_python(w, x, ordered=False):
    io_callback(lambda a: None, None, x, ordered=ordered)
    return x @ w


def checked(w, x):
    checkify.check(x.sum() > -9, "small")
    return x @ w


LOGGED, WITHOUT_BATCH = jax.jit(telling_python), jax.jit(asking_python)
FAILS = {
    "loop": (jv.gradient, looping, "a gradient; it has a loop that turns as often .*lax.scan"),
    "callback": (jv.integrated_gradients, asking_python, "a gradient; it calls back to Python"),
    "told": (jv.gradient, LOGGED, "a gradient; it calls back .*jax.lax.stop_gradient of what it"),
    "batch": (ABLATION, WITHOUT_BATCH, "a batch of any size; .*Pass vmap_method="),
    "order": (
        ABLATION,
        functools.partial(telling_python, ordered=True),
        r"a batch of any size; it calls back to Python in order \(ordered=True\)",
    ),
    "check": (jv.gradient, checked, "a check of jax.experimental.checkify"),
    "shapes": (jv.gradient, lambda w, x: x @ w, "arrays, as must x; got shapes alone"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_jax_cannot_transform_is_said_in_words(name):
    method, model, told = FAILS[name]
    params = jax.ShapeDtypeStruct(W.shape, W.dtype) if name == "shapes" else W
    kinds = ValueError, TypeError, NotImplementedError
    with pytest.raises(kinds, match=rf"^{method.__name__}: \w+ must .*{told}") as found:
        method(model, params, X, 0)
    assert found.value.__cause__ is not None  # JAX's own words, with the line of the model


def test_callbacks_that_can_be_transformed_are():
    reads = lambda w, x: telling_python(w, jax.lax.stop_gradient(x)) + x @ w - x @ w
    asks = functools.partial(asking_python, vmap_method="sequential")
    np.testing.assert_allclose(ABLATION(asks, W, X, 0), X * W[:, 0][None], rtol=1e-6)
    assert not jv.gradient(reads, W, X, 0).any()


def test_a_models_own_refusal_is_not_taken_for_ours():
    def unfinished(w, x):
        raise NotImplementedError("to do")

    for call in (jv.gradient, jv.lrp, jv.layers):
        told = rf"^{call.__name__}: apply_fn\(params, x\) must .* with NotImplementedError: to do"
        with pytest.raises(ValueError, match=told) as found:
            call(unfinished, W, X)
        assert isinstance(found.value.__cause__, NotImplementedError)
    branching = lambda w, x: x @ w if x.sum() > 0 else x
    with pytest.raises(TypeError, match=r"shape bool\[\]\. It is traced: take .*lax\.cond"):
        jv.gradient(branching, W, X, 0)


@pytest.mark.filterwarnings("ignore:Python iterable type")  # JAX: an error some day
def test_params_of_other_kinds():
    net = lambda w, x: x @ w["a"]
    for more, told in (
        ({1: W}, r"with keys of one kind, .* got a dictionary with keys a, 1"),
        ({"b": np.ma.masked_array(W, W > 2)}, r"without a mask; .* at \['b'\]"),
        ({"b": (w for w in [W])}, r"and beside .* got a builtins\.generator at \['b'\]"),
        ({"b": jax.new_ref(W)}, r"; got one that is written to .* at \['b'\]"),
    ):
        for call in (jv.gradient, jv.layers):
            with pytest.raises(
                (TypeError, ValueError), match=rf"^{call.__name__}: params .*{told}"
            ):
                call(net, {"a": W} | more, X)
    with pytest.raises(ValueError, match="x must hold dictionaries with keys of one kind"):
        jv.gradient(lambda w, x: x[1] @ w, W, {1: X, "b": X}, 0)


def test_outputs_that_no_method_explains():
    for outputs, told in (
        (lambda o: o[:, :0], r"\(2, 0\)"),
        (lambda o: jnp.stack([jax.random.split(jax.random.key(0), 3)] * 2), "key<fry>"),
        (lambda o: o.argmax(1), "int32"),
    ):
        for call in (jv.explain, jv.gradient):
            model = lambda w, x, outputs=outputs: outputs(x @ w)
            with pytest.raises((TypeError, ValueError), match=rf"^{call.__name__}: .*{told}"):
                call(model, W, X)
    with pytest.raises(ValueError, match="no layer 'relu_0', for the model has none"):
        jv.activations(lambda w, x: jnp.ones((2, 3)), W, X, ["relu_0"])


def test_logits_with_a_state_beside_them_are_taken_out():
    both = lambda w, x: (x @ w, {"mean": x.mean(0)})
    told = r"\[N, K\]; apply_fn returns .*Return the first alone: `(.*)`\. Pass a function"
    with pytest.raises(ValueError, match=told) as found:
        jv.gradient(both, W, X, 0)
    advised = eval(re.search(told, str(found.value))[1], {"apply_fn": both})
    np.testing.assert_array_equal(jv.gradient(advised, W, X, 0), jnp.tile(W[:, 0], (2, 1)))


class Drops(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        return linen.Dropout(0.5, deterministic=not train)(x)


def test_models_in_training_are_told_how_to_leave_it():
    module, told = Drops(), "InvalidRngError: .*It is in training mode: fix train=False"
    with pytest.raises(ValueError, match=told):
        jv.gradient(module.apply, {}, X, 0)
    fixed = functools.partial(module.apply, train=False)
    np.testing.assert_array_equal(jv.gradient(fixed, {}, X, 0), [[1.0, 0.0]] * 2)
    drops = equinox.nn.Dropout(0.5)
    each = lambda module, x: jax.vmap(module)(x)
    with pytest.raises(ValueError, match=r"RuntimeError: .* eqx\.nn\.inference_mode\(model\)"):
        jv.gradient(each, drops, X, 0)
    still = equinox.nn.inference_mode(drops)
    np.testing.assert_array_equal(jv.gradient(each, still, X, 0), [[1.0, 0.0]] * 2)
    drawn = haiku.transform(lambda x: x)
    with pytest.raises(ValueError, match=r"For Haiku: .*from_haiku"):
        jv.gradient(drawn.apply, {}, X, 0)


def test_influence_compares_real_gradients():
    apart = lambda w, x: jnp.abs(jax.lax.complex(x @ w["real"], x @ w["imag"]))
    whole = lambda w, x: jnp.abs(x.astype(w["w"].dtype) @ w["w"])
    rows, params = (X, np.array([0, 1])), {"real": W, "imag": 0.5 * W[::-1]}
    together = {"w": jax.lax.complex(*params.values())}
    np.testing.assert_allclose(whole(together, X), apart(params, X), rtol=1e-6)
    for call in (jv.influence.trac_in, jv.influence.gradient_cosine, jv.influence.influence):
        given = [together] if call is jv.influence.trac_in else together
        with pytest.raises(TypeError, match=rf"^{call.__name__}: params must hold real .* at 'w'"):
            call(whole, given, rows, rows)
    cosine = jv.influence.gradient_cosine(apart, params, rows, rows)
    np.testing.assert_allclose(jnp.diag(jnp.asarray(cosine)), 1, rtol=1e-5)


def test_an_exported_program_hides_its_relus():
    net = lambda w, x: jax.nn.relu(x @ w)
    kept = jax.export.export(jax.jit(net))(W, X).call
    np.testing.assert_array_equal(jv.gradient(kept, W, X, 0), jv.gradient(net, W, X, 0))
    for method in (jv.guided_backprop, jv.deconvnet):
        with pytest.raises(NotImplementedError, match=rf"^{method.__name__}: .*hides its ReLUs"):
            method(kept, W, X, 0)


def test_known_segments_are_known_under_jit_too():
    x, cells = X.reshape(1, 2, 2, 1), np.array([[0, 0], [1, 2]])
    net = lambda w, x: x.reshape(1, 4) @ jnp.concatenate([w, w])
    explain = lambda x: jv.owen_values(net, W, x, 0, segments=cells).values
    assert jax.eval_shape(jax.jit(explain), x).shape == (1, 3)  # was refused
