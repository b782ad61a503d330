"""The command line: every command end to end on a small run, and what it says to wrong use."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxviz
from jaxviz import data, models, plot, training
from jaxviz.cli import main
from jaxviz.cli.run_tools import last_maps, no_such, open_model, prepared

TRAIN = "train mnist_a digits --batch-size 72 --validation 0.9"  # two steps an epoch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder made by `jaxviz train`, one short epoch long."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert main(f"{TRAIN} --epochs 1 --no-download --out {folder}".split()) == 0
    return folder


def fails(words, capsys):
    """The one line on standard error of a call that must end with status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def pictures(folder):
    """Name -> (height, width) of each picture; one that is a single colour fails."""
    sizes = {}
    for path in folder.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.min() < 100 < 240 < pixels.max(), path
        sizes[path.name] = pixels.shape
    return sizes


def test_demo_trains_and_draws_everything(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    names = {"explanations", "predictions", "confusion", "training", "feature_maps_conv1"}
    assert set(pictures(tmp_path)) == {f"{name}.png" for name in names}
    said = capsys.readouterr().out
    assert f"Open {tmp_path}/explanations.png first" in said
    right = int(said.split(" of 360 test digits are right")[0].split()[-1])
    run = training.load_run(tmp_path)
    test_set = data.load("digits", "test")
    assert right == round(360 * float(training.evaluate(run.net, run.variables, test_set).accuracy))
    assert right > 180  # ten classes, 36 by chance


def test_train_leaves_a_run_that_can_be_loaded(run):
    loaded = training.load_run(run)
    assert loaded.net == models.MNISTNetA()
    assert loaded.config["options"]["optimizer"] == "adam"
    assert len(loaded.history.loss) == 1
    assert set(pictures(run)) == {"predictions.png", "confusion.png", "training.png"}


def test_a_training_goes_on_where_it_stopped(run, capfd):
    before = training.load_run(run).history
    assert main(f"{TRAIN} --epochs 2 --out {run}".split()) == 0
    after = training.load_run(run).history
    assert len(after.loss) == 2
    assert after.loss[0] == before.loss[0]
    assert "epoch 1:" not in capfd.readouterr().err


@pytest.mark.parametrize("name", [*models.small_nets, "a run"])
def test_layers_prints_the_number_of_parameters(name, run, capsys):
    # Hand-counted for the two nets whose architecture was given with its count.
    known = {"mnist_a": "113,514", "a run": "113,514", "mnist_b": "1,199,882", "cifar": "167,562"}
    assert main(["layers", str(run) if name == "a run" else name]) == 0
    said = capsys.readouterr().out
    assert known.get(name, "Parameters") in said
    assert "conv" in said


def test_explain_draws_the_data_set_a_run_was_trained_on(run, tmp_path):
    words = (
        f"explain {run} --examples 10 --methods saliency gradient --layer conv2 --out {tmp_path}"
    )
    assert main(words.split()) == 0
    sizes = pictures(tmp_path)
    assert set(sizes) == {"explanations_1.png", "explanations_2.png", "feature_maps_conv2.png"}
    assert sizes["explanations_1.png"][0] > sizes["explanations_2.png"][0]  # 8 rows, then 2
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<dt>right</dt>" in page
    assert '"count": 10' in page


def test_explain_all_methods_of_the_wrong_ones_for_a_class(run):
    assert main(f"explain {run} --wrong --examples 1 --target 3".split()) == 0
    assert set(pictures(run / "explanations")) == {"explanations.png"}


def test_explain_draws_image_files_with_an_untrained_net(tmp_path, capsys):
    file = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)).save(file)
    out = tmp_path / "out"
    words = f"explain cifar --images {file} {file} --methods gradient --target cat --out {out}"
    assert main(words.split()) == 0
    assert "untrained" in capsys.readouterr().err
    assert set(pictures(out)) == {"explanations.png"}


@pytest.fixture
def sheets(monkeypatch):
    """What every sheet of a command was drawn of: `(images, maps, options)`."""
    drawn, draw = [], plot.explanation_sheet

    def noted(images, maps, **options):
        drawn.append((images, maps, options))
        return draw(images, maps, **options)

    monkeypatch.setattr(plot, "explanation_sheet", noted)
    return drawn


