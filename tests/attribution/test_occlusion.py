"""Occlusion and feature ablation against Captum, NumPy and cases by hand."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from small_net import close

from jaxviz.attribution.ablation import feature_ablation
from jaxviz.attribution.occlusion import occlusion, occlusion_scores
from jaxviz.parts.regions import blurred, fill_like, grid_segments, per_place, slic_segments

# Captum adds these maps up in single precision even where all else is double.
CAPTUM = 2e-7
METHODS = ("full", "incremental")
linear = lambda w, x: (x * w).sum((1, 2))


@functools.cache
def peers():
    with np.load(small_net.FOLDER / "perturbation_peers.npz") as file:
        return dict(file)


@pytest.mark.parametrize("method", METHODS)
def test_occlusion_agrees_with_captum(method):
    with jax.enable_x64(True):
        params, x, target, baseline, _ = small_net.inputs(jnp.float64)
        explain = functools.partial(occlusion, small_net.apply_fn, params, x, target, method=method)
        out = explain(window=(5, 5), stride=(3, 3), fill=baseline)
        theirs = peers()["occlusion_overlapping"]
        close(out, theirs[..., 0], CAPTUM)
        close(out, theirs[..., 1], CAPTUM)  # one window over both channels
        if method == "full":  # of which the windows are the same
            return
        close(explain(window=(4, 7), stride=(4, 2)), peers()["occlusion_uneven"][..., 0], CAPTUM)
        by_channel = explain(window=(3, 6, 1), stride=(2, 5, 1), fill=baseline)
        close(by_channel, peers()["occlusion_by_channel"], CAPTUM)


@pytest.mark.parametrize("method", METHODS)
def test_ablation_agrees_with_captum(method):
    with jax.enable_x64(True):
        params, x, target, baseline, _ = small_net.inputs(jnp.float64)
        explain = functools.partial(
            feature_ablation, small_net.apply_fn, params, x, target, method=method
        )
        out = explain(segments=peers()["segments"], fill=baseline)
        close(out, peers()["ablation"][..., 0], CAPTUM)
        each = explain(segments=peers()["segments_each"], fill=baseline)
        close(each, peers()["ablation_each"], CAPTUM)
        if method == "incremental":  # each number alone: the smallest window there is
            close(explain(), peers()["ablation_single"], CAPTUM)


def test_scores_are_those_of_covered_images():  # oracle: the windows covered one by one in NumPy
    params, x, target, *_ = small_net.inputs(jnp.float32)
    net = jax.jit(small_net.apply_fn)
    out = occlusion_scores(
        small_net.apply_fn, params, x, target, window=(5, 4), stride=(4, 3), fill=2.0
    )
    clean = np.asarray(net(params, x))
    np.testing.assert_array_equal(out.clean_predicted, clean.argmax(1))
    np.testing.assert_allclose(out.clean_score, clean[np.arange(3), target], rtol=1e-5)
    assert out.scores.shape == out.predicted.shape == (3, 3, 4)
    for i, j in itertools.product(range(3), range(4)):
        covered = np.array(x)
        covered[:, 4 * i : 4 * i + 5, 3 * j : 3 * j + 4] = 2.0
        said = np.asarray(net(params, covered))
        np.testing.assert_allclose(out.scores[:, i, j], said[np.arange(3), target], rtol=1e-4)
        np.testing.assert_array_equal(out.predicted[:, i, j], said.argmax(1))


def test_a_linear_model_loses_what_the_window_holds():  # by hand
    w = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]).reshape(1, 1, 5, 1)
    x = jnp.ones((1, 1, 5, 1))
    out = occlusion(linear, w, x, 0, window=(1, 3), stride=(1, 2))
    # Windows [0, 3) and [2, 5) lose 7 and 28; the third place lies in both.
    chex.assert_trees_all_close(out, jnp.array([[[7.0, 7.0, 17.5, 28.0, 28.0]]]), rtol=1e-6)
    out = occlusion(linear, w, x, 0, window=(1, 4), stride=(1, 4), fill=3.0)
    # The second window is cut to one place.
    expected = jnp.array([[[-30.0, -30.0, -30.0, -30.0, -32.0]]])
    chex.assert_trees_all_close(out, expected, rtol=1e-6)


def test_fills_of_every_shape_are_the_image_they_stand_for():
    net = lambda w, x: jnp.tanh(x * w).sum((1, 2))
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 2))
    w = jax.random.normal(jax.random.key(1), (6, 6, 2))[None]
    means = np.asarray(x).mean((1, 2), keepdims=True)
    channels, first = np.array([0.5, -1.0], np.float32), np.asarray(x[0])
    for fill in (1.5, means, channels, first):
        np.testing.assert_array_equal(fill_like("any", fill, x), np.broadcast_to(fill, x.shape))
    slide = {"window": (4, 4), "stride": (2, 2), "method": "full"}
    explain = functools.partial(occlusion, net, w, x, 1, **slide)
    whole = explain(fill=np.broadcast_to(channels, x.shape))
    chex.assert_trees_all_close(explain(fill=channels), whole, rtol=1e-5, atol=1e-6)
    # A window filled with what it holds loses nothing.
    assert jnp.abs(explain(fill=x)).max() < 1e-6


def test_any_shape_of_input_and_any_target():
    w = jnp.arange(6.0)
    x = jnp.ones((2, 6))
    net = lambda w, x: (x * w[None, :]).sum(1)
    out = occlusion(net, w, x, lambda s: s, window=(2,), stride=(2,))
    chex.assert_trees_all_close(out[0], jnp.array([1.0, 1.0, 5.0, 5.0, 9.0, 9.0]))
    out = feature_ablation(net, w, x, lambda s: 2 * s, segments=jnp.array([0, 1, 1, -1, -1, 0]))
    chex.assert_trees_all_close(out[1], jnp.array([10.0, 6.0, 6.0, 0.0, 0.0, 10.0]))
    volume = lambda w, x: x.sum((1, 2, 3)) @ w
    x = jnp.ones((1, 4, 4, 4, 1))
    out = occlusion(volume, jnp.ones((1, 2)), x, 1, window=(2, 2, 2), stride=(2, 2, 2))
    chex.assert_trees_all_close(out, jnp.full((1, 4, 4, 4), 8.0))


def test_what_is_never_read_gets_nothing_and_all_else_its_share():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    blind = lambda params, x: small_net.apply_fn(params, x.at[:, :, 6:].set(0))
    segments = grid_segments((12, 12), (2, 2))
    out = feature_ablation(blind, params, x, target, segments=segments, method="full")
    # Clean and covered scores come out of differently shaped programs: equal up to rounding.
    rounding = 4 * jnp.finfo(jnp.float32).eps * jnp.abs(blind(params, x)).max()
    assert jnp.abs(out[:, :, 6:]).max() <= rounding
    assert (jnp.abs(out[:, :, :6]) > 100 * rounding).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_chunks_change_nothing(chunk_size, method):
    params, x, target, *_ = small_net.inputs(jnp.float32)
    explain = functools.partial(
        occlusion, small_net.apply_fn, params, x, target, window=(4, 4), stride=(3, 3)
    )
    close(explain(chunk_size=chunk_size, method=method), explain(method="full"), 1e-5)


def test_memory_is_bounded_by_the_chunk():
    params, x, target, *_ = small_net.inputs(jnp.float32)

    def temporaries(stride, chunk_size, method):
        explain = lambda x: occlusion(
            small_net.apply_fn,
            params,
            x,
            target,
            window=(4, 4),
            stride=(stride, stride),
            chunk_size=chunk_size,
            method=method,
        )
        return jax.jit(explain).lower(x).compile().memory_analysis().temp_size_in_bytes

    for method in METHODS:
        few, many = (temporaries(stride, 2, method) for stride in (4, 1))  # 9 and 81 windows
        assert many < 1.2 * few + 2**14
    assert temporaries(1, 81, "full") > 5 * temporaries(1, 2, "full")


def test_gradients_of_both_methods_agree_with_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        kernel, x = (
            jnp.asarray(rng.normal(size=(3, 3, 1, 2))),
            jnp.asarray(rng.normal(size=(1, 6, 6, 1))),
        )

        def net(kernel, x):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            return jnp.tanh(x).sum((1, 2))

        ways = rng.normal(size=kernel.shape), rng.normal(size=x.shape)
        slide = {"window": (3, 3), "stride": (3, 3), "chunk_size": 3}

        def loss(method):
            return lambda k, x: (occlusion(net, k, x, 0, method=method, **slide) ** 2).sum()

        along = jax.jit(lambda t: loss("full")(kernel + t * ways[0], x + t * ways[1]))
        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        for method in METHODS:
            found = jax.jit(jax.grad(loss(method), (0, 1)))(kernel, x)
            told = sum((np.asarray(g) * way).sum() for g, way in zip(found, ways, strict=True))
            np.testing.assert_allclose(told, slope, rtol=1e-7)


def test_many_labels_at_once_share_a_program():
    params, x, *_ = small_net.inputs(jnp.float32)
    slide = {"window": (6, 6), "stride": (6, 6), "method": "incremental"}
    explain = functools.partial(occlusion, small_net.apply_fn, params, x, **slide)
    together = jax.vmap(explain_target := lambda t: explain(t))(jnp.arange(4))
    close(together[2], explain_target(2), 1e-5)


def test_traced_segments_need_their_number():
    params, x, target, *_ = small_net.inputs(jnp.float32)
    segments = jnp.asarray(grid_segments((12, 12), (2, 3)))
    ablate = functools.partial(feature_ablation, small_net.apply_fn, params, x, target)
    jitted = jax.jit(lambda s: ablate(segments=s, num_segments=6))
    close(jitted(segments), ablate(segments=segments), 1e-5)
    with pytest.raises(ValueError, match="num_segments must be given where segments are traced"):
        jax.jit(lambda s: ablate(segments=s))(segments)


def test_new_segments_of_known_extent_do_not_retrace():
    traces = []

    def counted(params, x):
        traces.append(1)
        return small_net.apply_fn(params, x)

    params, x, target, *_ = small_net.inputs(jnp.float32)
    segments = grid_segments((12, 12), (3, 3))
    feature_ablation(counted, params, x, target, segments=segments)
    count = len(traces)
    feature_ablation(counted, params, x, target, segments=segments[::-1].copy())
    assert len(traces) == count


def test_values_are_laid_out_by_number():
    values = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    segments = jnp.array([[0, 1, -1, 5]])
    out = per_place(values, segments)
    chex.assert_trees_all_equal(out, jnp.array([[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]]))


def test_cells_of_a_grid_differ_by_one_pixel_at_most():
    cells = grid_segments((11, 7), (4, 3))
    assert sorted(np.unique(cells)) == list(range(12))
    assert set(np.bincount(cells.ravel())) <= {4, 6, 9}  # 2 or 3 rows times 2 or 3 columns


def test_superpixels_follow_edges():
    pytest.importorskip("skimage")
    x = np.zeros((2, 24, 24, 3))
    x[0, :, 12:] = 1
    x[1, 12:] = 1
    for image, found in zip(x, slic_segments(x, 4), strict=True):
        assert found.shape == (24, 24)
        for number in np.unique(found):  # no superpixel crosses from black to white
            assert np.ptp(image[found == number]) == 0


def test_a_blur_keeps_the_mean_and_one_colour():  # its kernel against scipy's, mirrored at the edge
    from scipy import ndimage

    x = np.random.default_rng(0).normal(size=(1, 9, 6, 2)).astype(np.float32)
    expected = ndimage.gaussian_filter(x, (0, 1.5, 1.5, 0), mode="reflect", radius=6)
    np.testing.assert_allclose(blurred(jnp.asarray(x), 1.5), expected, atol=1e-6)


def test_errors_say_what_came():
    x = jnp.ones((1, 4, 4, 1))
    w = jnp.ones((1, 1, 1, 2))
    slide = functools.partial(occlusion, linear, w, x, 0)
    with pytest.raises(ValueError, match=r"occlusion: window must be 1 to \(4, 4, 1\)"):
        slide(window=(5, 2), stride=(1, 1))
    with pytest.raises(ValueError, match=r"stride must be 1 to window = \(2, 2\).*got \(3, 1\)"):
        slide(window=(2, 2), stride=(3, 1))
    with pytest.raises(ValueError, match=r"fill must broadcast to x; got fill \(3,\)"):
        slide(window=(2, 2), stride=(1, 1), fill=jnp.ones(3))
    with pytest.raises(ValueError, match=r"method must be 'auto', 'full' or 'incremental'"):
        slide(window=(2, 2), stride=(1, 1), method="fast")
    with pytest.raises(ValueError, match="x must be one array"):
        occlusion(
            lambda w, x: x["a"].sum((1, 2)), w, {"a": x, "b": x}, 0, window=(2, 2), stride=(1, 1)
        )
    total = lambda w, x: linear(w, x).sum(1)
    with pytest.raises(ValueError, match=r"occlusion_scores: outputs must be \[N, K\]"):
        occlusion_scores(total, w, x, lambda s: s, window=(2, 2), stride=(1, 1))
    with pytest.raises(ValueError, match=r"segments must be integers.*float32 of shape \(4, 4\)"):
        feature_ablation(linear, w, x, 0, segments=jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="segments must name one at least; got 0"):
        feature_ablation(linear, w, x, 0, segments=-np.ones((4, 4), int))
    with pytest.raises(ValueError, match=r"cells must be 1 to \(4, 4\).*got \(5, 1\)"):
        grid_segments((4, 4), (5, 1))


def test_a_window_without_a_finite_score_marks_the_places_it_covers_alone():
    net = lambda _, x: jnp.log(x[:, 0, 0]) + x[:, 3, 3]  # -inf where the first pixel is hidden
    out = occlusion(net, None, jnp.ones((1, 4, 4, 1)), 0, window=(2, 2), stride=(2, 2))
    expected = np.zeros((4, 4))
    expected[:2, :2], expected[2:, 2:] = np.inf, 1
    np.testing.assert_allclose(out[0], expected, atol=1e-6)
