"""Networks for photographs are torchvision's: names, shapes, logits. Weights go in and out."""

import functools
import json
import os
import pathlib
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxviz as jv
from jaxviz import data, models
from jaxviz.models.parts import adaptive_mean, max_pool

FOLDER = pathlib.Path(__file__).parent.parent / "reference"
sys.path.append(str(FOLDER))
from draw_torch_weights import draw, images  # noqa: E402

WEIGHTS = pathlib.Path(os.environ.get("JAXVIZ_DATA", "none")) / "weights"
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason="$JAXVIZ_DATA/weights has no trained weights"
)
# Multiplications of one 224x224 image, in thousand millions, as torchvision 0.29 states them.
GMACS = {
    **{"alexnet": 0.714, "resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089},
    **{"vgg11": 7.609, "vgg11_bn": 7.609, "vgg16": 15.47, "vgg16_bn": 15.47},
    **{"vgg19": 19.632, "vgg19_bn": 19.632, "mobilenet_v2": 0.301},
    **{"squeezenet1_0": 0.819, "squeezenet1_1": 0.349},
}
# Those of test_modern_nets.py.
MODERN = ("densenet121", "efficientnet_b0", "convnext_tiny", "swin_t", "swin_s")
MODERN += ("vit_b_16", "vit_b_32")
# All of them at 224x224 and 192x256 where there is time.
FEW = [("squeezenet1_0", 96, 128)]
LISTED = ["alexnet", "resnet50", "vgg11_bn", "squeezenet1_1", "mobilenet_v2"]
if "JAXVIZ_SLOW" in os.environ:
    LISTED = list(GMACS)
    FEW = [(n, *size) for n in GMACS for size in ((96, 128), (224, 224), (192, 256))]


@functools.cache
def reference():
    with np.load(FOLDER / "torchvision_nets.npz") as file:
        return dict(file)


def torch_shapes(name):
    shapes = json.loads(str(reference()[f"{name}/shapes"]))
    return {key: tuple(shape) for key, shape in shapes.items()}


def drawn(name, path):
    """A file of random weights, with everything that torchvision's own would hold."""
    state = {
        key: draw(key, shape) if shape else np.array(1, np.int64)  # a count of steps
        for key, shape in torch_shapes(name).items()
    }
    safetensors.numpy.save_file(state, path)
    return state


def test_every_network_is_compared():
    photographs = [n for n, make in models.nets.items() if make().input_shape == (224, 224, 3)]
    assert sorted(photographs) == sorted([*GMACS, *MODERN])


@pytest.mark.parametrize(("name", "height", "width"), FEW)
def test_logits_are_torchvisions(name, height, width, tmp_path):  # torchvision 0.29.2, torch 2.15
    net = models.nets[name]()
    drawn(name, path := tmp_path / "net.safetensors")
    logits = models.apply_fn(net)(models.load_torchvision(net, path), images(height, width))
    expected = reference()[f"{name}/{height}x{width}"]
    np.testing.assert_allclose(logits[0, ::20], expected[:-1], atol=1e-4 * expected[-1])
    np.testing.assert_allclose(jnp.abs(logits).max(), expected[-1], rtol=1e-4)


@pytest.mark.parametrize("name", LISTED)
def test_names_shapes_and_work_are_torchvisions(name):
    net = models.nets[name]()
    example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), example)
    ours, leaves = {}, {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *modules, last = (part.key for part in path[1:])
        last = leaves.get(last, {"var": "running_var"}.get(last, last))
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        ours[".".join((*modules, last))] = tuple(leaf.shape[axis] for axis in order)
    assert ours == {key: shape for key, shape in torch_shapes(name).items() if shape}
    # A kernel is applied once at each place of its output; ours counts no products with padding.
    products, counted = 0, 0
    for layer in jv.layers(models.apply_fn(net), variables, example):
        if layer.kind in ("conv", "dense"):
            kernel = variables["params"]
            for part in layer.name.split("/"):
                kernel = kernel[part]
            products += kernel["kernel"].size * np.prod(layer.shape[1:-1])
            counted += layer.flops / 2
    assert round(products / 1e9, 3) == GMACS[name]
    assert 0.9 * products < counted < 1.01 * products  # and a sum for the bias


@pytest.mark.parametrize("size", range(1, 12))
def test_poolings_of_awkward_sizes(size):
    """Oracle: PyTorch's definitions, window by window; every stride, padding and rounding."""
    x = np.random.default_rng(size).normal(size=(1, size, size, 1)).astype(np.float32)
    for window, stride, padding in ((3, 2, 0), (3, 2, 1), (2, 2, 0), (2, 3, 1)):
        if size + 2 * padding < window:
            continue
        for ceil in (False, True):
            span = size + 2 * padding - window
            count = (-(-span // stride) if ceil else span // stride) + 1
            count -= (count - 1) * stride >= size + padding  # it would hold nothing but padding
            starts = [k * stride - padding for k in range(count)]
            cut = lambda a, w=window: slice(max(a, 0), a + w)
            expected = [[x[0, cut(i), cut(j)].max() for j in starts] for i in starts]
            out = max_pool(jnp.asarray(x), window, stride, padding, ceil=ceil)
            np.testing.assert_array_equal(out[0, :, :, 0], expected)
    for count in (1, 3, 7):
        edges = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        expected = [[x[0, a:b, c:d].mean() for c, d in edges] for a, b in edges]
        np.testing.assert_allclose(
            adaptive_mean(jnp.asarray(x), count)[0, :, :, 0], expected, atol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "smallest"), [("alexnet", 63), ("squeezenet1_0", 21), ("vgg11", 32)]
)
def test_images_too_small_are_refused(name, smallest):
    net = models.nets[name]()
    call = lambda size: jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, size, 70, 3)))
    call(smallest)
    with pytest.raises(ValueError, match=f"sides of {smallest} or more; got"):
        call(smallest - 1)


