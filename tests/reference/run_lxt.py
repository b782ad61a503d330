"""Relevances of three transformer blocks by LXT 2.1's explicit rules, for `lrp(rules="attn_lrp")`.

    python tests/reference/run_lxt.py tests/reference/lxt.npz

Needs torch and lxt (`lxt.explicit.functional`, which imports torch alone). Everything is float64.
"exact" is with the stabilisers that LXT adds to every denominator (1e-6 and 1e-8, to z, whatever
its sign) taken away, "shipped" as the functions come. Where LXT has no function of a kind
(transposes, splits) torch's derivative moves relevance as it stands.
"""

import math
import sys

import lxt.explicit.functional as lf
import numpy as np
import torch
from lxt.explicit.rules import identity

WIDTH, HEADS, TOKENS, HIDDEN, CLASSES = 8, 4, 5, 12, 3
rng = np.random.default_rng(0)
arrays: dict[str, np.ndarray] = {}


def weights(prefix, **shapes):
    """Drawn and kept under their names."""
    made = {}
    for name, shape in shapes.items():
        drawn = rng.normal(size=shape) / (math.sqrt(shape[0]) if len(shape) > 1 else 4)
        arrays[f"{prefix}/{name}"] = drawn + (name.startswith("scale"))
        made[name] = torch.tensor(arrays[f"{prefix}/{name}"])
    return made


def linear(x, w, b=None):
    return lf.linear_epsilon(x, w.T, b)


def heads(x, count):
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def attend(q, k, v, hidden=None):
    """[N, heads, tokens, size] each; `hidden` says which keys nobody may look at."""
    scores = lf.mul2(lf.matmul(q, k.transpose(-1, -2)), 1 / math.sqrt(q.shape[-1]))
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    mixed = lf.matmul(lf.softmax(scores, -1), v)
    return mixed.transpose(1, 2).reshape(len(mixed), mixed.shape[2], -1)


def self_attention(x, p, hidden=None):
    q, k, v = (heads(linear(x, p[f"w{a}"], p[f"b{a}"]), HEADS) for a in "qkv")
    return linear(attend(q, k, v, hidden), p["wo"], p["bo"])


def feed_forward(x, p):
    h = identity(torch.nn.functional.gelu, linear(x, p["w1"], p["b1"]))
    return linear(h, p["w2"], p["b2"])


def vit(x, p):
    x = lf.add2(x, p["position"].expand_as(x))
    x = lf.add2(x, self_attention(lf.layer_norm(x, p["scale1"], p["shift1"], 1e-6), p))
    x = lf.add2(x, feed_forward(lf.layer_norm(x, p["scale2"], p["shift2"], 1e-6), p))
    return linear(lf.layer_norm(x, p["scale3"], p["shift3"], 1e-6)[:, 0], p["wh"], p["bh"])


def bert(x, p):
    hidden = torch.tensor(arrays["bert/padded"])[:, None, None]
    x = lf.layer_norm(lf.add2(x, p["position"].expand_as(x)), p["scale0"], p["shift0"], 1e-12)
    x = lf.layer_norm(lf.add2(x, self_attention(x, p, hidden)), p["scale1"], p["shift1"], 1e-12)
    x = lf.layer_norm(lf.add2(x, feed_forward(x, p)), p["scale2"], p["shift2"], 1e-12)
    return linear(identity(torch.tanh, linear(x[:, 0], p["wp"], p["bp"])), p["wh"], p["bh"])


def rms(x, scale):
    # lf.rms_norm_identity computes in float32, so here are the rules that it stands for.
    held = torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + 1e-6)
    return lf.mul2(lf.mul2(x, held), scale)


def rotary(x):
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2]).double()[:, None] / 10 ** torch.arange(half).double()
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    turned = torch.cat([lf.mul2(x[..., half:], -1.0), x[..., :half]], -1)
    return lf.add2(lf.mul2(x, cos), lf.mul2(turned, sin))


