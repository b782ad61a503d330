"""A net of the user's own on the command line, its checkpoint, and pictures in folders."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import jaxviz as jv
from jaxviz import data
from jaxviz.cli import main, run_tools
from jaxviz.cli.own_model import own_model, restored
from jaxviz.cli.run_tools import inputs_of, open_model

NETS = """
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn, nnx


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))


def make():
    return {"model": Net(nnx.Rngs(0)), "classes": ["dog", "cat"], "input_shape": (8, 8, 3)}


def scaled():
    return {**make(), "preprocess": lambda images: 2 * images - 1}


def by_hand():
    w = jax.random.normal(jax.random.key(0), (192, 2))
    return lambda w, x: x.reshape(len(x), -1) @ w, w


def one_number():
    f, w = by_hand()
    return lambda w, x: f(w, x)[:, 0], w


def linen():
    net = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(3)])
    return net, net.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))


def equinox():
    parts = [eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu)]
    parts += [eqx.nn.Lambda(lambda x: x.mean((1, 2))), eqx.nn.Linear(4, 2, key=jax.random.key(1))]
    return eqx.nn.Sequential(parts)


class Stateful(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return x.mean((1, 2)), state


def with_state():
    return eqx.nn.make_with_state(Stateful)()


def haiku():
    import haiku as hk

    net = hk.transform_with_state(lambda x, is_training: hk.Linear(2)(x.mean((1, 2))))
    return net, *net.init(jax.random.PRNGKey(0), jnp.ones((1, 8, 8, 3)), True)


def paramless():
    import haiku as hk

    return hk.transform(lambda x: hk.Linear(2)(x.mean((1, 2))))


def without_statistics():
    net = nn.BatchNorm(use_running_average=True)
    return net, {"params": net.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))["params"]}


def none():
    return 3


def broken():
    raise KeyError("weights")


def misnamed():
    return {**make(), "clases": ["a", "b"]}


def others():
    return {**make(), "classes": ["bird", "fish"]}


