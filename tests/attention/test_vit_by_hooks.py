"""LeGrad, TokenTM and patching on a ViT; reference: PyTorch, reference/run_vit_by_hooks.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv

PEER = np.load(pathlib.Path(__file__).parents[1] / "reference" / "vit_by_hooks.npz")
W = {name.removeprefix("net/"): PEER[name] for name in PEER.files if name.startswith("net/")}
BLOCKS, HEADS, PATCH = 3, 2, 3


def dense(w, name, x):
    y = x @ w[f"{name}.weight"].T
    return y + jnp.broadcast_to(w[f"{name}.bias"], y.shape)


def norm(w, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    scale, shift = (jnp.broadcast_to(w[f"{name}.{k}"], x.shape) for k in ("weight", "bias"))
    return x * scale + shift


def net(w, x):
    kernel = w["embed.weight"].transpose(2, 3, 1, 0)
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (PATCH, PATCH), "VALID", dimension_numbers=layout)
    x = (x + jnp.broadcast_to(w["embed.bias"], x.shape)).reshape(len(x), -1, x.shape[-1])
    first = jnp.broadcast_to(w["first"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([first, x], 1) + w["places"]
    for i in range(BLOCKS):
        at = f"blocks.{i}."
        y = norm(w, f"{at}before", x)
        split = lambda a: a.reshape(*a.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
        q, k, v = (split(dense(w, at + name, y)) for name in "qkv")
        z = jax.nn.softmax(q @ k.mT / q.shape[-1] ** 0.5) @ v
        x = x + dense(w, f"{at}o", z.transpose(0, 2, 1, 3).reshape(x.shape))
        hidden = jax.nn.gelu(dense(w, f"{at}up", norm(w, f"{at}between", x)), approximate=False)
        x = checkpoint_name(x + dense(w, f"{at}down", hidden), f"block_{i}")
    return dense(w, "head", norm(w, "last", x)[:, 0])


def difference(outputs):
    return outputs[:, 2] - outputs[:, 0]


def test_le_grad_and_token_tm_are_the_papers_formulas():
    with jax.enable_x64(True):
        outputs = jax.jit(net)(W, PEER["clean"])
        whole = jv.le_grad(net, W, PEER["clean"], 1, resize=False)
        token_tm = jv.token_tm(net, W, PEER["clean"], 1, resize=False)
    assert np.abs(PEER["le_grad"]).max() > 1e-3
    np.testing.assert_allclose(whole, PEER["le_grad"].mean(0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(token_tm, PEER["token_tm"], rtol=1e-10)
    np.testing.assert_allclose(outputs, PEER["outputs"], rtol=0, atol=1e-10)


def test_patching_is_what_hooks_do():
    asked = {
        "stream": {"layers": [f"block_{i}" for i in range(BLOCKS)]},
        "heads": {"axis": (1, 2)},
    }
    with jax.enable_x64(True):
        for name, options in asked.items():
            found = jv.activation_patching(
                net, W, PEER["corrupted"], PEER["clean"], difference, **options
            )
            share = np.asarray(found.share).reshape(PEER[name].shape)
            np.testing.assert_allclose(share, PEER[name], rtol=0, atol=1e-10, err_msg=name)
