"""Rule-based methods on whatever users write: the nets that peers refuse or get silently wrong."""

import functools
import os
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxviz as jv

METHODS = {
    "guided_backprop": jv.guided_backprop,
    "deconvnet": jv.deconvnet,
    "lrp": jv.lrp,
    "lrp_gamma": functools.partial(jv.lrp, rules=jv.rules.epsilon_gamma_box(-3.0, 3.0)),
    "deep_lift": jv.deep_lift,
    "reveal_cancel": functools.partial(jv.deep_lift, rule="reveal_cancel"),
}
# One of each kind: a rule for single operations, one for folded layers, one for differences.
KINDS = ("guided_backprop", "lrp", "deep_lift")
each_kind = pytest.mark.parametrize("name", KINDS)


def weights(seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    return {
        "conv": 0.5 * jax.random.normal(keys[0], (3, 3, 2, 4)),
        "bias": 0.1 * jax.random.normal(keys[1], (4,)),
        "mix": 0.4 * jax.random.normal(keys[2], (1, 1, 4, 4)),
        "dense": 0.3 * jax.random.normal(keys[3], (16, 3)),
    }


X = jax.random.normal(jax.random.key(8), (3, 4, 4, 2))
TARGET = jnp.array([2, 0, 1])


def conv(kernel, x):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def avg_pool(x, size):
    window = (1, size, size, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / size**2


def twin(w, x, relu=jax.nn.relu):
    """The hand-written one of the four twins."""
    h = relu(conv(w["conv"], x) + w["bias"][None, None, None])
    h = nn.max_pool(h, (2, 2), (2, 2))
    h = relu(conv(w["mix"], h) + h)
    return h.reshape(h.shape[0], -1) @ w["dense"]


class LinenTwin(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), name="conv")(x)), (2, 2), (2, 2))
        h = nn.relu(nn.Conv(4, (1, 1), use_bias=False, name="mix")(h) + h)
        return nn.Dense(3, use_bias=False, name="dense")(h.reshape(h.shape[0], -1))


class NNXTwin(nnx.Module):
    def __init__(self, w):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.mix = nnx.Conv(4, 4, (1, 1), use_bias=False, rngs=rngs)
        self.dense = nnx.Linear(16, 3, use_bias=False, rngs=rngs)
        self.conv.kernel[...], self.conv.bias[...] = w["conv"], w["bias"]
        self.mix.kernel[...], self.dense.kernel[...] = w["mix"], w["dense"]

    def __call__(self, x):
        h = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), (2, 2))
        h = nnx.relu(self.mix(h) + h)
        return self.dense(h.reshape(h.shape[0], -1))


def equinox_twin(w):
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        mix: eqx.nn.Conv2d
        pool: eqx.nn.MaxPool2d
        dense: eqx.nn.Linear

        def __call__(self, x):  # one example, channels last outside and first inside
            h = self.pool(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))))
            h = jax.nn.relu(self.mix(h) + h)
            return self.dense(jnp.moveaxis(h, 0, -1).ravel())

    net = Net(
        eqx.nn.Conv2d(2, 4, 3, padding=1, key=key),
        eqx.nn.Conv2d(4, 4, 1, use_bias=False, key=key),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Linear(16, 3, use_bias=False, key=key),
    )
    order = lambda a: jnp.transpose(a, (3, 2, 0, 1))
    values = (order(w["conv"]), w["bias"][:, None, None], order(w["mix"]), w["dense"].T)
    where = lambda n: (n.conv.weight, n.conv.bias, n.mix.weight, n.dense.weight)
    arrays, rest = eqx.partition(eqx.tree_at(where, net, values), eqx.is_array)
    return lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x), arrays


@functools.cache
def of_twin(name):
    """The explanation that all spellings of the one net must have."""
    return METHODS[name](twin, weights(), X, TARGET)


