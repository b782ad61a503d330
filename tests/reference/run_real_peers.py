"""Writes real_peers.npz: what Captum and zennit give for trained networks.

Run where torch, captum (0.9.0) and zennit (0.5.1) are, with $JAXVIZ_DATA set, after
train_real_nets.py; in double precision. Of each map the numbers at every `STEP`-th row and column
are kept, and its sum. Keys are `net/peer_method` and `net/peer_method/sum`.
"""

import json
import os
import pathlib
import struct
from collections import OrderedDict

import captum.attr
import numpy as np
import run_propagation_peers as small
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from torch import nn
from zennit import composites, rules
from zennit.layer import Sum

FOLDER = pathlib.Path(__file__).parent
DATA = pathlib.Path(os.environ["JAXVIZ_DATA"]) / "weights"
STEP = {"squeezenet": 24, "cifar": 5, "resnet20": 5}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def sequential(parts, pool):
    """A net of (name, module) pairs, where "pool" stands for the pooling."""
    return nn.Sequential(OrderedDict((n, pool(2) if m == "pool" else m) for n, m in parts))


def mnist_a(pool):
    parts = []
    for k, (i, o) in enumerate(((1, 24), (24, 48), (48, 64)), 1):
        parts += [(f"conv{k}", nn.Conv2d(i, o, 3, padding=1)), (f"act{k}", nn.ReLU())]
        parts += [(f"pool{k}", "pool")]
    return sequential([*parts, *head(576, 128)], pool)


def mnist_b(pool):
    parts = [("conv1", nn.Conv2d(1, 32, 3)), ("act1", nn.ReLU())]
    parts += [("conv2", nn.Conv2d(32, 64, 3)), ("act2", nn.ReLU()), ("pool", "pool")]
    return sequential([*parts, *head(9216, 128)], pool)


def mnist_c(pool):
    parts = []
    for k, (i, o, size) in enumerate(((1, 32, 3), (32, 64, 2)), 1):
        parts += [(f"conv{k}", nn.Conv2d(i, o, size)), (f"act{k}", nn.ReLU())]
        parts += [(f"pool{k}", "pool"), (f"bn{k}", nn.BatchNorm2d(o))]
    return sequential([*parts, *head(2304, 256)], pool)


def cifar(pool):
    parts = []
    for k, (i, o) in enumerate(((3, 32), (32, 64)), 1):
        parts += [(f"conv{k}", nn.Conv2d(i, o, 3)), (f"act{k}", nn.ReLU()), (f"pool{k}", "pool")]
    return sequential([*parts, *head(2304, 64)], pool)


def head(inputs, width):
    return [
        ("flat", small.ChannelsLast()),
        ("dense1", nn.Linear(inputs, width)),
        ("act", nn.ReLU()),
        ("dense2", nn.Linear(width, 10)),
    ]


class Shortcut(nn.Module):
    """Every second pixel, and channels of zeros on either side."""

    def __init__(self, new, stride):
        super().__init__()
        self.new, self.stride = new // 2, stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, self.new, self.new))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, peer):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.act1, self.act2, self.add = nn.ReLU(), nn.ReLU(), small.Add(peer)
        # With an nn.Identity here Captum's hooks of it and of conv1 sit on one tensor and undo each
        # other: the relevance of the block's input comes out divided by the input.
        self.shortcut = Shortcut(outputs - inputs, stride) if stride > 1 else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(self.add(y, x if self.shortcut is None else self.shortcut(x)))


class ResNet20(nn.Module):
    def __init__(self, peer="captum"):
        super().__init__()
        self.conv1, self.act = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.ReLU()
        self.bn1 = nn.BatchNorm2d(16)
        widths = ((16, 16), (16, 32), (32, 64))
        for k, (i, o) in enumerate(widths, 1):
            first = Block(i, o, 1 if k == 1 else 2, peer)
            setattr(self, f"layer{k}", nn.Sequential(first, *(Block(o, o, 1, peer) for _ in "ab")))
        self.mean, self.flat, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.act(self.bn1(self.conv1(x))))))
        return self.fc(self.flat(self.mean(x)))