def miscounted():
    return {**make(), "classes": ["a", "b", "c"]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    for name, count in (("cat", 2), ("dog", 1)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (12, 9 + i, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{i}.png")
    return folder


def fails(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_pictures_by_class_are_a_data_set(place):
    found = data.image_folder(place / "pictures", size=8)
    assert (found.images.shape, found.class_names) == ((3, 8, 8, 3), ("cat", "dog"))
    assert found.labels.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"paramless\(\) must .* hk\.transform .* without params"):
        own_model(f"{place}/nets.py:paramless")
    with pytest.raises(ValueError, match="image_folder: path must hold a subfolder of pictures"):
        data.image_folder(place / "pictures" / "cat", size=8)


@pytest.mark.parametrize("make", ["make", "by_hand", "one_number", "linen", "equinox"])
def test_explain_draws_what_any_net_looks_at(place, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["explain", "--model", f"{place}/nets.py:{make}", "--images", f"{place}/pictures/cat"]
    words += ["--methods", "gradient,occlusion", "kernel_shap", "--input-shape", "8", "8", "3"]
    assert main([*words, "--out", "made"]) == 0
    assert (tmp_path / "made" / "explanations.png").stat().st_size > 10_000


def test_layers_and_a_module_by_its_name(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    assert main(["layers", "--model", "nets:make"]) == 0
    assert "conv" in capsys.readouterr().out
    for name, layer in (("with_state", "norm"), ("haiku", "linear")):
        words = ["--model", f"nets:{name}", "--input-shape", "8", "8", "3"]
        assert main(["layers", *words]) == 0
        assert layer in capsys.readouterr().out


def test_a_sweep_of_a_folder_is_drawn(place, tmp_path):
    out = str(tmp_path / "store")
    words = ["--model", f"{place}/nets.py:scaled", "--data", f"folder:{place}/pictures"]
    assert main(["sweep", *words, "--methods", "gradient", "--out", out]) == 0
    store = jv.open_sweep(out)
    own = own_model(f"{place}/nets.py:scaled")
    x = 2 * jnp.asarray(data.image_folder(place / "pictures", size=8).images) - 1
    want = jv.gradient(own.net, own.params, x)
    np.testing.assert_allclose(store.maps["gradient"], want, rtol=1e-4, atol=1e-7)
    assert json.loads((tmp_path / "store" / "source.json").read_text())["own"]
    assert main(["show", out]) == 0


def test_classes_of_a_folder_are_told_by_name(tmp_path):
    labels = np.repeat([0, 1, 2], (5, 2, 3))
    found = data.Dataset(np.zeros((10, 2, 2, 3)), labels, ("cat", "dog", "owl"))
    named = lambda *names: types.SimpleNamespace(class_names=names)
    told = lambda name, *names: run_tools.labels_for(named(*names), name, found)
    order = np.array([2, 0, 3])
    np.testing.assert_array_equal(told("folder:x", "dog", "fox", "cat", "owl"), order[labels])
    np.testing.assert_array_equal(told("folder:x", "0", "1", "2"), labels)
    assert told("folder:x", "0", "1", "2", "3") is None  # which three of the four?
    assert told("folder:x", "cat", "dog", "fox") is None
    numbers = tuple(map(str, range(11)))  # a folder has "10" ahead of "2"
    found = data.Dataset(np.zeros((11, 2, 2, 3)), np.arange(11), tuple(sorted(numbers)))
    assert told("folder:x", *numbers).tolist() == [int(name) for name in sorted(numbers)]
    assert run_tools.first_of("folder:x", labels, 4).tolist() == [0, 1, 5, 7]
    assert run_tools.first_of("folder:x", labels, 8).tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert run_tools.first_of("folder:x", labels, None).tolist() == list(range(10))
    assert run_tools.first_of("mnist", labels, 4).tolist() == [0, 1, 2, 3]


def test_a_folder_of_other_classes_is_refused(place, capsys):
    words = ["--model", f"{place}/nets.py:others", "--data", f"folder:{place}/pictures"]
    with pytest.raises(SystemExit):
        main(["sweep", *words, "--methods", "gradient"])
    said = capsys.readouterr().err
    assert "folders must have names of the net's classes, bird, fish; got cat, dog. Rename" in said


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("a/net.py:make", "net"),
        ("a.b.nets:make", "nets"),
        ("nets:make", "nets"),
        ("net.py:large", "net-large"),
    ],
)
def test_results_are_called_as_the_file_is(spec, name):
    assert run_tools.folder_of(None, None, spec, "sweep") == f"{name}-sweep"


@pytest.mark.parametrize("kind", ["orbax", "safetensors"])
def test_a_checkpoint_is_found_by_its_names(place, kind, tmp_path):
    own = own_model(f"{place}/nets.py:make")
    state = jax.tree.map(lambda a: a + 1, own.params["params"])
    named = {
        jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value"): np.array(
            leaf
        )
        for keys, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    if kind == "orbax":
        tree = {}
        for name, leaf in named.items():
            first, last = name.split("/")
            tree.setdefault(first, {})[last] = {
                "value": np.asarray(leaf)
            }  # as NNX writes its variables
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((path := tmp_path / "checkpoint").absolute(), tree)
    else:
        save_file(
            {n.replace("/", "."): a for n, a in named.items()}, path := tmp_path / "a.safetensors"
        )
    got = restored(str(path), own.params)
    jax.tree.map(np.testing.assert_array_equal, got["params"], state)
    with pytest.raises(ValueError, match=r"another net: it lacks .*the net has no params/conv"):
        restored(str(path), {"params": {"other": {"kernel": jnp.ones(3)}}})


def test_a_checkpoint_of_a_whole_module_has_its_running_statistics(place, tmp_path):
    own = own_model(f"{place}/nets.py:make")
    whole = nnx.to_pure_dict(own.params["params"])
    whole = jax.tree.map(lambda a: np.asarray(a) + 1, whole)
    whole["norm"] |= {"mean": np.full(4, 2.0, np.float32), "var": np.full(4, 3.0, np.float32)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((path := tmp_path / "checkpoint").absolute(), whole)
    got = restored(str(path), own.params)
    by_name = {jax.tree_util.keystr(k): a for k, a in jax.tree_util.tree_leaves_with_path(got)}
    means = [a for name, a in by_name.items() if "mean" in name]
    np.testing.assert_array_equal(means, [np.full(4, 2.0)])
    np.testing.assert_array_equal(got["params"]["out"]["kernel"][...], whole["out"]["kernel"])


def test_wrong_words_get_one_line(place, capsys):
    nets = f"{place}/nets.py"
    image = ["--images", f"{place}/pictures"]
    torn = f"{place}/torn.safetensors"
    pathlib.Path(torn).write_bytes(b"torn")
    for words, told in (
        (["--model", nets], "--model must be package.module:function or file.py:function"),
        (["--model", f"{nets}:maek"], "no function 'maek'. The nearest: make"),
        (["--model", f"{place}/net.py:make"], "there is no file"),
        (["--model", "no_such_module:make"], "cannot be imported: ModuleNotFoundError"),
        (["--model", f"{nets}:none"], "must return (apply_fn, params)"),
        (["--model", f"{nets}:broken"], "it fails with KeyError: 'weights'"),
        (["--model", f"{nets}:misnamed"], "gives clases, which nothing reads"),
        (["--model", f"{nets}:miscounted"], "'classes' must name each of the 2 outputs; got 3"),
        (["--model", f"{nets}:by_hand"], "the shape of an image must be known"),
        (["--model", f"{nets}:by_hand", "--input-shape", "4", "8", "3"], "it fails with"),
        (
            ["--model", f"{nets}:without_statistics", "--input-shape", "8", "8", "3"],
            'Pass all that `init` gave: {"params": ..., "batch_stats": ...}.',
        ),
        (["--model", f"{nets}:make", "--checkpoint", torn], "cannot be read as safetensors: "),
        (["--model", f"{nets}:make", "--net", "cifar"], "--model cannot go with"),
        (["--checkpoint", "a", "mnist_a"], "--checkpoint is for a net of your own"),
        (["--model", f"{nets}:make", "--checkpoint", "a"], "there is no a"),
        (["--model", f"{nets}:make", "--checkpoint", nets], "must be a folder of Orbax"),
    ):
        assert told in fails(["explain", *words, *image], capsys)
    said = fails(["explain", "--model", f"{nets}:make", *image], capsys)
    assert "there is no picture" in said
    assert f"--data folder:{place}/pictures" in said
    assert "a training needs the folders" in fails(
        ["train", "cifar", f"folder:{place}/pictures"], capsys
    )


def test_a_net_trains_on_a_folder(place, tmp_path):
    root = tmp_path / "set"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.full((32, 32, 3), 40 * i + 90 * (name == "dog"), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    out = str(tmp_path / "run")
    assert main(["train", "cifar", f"folder:{root}", "--epochs", "1", "--out", out]) == 0
    assert pathlib.Path(out, "predictions.png").exists()


def test_a_net_is_tried_on_what_its_preprocess_makes(tmp_path):
    (tmp_path / "first.py").write_text(
        NETS
        + """

def channels_first():
    flat = lambda w, x: x.transpose(0, 2, 3, 1).reshape(len(x), -1) @ w
    before = lambda images: np.moveaxis(np.asarray(images), -1, 1)
    weights = jnp.ones((192, 2))
    return {"model": (flat, weights), "preprocess": before, "input_shape": (8, 8, 3)}

"""
    )
    file = f"{tmp_path}/first.py:channels_first"
    run = open_model(None, own=file)
    assert run.net.channels_first is False
    assert inputs_of(run, np.ones((2, 8, 8, 3), np.float32)).shape == (2, 3, 8, 8)
    assert main(["layers", "--model", file]) == 0


ODD = """
import flax.linen as nn, jax, jax.numpy as jnp

net = nn.Dense(3)
params = net.init(jax.random.key(0), jnp.zeros((1, 3)))
apply = lambda params, x: net.apply(params, x.mean((1, 2)))
size = {"input_shape": (8, 8, 3)}
words = lambda: {"model": (apply, params), "classes": "abc", **size}
number = lambda: {"model": (apply, params), "preprocess": 3, **size}
one = lambda: {"model": (apply, params), "preprocess": lambda x: x[0], **size}
lost = lambda: {"model": (apply, params), "preprocess": lambda x: {}[1], **size}
flat = lambda: {"model": (apply, params), "input_shape": (8, -8, 3)}
winner = lambda: {"model": (lambda p, x: apply(p, x).argmax(-1), params), **size}
sharp = lambda params, x: net.apply(params, jnp.linalg.svd(x)[1].mean(1))
spectral = lambda: {"model": (sharp, params), **size}
rooted = lambda: {"model": (lambda p, x: jnp.sqrt(apply(p, x) - 9.0), params), **size}
"""


def test_what_does_not_fit_is_one_sentence(place, tmp_path, capsys):
    (tmp_path / "odd.py").write_text(ODD)
    for made, more, told in (
        ("words", [], "words() must give 'classes' as a list of names; got 'abc'."),
        ("number", [], "'preprocess' as a function of images [N, H, W, C] in [0, 1]; got 3."),
        ("one", [], "must return as many images as it gets; it made (8, 8, 3) of (2, 8, 8, 3)."),
        ("lost", [], "'preprocess' must take images (2, 8, 8, 3) in [0, 1]; it fails with KeyErr"),
        ("flat", [], "must give 'input_shape' as (height, width, channels); got (8, -8, 3)."),
        ("winner", [], "it returns int32. Return logits, not the class that wins."),
        ("spectral", ["--methods", "lrp"], "lrp: epsilon_plus: no rule for the operation 'svd'"),
        (
            "rooted",
            ["--methods", "saliency"],
            "jaxviz explain: the net's outputs must be numbers; those of",
        ),
        ("flat", ["--seed", "1e3"], "--seed: must be a whole number, 0 to 4294967295; got '1e3'"),
        ("flat", ["--methods", ","], "--methods: must name a method; got ','"),
        ("flat", ["--data", "folder:"], "--data: must say which folder, folder:PATH; got 'folder:"),
    ):
        words = ["--model", f"{tmp_path}/odd.py:{made}", *more]
        if "--data" not in more:
            words += ["--images", f"{place}/pictures/cat"]
        with pytest.raises(SystemExit):
            main(["explain", *words, "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert told in said, (made, said)
        assert len(said.splitlines()) == 1


def test_the_list_of_methods_is_printed(capsys):
    assert main(["methods"]) == 0
    assert capsys.readouterr().out.strip().splitlines() == str(jv.methods()).splitlines()
