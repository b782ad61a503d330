"""LeGrad and TokenTM by their formulas, and patching, by hooks on a small ViT in PyTorch.

    python tests/reference/run_vit_by_hooks.py tests/reference/vit_by_hooks.npz

Needs torch (2.13 made the file) alone; all is float64. LeGrad is Bousselham et al. 2024,
arXiv:2404.03214, section 3.2, with what their code does for CLIP where the text leaves room: of
block l the mean of all tokens, class token included, through the last norm and the head; its
gradient by that block's attention, what is positive of it, mean over heads and queries, class token
dropped. There blocks are added up and scaled to 0..1; here each stands for itself.

Patching is what TransformerLens' `get_act_patch_resid_post` and `..._attn_head_out_by_pos` do, in
its denoising form: the run on the corrupted input, with one part of a module's output as on the
clean one, put there by a forward hook; a forward pass a part. The metric is a difference of two
logits, each example apart.
"""

import itertools
import math
import sys

import numpy as np
import torch

WIDTH, HEADS, HIDDEN, CLASSES, PATCH, BLOCKS = 8, 2, 12, 4, 3, 3
ROWS, COLUMNS, CHANNELS, N = 2, 3, 2, 2
TOKENS = ROWS * COLUMNS + 1


class Mixed(torch.nn.Module):
    """Attention's weights times its values, `[N, heads, tokens, size]`: the head's output z."""

    def forward(self, weights, v):
        return weights @ v


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, WIDTH)
        self.mixed = Mixed()

    def forward(self, x):
        y = self.before(x)
        split = lambda a: a.reshape(*a.shape[:2], HEADS, -1).transpose(1, 2)
        q, k, v = (split(part(y)) for part in (self.q, self.k, self.v))
        self.weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH / HEADS)).softmax(-1)
        z = self.mixed(self.weights, v)
        x = x + self.o(z.transpose(1, 2).reshape(x.shape))
        return x + self.down(torch.nn.functional.gelu(self.up(self.between(x))))


class ViT(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.first = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = torch.nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.blocks = torch.nn.ModuleList(Block() for _ in range(BLOCKS))
        self.last, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, x):  # [N, H, W, C], as the other side has it
        x = self.embed(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), 1, WIDTH), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x)[:, 0])


def le_grad(net, x, target):
    """`[blocks, N, rows, columns]`."""
    streams = []
    hooks = [b.register_forward_hook(lambda _, __, out: streams.append(out)) for b in net.blocks]
    net(x)
    for hook in hooks:
        hook.remove()
    maps = []
    for block, z in zip(net.blocks, streams, strict=True):
        score = net.head(net.last(z.mean(1)))[:, target].sum()
        (gradient,) = torch.autograd.grad(score, block.weights, retain_graph=True)
        seen = gradient.clamp(min=0).mean((1, 2))[:, 1:]
        maps.append(seen.reshape(-1, ROWS, COLUMNS))
    return torch.stack(maps)


def token_tm(net, x, target):
    """`[N, rows, columns]`."""
    seen = []

    def kept(part):
        hook = lambda _, given, out: seen.append((given[0].detach(), out.detach()))
        return part.register_forward_hook(hook)

    parts = [p for b in net.blocks for p in (b.before, b.v, b.between, b.down)]
    hooks = [kept(p) for p in parts]
    score = net(x)[:, target].sum()
    slopes = torch.autograd.grad(score, [b.weights for b in net.blocks])
    for hook in hooks:
        hook.remove()

    def weight(e, made):
        cosine = torch.nn.functional.cosine_similarity(e, made, dim=-1)
        return made.norm(dim=-1) / e.norm(dim=-1) * cosine.softmax(-1)

    total = torch.diag_embed(seen[0][0].norm(dim=-1))
    for i, (block, slope) in enumerate(zip(net.blocks, slopes, strict=True)):
        (e, _), (_, v), (e1, _), (_, f) = seen[4 * i : 4 * i + 4]
        rows = v.split(WIDTH // HEADS, -1)
        columns = block.o.weight.detach().split(WIDTH // HEADS, 1)
        w = torch.stack([weight(e, a @ b.T) for a, b in zip(rows, columns, strict=True)], 1)
        step = (slope * block.weights.detach()).clamp(min=0) * w[:, :, None]
        total = total + step.mean(1) @ total
        total = total + weight(e1, f)[..., None] * total
    return total[:, 0, 1:].reshape(-1, ROWS, COLUMNS)


def difference(outputs):
    return outputs[:, 2] - outputs[:, 0]


@torch.no_grad()
def patching(net, corrupted, clean, modules, parts):
    """`[N, modules, parts]`: (patched - corrupted) / (clean - corrupted)."""
    base, top = difference(net(corrupted)), difference(net(clean))
    kept = {}
    hooks = [m.register_forward_hook(lambda m, _, out: kept.update({m: out})) for m in modules]
    net(clean)
    for hook in hooks:
        hook.remove()
    found = []
    for module, part in itertools.product(modules, parts):

        def put(module, _, out, part=part):
            out = out.clone()
            out[(slice(None), *part)] = kept[module][(slice(None), *part)]
            return out

        hook = module.register_forward_hook(put)
        found.append((difference(net(corrupted)) - base) / (top - base))
        hook.remove()
    return torch.stack(found, 1).reshape(len(base), len(modules), len(parts))


torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
net = ViT().eval()
with torch.no_grad():
    for p in net.parameters():
        p.add_(0.4 * torch.randn_like(p))
clean, corrupted = torch.randn(2, N, ROWS * PATCH, COLUMNS * PATCH, CHANNELS)
mixed = [block.mixed for block in net.blocks]
by_place = list(itertools.product(range(HEADS), range(TOKENS)))
found = {
    "le_grad": le_grad(net, clean, 1),
    "token_tm": token_tm(net, clean, 1),
    "stream": patching(net, corrupted, clean, list(net.blocks), [(t,) for t in range(TOKENS)]),
    "heads": patching(net, corrupted, clean, mixed, by_place),
    "outputs": net(clean),
}
arrays = {"clean": clean, "corrupted": corrupted, **found}
arrays |= {f"net/{name}": p for name, p in net.state_dict().items()}
np.savez_compressed(sys.argv[1], **{k: a.detach().numpy() for k, a in arrays.items()})
