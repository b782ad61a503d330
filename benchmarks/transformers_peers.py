"""What peers offer on transformers: calls without arguments, by transformer_methods.py's names.

Captum as its documents call it; the papers' procedures with hooks, whose code comes with a
hand-edited model of its own each; LXT by its efficient rules; pytorch-grad-cam in
transformers_cams.py. A list holds several settings of one method, of which the fastest is timed.
"""

import functools
import importlib.util
import os

import lxt
import torch
from captum import attr
from transformers_cams import cams
from transformers_side import FromEmbeddings

# The rules alone, for their package imports transformers.
_SPEC = importlib.util.spec_from_file_location(
    "lxt_rules", os.path.join(os.path.dirname(lxt.__file__), "efficient", "rules.py")
)
rules = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(rules)

STEPS, NOISY, SAMPLES, ORDERS, CELLS = 10, 8, 64, 4, 2


class Case:
    """A net, its input and another one; `model` and `start` are the same net of floating numbers:
    of the image, or of what ids are embedded as."""

    def __init__(self, net, bare, x, source):
        self.net, self.bare, self.x, self.source = net, bare, x, source
        self.model = net if net.is_vit else FromEmbeddings(net)
        self.start = x if net.is_vit else net.words(x).detach()
        self.target_layer = net.blocks[-1].norm1

    def freeze(self, name):
        """Takes gradients from all weights but those that a method sees its gradients by."""
        for p in self.net.parameters():
            p.requires_grad_(name is None)
        if name is not None:
            kept = self.target_layer.parameters() if "cam" in name else [self.net.places]
            for p in kept:
                p.requires_grad_(True)

    def grid(self, tokens):
        """`[N, tokens, channels]` as `[N, channels, rows, columns]`, without the class token."""
        side = int((tokens.shape[1] - 1) ** 0.5)
        return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)

    def hooked(self, run, part=lambda block: block.attention.seen):
        """What `run` makes, and what that part of each block gave."""
        kept = []
        keep = lambda module, given, out: kept.append(out)
        hooks = [part(b).register_forward_hook(keep) for b in self.net.blocks]
        self.net.explicit(True)
        out = run()
        self.net.explicit(False)
        for hook in hooks:
            hook.remove()
        return out, kept

    def laid(self, total):
        """The class token's row, without its own place where patches have a grid."""
        row = total[:, 0] if total.ndim == 3 else total
        return self.grid(row[..., None])[:, 0] if self.net.is_vit else row


def products(case):
    x = (case.x if case.net.is_vit else case.bare.words(case.x).detach()).clone().requires_grad_()
    model = case.bare if case.net.is_vit else FromEmbeddings(case.bare)
    return torch.autograd.grad(model(x)[:, 0].sum(), x)[0]


@torch.no_grad()
def rollout(case):
    """Abnar and Zuidema 2020."""
    _, seen = case.hooked(lambda: case.net(case.x))
    total = torch.eye(seen[0].shape[-1])
    for a in seen:
        mixed = a.mean(1) + torch.eye(a.shape[-1])
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return case.laid(total)


def relevance(case):
    """Chefer, Gur and Wolf 2021."""
    scores, seen = case.hooked(lambda: case.net(case.x))
    for a in seen:
        a.retain_grad()
    case.net.zero_grad()
    scores[:, 0].sum().backward()
    total = torch.zeros(1, *seen[0].shape[2:])
    for a in seen:
        step = (a * a.grad).clamp(min=0).mean(1).detach()
        total = total + step + step @ total
    return case.laid(total)


def attention_x_gradient(case):
    """Barkan et al. 2021, of the last block and signed."""
    scores, seen = case.hooked(lambda: case.net(case.x))
    (slope,) = torch.autograd.grad(scores[:, 0].sum(), seen[-1])
    return case.laid((seen[-1] * slope).sum((1, 2)))


def le_grad(case):
    """Bousselham et al. 2024."""
    net = case.net
    (_, streams), seen = case.hooked(lambda: case.hooked(lambda: net(case.x), lambda b: b))
    total = 0
    for a, z in zip(seen, streams, strict=True):
        score = net.read(z.mean(1, keepdim=True))[:, 0].sum()
        (slope,) = torch.autograd.grad(score, a, retain_graph=True)
        total = total + slope.clamp(min=0).mean((1, 2))
    return case.laid(total / len(seen))


