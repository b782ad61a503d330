"""Settings of JAX that a user may have made: 64 bits, guards of transfers, transforms around."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxviz as jv

KEY = jax.random.key(3)
CELLS = np.arange(16).reshape(4, 4) // 8
W = np.random.default_rng(0).normal(size=(3, 3, 1, 2)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(2, 4, 4, 1)).astype(np.float32)
ROWS = np.abs(X).reshape(8, 4)
DIMS = ("NHWC", "HWIO", "NHWC")


def net(w, x):
    """A convolution refuses an image of another type than its kernel."""
    return jax.nn.relu(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=DIMS)) \
        .mean((1, 2))  # fmt: skip


PAIRS = (X, np.array([0, 1])), (X[:1], np.array([1]))
CALLS = {
    "rise": lambda: jv.rise(net, W, X, 0, num_samples=4, cells=2, key=KEY),
    "trac_in": lambda: jv.influence.trac_in(net, [W, W], *PAIRS),
    "selectivity": lambda: jv.metrics.selectivity(net, W, X, X, 0, window=(2, 2)),
    "sparse_autoencoder": lambda: jv.concepts.sparse_autoencoder(
        ROWS, keep=2, num_units=4, num_steps=2, batch_size=4, key=KEY
    )[0],
    "maximize_activation": lambda: jv.maximize_activation(
        net, W, (4, 4, 1), 0.5 * jv.objectives.logit([0, 1]), key=KEY, num_steps=2,
        transforms=(jv.transforms.rotate(5.0), jv.transforms.jitter(1)), redirected_steps=0,
    ).images,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_nets_of_32_bits_have_the_same_numbers_where_64_are_on(name):
    found = CALLS[name]()
    with jax.enable_x64(True):
        wide = CALLS[name]()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wide), strict=True):
        if hasattr(a, "dtype"):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_guard_of_transfers_finds_arrays_and_not_our_own_numbers():
    w, x = jax.device_put((W, X))
    calls = [
        lambda w, x: jv.saliency(net, w, x, 1),
        lambda w, x: jv.occlusion(net, w, x, 1, window=(2, 2), stride=(2, 2), fill=0.5),
        lambda w, x: jv.feature_ablation(net, w, x, [0, 1], segments=CELLS),
    ]
    for call in calls:
        with jax.transfer_guard("disallow"):
            guarded = call(w, x)
            with pytest.raises(ValueError, match=r"x must be on a device .*device_put\(x\)"):
                call(w, X)
            with pytest.raises(ValueError, match=r"params must be on a device .* float32"):
                call(W, x)
            with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
                jnp.asarray(2)  # it is back
        np.testing.assert_array_equal(guarded, call(W, X))


def test_what_works_on_the_host_says_so_under_a_trace():
    call = lambda a: jv.concepts.nmf(a, num_concepts=2, key=KEY).errors
    with pytest.raises(TypeError, match=r"^nmf: arguments must hold numbers.*Call it outside"):
        jax.jit(call)(ROWS)


def test_arrays_on_explicit_axes_are_explained_as_others_are():
    mesh = jax.make_mesh((1,), ("d",))  # its axes are explicit
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
    w, x, labels = place(W), place(X, "d"), place(np.array([0, 1]), "d")
    assert "@d" in str(jax.typeof(x))
    calls = [
        lambda w, x, labels: jv.guided_backprop(net, w, x, labels),
        lambda w, x, labels: jv.occlusion(net, w, x, labels, window=(2, 2), stride=(2, 2)),
        lambda w, x, labels: jv.at_layer(jv.gradient, "relu_0")(net, w, x, labels),
        lambda w, x, labels: jv.split(net, w, x, "relu_0")[0](w, x)[0],
        lambda w, x, labels: jv.patched(net, layer="relu_0", value=1.0)(w, x),
    ]
    for call in calls:
        wanted = call(W, X, np.array([0, 1]))
        found = call(w, x, labels)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        # Of what runs operation by operation on one device JAX says that device alone.
        assert getattr(found.sharding, "mesh", mesh) == mesh
        with jax.set_mesh(mesh):
            np.testing.assert_allclose(call(w, x, labels) + 0 * found, wanted, rtol=1e-5, atol=1e-6)


def test_no_traced_value_is_kept(checking_leaks):
    with checking_leaks():
        jv.lrp_conservation(lambda w, x: jax.nn.relu(x @ w), ROWS.T, ROWS, 0)
