"""No text of a picture is cut by its edge or lies over another, whatever the words and shapes."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

import jaxviz as jv
from jaxviz import plot
from jaxviz.graph.layer_graph import Box, LayerGraph
from jaxviz.plot import page
from jaxviz.plot.page import fit_among, fit_apart

LONG = [f"a longish class name that goes on and on, number {n}" for n in range(25)]
WIDE = ["W" * 40 + str(n) for n in range(25)]
MATHS = [f"${n}_{{a" for n in range(25)]  # would be a formula, and a wrong one
LINES = [f"two\nlines {n}" for n in range(25)]
NASTY = {"none": None, "long": LONG, "wide": WIDE, "maths": MATHS, "lines": LINES}
TITLES = ["", "one", "A title of many words, " * 12, "two\nlines $x$"]
RNG = np.random.default_rng(0)


def visible_texts(figure):
    """Texts that are drawn, with their boxes in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = []
    for text in figure.findobj(Text):
        shown = text.get_visible() and (text.axes is None or text.axes.get_visible())
        if shown and text.get_text().strip():
            found.append((text, text.get_window_extent(canvas.get_renderer())))
    # Of ticks only those in the axes' limits are drawn.
    ticks = {
        label
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
    }
    drawn = {
        label
        for ax in figure.axes
        if ax.axison
        for axis in (ax.xaxis, ax.yaxis)
        for tick in axis._update_ticks()  # the only list of those that are drawn
        for label in (tick.label1, tick.label2)
    }
    return [(t, box) for t, box in found if t not in ticks or t in drawn]


def check(figure):
    """Every text lies inside the page and beside all others."""
    width, height = figure.get_size_inches() * figure.dpi
    texts = visible_texts(figure)
    assert texts
    for text, box in texts:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, (text.get_text(), box, (width, height))
    for (one, a), (two, b) in itertools.combinations(texts, 2):
        if one.get_rotation() % 90 or two.get_rotation() % 90:
            continue  # turned names stand side by side, and their boxes do not
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        # A pixel of the boxes' edges may meet, no letter does.
        assert across <= 1.5 or down <= 1.5, (one.get_text(), two.get_text(), across, down)


SHAPES = [(28, 28), (8, 32), (40, 4), (3, 60)]
# Every name at the usual shape, every shape with one kind of names.
FRAMES = [(SHAPES[0], name) for name in NASTY] + [(shape, "long") for shape in SHAPES[1:]]


@pytest.mark.parametrize(("shape", "names"), FRAMES)
def test_image_grid(shape, names):
    labels = RNG.integers(0, 25, 60)
    predicted = np.where(RNG.uniform(size=60) < 0.5, labels, RNG.integers(0, 25, 60))
    check(
        plot.image_grid(
            RNG.uniform(size=(60, *shape)), predicted, labels=labels, class_names=NASTY[names]
        )
    )


def test_a_count_of_thousands_beside_short_names():
    predicted = np.zeros(1150, int)
    labels = (np.arange(1150) >= 1132).astype(int)
    figure = plot.image_grid(
        np.zeros((1150, 4, 4)), predicted, labels=labels, class_names=["0", "1"]
    )
    assert "1132 of 1150 right" in [text.get_text() for text in figure.texts]
    check(figure)


@pytest.mark.parametrize(("shape", "names"), FRAMES)
def test_explanation_sheet(shape, names):
    images = RNG.uniform(size=(3, *shape))
    maps = {"a very long title of a column": RNG.normal(size=(3, *shape)), "$b": images * 1e-12}
    maps["c"] = np.stack([images[0] * np.nan, images[1] * 0, images[2]])
    logits = RNG.normal(size=(3, 25)) * 2
    check(
        plot.explanation_sheet(
            images,
            maps,
            probabilities=np.exp(logits) / np.exp(logits).sum(-1, keepdims=True),
            class_names=NASTY[names],
            labels=[1, 2, 3],
            target=[4, int(logits[1].argmax()), int(logits[2].argmin())],
            title=TITLES[2],
        )
    )


@pytest.mark.parametrize("title", TITLES)
def test_titles(title):
    for figure in (
        plot.stitched(np.zeros((1, 8, 8)), title=title),
        plot.overlay(np.zeros((8, 8)), np.ones((8, 8)), title=title),
        plot.feature_maps(np.ones((4, 4, 1)), title=title),
        plot.confusion_matrix(np.eye(2), title=title),
        plot.training_history({"loss": [1.0]}, title=title),
        plot.architecture(chain("dense", 1), title=title),
    ):
        check(figure)


