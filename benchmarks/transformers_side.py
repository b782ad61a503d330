"""An encoder in PyTorch and the peers' methods of it, one call for each line of transformers.py.

Needs torch, captum and lxt, and nothing of jaxviz. Attention is returned by the model itself, as
the published codes' hand-edited models do; patching is a loop of forward passes, a head each.
"""

import json
import os
import sys
import time

import lxt.explicit.functional as lf
import numpy as np
import torch
from captum.attr import IntegratedGradients
from lxt.explicit.rules import identity

torch.set_num_threads(int(os.environ["THREADS"]))
CLOCK = getattr(time, os.environ["CLOCK"])
GIVEN = np.load(sys.argv[1])
W = {name: torch.from_numpy(GIVEN[name]) for name in "qkvoud"}
HEAD, X, SOURCE = (torch.from_numpy(GIVEN[name]) for name in ("head", "x", "source"))
HEADS, STEPS, BLOCKS = int(GIVEN["heads"]), int(GIVEN["steps"]), len(W["q"])


def rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def split(x):
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


def net(x, seen=None, put=None, bare=False):
    """Logits; `seen` gets each block's attention and heads, `put(block, z)` stands for heads.

    `bare` leaves out norms, softmax and GELU.
    """
    norm = (lambda x: x) if bare else rms
    softmax = (lambda x: x * 1e-6) if bare else lambda x: torch.softmax(x, -1)
    gelu = (lambda x: x) if bare else lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    for i in range(BLOCKS):
        y = norm(x)
        q, k, v = (split(y @ W[name][i]) for name in "qkv")
        a = softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
        z = a @ v
        z = z if put is None else put(i, z)
        if seen is not None:
            seen.append((a, z))
        x = x + z.transpose(1, 2).reshape(x.shape) @ W["o"][i]
        x = x + gelu(norm(x) @ W["u"][i]) @ W["d"][i]
    return norm(x)[:, 0] @ HEAD


def explicit(x):
    """The same by LXT's explicit rules."""
    dense = lambda x, w: lf.linear_epsilon(x, w.T, None)
    norm = lambda x: lf.mul2(x, torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + 1e-6))
    gelu = lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    for i in range(BLOCKS):
        y = norm(x)
        q, k, v = (split(dense(y, W[name][i])) for name in "qkv")
        scores = lf.mul2(lf.matmul(q, k.transpose(-1, -2)), q.shape[-1] ** -0.5)
        z = lf.matmul(lf.softmax(scores, -1), v)
        x = lf.add2(x, dense(z.transpose(1, 2).reshape(x.shape), W["o"][i]))
        x = lf.add2(x, dense(identity(gelu, dense(norm(x), W["u"][i])), W["d"][i]))
    return dense(norm(x)[:, 0], HEAD)


def gradient(bare=False):
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x, bare=bare)[:, 0].sum(), x)
    return slope


def products():
    return gradient(bare=True)


def rollout():
    with torch.no_grad():
        seen = []
        net(X, seen)
        total = torch.eye(X.shape[1])
        for a, _ in seen:
            mixed = a.mean(1) + torch.eye(a.shape[-1])
            total = mixed / mixed.sum(-1, keepdim=True) @ total
        return total.mean(1)


def relevance():
    seen, x = [], X.clone().requires_grad_()
    score = net(x, seen)[:, 0].sum()
    total = torch.zeros(len(X), X.shape[1], X.shape[1])
    slopes = torch.autograd.grad(score, [a for a, _ in seen])
    for (a, _), slope in zip(seen, slopes, strict=True):
        step = (a * slope).clamp(min=0).mean(1)
        total = total + step + step @ total
    return total.mean(1)


def integrated():
    method = IntegratedGradients(net)
    return method.attribute(X, target=0, n_steps=STEPS, method="riemann_middle",
                            internal_batch_size=8)  # fmt: skip


def attn_lrp():
    x = X.clone().requires_grad_()
    score = explicit(x)[:, 0].sum()
    (slope,) = torch.autograd.grad(score, x, score.detach())
    return slope


def attn_lrp_exact():
    """Without the numbers that LXT adds to every denominator; asked for its result alone."""
    shipped, lf._stabilize = lf._stabilize, lambda z, *_, **__: z
    try:
        return attn_lrp()
    finally:
        lf._stabilize = shipped


def patching():
    with torch.no_grad():
        base, there = net(X)[:, 0], []
        net(SOURCE, there)
        found = torch.zeros(len(X), BLOCKS, HEADS)
        for block in range(BLOCKS):
            for head in range(HEADS):

                def put(i, z, block=block, head=head):
                    if i == block:
                        z = z.clone()
                        z[:, head] = there[i][1][:, head]
                    return z

                found[:, block, head] = net(X, put=put)[:, 0] - base
        return found


METHODS = {
    f.__name__: f
    for f in (
        products,
        gradient,
        rollout,
        relevance,
        integrated,
        attn_lrp,
        attn_lrp_exact,
        patching,
    )
}
for line in sys.stdin:
    name, path = json.loads(line)
    start = CLOCK()
    out = METHODS[name]()
    seconds = CLOCK() - start
    if path:
        np.save(path, out.detach().numpy())
    print(json.dumps(seconds), flush=True)
