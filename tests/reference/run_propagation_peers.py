"""Writes propagation_peers.npz: three tiny nets, their inputs, and what Captum and zennit give.

Run where torch, captum (0.9.0) and zennit (0.5.1) are; everything in double precision. Arrays are
channels-last. Keys are `net/weight` for weights and `net/peer_method` for relevance.
"""

import pathlib

import captum.attr
import numpy as np
import torch
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from torch import nn
from zennit import composites, rules
from zennit.layer import Sum

FOLDER = pathlib.Path(__file__).parent
TINY = 1e-30  # Captum has epsilon in poolings and sums, which by themselves need none


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Plain(nn.Module):
    """Convolutions, pooling, dense layers."""

    def __init__(self, pool=nn.MaxPool2d, act=nn.ReLU):
        super().__init__()
        self.conv1, self.act1, self.pool1 = nn.Conv2d(2, 6, 3, padding=1), act(), pool(2)
        self.conv2, self.act2, self.pool2 = nn.Conv2d(6, 8, 3, padding=1), act(), pool(2)
        self.flat, self.fc1, self.act3 = ChannelsLast(), nn.Linear(32, 10), act()
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x):
        x = self.pool1(self.act1(self.conv1(x)))
        x = self.pool2(self.act2(self.conv2(x)))
        return self.fc2(self.act3(self.fc1(self.flat(x))))


class Add(nn.Module):
    """A sum that either peer knows as one."""

    def __init__(self, peer):
        super().__init__()
        self.sum = Sum() if peer == "zennit" else Addition_Module()
        self.peer = peer

    def forward(self, a, b):
        return self.sum(torch.stack([a, b], -1)) if self.peer == "zennit" else self.sum(a, b)


class Residual(nn.Module):
    """Batch norm after each convolution, a skip, a strided projection, the mean over space."""

    def __init__(self, peer="captum"):
        super().__init__()
        self.conv1, self.bn1, self.act1 = _conv(2, 6), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.bn2, self.act2 = _conv(6, 6), nn.BatchNorm2d(6), nn.ReLU()
        self.conv3, self.bn3 = _conv(6, 6), nn.BatchNorm2d(6)
        self.add1, self.act3 = Add(peer), nn.ReLU()
        self.conv4, self.bn4 = _conv(6, 8, stride=2), nn.BatchNorm2d(8)
        self.conv5, self.bn5 = nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.add2, self.act4 = Add(peer), nn.ReLU()
        self.mean, self.flat, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(x)))))
        x = self.act3(self.add1(y, x))
        x = self.act4(self.add2(self.bn4(self.conv4(x)), self.bn5(self.conv5(x))))
        return self.fc(self.flat(self.mean(x)))