def token_tm(case):
    """Wu et al. 2024: each head's values through its part of the projection, by hooks."""
    net, kept = case.net, []
    ahead = net.blocks[0].ahead
    note = lambda module, given, out: kept.append((given[0].detach(), out.detach()))
    parts = lambda b: (b.attention.v, b.norm2 if ahead else b.norm1, b.down, b)
    hooks = [part.register_forward_hook(note) for b in net.blocks for part in parts(b)]
    scores, seen = case.hooked(lambda: net(case.x))
    for hook in hooks:
        hook.remove()
    slopes = torch.autograd.grad(scores[:, 0].sum(), seen)

    def weight(e, made):
        cosine = torch.nn.functional.cosine_similarity(e, made, dim=-1)
        return made.norm(dim=-1) / e.norm(dim=-1) * cosine.softmax(-1)

    with torch.no_grad():
        total = torch.diag_embed(kept[3][0].norm(dim=-1))
        for i, (block, a, slope) in enumerate(zip(net.blocks, seen, slopes, strict=True)):
            (_, v), middle, (_, f), (x, _) = kept[4 * i : 4 * i + 4]
            heads = block.attention.heads
            rows = v.reshape(*v.shape[:2], heads, -1).transpose(1, 2)
            columns = block.attention.o.weight.reshape(x.shape[-1], heads, -1).permute(1, 2, 0)
            w = weight(x[:, None], rows @ columns)
            total = total + ((a * slope).clamp(min=0) * w[:, :, None]).mean(1) @ total
            total = total + weight(middle[0 if ahead else 1], f)[..., None] * total
    return case.laid(total)


@torch.no_grad()
def value_zeroing(case):
    """Mohebbi et al. 2023: a block run again for each token, its value zeroed by a hook."""
    given = []
    keep = lambda module, x: given.append(x[0])
    hooks = [b.register_forward_pre_hook(keep) for b in case.net.blocks]
    case.net(case.x)
    for hook in hooks:
        hook.remove()
    total = None
    for block, x in zip(case.net.blocks, given, strict=True):
        clean, rows = block(x), []
        for j in range(x.shape[1]):

            def zero(module, x, out, j=j):
                out = out.clone()
                out[:, j] = 0
                return out

            hook = block.attention.v.register_forward_hook(zero)
            rows.append(1 - torch.cosine_similarity(block(x), clean, dim=-1))
            hook.remove()
        step = torch.stack(rows, -1)
        step = step / step.sum(-1, keepdim=True)
        total = step if total is None else step @ total
    return case.laid(total)


@torch.no_grad()
def recipro_cam(case):
    """Byun and Lee 2023: of the last block's first norm a masked copy for each patch."""
    net, block = case.net, case.net.blocks[-1]
    kept = {}
    note = lambda name: lambda module, x, out: kept.update({name: (x[0], out)})
    hook = block.norm1.register_forward_hook(note("norm"))
    net(case.x)
    hook.remove()
    x, a = kept["norm"]
    side = int((a.shape[1] - 1) ** 0.5)
    near = torch.tensor([0.25, 0.5, 0.25])
    places = torch.eye(side * side).reshape(-1, 1, side, side)
    masks = torch.nn.functional.conv2d(places, (near[:, None] * near)[None, None], padding=1)
    masks = torch.cat([torch.ones(len(masks), 1), masks.flatten(1)], 1)[..., None]
    z = x + block.attention(a * masks)
    z = z + block.mlp(block.norm2(z))
    return net.read(z)[:, 0].reshape(1, side, side)