@each_kind
def test_linen_nnx_equinox_and_hand_written_twins_agree(name):
    w, method = weights(), METHODS[name]
    expected = of_twin(name)
    linen = {
        "conv": {"kernel": w["conv"], "bias": w["bias"]},
        "mix": {"kernel": w["mix"]},
        "dense": {"kernel": w["dense"]},
    }
    twins = [
        (LinenTwin().apply, {"params": linen}),
        jv.from_nnx(NNXTwin(w)),
        equinox_twin(w),
    ]
    for apply_fn, params in twins:
        out = method(apply_fn, params, X, TARGET)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)


shared_relu = jax.jit(lambda x: jnp.maximum(x, 0))


class InsideTheCall(nn.Module):
    """Modules made inside the call, an activation object used at every place."""

    @nn.compact
    def __call__(self, x):
        act = nn.relu
        for features in (4, 4):
            x = act(nn.Conv(features, (3, 3))(x))
        return nn.Dense(3)(act(x.mean((1, 2))))


class Bottleneck(nn.Module):
    """The block of a ResNet-50: 1x1, 3x3, 1x1, batch norm, projection, ReLU after the sum."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        y = nn.relu(norm()(nn.Conv(self.features, (1, 1), use_bias=False)(x)))
        steps = (self.stride, self.stride)
        y = nn.relu(norm()(nn.Conv(self.features, (3, 3), steps, use_bias=False)(y)))
        y = norm()(nn.Conv(2 * self.features, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(2 * self.features, (1, 1), steps, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = Bottleneck(2)(x)  # keeps the shape
        x = Bottleneck(4, 2)(x)  # projects
        return nn.Dense(3)(x.mean((1, 2)))


def linen_case(module):
    return lambda: (module.apply, jax.jit(module.init)(jax.random.key(2), X))


def function_case(f):
    return lambda: (f, weights())


def pooled_after_relu(w, x):
    h = nn.max_pool(jax.nn.relu(conv(w["conv"], x)), (2, 2), (2, 2))
    return h.reshape(h.shape[0], -1) @ w["dense"]


def in_place(w, x):
    h = conv(w["conv"], x)
    h = h.at[:].set(jax.nn.relu(h))
    h = h.at[:, 0].add(0.5).at[:, 1].multiply(2.0).at[:, 2].set(h[:, 3] ** 2)
    h = avg_pool(h, 2)
    return h.reshape(h.shape[0], -1) @ w["dense"]


def adjacent(w, x):
    h = jnp.tanh(jax.nn.relu(jax.nn.relu(conv(w["conv"], x)) - 0.2))
    h = nn.max_pool(jax.nn.sigmoid(h), (2, 2), (2, 2))
    return h.reshape(h.shape[0], -1) @ w["dense"]


def headed(head):
    return lambda w, x: head(twin(w, x))


def upsampled(w, x):
    h = jax.nn.elu(conv(w["conv"], x))
    h = jax.image.resize(h, (h.shape[0], 8, 8, 4), "nearest")
    h = avg_pool(h, 4)
    return h.reshape(h.shape[0], -1) @ w["dense"]


def sliced(w, x):
    h = conv(w["conv"], x)[:, ::2, ::2]
    h = jax.nn.selu(jnp.pad(h, ((0, 0), (0, 0), (0, 0), (1, 1)))[..., 1:-1])
    return h.reshape(h.shape[0], -1) @ w["dense"]


def transformer(w, x):
    h = x.reshape(x.shape[0], 16, 2) @ w["conv"][0, 0]
    h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)
    scores = jax.nn.softmax(jnp.einsum("nic,njc->nij", h, h @ w["mix"][0, 0]))
    h = h + jax.nn.gelu(jnp.einsum("nij,njc->nic", scores, h))
    return h[:, :4].reshape(h.shape[0], -1) @ w["dense"]


def nested(w, x):
    inner = jax.jit(lambda h: jax.jit(shared_relu)(h) * 1.0)
    return twin(w, x, inner)


# What peers raise on, skip silently or get wrong, by the trouble. Captum's and shap's DeepLIFT:
# reused modules (captum #199, #578), functional ReLUs (captum #1082, shap #3938), in-place ones
# (captum #837, shap #3466), ResNet-50 (captum #973, shap #1479), adjacent nonlinearities (captum
# #1104), max pooling (no completeness), softmax heads (a mean over the whole batch), GELU and layer
# norm (shap #3438), slices (shap #1406). Graph surgery: models in models (tf-keras-vis #36). LRP:
# softmax heads (innvestigate #112), ELU and upsampling (captum #1232, #712), skips (captum #143).
TROUBLES = {
    "in-place operations": function_case(in_place),
    "ResNet-50 topology": linen_case(ResNet()),
    "adjacent nonlinearities": function_case(adjacent),
    "max pooling after ReLU": function_case(pooled_after_relu),
    "modules made inside the call": linen_case(InsideTheCall()),
    "softmax head": function_case(headed(jax.nn.softmax)),
    "sigmoid head": function_case(headed(jax.nn.sigmoid)),
    "upsampling and ELU": function_case(upsampled),
    "strided slice, pad, SELU": function_case(sliced),
    "layer norm, GELU, attention": function_case(transformer),
}
SPELLINGS = {
    "one ReLU at many places": functools.partial(twin, relu=shared_relu),
    "functional ReLU": functools.partial(twin, relu=lambda x: jnp.maximum(x, 0)),
    "ReLU in place": functools.partial(twin, relu=lambda x: x.at[:].set(jax.nn.relu(x))),
    "model in a model, compiled": nested,
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_nets_that_peers_refuse_or_get_wrong(trouble):
    f, params = TROUBLES[trouble]()

    @jax.jit
    def explained(params):
        found = [METHODS[name](f, params, X, TARGET) for name in KINDS]
        return *found, f(params, X) - f(params, 0 * X)

    guided, relevance, shares, gained = explained(params)
    for out in (guided, relevance, shares):
        assert np.isfinite(out).all()
        assert np.abs(out).max() > 0
    # Nothing is lost, nothing skipped.
    expected = np.asarray(gained)[np.arange(3), np.asarray(TARGET)]
    # float32; with layer norm the baseline has no variance
    np.testing.assert_allclose(shares.sum((1, 2, 3)), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_one_net_have_one_explanation(spelling):
    f, w = SPELLINGS[spelling], weights()
    found = jax.jit(lambda w: [METHODS[name](f, w, X, TARGET) for name in KINDS])(w)
    for name, out in zip(KINDS, found, strict=True):
        np.testing.assert_allclose(out, of_twin(name), rtol=1e-4, atol=1e-6, err_msg=name)


@each_kind
def test_jit_and_vmap_over_classes(name):
    w, method = weights(), METHODS[name]
    by_class = jax.jit(jax.vmap(lambda k: method(twin, w, X, k)))(jnp.arange(3))
    for k in range(3):
        expected = method(twin, w, X, jnp.full(3, k))
        np.testing.assert_allclose(by_class[k], expected, rtol=1e-4, atol=1e-6)


@each_kind
def test_gradient_of_an_explanation(name):  # against central differences
    with jax.enable_x64(True):
        w = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), weights())
        x = jnp.asarray(np.asarray(X), jnp.float64)
        number = jax.jit(lambda x: (METHODS[name](twin, w, x, TARGET) ** 2).sum())
        direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
        h = 1e-6
        slope = (number(x + h * direction) - number(x - h * direction)) / (2 * h)
        found = (jax.jit(jax.grad(number))(x) * direction).sum()
        np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*KINDS, "reveal_cancel"])
def test_bfloat16(name):
    w = jax.tree.map(lambda a: a.astype(jnp.bfloat16), weights())
    out = METHODS[name](twin, w, X.astype(jnp.bfloat16), TARGET)
    assert out.dtype == jnp.bfloat16
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (w, X.astype(jnp.bfloat16)))
    expected = METHODS[name](twin, *wide, TARGET)
    error = np.abs(np.asarray(out, np.float32) - expected).max() / np.abs(expected).max()
    assert error < 0.1  # 8 bits; a winner or a sign may turn


def test_a_mesh_of_eight_devices_gives_the_same():
    script = textwrap.dedent(
        """
        import jax, numpy as np, jax.numpy as jnp
        import test_propagation as t
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("n",))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("n"))
        x, target = jnp.tile(t.X[:1], (16, 1, 1, 1)) * jnp.arange(16.0)[:, None, None, None], 1
        w = t.weights()
        for name in t.KINDS:
            out = t.METHODS[name](t.twin, w, jax.device_put(x, rows), target)
            assert len(out.sharding.device_set) == 8, (name, out.sharding)
            expected = t.METHODS[name](t.twin, w, x, target)
            np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        print("same", len(jax.devices()))
        """
    )
    folder = os.path.dirname(__file__)
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([folder, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert "same 8" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["lrp", "deep_lift"])
def test_new_data_does_not_retrace(name):
    traces = []

    def counted(w, x):
        traces.append(1)
        return twin(w, x)

    METHODS[name](counted, weights(), X, TARGET)
    first = len(traces)
    METHODS[name](counted, weights(1), X + 1, TARGET[::-1])
    assert len(traces) == first
    assert first < 8


def test_projection_goes_back_through_the_switches():
    """One pooled pixel: its value goes to the winner's place, through the transposed filter."""
    kernel = jnp.array([1.0, 2.0, -1.0]).reshape(1, 3, 1, 1)
    x = jnp.array([0.0, 1.0, 3.0, 0.0, 0.0, 2.0]).reshape(1, 1, 6, 1)

    def f(w, x):
        h = jax.nn.relu(conv(w, x))  # filter slides: [0, 0, 7, 3, 0, 4] kept where positive
        return nn.max_pool(h, (1, 2), (1, 2))

    before = np.array([-1.0, -1.0, 7.0, 3.0, -2.0, 4.0])
    np.testing.assert_allclose(conv(kernel, x).ravel(), before)
    out = jv.feature_projection(f, kernel, x, layer="max_pool_0", channel=0)
    np.testing.assert_allclose(out.ravel(), [0, 7, 14, -7, 0, 0])
    whole = jv.feature_projection(f, kernel, x, layer="max_pool_0", channel=0, strongest=False)
    np.testing.assert_allclose(whole.ravel(), [0, 7, 14, -7, 4, 8])


