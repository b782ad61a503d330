"""The command line: every command end to end on a small run, and what it says to wrong use."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxviz
from jaxviz import data, models, training
from jaxviz.cli import main

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
    ],
)
def test_wrong_use_gets_one_line_and_status_2(words, message, run, tmp_path, capsys):
    assert message in fails(words.format(run=run, empty=tmp_path), capsys)


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


def test_layers_draws_a_diagram(tmp_path, capsys):
    for name in ("net.png", "net.dot"):
        assert main(f"layers mnist_b --depth 1 --diagram {tmp_path / name}".split()) == 0
    assert set(pictures(tmp_path)) == {"net.png"}
    assert '"conv1" -> "conv2";' in (tmp_path / "net.dot").read_text()
    capsys.readouterr()
    assert "must end in .png" in fails(f"layers mnist_b --diagram {tmp_path / 'net.txt'}", capsys)
