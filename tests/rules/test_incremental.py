"""Evaluating what changes against evaluating all: nets of every kind, windows anywhere."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings, strategies as st
from jax import lax

from jaxviz.attribution.occlusion import occlusion_scores
from jaxviz.graph.flops import node_flops
from jaxviz.graph.hoist import hoist
from jaxviz.graph.rewrite import RuleSet
from jaxviz.graph.trace import trace
from jaxviz.models import CIFARNet, MNISTNetA, MNISTNetB, MNISTNetC, ResNet20
from jaxviz.rules.fast import fast
from jaxviz.rules.incremental import evaluate_changed
from jaxviz.rules.spans import span

slow = pytest.mark.skipif("JAXVIZ_SLOW" not in os.environ, reason="$JAXVIZ_SLOW is not set")


def compare(apply_fn, params, x, window, stride, fill=0.7, tolerance=1e-5):
    """The largest difference between both ways, relative to the largest change of the score."""
    slide = {"window": window, "stride": stride, "fill": fill, "chunk_size": 16}
    both = [
        occlusion_scores(apply_fn, params, x, 1, method=method, **slide)
        for method in ("full", "incremental")
    ]
    whole, local = (np.asarray(b.scores, np.float64) for b in both)
    assert np.isfinite(whole).all()
    assert np.abs(whole - local).max() <= tolerance * np.abs(whole).max()
    # Not all alike, or the test could not fail.
    assert np.ptp(whole) > 1e-3 * np.abs(whole).max()


def variables_of(module, shape, seed=0):
    """Random variables, running statistics and biases among them."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    moved = lambda a: np.abs(a + 0.2 * rng.normal(size=a.shape)).astype(np.float32) + 0.1
    variables = jax.jit(module.init)(jax.random.key(seed + 1), x)
    return jax.tree.map(lambda a: moved(a) if a.ndim == 1 else a, variables), x


@pytest.mark.parametrize(
    ("module", "side", "channels"),
    [
        (MNISTNetA, 28, 1),
        pytest.param(MNISTNetB, 28, 1, marks=slow),
        pytest.param(MNISTNetC, 28, 1, marks=slow),
        (CIFARNet, 32, 3),
        pytest.param(ResNet20, 32, 3, marks=slow),
    ],
)
def test_bundled_nets(module, side, channels):
    net = module()
    variables, x = variables_of(net, (2, side, side, channels))
    compare(net.apply, variables, x, (7, 5), (6, 5))


class Photographs(nn.Module):
    """The parts of SqueezeNet, ResNet-18 and VGG-16, narrow: stem, fires, blocks, poolings."""

    kind: str

    @nn.compact
    def __call__(self, x):
        conv = lambda x, n, k, s=1, p="SAME": nn.Conv(n, (k, k), s, padding=p)(x)
        if self.kind == "squeeze":
            x = nn.relu(conv(x, 8, 3, 2, "VALID"))
            for width in (2, 3):
                x = nn.max_pool(x, (3, 3), (2, 2))
                x = nn.relu(conv(x, width, 1))
                x = nn.relu(jnp.concatenate([conv(x, 2 * width, 1), conv(x, 2 * width, 3)], -1))
            return jnp.tanh(conv(x, 5, 1)).mean((1, 2))
        if self.kind == "residual":
            norm = lambda x: nn.BatchNorm(use_running_average=True)(x)
            x = nn.relu(norm(conv(x, 6, 7, 2, ((3, 3), (3, 3)))))
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            for width, stride in ((6, 1), (8, 2)):
                y = norm(conv(nn.relu(norm(conv(x, width, 3, stride))), width, 3))
                x = nn.relu(y + (norm(conv(x, width, 1, stride)) if stride > 1 else x))
            return nn.Dense(5)(x.mean((1, 2)))
        for widths in ((4, 4), (6, 6), (8,)):
            for width in widths:
                x = nn.relu(conv(x, width, 3))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(5)(nn.relu(nn.Dense(9)(x.reshape(x.shape[0], -1))))


@pytest.mark.parametrize("kind", [pytest.param("squeeze", marks=slow), "residual", "plain"])
def test_topologies_of_photograph_nets(kind):
    net = Photographs(kind)
    variables, x = variables_of(net, (1, 64, 49, 3))
    compare(net.apply, variables, x, (9, 8), (8, 7))


