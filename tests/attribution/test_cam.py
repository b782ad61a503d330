"""Gradient and component CAMs: against Captum and pytorch-grad-cam, by hand, by invariances."""

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from jax.ad_checkpoint import checkpoint_name
from small_net import close

from jaxviz.attribution.cam import (
    cam,
    grad_cam,
    grad_cam_pp,
    guided_grad_cam,
    hires_cam,
    layer_cam,
    shapley_cam,
    xgrad_cam,
)
from jaxviz.attribution.cam_eigen import eigen_cam, eigen_grad_cam
from jaxviz.attribution.gradient import gradient
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.split import activations, split
from jaxviz.parts.feature_maps import default_layer, spatial_stages
from jaxviz.rules.fast import fast

RAW = {"relu": False, "resize": False}


def pooled(params, x):
    """Convolution, ReLU, global average, dense: the net of the CAM paper."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(x).mean((1, 2)) @ params["dense"] + params["bias"][None, :]


def pooled_inputs(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "kernel": jax.random.normal(keys[0], (3, 3, 2, 5)),
        "dense": jax.random.normal(keys[1], (5, 4)),
        "bias": jax.random.normal(keys[2], (4,)),
    }
    return params, jax.random.normal(keys[3], (3, 6, 7, 2))


def test_a_net_of_one_example_under_vmap_has_the_maps_of_the_batch():
    params, x = pooled_inputs()
    of_one = lambda p, x: jax.vmap(lambda x: pooled(p, x[None])[0])(x)  # [N, 1, H, W, C] inside
    assert activations(of_one, params, x, ["relu_0"])["relu_0"].shape == (3, 1, 6, 7, 5)
    for layer in (None, "relu_0"):
        found, wanted = (grad_cam(net, params, x, 1, layer=layer) for net in (of_one, pooled))
        close(found, wanted, 1e-6)


def test_a_transformer_that_reads_its_class_token_is_cut_ahead_of_the_last_attention():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (2, 2), (2, 2), name="patches")(x).reshape(len(x), 6, 8)
            x = jnp.concatenate([jnp.zeros((len(x), 1, 8)), x], 1)
            for i in range(2):  # queries, keys and values are [N, tokens, heads, d]
                attend = nn.MultiHeadDotProductAttention(2, name=f"attention{i}")
                x = x + attend(nn.LayerNorm(name=f"norm{i}")(x))
            return nn.Dense(3)(nn.LayerNorm(name="last")(x)[:, 0])

    net, x = Net(), jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    params = net.init(jax.random.key(1), x)
    assert default_layer(net.apply, params, x) == "norm1"
    assert (jnp.abs(hires_cam(net.apply, params, x, 1, relu=False)).max((1, 2)) > 1e-3).all()


class _Handed(nn.Module):
    """A module that does what it is told."""

    what: Callable = lambda x: x

    @nn.compact
    def __call__(self, x):
        return self.what(x)


@pytest.mark.parametrize(
    ("after", "layer"),
    [
        (nn.Dropout(0.5, deterministic=True), "last"),
        (_Handed(), "last"),
        (_Handed(lambda x: x.astype(jnp.bfloat16).astype(x.dtype)), "last"),
        (_Handed(lambda x: jnp.array(x).reshape(x.shape)), "last"),
        (nn.remat(_Handed)(jax.lax.optimization_barrier), "last"),
        (nn.Sequential([_Handed(), nn.Dropout(0.5, deterministic=True)]), "last"),
        (_Handed(lambda x: 2 * x), "after"),
        (_Handed(jax.lax.stop_gradient), "after"),  # ahead of it every gradient is zero
        (lambda x: checkpoint_name(x, "told"), "told"),  # the user's own word
    ],
)
def test_what_hands_on_anothers_numbers_is_no_default_layer(after, layer):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.5, deterministic=True)(nn.Conv(4, (3, 3), name="first")(x))
            x = nn.Conv(4, (3, 3), name="last")(nn.max_pool(x, (2, 2), (2, 2)))
            if isinstance(after, nn.Module):
                return nn.Dense(3)(after.clone(name="after", parent=self)(x).mean((1, 2)))
            return nn.Dense(3)(after(x).mean((1, 2)))

    net, x = Net(), jnp.ones((1, 4, 6, 3))
    params = jax.eval_shape(net.init, jax.random.key(1), x)
    assert default_layer(net.apply, params, x) == layer
    assert spatial_stages("test", net.apply, params, x) == ("first", layer)


@pytest.mark.parametrize(
    ("method", "name", "tolerance"),
    [
        (grad_cam, "gradcam", 1e-12),
        (xgrad_cam, "xgradcam", 1e-6),  # it adds 1e-7 to the sum of a map
        (hires_cam, "hirescam", 1e-12),
        (layer_cam, "layercam", 1e-12),
        (shapley_cam, "shapleycam", 1e-12),
        (eigen_cam, "eigencam", 1e-6),  # its result is float32
        (eigen_grad_cam, "eigengradcam", 1e-6),
    ],
)
def test_raw_maps_agree_with_pytorch_grad_cam(method, name, tolerance):
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        out = method(small_net.apply_fn, params, x, target, layer="relu2", **RAW)
        theirs = small_net.peers()[f"pgc_{name}"]
        if "eigen" in name:  # whose signs are arbitrary
            signs = np.sign((np.asarray(out) * theirs).sum((1, 2), keepdims=True))
            theirs = theirs * signs
        close(out, theirs, tolerance)


@pytest.mark.parametrize("method", [grad_cam_pp, xgrad_cam, shapley_cam])
def test_single_precision_agrees_with_double(method):
    params, x, target, *_ = small_net.inputs(jnp.float32)
    out = method(small_net.apply_fn, params, x, target, layer="relu2", **RAW)
    assert out.dtype == jnp.float32
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        double = method(small_net.apply_fn, params, x, target, layer="relu2", **RAW)
    close(out, double, 1e-5)


def test_grad_cam_agrees_with_captum():
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        explain = functools.partial(
            grad_cam, small_net.apply_fn, params, x, target, layer="conv2", relu=False
        )
        theirs = small_net.peers()
        close(explain(resize=False), theirs["layer_gradcam"][..., 0], 1e-12)
        close(explain(), theirs["layer_gradcam_resized"][..., 0], 1e-12)
        values = activations(small_net.apply_fn, params, x, ["conv2"])["conv2"]
        close(values, theirs["layer_activation"], 1e-12)


def test_guided_grad_cam_agrees_with_captum():
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        out = guided_grad_cam(small_net.apply_fn, params, x, target, layer="conv2")
        close(out, small_net.peers()["guided_gradcam"], 1e-12)


def test_grad_cam_pp_is_the_papers_formula():  # oracle: eq. 19 with the derivatives of exp(score)
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        head, tail = split(small_net.apply_fn, params, x, "relu2")
        a, carry = head(params, x)
        g, a = (np.asarray(v) for v in (gradient(tail, (params, carry), a, target), a))
        score = np.take_along_axis(small_net.peers()["logits"], np.asarray(target)[:, None], 1)
        exp = np.exp(score)[..., None, None]
        divisor = 2 * exp * g**2 + a.sum((1, 2), keepdims=True) * exp * g**3
        alpha = np.where(g > 0, exp * g**2 / np.where(divisor == 0, 1, divisor), 0)
        total = alpha.sum((1, 2), keepdims=True)
        alpha /= np.where(total == 0, 1, total)
        weights = (alpha * np.maximum(exp * g, 0)).sum((1, 2), keepdims=True)
        expected = (weights * a).sum(-1) / exp[..., 0]  # the factor that we leave out
        out = grad_cam_pp(small_net.apply_fn, params, x, target, layer="relu2", **RAW)
        close(out, expected, 1e-12)


def test_shapley_cam_sees_curvature():  # oracle: f = (sum_k c_k mean A_k)^2 differentiated by hand
    c = jnp.array([[1.0], [-2.0], [0.5]])
    f = lambda c, x: (jax.nn.relu(x).mean((1, 2)) @ c) ** 2
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    a = jnp.maximum(x, 0)
    # g_k = 2 s c_k / P and (H A)_k = 2 c_k s / P, so g - H A / 2 = s c_k / P at each of P places.
    s = a.mean((1, 2)) @ c
    expected = (a * (s * c.T)[:, None, None, :]).sum(-1) / 20
    out = shapley_cam(f, c, x, 0, layer="relu_0", **RAW)
    chex.assert_trees_all_close(out, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_cam_is_that_of_the_paper_and_grad_cam_its_mean(seed):
    params, x = pooled_inputs(seed)
    a = activations(pooled, params, x, ["relu_0"])["relu_0"]
    target = jnp.array([0, 3, 1])
    expected = jnp.einsum("nhwk,kn->nhw", a, params["dense"][:, target])
    out = cam(pooled, params, x, target, layer="relu_0", **RAW)
    chex.assert_trees_all_close(out, expected, rtol=1e-4, atol=1e-5)
    for method in (grad_cam, xgrad_cam, hires_cam, shapley_cam):  # alike on such a head
        out = method(pooled, params, x, target, layer="relu_0", **RAW)
        chex.assert_trees_all_close(42 * out, expected, rtol=1e-4, atol=1e-4)
    # HiResCAM is complete: its sum and the bias are the score.
    score = pooled(params, x)[jnp.arange(3), target] - params["bias"][target]
    chex.assert_trees_all_close(out.sum((1, 2)), score, rtol=1e-4, atol=1e-5)


# Of each kind one: weights by the mean, by the activations, by curvature, by components.
KINDS = [grad_cam, grad_cam_pp, xgrad_cam, shapley_cam, eigen_grad_cam]


@pytest.mark.parametrize("method", KINDS)
def test_rewriting_the_head_changes_nothing(method):
    def other(params, x):  # the same function after the layer, in another way
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=numbers
        )
        x = jax.nn.relu(x)
        x = jnp.einsum("nhwk,kc->nc", x, params["dense"]) / (x.shape[1] * x.shape[2])
        return jnp.stack([x[:, k] + params["bias"][k] for k in range(4)], axis=1)

    params, x = pooled_inputs()
    outs = [method(f, params, x, 2, layer="relu_0", **RAW) for f in (pooled, other)]
    chex.assert_trees_all_close(*outs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in KINDS if m is not grad_cam_pp])
def test_scaling_channels_and_undoing_it_after_the_layer(method):
    # A_k -> A_k * 2^k, undone by the next weights: maps of the form sum_k w_k A_k do not see it;
    # principal components and Grad-CAM++'s alphas, which weigh channels by size, may.
    params, x = pooled_inputs()
    factor = 2.0 ** jnp.arange(5.0)
    scaled = {
        "kernel": params["kernel"] * factor[None, None, None, :],
        "dense": params["dense"] / factor[:, None],
        "bias": params["bias"],
    }
    outs = [method(pooled, p, x, 2, layer="relu_0", **RAW) for p in (params, scaled)]
    chex.assert_trees_all_close(*outs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [grad_cam, eigen_cam])
def test_default_layer_and_size(method):
    params, x, target, *_ = small_net.inputs(jnp.float32)
    out = method(small_net.apply_fn, params, x, target)
    named = method(small_net.apply_fn, params, x, target, layer="max_pool_1")  # 3x3, the last
    chex.assert_shape(out, (3, 12, 12))
    chex.assert_trees_all_equal(out, named)
    assert out.min() >= 0
    sized = method(small_net.apply_fn, params, x, target, layer="relu2", resize=(4, 9))
    chex.assert_shape(sized, (3, 4, 9))


def test_several_layers_are_averaged():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    explain = functools.partial(layer_cam, small_net.apply_fn, params, x, target)
    one, two = explain(layer="relu1"), explain(layer="relu2")
    chex.assert_trees_all_close(explain(layer=("relu1", "relu2")), (one + two) / 2, atol=1e-6)
    with pytest.raises(ValueError, match=r"layer_cam: several layers .*\(3, 12, 12\)"):
        explain(layer=("relu1", "relu2"), resize=False)


def tokens(params, x):
    """A class token before 4x3 patch tokens, mixed and read: the layout of a vision transformer."""
    x = x.reshape(x.shape[0], 12, -1)
    first = jnp.broadcast_to(params["token"], (x.shape[0], 1, x.shape[2]))
    x = jax.nn.relu(jnp.concatenate([first, x], axis=1))
    mixed = jax.nn.softmax(x @ x.mT, axis=-1) @ x
    return mixed[:, 0] @ params["dense"]


@pytest.mark.parametrize("method", [hires_cam, shapley_cam, eigen_cam])
def test_tokens_become_a_grid_by_reshape(method):
    params = {"token": jnp.ones((1, 1, 2)), "dense": jnp.array([[1.0, 2.0], [-1.0, 1.0]])}
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 2))
    grid = lambda a: a[:, 1:].reshape(a.shape[0], 4, 3, -1)
    out = method(tokens, params, x, 0, layer="relu_0", reshape=grid)
    chex.assert_shape(out, (2, 4, 3))
    assert default_layer(tokens, params, x) == "relu_0"  # ahead of the attention
    for layer in ("relu_0", None):  # the model shows how its tokens lie
        chex.assert_trees_all_equal(method(tokens, params, x, 0, layer=layer), out)
    assert jnp.isfinite(out).all()
    if method is hires_cam:
        head, tail = split(tokens, params, x, "relu_0")
        a, carry = head(params, x)
        g = gradient(tail, (params, carry), a, 0)
        expected = jnp.maximum((g * a).sum(-1)[:, 1:].reshape(2, 4, 3), 0)
        chex.assert_trees_all_close(out, expected, rtol=1e-5, atol=1e-6)


def test_all_classes_at_once():
    params, x, *_ = small_net.inputs(jnp.float32)
    explain = functools.partial(grad_cam, small_net.apply_fn, params, x, layer="relu2", **RAW)
    together = jax.vmap(explain)(jnp.arange(4))
    chex.assert_shape(together, (4, 3, 6, 6))
    for k in range(4):
        close(together[k], explain(k), 1e-5)
    # One pullback for all: the forward pass is not repeated for each class.
    flops = lambda f: jax.jit(f).lower(params, x).compile().cost_analysis()["flops"]
    one = lambda p, x: grad_cam(small_net.apply_fn, p, x, 0, layer="relu2", **RAW)
    every = lambda p, x: jax.vmap(
        lambda k: grad_cam(small_net.apply_fn, p, x, k, layer="relu2", **RAW)
    )(jnp.arange(4))
    assert flops(every) < 2 * flops(one)


def test_head_is_not_differentiated():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    flops = lambda f: jax.jit(f).lower(params, x).compile().cost_analysis()["flops"]
    explain = lambda p, x: grad_cam(small_net.apply_fn, p, x, target, layer="relu2", **RAW)
    pulled = lambda p, x: gradient(small_net.apply_fn, p, x, target)
    forward = rewrite(small_net.apply_fn, fast)  # as the methods run it
    assert flops(explain) < 1.1 * flops(forward) < 0.7 * flops(pulled)


@pytest.mark.parametrize("method", [grad_cam, xgrad_cam])
def test_gradient_through_a_cam_is_that_of_finite_differences(method):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        dense, x, v = (jnp.asarray(rng.normal(size=s)) for s in ((3, 2), (2, 3, 4, 3), (2, 3, 4)))
        f = lambda dense, x: jnp.tanh(jnp.tanh(x).sum((1, 2)) @ dense)

        def loss(dense, x):
            return (v * method(f, dense, x, 0, layer="tanh_0", **RAW)).sum()

        jax.test_util.check_grads(loss, (dense, x), order=1, modes=("rev",), rtol=1e-5)


def test_eigen_sign_follows_the_sum_of_channels():
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 3))
    f = lambda _, x: jnp.tanh(x).mean((1, 2))
    out = eigen_cam(f, None, x, layer="tanh_0", **RAW)
    a = jnp.tanh(x)
    total = (a - a.mean((1, 2), keepdims=True)).sum(-1)
    assert ((out * total).sum((1, 2)) >= 0).all()


def test_errors_name_layers_and_shapes():
    params, x, *_ = small_net.inputs(jnp.float32)
    with pytest.raises(ValueError, match=r"no layer 'relu3'; the nearest are 'relu"):
        grad_cam(small_net.apply_fn, params, x, 0, layer="relu3")
    with pytest.raises(ValueError, match=r"grad_cam: layer 'relu_2' must give \[N, \*space"):
        grad_cam(small_net.apply_fn, params, x, 0, layer="relu_2")
    with pytest.raises(ValueError, match=r"reshape makes \(3, 288\) of it"):
        grad_cam(
            small_net.apply_fn, params, x, 0, layer="relu2", reshape=lambda a: a.reshape(3, -1)
        )
    with pytest.raises(ValueError, match=r"no layer has spatial extent.*'tanh_0'"):
        grad_cam(lambda _, x: jnp.tanh(x), None, x[:, 0, 0], 0)
    with pytest.raises(ValueError, match=r"average pooling and dense layers only; found max_pool"):
        cam(small_net.apply_fn, params, x, 0, layer="relu2")
    with pytest.raises(ValueError, match=r"guided_grad_cam: x must be one array"):
        guided_grad_cam(lambda _, x: x["a"].mean((1, 2)), None, {"a": x}, 0)
