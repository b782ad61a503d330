"""Layers and neurons along a path, permuted features, maps of low frequency: Captum and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from small_net import close

import jaxviz as jv

CAPTUM = 1e-6  # its step sizes and points are of single precision
NEURON = (2, 3, 5)  # row, column, channel
KEY = jax.random.key(7)  # as in tests/reference/draw_cam_inputs.py


@functools.cache
def peers(name):
    with np.load(small_net.FOLDER / name) as file:
        return dict(file)


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield small_net.inputs(jnp.float64)


def explain(function, double, *, classes=True, **options):
    params, x, target, *_ = double
    return function(small_net.apply_fn, params, x, *([target] if classes else []), **options)


def test_conductance_is_captums_for_every_rule(double):
    theirs, baseline = peers("cam_peers.npz"), double[3]
    steps = {"layer": "conv2", "baseline": baseline, "num_steps": 6}
    for rule in ("left", "gausslegendre"):
        out = explain(jv.layer_conductance, double, rule=rule, chunk_size=3, **steps)
        close(out, theirs[f"conductance_{rule}"], CAPTUM)
    out = explain(jv.internal_influence, double, **steps)
    close(out, theirs["influence"], CAPTUM)
    out = explain(jv.neuron_conductance, double, neuron=NEURON, **steps)
    close(out, theirs["neuron_conductance"], CAPTUM)


def test_conductance_is_complete(double):
    params, x, target, baseline, _ = double
    scores = lambda x: np.asarray(small_net.apply_fn(params, x))[np.arange(3), target]
    gained = scores(x) - scores(jnp.broadcast_to(baseline, x.shape))
    where = {"layer": "conv2", "baseline": baseline, "num_steps": 200}
    out = explain(jv.layer_conductance, double, speed="exact", **where)
    np.testing.assert_allclose(out.sum((1, 2, 3)), gained, atol=0.01)  # it has kinks
    # With both ends among the points the differences add up, each met by the slope before it.
    out = explain(jv.layer_conductance, double, rule="trapezoid", **where)
    np.testing.assert_allclose(out.sum((1, 2, 3)), gained, atol=0.05)


def test_a_smooth_net_by_hand():
    """f = (sum of tanh w x)^2 / 2: the integrals in NumPy, on a fine grid."""
    w, x = np.array([[0.5, -1.0], [1.5, 0.7]]), np.array([[1.0, -2.0]])
    net = lambda w, x: jnp.tanh(x @ w).sum(1, keepdims=True) ** 2 / 2
    t = (np.arange(20000) + 0.5) / 20000
    rate = x @ w  # of the sums; along the path from 0
    h = np.tanh(t[:, None] * rate)
    flow = h.sum(1, keepdims=True) * (1 - h**2) * rate  # df/dh_j dh_j/dt
    w, x = jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32)
    layer = {"layer": "tanh_0", "num_steps": 20}
    out = jv.layer_conductance(net, w, x, speed="exact", **layer)
    np.testing.assert_allclose(out[0], flow.mean(0), rtol=1e-5)
    np.testing.assert_allclose(out.sum(), np.tanh(rate).sum() ** 2 / 2, rtol=1e-5)
    found = jv.neuron_conductance(net, w, x, neuron=1, **layer)
    np.testing.assert_allclose(found.sum(), flow.mean(0)[1], rtol=1e-5)
    np.testing.assert_allclose(
        jv.internal_influence(net, w, x, **layer)[0], [h.sum(1).mean()] * 2, rtol=1e-5
    )


def test_captums_layers_and_neurons_are_compositions(double):
    theirs, older = peers("cam_peers.npz"), small_net.peers()
    params, x, _, baseline, baselines = double
    head = lambda method: jv.at_neuron(method, "conv2", NEURON)
    # Captum's DeepLIFT is not complete past a maximum: here it meets none.
    out = explain(jv.at_layer(jv.deep_lift, "max_pool_1"), double, baseline=baseline)
    close(out, theirs["layer_deep_lift"], CAPTUM)
    out = explain(jv.at_layer(jv.lrp, "conv2"), double, rules="epsilon")
    close(out, theirs["layer_lrp"], 1e-5)
    early = jv.at_neuron(jv.deep_lift, "relu1", NEURON)
    out = explain(early, double, classes=False, baseline=baseline)
    close(out, theirs["neuron_deep_lift"], CAPTUM)
    out = explain(head(jv.guided_backprop), double, classes=False)
    close(out, theirs["neuron_guided"], 1e-12)
    draw = {"baselines": baselines, "key": KEY, "num_samples": 4}
    out = explain(head(jv.expected_gradients), double, classes=False, **draw)
    close(out, theirs["neuron_gradient_shap"], 1e-9)
    corner = jv.at_neuron(jv.integrated_gradients, "conv2", (0, 0, 5))
    out = corner(small_net.apply_fn, params, x, baseline=baseline, num_steps=11)
    close(out, older["neuron_ig"], CAPTUM)
    assert corner is jv.at_neuron(jv.integrated_gradients, "conv2", (0, 0, 5))
    same = jv.at_neuron(jv.integrated_gradients, "conv2", lambda a: a[:, 0, 0, 5])
    out = same(small_net.apply_fn, params, x, baseline=baseline, num_steps=11)
    close(out, older["neuron_ig"], CAPTUM)


def test_permuted_features_are_captums(double):
    draws = peers("cam_inputs.npz")
    options = {"segments": draws["segments"], "key": KEY, "num_samples": 1}
    out = explain(jv.feature_permutation, double, chunk_size=3, **options)
    close(out, peers("cam_peers.npz")["permutation"][..., 0], 1e-6)
    assert (draws["donors"] != np.arange(3)).all()  # always another example's


def test_permutation_takes_whole_numbers_and_pytrees():
    """A linear net: what is lost is weight times the mean difference to the others."""
    x = {"ids": np.array([[0, 2], [1, 1]], np.int32), "size": np.array([[3.0], [5.0]], np.float32)}
    table = jnp.array([0.0, 1.0, 4.0], jnp.float32)
    net = lambda table, x: table[x["ids"]].sum(1, keepdims=True) + 2 * x["size"]
    segments = {"ids": np.array([0, 1]), "size": np.array([2])}
    found = jv.feature_permutation(net, table, x, key=KEY, segments=segments, num_samples=2)
    np.testing.assert_allclose(found["ids"], [[-1, 3], [1, -3]])  # of two there is one other
    np.testing.assert_allclose(found["size"], [[-4], [4]])


def test_low_passed_is_the_filter_in_numpy(double):
    params, x, target, *_ = double
    sigma = 40.0
    out = explain(jv.low_passed(jv.gradient, sigma=sigma), double)
    maps = np.asarray(jv.gradient(small_net.apply_fn, params, x, target))
    f = np.fft.fftfreq(12)
    kept = np.hypot(f[:, None], f[None, :]) <= sigma / 224
    assert 1 < kept.sum() < 144
    waves = np.fft.fft2(maps, axes=(1, 2)) * kept[None, :, :, None]
    close(out, np.real(np.fft.ifft2(waves, axes=(1, 2))), 1e-10)
    first = lambda params, x: small_net.apply_fn(params, jnp.moveaxis(x, 1, -1))
    moved = jnp.moveaxis(x, -1, 1)
    turned = jv.low_passed(jv.gradient, sigma=sigma)(first, params, moved, target)
    close(turned, np.moveaxis(np.asarray(out), -1, 1), 1e-10)


def test_errors_say_what_to_do(double):
    with pytest.raises(ValueError, match=r"^neuron_conductance: neuron must be .*\(6, 6, 8\).*9"):
        explain(jv.neuron_conductance, double, layer="conv2", neuron=(0, 0, 9))
    neuron = jv.at_neuron(jv.gradient, "conv2", 3)
    with pytest.raises(ValueError, match=r"^at_neuron.*neuron must be an index for each axis"):
        explain(neuron, double, classes=False)
    whole = jv.at_neuron(jv.gradient, "conv2", lambda a: a.sum())
    with pytest.raises(ValueError, match=r"^at_neuron.*: neuron, a function, .*made \(\) of"):
        explain(whole, double, classes=False)
    with pytest.raises(ValueError, match=r"^at_neuron\(gradient\): target must be left out"):
        explain(neuron, double)
    with pytest.raises(TypeError, match=r"^at_neuron: method must be an explanation"):
        jv.at_neuron(len, "conv2", 3)
    net, w = lambda w, x: x @ w, jnp.ones((2, 1))
    with pytest.raises(ValueError, match=r"^feature_permutation: x must hold two examples"):
        jv.feature_permutation(net, w, jnp.ones((1, 2)), key=KEY)
    with pytest.raises(ValueError, match=r"^low_passed.*maps \[N, \*space\]"):
        jv.low_passed(jv.gradient)(net, w, jnp.ones((1, 2)), 0)