def llama(x, p):
    y = rms(x, p["scale1"])
    q = rotary(heads(linear(y, p["wq"]), HEADS))
    k, v = rotary(heads(linear(y, p["wk"]), 2)), heads(linear(y, p["wv"]), 2)
    k, v = (a.repeat_interleave(2, 1) for a in (k, v))
    later = torch.ones(TOKENS, TOKENS).triu(1).bool()
    x = lf.add2(x, linear(attend(q, k, v, later), p["wo"]))
    y = rms(x, p["scale2"])
    gate = identity(torch.nn.functional.silu, linear(y, p["wg"]))
    x = lf.add2(x, linear(lf.mul2(gate, linear(y, p["wu"])), p["wd"]))
    return linear(rms(x, p["scale3"])[:, -1], p["wh"])


SQUARE = {f"w{a}": (WIDTH, WIDTH) for a in "qkvo"} | {f"b{a}": (WIDTH,) for a in "qkvo"}
MLP = {"w1": (WIDTH, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, WIDTH), "b2": (WIDTH,)}
HEAD = {"wh": (WIDTH, CLASSES), "bh": (CLASSES,), "position": (1, TOKENS, WIDTH)}


def norms(*numbers):
    return {f"{kind}{i}": (WIDTH,) for i in numbers for kind in ("scale", "shift")}


def relevance(net, p, x):
    x = torch.tensor(x, requires_grad=True)
    out = net(x, p)
    start = torch.zeros_like(out)
    start[:, 1] = out[:, 1].detach()
    return out.detach().numpy(), torch.autograd.grad(out, x, start)[0].numpy()


def main(path):
    nets = {
        "vit": (vit, SQUARE | MLP | HEAD | norms(1, 2, 3)),
        "bert": (bert, SQUARE | MLP | HEAD | norms(0, 1, 2) | {"wp": (WIDTH,) * 2, "bp": (WIDTH,)}),
        "llama": (llama, {
            "wq": (WIDTH, WIDTH), "wk": (WIDTH, 4), "wv": (WIDTH, 4), "wo": (WIDTH, WIDTH),
            "wg": (WIDTH, HIDDEN), "wu": (WIDTH, HIDDEN), "wd": (HIDDEN, WIDTH),
            "wh": (WIDTH, CLASSES)} | {f"scale{i}": (WIDTH,) for i in (1, 2, 3)}),
    }  # fmt: skip
    arrays["bert/padded"] = np.arange(TOKENS) >= np.array([[TOKENS], [3]])
    for name, (net, shapes) in nets.items():
        p = weights(name, **shapes)
        x = arrays[f"{name}/x"] = rng.normal(size=(2, TOKENS, WIDTH))
        arrays[f"{name}/out"], arrays[f"{name}/shipped"] = relevance(net, p, x)
        kept, lf._stabilize = lf._stabilize, lambda z, epsilon=0, inplace=False: z
        arrays[f"{name}/exact"] = relevance(net, p, x)[1]
        lf._stabilize = kept
    # Where LXT leaves the paper: the sum of a softmax's relevance is over the last axis, whichever
    # axis the softmax is over (proposition 3.1 sums over the softmax's own).
    x = torch.tensor(rng.normal(size=(3, 4)), requires_grad=True)
    r = torch.tensor(rng.normal(size=(3, 4)))
    arrays.update({"softmax/x": x.detach().numpy(), "softmax/r": r.numpy()})
    arrays["softmax/lxt"] = torch.autograd.grad(lf.softmax(x, 0), x, r)[0].numpy()
    # And stabilisers are added to z as it is: at z = -epsilon nothing is left.
    w = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0 + 1e-6]], dtype=torch.float64, requires_grad=True)
    arrays["stabilizer/x"] = x.detach().numpy()
    found = torch.autograd.grad(lf.linear_epsilon(x, w.T), x, torch.ones(1, 1).double())[0]
    arrays["stabilizer/lxt"] = found.numpy()
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
