"""What attention carries; oracles: the papers' formulas in NumPy, gradients of weights given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.models.transformer import VisionTransformer

X = jax.random.normal(jax.random.key(0), (2, 4, 6))
W = jax.random.normal(jax.random.key(1), (2, 6, 6)) / 3


def block(w, x, given=None):
    q = (x @ w).reshape(2, 4, 2, 3)
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, x.reshape(2, 4, 2, 3)))
    if given is not None:
        weights = given
    mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, q).reshape(x.shape)
    return x + mixed, weights


def net(w, x):
    for one in w:
        x = jnp.tanh(block(one, x)[0])
    return x[:, 0]


def weights_and_gradients(target):
    x, weights = X, []
    for one in W:
        x, a = block(one, x)
        weights.append(a)
        x = jnp.tanh(x)

    def score(added):
        x = X
        for one, extra in zip(W, added, strict=True):
            x = jnp.tanh(block(one, x, block(one, x)[1] + extra)[0])
        return x[:, 0, target].sum()

    gradients = jax.grad(score)([jnp.zeros_like(a) for a in weights])
    return [np.asarray(a, np.float64) for a in weights], [np.asarray(g) for g in gradients]


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_is_the_papers(fusion):
    total = np.eye(4)
    for a in weights_and_gradients(0)[0]:
        a = getattr(np, fusion)(a, axis=1)
        lowest = np.sort(a.reshape(2, -1), axis=1)[:, 7][:, None, None]
        kept = a > lowest
        kept[:, 0, 0] = True
        a = np.where(kept, a, 0) + np.eye(4)
        total = a / a.sum(-1, keepdims=True) @ total
    out = jv.attention_rollout(net, W, X, fusion=fusion, discard=0.5, query=2)
    np.testing.assert_allclose(out, total[:, 2], atol=1e-5)
    out = jv.attention_rollout(net, W, X, 1, fusion=fusion)
    np.testing.assert_allclose(out.sum(1), 1, atol=1e-5)


def test_relevance_is_the_papers():
    total = np.eye(4)[None]
    for a, g in zip(*weights_and_gradients(1), strict=True):
        total = total + np.maximum(a * g, 0).mean(1) @ total
    out = jv.attention_relevance(net, W, X, 1, query=0)
    np.testing.assert_allclose(out, (total - np.eye(4))[:, 0], atol=1e-5)


def test_attention_x_gradient_moves_weights_alone():
    weights, gradients = weights_and_gradients(2)
    out = jv.attention_x_gradient(net, W, X, 2)
    np.testing.assert_allclose(out, (weights[1] * gradients[1]).sum((1, 2)), atol=1e-5)
    out = jv.attention_x_gradient(net, W, X, 2, layers=["attention_0"])
    np.testing.assert_allclose(out, (weights[0] * gradients[0]).sum((1, 2)), atol=1e-5)


def test_a_vision_transformers_maps_are_images():
    vit = VisionTransformer(
        num_classes=3, image_size=16, patch_size=4, depth=2, width=8, num_heads=2, mlp_width=8,
        distilled=True,
    )  # fmt: skip
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = jax.jit(vit.init)(jax.random.key(1), images)
    relevance = functools.partial(jv.attention_relevance, vit.apply, resize=False)
    assert jax.eval_shape(relevance, params, images).shape == (2, 4, 4)
    assert (
        jax.eval_shape(functools.partial(relevance, resize=True), params, images).shape
        == images.shape[:3]
    )
    # The class token's row, the distillation token having no place.
    total = np.eye(18)
    for a in jv.attentions(vit.apply, params, images).values():
        a = np.asarray(a).mean(1) + np.eye(18)
        total = a / a.sum(-1, keepdims=True) @ total
    small = jv.attention_rollout(vit.apply, params, images, resize=False)
    np.testing.assert_allclose(small, total[:, 0, 2:].reshape(2, 4, 4), atol=1e-5)
    first = lambda p, x: vit.apply(p, x.transpose(0, 2, 3, 1))  # the image's size all the same
    large = jv.attention_rollout(first, params, images.transpose(0, 3, 1, 2))
    resized = jax.image.resize(small, (2, 16, 16), "linear", antialias=False)
    np.testing.assert_allclose(large, resized, atol=1e-5)


def test_attentions_that_cannot_follow_one_another_are_refused():
    def pooled(w, x):
        x = jax.nn.softmax(x @ x.mT) @ x
        q = x[:, :2]
        return (jax.nn.softmax(q @ x.mT) @ x)[:, 0]

    with pytest.raises(ValueError, match=r"attention_rollout: .*'attention_1' \(2, 1, 2, 4\)"):
        jv.attention_rollout(pooled, None, X)
    assert jv.attention_rollout(pooled, None, X, layers=["attention_0"]).shape == (2, 4)
    with pytest.raises(ValueError, match="layers must be names of attentions; got 'atention_0'"):
        jv.attention_relevance(pooled, None, X, layers=["atention_0"])
    with pytest.raises(ValueError, match="query must be one of 4 tokens"):
        jv.attention_rollout(pooled, None, X, layers=["attention_0"], query=4)
    with pytest.raises(ValueError, match="or counted from the end, down to -4; got -5"):
        jv.attention_rollout(pooled, None, X, layers=["attention_0"], query=-5)


@pytest.mark.parametrize(
    "method", [jv.attention_rollout, jv.attention_relevance, jv.token_tm, jv.value_zeroing]
)
def test_the_last_token_is_minus_one(method):  # of a causal language model, of any length
    last = lambda w, x: (x + jax.nn.softmax(x @ x.mT) @ x)[:, -1]
    maps = [method(last, None, X, 0, query=query) for query in (-1, X.shape[1] - 1)]
    np.testing.assert_array_equal(*maps)


def test_token_ids_are_taken_and_other_labels_are_no_new_program():
    def text(w, ids):
        x = w[ids]
        return (jax.nn.softmax(x @ x.mT) @ x)[:, 0]

    ids = jnp.array([[1, 2, 3], [3, 2, 1]])
    w = jax.random.normal(jax.random.key(2), (5, 4))
    out = jv.attention_relevance(text, w, ids, jnp.array([0, 1]), query=0)
    one = jv.attention_relevance(text, w, ids[1:], 1, query=0)
    np.testing.assert_allclose(out[1:], one, atol=1e-6)
    assert float(out.max()) > 0
