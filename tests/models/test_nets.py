"""The bundled networks: parameter counts, names, shapes, behaviour in training and inference."""

import functools
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import data, models, training

# The small ones; of the others see test_torchvision.py.
SMALL = [name for name, make in models.nets.items() if make().input_shape != (224, 224, 3)]
SHAPES = {name: models.nets[name]().input_shape for name in models.nets}


@functools.cache
def initialised(name, **options):
    net = models.nets[name](**options)
    return net, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *SHAPES[name])))


@functools.cache
def shapes_of(name, **options):
    net = models.nets[name](**options)
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *SHAPES[name])))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "params", "statistics"),
    [
        # By hand: convolutions k*k*in*out + out, dense in*out + out, batch norm 2 and 2 a channel.
        ("mnist_a", 113_514, 0),
        ("mnist_b", 1_199_882, 0),
        ("mnist_c", 320 + 64 + 8_256 + 128 + 590_080 + 2_570, 192),
        ("cifar", 167_562, 0),
        # 432 + 32; then 3 blocks of 2 convolutions and norms at 16, 32, 64; 64 * 10 + 10.
        ("resnet20", 464 + 14_016 + 51_072 + 203_520 + 650, 1_376),
    ],
)
def test_parameter_counts(name, params, statistics):
    variables = shapes_of(name)
    assert count(variables["params"]) == params
    assert count(variables.get("batch_stats", {})) == statistics


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mnist_a", ["conv1", "conv2", "conv3", "dense1", "dense2"]),
        ("mnist_b", ["conv1", "conv2", "dense1", "dense2"]),
        ("mnist_c", ["bn1", "bn2", "conv1", "conv2", "dense1", "dense2"]),
        ("cifar", ["conv1", "conv2", "dense1", "dense2"]),
        ("resnet20", ["bn1", "conv1", "fc", "layer1", "layer2", "layer3"]),
    ],
)
def test_layers_have_names_to_type(name, layers):
    assert sorted(shapes_of(name)["params"]) == layers


@pytest.mark.parametrize("name", SMALL)
def test_inference_is_a_function_of_each_image_alone(name):
    net, variables = initialised(name)
    x = jax.random.uniform(jax.random.key(1), (3, *SHAPES[name]))
    f = jax.jit(models.apply_fn(net))
    out = f(variables, x)
    assert out.shape == (3, 10)
    assert out.dtype == jnp.float32
    chex.assert_tree_all_finite(out)
    alone = jnp.concatenate([f(variables, x[i : i + 1]) for i in range(3)])
    chex.assert_trees_all_close(out, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["mnist_a", "mnist_b", "mnist_c"])
def test_dropout_acts_in_training_alone(name):
    net, variables = initialised(name)
    x = jax.random.uniform(jax.random.key(1), (4, *SHAPES[name]))

    def train(seed):
        options = {"rngs": {"dropout": jax.random.key(seed)}, "mutable": ["batch_stats"]}
        return net.apply(variables, x, True, **options)[0]

    train = jax.jit(train)
    chex.assert_trees_all_equal(train(0), train(0))
    assert jnp.abs(train(0) - train(1)).max() > 1e-3


@pytest.mark.parametrize("name", ["mnist_c", "resnet20"])
def test_batch_statistics_move_in_training(name):
    net, variables = initialised(name)
    x = jax.random.uniform(jax.random.key(1), (4, *SHAPES[name]))
    options = {"rngs": {"dropout": jax.random.key(2)}, "mutable": ["batch_stats"]}
    _, new = jax.jit(lambda v: net.apply(v, x, True, **options))(variables)
    old = variables["batch_stats"]["bn1"]["mean"]
    assert jnp.abs(new["batch_stats"]["bn1"]["mean"] - old).max() > 1e-3


@pytest.mark.parametrize("name", [*SMALL, "alexnet", "vgg11_bn", "squeezenet1_1", "mobilenet_v2"])
def test_dtype_and_number_of_classes(name):
    # Not strict: Flax's own batch normalisation adds float32 statistics to bfloat16 values.
    with jax.numpy_dtype_promotion("standard"):
        options = {"num_classes": 3, "dtype": jnp.bfloat16}
        variables = shapes_of(name, **options)
        out = jax.eval_shape(
            models.nets[name](**options).apply, variables, jnp.zeros((2, *SHAPES[name]))
        )
    assert (out.shape, out.dtype) == ((2, 3), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_equal_nets_give_equal_functions():
    assert models.apply_fn(models.CIFARNet()) == models.apply_fn(models.CIFARNet())
    assert hash(models.apply_fn(models.CIFARNet())) == hash(models.apply_fn(models.CIFARNet()))
    assert models.apply_fn(models.CIFARNet()) != models.apply_fn(models.CIFARNet(num_classes=2))


def test_shortcut_takes_every_second_pixel_between_zero_channels():
    """With residual paths of zero, a block of positive input shows its shortcut."""
    net, variables = initialised("resnet20")
    zeroed = jax.tree.map(jnp.zeros_like, variables)
    zeroed["params"]["conv1"]["kernel"] = jnp.zeros((3, 3, 3, 16)).at[1, 1, 0, :].set(1.0)
    zeroed["params"]["bn1"]["scale"] = jnp.ones(16)
    zeroed["batch_stats"]["bn1"]["var"] = jnp.ones(16) - 1e-5  # so that it divides by 1
    zeroed["params"]["fc"]["kernel"] = jnp.eye(64)[:, 22:32]
    x = jax.random.uniform(jax.random.key(3), (1, 32, 32, 3))
    out = jax.jit(net.apply)(zeroed, x)
    # 16 channels become 8 + 16 + 8, then 16 + 32 + 16: channels 24 to 39 of 64 carry the image.
    seen = x[0, ::4, ::4, 0].mean()
    chex.assert_trees_all_close(out[0], jnp.where(jnp.arange(22, 32) < 24, 0.0, seen), rtol=1e-5)


WEIGHTS = pathlib.Path(os.environ.get("JAXVIZ_DATA", "none")) / "weights"
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason="$JAXVIZ_DATA/weights has no trained weights"
)


def published_resnet20():
    return models.load_torchvision(models.ResNet20(), WEIGHTS / "resnet20_cifar10.safetensors")


def imagenet_normalised(images):
    return data.normalize(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@needs_weights
def test_published_weights_give_the_published_logits():
    """Oracle: PyTorch's logits of 64 test images with the same weights."""
    variables = published_resnet20()
    reference = np.load(WEIGHTS / "resnet20_reference.npz")
    x = imagenet_normalised(reference["inputs_uint8"].astype(np.float32) / 255)
    out = jax.jit(models.ResNet20().apply)(variables, x)
    np.testing.assert_allclose(out, reference["logits"], atol=2e-4)


@needs_weights
@pytest.mark.skipif("JAXVIZ_SLOW" not in os.environ, reason="$JAXVIZ_SLOW is not set (30 s)")
def test_published_weights_give_the_published_accuracy():
    variables = published_resnet20()
    test = data.load("cifar10", "test", download=False)
    test = test._replace(images=imagenet_normalised(test.images))
    accuracy = training.evaluate(models.ResNet20(), variables, test).accuracy
    assert round(float(accuracy), 4) == 0.9173