def pieces(x, w):
    """What else nets are made of; every value depends on the changed stretch."""
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    place = jnp.linspace(-1, 1, x.shape[1])[None, :, None, None]
    x = conv(x, w["grouped"], (1, 1), "SAME", feature_group_count=2) + place
    x = conv(x, w["square"], (1, 1), ((2, 1), (0, 3)), rhs_dilation=(2, 1))
    x = nn.gelu(x) + nn.leaky_relu(x) * jax.nn.sigmoid(x)
    x = jnp.where(x > 0.1, x, 0.3 * x)
    x = nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x)  # over channels: local
    x = jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 1)))
    pads = ((0, 0), (1, 0), (0, 0), (0, 0))
    sums = lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 1, 1, 1), pads)
    x = sums - jnp.clip(x[:, :-1, 1:], -1, 1)
    x = x.transpose(0, 3, 1, 2)  # channels first from here
    x = x[:, :, 1::2, ::3]
    x = x.reshape(x.shape[0], 1, *x.shape[1:])[:, 0]
    x = jnp.einsum("nchw,cd->nhwd", x, w["mix"])
    gate = jax.nn.softmax(x, -1)
    return (x * gate).mean((1, 2)) * x.max((1, 2))


def test_all_other_parts():
    rng = np.random.default_rng(0)
    shapes = {"grouped": (3, 3, 1, 4), "square": (2, 3, 4, 4), "mix": (5, 3)}
    # The norm of rows that hardly differ makes single precision's last digits larger. Flax's reads
    # its own type beside theirs.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        w = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
        x = jnp.asarray(rng.normal(size=(2, 17, 20, 2)))
        compare(lambda w, x: pieces(x, w), w, x, (3, 4), (3, 2), tolerance=1e-13)


def test_loops_branches_and_attention_are_evaluated_whole():
    def net(w, x):
        x = lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=2)[0]
        x = lax.cond(w[0, 0] > 100, lambda x: x, lambda x: 2 * x, x)
        x = lax.fori_loop(0, 2, lambda i, x: x + 0.1 * i.astype(x.dtype), x)
        rows = x.reshape(x.shape[0], -1, 3)
        return (
            jax.nn.softmax(rows @ rows.swapaxes(1, 2), -1).sum(1)[:, :4] @ jnp.ones((4, 2))
            + x.sum((1, 2))[:, :2]
        )

    w = jax.random.normal(jax.random.key(0), (3, 3))
    compare(net, w, jax.random.normal(jax.random.key(1), (2, 5, 6, 3)), (2, 2), (2, 2))


def test_functions_with_their_own_derivative_are_looked_into():
    @jax.custom_vjp
    def own(x):
        return x * jax.nn.relu(x)

    own.defvjp(lambda x: (own(x), x), lambda x, g: (g * x,))
    net = lambda w, x: jax.checkpoint(lambda x: own(x @ w))(x).sum((1, 2))
    compare(net, jnp.eye(2), jax.random.normal(jax.random.key(1), (2, 6, 6, 2)), (2, 3), (2, 3))


layer = st.one_of(
    st.tuples(
        st.just("conv"),
        st.sampled_from([1, 2, 3, 5]),  # size
        st.sampled_from([1, 1, 2, 3]),  # stride
        st.sampled_from([1, 1, 2]),  # dilation
        st.sampled_from(["SAME", "VALID", ((0, 2), (3, 1))]),
    ),
    st.tuples(
        st.sampled_from(["max_pool", "sum_pool"]),
        st.sampled_from([2, 3]),
        st.sampled_from([1, 2, 3]),
        st.sampled_from(["SAME", "VALID"]),
    ),
    st.tuples(st.sampled_from(["residual", "concatenate", "slice"])),
)


