"""The process with torch: the peers' nets and methods, run one call at a time for run.py.

Reads one JSON command a line and answers in one: `build` a net and write its weights, `load` inputs
and a memory layout, `run` a method, `peak` of matrix products. Needs torch, torchvision, captum and
grad-cam, and nothing of jaxviz.
"""

import collections
import contextlib
import copy
import functools
import importlib.metadata
import itertools
import json
import sys
import time
from unittest import mock

import numpy as np
import torch
import torchvision
from captum import attr
from captum._utils.models.linear_model import SkLearnLasso
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import EpsilonRule
from memory import Peak
from more_peers import methods as more_methods
from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def chain(*convolutions, dense):
    """Parts of convolutions, numbered as they are named, then two dense layers."""
    named = itertools.chain(*(part.items() for part in convolutions))
    layers = {name: layer for name, layer in named if layer}
    inputs, hidden, classes = dense
    ends = {
        "flatten": nn.Flatten(),
        "dense1": nn.Linear(inputs, hidden),
        "relu": nn.ReLU(),
        "dense2": nn.Linear(hidden, classes),
    }
    return nn.Sequential(collections.OrderedDict(layers | ends))


def part(number, widths, size=3, padding=0, pool=True, norm=False):
    """A convolution, a ReLU, a pooling and a norm, the last two where asked for."""
    return {
        f"conv{number}": nn.Conv2d(*widths, size, padding=padding),
        f"relu{number}": nn.ReLU(),
        f"pool{number}": nn.MaxPool2d(2) if pool else None,
        f"bn{number}": nn.BatchNorm2d(widths[1]) if norm else None,
    }


def small(name):
    """The nets for digits and small photographs; None for any other name."""
    if name == "mnist_a":
        widths = (1, 24), (24, 48), (48, 64)
        parts = [part(n, w, padding=1) for n, w in enumerate(widths, start=1)]
        return chain(*parts, dense=(576, 128, 10))
    if name == "mnist_b":
        return chain(part(1, (1, 32), pool=False), part(2, (32, 64)), dense=(9216, 128, 10))
    if name == "mnist_c":
        parts = part(1, (1, 32), norm=True), part(2, (32, 64), size=2, norm=True)
        return chain(*parts, dense=(2304, 256, 10))
    if name == "cifar":
        return chain(part(1, (3, 32)), part(2, (32, 64)), dense=(2304, 64, 10))
    return None


class Block(nn.Module):
    """torchvision's residual block with a ReLU and a sum of its own each, as Captum asks for."""

    def __init__(self, block):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.relu1, self.relu2, self.sum = nn.ReLU(), nn.ReLU(), Addition_Module()
        self.downsample = block.downsample

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.sum(y, self.downsample(x) if self.downsample else x))


