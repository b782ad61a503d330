"""Run folders: what goes in comes back, and a half-written one is no run."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz import models, training


class Custom(nn.Module):
    """A network that is not bundled."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="dense")(x.reshape(x.shape[0], -1))


def variables_of(net, shape, seed=0):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)))
    rng = np.random.RandomState(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.randn(*leaf.shape), leaf.dtype), shapes)


def history(n=3):
    return training.History(*np.random.RandomState(0).rand(5, n).astype(np.float32))


def save(folder, net, variables, shape, **changes):
    options = {
        "history": history(),
        "data": "mnist",
        "class_names": tuple("0123456789"),
        "input_shape": shape,
        "mean": 0.25,
        "std": [0.5],
        "options": {"optimizer": "adam"},
    }
    return training.save_run(folder, net, variables, **(options | changes))


@pytest.mark.parametrize(
    "net", [models.MNISTNetC(), models.MNISTNetA(num_classes=3, dtype=jnp.bfloat16)]
)
def test_everything_comes_back(tmp_path, net):
    with jax.numpy_dtype_promotion("standard"):
        variables = variables_of(net, (28, 28, 1))
    assert save(tmp_path / "new" / "run", net, variables, (28, 28, 1)) == tmp_path / "new" / "run"
    run = training.load_run(tmp_path / "new" / "run")
    assert run.net == net
    assert jax.tree.structure(run.variables) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(run.variables), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(run.history, history(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.class_names == tuple("0123456789")
    assert run.data == "mnist"
    assert run.config["options"] == {"optimizer": "adam"}
    assert run.config["versions"]["jax"] == jax.__version__
    x = np.full((2, 28, 28, 1), 0.75, np.float32)
    np.testing.assert_array_equal(training.preprocess(run, x), 1.0)


def test_a_run_replaces_the_one_before(tmp_path):
    net = Custom()
    (tmp_path / "notes.txt").write_text("mine")
    for seed in (0, 1):
        variables = variables_of(net, (4,), seed)
        save(tmp_path, net, variables, (4,))
    run = training.load_run(tmp_path, net=net)
    np.testing.assert_array_equal(
        run.variables["params"]["dense"]["kernel"], variables["params"]["dense"]["kernel"]
    )
    assert len(list(tmp_path.glob("variables-*"))) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_without_its_last_file_is_no_run(tmp_path, monkeypatch):
    """Stopped at the last moment: the variables are there, run.json is not yet."""
    net = Custom()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, net, variables_of(net, (4,)), (4,))
    with pytest.raises(FileNotFoundError, match=r"must hold a finished run, with run\.json"):
        training.load_run(tmp_path, net=net)


def test_an_interrupted_replacement_leaves_the_old_run(tmp_path, monkeypatch):
    net = Custom()
    old = variables_of(net, (4,), 0)
    save(tmp_path, net, old, (4,))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, net, variables_of(net, (4,), 1), (4,))
    run = training.load_run(tmp_path, net=net)
    np.testing.assert_array_equal(
        run.variables["params"]["dense"]["kernel"], old["params"]["dense"]["kernel"]
    )


def test_a_net_that_is_not_bundled_must_be_given(tmp_path):
    net = Custom()
    save(tmp_path, net, variables_of(net, (4,)), (4,))
    with pytest.raises(ValueError, match=r"it is Custom\. Pass it"):
        training.load_run(tmp_path)
    with pytest.raises(ValueError, match=r"must hold the arrays of this network"):
        training.load_run(tmp_path, net=nn.Dense(7))


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path):
    net = Custom()
    with pytest.raises(TypeError):
        save(tmp_path / "run", net, variables_of(net, (4,)), (4,), options={"optimizer": save})
    assert not (tmp_path / "run").exists()


def test_the_file_is_for_people_too(tmp_path):
    net = Custom()
    save(tmp_path, net, variables_of(net, (4,)), (4,))
    config = json.loads((tmp_path / "run.json").read_text())
    assert set(config["history"]) == set(training.History._fields)
    assert config["mean"] == [0.25]


def damaged(kind, folder):
    """Changes a run that is whole, as the kind says."""
    told = json.loads((folder / "run.json").read_text())
    arrays = folder / told["variables"]
    texts = {"empty": "", "half": json.dumps(told)[:90], "a list": "[]", "no object": "3"}
    if kind in texts:
        (folder / "run.json").write_text(texts[kind])
    elif kind == "bytes":
        (folder / "run.json").write_bytes(b"\xff\xfe\x00")
    elif kind.startswith("no "):
        del told[kind.removeprefix("no ")]
        (folder / "run.json").write_text(json.dumps(told))
    elif kind.startswith("odd "):
        told[kind.removeprefix("odd ")] = 3
        (folder / "run.json").write_text(json.dumps(told))
    elif kind == "unknown option":
        told["net"]["options"] = {"nonsense": 1}
        (folder / "run.json").write_text(json.dumps(told))
    elif kind == "half a history":
        del told["history"]["loss"]
        (folder / "run.json").write_text(json.dumps(told))
    elif kind == "arrays gone":
        shutil.rmtree(arrays)
    elif kind == "arrays of another run":
        other = save(folder.parent / "other", NET, variables_of(NET, (28, 28, 1), 1), (28, 28, 1))
        shutil.rmtree(arrays)
        shutil.move(other / json.loads((other / "run.json").read_text())["variables"], arrays)
    else:  # cut each file of the arrays
        for file in (path for path in arrays.rglob("*") if path.is_file()):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


NET = models.MNISTNetC()
HELD = ("net", "data", "class_names", "input_shape", "history", "variables", "mean", "std")
DAMAGES = ["empty", "half", "a list", "no object", "bytes", "unknown option", "half a history"]
DAMAGES += [f"no {name}" for name in HELD] + [f"odd {name}" for name in HELD]
DAMAGES += ["arrays gone", "arrays of another run", "arrays cut"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save(folder, NET, variables_of(NET, (28, 28, 1)), (28, 28, 1))
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_run_is_refused_in_one_sentence(tmp_path, whole_run, kind):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    damaged(kind, folder)
    with pytest.raises(ValueError, match=r"^load_run: \S*run\S* must be what ") as told:
        training.load_run(folder)
    assert "\n" not in str(told.value)
    save(folder, NET, variables_of(NET, (28, 28, 1)), (28, 28, 1))  # and can be written anew
    assert training.load_run(folder).net == NET


def test_paths_of_no_use_are_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    variables = variables_of(NET, (28, 28, 1))
    with pytest.raises(OSError, match=r"^save_run: cannot use \S*file"):
        save(tmp_path / "file", NET, variables, (28, 28, 1))
    for folder in ("", "a\0b", 3, None):
        with pytest.raises((TypeError, ValueError), match=r"^load_run: folder must be a path"):
            training.load_run(folder)
    with pytest.raises(OSError, match=r"^load_run: cannot use .*too long"):
        training.load_run("a" * 5000)
    for name, value in (("input_shape", (28, 28, 3)), ("input_shape", (0,))):
        save(tmp_path / "run", NET, variables, (28, 28, 1), **{name: value})
        with pytest.raises(ValueError, match=r"^load_run: "):
            training.load_run(tmp_path / "run")