def run(layers, kernels, x):
    """A net of these layers; those that the map is too small for are left out."""
    for (kind, *options), kernel in zip(layers, kernels, strict=True):
        side = min(x.shape[1:3])
        if kind == "conv":
            size, stride, dilation, padding = options
            if (size - 1) * dilation < side:
                numbers = ("NHWC", "HWIO", "NHWC")
                geometry = {"rhs_dilation": (dilation,) * 2, "dimension_numbers": numbers}
                kernel = kernel[:size, :size]
                x = lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, **geometry)
                x = jax.nn.relu(x + 0.1)
        elif kind in ("max_pool", "sum_pool"):
            size, stride, padding = options
            if size <= side:
                window = ((1, size, size, 1), (1, stride, stride, 1), padding)
                start, combine = (-jnp.inf, lax.max) if kind == "max_pool" else (0.0, lax.add)
                x = lax.reduce_window(x, start, combine, *window)
        elif kind == "residual":
            shifted = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))[:, :-1, :-1]
            x = x + jnp.tanh(shifted)
        elif kind == "concatenate":
            x = jnp.concatenate([x, x[..., ::-1] ** 2], -1)[..., :3]
        elif side > 3:
            x = x[:, 1::2, ::3]
    weight = jnp.cos(jnp.arange(x[0].size, dtype=x.dtype)).reshape(x.shape[1:])
    return jnp.stack([x.max((1, 2, 3)), (x * weight[None]).mean((1, 2, 3))], 1)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    layers=st.lists(layer, min_size=1, max_size=4),
    window=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    shape=st.tuples(st.integers(9, 16), st.integers(9, 16)),
    seed=st.integers(0, 99),
)
def test_random_nets(layers, window, stride, shape, seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(1, *shape, 3)).astype(np.float32))
    kernels = [jnp.asarray(rng.normal(size=(5, 5, 3, 3)).astype(np.float32)) / 3 for _ in layers]
    stride = tuple(min(s, w) for s, w in zip(stride, window, strict=True))
    compare(functools.partial(run, layers), kernels, x, window, stride)


def test_only_what_depends_on_the_place_is_in_the_loop():
    kernel = jnp.ones((3, 3, 4, 4))
    numbers = ("NHWC", "HWIO", "NHWC")

    def net(kernel, x):
        for _ in range(2):
            x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return x.sum((1, 2))

    x = jnp.ones((1, 64, 64, 4))

    def local(k):
        rows, columns = (span(np.array([8, 16]), np.array([8, 8]), 64, k) for _ in range(2))
        spans = (None, rows, columns, None)
        return evaluate_changed(net, kernel, x, jnp.zeros((1, 8, 8, 4)), spans)

    changes = hoist(local, jax.ShapeDtypeStruct((), jnp.int32))
    # By hand: 10 x 10 and 12 x 12 outputs, 2 * 9 * 4 FLOPs for each of 4 channels; and the sum.
    convolutions = (10**2 + 12**2) * 2 * 9 * 4 * 4
    few = changes.flops - convolutions - (64**2 - 1) * 4  # for finding the place
    assert 0 <= few < 100
    whole = x.at[:, 16:24, 16:24].set(0)
    np.testing.assert_allclose(changes.prepare()[0](jnp.int32(1)), net(kernel, whole), rtol=1e-6)


def in_the_loop(net, params, x, size, at=1):
    """What `hoist` says of `net` with a square of ones that begins at 0, 2 or at the end."""
    side = x.shape[1]
    starts = np.array([0, 2, side - size])

    def local(k):
        rows, columns = (span(starts, np.full(3, size), side, k) for _ in range(2))
        part = jnp.ones((len(x), size, size, x.shape[-1]), x.dtype)
        return evaluate_changed(net, params, x, part, (None, rows, columns, None))

    changes = hoist(local, jax.ShapeDtypeStruct((), jnp.int32), fast)
    begin = int(starts[at])
    whole = x.at[:, begin : begin + size, begin : begin + size].set(1)
    return changes, changes.prepare()[0](jnp.int32(at)), net(params, whole)


on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="measured on a CPU alone")


@on_cpu
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (3, 1))])
@pytest.mark.parametrize("numbers", [("NHWC", "HWIO", "NHWC"), ("NHWC", "OIHW", "NCHW")])
def test_a_small_change_is_convolved_by_its_difference(padding, numbers, at):
    def net(kernel, x):
        return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)

    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 8))
    shape = {"H": 3, "W": 3, "I": 8, "O": 9}
    kernel = jax.random.normal(jax.random.key(1), [shape[c] for c in numbers[1]]) / 9
    changes, got, wanted = in_the_loop(net, kernel, x, 4, at)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    # By hand: values at 36 points, products there, what 36 outputs read off them; twice, for two.
    products = 2 * 2 * (36 * 16 * 8 + 36 * 8 * 9 + 36 * 36 * 9)
    assert products <= changes.flops < 1.2 * products
    assert changes.flops < 2 * 2 * 36 * 9 * 8 * 9


