"""What every public explanation promises, checked on each: a new method is one new row."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxviz as jv

TRACES = []  # one entry for every time that JAX runs the net's Python


def net(params, x):
    """A small convolutional net with a pool, [N, 8, 8, 2] -> [N, 3]."""
    TRACES.append(1)
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + params["bias"][None, None, None, :])
    x = nn.max_pool(x, (2, 2), (2, 2))
    return x.mean((1, 2)) @ params["dense"]


def make(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "conv": jax.random.normal(keys[0], (3, 3, 2, 4), dtype),
        "bias": jax.random.normal(keys[1], (4,), dtype),
        "dense": jax.random.normal(keys[2], (4, 3), dtype),
    }
    return params, jax.random.normal(keys[3], (3, 8, 8, 2), dtype)


CELLS = np.arange(64).reshape(8, 8) // 32
METHODS = {
    "gradient": jv.gradient,
    "saliency": jv.saliency,
    "input_x_gradient": jv.input_x_gradient,
    "integrated_gradients": functools.partial(jv.integrated_gradients, num_steps=4),
    "expected_gradients": functools.partial(jv.expected_gradients, num_samples=3),
    "guided_integrated_gradients": functools.partial(jv.guided_integrated_gradients, num_steps=4),
    "blur_integrated_gradients": functools.partial(jv.blur_integrated_gradients, num_steps=3),
    "guided_backprop": jv.guided_backprop,
    "deconvnet": jv.deconvnet,
    "lrp": jv.lrp,
    "deep_lift": functools.partial(jv.deep_lift, baseline=0.0),
    "grad_cam": jv.grad_cam,
    "grad_cam_pp": jv.grad_cam_pp,
    "layer_cam": jv.layer_cam,
    "score_cam": jv.score_cam,
    "ablation_cam": jv.ablation_cam,
    "guided_grad_cam": jv.guided_grad_cam,
    "occlusion": functools.partial(jv.occlusion, window=(3, 3), stride=(3, 3)),
    "rise": functools.partial(jv.rise, num_samples=5, cells=2),
    "sobol": functools.partial(jv.sobol, num_designs=4, cells=2),
    "hsic": functools.partial(jv.hsic, num_samples=6, cells=2),
    "lime": functools.partial(jv.lime, segments=CELLS, num_samples=6),
    "kernel_shap": functools.partial(jv.kernel_shap, segments=CELLS, num_samples=4),
    "shapley_sampling": functools.partial(jv.shapley_sampling, segments=CELLS, num_samples=2),
    "shapley_values": functools.partial(jv.shapley_values, segments=CELLS),
    "feature_ablation": functools.partial(jv.feature_ablation, segments=CELLS),
}
# Their random numbers belong to a place in the batch, so one example alone draws others.
KEYED = {"expected_gradients", "rise", "sobol", "hsic", "lime", "kernel_shap", "shapley_sampling"}
STATISTICS = {"hsic", "lime", "kernel_shap", "shapley_sampling", "shapley_values"}
TARGET = jnp.array([2, 0, 1])

every_method = pytest.mark.parametrize("name", METHODS)
# What each method compiles takes a second: where one way through all of them is tried, so many do.
some_methods = pytest.mark.parametrize(
    "name", ["gradient", "integrated_gradients", "lrp", "grad_cam", "occlusion", "kernel_shap"]
)


def explain(name, apply_fn=net, dtype=jnp.float32, **changes):
    params, x = make(dtype)
    arguments = {"params": params, "x": x, "target": TARGET} | changes
    options = {"key": jax.random.key(3)} if name in KEYED else {}
    if name == "expected_gradients":
        options["baselines"] = jnp.zeros((2, 8, 8, 2), dtype)
    return METHODS[name](apply_fn, **arguments, **options)


@some_methods
def test_jit_gives_the_same(name):
    params, x = make()
    jitted = jax.jit(lambda p, x, t: explain(name, params=p, x=x, target=t))
    chex.assert_trees_all_close(jitted(params, x, TARGET), explain(name), rtol=1e-5, atol=1e-6)


@every_method
def test_none_explains_the_top_class_under_jit_too(name):
    params, x = make()
    top = net(params, x).argmax(1)
    jitted = jax.jit(lambda p, x: explain(name, params=p, x=x, target=None))
    chex.assert_trees_all_close(jitted(params, x), explain(name, target=top), rtol=1e-5, atol=1e-6)


@some_methods
def test_none_explains_the_top_class(name):
    params, x = make()
    top = net(params, x).argmax(1)
    chex.assert_trees_all_close(explain(name, target=None), explain(name, target=top), rtol=1e-5)


@every_method
def test_a_batch_is_its_examples(name):
    if name in KEYED:
        pytest.skip("draws differ by place in the batch")
    _, x = make()
    alone = [explain(name, x=x[i : i + 1], target=TARGET[i : i + 1]) for i in range(3)]
    alone = jax.tree.map(lambda *rows: jnp.concatenate(rows), *alone)
    chex.assert_trees_all_close(explain(name), alone, rtol=1e-4, atol=1e-5)


@every_method
def test_new_data_and_labels_do_not_retrace(name):
    params, x = make()
    explain(name)
    before = len(TRACES)
    explain(name, x=x + 1)
    explain(name, target=jnp.array([0, 0, 2]))
    explain(name, params=jax.tree.map(lambda a: 2 * a, params))
    assert len(TRACES) == before


def test_another_shape_is_traced_once_for_all_methods():
    x = make()[1][:, :, :6]
    before = len(TRACES)
    explain("gradient", x=x)
    assert len(TRACES) == before + 1
    explain("lrp", x=x)
    assert len(TRACES) == before + 1


def dtype_is_kept_and_numbers_are_finite(name, dtype):
    out = explain(name, dtype=dtype)
    kept = {leaf.dtype for leaf in jax.tree.leaves(out)}
    if name in STATISTICS:  # which are too small for half precision
        wide = {out.dtype} if name == "hsic" else {out.standard_errors.dtype}
        assert wide == {jnp.dtype(jnp.float32)}
        kept = kept - wide | {jnp.dtype(dtype)} if dtype != jnp.float32 else kept
    assert kept == {jnp.dtype(dtype)}
    chex.assert_tree_all_finite(out)


@every_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])  # the one of the narrowest range
def test_dtype_is_kept_and_numbers_are_finite(name, dtype):
    dtype_is_kept_and_numbers_are_finite(name, dtype)


@some_methods
def test_bfloat16_is_kept_too(name):
    dtype_is_kept_and_numbers_are_finite(name, jnp.bfloat16)


@every_method
def test_the_same_call_gives_the_same_answer(name):
    chex.assert_trees_all_equal(explain(name), explain(name))


@every_method
def test_a_wrong_target_is_refused_by_the_methods_name(name):
    with pytest.raises(ValueError, match=rf"^{name}: target must be in \[0, 3\)"):
        explain(name, target=3)


@every_method
def test_the_docstring_says_all(name):
    method = METHODS[name]
    method = method.func if isinstance(method, functools.partial) else method
    for part in ("Args:", "Returns:", "Example", "Reference:"):
        assert part in method.__doc__, f"{name} lacks {part}"


@pytest.mark.parametrize("name", ["eigen_cam", "fem", "random_cam", "attention_rollout"])
def test_methods_that_read_no_class_take_nets_without_classes(name):  # encoders and backbones
    x = jax.random.normal(jax.random.key(0), (2, 2, 4, 3))

    def encoder(_, x):
        x = jax.nn.relu(x.reshape(2, 8, 3) if name == "attention_rollout" else x)
        return jax.nn.softmax(x @ x.mT) @ x if name == "attention_rollout" else x

    head = lambda _, x: encoder(_, x).reshape(2, -1)
    explain = getattr(jv, name)
    options = {"key": jax.random.key(1)} if name == "random_cam" else {}
    chex.assert_trees_all_equal(*(explain(f, None, x, **options) for f in (encoder, head)))
    with pytest.raises(ValueError, match=rf"{name}: a target index .* needs outputs \[N, K\]"):
        explain(encoder, None, x, 1, **options)


@pytest.mark.parametrize(("rank", "advice"), [(3, "position_and_class"), (4, "masked_sum")])
def test_outputs_of_tokens_and_pixels_have_targets_ready_made(rank, advice):
    net = lambda _, x: jax.nn.relu(x)
    with pytest.raises(ValueError, match=rf"^saliency: a target .*`jaxviz.targets.{advice}"):
        jv.saliency(net, None, jnp.ones((1,) * rank), 1)
