"""The report: what its file holds, read by other means, and what a browser makes of it."""

import base64
import hashlib
import html.parser
import json
import shutil
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.concepts.attribution_graph import AttributionGraph
from jaxviz.explanation import Explanation
from jaxviz.graph.layer_graph import Box, LayerGraph
from jaxviz.graph.rows import Layer
from jaxviz.report import packing, writing
from jaxviz.sweep.evaluation import judged
from jaxviz.sweep.results import Sweep, collect

RNG = np.random.default_rng(0)
COUNT = 60
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
CLASSES = ("cat", EVIL, "dog")
LABELS = np.arange(COUNT) % 3
SHARES = RNG.dirichlet(np.ones(3), COUNT)
IMAGES = RNG.random((COUNT, 6, 5, 3)).astype(np.float32)
SIGNED = RNG.normal(size=(COUNT, 6, 5, 3)).astype(np.float32)
COARSE = RNG.random((COUNT, 3, 2)).astype(np.float32)
COARSE[0, 0, 0] = np.nan


def explanation(target=None):
    target = SHARES.argmax(1) if target is None else target
    maps = {"gradient": SIGNED, "grad_cam": COARSE}
    return Explanation(IMAGES, np.log(SHARES), SHARES, target, maps, CLASSES, {"seed": EVIL})


def graph():
    layer = Layer("fc", "dense", (1, 3), np.float32, 9, 0, 18, 1, True, False, 1)
    boxes = (
        Box("<input>", "input", "", (1, 90), 0, ()),
        Box("fc", "dense", "", (1, 3), 9, (layer,)),
    )
    return LayerGraph(boxes, (("<input>", "fc"),))


def evaluation():
    scores = np.array([[[1.0, 2.0, 3.0]], [[3.0, 3.0, np.nan]]], np.float32)
    curves = {"deletion": IMAGES[:2, :3, :, 0]}
    finite = np.ones((2, 3), bool)
    return judged(("gradient", EVIL), ("deletion",), ("lower",), scores, finite, curves, {"n": 3})


