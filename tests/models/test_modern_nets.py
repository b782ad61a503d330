"""Transformers and newer convolutional nets are torchvision's, timm's and Hugging Face's.

Oracle: torchvision 0.28, timm 1.0 and transformers 5.24 on torch 2.13, with weights drawn by name
and shape: reference/run_modern_nets.py wrote their logits.
"""

import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tiny_modern_nets import NETS, drawn, reference

from jaxviz import models
from jaxviz.models import published

sys.path.append(str(pathlib.Path(__file__).parent.parent / "reference"))
from draw_torch_weights import images, two_images

WHOLE = ("densenet121", "efficientnet_b0", "convnext_tiny", "swin_t", "swin_s", "vit_b_16")
WHOLE += ("vit_b_32",)
SLOW = "JAXVIZ_SLOW" in os.environ
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Our net, by the name of the reference.
TINY = {
    **{name: name for name in ("densenet", "efficientnet", "convnext", "swin", "vit")},
    **{"timm_vit": "vit", "timm_deit": "deit"},
    **{
        f"hugging_face_{n}{end}": f"hugging_face_{n}"
        for n in ("vit", "deit")
        for end in ("", "_file")
    },
}


def differences(name, net, path):
    """Largest difference over the largest logit, of each size of images."""
    variables = models.load_torchvision(net, path)
    sizes = [key for key in reference() if key.startswith(f"{name}/") and "shapes" not in key]
    assert sizes
    for key in sizes:
        height, width = map(int, key.partition("/")[2].split("x"))
        expected = reference()[key]
        logits = jax.jit(models.apply_fn(net))(variables, two_images(height, width))
        assert np.abs(expected).max() > 0.1  # not all of it the classifier's bias
        yield np.abs(logits - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_the_library_that_names_the_weights(name, tmp_path):
    path = drawn(name, tmp_path / "net.safetensors")
    assert max(differences(name, NETS[TINY[name]], path)) < 1e-5


OLDER = {
    "densenet": lambda key: key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."),
    "vit": lambda key: key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."),
}


@pytest.mark.parametrize("name", OLDER)
def test_names_of_torchvisions_published_files(name, tmp_path):  # older than those of its modules
    path = drawn(name, tmp_path / "net.safetensors", OLDER[name])
    assert any(OLDER[name](key) != key for key in json.loads(str(reference()[f"{name}/shapes"])))
    assert max(differences(name, NETS[name], path)) < 1e-5


@pytest.mark.parametrize("name", ["densenet", "efficientnet", "convnext", "swin", "vit"])
def test_what_goes_out_has_pytorchs_names(name, tmp_path):
    net, path = NETS[name], drawn(name, tmp_path / "net.safetensors")
    out = models.save_torchvision(
        net, models.load_torchvision(net, path), tmp_path / "o.safetensors"
    )
    expected, found = safetensors.numpy.load_file(path), safetensors.numpy.load_file(out)
    expected = {key: value for key, value in expected.items() if value.dtype == np.float32}
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("name", WHOLE if SLOW else ["densenet121", "convnext_tiny", "vit_b_16"])
def test_names_and_shapes_are_torchvisions(name):
    net = models.nets[name]()
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *net.input_shape)))
    ours = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *modules, last = (part.key for part in path[1:])
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}[leaf.ndim] if last == "kernel" else range(leaf.ndim)
        last = LEAVES.get(last, last)
        key = ".".join((*modules, last)).replace("in_proj.", "in_proj_")
        ours[key] = [leaf.shape[axis] for axis in axes]
    table = json.loads(str(reference()[f"{name}/shapes"]))
    assert ours == {key: shape for key, (shape, is_float) in table.items() if is_float}
    assert models.name_of(net) == name


@pytest.mark.parametrize("name", WHOLE)
def test_published_files_and_what_photographs_are_made_to(name):
    wanted, given = json.loads(str(reference()[f"{name}/published"])), models.inputs[name]
    assert models.nets[name]().input_shape == (wanted["size"], wanted["size"], 3)
    assert given.border == wanted["shorter"] - wanted["size"]
    assert ("bilinear", "bicubic")[given.cubic] == wanted["interpolation"]
    assert (list(given.mean), list(given.std)) == (wanted["mean"], wanted["std"])
    assert published._FILES[name] == wanted["file"]


@pytest.mark.skipif(not SLOW, reason="$JAXVIZ_SLOW is not set (2 min)")
@pytest.mark.parametrize("name", WHOLE)
def test_logits_of_whole_nets_are_torchvisions(name, tmp_path):
    net, path = models.nets[name](), drawn(name, tmp_path / "net.safetensors")
    variables = models.load_torchvision(net, path)
    logits = jax.jit(models.apply_fn(net))(variables, images(224, 224))
    expected = reference()[f"{name}/224x224"]
    np.testing.assert_allclose(logits[0, ::20], expected[:-1], atol=1e-4 * expected[-1])
    np.testing.assert_allclose(jnp.abs(logits).max(), expected[-1], rtol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet", "convnext", "swin"] if SLOW else ["convnext"])
def test_training_leaves_residuals_out(name, tmp_path):
    net, x = NETS[name], two_images(32, 32)
    variables = models.load_torchvision(net, drawn(name, tmp_path / "net.safetensors"))
    call = lambda key, v: net.apply(v, x, True, rngs={"dropout": key}, mutable=["batch_stats"])
    train = jax.jit(lambda keys, v: jax.vmap(call, (0, None))(keys, v)[0])
    out = train(jax.random.split(jax.random.key(0), 8), variables)
    assert np.isfinite(out).all()
    assert len(np.unique(np.asarray(out[:, 0, 0]))) > 1


@pytest.mark.parametrize("name", ["densenet", "efficientnet", "convnext", "swin", "vit", "deit"])
def test_dtypes(name):
    net, x = NETS[name], two_images(32, 32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    with jax.numpy_dtype_promotion("standard"):  # Flax's batch normalisation, as in test_nets.py
        out = jax.eval_shape(net.clone(dtype=jnp.bfloat16).apply, variables, x)
    assert (out.shape, out.dtype) == ((2, 5), jnp.bfloat16)


def test_images_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"images must be \[N, 32, 32, 3\].*got \(2, 32, 40, 3\)"):
        jax.eval_shape(NETS["vit"].init, jax.random.key(0), two_images(32, 40))


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = drawn("timm_deit", tmp_path / "net.safetensors")
    with pytest.raises(
        ValueError, match=r"tensors of VisionTransformer with 5 .*distillation_token"
    ):
        models.load_torchvision(NETS["vit"], path)
    with pytest.raises(ValueError, match=r"net must be one with .* got VisionTransformer"):
        models.load_torchvision(NETS["vit"])
