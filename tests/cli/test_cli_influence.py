"""`jaxviz influence`: a picture and scores of a run on a folder of pictures."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import jaxviz as jv
from jaxviz import data, models, training
from jaxviz.cli import main

PARTS = ("train", "test")


class Small(nn.Module):
    """In place of a bundled net, whose programs take long to compile: weights and statistics."""

    num_classes: int = 10
    dtype: Any = None
    input_shape: ClassVar = (28, 28, 1)

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.num_classes)(x[:, ::4, ::4].reshape(len(x), -1))
        return nn.BatchNorm(not train, momentum=0.5)(x)


def test_training_images_for_and_against_test_images(tmp_path, capsys, monkeypatch):
    for there in (models.small_nets, models.nets):
        monkeypatch.setitem(there, "mnist_c", Small)
    rng = np.random.default_rng(0)
    for part, count in zip(PARTS, (6, 2), strict=True):
        for name, light in (("dark", 60), ("bright", 190)):
            (folder := tmp_path / "data" / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(light - 50, light + 50, (28, 28), np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    run = tmp_path / "run"
    train = f"train mnist_c folder:{tmp_path}/data --epochs 1 --batch-size 5 --validation 0.2"
    assert main(f"{train} --out {run}".split()) == 0
    assert main(f"influence {run} --examples 3 0 --methods trac_in --shown 2".split()) == 0
    with np.load(run / "influence" / "scores.npz") as kept:
        assert kept["examples"].tolist() == [3, 0]
        found = kept["trac_in"]
    assert found.shape == (2, 10)
    assert (run / "influence" / "influence.png").stat().st_size > 5000
    # Of the run's own training images, in their order, and by the public function.
    loaded, split_key = training.load_run(run), jax.random.split(jax.random.key(0))[0]
    images = {p: data.image_folder(tmp_path / "data" / p, size=28, channels=1) for p in PARTS}
    seen, _ = data.train_validation_split(images["train"], split_key, 0.2)
    rows = np.array([3, 0])
    pairs = [(seen.images, seen.labels), (images["test"].images[rows], images["test"].labels[rows])]
    given = [(training.preprocess(loaded, x), y) for x, y in pairs]
    apply_fn = models.apply_fn(loaded.net)
    expected = jv.influence.trac_in(apply_fn, [loaded.variables], *given, layers=["params"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # Through the run again, as `fit` did it, and by the layers of the net.
    assert main(f"influence {run} --examples 1 2 --methods magic ek_fac --shown 1".split()) == 0
    with np.load(run / "influence" / "scores.npz") as kept:
        assert set(kept.files) == {"examples", "magic", "ek_fac"}
        for name in ("magic", "ek_fac"):
            assert np.isfinite(kept[name]).all()
            assert np.abs(kept[name]).min(1).max() > 0
            assert kept[name].shape == (2, 10)
    with pytest.raises(SystemExit):
        main(f"influence {run} --examples 4".split())
    assert "--examples must be test images 0 to 3; got 4" in capsys.readouterr().err
