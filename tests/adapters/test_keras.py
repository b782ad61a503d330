"""`from_keras`: what Keras' models hold, take and are called; oracle: the model itself."""

import os
import threading
from concurrent import futures

os.environ.setdefault("KERAS_BACKEND", "jax")

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

keras = pytest.importorskip("keras")
L = keras.layers


@pytest.fixture(autouse=True)
def _as_keras_is_written():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def image_model(format="channels_last"):
    axis = -1 if format == "channels_last" else 1
    shape = (6, 6, 3) if axis == -1 else (3, 6, 6)
    image = keras.Input(shape)
    h = L.Conv2D(4, 3, name="conv1", data_format=format)(image)
    h = L.ReLU(name="act")(L.BatchNormalization(axis, name="norm")(h))
    layers = [L.GlobalAveragePooling2D(format, name="mean"), L.Dense(3, name="logits")]
    top = keras.Sequential([layers[0], L.Dropout(0.5, name="drop"), layers[1]], name="top")
    return keras.Model(image, top(h), name="net")


X = np.asarray(jax.random.normal(jax.random.key(0), (2, 6, 6, 3)))


def test_layers_have_keras_names_and_outputs_are_the_models():
    keras.utils.set_random_seed(0)
    model = image_model()
    before = [np.asarray(v.value) for v in model.variables]
    apply_fn, params = jv.from_keras(model)
    names = [layer.name for layer in jv.layers(apply_fn, params, X)]
    assert names == ["conv1", "norm", "act", "top/mean", "top/drop", "top/logits", "top"]
    assert set(params["params"]) >= {"conv1/kernel", "norm/gamma", "top/logits/bias"}
    assert "norm/moving_mean" in params["state"]
    chex.assert_trees_all_close(apply_fn(params, X), model(X, training=False), rtol=1e-6)

    def score(x):
        held = [
            [v.value for v in g] for g in (model.trainable_variables, model.non_trainable_variables)
        ]
        return model.stateless_call(*held, x, training=False)[0][:, 1].sum()

    chex.assert_trees_all_close(
        jv.gradient(apply_fn, params, X, 1), jax.grad(score)(jnp.asarray(X)), rtol=1e-4, atol=1e-6
    )
    act = jv.activations(apply_fn, params, X, ["act"])["act"]
    want = keras.Model(model.inputs[0], model.get_layer("act").output)(X)
    chex.assert_trees_all_close(act, want, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(before, model.variables, strict=True):
        chex.assert_trees_all_equal(ours, np.asarray(theirs.value))
    assert jv.grad_cam(apply_fn, params, X, 1).shape == (2, 6, 6)


def test_equal_configuration_is_an_equal_function():
    one, other = image_model(), image_model()
    (f, params), (g, _) = jv.from_keras(one), jv.from_keras(other)
    assert (f, hash(f)) == (g, hash(g))
    one.get_layer("act").negative_slope = 0.5
    assert f != jv.from_keras(one)[0]
    chex.assert_trees_all_equal_structs(params, jv.from_keras(other)[1])


def test_channels_first_as_configured():
    keras.utils.set_random_seed(1)
    first = image_model("channels_first")
    last = image_model()
    last.set_weights([np.asarray(v.value) for v in first.weights])
    x = X.transpose(0, 3, 1, 2)
    f, g = jv.from_keras(first), jv.from_keras(last)
    for method in (jv.grad_cam, lambda *a: jv.occlusion(*a, window=(2, 2), stride=(2, 2))):
        chex.assert_trees_all_close(method(*f, x, 1), method(*g, X, 1), rtol=1e-4, atol=1e-6)


def test_several_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((5,), name="b")
    h = L.Concatenate()([L.Dense(3, activation="relu")(a), b])
    apply_fn, params = jv.from_keras(keras.Model([a, b], L.Dense(2)(h)))
    xa, xb = jnp.ones((2, 4)), jnp.ones((2, 5))
    by_name = jv.gradient(apply_fn, params, {"a": xa, "b": xb}, 0)
    in_a_row = jv.gradient(apply_fn, params, [xa, xb], 0)
    chex.assert_trees_all_equal(by_name["b"], in_a_row[1])


class Own(keras.Model):
    def __init__(self, scale):
        super().__init__()
        self.scale, self.embed, self.top = scale, L.Embedding(9, 3), L.Dense(2)

    def call(self, ids, weight, training=False):
        return self.top((self.embed(ids) * weight[..., None]).mean(1)) * self.scale


def test_classes_of_ones_own():
    ids, weight = jnp.ones((2, 4), int), jnp.ones((2, 4))
    model, other = Own(1.0), Own(1.0)
    with pytest.raises(ValueError, match=r"from_keras: model must be built.*Call it once"):
        jv.from_keras(model)
    model(ids, weight), other(ids, weight)
    apply_fn, params = jv.from_keras(model)
    chex.assert_trees_all_close(apply_fn(params, (ids, weight)), model(ids, weight), rtol=1e-5)
    named = jv.gradient(apply_fn, params, {"ids": ids, "weight": weight}, 0)
    assert named["weight"].shape == (2, 4)
    assert apply_fn == jv.from_keras(model)[0] != jv.from_keras(other)[0]


def test_what_keras_attends_and_repeats_with():
    series = keras.Input((5, 4))
    h = L.MultiHeadAttention(2, 3, name="attend")(series, series)
    h = L.Bidirectional(L.GRU(3), name="both")(L.LSTM(4, return_sequences=True, name="lstm")(h))
    apply_fn, params = jv.from_keras(keras.Model(series, L.Dense(2, name="out")(h)))
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    found = {layer.name: layer for layer in jv.layers(apply_fn, params, x)}
    assert {"attend", "attend/query", "lstm", "both", "both/forward_gru", "out"} <= set(found)
    assert found["attend"].submodules
    head, tail = jv.split(apply_fn, params, x, "lstm")
    a, carry = head(params, x)
    chex.assert_trees_all_close(tail((params, carry), a), apply_fn(params, x), rtol=1e-5, atol=1e-6)


class Plain(keras.Model):
    def __init__(self, dtype=None):
        super().__init__(dtype=dtype)
        self.drop, self.top = L.Dropout(0.5, dtype=dtype), L.Dense(2, dtype=dtype)

    def call(self, x):  # without the flag
        return self.top(L.Flatten()(self.drop(x)))


class Careless(Plain):
    def build(self, shape):
        self.built = True  # its layers are not


def test_a_call_without_the_flag_and_half_precision():
    x = jnp.asarray(X)
    for dtype in (None, "mixed_bfloat16"):
        model = Plain(dtype)
        model(x)
        apply_fn, params = jv.from_keras(model)
        got = apply_fn(params, x)
        assert got.dtype == (jnp.bfloat16 if dtype else jnp.float32)
        chex.assert_trees_all_close(got, model(x, training=False), rtol=1e-6)
        assert jv.gradient(apply_fn, params, x, 1).dtype == jnp.float32


def test_params_outlive_a_training():
    model = Plain()
    model.compile("sgd", "mse")
    model(X)
    apply_fn, params = jv.from_keras(model)
    before = np.asarray(apply_fn(params, X))
    model.fit(X, np.ones((2, 2), np.float32), verbose=0)
    chex.assert_trees_all_equal(np.asarray(apply_fn(params, X)), before)
    again, trained = jv.from_keras(model)
    assert again == apply_fn
    assert not np.allclose(again(trained, X), before)


def test_a_layer_that_is_not_built_is_told_and_not_built():
    model = Careless()
    model.build((None, 6, 6, 3))
    with pytest.raises(ValueError, match=r"from_keras: model must be built.*'dense\w*' is not"):
        jv.from_keras(model)

    class Half(keras.Model):
        def __init__(self):
            super().__init__()
            self.top, self.rest = L.Dense(2), model

        def build(self, shape):
            self.top.build((None, 108))

        def call(self, x):
            return self.top(L.Flatten()(x)) + self.rest(x)

    half = Half()
    half.build((None, 6, 6, 3))
    apply_fn, params = jv.from_keras(half)
    with pytest.raises(ValueError, match=r"gradient: .*layer '.*dense\w*' is not.*on a batch"):
        jv.gradient(apply_fn, params, X, 0)
    assert not model.variables[1:]  # the seeds of its dropout


class Shifted(L.Layer):
    """Arithmetic of its own beside a layer, on what its policy makes of its input."""

    def __init__(self, scale, act, **options):
        super().__init__(**options)
        self._scale, self.act, self.top = (
            scale,
            act,
            L.Dense(2, name="top", dtype=self.dtype_policy),
        )

    def build(self, shape):
        self.offset = self.add_weight(shape=(2,), name="offset")
        self.top.build(shape)

    def call(self, x):
        return self.act(self.top(x) * self._scale + self.offset + x[:, :2])


def times(factor):
    return lambda x: x * factor


def shifted(scale=3.0, factor=2.0, dtype=None):
    return Shifted(scale, times(factor), name="shifted", dtype=dtype)


def test_a_root_casts_its_inputs_by_its_policy():
    model, x = shifted(dtype="mixed_bfloat16"), jax.random.normal(jax.random.key(0), (2, 4))
    want = model(x)
    apply_fn, params = jv.from_keras(model)
    assert want.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(apply_fn(params, x), want)
    assert [layer.name for layer in jv.layers(apply_fn, params, x)][:1] == ["top"]


def test_copies_of_ones_own_classes_are_the_same_function_where_they_compute_the_same():
    x = jnp.ones((2, 4))

    def adapted(**options):
        model = shifted(**options)
        model(x)
        return model, *jv.from_keras(model)

    traced = []
    one, f, params = adapted()
    other, g, _ = adapted()
    assert (f, hash(f)) == (g, hash(g))
    before = jv.gradient(f, params, x, 0)
    other.call = lambda *a: traced.append(a)  # whoever runs it again
    chex.assert_trees_all_equal(jv.gradient(g, params, x, 0), before)
    assert not traced
    for options in ({"scale": 4.0}, {"factor": 5.0}, {"dtype": "mixed_bfloat16"}):
        assert adapted(**options)[1] != f
    one._scale = 4.0
    h, params = jv.from_keras(one)
    assert h != f
    chex.assert_trees_all_close(h(params, x), one(x))


def test_functions_in_keras_own_layers_count_too():
    def adapted(factor):
        parts = [keras.Input((4,)), L.Dense(2, activation=times(factor), name="top")]
        return jv.from_keras(keras.Sequential(parts, name="net"))[0]

    assert adapted(2.0) == adapted(2.0) != adapted(3.0)  # all by the name <lambda>


def test_keras_calls_are_its_own_again_whoever_was_in_between():
    call = L.Layer.__call__
    apply_fn, params = jv.from_keras(image_model())
    jv.layers(apply_fn, params, X)
    assert L.Layer.__call__ is call
    with pytest.raises(ValueError, match="gradient: "):
        jv.gradient(apply_fn, params, X[:, :2], 0)
    assert L.Layer.__call__ is call
    inside, go = threading.Event(), threading.Event()

    class Waiting(L.Layer):
        def call(self, x):
            inside.set()
            go.wait(60)
            return L.Activation("relu", name="act")(x)

    go.set()  # for Keras calls it too, to know its shapes
    top = L.Dense(2, use_bias=False)  # a thread has its own configuration
    waiting = keras.Sequential([keras.Input((4,)), Waiting(name="wait"), top])
    inside.clear(), go.clear()
    f, held = jv.from_keras(waiting)
    with futures.ThreadPoolExecutor(1) as threads:
        slow = threads.submit(
            lambda: [layer.name for layer in jv.layers(f, held, jnp.ones((1, 4)))]
        )
        inside.wait(60)
        jv.layers(apply_fn, params, jnp.asarray(X[:1]))  # leaves while the other is on its way
        assert L.Layer.__call__ is not call
        plain = L.Dense(2)(X)  # of nobody's explanation
        go.set()
        assert "wait" in slow.result()
    assert plain.shape == (2, 6, 6, 2)
    assert L.Layer.__call__ is call


def test_freezing_a_layer_later_moves_no_params():
    model = image_model()
    apply_fn, params = jv.from_keras(model)
    before = apply_fn(params, X)
    model.get_layer("conv1").trainable = False
    chex.assert_trees_all_equal(apply_fn(params, X), before)


def test_wrong_ones_are_told(monkeypatch):
    apply_fn, params = jv.from_keras(image_model())
    with pytest.raises(ValueError, match=r"from_keras: params.*got none for conv1/bias"):
        apply_fn({"params": {}, "state": params["state"]}, X)
    with pytest.raises(TypeError, match=r"from_keras: model must be a keras.Model.*got function"):
        jv.from_keras(image_model)
    with pytest.raises((TypeError, ValueError), match=r"gradient: .*from_keras"):
        jv.gradient(image_model(), params, X, 0)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(
        ValueError, match=r"from_keras: Keras must run on JAX; its backend is torch"
    ):
        jv.from_keras(image_model())
