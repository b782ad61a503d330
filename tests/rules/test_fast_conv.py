"""Convolution kernels against `lax.conv_general_dilated`: values and derivatives of each order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxviz as jv
from jaxviz.rules.kernels_conv import conv, supported

NAMES = (
    "window_strides padding lhs_dilation rhs_dilation dimension_numbers feature_group_count "
    "batch_group_count precision preferred_element_type"
).split()


def both(f, x, kernel):
    """XLA's convolution `f` and ours with the parameters of its equation."""
    params = jax.make_jaxpr(f)(x, kernel).eqns[0].params
    options = {name: params[name] for name in NAMES}
    assert supported(x, kernel, **options)
    return f, functools.partial(conv, **options)


def case(shape, kernel, strides=1, padding="SAME", dilation=1, groups=1, channels_first=False):
    """Arrays in float64 and the two convolutions; channels last unless told."""
    rank = len(shape) - 2
    space = "DHW"[3 - rank :]
    numbers = ("N" + space + "C", space + "IO", "N" + space + "C")
    rng = np.random.default_rng(0)
    x, w = (jnp.array(rng.normal(size=size)) for size in (shape, kernel))
    if channels_first:
        x, w = jnp.moveaxis(x, -1, 1), jnp.moveaxis(w, (-1, -2), (0, 1))
        numbers = ("NC" + space, "OI" + space, "N" + space + "C")
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    f = lambda x, w: lax.conv_general_dilated(
        x,
        w,
        each(strides),
        padding,
        rhs_dilation=each(dilation),
        dimension_numbers=numbers,
        feature_group_count=groups,
    )
    return x, w, *both(f, x, w)


CASES = {
    "few_channels": dict(shape=(2, 7, 8, 1), kernel=(3, 3, 1, 4)),
    "few_channels_strided": dict(shape=(2, 9, 8, 3), kernel=(3, 3, 3, 4), strides=2),
    "few_channels_dilated": dict(shape=(2, 9, 8, 2), kernel=(2, 3, 2, 4), dilation=(1, 2)),
    "one_output": dict(shape=(2, 6, 6, 1), kernel=(3, 3, 1, 1)),
    "stem": dict(shape=(2, 13, 12, 3), kernel=(5, 5, 3, 4), strides=2),
    "stem_large": dict(shape=(2, 17, 16, 2), kernel=(8, 7, 2, 4), strides=2),
    "stem_odd": dict(shape=(2, 19, 17, 2), kernel=(5, 4, 2, 4), strides=(3, 2), padding="VALID"),
    "stem_rows": dict(shape=(2, 17, 16, 1), kernel=(10, 5, 1, 4), strides=(2, 1)),
    "small_map": dict(shape=(2, 7, 6, 5), kernel=(3, 3, 5, 4)),
    "ordinary": dict(shape=(2, 20, 16, 5), kernel=(3, 3, 5, 4)),
    "ordinary_strided": dict(shape=(2, 8, 7, 5), kernel=(3, 2, 5, 4), strides=(2, 3)),
    "ordinary_dilated": dict(shape=(2, 9, 7, 5), kernel=(3, 2, 5, 4), dilation=(2, 3)),
    "wide_padding": dict(shape=(2, 5, 4, 5), kernel=(2, 2, 5, 3), padding=((3, 2), (0, 4))),
    "crop": dict(shape=(2, 9, 9, 5), kernel=(2, 2, 5, 3), padding=((-1, -2), (1, -1))),
    "crop_few": dict(shape=(2, 9, 9, 2), kernel=(2, 2, 2, 3), padding=((-1, -2), (1, -1))),
    "gaps": dict(shape=(2, 9, 9, 2), kernel=(2, 1, 2, 3), strides=(4, 3), padding="VALID"),
    "pointwise": dict(shape=(2, 4, 5, 6), kernel=(1, 1, 6, 3)),
    "pointwise_strided": dict(shape=(2, 5, 6, 6), kernel=(1, 1, 6, 3), strides=(2, 3)),
    "pointwise_padded": dict(shape=(2, 5, 6, 6), kernel=(1, 1, 6, 3), padding=((1, 0), (0, 2))),
    "depthwise": dict(shape=(2, 7, 6, 5), kernel=(3, 3, 1, 5), groups=5),
    "depthwise_strided": dict(shape=(2, 8, 7, 5), kernel=(3, 5, 1, 5), strides=2, groups=5),
    "depthwise_dilated": dict(shape=(2, 9, 9, 4), kernel=(3, 3, 1, 4), dilation=2, groups=4),
    "depthwise_multiplied": dict(shape=(2, 6, 6, 3), kernel=(3, 3, 1, 6), groups=3, strides=2),
    "depthwise_crop": dict(
        shape=(2, 7, 7, 3), kernel=(3, 3, 1, 3), groups=3, padding=((-1, 1), (2, -2))
    ),
    "signal": dict(shape=(2, 9, 5), kernel=(3, 5, 4), strides=2),
    "signal_one_channel": dict(shape=(2, 12, 1), kernel=(9, 1, 4), strides=4),
    "signal_depthwise": dict(shape=(2, 9, 5), kernel=(4, 1, 5), groups=5),
    "volume": dict(shape=(2, 4, 5, 3, 5), kernel=(2, 3, 2, 5, 2)),
    "volume_one_channel": dict(shape=(2, 4, 5, 5, 1), kernel=(2, 2, 2, 1, 3), strides=(1, 2, 2)),
    "volume_depthwise": dict(shape=(2, 4, 5, 3, 2), kernel=(2, 3, 2, 1, 2), groups=2, strides=2),
    "first_ordinary": dict(shape=(2, 7, 6, 5), kernel=(3, 3, 5, 4), channels_first=True),
    "first_depthwise": dict(shape=(2, 7, 6, 4), kernel=(3, 3, 1, 4), groups=4, channels_first=True),
    "first_stem": dict(shape=(2, 13, 12, 3), kernel=(5, 5, 3, 4), strides=2, channels_first=True),
}

