"""The other side in PyTorch: nets with random weights, and Captum's methods of them.

Needs torch and captum, nothing of jaxviz and no torchvision. Captum has no Score-CAM: here it is
the same loop as ours. Activations are modules of their own, as Captum's DeepLIFT and LRP ask for.
As a script it is the part `torch` of gpu.py.
"""

import json
import statistics
import sys
import time

import torch
from captum import attr
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import nn


def unit(inputs, outputs, size, stride=1, groups=1, activation=None):
    """A convolution without bias, its norm, and what follows."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([activation] if activation else [])]


class Residual(nn.Module):
    """torchvision's residual blocks and their names."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        rows = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
        channels, self.names = inputs, []
        for n, (outputs, size, step) in enumerate(
            rows if bottleneck else ((width, 3, stride), (width, 3, 1)), start=1
        ):
            conv, norm = unit(channels, outputs, size, step)
            for name, module in ((f"conv{n}", conv), (f"bn{n}", norm), (f"relu{n}", nn.ReLU())):
                self.add_module(name, module)
                self.names.append(name)
            channels = outputs
        *self.names, self.last = self.names
        same = inputs == channels and stride == 1
        self.downsample = None if same else nn.Sequential(*unit(inputs, channels, 1, stride))
        self.sum = Addition_Module()

    def forward(self, x):
        y = x
        for name in self.names:
            y = getattr(self, name)(y)
        return getattr(self, self.last)(self.sum(y, self.downsample(x) if self.downsample else x))


class ResNet(nn.Module):
    def __init__(self, depths, bottleneck=False):
        super().__init__()
        self.conv1, self.bn1 = unit(3, 64, 7, 2)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, depth in enumerate(depths):
            blocks, width = [], 64 * 2**stage
            for n in range(depth):
                blocks.append(Residual(channels, width, 2 if n == 0 < stage else 1, bottleneck))
                channels = width * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


class Fire(nn.Module):
    def __init__(self, inputs, squeezed):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeezed, 1), nn.ReLU())
        self.small = nn.Sequential(nn.Conv2d(squeezed, 4 * squeezed, 1), nn.ReLU())
        self.large = nn.Sequential(nn.Conv2d(squeezed, 4 * squeezed, 3, padding=1), nn.ReLU())

    def forward(self, x):
        x = self.squeeze(x)
        return torch.cat([self.small(x), self.large(x)], 1)


def squeezenet():
    modules, channels = [nn.Conv2d(3, 64, 3, 2), nn.ReLU()], 64
    for group in ((16, 16), (32, 32), (48, 48, 64, 64)):
        modules.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for squeezed in group:
            modules.append(Fire(channels, squeezed))
            channels = 8 * squeezed
    end = nn.Conv2d(channels, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Sequential(*modules), *end)


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, expansion, stride):
        super().__init__()
        inner = inputs * expansion
        widen = unit(inputs, inner, 1, activation=nn.ReLU6()) if expansion > 1 else []
        deep = unit(inner, inner, 3, stride, inner, nn.ReLU6())
        self.conv = nn.Sequential(*widen, *deep, *unit(inner, outputs, 1))
        self.sum = Addition_Module() if inputs == outputs and stride == 1 else None

    def forward(self, x):
        return self.sum(x, self.conv(x)) if self.sum else self.conv(x)


def mobilenet():
    modules, channels = unit(3, 32, 3, 2, activation=nn.ReLU6()), 32
    for expansion, width, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for n in range(repeats):
            modules.append(Inverted(channels, width, expansion, 1 if n else stride))
            channels = width
    modules += unit(channels, 1280, 1, activation=nn.ReLU6())
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)
    return nn.Sequential(nn.Sequential(*modules), *end)