class Fire(nn.Module):
    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze, self.act = nn.Conv2d(inputs, squeeze, 1), nn.ReLU()
        self.expand1x1, self.act1 = nn.Conv2d(squeeze, expand, 1), nn.ReLU()
        self.expand3x3, self.act3 = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU()

    def forward(self, x):
        x = self.act(self.squeeze(x))
        return torch.cat([self.act1(self.expand1x1(x)), self.act3(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()
        pool = lambda: nn.MaxPool2d(3, 2)
        fires = [Fire(*s) for s in ((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128))]
        fires += [Fire(*s) for s in ((256, 48, 192), (384, 48, 192))]
        fires += [Fire(*s) for s in ((384, 64, 256), (512, 64, 256))]
        start = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), *fires[:2], pool(), *fires[2:4]]
        self.features = nn.Sequential(*start, pool(), *fires[4:])
        self.classifier = nn.Sequential(
            nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x):
        return self.classifier(self.features(x))


def fold(net):
    """Batch norm into the convolution right before it, in a ResNet."""
    for module in net.modules():
        for number in (1, 2):
            conv, norm = (getattr(module, f"{kind}{number}", None) for kind in ("conv", "bn"))
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                scale = norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
                conv.weight.data = conv.weight.data * scale[:, None, None, None]
                conv.bias = nn.Parameter(norm.bias.data - norm.running_mean * scale)
                setattr(module, f"bn{number}", nn.Identity())
    return net


def with_identities(build):
    """The same ResNet with an nn.Identity on every skip that is none."""

    def made():
        net = build()
        for module in net.modules():
            if isinstance(module, Block) and module.shortcut is None:
                module.shortcut = nn.Identity()
        return net

    return made


def published(net, file):
    """The net with the weights of a safetensors file: a length, a JSON table, raw values."""
    content = (DATA / file).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    table, content = json.loads(content[8 : 8 + length]), content[8 + length :]
    kinds, state = {"F32": "<f4", "I64": "<i8"}, {}
    for name, entry in table.items():
        if name != "__metadata__":
            value = np.frombuffer(content[slice(*entry["data_offsets"])], kinds[entry["dtype"]])
            state[name] = torch.tensor(value.reshape(entry["shape"]))
    net.load_state_dict(state, strict=True)
    return net.double().eval()


def trained(name, make):
    stored = np.load(FOLDER / "real_weights.npz")
    weights = {}
    for key in stored.files:
        net, _, rest = key.partition("/")
        if net == name and rest not in ("images", "labels") and not rest.endswith("_step"):
            value = stored[key]
            value = np.float32(value) * stored[f"{key}_step"] if "kernel" in key else value
            weights[rest] = value
    return lambda pool=nn.MaxPool2d: small.load(make(pool), weights)


def captum_table(positive, late_norm):
    """Rules that Captum defines; those by sign agree with the papers for inputs >= 0 only."""
    table = {"epsilon": lambda: EpsilonRule(small.TINY), "epsilon_025": lambda: EpsilonRule(0.25)}
    if positive and not late_norm:
        table["gamma_no_bias"] = lambda: GammaRule(0.25, set_bias_to_zero=True)
        table["zplus_no_bias"] = lambda: Alpha1_Beta0_Rule(set_bias_to_zero=True)
    return table


def zennit_table(low, high):
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
        "flat": rules.Flat(),
    }
    table = {
        name: composites.LayerMapComposite([*base, (composites.Linear, rule)])
        for name, rule in single.items()
    }
    return table | {
        "epsilon_plus": composites.EpsilonPlus(),
        "epsilon_plus_flat": composites.EpsilonPlusFlat(),
        "epsilon_alpha2_beta1": composites.EpsilonAlpha2Beta1(),
        "epsilon_alpha2_beta1_flat": composites.EpsilonAlpha2Beta1Flat(),
        "epsilon_gamma_box": composites.EpsilonGammaBox(low=low, high=high),
    }


def values(build, for_zennit, averaged, images, low, high, late_norm=False):
    net = build()
    target = net(images).argmax(1)
    out = {"target": target, "logits": net(images)}
    out["captum_guided_backprop"] = captum.attr.GuidedBackprop(build()).attribute(images, target)
    out["captum_deconvnet"] = captum.attr.Deconvolution(build()).attribute(images, target)
    for name, rule in captum_table(low >= 0, late_norm).items():
        out[f"captum_{name}"] = captum_lrp(build(), images, target, rule)
    for name, composite in zennit_table(low, high).items():
        out[f"zennit_{name}"] = small.zennit(for_zennit(), images, target, composite)
    if averaged is not None:  # Captum's DeepLIFT is not complete with max pooling
        other = averaged()
        out["captum_deep_lift"] = captum.attr.DeepLift(other).attribute(
            images, 0 * images + 0.1, target
        )
    return out


def captum_lrp(net, images, target, rule):
    for module in net.modules():
        if isinstance(module, (Shortcut, nn.Identity)):
            module.rule = EpsilonRule(small.TINY)
    return small.captum_lrp(net, images, target, rule)


def main():
    out = {}
    stored = np.load(FOLDER / "real_weights.npz")
    makers = {"mnist_a": mnist_a, "mnist_b": mnist_b, "mnist_c": mnist_c, "cifar": cifar}
    found = {}
    for name, make in makers.items():
        build = trained(name, make)
        images = stored[f"{name}/images"].astype(np.float32) / np.float32(255)
        averaged = lambda build=build: build(nn.AvgPool2d)
        late = name == "mnist_c"
        found[name] = values(build, build, averaged, small.first(images), 0.0, 1.0, late)
        print(name, flush=True)
    normal = lambda u: small.first(np.float32((u / 255 - MEAN) / STD))
    images = normal(np.load(DATA / "resnet20_reference.npz")["inputs_uint8"][:2])
    build = lambda **k: published(ResNet20(**k), "resnet20_cifar10.safetensors")
    folded = lambda: fold(build(peer="zennit"))
    found["resnet20"] = values(build, folded, build, images, -3.0, 3.0)
    target = found["resnet20"]["target"]
    for name, make in (("025_folded", lambda: fold(build())), ("identity", with_identities(build))):
        rule = lambda name=name: EpsilonRule(small.TINY if name == "identity" else 0.25)
        found["resnet20"][f"captum_epsilon_{name}"] = captum_lrp(make(), images, target, rule)
    print("resnet20", flush=True)
    images = normal(np.load(DATA / "squeezenet1_1_reference.npz")["inputs_uint8"][:1])
    build = lambda: published(SqueezeNet(), "squeezenet1_1_imagenet.safetensors")
    found["squeezenet"] = values(build, build, None, images, -3.0, 3.0)
    for name, table in found.items():
        for key, value in table.items():
            value = value.detach().numpy()
            if value.ndim == 4:
                value = np.moveaxis(value, 1, -1)
                out[f"{name}/{key}/sum"] = value.sum((1, 2, 3))
                out[f"{name}/{key}/size"] = np.abs(value).max()
                value = value[:, :: STEP.get(name, 3), :: STEP.get(name, 3)]
            out[f"{name}/{key}"] = value
    np.savez_compressed(FOLDER / "real_peers.npz", **out)


if __name__ == "__main__":
    main()
