"""What a notebook shows of a result: names, shapes and types in one screen, never all numbers."""

import html.parser
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope

import jaxviz as jv
from jaxviz import data, training
from jaxviz.attribution.learned_mask import LearnedMask
from jaxviz.calls.public import public
from jaxviz.features.maximization import Maximization
from jaxviz.graph.layer_graph import Box, LayerGraph
from jaxviz.parts.coalitions import SegmentScores
from jaxviz.training.epoch import Metrics
from jaxviz.training.fitting import History

X = np.ones((50, 6), np.float32)


def net(w, x):
    return x @ w


@pytest.mark.filterwarnings("ignore:The chararray class")  # treescope lists NumPy's names
def test_summary_shows_itself_as_it_is_printed():
    told = jv.summary(net, jnp.ones((6, 3)), X)
    assert isinstance(told, str)
    assert repr(told) == str(told)
    assert len(repr(told).splitlines()) > 5
    assert "Parameters: 18 trained" in repr(told)
    text = treescope.render_to_text(told)
    assert all(line in text for line in told.splitlines())
    assert len(treescope.render_to_html(told)) > 1000  # of a text alone it fails


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


class _Cells(html.parser.HTMLParser):
    """The words of a table's cells, and every element that there is."""

    def __init__(self, page):
        super().__init__()
        self.kinds, self.words = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.kinds.add(tag)
        assert {name for name, _ in attrs} <= {"colspan"}

    def handle_data(self, data):
        self.words.append(data)


EVIL = "<script>alert(1)</script>"


def test_a_notebook_shows_plain_tables_with_words_as_text():
    layers, told = jv.layers(net, jnp.ones((6, 3)), X), jv.summary(net, jnp.ones((6, 3)), X)
    evil = LayerGraph(
        (Box("a", "in", "", (1, 3), 0, ()), Box(EVIL, "b", "", (1, 3), 15, ())), (("a", EVIL),)
    )
    several = SegmentScores(*[jnp.ones((2, 3))] * 4)
    shows = [
        (layers, ["dense_0", "50 x 3", "18"]),
        (told, ["dense_0", "Parameters: 18 trained"]),
        (evil, [EVIL, "15", "a"]),
        (data.Dataset(X, np.zeros(50, int), (EVIL,)), ["images", "float32 [50, 6]", EVIL]),
    ]
    for value, wanted in shows:
        cells = _Cells(value._repr_html_())
        assert cells.kinds <= {"table", "caption", "tr", "th", "td", "p"}
        for words in wanted:
            assert any(words in one for one in cells.words), words
    assert isinstance(layers, tuple)
    assert several._fields[0] in _Cells(several._repr_html_()).words
    assert _Cells(RESULTS["graph"]._repr_html_()).words[-1] == "... 476 more"


def test_where_memory_ran_out_the_way_out_is_named():
    @public()
    def many_copies(chunk_size: int):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 4 GiB")  # as XLA says it

    with pytest.raises(jax.errors.JaxRuntimeError) as told:
        many_copies(chunk_size=9)
    (note,) = told.value.__notes__
    assert note.startswith("many_copies: memory ran out. Pass a smaller chunk_size")


# What is no result: layers by number, rules, solvers and the like are said in one line.
OF_ONE_LINE = {"Layer", "RuleSet", "Solver", "Steps", "Objective", "Perturbation"}


def _results():
    """The classes of what public functions return."""
    found = set()
    for module in (jv, jv.concepts, jv.metrics, jv.influence, data, training):
        for name in dir(module):
            function = inspect.unwrap(getattr(module, name))
            if inspect.isfunction(function):
                told = typing.get_type_hints(function).get("return")
                found |= {c for c in (told, *typing.get_args(told)) if inspect.isclass(c)}
    return {c for c in found if hasattr(c, "_fields") or hasattr(c, "__dataclass_fields__")}


def test_every_result_shows_itself_in_a_notebook():
    results = _results()
    assert len(results) > 50
    lacking = {c.__name__ for c in results if not hasattr(c, "_repr_html_")}
    assert {name for name in lacking - OF_ONE_LINE if not name.endswith("Apply")} == set()


# What `jax.tree.map` puts into a result: `lambda a: None`, `a.shape`, `object()`, `a > 0`, ...
CONTENTS = {
    **{"none": None, "object": object(), "shape": (2, 3), "word": "nonsense", "number": 1.5},
    **{"flag": np.array(True), "flags": np.ones((2, 3), bool), "letters": np.array(["a", "b"])},
    **{"shape_struct": jax.ShapeDtypeStruct((2, 3), jnp.float32), "empty": (), "dict": {"a": None}},
}


def test_results_of_any_contents_show_themselves():
    results = {c for c in _results() if c.__name__ != "Explanation"}  # which jax.tree.map keeps
    for kind in results:
        names = getattr(kind, "_fields", None) or list(kind.__dataclass_fields__)
        for content in CONTENTS.values():
            result = kind(*[content] * len(names))
            assert isinstance(repr(result), str)
            assert isinstance(getattr(result, "_repr_html_", str)(), str)


def test_a_table_whose_numbers_are_gone_shows_what_there_is():
    table = jv.lrp_conservation(net, jnp.ones((6, 3)), X[:2], 0)
    assert "sum / score" in repr(table)
    assert repr(jax.tree.map(lambda a: None, table)).splitlines()[0] == "Conservation"
    assert "score   bool [2]" in repr(table._replace(score=table.score > 0, sums=None))