class VisionTransformer(nn.Module):
    def __init__(self, depth=12, width=768, heads=12, side=224):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, 1 + (side // 16) ** 2, width) * 0.02)
        options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(depth))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def cifar():
    modules, channels = [], 3
    for width in (32, 64):
        modules += [nn.Conv2d(channels, width, 3), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    dense = nn.Flatten(), nn.Linear(64 * 36, 64), nn.ReLU(), nn.Linear(64, 10)
    return nn.Sequential(*modules, *dense)


# Constructor, and the layer of class activation maps.
NETS = {
    "cifar": (cifar, "4"),
    "vit_tiny": (lambda: VisionTransformer(1, 48, 3, side=64), "blocks.0"),
    "squeezenet1_1": (squeezenet, "0"),
    "resnet18": (lambda: ResNet((2, 2, 2, 2)), "layer4"),
    "resnet50": (lambda: ResNet((3, 4, 6, 3), bottleneck=True), "layer4"),
    "mobilenet_v2": (mobilenet, "0"),
    "vit6": (lambda: VisionTransformer(6, 384, 6), "blocks.5"),
    "vit_b16": (VisionTransformer, "blocks.11"),
}


def build(name, device="cpu"):
    """`(net, layer)` of a name."""
    torch.manual_seed(0)
    make, layer = NETS[name]
    net = make().eval().to(device)
    for module in net.modules():
        if isinstance(module, nn.Flatten):  # Captum has no rule for it, and refuses it without
            module.rule = EpsilonRule()  # type: ignore
    return net, net.get_submodule(layer)


def score_cam(net, module, x, target, channels, copies):
    """Wang et al. 2020: the score of the image under each of some maps, as weights of the maps."""
    kept = []
    hook = module.register_forward_hook(lambda *a: kept.append(a[2]))
    with torch.no_grad():
        net(x)
        hook.remove()
        a = kept[0]
        if a.ndim == 3:  # tokens
            side = round((a.shape[1] - 1) ** 0.5)
            a = a[:, 1:].mT.reshape(len(a), -1, side, side)
        some = a.flatten(2).std(2).topk(channels, 1).indices
        a = torch.take_along_dim(a, some[:, :, None, None], 1)
        masks = nn.functional.interpolate(a, x.shape[2:], mode="bilinear", align_corners=False)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        masks = (masks - low) / (high - low + 1e-8)
        scores = [
            net((x[:, None] * masks[:, i : i + copies, None]).flatten(0, 1))[:, target]
            for i in range(0, channels, copies)
        ]
        weights = torch.cat([s.reshape(len(x), -1) for s in scores], 1).softmax(1)
        return (weights[:, :, None, None] * a).sum(1).relu()


def methods(net, layer, x, target=7, *, copies=8, steps=50, samples=200, noisy=25, channels=64):
    """Calls of each method, with as many copies of the batch at once as `copies` says."""
    side = x.shape[-1]
    cells = torch.arange(side, device=x.device) * 7 // side
    zeros = torch.zeros_like(x)
    noise = attr.NoiseTunnel(attr.Saliency(net))
    surrogate = {
        "n_samples": samples,
        "feature_mask": (7 * cells[:, None] + cells)[None, None],
        "perturbations_per_eval": copies,
    }
    large, small = (32, 16) if side > 100 else (8, 8)
    window = {"sliding_window_shapes": (3, large, large), "strides": (3, small, small)}

    def without_graph(call, *arguments, **settings):
        with torch.no_grad():
            return call(*arguments, **settings)

    return {
        "saliency": lambda: attr.Saliency(net).attribute(x, target),
        "gradcam": lambda: attr.LayerGradCam(net, layer).attribute(x, target),
        "ig": lambda: attr.IntegratedGradients(net).attribute(
            x, zeros, target, n_steps=steps, internal_batch_size=copies * len(x)
        ),
        "lrp": lambda: attr.LRP(net).attribute(x, target),
        "deeplift": lambda: attr.DeepLift(net).attribute(x, zeros, target),
        "occlusion": lambda: without_graph(
            attr.Occlusion(net).attribute, x, target=target, perturbations_per_eval=copies, **window
        ),
        "scorecam": lambda: score_cam(net, layer, x, target, channels, copies),
        "kernelshap": lambda: attr.KernelShap(net).attribute(x, target=target, **surrogate),
        "smoothgrad": lambda: noise.attribute(
            x, nt_samples=noisy, nt_samples_batch_size=copies, stdevs=0.15, target=target, abs=False
        ),
    }


def timed(call, seconds=1.5):
    """`(first, median of later calls)` in milliseconds; a long call is made twice at most."""
    times = []
    while len(times) < 2 or (sum(times[1:]) < 1e3 * seconds and len(times) < 50):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return round(times[0], 1), round(statistics.median(times[1:]), 3)


def main(told):
    tell = lambda found: print(json.dumps(found), flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as JAX takes
    where = torch.cuda.get_device_name() if device == "cuda" else device
    tell({"plan": told["rows"], "machine": {"torch": torch.__version__, "device": where}})
    net, name = None, None
    for method, wanted, batch in told["rows"]:
        if wanted != name:
            net, name = build(wanted, device), wanted
        side = told["side"][name]
        x = torch.randn(batch, 3, side, side, device=device)
        try:
            assert net is not None
            calls = methods(*net, x, copies=max(64 // batch, 1), **told["options"])
            first, ms = timed(calls[method])
            found = {"first_ms": first, "ms": ms, "images_per_s": round(1e3 * batch / ms, 1)}
        except Exception as error:  # what Captum lacks for this net is a finding
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        tell({"row": [method, name, batch]} | found)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