@pytest.mark.parametrize("name", ["mnist_b", "mnist_c", "cifar", "resnet20"])
def test_weights_go_out_and_come_back(name, tmp_path):
    net = models.nets[name]()
    image = jax.random.uniform(jax.random.key(1), (1, *net.input_shape))
    variables = jax.jit(net.init)(jax.random.key(0), image)
    path = models.save_torchvision(net, variables, tmp_path / "net.safetensors")
    chex.assert_trees_all_equal(models.load_torchvision(net, path), variables)


def test_what_goes_out_is_pytorchs(tmp_path):
    """Oracle: the net by hand on the file's tensors in PyTorch's order, channels before pixels."""
    net = models.MNISTNetB()
    x = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    path = models.save_torchvision(net, variables, tmp_path / "net.safetensors")
    w = safetensors.numpy.load_file(path)
    y = x.transpose(0, 3, 1, 2)
    for layer in ("conv1", "conv2"):
        y = jax.lax.conv(y, w[f"{layer}.weight"], (1, 1), "VALID")
        y = jax.nn.relu(y + w[f"{layer}.bias"][:, None, None][None])
    y = y.reshape(2, 64, 12, 2, 12, 2).max((3, 5)).reshape(2, -1)
    y = jax.nn.relu(y @ w["dense1.weight"].T + w["dense1.bias"][None])
    y = y @ w["dense2.weight"].T + w["dense2.bias"][None]
    np.testing.assert_allclose(models.apply_fn(net)(variables, x), y, atol=1e-5)


def edited(state, **changes):
    out = {**state, **changes}
    return {key: value for key, value in out.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv2.bias": None}, r"the 8 tensors of cifar with 10 classes; it lacks conv2.bias; the"),
        ({"conv2.bias": None, "conv1.bias": None}, r"it lacks conv1.bias \(and 1 more\)"),
        ({"fc.bias": np.zeros(3, np.float32)}, "no other; it holds fc.bias too"),
        (
            {"dense2.bias": np.zeros(3, np.float32)},
            r"dense2.bias must be floating, \(10,\).*\(3,\)",
        ),
        ({"dense2.bias": np.zeros(10, np.int32)}, "it is int32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, message, tmp_path):
    net = models.CIFARNet()
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    path = models.save_torchvision(net, variables, tmp_path / "net.safetensors")
    state = edited(safetensors.numpy.load_file(path), **changes)
    safetensors.numpy.save_file(state, path)
    with pytest.raises(ValueError, match=message):
        models.load_torchvision(net, path)


def test_wrong_files_and_nets_are_refused(tmp_path):
    net = models.CIFARNet()
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(FileNotFoundError, match="there is none at"):
        models.load_torchvision(net, tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match=r"must be a whole safetensors file"):
        models.load_torchvision(net, tmp_path / "text.safetensors")
    with pytest.raises(TypeError, match="must be a bundled network; got Dense"):
        models.load_torchvision(nn.Dense(3), FOLDER / "tiny_state.pth")
    with pytest.raises(ValueError, match=r"hold params/conv1/\w+ of shape .* got nothing"):
        models.save_torchvision(net, {"params": {}}, tmp_path / "net.safetensors")


@needs_weights
def test_squeezenets_published_weights_give_its_logits_and_gradient():
    """Oracle: torchvision's logits of ten photographs with the same weights, and one gradient."""
    net = models.nets["squeezenet1_1"]()
    variables = models.load_torchvision(net, WEIGHTS / "squeezenet1_1_imagenet.safetensors")
    reference = np.load(WEIGHTS / "squeezenet1_1_reference.npz")
    pixels = reference["inputs_uint8"].astype(np.float32) / 255
    x = data.normalize(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    target = lambda logits: logits[:, int(reference["labels"][0])].sum()
    call = jax.jit(jax.value_and_grad(lambda x: target(net.apply(variables, x))))
    gradient = np.asarray(call(x[:1])[1])
    logits = np.asarray(jax.jit(net.apply)(variables, x))
    np.testing.assert_allclose(logits, reference["logits"], rtol=1e-4, atol=1e-6)
    assert (logits.argmax(1) == reference["logits"].argmax(1)).all()
    expected = reference["input_grad_of_label_logit"]
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())