def build(name, seed=0):
    """The net with random weights, norms that are not the identity, and no ReLU in place."""
    torch.manual_seed(seed)
    own = small(name)
    net = own or getattr(torchvision.models, name)(weights=None)
    # torchvision's own first weights let nothing of the image through MobileNet's depthwise layers.
    fades = name == "mobilenet_v2"
    for module in net.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, *((0.8, 1.2) if fades else (0.5, 1.0))),
                (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
        if isinstance(module, nn.Conv2d | nn.Linear) and (fades or own):
            nn.init.kaiming_normal_(module.weight)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    for stage in net.modules():
        if isinstance(stage, nn.Sequential):
            for key, block in stage.named_children():
                if isinstance(block, torchvision.models.resnet.BasicBlock):
                    setattr(stage, key, Block(block))
    return net.eval().to(DEVICE), weights


def averaged(net):
    """A copy with average pooling for max pooling: where the two sides' DeepLIFT is one formula."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.MaxPool2d):
                shape = module.kernel_size, module.stride, module.padding, module.ceil_mode
                setattr(parent, name, nn.AvgPool2d(*shape, count_include_pad=False))
    return net


class SomeScoreCAM(ScoreCAM):
    """Score-CAM on the `some` channels of each example whose maps vary most."""

    some: int

    def get_cam_image(self, x, layer, targets, activations, grads, smooth=False):
        most = np.argsort(-activations.std((2, 3)), axis=1)[:, : self.some]
        chosen = np.take_along_axis(activations, most[:, :, None, None], axis=1)
        return super().get_cam_image(x, layer, targets, chosen, grads, smooth)  # type: ignore


def strengths(size):
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    scale = size / np.maximum(f, 1 / size)
    return torch.tensor(scale, dtype=torch.float32, device=DEVICE)[..., None]


def transformed(images):
    """A jitter, a zoom, a turn and a smaller jitter, the same for all images."""
    size = images.shape[2]

    def jitter(images, most):
        return torch.roll(images, np.random.randint(-most, most + 1, 2).tolist(), (2, 3))

    def turned(images, angle, factor):
        cosine, sine = np.cos(angle) / factor, np.sin(angle) / factor
        matrix = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]], dtype=torch.float32)
        grid = nn.functional.affine_grid(matrix.to(DEVICE), [1, *images.shape[1:]], False)
        grid = grid.expand(len(images), -1, -1, -1)
        return nn.functional.grid_sample(
            images, grid, padding_mode="reflection", align_corners=False
        )

    images = jitter(images, size // 16)
    images = turned(images, 0.0, np.exp(np.random.uniform(np.log(0.9), np.log(1.1))))
    images = turned(images, np.radians(np.random.uniform(-10, 10)), 1.0)
    return jitter(images, max(size // 32, 1))


ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOURS = torch.tensor(ROOT / np.linalg.norm(ROOT, axis=0).max(), dtype=torch.float32)


class Reached(Exception):
    """Thrown at the layer that climbs, so that no later one is run."""


def climb(net, module, shape, options, channels_last, check):
    """Adam on Fourier images; the scores of a step without transforms, if to check."""
    count, channels, size, _ = shape
    variables = torch.zeros(count, channels, size, size // 2 + 1, 2, device=DEVICE)
    if not check:
        variables = torch.randn_like(variables) * 0.01
    variables.requires_grad_(True)
    optimizer = torch.optim.Adam([variables], lr=0.05)
    scale, units = strengths(size), torch.arange(count, device=DEVICE)
    colours = COLOURS.to(DEVICE) if channels == 3 else torch.eye(channels, device=DEVICE)
    found = values = None

    def stop(module, inputs, output):
        nonlocal found
        found = output
        raise Reached

    hook = module.register_forward_hook(stop)
    frozen = [(p, p.requires_grad) for p in net.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    try:
        for _ in range(options["climb_steps"]):
            optimizer.zero_grad()
            flat = torch.fft.irfft2(torch.view_as_complex(variables * scale), s=(size, size)) / 4
            images = torch.sigmoid(torch.einsum("mchw,dc->mdhw", flat, colours))
            if not check:
                images = transformed(images)
            if channels_last:
                images = images.to(memory_format=torch.channels_last)
            with contextlib.suppress(Reached):
                net(images)
            assert found is not None
            values = found[torch.arange(count), units].mean((1, 2))
            (-values.sum()).backward()
            optimizer.step()
    finally:
        hook.remove()
        for parameter, before in frozen:
            parameter.requires_grad_(before)
    return values


def raw_map(net, module, x, target, method, grad=False, **settings):
    """pytorch-grad-cam's map before it is scaled and resized."""
    # Without `with` its hooks stay, and slow others.
    with method(net, [module]) as cam, torch.set_grad_enabled(grad):
        for name, value in settings.items():
            setattr(cam, name, value)
        get, found = cam.get_cam_image, []
        cam.get_cam_image = lambda *a, **k: found.append(get(*a, **k)) or found[-1]
        cam(x, [ClassifierOutputTarget(int(t)) for t in target])
    return found[-1]


def methods(net, layer, x, target, options, copies, given):
    """Calls of every method. `copies` is how many each evaluates at once, `given` other draws."""
    module = net.get_submodule(layer)
    raw = functools.partial(raw_map, net, module, x, target)
    zeros, count = torch.zeros_like(x), len(x)
    segments = torch.tensor(options["segments"], device=DEVICE)[None, None]
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and x.shape[1] > 1
    window = {
        "sliding_window_shapes": (x.shape[1], *options["window"]),
        "strides": (x.shape[1], *options["stride"]),
    }
    surrogate = {
        "n_samples": options["samples"],
        "feature_mask": segments,
        "perturbations_per_eval": copies or options["samples"],
    }

    def fitted(make, **settings):
        """Captum fits one example after another; `given` replaces its coalitions."""
        explainer = make()
        if given is None:
            return explainer.attribute(x, target=target, **surrogate, **settings)
        out = []
        for i in range(count):

            def coalitions(*_, i=i, **__):
                yield from torch.tensor(given["kept"][:, i].astype(np.int64))[:, None]

            explainer.perturb_func = coalitions
            found = surrogate | {"n_samples": len(given["kept"])}
            out.append(explainer.attribute(x[i : i + 1], target=target[i : i + 1], **found))
        return torch.cat(out)

    def near(original, perturbed, kept, **_):
        distance = 1 - torch.sqrt(kept.float().mean())
        return torch.exp(-(distance**2) / 2)

    @torch.no_grad()
    def without_graph(call, *arguments, **settings):
        return call(*arguments, **settings)

    def lrp():
        for layer in net.modules():
            if isinstance(layer, nn.Flatten):  # Captum has no rule for it, and refuses it without
                layer.rule = EpsilonRule()  # type: ignore
        return attr.LRP(net).attribute(x, target)

    noisy = attr.NoiseTunnel(attr.Saliency(net))
    lime = lambda: attr.Lime(net, SkLearnLasso(alpha=options["strength"]), near)
    return {
        "saliency": lambda: attr.Saliency(net).attribute(x, target),
        "ig": lambda: attr.IntegratedGradients(net).attribute(
            x,
            zeros,
            target,
            n_steps=options["steps"],
            internal_batch_size=copies and copies * count,
        ),
        "smoothgrad": lambda: noisy.attribute(
            x,
            nt_samples=options["noisy"],
            nt_samples_batch_size=copies,
            stdevs=0.15,
            target=target,
            abs=False,
        ),
        "gradientshap": lambda: attr.GradientShap(net).attribute(
            x, zeros[:1], n_samples=options["noisy"], target=target
        ),
        "guided": lambda: attr.GuidedBackprop(net).attribute(x, target),
        "deconvnet": lambda: attr.Deconvolution(net).attribute(x, target),
        "deeplift": lambda: attr.DeepLift(averaged(net) if given else net).attribute(
            x, zeros, target
        ),
        "lrp": lrp,
        "gradcam": lambda: attr.LayerGradCam(net, module).attribute(x, target),
        "scorecam": lambda: raw(SomeScoreCAM, some=options["channels"]),
        "ablationcam": lambda: raw(AblationCAM),
        "occlusion": lambda: without_graph(
            attr.Occlusion(net).attribute,
            x,
            target=target,
            perturbations_per_eval=copies or 64,
            **window,
        ),
        "ablation": lambda: without_graph(
            attr.FeatureAblation(net).attribute,
            x,
            target=target,
            feature_mask=segments,
            perturbations_per_eval=copies or 49,
        ),
        "kernelshap": lambda: fitted(lambda: attr.KernelShap(net)),
        "lime": lambda: fitted(lime),
        "maximize": lambda: climb(
            net,
            module,
            (options["images"], *x.shape[1:]),
            options,
            channels_last,
            given is not None,
        ),
    }


@contextlib.contextmanager
def drawn(given):
    """torch's and NumPy's draws replaced by those of the other side, and resizing as there."""
    noise = torch.tensor(np.moveaxis(given["noise"], -1, 1)).to(DEVICE)
    resize = lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False)
    with (
        mock.patch.object(torch, "normal", return_value=noise),
        mock.patch.object(np.random, "choice", return_value=np.zeros(len(noise), int)),
        mock.patch.object(np.random, "uniform", return_value=given["where"]),
        mock.patch.object(nn, "UpsamplingBilinear2d", resize),
    ):
        yield


