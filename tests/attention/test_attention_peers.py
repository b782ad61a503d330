"""Rollout, relevance and patching; reference: PyTorch (tests/reference/run_attention_peers.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv

PEERS = np.load(pathlib.Path(__file__).parents[1] / "reference" / "attention_peers.npz")
HEADS = int(PEERS["heads"])


def net(w, x):
    rms = lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    for i in range(len(w["q"])):
        y = rms(x)
        q, k, v = ((y @ w[name][i]).reshape(*x.shape[:2], HEADS, -1) for name in "qkv")
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.float32(q.shape[-1] ** 0.5)
        z = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
        x = x + z.reshape(x.shape) @ w["o"][i]
        x = x + jax.nn.gelu(rms(x) @ w["u"][i]) @ w["d"][i]
    return rms(x)[:, 0] @ w["head"]


def test_the_numbers_of_pytorch_on_the_same_weights():
    w = {name: PEERS[name] for name in (*"qkvoud", "head")}

    @jax.jit
    def every(w, x, source):
        rollout = jv.attention_rollout(net, w, x)
        relevance = jv.attention_relevance(net, w, x, 0)
        return rollout, relevance, jv.activation_patching(net, w, x, source, 0).effect

    found = every(w, PEERS["x"], PEERS["source"])
    for name, ours in zip(("rollout", "relevance", "patching"), found, strict=True):
        largest = np.abs(PEERS[name]).max()
        np.testing.assert_allclose(ours, PEERS[name], rtol=0, atol=1e-5 * largest, err_msg=name)