class Read(html.parser.HTMLParser):
    """Elements with their attributes, and the text of scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.scripts.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        if self.cdata_elem is not None and self.scripts[-1][2] == "":
            self.scripts[-1] = (*self.scripts[-1][:2], data)

    @property
    def meta(self):
        (found,) = [text for _, a, text in self.scripts if a.get("id") == "meta"]
        return json.loads(found)

    def array(self, about):
        blocks = {a["id"]: text for _, a, text in self.scripts if "id" in a}
        raw = b"".join(
            zlib.decompress(base64.b64decode(blocks[f"block-{name}"])) for name in about["blocks"]
        )
        return np.frombuffer(raw, np.dtype(about["dtype"])).reshape(about["shape"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report with everything in it, with blocks of few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", 1000)
        out = tmp_path_factory.mktemp("report") / "report.html"
        found = {"top class": explanation(), "least class": explanation(SHARES.argmin(1))}
        names = [f"{EVIL}{n}" for n in range(COUNT)]
        jv.report(
            found, out, labels=LABELS, names=names, graph=graph(), evaluation=evaluation(),
            title=EVIL,
        )  # fmt: skip
    return out


def test_the_file_holds_the_numbers(written):
    page = Read(written)
    meta = page.meta
    assert len(meta["views"]) == 2
    signed, coarse = meta["views"][1]["maps"]
    assert len(signed["array"]["blocks"]) > 5
    np.testing.assert_allclose(page.array(signed["array"]), SIGNED.sum(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(page.array(coarse["array"]), COARSE)
    assert (signed["array"]["signed"], coarse["array"]["signed"]) == (True, False)
    np.testing.assert_array_equal(page.array(meta["images"]), np.round(IMAGES * 255))
    np.testing.assert_array_equal(page.array(meta["labels"]), LABELS)
    np.testing.assert_allclose(page.array(meta["probabilities"]), SHARES, rtol=1e-6)
    np.testing.assert_array_equal(page.array(meta["views"][1]["target"]), SHARES.argmin(1))
    # Means by true class, then of all; the map with a NaN, of class 0, counts in none.
    of = [LABELS == 0, LABELS == 1, LABELS == 2, LABELS >= 0]
    whole = np.arange(COUNT) > 0
    expected = np.stack([COARSE[rows & whole].mean(0) for rows in of])
    np.testing.assert_allclose(page.array(coarse["mean"]), expected, rtol=1e-5)
    assert meta["groups"] == [20, 20, 20]


def test_only_its_own_script_may_run_and_nothing_is_loaded(written):
    page = Read(written)
    (policy,) = [
        a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    runs = [text for tag, a, text in page.scripts if tag == "script" and "type" not in a]
    (style,) = [text for tag, _, text in page.scripts if tag == "style"]
    assert [rules["script-src"]] == [f"'sha256-{digest(text)}'" for text in runs]
    assert rules["style-src"] == f"'sha256-{digest(style)}'"
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/svg+xml")), (tag, name)


def test_the_same_call_writes_the_same_bytes(tmp_path):
    files = [
        jv.report(explanation(), tmp_path / name, graph=graph(), evaluation=evaluation())
        for name in ("a.html", "b.html")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_sweep_a_folder_and_metrics_alone(tmp_path):
    arrays = {
        "maps/gradient": SIGNED,
        "maps/lime.intercept": SIGNED[:, 0, 0, 0],
        "summaries/gradient": np.ones((COUNT, 4)),
        "labels": LABELS,
        "predicted": SHARES.argmax(1),
        "probabilities": SHARES,
    }
    swept = collect(arrays, {"target": 2, "methods": {"gradient": {}}}, np.arange(COUNT))
    assert isinstance(swept, Sweep)
    page = Read(jv.report(swept, tmp_path / "sweep.html", images=np.moveaxis(IMAGES, -1, 1)))
    (view,) = page.meta["views"]
    assert [one["name"] for one in view["maps"]] == ["gradient"]
    assert set(page.array(view["target"])) == {2}
    np.testing.assert_array_equal(page.array(page.meta["images"]), np.round(IMAGES * 255))
    assert "lime.intercept: no map" in (tmp_path / "sweep.html").read_text()
    right = int((LABELS == SHARES.argmax(1)).sum())
    assert f"{right} ({right / COUNT:.2%})" in (tmp_path / "sweep.html").read_text()

    explanation().save(tmp_path / "saved")
    again = Read(jv.report(tmp_path / "saved", tmp_path / "saved.html"))
    np.testing.assert_array_equal(again.array(again.meta["images"]), np.round(IMAGES * 255))
    maps = again.meta["views"][0]["maps"]
    np.testing.assert_array_equal(again.array(maps[1]["array"]), COARSE)

    text = jv.report(evaluation(), tmp_path / "metrics.html").read_text()
    assert "lower is better" in text
    assert "2 ± 0.6 (1)" in text  # of 1, 2, 3: the mean, its error, its rank
    assert "3 ± 0 (2)" in text


def test_series_and_inputs_made_for_a_net_are_shown(tmp_path):
    x = np.stack([np.linspace(-3, 5, 12)] * 2).astype(np.float32)
    found = Explanation(x, x, None, None, {"gradient": x}, (), {})
    page = Read(jv.report(found, tmp_path / "series.html"))
    meta = page.meta
    assert meta["images"]["shape"] == [2, 1, 12, 1]
    np.testing.assert_array_equal(
        page.array(meta["images"])[0, 0, :, 0], np.round(np.linspace(0, 255, 12))
    )
    assert page.array(meta["views"][0]["maps"][0]["array"]).shape == (2, 1, 12)
    assert meta["labels"] is None
    assert meta["views"][0]["target"] is None


TEXTS = [["un", "##seen", "<b>"], ["a"], ["not", "bad", "at", "all", "\n"]]
OF_TOKENS = RNG.normal(size=(3, 6, 2)).astype(np.float32)  # an embedding's; the sixth is padding
OF_TOKENS[0, 1, 0] = np.inf


def of_texts():
    shares = RNG.dirichlet(np.ones(3), 3)
    maps = {"gradient": OF_TOKENS, "lrp": OF_TOKENS[..., 0], "pixels": IMAGES[:3]}
    return Explanation(np.ones((3, 6), int), shares, shares, shares.argmax(1), maps, CLASSES, {})


def wiring(count=1):
    """The score is unit 1 of a layer, half as much less the bias there."""
    edges = np.zeros((count, 4, 4))
    edges[:, 3, 1:3] = 2.0, -0.5
    ones, kept = np.ones((count, 4)), np.arange(4) > 0
    relevance, units = (
        np.tile([0.0, 2.0, -0.5, 1.5], (count, 1)),
        np.tile([0, 1, -1, -1], (count, 1)),
    )
    arrays = (
        *(edges, relevance, ones, units, 0 * ones, ones),
        *(np.tile(kept, (count, 1)), edges != 0),
    )
    layers, kinds = ("<input>", EVIL, "<score>"), ("unit", "unit", "bias", "score")
    parts = {"layers": layers, "layer_of": (0, 1, 1, 2), "kinds": kinds}
    names = "edges relevance activation units gap influence kept kept_edges".split()
    given = dict(zip(names, map(jnp.asarray, arrays), strict=True))
    return AttributionGraph(**given, **parts)  # type: ignore[arg-type]


def test_texts_and_wirings_are_shown(tmp_path):
    out = jv.report(
        of_texts(), tmp_path / "texts.html", tokens=TEXTS, labels=[0, 1, 2],
        attribution_graph=wiring(3), names=["a", EVIL, "c"],
    )  # fmt: skip
    page = Read(out)
    assert page.meta["tokens"] == [
        [["un", "seen", "<b>"], "010"], [["a"], "0"], [["not", "bad", "at", "all", "↵"], "00000"],
    ]  # fmt: skip
    gradient, lrp = page.meta["views"][0]["maps"]
    for about, expected in ((gradient, OF_TOKENS.sum(-1)), (lrp, OF_TOKENS[..., 0])):
        expected = np.where(np.isfinite(expected), expected, np.nan)[:, :5]
        for row, length in enumerate((3, 1, 5)):
            expected[row, length:] = np.nan
        np.testing.assert_allclose(page.array(about["array"]), expected, rtol=1e-5)
        assert about["mean"] is None
    text = out.read_text()
    assert "pixels: no number for each token" in text
    evil = EVIL.replace("<", "&lt;").replace(">", "&gt;")
    assert f'<th scope="row">{evil} 1</th><td class="text">score</td><td>+2</td>' in text
    assert f'<th scope="row">{evil} bias</th><td class="text">score</td><td>-0.5</td>' in text
    # The graph's inputs may be other than the texts, however many: they have no names of theirs.
    assert "<summary>input 1: a score of 1.5, 3 of 4 nodes kept</summary>" in text
    assert page.meta["words"] == TEXTS

    names = ["a", EVIL, "c"]
    text = jv.report(wiring(3), tmp_path / "graph.html", names=names).read_text()
    assert f"<summary>{evil}: a score of 1.5, 3 of 4 nodes kept</summary>" in text
    alone = jv.report(wiring(), tmp_path / "graph.html").read_text()
    assert "How units make a score" in alone
    assert alone.count("data:image/svg+xml") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": ["a b"]}, r"report: tokens must be a list of texts for each example"),
        ({"tokens": TEXTS[:2]}, r"report: tokens must be 3 lists, one a text; got 2"),
        ({"tokens": [["a"] * 7] * 3}, r"report: tokens must fit maps \[3, L\].*L >= 7; none does"),
        ({"tokens": TEXTS, "images": IMAGES[:3]}, r"report: images must be left out where tokens"),
        ({"attribution_graph": wiring(17)}, r"report: attribution_graph must be of 16 inputs"),
        ({"found": wiring(), "attribution_graph": wiring()}, r"attribution_graph must not come tw"),
        ({"found": wiring(3), "names": ["a"], "tokens": None}, r"names must be 3, one an input of"),
        ({"found": wiring(), "tokens": TEXTS}, r"report: tokens must be left out of a report with"),
    ],
)
def test_texts_that_do_not_belong_together_are_refused(tmp_path, change, words):
    given = {"found": of_texts(), "out": tmp_path / "report.html", "tokens": TEXTS} | change
    if isinstance(given["found"], AttributionGraph):
        given["tokens"] = change.get("tokens")
    with pytest.raises((TypeError, ValueError), match=words):
        jv.report(**given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"found": 3}, r"report: found must be an Explanation, a Sweep.*got 3"),
        ({"found": {}}, r"report: found must hold one result"),
        ({"out": "report.pdf"}, r"report: out must be a file ending in \.html"),
        ({"out": 3}, r"report: out must be a file's path; got 3"),
        ({"images": IMAGES[:2]}, r"report: images must be 60, one an example"),
        ({"images": IMAGES * 9}, r"report: images must lie in 0 to 1"),
        ({"labels": LABELS[:2]}, r"report: labels must be 60 integers"),
        ({"labels": LABELS + 7, "classes": CLASSES}, r"report: labels must be below 3"),
        ({"classes": ("cat",)}, r"report: classes must name each of 3 outputs; got 1"),
        ({"names": ["a"]}, r"report: names must be 60, one an example; got 1"),
        ({"graph": 3}, r"report: graph must be"),
        ({"evaluation": 3}, r"report: evaluation must be"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, change, words):
    given = {"found": explanation(), "out": tmp_path / "report.html"} | change
    with pytest.raises((TypeError, ValueError), match=words):
        jv.report(**given)
    assert not list(tmp_path.iterdir())


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    """Chromium as it is installed on this machine, driven by Playwright."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
             if (path := shutil.which(name))]  # fmt: skip
    if not found:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        except sync.Error as error:  # it asks for more memory than it uses, which may be barred
            pytest.skip(f"{found[0]} does not start: {str(error).splitlines()[0]}")
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """`opened(path)`: a page in the browser; at the end nothing may have gone wrong in it."""
    contexts, faults, asked = [], [], []

    def open_(path):
        contexts.append(browser.new_context(viewport={"width": 1100, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: faults.append(said.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_, asked
    for context in contexts:
        context.close()
    assert not faults
    assert [url for url in asked if not url.startswith(("data:", "file:", "blob:"))] == []


def test_a_browser_shows_filters_compares_and_saves(written, opened, tmp_path):
    open_, asked = opened
    page = open_(written)
    predicted = SHARES.argmax(1)

    # What came from outside stands there as text.
    assert page.inner_text("h1") == EVIL
    assert EVIL in page.inner_text("#matrix")
    assert EVIL in page.inner_text("#told")
    assert page.locator("main img[src=x]").count() == 0

    # The gallery, filtered by the form and by the confusion matrix.
    shown = lambda: int(page.inner_text("#shown").split()[0])
    assert shown() == COUNT
    page.select_option("#by-label", "1")
    page.select_option("#by-right", "wrong")
    assert shown() == int(((LABELS == 1) & (predicted != 1)).sum()) > 0
    page.click("#filters button[type=reset]")
    page.fill("#by-low", "60")
    assert shown() == int((SHARES.max(1) >= 0.6).sum())
    count = int(((LABELS == 0) & (predicted == 2)).sum())
    cell = page.get_by_role("button", name=f"cat taken for dog: {count} examples")
    cell.focus()
    page.keyboard.press("Enter")
    assert shown() == count > 1
    assert cell.get_attribute("aria-pressed") == "true"
    page.click("#cards li:nth-child(2) button")
    n = int(np.flatnonzero((LABELS == 0) & (predicted == 2))[1])
    page.wait_for_function("t => document.querySelector('#told').textContent.includes(t)",
                           arg="explained: dog")  # fmt: skip
    assert page.inner_text("#example-title") == f"Example {EVIL}{n}"

    # Values under the pointer: the maps' own, whatever their size.
    value = lambda row: float(page.inner_text(f"#values tr:nth-child({row}) td"))
    box = page.locator("#maps canvas").nth(1).bounding_box()
    page.locator("#maps canvas").nth(1).hover(
        position={"x": box["width"] * 4.5 / 5, "y": box["height"] * 2.5 / 6}
    )
    assert page.input_value("#row") == "2"
    assert page.input_value("#column") == "4"
    assert value(1) == pytest.approx(SIGNED[n].sum(-1)[2, 4], rel=1e-3)
    assert value(2) == pytest.approx(COARSE[n, 1, 1], rel=1e-3)
    page.fill("#row", "5")
    assert value(1) == pytest.approx(SIGNED[n].sum(-1)[5, 4], rel=1e-3)

    # Sign and percentile, by NumPy's own percentile.
    full = lambda: float(page.inner_text("#values tr:nth-child(1) td:last-child"))
    page.select_option("#sign", "against")
    page.fill("#percentile", "75")
    against = np.maximum(-SIGNED[n].astype(np.float64).sum(-1), 0)
    page.wait_for_function(
        "v => Math.abs(v - document.querySelector('#values td:last-child').textContent) < v / 99",
        arg=np.percentile(against, 75),
    )
    assert full() == pytest.approx(np.percentile(against, 75), rel=1e-3)

    # Another explained class, and two methods compared.
    page.select_option("#sign", "both")
    page.select_option("#view", "1")
    least = CLASSES[SHARES[n].argmin()]
    page.wait_for_function("t => document.querySelector('#told').textContent.includes(t)",
                           arg=f"explained: {least}")  # fmt: skip
    page.select_option("#first", "0")
    page.select_option("#second", "0")
    page.wait_for_function(
        "() => document.querySelector('#compared-told').textContent.includes('1.000')"
    )
    page.select_option("#mean-of", "0")
    page.wait_for_function(
        "() => document.querySelector('#means-told').textContent.startsWith('20 ')"
    )

    # Saved again: what NumPy reads is what was given.
    with page.expect_download() as saving:
        page.click("#save")
    saving.value.save_as(tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        np.testing.assert_allclose(
            again["top class: map_gradient"], SIGNED.sum(-1), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(again["least class: map_grad_cam"], COARSE)
        np.testing.assert_array_equal(again["labels"], LABELS)
        assert len(again.files) == 4 + 2 * 3
    assert [url for url in asked if url.startswith("file:")] == [written.as_uri()]


def test_what_is_too_large_for_a_file_is_read_from_a_folder(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LIMIT", 1000)
    open_, asked = opened
    out = jv.report(explanation(), tmp_path / "large.html", labels=LABELS)
    files = {path.name for path in (tmp_path / "large_blocks").iterdir()}
    assert {"images-0.js", "map-0-0-0.js"} < files
    page = open_(out)
    page.wait_for_selector("#values tr")
    assert float(page.inner_text("#values td")) == pytest.approx(SIGNED[0, 0, 0].sum(), rel=1e-3)
    assert any(url.endswith("large_blocks/map-0-0-0.js") for url in asked)


def test_tokens_are_walked_through_with_keys_and_pointer(opened, tmp_path):
    open_, _ = opened
    graph = wiring(3)
    page = open_(jv.report(of_texts(), tmp_path / "t.html", tokens=TEXTS, attribution_graph=graph))
    page.click("#cards li:nth-child(3) button")
    page.wait_for_selector("#maps [data-token='4']")
    tokens = page.get_by_role("listbox").nth(1).get_by_role("option")
    said = [tokens.nth(t).get_attribute("aria-label") for t in range(5)]
    assert [one.split(": ")[0] for one in said] == [*TEXTS[2][:4], "↵"]
    numbers = [float(one.split(": ")[1]) for one in said]
    np.testing.assert_allclose(numbers, OF_TOKENS[2, :5, 0], rtol=1e-3)

    # One stop of the tab key, from which arrows go on; the table follows in both maps.
    assert [tokens.nth(t).get_attribute("tabindex") for t in range(5)] == ["0", *["-1"] * 4]
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#token-told") == "all"
    value = lambda row: float(page.inner_text(f"#values tr:nth-child({row}) td"))
    assert value(1) == pytest.approx(OF_TOKENS[2, 3].sum(), rel=1e-3)
    tokens.nth(1).hover()
    assert page.inner_text("#token-told") == "bad"
    assert value(2) == pytest.approx(OF_TOKENS[2, 1, 0], rel=1e-3)
    assert page.locator("#maps [aria-selected=true]").all_inner_texts() == ["bad", "bad"]

    # Full colour is the largest at percentile 100; red is above zero and blue below it.
    page.fill("#percentile", "100")
    strongest = int(np.abs(OF_TOKENS[2, :5, 0]).argmax())
    page.wait_for_function(
        "v => Math.abs(v - document.querySelector('#values tr + tr td + td').textContent) < v / 99",
        arg=float(np.abs(OF_TOKENS[2, :5, 0]).max()),
    )
    red, _, blue = (
        int(c) for c in tokens.nth(strongest).evaluate(
            "node => getComputedStyle(node).backgroundColor").strip("rgb()").split(",")
    )  # fmt: skip
    assert (red > blue) == (OF_TOKENS[2, strongest, 0] > 0)
    page.get_by_text("All tokens as a table").click()
    assert page.locator("#token-table tbody tr").count() == 5

    with page.expect_download() as saving:
        page.click("#save")
    saving.value.save_as(tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        np.testing.assert_allclose(again["map_lrp"][2], OF_TOKENS[2, :5, 0], rtol=1e-5)
        assert json.loads(again["tokens.json"]) == TEXTS


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 700}},
}


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_serious(written, browser, tmp_path, look):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    texts = tmp_path / "texts.html"
    jv.report(of_texts(), texts, tokens=TEXTS, attribution_graph=wiring(3))
    for path, chosen in ((written, "#cards li:nth-child(2) button"), (texts, "#cards li button")):
        with browser.new_context(**LOOKS[look]) as context:
            page = context.new_page()
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]")
            page.locator(chosen).first.click()
            page.wait_for_selector("#values tr")
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
            found = axe.run(page).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            told = [(one["id"], [node["target"] for node in one["nodes"]]) for one in serious]
            assert not told
            wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            names = page.locator("th[scope=row]:visible").evaluate_all(
                "all => all.filter(one => !one.closest('#matrix')).map(one => one.clientWidth)"
            )
            assert min(names) > 100  # words, not a letter a line
            assert wide[0] <= wide[1]  # nothing to be scrolled sideways but what scrolls within
