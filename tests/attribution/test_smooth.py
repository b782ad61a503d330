"""Wrappers of any method: against Captum, against plain loops, and by what they promise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from small_net import close

from jaxviz.attribution.cam import grad_cam, grad_cam_pp
from jaxviz.attribution.gradient import gradient, saliency
from jaxviz.attribution.path import expected_gradients, integrated_gradients
from jaxviz.attribution.smooth import augmented, smooth_grad, square_grad, var_grad

WRAPPERS = {"smoothgrad": smooth_grad, "smoothgrad_sq": square_grad, "vargrad": var_grad}
curved = lambda w, x: jnp.tanh(x @ w) ** 2


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_agree_with_captum(kind):  # the same draws handed to both
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        method = WRAPPERS[kind](gradient, num_samples=4, noise_scale=0.15)
        out = method(small_net.apply_fn, params, x, target, key=jax.random.key(7))
        close(out, small_net.peers()[kind], 1e-12)


@pytest.mark.parametrize(
    ("wrapper", "chunk_size"), [(smooth_grad, 1), (square_grad, 5), (var_grad, 3)]
)
def test_wrappers_agree_with_a_loop(wrapper, chunk_size):
    x = jax.random.normal(jax.random.key(0), (3, 4))
    w, key = jax.random.normal(jax.random.key(1), (4, 2)), jax.random.key(5)
    maps = []
    for k in range(5):
        noise_key = jax.random.fold_in(jax.random.fold_in(key, k), 0)
        spread = 0.2 * (x.max(1, keepdims=True) - x.min(1, keepdims=True))
        noisy = x + spread * jax.random.normal(noise_key, x.shape)
        maps.append(np.asarray(gradient(curved, w, noisy, 1), np.float64))
    maps = np.stack(maps)
    expected = {
        "smooth_grad": maps.mean(0),
        "square_grad": (maps**2).mean(0),
        "var_grad": maps.var(0),
    }
    out = wrapper(gradient, num_samples=5, noise_scale=0.2, chunk_size=chunk_size)(
        curved, w, x, 1, key=key
    )
    chex.assert_trees_all_close(out, expected[wrapper.__name__], rtol=1e-4, atol=1e-6)


def test_variance_keeps_its_digits_beside_a_large_mean():
    # The gradient is 1000 + noise: E[a^2] - E[a]^2 in float32 would be off by about 0.1.
    f = lambda _, x: 1000 * x + x**2 / 2
    method = var_grad(gradient, num_samples=400, noise_scale=1.0)
    x = jnp.array([[0.0, 1.0]])
    out = method(f, None, x, 0, key=jax.random.key(0))
    # Noise of variance 1; the sample variance of 400 has a standard error of 0.07.
    assert abs(out[0, 0] - 1) < 0.25


def test_any_method_and_its_options_pass_through():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    net, key = small_net.apply_fn, jax.random.key(0)
    quiet = functools.partial(smooth_grad, num_samples=2, noise_scale=0.0)
    options = {"layer": "relu2", "relu": False}
    out = quiet(grad_cam_pp)(net, params, x, target, key=key, **options)
    chex.assert_trees_all_close(
        out, grad_cam_pp(net, params, x, target, **options), rtol=1e-5, atol=1e-7
    )
    w, x = jnp.arange(8.0).reshape(4, 2) / 8, jnp.ones((3, 4))
    options = {"baseline": jnp.full(4, 0.5), "num_steps": 3, "rule": "middle"}
    out = quiet(integrated_gradients)(curved, w, x, 1, key=key, **options)
    close(out, integrated_gradients(curved, w, x, 1, **options), 1e-5)
    # A method that draws, too, gets a key of its own.
    out = quiet(expected_gradients)(curved, w, x, 1, key=key, baselines=0 * x, num_samples=2)
    assert out.shape == x.shape


def test_class_is_chosen_at_the_clean_input():
    f = lambda _, x: jnp.stack([x[:, 0], 1 - x[:, 0]], axis=1)
    x = jnp.array([[0.51, -10.0]])  # a wide range: noise overturns the class at every other draw
    out = smooth_grad(gradient)(f, None, x, key=jax.random.key(0))
    np.testing.assert_allclose(out[0, 0], 1, rtol=1e-6)  # 1/25 added up in another order
    out = augmented(gradient, transforms=((lambda x: -x, lambda a: a),))(f, None, x)
    assert out[0, 0] == 1


def test_equal_wrappers_are_one_and_compile_once():
    assert smooth_grad(saliency) is smooth_grad(saliency)
    assert smooth_grad(saliency, num_samples=3) is smooth_grad(saliency, num_samples=3)
    assert smooth_grad(saliency) is not square_grad(saliency)
    traces = []

    def f(w, x):
        traces.append(1)
        return x @ w

    w, x = jnp.ones((3, 2)), jnp.ones((2, 3))
    smooth_grad(saliency, num_samples=3)(f, w, x, 0, key=jax.random.key(0))
    count = len(traces)
    smooth_grad(saliency, num_samples=3)(f, 2 * w, 3 * x, 1, key=jax.random.key(1))
    assert len(traces) == count


def test_integer_leaves_stay_and_dtypes_are_kept():
    w = jnp.array([[2.0], [3.0]], jnp.bfloat16)
    f = lambda w, x: w[x["token"]] * x["pixel"]
    x = {"pixel": jnp.ones((2, 1), jnp.bfloat16), "token": jnp.array([1, 0])}
    out = smooth_grad(gradient, num_samples=3)(f, w, x, 0, key=jax.random.key(0))
    assert out["pixel"].dtype == jnp.bfloat16
    assert out["pixel"].tolist() == [[3.0], [2.0]]
    assert not out["token"].any()


def test_same_key_same_answer_in_any_chunks():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    w = jax.random.normal(jax.random.key(1), (4, 2))
    outs = []
    for chunk_size in (2, 25, None):
        method = smooth_grad(gradient, chunk_size=chunk_size)
        outs.append(method(curved, w, x, 1, key=jax.random.key(2)))
    chex.assert_trees_all_close(*outs, atol=1e-6)
    other = smooth_grad(gradient)(curved, w, x, 1, key=jax.random.key(3))
    assert jnp.abs(other - outs[0]).max() > 1e-3


def test_augmented_is_the_mean_of_turned_back_maps():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    options = {"layer": "relu2", "relu": False}
    out = augmented(grad_cam)(small_net.apply_fn, params, x, target, **options)
    maps = []
    for gain in (1.0, 0.9, 1.1):
        plain = grad_cam(small_net.apply_fn, params, gain * x, target, **options)
        mirrored = grad_cam(small_net.apply_fn, params, gain * x[:, :, ::-1], target, **options)
        maps += [plain, mirrored[:, :, ::-1]]
    chex.assert_trees_all_close(out, sum(maps) / 6, rtol=1e-4, atol=1e-6)


def test_augmented_mirrors_left_and_right_wherever_the_channels_are():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    first = lambda params, x: small_net.apply_fn(params, jnp.moveaxis(x, 1, -1))
    for method, options in ((gradient, {}), (grad_cam, {"layer": "relu2"})):
        last = augmented(method)(small_net.apply_fn, params, x, target, **options)
        out = augmented(method)(first, params, jnp.moveaxis(x, -1, 1), target, **options)
        out = jnp.moveaxis(out, 1, -1) if out.ndim == 4 else out
        chex.assert_trees_all_close(out, last, rtol=1e-4, atol=1e-6)


def test_errors_say_what_came():
    x, w = jnp.ones((1, 2)), jnp.ones((2, 2))
    with pytest.raises(TypeError, match=r"smooth_grad\(gradient\): needs key"):
        smooth_grad(gradient)(curved, w, x, 0)
    with pytest.raises(ValueError, match=r"num_samples must be at least 1; got 0"):
        smooth_grad(gradient, num_samples=0)
    with pytest.raises(ValueError, match=r"transforms must hold one pair"):
        augmented(gradient, transforms=())
    with pytest.raises(ValueError, match=r"x must be images \[N, H, W, C\].*got \(1, 2\)"):
        augmented(gradient)(curved, w, x, 0)
    cut = ((lambda x: x[:, :1], lambda a: a),)
    with pytest.raises(ValueError, match=r"must keep the shape of x; .*\(1, 1\) of \(1, 2\)"):
        augmented(gradient, transforms=cut)(curved, w, x, 0)


@pytest.mark.parametrize("wrapper", WRAPPERS.values())
def test_an_example_without_a_range_gets_nan_and_no_other_does(wrapper):
    net = lambda w, x: jax.nn.relu(x @ w)  # whose slope is 0 where all of the input is NaN
    w, x = jnp.ones((3, 2)), jnp.array([[1.0, jnp.nan, 2.0], [1.0, 2.0, 3.0]])
    for method in (gradient, saliency):
        found = wrapper(method, num_samples=3)(net, w, x, 0, key=jax.random.key(0))
        assert np.isnan(found[0]).all()
        np.testing.assert_allclose(found[1], 0 if wrapper is var_grad else 1, rtol=1e-6)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -0.1])
def test_noise_is_a_finite_share(scale):
    for wrapper in WRAPPERS.values():
        with pytest.raises(ValueError, match=rf"_grad: noise_scale must be .*; got {scale}"):
            wrapper(gradient, noise_scale=scale)
    x = jnp.ones((1, 2))
    options = {"baselines": x, "key": jax.random.key(0), "noise_scale": scale}
    with pytest.raises(ValueError, match="expected_gradients: noise_scale must be"):
        expected_gradients(curved, jnp.ones((2, 2)), x, 0, **options)


def test_one_sample_has_no_variance():
    with pytest.raises(ValueError, match="var_grad: num_samples must be at least 2; got 1"):
        var_grad(gradient, num_samples=1)