def test_maps_stitched_images_and_kernels():
    maps = RNG.normal(size=(6, 6, 9)) * 10.0 ** np.arange(-130, 140, 30)
    maps[:, :, 1], maps[0, :, 2] = np.nan, np.inf
    for names in NASTY.values():
        chosen = None if names is None else names[:9]
        check(plot.feature_maps(maps, names=chosen, per_row=4))
        check(plot.stitched(np.zeros((9, 8, 8)), titles=chosen, notes=["-1.23e-05"] * 9, per_row=4))
    check(plot.feature_maps({name: maps for name in (*LONG[:2], *WIDE[:2])}, max_maps=1))
    check(plot.feature_maps(RNG.normal(size=(2, 60, 3))))
    check(plot.filters(RNG.normal(size=(3, 3, 5, 3)) * 1e-300))


@pytest.mark.parametrize("names", NASTY)
def test_occlusion_projections_and_the_page_of_a_layer(names):
    known = NASTY[names]
    images, predicted = RNG.uniform(size=(2, 8, 8)), RNG.integers(0, 25, (2, 2, 2))
    sheet = {"clean_predicted": predicted[:, 0, 0], "window": (4, 4), "stride": (4, 4)}
    check(plot.occlusion_sheet(images, images - 1, predicted, class_names=known, **sheet))
    check(
        plot.atlas_page(
            images,
            RNG.uniform(size=(2, 2, 4, 4)),
            np.array([-1.23e-5, 1e30]),
            names=known and known[:2],
            scores=np.array([[1.0, -1.23e-5], [np.nan, 1e30]]),
        )
    )
    top = SimpleNamespace(patches=images, projections=images, scores=np.array([1e-30, -1e30]))
    names = (known or "abc")[:3]
    check(plot.top_projections({name: top for name in names}))
    found = RNG.normal(size=(3, 3, 2)), RNG.normal(size=(2, 8, 8, 1)), names[:2]
    check(plot.map_projections(images[0], {name: found for name in names}))


@pytest.mark.parametrize("names", NASTY)
def test_confusion_matrix(names):
    known = NASTY[names]
    check(plot.confusion_matrix(np.eye(25, dtype=int), class_names=known))
    few = RNG.integers(0, 10**9, (4, 4))
    check(plot.confusion_matrix(few, class_names=known and known[:4]))
    check(plot.confusion_matrix([[12]], class_names=known and known[:1]))


@pytest.mark.parametrize("epochs", [1, 2, 7, 12, 100])
def test_training_history(epochs):
    curve = np.linspace(1, 0.5, epochs)
    curves = {"loss": curve, "validation_loss": curve, "accuracy": 1 - curve}
    figure = plot.training_history(curves, best_epoch=epochs - 1)
    check(figure)
    for ax in figure.axes:  # epochs are counted
        ticks = [t.get_text() for t, _ in visible_texts(figure) if t in ax.get_xticklabels()]
        assert ticks
        assert all(tick.isdecimal() for tick in ticks)
        assert len(set(ticks)) == len(ticks)


def test_one_epoch_is_a_dot_in_the_legend_too():
    loss = plot.training_history({"loss": [1.0]}).axes[0]
    (handle,) = loss.get_legend().get_lines()
    assert (handle.get_marker(), handle.get_linestyle()) == ("o", "None")


def chain(name, count):
    boxes = [Box(f"{name}{n}", "dense", "", (1, 8), 10**9, ()) for n in range(count)]
    ends = Box("<input>", "input", "", (1, 8), 0, ())
    names = ["<input>", *(box.name for box in boxes)]
    return LayerGraph((ends, *boxes), tuple(itertools.pairwise(names)))


@pytest.mark.parametrize("name", ["dense", "a/long/path/of/a/layer/" * 4, "$x_{"])
def test_architecture(name):
    check(plot.architecture(chain(name, 40)))


def test_a_number_that_stands_for_a_folded_layer_is_told_as_its_kind():
    layers = [SimpleNamespace(name=n, kind=k) for n, k in (("c/0", "dense"), ("c/2", "Dropout"))]
    box = Box("c/0", "dense", "", (1, 8), 9, tuple(layers))
    start = Box("<input>", "input", "", (1, 8), 0, ())
    figure = plot.architecture(LayerGraph((start, box), (("<input>", "c/0"),)))
    assert "dense + Dropout" in [text.get_text() for text in figure.axes[0].texts]


def test_names_that_begin_and_end_alike_are_kept_apart():
    for room in (0.4, 0.8, 1.2):
        for names in (LONG, WIDE, [f"the same {n} in the middle of it all" for n in range(25)]):
            apart = fit_apart(names, room, 7.0)
            assert len(set(apart)) == 25
            assert [fit_among(names, n, room, 7.0) for n in range(25)] == apart