def attn_lrp(case):
    """Achtibat et al. 2024 by LXT's rules: a gradient times the input."""
    net, x = case.net, case.start.detach().clone().requires_grad_()

    def norm(module, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / rules.stop_gradient((x.pow(2).mean(-1, keepdim=True) + module.eps).sqrt())
        return x * module.weight + module.bias

    def attention(part, x):
        split = lambda a: a.reshape(*a.shape[:2], part.heads, -1).transpose(1, 2)
        q, k, v = (split(dense(x)) for dense in (part.q, part.k, part.v))
        q, k, v = (rules.divide_gradient(a, n) for a, n in ((q, 4), (k, 4), (v, 2)))
        z = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return part.o(z.transpose(1, 2).reshape(x.shape))

    def mlp(b, x):
        return b.down(rules.identity_rule_implicit(b.gelu, b.up(x)))

    z = net.embedded(x) if net.is_vit else x
    z = z + net.places
    z = z if net.is_vit else norm(net.norm, z)
    for b in net.blocks:
        if net.is_vit:
            z = z + attention(b.attention, norm(b.norm1, z))
            z = z + mlp(b, norm(b.norm2, z))
        else:
            z = norm(b.norm1, z + attention(b.attention, z))
            z = norm(b.norm2, z + mlp(b, z))
    z = norm(net.norm, z) if net.is_vit else z
    (slope,) = torch.autograd.grad(net.head(z[:, 0])[:, 0].sum(), x)
    return slope * x


@torch.no_grad()
def patching(case):
    """A forward pass a head, one head's output taken from the other input by a hook."""
    net = case.net
    _, there = case.hooked(lambda: net(case.source), lambda block: block.attention.mixed)
    base, heads = net(case.x)[:, 0], there[0].shape[1]
    found = torch.zeros(1, len(net.blocks), heads)
    for i, block in enumerate(net.blocks):
        for head in range(heads):

            def put(module, x, z, i=i, head=head):
                z = z.clone()
                z[:, head] = there[i][:, head]
                return z

            hook = block.attention.mixed.register_forward_hook(put)
            found[:, i, head] = net(case.x)[:, 0] - base
            hook.remove()
    return found


def methods(case):
    net, x, model, start = case.net, case.x, case.model, case.start
    middle = net.blocks[len(net.blocks) // 2 - 1]
    blank = torch.zeros_like(start) if net.is_vit else net.words(torch.zeros_like(x)).detach()
    hooked = rollout, relevance, attention_x_gradient, le_grad, token_tm, value_zeroing
    every = (products, *hooked, attn_lrp, patching)
    by = {f.__name__: functools.partial(f, case) for f in every}
    by["gradient"] = lambda: attr.Saliency(model).attribute(start, target=0, abs=False)
    by["input_x_gradient"] = lambda: attr.InputXGradient(model).attribute(start, target=0)
    path = {"baselines": blank, "target": 0}
    summed = {"n_steps": STEPS, "method": "riemann_middle"}
    by["integrated"] = [
        lambda size=size: attr.IntegratedGradients(model).attribute(
            start, internal_batch_size=size, **summed, **path
        )
        for size in ((1, 4) if net.is_vit else (4, 10))
    ]
    by["conductance"] = [
        lambda size=size: attr.LayerConductance(model, middle).attribute(
            start, internal_batch_size=size, **summed, **path
        )
        for size in (None, 4)
    ]
    by["gradient_shap"] = lambda: attr.GradientShap(model).attribute(start, n_samples=NOISY, **path)
    by["smooth_grad"] = [
        lambda size=size: attr.NoiseTunnel(attr.Saliency(model)).attribute(
            start, target=0, nt_samples=NOISY, nt_samples_batch_size=size, stdevs=0.15, abs=False
        )
        for size in (1, None)
    ]
    if net.is_vit:
        cell = CELLS * net.embed.kernel_size[0]
        line = torch.arange(x.shape[-1]) // cell
        single = group = (line[:, None] * (x.shape[-1] // cell) + line)[None, None]
    else:
        single, group = torch.arange(x.shape[1])[None], torch.arange(x.shape[1])[None] // 4
    together = {"target": 0, "baselines": 0, "perturbations_per_eval": 8}
    by["ablation"] = lambda: attr.FeatureAblation(net).attribute(x, feature_mask=single, **together)
    sampled = {"n_samples": SAMPLES, "feature_mask": group, **together}
    by["kernel_shap"] = lambda: attr.KernelShap(net).attribute(x, **sampled)
    by["lime"] = lambda: attr.Lime(net).attribute(x, **sampled)
    by["shapley"] = lambda: attr.ShapleyValueSampling(net).attribute(
        x, **sampled | {"n_samples": ORDERS}
    )
    if not net.is_vit:
        return by
    by["occlusion"] = lambda: attr.Occlusion(net).attribute(
        x, sliding_window_shapes=(3, cell, cell), strides=(3, cell, cell), **together
    )
    by["recipro_cam"] = functools.partial(recipro_cam, case)
    return by | cams(case)
