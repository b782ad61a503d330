"""Pictures of text, attention and sequences: what is drawn is what was given."""

import html.parser
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from jaxviz import plot

TOKENS = [["[CLS]", "un", "##kind", "<b>&amp;", "$x$"], ["a", "b"]]
MAPS = {"one <i>": np.array([[0.5, -2.0, np.nan, 1.0, 0.0], [3.0, -1.0, 9.0, 9.0, 9.0]])}


class Spans(html.parser.HTMLParser):
    """The texts and backgrounds of what has a number to show, and all tags."""

    def __init__(self):
        super().__init__()
        self.found, self.tags, self.at = [], set(), None

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        told = dict(attrs)
        self.at = (
            (told["title"], told["style"].split("background:")[1][:7]) if "title" in told else None
        )

    def handle_endtag(self, tag):
        self.at = None

    def handle_data(self, data):
        if self.at:
            self.found.append((data, *self.at))


def test_html_is_escaped_and_coloured_by_sign():
    page = plot.token_html(TOKENS, MAPS, title="<script>alert(1)</script>", notes=["<p>", "q"])
    read = Spans()
    read.feed(page)
    assert read.tags == {"div", "p", "b", "span"}  # none of those in the texts
    assert page._repr_html_() == str(page)
    words = [word for word, *_ in read.found]
    assert words == ["[CLS]", "un", "kind", "<b>&amp;", "$x$", "a", "b"]  # padding is not there
    numbers = [float(number) for _, number, _ in read.found]
    np.testing.assert_array_equal(numbers, [0.5, -2.0, np.nan, 1.0, 0.0, 3.0, -1.0])
    red, _, blue = np.array([to_rgb(colour) for *_, colour in read.found]).T
    signs = np.where(np.isnan(numbers), 0, np.sign(numbers))
    np.testing.assert_array_equal(np.sign(np.round(red - blue, 2)), signs)
    assert "un</span><span" in page.replace("\n", "")  # parts of one word touch
    assert "±2<" in page
    assert "±3<" in page


def test_a_limit_is_the_same_colour_in_all():
    backs = lambda **options: [
        colour
        for page in [plot.token_html([["a", "b"]], {"m": np.array([[1.0, 0.5]])}, **options)]
        for read in [Spans()]
        for _ in [read.feed(page)]
        for *_, colour in read.found
    ]
    assert backs()[1] == backs(limit=2.0)[0]
    assert backs(limit=0.5)[0] == backs(limit=0.5)[1]  # beyond the limit is as full as at it


def test_the_sheet_draws_each_token_once_and_in_order():
    figure = plot.token_sheet([["word"] * 60 + ["\n", " "]], {"m": np.arange(62.0)[None]})
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["m", "±61", *["word"] * 60, "↵", "␣"]
    boxes = [patch.get_bbox() for patch in figure.artists if isinstance(patch, Rectangle)]
    assert len(boxes) == 62
    assert all(0 <= box.x0 and box.x1 <= 1 and 0 <= box.y0 and box.y1 <= 1 for box in boxes)
    for before, after in itertools.pairwise(boxes):  # no two lie over one another
        assert after.x0 >= before.x1 - 1e-9 or after.y1 <= before.y0 + 0.02
    summed = plot.token_html([["a"]], {"m": np.array([[[1.0, 2.0]]])})
    assert 'title="3"' in summed


def test_attention_is_drawn_as_given():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), (2, 2))  # 2 heads, 2 queries, 3 keys
    signed = -weights
    figure = plot.attention_grid(
        {"block": weights, "other": signed}, tokens=["x", "##y"], keys=["a", "b", "c"], per_row=1
    )
    labels = ["block head 0", "block head 1", "other head 0", "other head 1"]
    assert [ax.get_label() for ax in figure.axes] == labels
    drawn = [ax.get_images()[0] for ax in figure.axes]
    for image, one in zip(drawn, [*weights, *signed], strict=True):
        np.testing.assert_array_equal(image.get_array(), one)
    assert drawn[0].get_clim() == drawn[1].get_clim() == (0, weights.max())
    assert drawn[2].get_clim() == (-weights.max(), weights.max())
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    keys = [tick.get_text() for tick in figure.axes[1].get_xticklabels()]
    assert rows == ["x", "y"]
    assert keys == ["a", "b", "c"]


def test_tokens_by_layers_have_one_scale():
    maps = {"embed": np.array([1.0, np.nan]), "block": np.array([[1.0, -4.0], [2.0, 2.0]])}
    image = plot.token_layer_map(["a", "b"], maps).axes[0].get_images()[0]
    values = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(values, [[1.0, np.nan], [-3.0, 4.0]])
    assert image.get_clim() == (-4, 4)


def test_letters_are_as_tall_as_their_numbers():
    heights = np.array([[2.0, 0.5, -1.0, 0.0], [0.0, 0.0, 0.0, 0.25], [np.nan, 1, 1, 1]])
    figure = plot.sequence_logo(heights, "ACGT", per_row=2)
    above, below = figure.axes
    boxes = [path.get_extents() for path in above.collections[0].get_paths()]
    spans = sorted((round(b.y0, 6), round(b.y1, 6)) for b in boxes)
    assert spans == [(-1, 0), (0, 0.25), (0, 0.5), (0.5, 2.5)]  # the largest is outermost
    assert not below.collections  # a place without numbers has no letter
    assert above.get_ylim() == below.get_ylim()
    assert [tick.get_text() for tick in below.get_xticklabels()] == []
    faces = np.asarray(above.collections[0].get_facecolor())
    assert len({tuple(face) for face in faces}) == 4


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: plot.token_sheet(["a", "b"], MAPS), r"tokens must be a list of texts for each"),
        (lambda: plot.token_html([["a"] * 6, ["b"]], MAPS), r"must be \[2, L\].* L >= 6"),
        (lambda: plot.token_sheet([["a"], []], MAPS), r"tokens must be .*each with a token"),
        (lambda: plot.attention_grid(np.ones((1, 2, 3, 3))), r"Pick one example"),
        (lambda: plot.attention_grid(np.ones((2, 3, 3)), tokens=["a"]), r"each of 3 queries"),
        (lambda: plot.token_layer_map(["a"], {"m": np.ones((2, 1))}), r"\[1\] or \[1, D\]"),
        (lambda: plot.sequence_logo(np.ones((4, 7)), "ACGT"), r"Put the letters last"),
        (lambda: plot.sequence_logo(np.ones((2, 2)), "AA"), r"alphabet must be letters, each once"),
        (lambda: plot.sequence_logo(np.ones((2, 1)), "A", colours={"B": "red"}), "got 'B'"),
        (lambda: plot.sequence_logo(np.ones((2, 1)), "A", colours={"A": "no"}), "got 'A': 'no'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, told):
    with pytest.raises((TypeError, ValueError), match=told):
        call()


def test_letters_stand_upright_and_words_are_turned():
    turned = lambda figure: {t.get_rotation() for t in figure.axes[0].get_xticklabels()}
    letters, words = list("cats"), ["a", "caterpillar", "sat", "."]
    for draw in (
        lambda tokens: plot.token_layer_map(tokens, {"m": np.ones(4)}),
        lambda tokens: plot.attention_grid(np.ones((1, 4, 4)), tokens=tokens),
    ):
        assert (turned(draw(letters)), turned(draw(words))) == ({0.0}, {90.0})
