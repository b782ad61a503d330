"""Rollout, Chefer's relevance and patching by hooks, in PyTorch on a tiny encoder.

    python tests/reference/run_attention_peers.py tests/reference/attention_peers.npz

Needs torch alone. The published formulas: rollout divides rows of A + I (Abnar and Zuidema 2020),
relevance is R <- R + mean_heads(relu(A * dA)) R (Chefer et al. 2021), patching a forward pass a
head. Blocks with RMS norms ahead and no biases, the first token read.
"""

import sys

import numpy as np
import torch

BLOCKS, HEADS = 2, 2
draw = np.random.default_rng(0)
made = lambda *shape: (draw.normal(size=shape) / np.sqrt(shape[-2])).astype(np.float32)
given = {name: made(2, 8, 8) for name in "qkvo"} | {"u": made(2, 8, 32), "d": made(2, 32, 8)}
given |= {"head": made(8, 3), "x": made(2, 5, 8), "source": made(2, 5, 8)}
W = {name: torch.from_numpy(a) for name, a in given.items()}
X, SOURCE = W["x"], W["source"]


def rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def split(x):
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


def net(x, seen=None, put=lambda block, z: z):
    """Logits; `seen` gets each block's attention and heads, `put(block, z)` stands for heads."""
    for i in range(BLOCKS):
        q, k, v = (split(rms(x) @ W[name][i]) for name in "qkv")
        a = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        z = put(i, a @ v)
        if seen is not None:
            seen.append((a, z))
        x = x + z.transpose(1, 2).reshape(x.shape) @ W["o"][i]
        x = x + torch.nn.functional.gelu(rms(x) @ W["u"][i], approximate="tanh") @ W["d"][i]
    return rms(x)[:, 0] @ W["head"]


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


found = {f.__name__: f().detach().numpy() for f in (rollout, relevance, patching)}
np.savez(sys.argv[1], **given, heads=HEADS, steps=4, **found)