def test_more_images_than_a_sheet_holds_are_explained_one_by_one(run, sheets, tmp_path):
    methods = {
        "input x gradient": jaxviz.input_x_gradient,  # at once, in the order that was asked for
        "gradient": jaxviz.gradient,
        "saliency": jaxviz.saliency,
    }
    names = " ".join(method.__name__ for method in methods.values())
    assert main(f"explain {run} --examples 10 --methods {names} --out {tmp_path}".split()) == 0
    loaded, x = training.load_run(run), data.load("digits", "test").images[:10]
    assert [list(maps) for _, maps, _ in sheets] == [list(methods)] * 2
    for title, method in methods.items():
        call = lambda x, method=method: method(models.apply_fn(loaded.net), loaded.variables, x)
        out = np.concatenate([maps[title] for _, maps, _ in sheets])
        np.testing.assert_allclose(out, np.concatenate([call(x[:8]), call(x[2:])[-2:]]), atol=1e-5)


def test_a_method_that_the_net_is_not_for_is_told_among_others(run, capsys):
    assert "jaxviz explain: cam:" in fails(f"explain {run} --methods saliency cam", capsys)


def test_explain_a_net_with_a_file_of_weights(sheets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(image).save("photo.png")
    net, rng = models.CIFARNet(), np.random.default_rng(1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda like: rng.normal(0, 0.1, like.shape).astype("f4"), shapes)
    models.save_torchvision(net, variables, tmp_path / "net.safetensors")
    words = "explain --net cifar --weights net.safetensors --methods gradient"
    assert main([*words.split(), "--image", "photo.png", "--images", "photo.png"]) == 0
    assert "untrained" not in capsys.readouterr().err
    assert set(pictures(tmp_path / "cifar-explanations")) == {"explanations.png"}
    ((images, maps, options),) = sheets
    pixels = np.stack([image[:, 8:40] / np.float32(255)] * 2)  # the middle, not scaled
    np.testing.assert_array_equal(images, pixels)
    logits = training.predict(net, variables, pixels)
    np.testing.assert_allclose(options["probabilities"], jax.nn.softmax(logits), atol=1e-5)
    out = jaxviz.gradient(models.apply_fn(net), variables, pixels)
    np.testing.assert_allclose(maps["gradient"], out, atol=1e-5)
    assert options["class_names"] == data.class_names["cifar10"]


def test_images_are_normalised_as_the_published_weights_want_them():
    run = open_model(None, "resnet20")
    x = prepared(run, np.full((1, 32, 32, 3), 0.5, np.float32))
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    np.testing.assert_allclose(x[0, 0, 0], expected, rtol=1e-6)
    assert run.class_names == data.class_names["cifar10"]
    assert set(models.inputs) == set(models.nets)


@pytest.mark.parametrize(
    ("net", "maps", "of_classes"),
    [
        ("mnist_b", "relu_1", "relu_1"),  # not the dropout after the pooling
        ("resnet20", "layer3/2/relu_1", "layer3/2/relu_1"),
        ("vgg11", "features/relu_7", "features/relu_7"),  # not the module that ends in a pooling
        ("squeezenet1_1", "features/12/concatenate_0", "classifier/relu_0"),
        ("swin_t", "norm", "norm"),
        ("vit_b_32", *2 * ["encoder/layers/encoder_layer_11/ln_1"]),
    ],
)
def test_class_activation_maps_are_of_the_last_maps_before_pooling(net, maps, of_classes):
    run = open_model(None, net)  # whose weights are shapes yet
    assert last_maps(run) == maps
    assert last_maps(run, of_classes=True) == of_classes


def test_layers_of_a_net_and_its_weights(tmp_path, capsys):
    net = models.nets["squeezenet1_1"]()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    path = models.save_torchvision(net, zeros, tmp_path / "net.safetensors")
    assert main(["layers", "--net", "squeezenet1_1", "--weights", str(path)]) == 0
    assert "1,235,496" in capsys.readouterr().out  # torchvision's count
    assert main(["layers", "--net", "cifar"]) == 0
    assert "167,562" in capsys.readouterr().out
    words = f"layers --net squeezenet1_0 --weights {path}"
    assert "52 tensors of squeezenet1_0 with 1000 classes; it lacks" in fails(words, capsys)


@pytest.mark.skipif("JAXVIZ_SLOW" not in os.environ, reason="$JAXVIZ_SLOW is not set (30 s)")
@pytest.mark.skipif("JAXVIZ_DATA" not in os.environ, reason="$JAXVIZ_DATA has no weights")
def test_explain_photographs_with_published_weights(sheets, tmp_path):
    """Oracle: torchvision's logits of the same ten photographs with the same weights."""
    folder = pathlib.Path(os.environ["JAXVIZ_DATA"])
    with np.load(folder / "weights" / "squeezenet1_1_reference.npz") as file:
        reference = dict(file)
    stems = [pathlib.Path(str(name)).stem for name in reference["names"]]
    files = [str(next((folder / "imagenet").glob(f"{stem}.*"))) for stem in stems]
    words = ["explain", "--net", "squeezenet1_1", "--no-download", "--methods", "grad_cam", "cam"]
    assert main([*words, "--images", *files, "--out", str(tmp_path)]) == 0
    assert set(pictures(tmp_path)) == {"explanations_1.png", "explanations_2.png"}
    images = np.concatenate([images for images, _, _ in sheets])
    np.testing.assert_array_equal((images * 255).round(), reference["inputs_uint8"])
    probabilities = np.concatenate([options["probabilities"] for _, _, options in sheets])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(reference["logits"]), atol=1e-4)
    names = sheets[0][2]["class_names"]
    assert names[258] == "Samoyed"
    right = probabilities.argmax(1) == reference["labels"]
    assert right.sum() == 9  # the tenth is a tie of two breeds, in torchvision too
    for title in ("Grad-CAM", "CAM"):
        heat = np.concatenate([maps[title] for _, maps, _ in sheets])
        assert heat.shape == (10, 224, 224)
        assert (heat.reshape(10, -1).max(1) > 0).all()