def test_top_projections_find_the_patches():
    """A detector of one 2x2 pattern, planted in some images at known places."""
    pattern = np.array([[1.0, -1.0], [2.0, 1.0]])
    images = np.zeros((10, 8, 8, 1), np.float32)
    places = {3: (2, 4, 1.0), 7: (0, 0, 3.0), 8: (6, 5, 2.0)}
    for n, (i, j, size) in places.items():
        images[n, i : i + 2, j : j + 2, 0] = size * pattern
    w = jnp.asarray(pattern, jnp.float32).reshape(2, 2, 1, 1)

    def f(w, x):
        h = jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(h)

    top = jv.top_projections(f, w, images, layer="relu_0", channel=0, num_images=3, batch_size=4)
    assert top.indices.tolist() == [7, 8, 3]
    np.testing.assert_allclose(top.scores, [21.0, 14.0, 7.0])
    assert top.boxes.tolist() == [[0, 0, 2, 2], [6, 5, 8, 7], [2, 4, 4, 6]]
    assert top.patches.shape == top.projections.shape == (3, 2, 2, 1)
    for k, size in enumerate((3.0, 2.0, 1.0)):
        np.testing.assert_allclose(top.patches[k, :, :, 0], size * pattern)
        np.testing.assert_allclose(top.projections[k, :, :, 0], 7 * size * pattern)
    with pytest.raises(ValueError, match="num_images 1 to M"):
        jv.top_projections(f, w, images, layer="relu_0", channel=0, num_images=11)
    with pytest.raises(ValueError, match=r"channel 0 to C - 1; got 'relu_0' of \('N', 7, 7, 1\)"):
        jv.top_projections(f, w, images, layer="relu_0", channel=1)
