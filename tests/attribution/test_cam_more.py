"""CAMs of other scores, of noise, of several layers: against pytorch-grad-cam, torch-cam, NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_net
from small_net import close

import jaxviz as jv
from jaxviz.graph.split import split
from jaxviz.parts.feature_maps import spatial_stages

RAW: dict[str, Any] = {"relu": False, "resize": False}
KEY = jax.random.key(7)  # as in tests/reference/draw_cam_inputs.py


@functools.cache
def peers():
    with np.load(small_net.FOLDER / "cam_peers.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        params, x, target, *_ = small_net.inputs(jnp.float64)
        yield params, x, target


@pytest.fixture(scope="module")
def cut(double):
    """Maps, gradients of all four scores by them, and scores, at "relu2", in NumPy."""
    params, x, _ = double
    head, tail = split(small_net.apply_fn, params, x, "relu2")

    @jax.jit
    def run(params, x):
        a, carry = head(params, x)
        slopes = jax.vmap(lambda k: jax.grad(lambda a: tail((params, carry), a)[:, k].sum())(a))
        return a, slopes(jnp.arange(4)), tail((params, carry), a)

    return tuple(map(np.asarray, run(params, x)))


def explain(function, double, **options):
    params, x, target = double
    return function(small_net.apply_fn, params, x, target, **options)


def signed_like(theirs, ours):
    """Theirs with the sign of ours, for it is arbitrary there."""
    return theirs * np.sign((np.asarray(ours) * theirs).sum((1, 2), keepdims=True))


def test_the_peers_maps(double):
    out = explain(jv.elementwise_cam, double, layer="conv2", **RAW)
    close(out, peers()["pgc_elementwise"], 1e-12)
    out = explain(jv.seg_eigen_cam, double, layer="relu2", **RAW)
    close(out, peers()["pgc_seg_eigen"], 1e-6)  # its result is float32
    out = explain(jv.kpca_cam, double, layer="relu2", **RAW)
    close(out, signed_like(peers()["pgc_kpca"], out), 1e-6)
    out = explain(jv.finer_cam, double, layer="relu2", resize=False)
    close(out, peers()["tc_finer"], 1e-9)
    # At a layer of the input's size it does not matter that torch-cam scales before it resizes.
    where = {"layer": "relu1", "resize": False, "chunk_size": 5}
    draw = {"key": KEY, "num_samples": 2, **where}
    out = explain(jv.ss_cam, double, std=0.5, **draw)
    close(out, peers()["tc_ss"], 1e-6)  # theirs adds 1e-8 to the range of a map
    out = explain(jv.is_cam, double, num_steps=4, **where)
    close(out, peers()["tc_is"], 1e-6)
    still = explain(jv.ss_cam, double, std=0.0, **draw)
    close(still, explain(jv.score_cam, double, layer="relu1", resize=False), 1e-12)


def test_layers_fused_as_torch_cam_does(double):
    two = {"layer": ["relu1", "relu2"]}
    raw = [explain(jv.layer_cam, double, layer=one, resize=False) for one in two["layer"]]
    shares = [np.asarray(a / a.max((1, 2), keepdims=True)) for a in raw]
    # torch-cam takes the smallest number of each map off, too: here it is 0.
    assert max(share.min((1, 2)).max() for share in shares) == 0
    close(explain(jv.fused_cam, double, **two), peers()["tc_fused"], 1e-6)
    refined = explain(jv.refine_cam, double, method=jv.layer_cam, **two)
    close(refined, peers()["tc_refined"], 1e-6)
    fine = jax.image.resize(shares[1], (3, 12, 12), "linear", antialias=False)
    close(refined, shares[0] * np.asarray(fine), 1e-12)


def test_no_layer_named_is_the_last_of_each_size(double):
    params, x, _ = double
    assert spatial_stages("here", small_net.apply_fn, params, x)[-2:] == (*("relu2", "max_pool_1"),)


def test_finer_cam_is_grad_cam_of_a_difference(double, cut):
    params, x, target = double
    a, slopes, scores = cut
    rows = np.arange(3)
    apart = np.abs(scores - scores[rows, target][:, None])
    apart[rows, target] = np.inf
    nearest = np.argsort(apart, 1)[:, :2]
    maps = (slopes.mean((2, 3), keepdims=True) * a).sum(-1)  # linear in the score
    wanted = maps[target, rows] - 0.7 * (maps[nearest[:, 0], rows] + maps[nearest[:, 1], rows]) / 2
    options = {"alpha": 0.7, "num_references": 2}
    close(explain(jv.finer_cam, double, layer="relu2", **options, **RAW), wanted, 1e-12)
    score = jv.targets.finer(np.asarray(target), **options)
    out = jv.grad_cam(small_net.apply_fn, params, x, score, layer="relu2", **RAW)
    close(out, wanted, 1e-12)
    # pytorch-grad-cam weighs the others by probabilities and differentiates those too.
    top = scores.argmax(1)

    @jax.jit
    @jax.grad
    def theirs(scores):
        shares = jax.nn.softmax(scores, -1).at[rows, top].set(0)
        off = scores[rows, top][:, None] - scores
        return ((shares * off).sum(1) / shares.sum(1)).sum()

    weights = np.asarray(theirs(scores)).T[:, :, None, None]
    close((weights * maps).sum(0), peers()["pgc_finer"], 1e-8)
    # The mean of the other three, as in the paper, is another map.
    ours = 4 / 3 * maps[top, rows] - maps.sum(0) / 3
    assert np.abs(ours - peers()["pgc_finer"]).max() > 0.01


def test_fem_is_the_papers_and_not_pytorch_grad_cams(double, cut):
    a = cut[0]
    mean, spread = a.mean((1, 2), keepdims=True), a.std((1, 2), keepdims=True)
    mask = (a >= mean + 2 * spread) & (spread > 0)
    out = explain(jv.fem, double, layer="relu2", **RAW)
    close(out, (mean * mask).sum(-1), 1e-12)
    close(peers()["pgc_fem"], (mask.mean((1, 2), keepdims=True) * a).sum(-1), 1e-12)


def test_smooth_grad_cam_pp_averages_derivatives(double, cut):
    params, x, target = double
    draw = {"layer": "relu2", "key": KEY, "num_samples": 3, "chunk_size": 2, **RAW}
    out = explain(jv.smooth_grad_cam_pp, double, noise_scale=0.1, **draw)
    head, tail = split(small_net.apply_fn, params, x, "relu2")

    @jax.jit
    def slope(params, x, k):
        key = jax.random.fold_in(jax.random.fold_in(KEY, k), 0)
        spread = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)
        noisy = x + 0.1 * spread * jax.random.normal(key, x.shape, x.dtype)
        a, carry = head(params, noisy)
        score = lambda a: tail((params, carry), a)[jnp.arange(3), target].sum()
        return jax.grad(score)(a)

    g = np.stack([slope(params, x, jnp.int32(k)) for k in range(3)])
    powers = [(g**p).mean(0) for p in (1, 2, 3)]
    a, (first, second, third) = cut[0], powers
    divisor = 2 * second + third * a.sum((1, 2), keepdims=True)
    alpha = np.where(first > 0, second / np.where(divisor == 0, 1, divisor), 0)
    total = alpha.sum((1, 2), keepdims=True)
    weights = (alpha * np.maximum(first, 0)).sum((1, 2), keepdims=True)
    close(out, (weights / np.where(total == 0, 1, total) * a).sum(-1), 1e-10)
    # Without noise it is Grad-CAM++, for which the numerator must be the second derivative.
    still = explain(jv.smooth_grad_cam_pp, double, noise_scale=0.0, **draw)
    close(still, explain(jv.grad_cam_pp, double, layer="relu2", **RAW), 1e-10)


def test_chance_is_a_draw_a_channel_and_the_same_for_the_same_key(double, cut):
    out = explain(jv.random_cam, double, layer="relu2", key=KEY, **RAW)
    a = cut[0].reshape(3, 36, 8)
    for maps, found in zip(a, np.asarray(out).reshape(3, 36), strict=True):
        live = maps.any(0)
        weights, *_ = np.linalg.lstsq(maps[:, live], found, rcond=None)
        assert (np.abs(weights) <= 1).all()
        np.testing.assert_allclose(maps[:, live] @ weights, found, atol=1e-10)
    assert np.array_equal(out, explain(jv.random_cam, double, layer="relu2", key=KEY, **RAW))
    other = explain(jv.random_cam, double, layer="relu2", key=jax.random.key(8), **RAW)
    assert np.abs(np.asarray(other) - np.asarray(out)).max() > 0.1


def test_kpca_by_the_other_kernel(double, cut):  # oracle: its definition, in NumPy
    rows = cut[0].reshape(3, 36, 8)
    rows = rows - rows.mean(1, keepdims=True)
    out = explain(jv.kpca_cam, double, layer="relu2", kernel="rbf", gamma=0.3, **RAW)
    for i in range(3):
        gram = np.exp(-0.3 * ((rows[i][:, None] - rows[i][None]) ** 2).sum(-1))
        still = np.eye(36) - 1 / 36
        values, vectors = np.linalg.eigh(still @ gram @ still)
        wanted = np.sqrt(values[-1]) * vectors[:, -1]
        wanted *= np.sign(wanted @ rows[i].sum(-1))
        np.testing.assert_allclose(np.asarray(out)[i].ravel(), wanted, atol=1e-9)


def test_errors_say_what_to_do(double):
    params, x, _ = double
    with pytest.raises(ValueError, match=r"^finer_cam: target must be a class"):
        jv.finer_cam(small_net.apply_fn, params, x, lambda o: o[:, 0], layer="relu2")
    one = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
    with pytest.raises(ValueError, match=r"^finer_cam: outputs must have two classes"):
        jv.finer_cam(one, jnp.ones((1, 1)), jnp.ones((1, 2, 2, 1)), 0, layer="relu_0")
    for method, told in ((jv.gradient, "class activation map"), (jv.ss_cam, "also needs key")):
        with pytest.raises(TypeError, match=rf"^refine_cam: method must be .*{told}"):
            explain(jv.refine_cam, double, method=method)
    with pytest.raises(ValueError, match=r"^fused_cam: several layers must have maps of one size"):
        explain(jv.fused_cam, double, layer=["relu1", "relu2"], resize=False)


def test_scores_of_detections_and_masks():  # pytorch-grad-cam adds the overlap to the score
    found = peers()
    boxes, scores, labels, box = (found[k] for k in ("boxes", "scores", "labels", "box"))
    near, label = boxes[2], int(labels[2])
    low, high = np.maximum(box[:2], near[:2]), np.minimum(box[2:], near[2:])
    area = lambda a: np.prod(a[2:] - a[:2])
    overlap = np.prod(high - low) / (area(box) + area(near) - np.prod(high - low))
    outputs = {"boxes": boxes[None], "scores": scores[None], "labels": labels[None]}
    each = jv.targets.box_score(np.stack([box, boxes[0]]), [1, 0])
    assert each == jv.targets.box_score(np.stack([box, boxes[0]]), [1, 0])

    @jax.jit
    def run(outputs, pair, maps):
        ours = [
            jv.targets.box_score(box, label),
            jv.targets.box_score(box, 1 - label),
            jv.targets.box_score(box + 99, label),
        ]
        value, slope = jax.vjp(lambda scores: each((pair[0], scores)), pair[1])
        total = jv.targets.masked_sum(found["mask"], 1)(maps)
        return [f(outputs)[0] for f in ours], value, slope(jnp.ones_like(value))[0], total[0]

    rows = np.stack([scores, 1 - scores], -1)
    pair = np.stack([boxes, boxes]), np.stack([rows, 2 * rows])
    ours, values, slope, total = run(outputs, pair, np.moveaxis(found["maps"], 0, -1)[None])
    np.testing.assert_allclose(ours[0] + overlap, found["box_score"][0], rtol=1e-6)
    np.testing.assert_allclose(ours, [scores[2], 0, 0], rtol=1e-6)
    np.testing.assert_allclose(values, [1 - scores[2], 2 * scores[0]], rtol=1e-6)
    assert np.argwhere(np.asarray(slope)).tolist() == [[0, 2, 1], [1, 0, 0]]
    np.testing.assert_allclose(total, found["mask_score"], rtol=1e-5)
    wrong = (
        (boxes[None], r"outputs must be \(boxes, scores"),
        ((boxes[None], rows[None, :3]), r"outputs must be boxes \[N, B, 4\] and scores"),
        ((boxes[None], rows[None, ..., :1]), r"index must be in \[0, 1\)"),
    )
    for outputs, told in wrong:
        with pytest.raises(ValueError, match=rf"^box_score: {told}"):
            jv.targets.box_score(box, 1)(outputs)
    with pytest.raises(ValueError, match=r"^box_score: box must be corners in order"):
        jv.targets.box_score((4, 0, 1, 1), 0)


def test_a_detector_and_a_segmenter_are_explained():
    """A box whose class score reads the left half of the image; a mask that reads its own place."""
    weights = jnp.ones((1, 1, 1, 1))
    boxes = jnp.array([[[0.0, 0.0, 2.0, 4.0], [2.0, 0.0, 4.0, 4.0]]])

    def detect(w, x):
        a = jax.nn.relu(x * w)[..., 0]
        scores = jnp.stack([a[:, :, :2].sum((1, 2)), a[:, :, 2:].sum((1, 2))], 1)
        return {"boxes": boxes + 0 * scores[:, :, None], "scores": scores[..., None]}

    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    target = jv.targets.box_score((0, 0, 2, 3.5), 0)
    out = jv.hires_cam(detect, weights, x, target, layer="relu_0")
    np.testing.assert_allclose(out[0], np.asarray(x[0, ..., 0]) * np.array([1.0, 1, 0, 0]))
    segment = lambda w, x: jax.nn.relu(x * w) * jnp.array([[[[1.0, -1.0]]]])
    mask = np.eye(4, dtype=bool)
    target = jv.targets.masked_sum(mask, 0)
    out = jv.hires_cam(segment, weights, x, target, layer="relu_0")
    np.testing.assert_allclose(out[0], np.asarray(x[0, ..., 0]) * mask)
