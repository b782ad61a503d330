"""Where LRP loses relevance; oracles: LRP by hand in NumPy, and LXT's relevances on its weights."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import rules

DRAW = np.random.default_rng(0)
W = {
    "a": DRAW.normal(size=(4, 5)),
    "b": DRAW.normal(size=5),
    "c": DRAW.normal(size=(5, 3)),
    "d": DRAW.normal(size=3),
}
X = DRAW.normal(size=(3, 4))
LXT = pathlib.Path(__file__).parents[1] / "reference" / "lxt.npz"


def net(w, x):
    return jax.nn.relu(x @ w["a"] + w["b"][None]) @ w["c"] + w["d"][None]


def test_sums_and_losses_are_those_of_the_rule_by_hand():
    with jax.enable_x64(True):
        found = jv.lrp_conservation(net, W, X, np.array([0, 2, 1]), rules=rules.attn_lrp(0.1))
    damped = lambda z: z + 0.1 * np.where(z < 0, -1, 1)
    before = X @ W["a"] + W["b"]
    hidden = np.maximum(before, 0)
    outputs = hidden @ W["c"] + W["d"]
    rows = np.arange(3), np.array([0, 2, 1])
    score = outputs[rows]
    # Whatever a layer takes as one with its bias, the bias keeps its part, and the damping another.
    above = hidden * W["c"].T[rows[1]] * (score / damped(score))[:, None]
    at_input = (X[:, :, None] * W["a"]) @ (above / damped(before))[:, :, None]
    expected = np.stack([at_input[..., 0].sum(1), above.sum(1), above.sum(1), score], 1)
    assert found.layers == ("<input>", "dense_0", "relu_0", "dense_1")
    np.testing.assert_allclose(found.score, score)
    np.testing.assert_allclose(found.sums, expected, rtol=1e-9)
    lost = np.diff(np.concatenate([expected, score[:, None]], 1), axis=1)
    np.testing.assert_allclose(found.lost, lost, atol=1e-9)
    assert "dense_1" in repr(found)


def llama_like(w, x):
    """An RMS norm, one head of attention, a gated unit, residuals: no biases; in a scan."""

    def rms(x):
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True))

    def block(x, w):
        y = rms(x)
        weights = jax.nn.softmax((y @ w["q"]) @ (y @ w["k"]).mT)
        y = x + weights @ (y @ w["v"])
        return x + (jax.nn.silu(y @ w["q"]) * (y @ w["k"])) @ w["o"], None

    return jax.lax.scan(block, x, w)[0][:, -1]


def test_only_softmaxes_of_a_net_without_biases_lose_any():
    w = {name: DRAW.normal(size=(1, 4, 4)) for name in "qkvo"}
    x = DRAW.normal(size=(2, 3, 4))
    with jax.enable_x64(True):
        attn = jv.lrp_conservation(llama_like, w, x, 1)
        held = jv.lrp_conservation(llama_like, w, x, 1, rules="cp_lrp")
    np.testing.assert_allclose(held.sums, np.repeat(held.score[:, None], len(held.layers), 1))
    loses = np.abs(attn.lost / attn.score[:, None]).max(0) > 1e-9
    # What the softmax's logits do not get is lost after the last row ahead of it, their product.
    assert [name.split("/")[-1] for name in np.array(attn.layers)[loses]] == ["matmul_0"]


def test_what_reaches_the_input_is_what_lxt_has_there():
    p = {k.split("/")[1]: a for k, a in np.load(LXT).items() if k.startswith("softmax/")}
    x, r = p["x"], p["r"]
    with jax.enable_x64(True):
        s = np.exp(x) / np.exp(x).sum(0)
        weighed = lambda p, x: (jax.nn.softmax(x.reshape(3, 4), 0) * p).reshape(1, -1)
        target = lambda outputs: outputs.sum(1)
        found = jv.lrp_conservation(weighed, jnp.asarray(r / s), x.reshape(1, -1), target)
    np.testing.assert_allclose(found.sums[0, 0], (x * (r - s * r.sum(0))).sum())
    np.testing.assert_allclose(found.score, [r.sum()])


def test_a_table_that_refuses_an_operation_says_so_in_its_name():
    with pytest.raises(ValueError, match="lrp_conservation: rules must be one of"):
        jv.lrp_conservation(net, W, X.astype(np.float32), rules="gamma")


def test_a_target_over_the_batch_and_outputs_beside():
    """Oracle: each example alone, and its class by number."""
    labels, given = jnp.array([0, 2, 1]), []
    batch = jnp.asarray(X, jnp.float32)
    w = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), W)

    def told(w, x):
        outputs = net(w, x)
        return {"count": x.shape[0] * jnp.ones(()), "logits": outputs.T, "top": outputs.argmax(1)}

    def target(outputs):
        given.append(outputs["logits"].shape)
        return 2 * outputs["logits"][labels, jnp.arange(3)]

    ours = jv.lrp_conservation(told, w, batch, target)
    assert set(given) == {(3, 3)}
    for i, label in enumerate([0, 2, 1]):
        theirs = jv.lrp_conservation(net, w, batch[i : i + 1], label)
        np.testing.assert_allclose(ours.score[i], 2 * theirs.score[0], rtol=1e-5)
        for name, sums in zip(theirs.layers, theirs.sums[0], strict=True):
            found = ours.sums[i, ours.layers.index(name)]
            np.testing.assert_allclose(found, 2 * sums, rtol=1e-4, atol=1e-5)


def test_params_with_an_entry_for_each_example_are_refused():
    x, each = jnp.asarray(X, jnp.float32), jnp.ones((3, 4))
    nets = {
        r"outputs \(3, 4\) of one alone, \(3, 4\) of 3": lambda w, x: x * w,
        "fails on one alone": lambda w, x: jnp.concatenate([x, w], 1),
    }
    for told, one in nets.items():
        with pytest.raises(ValueError, match=f"lrp_conservation: params and the model.*{told}"):
            jv.lrp_conservation(one, each, x, 0)
    mean = lambda w, x: (x * w[:1], (x * x).mean())
    with pytest.raises(ValueError, match="params and the model must be the same for each"):
        jv.lrp_conservation(mean, each, x, lambda outputs: outputs[0][:, 0] + outputs[1])
