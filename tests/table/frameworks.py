"""Models of the frameworks that people use with JAX, each `name -> Row`."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn, nnx
from rows import Row, normal, relu

import jaxviz

N, KEY = 2, jax.random.key(0)
IMAGES, SERIES, VECTORS = normal(N, 6, 6, 2), normal(N, 4, 3), normal(N, 6)


def linen(module, x, *rest, **options):
    """Its batch statistics are made other than 0 and 1."""
    variables = module.init(KEY, x)
    if "batch_stats" in variables:
        moved = jax.tree.map(
            lambda a: a + 0.3 * jnp.abs(normal(*a.shape)), variables["batch_stats"]
        )
        variables = {**variables, "batch_stats": moved}
    return Row(module.apply, variables, x, *rest, **options)


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = relu(nn.Dense(5, use_bias=False)(x))
        return nn.Dense(3, use_bias=False)(x)


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(relu(nn.Conv(4, (3, 3), use_bias=False)(x)), (2, 2), (2, 2))
        x = relu(nn.Conv(4, (3, 3), use_bias=False)(x))
        return nn.Dense(3, use_bias=False)(x.mean((1, 2)))


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=True)
        x = relu(norm()(nn.Conv(4, (3, 3), use_bias=False, name="stem")(x)))
        y = relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
        x = relu(x + norm()(nn.Conv(4, (3, 3), use_bias=False, name="last")(y)))
        return nn.Dense(3)(x.mean((1, 2)))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


class NNXCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(relu(self.norm(self.conv(x)))).mean((1, 2)))


class NNXRNN(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs))
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.rnn(x)[:, -1])


class NNXScan(nnx.Module):
    def __init__(self, rngs):
        make = nnx.vmap(
            lambda r: nnx.Linear(6, 6, use_bias=False, rngs=r), in_axes=(0,), out_axes=0
        )
        self.blocks = nnx.split_rngs(splits=3)(make)(rngs)
        self.out = nnx.Linear(6, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, b: relu(b(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.out(run(x, self.blocks))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.out = nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)

    @nnx.remat
    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + nnx.gelu(self.out(self.norm(x)))


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        self.into, self.block = nnx.Linear(3, 4, rngs=rngs), NNXBlock(rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.block(self.into(x)).mean(1))


def over_examples(module, x):
    return jax.vmap(module)(x)


def equinox_mlp():
    module = eqx.nn.MLP(6, 3, 5, 2, activation=relu, use_bias=False, use_final_bias=False, key=KEY)
    return Row(over_examples, module, VECTORS)


def equinox_cnn():
    """Channels first, as all of Equinox."""
    one, two = jax.random.split(KEY)
    module = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, key=one),
            eqx.nn.Lambda(relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(16, 3, key=two),
        ]
    )
    x = IMAGES.transpose(0, 3, 1, 2)
    return Row(over_examples, module, x, "finite", cam=("conv_0", 1))


def haiku_resnet():
    hk = pytest.importorskip("haiku")

    def forward(x, training=False):
        x = hk.Conv2D(4, 3, with_bias=False)(x)
        y = relu(hk.BatchNorm(True, True, 0.9)(x, is_training=training))
        x = relu(x + hk.Conv2D(4, 3, with_bias=False)(y))
        return hk.Linear(3)(x.mean((1, 2)))

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = net.init(KEY, IMAGES, True)
    return Row(lambda p, x: net.apply(*p, x)[0], (params, state), IMAGES, "finite", relaxed=True)


def keras(make, x, *rest, **options):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = make(keras)

    def apply_fn(params, x):
        return model.stateless_call(params[0], params[1], x, training=False)[0]

    params = [
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    return Row(apply_fn, params, x, *rest, relaxed=True, **options)


def keras_nested(keras):
    layers = keras.layers
    inner = keras.Sequential(
        [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.Activation(relu)]
    )
    image = keras.Input((6, 6, 2))
    x = inner(layers.Conv2D(4, 3, padding="same", use_bias=False)(image))
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))
    return keras.Model(image, layers.Dense(3)(x))


def keras_attention(keras):
    layers = keras.layers
    series = keras.Input((4, 3))
    x = layers.Dense(4)(series)
    x = x + layers.MultiHeadAttention(2, 2)(*[layers.LayerNormalization()(x)] * 2)
    return keras.Model(series, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def keras_lstm(keras):
    series = keras.Input((4, 3))
    return keras.Model(series, keras.layers.Dense(3)(keras.layers.LSTM(4)(series)))


def diffrax_ode():
    diffrax = pytest.importorskip("diffrax")

    def net(w, x):
        term = diffrax.ODETerm(lambda t, y, w: jnp.tanh(y @ w))
        solved = diffrax.diffeqsolve(
            *(term, diffrax.Heun(), 0.0, 1.0, 0.1, x, w[0]),
            stepsize_controller=diffrax.PIDController(1e-3, 1e-3),
            max_steps=16,
        )
        return solved.ys[-1] @ w[1]

    known = {"batch": "the solver's own numbers, which are of no example, are rows too"}
    return Row(
        net,
        (normal(6, 6) / 2, normal(6, 3)),
        VECTORS,
        "finite",
        ("lrp", "deep_lift"),
        relaxed=True,
        known=known,
    )


ROWS = {
    "linen_mlp": lambda: linen(LinenMLP(), VECTORS),
    "linen_cnn": lambda: linen(LinenCNN(), IMAGES, cam=("Conv_1", -1)),
    "linen_resnet": lambda: linen(LinenResNet(), IMAGES, "finite", cam=("last", -1)),
    "linen_transformer": lambda: linen(
        LinenTransformer(),
        SERIES,
        "finite",
    ),
    "nnx_cnn": lambda: Row(
        *jaxviz.from_nnx(NNXCNN(nnx.Rngs(0))), IMAGES, "finite", cam=("conv", -1)
    ),
    "nnx_rnn": lambda: Row(*jaxviz.from_nnx(NNXRNN(nnx.Rngs(0))), SERIES, "finite"),
    "nnx_scan": lambda: Row(*jaxviz.from_nnx(NNXScan(nnx.Rngs(0))), VECTORS),
    "nnx_transformer": lambda: Row(
        *jaxviz.from_nnx(NNXTransformer(nnx.Rngs(0))),
        SERIES,
        "finite",
    ),
    "equinox_mlp": equinox_mlp,
    "equinox_cnn": equinox_cnn,
    "haiku_resnet": haiku_resnet,
    "keras_nested": lambda: keras(keras_nested, IMAGES, "finite"),
    "keras_attention": lambda: keras(
        keras_attention,
        SERIES,
        "finite",
    ),
    "keras_lstm": lambda: keras(keras_lstm, SERIES, "finite"),
    "diffrax_adaptive": diffrax_ode,
}