@pytest.mark.parametrize("room", [0.05, 0.3, 0.7, 3.0])
def test_one_name_is_kept_apart_as_all_are(room):
    names = [
        "",
        "crane",
        "crane",
        "crane, a bird that flies",
        "crane, a bird that lies",
        "c…s",
        "…",
    ]
    assert [fit_among(names, n, room, 7.0) for n in range(7)] == fit_apart(names, room, 7.0)


def test_the_user_of_a_number_is_not_changed(tmp_path):
    """All of a figure's texts stay what was written when it is saved in other resolutions."""
    figure = plot.image_grid(np.zeros((3, 8, 8)), [0, 1, 1], labels=[0, 1, 0], class_names=LONG[:2])
    for dpi in (50, 300):
        figure.savefig(tmp_path / "grid.png", dpi=dpi)
    check(figure)
    assert jv.plot is plot


ALIKE = [f"the class number {n:04d} with a long name" for n in range(1000)]


def test_names_that_are_cut_alike_are_told_apart():
    rng = np.random.default_rng(0)
    images, maps = rng.uniform(size=(5, 8, 8, 3)), rng.normal(size=(8, 8, 5))
    back = rng.normal(size=(5, 8, 8, 3))
    for figure in (
        plot.stitched(images, titles=ALIKE[:5], notes=["a long remark on this image"] * 5),
        plot.feature_maps(maps, names=ALIKE[:5]),
        plot.map_projections(images[0], {"conv": (maps, back, ALIKE[:5])}),
    ):
        shown = [text.get_text() for text in figure.texts]
        for n in range(5):
            assert sum(text.startswith(f"{n}:") for text in shown) == 1


def test_a_thousand_names_are_fitted_letter_by_letter(monkeypatch):
    laid_out = []
    measure = page.text_to_path.get_text_width_height_descent
    monkeypatch.setattr(
        page.text_to_path,
        "get_text_width_height_descent",
        lambda text, font, ismath: laid_out.append(text) or measure(text, font, ismath),
    )
    assert len(set(page.fit_apart(ALIKE, 0.9, 7.5))) == 1000
    assert len(laid_out) < 200


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_widths_are_those_of_the_whole_text(weight):
    for text in [*ALIKE[:3], "WAVE To Ty", "iiiiillll", "a, b; (c) 1.0e-05", "ünï", "…"]:
        font = FontProperties(size=9.0, weight=weight)
        whole = page.text_to_path.get_text_width_height_descent(text, font, False)[0] / 72
        assert 1.0 <= page.text_width(text, 9.0, weight) / whole < 1.25


def test_what_is_not_finite_is_told_beside_projections():
    maps, back = np.full((4, 4, 2), np.nan), np.full((2, 8, 8, 3), np.nan)
    maps[..., 1] = 2.0
    figure = plot.map_projections(np.zeros((8, 8)), {"conv": (maps, back, ["a", "b"])})
    shown = [text.get_text() for text in figure.texts]
    assert "not finite" in shown
    assert "2" in shown


def test_an_accuracy_is_a_share():
    with pytest.raises(ValueError, match=r"training_history: accuracy must be a share.*per cent"):
        plot.training_history({"loss": [1.0, 0.5], "accuracy": [60.0, 90.0]})


def test_names_in_legends_and_on_axes_are_no_formulas():
    broken = "$x_{"
    curves = {broken: np.ones((2, 3)), "of a very long name " * 9: np.zeros((2, 3))}
    check(plot.curves(curves))
    assert len(plot.curves(curves | {"_mine": np.ones((2, 3))}).legends[0].get_texts()) == 3
    sheet = plot.occlusion_sheet(
        RNG.uniform(size=(1, 8, 8, 3)), np.ones((1, 8, 8)), np.ones((1, 7, 7), int),
        clean_predicted=[0], window=(2, 2), stride=(1, 1), class_names=["a", broken],
    )  # fmt: skip
    for figure in (plot.curves(curves, x_label=broken, y_label=broken), sheet):
        figure.draw_without_rendering()
        assert any(broken in t.get_text() for t in figure.findobj(Text))


def test_bars_of_what_is_no_number_say_so():
    figure = plot.bar([1.0, np.nan, -np.inf], names=["a", "b", "c"])
    told = {t.get_text() for t in figure.axes[0].texts}
    assert told == {"1", "nan", "-inf"}
    check(figure)


def test_a_curves_height_is_the_area_of_its_metric():
    w, x = np.eye(2, dtype=np.float32), np.array([[3.0, 1.0]], np.float32)
    found = jv.metrics.deletion(lambda w, x: x @ w, w, x, x, 0, num_steps=2)
    (told,) = plot.curves({"m": found.curve}).legends[0].get_texts()
    assert told.get_text() == f"m  {float(found.area[0]):.3g}"