KINDS = ["few_channels_strided", "stem_large", "ordinary", "pointwise", "depthwise_strided"]
"""One of each kernel."""


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_xla(name):
    with jax.enable_x64(True):
        x, w, native, ours = case(**CASES[name])

        def both_ways(f, x, w):
            y, back = jax.vjp(f, x, w)
            return y, back(jnp.cos(y))

        theirs, mine = (jax.jit(functools.partial(both_ways, f))(x, w) for f in (native, ours))
        # float64: sums in another order.
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_tangent_second_order_and_vmap_equal_xla(name):
    with jax.enable_x64(True):
        x, w, native, ours = case(**CASES[name])

        def derivatives(f, x, w):
            tangent = jax.jvp(f, (x, w), (jnp.cos(x), jnp.sin(w)))[1]
            score = lambda x, w: jnp.sin(f(x, w)).sum()
            penalty = lambda x, w: (jax.grad(score)(x, w) ** 2).sum()
            many = jax.vmap(jax.grad(score), (0, None))(jnp.stack([x, -x]), w)
            return tangent, jax.grad(penalty, (0, 1))(x, w), many

        theirs, mine = (jax.jit(functools.partial(derivatives, f))(x, w) for f in (native, ours))
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_input_gradient_by_finite_differences(name):
    with jax.enable_x64(True):
        x, w, _, ours = case(**CASES[name])
        v = jnp.array(np.random.default_rng(1).normal(size=x.shape))
        f = jax.jit(lambda x: jnp.sin(ours(x, w)).sum())
        along = float((f(x + 1e-5 * v) - f(x - 1e-5 * v)) / 2e-5)
        # The error of a central difference is of the order of step**2.
        assert float((jax.grad(f)(x) * v).sum()) == pytest.approx(along, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, jnp.bfloat16) for name in KINDS),
        ("small_map", jnp.float16),
        ("small_map", jnp.float32),
    ],
)
def test_dtype_is_kept(name, dtype):
    x, w, native, ours = case(**CASES[name])
    x, w = x.astype(dtype), w.astype(dtype)

    def run(f, x, w):
        y, back = jax.vjp(f, x, w)
        return y, back(jnp.ones_like(y))

    native, ours = both(native, x, w)
    mine, theirs = (jax.jit(functools.partial(run, f))(x, w) for f in (ours, native))
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype == dtype
        # Some last places of the dtype, of sums of up to 150 terms of size 1.
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        scale = 16 * float(jnp.finfo(dtype).eps) * max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=scale, rtol=0)


def test_only_what_is_asked_for_is_differentiated():
    """Explaining pulls nothing back to the kernel: the program does no more than it must."""
    x, w, _, ours = case(**CASES["ordinary"])
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: ours(x, w).sum()))(x)
    assert str(jaxpr).count("conv_general_dilated[") == 2  # forward, and back to the input


def test_refuses_what_it_cannot():
    x, w = jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 2, 4))
    f = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    params = jax.make_jaxpr(f)(x, w).eqns[0].params
    options = {name: params[name] for name in NAMES}
    assert not supported(x, w, **options)
    with pytest.raises(ValueError, match="groups 1 or the input channels"):
        conv(x, w, **options)


def test_gradients_inside_shard_map():
    """Values say over which devices they vary, and so must those of a branch that is never run."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    batch = jax.sharding.PartitionSpec("d")
    w, x = jax.random.normal(jax.random.key(0), (3, 3, 1, 4)), jnp.ones((2, 5, 5, 1))
    dims = ("NHWC", "HWIO", "NHWC")

    def net(w, x):
        h = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.tanh(h).max((1, 2))

    plain = lambda x: jv.gradient(net, w, x, 0)
    mapped = jax.shard_map(plain, mesh=mesh, in_specs=batch, out_specs=batch)
    np.testing.assert_allclose(mapped(x), plain(x), rtol=1e-6)


def test_rules_for_primitives_alone_need_no_numbers_inside_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    batch = jax.sharding.PartitionSpec("d")
    pool = lambda x: jax.lax.reduce_window(
        x * 2.0, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    shared = jv.rewrite(lambda _, x: pool(x).sum((1, 2)), jv.rules.shared_ties)
    slope = jax.grad(lambda x: shared(None, x).sum())
    mapped = jax.shard_map(slope, mesh=mesh, in_specs=batch, out_specs=batch)
    # by hand: of four equal places each has a quarter of 2
    np.testing.assert_allclose(mapped(jnp.ones((2, 4, 4, 1))), np.full((2, 4, 4, 1), 0.5))


def test_what_knows_activations_says_what_it_needs_inside_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    batch, x = jax.sharding.PartitionSpec("d"), jnp.array([[1.0, -2.0], [3.0, 0.5]])
    w = jnp.array([[1.0, -1.0], [0.5, 2.0]])
    net = lambda w, x: jax.nn.relu(x @ w) @ jnp.array([[1.0], [-1.0]])
    for method in (jv.guided_backprop, jv.deep_lift):
        plain = lambda x, method=method: method(net, w, x, 0)
        there = {"mesh": mesh, "in_specs": batch, "out_specs": batch}
        np.testing.assert_allclose(jax.shard_map(plain, check_vma=False, **there)(x), plain(x))
        with pytest.raises(NotImplementedError, match=r"inside shard_map .* check_vma=False"):
            jax.shard_map(plain, **there)(x)