def _conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class LateNorm(nn.Module):
    """Batch norm after pooling, where no linear layer can take it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.act1, self.pool1 = nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.bn1, self.flat, self.fc = nn.BatchNorm2d(6), ChannelsLast(), nn.Linear(54, 4)

    def forward(self, x):
        return self.fc(self.flat(self.bn1(self.pool1(self.act1(self.conv1(x))))))


def draw(rng, net):
    """Random weights, by name and channels-last."""
    out = {}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            shape = tuple(module.weight.shape)
            scale = np.sqrt(2 / np.prod(shape[1:]))
            order = (2, 3, 1, 0) if len(shape) == 4 else (1, 0)
            out[f"{name}/kernel"] = (scale * rng.normal(size=shape)).transpose(order)
            if module.bias is not None:
                out[f"{name}/bias"] = 0.2 * rng.normal(size=shape[:1])
        elif isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            out[f"{name}/scale"] = rng.uniform(0.5, 1.5, size) * rng.choice([-1, 1, 1], size)
            out[f"{name}/bias"] = 0.2 * rng.normal(size=size)
            out[f"{name}/mean"] = 0.3 * rng.normal(size=size)
            out[f"{name}/var"] = rng.uniform(0.5, 2.0, size)
    return {name: np.float32(value) for name, value in out.items()}


def load(net, weights):
    net = net.double().eval()
    for key, value in weights.items():
        name, part = key.split("/")
        module = getattr(net, name)
        value = torch.tensor(value.astype(float))
        if part == "kernel":
            order = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
            module.weight.data = value.permute(order).contiguous()
        else:
            part = {"scale": "weight", "mean": "running_mean", "var": "running_var"}.get(part, part)
            getattr(module, part).data = value
    return net


def first(a):
    return torch.tensor(np.moveaxis(np.asarray(a, float), -1, 1))


def fold(net):
    """Batch norm into the convolution before it.

    zennit's own canonizer leaves its epsilon in place: the net is off by 5e-6 a layer.
    """
    for number in range(1, 6):
        conv, norm = getattr(net, f"conv{number}"), getattr(net, f"bn{number}")
        scale = norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
        conv.weight.data = conv.weight.data * scale[:, None, None, None]
        conv.bias = nn.Parameter(norm.bias.data - norm.running_mean * scale)
        setattr(net, f"bn{number}", nn.Identity())
    return net


def zennit(net, x, target, composite):
    x = x.clone().requires_grad_()
    with composite.context(net) as modified:
        out = modified(x)
        start = torch.zeros_like(out)
        rows = torch.arange(len(out))
        start[rows, target] = out.detach()[rows, target]
        (relevance,) = torch.autograd.grad(out, x, start)
    return relevance


def zennit_values(make, x, target):
    """Composites, and single rules in all convolutions and dense layers."""
    stable = 1e-6
    base = [
        (composites.Activation, rules.Pass()),
        (Sum, rules.Norm(stable)),
        (composites.AvgPool, rules.Norm(stable)),
        (composites.BatchNorm, rules.Pass()),
    ]
    single = {
        "epsilon": rules.Epsilon(0.1),
        "gamma": rules.Gamma(0.3),
        "zplus": rules.ZPlus(),
        "zplus_no_bias": rules.ZPlus(zero_params="bias"),
        "alpha2_beta1": rules.AlphaBeta(2, 1),
        "wsquare_no_bias": rules.WSquare(zero_params="bias"),
        "wsquare": rules.WSquare(),
        "flat": rules.Flat(),
    }
    table = {
        name: composites.LayerMapComposite([*base, (composites.Linear, rule)])
        for name, rule in single.items()
    }
    table |= {
        "epsilon_plus": composites.EpsilonPlus(),
        "epsilon_plus_flat": composites.EpsilonPlusFlat(),
        "epsilon_alpha2_beta1": composites.EpsilonAlpha2Beta1(),
        "epsilon_alpha2_beta1_flat": composites.EpsilonAlpha2Beta1Flat(),
        "epsilon_gamma_box": composites.EpsilonGammaBox(low=-3.0, high=4.0),
    }
    return {f"zennit_{k}": zennit(make(), x, target, c) for k, c in table.items()}


def captum_lrp(net, x, target, rule):
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.rule = rule()
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            module.rule = EpsilonRule(TINY)
        elif isinstance(module, (nn.BatchNorm2d, Addition_Module)):
            module.rule = EpsilonRule(TINY)
        elif isinstance(module, (nn.Flatten, ChannelsLast)):
            module.rule = EpsilonRule(TINY)
    return captum.attr.LRP(net).attribute(x, target)


def captum_rules(make, x, target):
    table = {
        "epsilon_025": lambda: EpsilonRule(0.25),
        "gamma_no_bias": lambda: GammaRule(0.25, set_bias_to_zero=True),
        "gamma": lambda: GammaRule(0.25),
        "zplus_no_bias": lambda: Alpha1_Beta0_Rule(set_bias_to_zero=True),
        "zplus": lambda: Alpha1_Beta0_Rule(),
    }
    return {f"captum_{k}": captum_lrp(make(), x, target, rule) for k, rule in table.items()}


def deep_lift(net, x, target, baseline):
    return captum.attr.DeepLift(net).attribute(x, baseline, target)


def main():
    rng = np.random.default_rng(11)
    x = np.float32(rng.normal(size=(2, 8, 8, 2)))
    out = {
        "x": x,
        "target": np.array([0, 3]),
        "baseline": np.float32(0.5 * rng.normal(size=(8, 8, 2))),
        "baselines": np.float32(rng.normal(size=(4, 8, 8, 2))),
    }
    target, baseline = torch.tensor(out["target"]), first(out["baseline"][None])
    makers = {"plain": Plain, "residual": Residual, "late_norm": LateNorm}
    weights = {}
    for name, make in makers.items():
        weights[name] = draw(rng, make())
        out |= {f"{name}/{key}": value for key, value in weights[name].items()}

    found = {}
    images = first(x)
    for name, make in makers.items():
        build = lambda make=make, name=name, **k: load(make(**k), weights[name])
        for_zennit = (lambda b=build: fold(b(peer="zennit"))) if name == "residual" else build
        values = {"logits": build()(images)}
        values |= zennit_values(for_zennit, images, target)
        values["guided_backprop"] = captum.attr.GuidedBackprop(build()).attribute(images, target)
        values["deconvolution"] = captum.attr.Deconvolution(build()).attribute(images, target)
        values["captum_epsilon"] = captum_lrp(build(), images, target, lambda: EpsilonRule(TINY))
        found |= {f"{name}/{key}": value for key, value in values.items()}
    build = lambda **k: load(Plain(**k), weights["plain"])
    found |= {f"plain/{k}": v for k, v in captum_rules(build, images, target).items()}
    # Captum's rules know inputs that are not negative: the same on such.
    values = captum_rules(build, images.abs(), target)
    values["logits"] = build()(images.abs())
    found |= {f"plain/abs_{k}": v for k, v in values.items()}

    found["plain/deep_lift_max_pool"] = deep_lift(build(), images, target, baseline)
    average = lambda act=nn.ReLU: build(pool=nn.AvgPool2d, act=act)
    for act in (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.Softplus):
        key = f"plain/deep_lift_{act.__name__.lower()}"
        found[key] = deep_lift(average(act), images, target, baseline)
    found["plain/deep_lift_zero"] = deep_lift(average(), images, target, 0 * baseline)
    found["plain/deep_lift_shap"] = captum.attr.DeepLiftShap(average()).attribute(
        images, first(out["baselines"]), target
    )
    net = load(Residual(), weights["residual"])
    found["residual/deep_lift"] = deep_lift(net, images, target, baseline)

    for key, value in found.items():
        value = value.detach().numpy()
        out[key] = np.moveaxis(value, 1, -1) if value.ndim == 4 else value
    np.savez_compressed(FOLDER / "propagation_peers.npz", **out)


if __name__ == "__main__":
    main()
