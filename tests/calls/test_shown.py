"""What a notebook shows of a result: names, shapes and types in one screen, never all numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import data
from jaxviz.attribution.learned_mask import LearnedMask
from jaxviz.features.maximization import Maximization
from jaxviz.graph.layer_graph import Box, LayerGraph
from jaxviz.parts.coalitions import SegmentScores
from jaxviz.training.epoch import Metrics
from jaxviz.training.fitting import History

X = np.ones((50, 6), np.float32)


def net(w, x):
    return x @ w


def test_summary_shows_itself_as_it_is_printed():
    told = jv.summary(net, jnp.ones((6, 3)), X)
    assert isinstance(told, str)
    assert repr(told) == str(told)
    assert len(repr(told).splitlines()) > 5
    assert "Parameters: 18 trained" in repr(told)


def test_a_sweep_is_its_arrays_by_name_and_the_rows_that_it_lacks(tmp_path):
    swept = jv.sweep(
        {"gradient": jv.gradient}, net, jnp.ones((6, 3)), (X, np.zeros(50, int)),
        out=tmp_path / "store", batch_size=10, progress=False,
    )  # fmt: skip
    lines = repr(swept).splitlines()
    assert lines[0] == "Sweep"
    assert lines[1].split("  ", 2)[1:] == ["maps", "         'gradient': float32 [50, 6]"]
    assert "  outputs        float32 [50, 3]" in lines
    assert "not done" not in repr(swept)
    (tmp_path / "store/rows/c/2").unlink()
    assert "10 rows before the last one are not done" in repr(jv.open_sweep(tmp_path / "store"))


RESULTS = {
    "scores": SegmentScores(*[jnp.ones((200, 30))] * 4),
    "mask": LearnedMask(*[jnp.ones((200, 30))] * 5),
    "climb": Maximization(*[jnp.ones((200, 30))] * len(Maximization._fields)),
    "history": History(*[np.ones(900)] * len(History._fields)),
    "images": data.Dataset(
        np.ones((900, 8, 8, 1)), np.ones(900, int), tuple(map(str, range(1000)))
    ),
    "graph": LayerGraph((Box("a", "dense", "", (1, 3), 15, ()),) * 500, (("a", "b"),) * 500),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_fits_on_a_screen(name):
    lines = repr(RESULTS[name]).splitlines()
    assert lines[0] == type(RESULTS[name]).__name__
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 100
    for field in RESULTS[name]._fields:
        assert any(line.startswith(f"  {field} ") for line in lines)


def test_a_number_is_shown_and_a_traced_one_is_not_asked_for():
    metrics = Metrics(*[jnp.float32(0.25)] * len(Metrics._fields))
    assert "0.25 (float32)" in repr(metrics)
    said = []

    @jax.jit
    def traced(metrics):
        said.append(repr(metrics))
        return metrics

    traced(metrics)
    assert "float32 []" in said[0]


def test_many_maps_are_cut():
    maps = {f"method {n}": X for n in range(100)}
    swept = jv.Sweep(maps, {}, None, None, None, None, {}, np.arange(50))
    assert len(repr(swept).splitlines()) <= 25
    assert "more lines" in repr(swept)