class Session:
    """What the commands before have set up."""

    def build(self, net, layer, weights, threads):
        torch.set_num_threads(threads)
        self.net, state = build(net)
        self.layer = layer
        torch.save(state, weights)
        names = ("torch", "captum", "grad-cam", "torchvision")
        return {"versions": {name: importlib.metadata.version(name) for name in names}}

    def load(self, inputs, layout, options, copies):
        with np.load(inputs) as file:
            x, target = np.moveaxis(file["x"], -1, 1), file["target"]
        memory_format = getattr(torch, layout)
        self.net = self.net.to(memory_format=memory_format)
        self.x = torch.tensor(x.copy(), device=DEVICE).to(memory_format=memory_format)
        self.target = torch.tensor(target, dtype=torch.long, device=DEVICE)
        self.options, self.copies = options, copies
        return {}

    def run(self, method, given=None, save=None, memory=False, clock="perf_counter"):
        """One call; with draws `given` it is a check, in full float32 precision, and saved."""
        draws = dict(np.load(given)) if given else None
        torch.backends.cudnn.allow_tf32 = draws is None
        main = self.net, self.layer, self.x, self.target, self.options, self.copies
        pooled = averaged if draws else lambda net: net
        calls = methods(*main, draws) | more_methods(*main, raw_map, pooled)
        call = calls[method]
        with (
            drawn(draws) if draws else contextlib.nullcontext(),
            gpu_peak() if CUDA else Peak() if memory else contextlib.nullcontext() as peak,
        ):
            clock = getattr(time, clock)
            start = clock()
            result = call()
            if CUDA:
                torch.cuda.synchronize()
            seconds = clock() - start
        if save:
            result = result.detach().cpu().numpy() if torch.is_tensor(result) else result
            np.save(save, np.moveaxis(result, 1, -1) if result.ndim == 4 else result)
        return {"ms": 1e3 * seconds, "mb": peak.mb if peak else None}

    def peak(self, size):
        """FLOP/s of the best of several products of two float32 matrices."""
        a = torch.randn(size, size, device=DEVICE)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as convolutions have it
        seconds = []
        for _ in range(40):
            start = time.perf_counter()
            torch.mm(a, a)
            if CUDA:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        torch.set_float32_matmul_precision("highest")
        return {"flops": 2 * size**3 / min(seconds)}


@contextlib.contextmanager
def gpu_peak():
    class Found:
        mb = 0.0

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield Found
    Found.mb = (torch.cuda.max_memory_allocated() - before) / 2**20


def main():
    out, session = sys.stdout, Session()
    for line in sys.stdin:
        command = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            try:
                reply = getattr(session, command.pop("do"))(**command)
            except Exception as error:  # a method that the peer lacks for this net is a finding
                reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