def test_sweep_fills_a_store_and_show_draws_it(run, tmp_path, capsys):
    store = tmp_path / "maps"
    words = f"sweep {run} --methods saliency grad_cam --examples 40 --batch-size 16 --out {store}"
    assert main(words.split()) == 0
    assert "40 images, 2 methods" in capsys.readouterr().out
    swept = jaxviz.open_sweep(store)
    test_set = data.load("digits", "test")
    np.testing.assert_array_equal(swept.labels, test_set.labels[:40])
    loaded = training.load_run(run)
    logits = training.predict(loaded.net, loaded.variables, test_set.images[:40])
    np.testing.assert_array_equal(swept.predicted, np.asarray(logits).argmax(-1))
    assert list(swept.maps) == ["saliency", "grad_cam"]
    assert main(["show", str(store), "--class", "3"]) == 0
    names = {"mean_maps", "errors_most_confident", "errors_least_confident", "class_3"}
    assert set(pictures(store / "pictures")) == {f"{name}.png" for name in names}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("show {empty}", "holds no sweep"),
        ("sweep {run} --target eleven", "no class 'eleven'"),
        ("sweep {run} --out {empty}/a.npz", "a.npz. Leave .npz off."),
        ("train mnist_d digits", "no net 'mnist_d', did you mean mnist_"),
        (
            "train mnist_a digit",
            "no data set 'digit', did you mean digits? There are: digits, mnist",
        ),
        ("train mnist_a digits --epochs 0", "--epochs: must be a whole number, 1 or more; got '0'"),
        ("train mnist_a digits --learning-rate fast", "a number above 0; got 'fast'"),
        ("train mnist_a digits --validation 1", "between 0 and 1; got '1'"),
        ("train mnist_a digits --optimizer adm", "did you mean adam?"),
        ("train mnist_a digits --augment", "a mirrored digit is none"),
        ("train mnist_a", "required: data. See 'jaxviz train --help'"),
        ("layers mnist_q", "no folder and no bundled net 'mnist_q', did you mean mnist_"),
        ("layers {empty}", "must hold a finished run"),
        ("explain {run} --methods salience", "did you mean saliency?"),
        ("explain {run} --layer conf2", "no layer 'conf2'; the nearest are 'conv2'"),
        ("explain {run} --layer dense1", "layer dense1 must give maps [H, W, C]"),
        ("explain {run} --target eleven", "no class 'eleven'. There are: 0, 1"),
        ("explain {run} --images {empty}/a.png", "a.png must be an image file"),
        ("explain {run} --images a.png --wrong", "--images cannot go with --wrong"),
        ("explain cifar --data digits", "cifar takes images (32, 32, 3); digits has (28, 28, 1)"),
        ("explore", "invalid choice: 'explore'"),
        ("explain", "pass the folder of a run, --net NAME, or --model FILE:FUNCTION; got neither"),
        ("layers", "pass the folder of a run, --net NAME, or --model FILE:FUNCTION; got neither"),
        ("explain {run} --net cifar", "and --net cifar"),
        ("explain {run} --weights a.pth", "--weights needs the net that they are of"),
        ("layers --net squeezenet", "no net 'squeezenet', did you mean squeezenet1_"),
        ("layers resnet18", "--net resnet18 is one with published weights"),
        ("layers --net cifar --weights {empty}/a.pth", "there is none at"),
        ("explain --net alexnet", "alexnet comes with no images. Pass --images"),
        ("sweep --net alexnet", "alexnet comes with no data set"),
        ("explain --net mnist_a", "must be one with published weights, one of alexnet"),
        ("explain --net alexnet --images {empty}/a.png", "a.png must be an image file"),
    ],
)
def test_wrong_use_gets_one_line_and_status_2(words, message, run, tmp_path, capsys):
    assert message in fails(words.format(run=run, empty=tmp_path), capsys)