@on_cpu
@pytest.mark.parametrize("case", ["dtype", "precision", "size", "channels", "stride", "groups"])
def test_other_changes_are_convolved_as_they_are(monkeypatch, case):
    monkeypatch.setattr("jaxviz.rules.incremental_linear.spread", None)
    dtype = jnp.bfloat16 if case == "dtype" else jnp.float32
    channels = 4 if case == "channels" else 8
    groups = 2 if case == "groups" else 1
    stride = 2 if case == "stride" else 1
    precision = lax.Precision.HIGHEST if case == "precision" else None

    def net(kernel, x):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            precision=precision,
        )

    x = jax.random.normal(jax.random.key(0), (2, 12, 12, channels), dtype)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels // groups, 8), dtype) / 9
    _, got, wanted = in_the_loop(net, kernel, x, 5 if case == "size" else 4)
    tolerance = 1e-2 if case == "dtype" else 1e-6
    np.testing.assert_allclose(np.float32(got), np.float32(wanted), atol=tolerance)


def test_a_change_of_some_channels_is_convolved_too():
    def net(kernel, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.tanh(y).mean((1, 2))

    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 8))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 8))
    compare(net, kernel, x, (4, 3, 5), (4, 3, 3))


@on_cpu
@pytest.mark.parametrize("rows", [8, 1])
def test_of_a_flattened_image_only_the_changed_weights_are_read(rows):
    def net(w, x):
        return x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ w

    x = jax.random.normal(jax.random.key(0), (rows, 12, 12, 3))
    w = jax.random.normal(jax.random.key(1), (12 * 12 * 3, 7)) / 20
    # Two sums of the same products in different orders; XLA's order differs between versions.
    rounding = 4 * np.finfo(np.float32).eps * float(net(jnp.abs(w), jnp.abs(x)).max())
    for at in range(3):
        changes, got, wanted = in_the_loop(net, w, x, 4, at)
        np.testing.assert_allclose(got, wanted, atol=rounding)
    read = 4 * 4 * 3 if rows == 8 else 12 * 12 * 3  # for one row cutting out would cost more
    assert 2 * rows * read * 7 <= changes.flops < 1.3 * 2 * rows * read * 7


@on_cpu
def test_gradients_through_differences_are_those_of_the_whole_net():
    def net(w, x):
        convolved = lax.conv_general_dilated(
            x, w["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(convolved).reshape(len(x), -1) @ w["dense"]

    rng = np.random.default_rng(0)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x = drawn(8, 14, 14, 8)
    w = {"kernel": drawn(3, 3, 8, 8) / 9, "dense": drawn(14 * 14 * 8, 3) / 9}
    loss = lambda way: lambda w, x: (in_the_loop(net, w, x, 4)[1 + way] ** 2).sum()
    local, whole = (jax.jit(jax.grad(loss(way), (0, 1)))(w, x) for way in (0, 1))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-3)
    jax.tree.map(close, local, whole)


def test_what_is_computed_once_is_replaced_as_well():
    pooled = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")
    x = jnp.arange(16.0).reshape(4, 4)
    argument = jax.ShapeDtypeStruct((), jnp.float32)
    changes = hoist(lambda k: k * pooled(x), argument, RuleSet("twice", _twice_as_much))
    assert changes.prepare()[0](jnp.float32(1)).tolist() == [[10, 14], [26, 30]]


_twice_as_much = {"reduce_window_max": lambda op: lambda x: 2 * op.evaluate(x)}


def test_auto_takes_the_cheaper_way():
    """Where a window's neighbourhood is the whole image, nothing is to be gained."""

    def flops(size, method):
        def net(kernel, x):
            numbers = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=numbers
            ).sum((1, 2))

        kernel, x = jnp.ones((5, 5, 2, 8)), jnp.ones((1, 16, 16, 2))
        slide = {"window": (size, size), "stride": (size, size), "method": method}
        program = trace(lambda k, x: occlusion_scores(net, k, x, 0, **slide), kernel, x).program
        return sum(node_flops(program, node) for node in program.nodes)

    assert flops(2, "auto") == flops(2, "incremental") < flops(2, "full") / 2
    assert flops(12, "auto") == pytest.approx(flops(12, "full"), rel=1e-3)  # and asking where