def test_a_net_without_its_weights_says_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXVIZ_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file := tmp_path / "a.png")
    said = fails(f"explain --net alexnet --no-download --image {file}", capsys)
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in said


def test_a_name_among_many_gets_the_nearest():
    said = no_such("class", "samoied", ["Samoyed", *map(str, range(999))])
    assert said == "no class 'samoied', did you mean Samoyed? There are 1000"


def test_trace_shows_where_an_error_arose(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["layers", "mnist_q", "--trace"])
    assert stopped.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_and_version_and_no_word_at_all(capsys):
    assert main([]) == 0
    assert "jaxviz demo" in capsys.readouterr().out
    for words in (
        ["--help"],
        ["--version"],
        *([c, "--help"] for c in ("demo", "train", "explain", "sweep", "show")),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
    assert jaxviz.__version__ in capsys.readouterr().out


def test_python_m_jaxviz_is_the_same_command():
    call = [sys.executable, "-m", "jaxviz", "--version"]
    said = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert said == f"jaxviz {jaxviz.__version__}\n"


@pytest.mark.parametrize(
    ("words", "place", "made", "said"),
    [
        ("", "kept", True, ""),
        ("--no-cache", "kept", False, ""),
        ("", "file/below", False, "jaxviz layers: keep_compiled: folder must be one that can be"),
    ],
)
def test_programs_are_kept_unless_told_otherwise(words, place, made, said, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    call = [sys.executable, "-m", "jaxviz", "layers", "mnist_a", *words.split()]
    ours = {"JAXVIZ_CACHE": str(tmp_path / place), "XDG_CACHE_HOME": str(tmp_path / "home")}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=os.environ | ours)
    assert "conv1" in done.stdout
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)
    assert (tmp_path / place).is_dir() == made
    assert not (tmp_path / "home").exists()


def test_layers_draws_a_diagram(tmp_path, capsys):
    for name in ("net.png", "net.dot"):
        assert main(f"layers mnist_b --depth 1 --diagram {tmp_path / name}".split()) == 0
    assert set(pictures(tmp_path)) == {"net.png"}
    assert '"conv1" -> "conv2";' in (tmp_path / "net.dot").read_text()
    capsys.readouterr()
    assert "must end in .png" in fails(f"layers mnist_b --diagram {tmp_path / 'net.txt'}", capsys)


@pytest.mark.parametrize(
    "words",
    [
        "demo --out {file}/pictures",
        "train mnist_a digits --out {file}/run",
        "explain {run} --out {file}/sheets",
        "sweep {run} --out {file}/store",
        "show {store} --out {file}/pictures",
        "report {run} --out {file}/report.html",
        "layers mnist_a --diagram {file}/net.png",
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_before_any_work(
    words, run, tmp_path, capsys, monkeypatch
):
    file, store = tmp_path / "file", tmp_path / "store"
    file.write_text("in the way of a folder")
    if "{store}" in words:
        main(f"sweep {run} --methods gradient --examples 10 --out {store}".split())
        capsys.readouterr()

    def working(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(training, "train_run", working)
    monkeypatch.setattr(training, "predict", working)
    monkeypatch.setattr(data, "load", working)  # may be a download
    said = fails(words.format(run=run, store=store, file=file), capsys)
    assert f"cannot write to {file}" in said
    assert "Choose another --out." in said
