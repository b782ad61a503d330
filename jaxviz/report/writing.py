"""`report`: results as one HTML file that opens from disk and asks nothing of the network."""

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxviz
from jaxviz.calls.options import instance, maybe, refused, several, text
from jaxviz.calls.public import public
from jaxviz.catalogue import METHODS
from jaxviz.concepts.attribution_graph import AttributionGraph
from jaxviz.graph.layer_graph import LayerGraph
from jaxviz.plot.inputs import check_array, check_vector
from jaxviz.report.content import Content, content_of, manifest_text, named
from jaxviz.report.packing import Blocks, packed, parts, rows_of
from jaxviz.report.pictures import group_means, packed_images, packed_map
from jaxviz.report.texts import packed_tokens, pairs, wirings
from jaxviz.sweep.evaluation import Evaluation

LIMIT = 32 * 2**20  # bytes of blocks in one file; browsers read some hundred, but mail does not
_PAGE = Path(__file__).parent / "page"


def _any(who: str, option: str, value: Any) -> Any:
    return value


@public(
    found=_any,
    out=lambda who, option, value: Path(_path(who, option, value)),
    images=_any,
    labels=_any,
    classes=maybe(several(text, "names")),
    names=maybe(several(text, "names")),
    graph=maybe(instance(LayerGraph)),
    evaluation=maybe(instance(Evaluation)),
    tokens=_any,
    attribution_graph=maybe(instance(AttributionGraph)),
)
def report(
    found: Any,
    out: Any,
    *,
    images: Any = None,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    graph: LayerGraph | None = None,
    evaluation: Evaluation | None = None,
    tokens: Any = None,
    attribution_graph: AttributionGraph | None = None,
    title: str | None = None,
) -> Path:
    """Writes what was found as one HTML file, to be looked through, sent and printed.

    The page opens from disk in any browser of 2023 or later and asks nothing of the network. It
    has, as far as there are data: accuracy and a confusion matrix that filters; a gallery by class,
    by right or wrong and by confidence; of an example its probabilities and its maps side by side,
    with the values under the pointer, sign, percentile and overlay to choose, and two methods
    compared; mean maps; layers and diagram; metrics; attribution graphs; and how all was made. Of
    texts it has the tokens, coloured, with a number each. Its arrays can be saved from it as an
    .npz file.

    Maps are kept in float32, one number a place: channels are summed where a map has a sign, else
    the largest counts, as in `plot.explanation_sheet`. Up to 32 MiB of packed arrays stand in the
    file; of more, all but the answers stand in a folder beside it, `report_blocks` for
    `report.html`, and are read when they are looked at. A thousand digits with four methods take
    16 MB.

    Args:
      found: What `explain` or `sweep` returned, or the folder where it was saved; an `Evaluation`
        or an `AttributionGraph` alone; or a dict of label -> one of the first two, of the same
        examples with other classes explained: the page switches between them.
      out: The file, ending in .html; one that is there is replaced.
      images: `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, 0 to 1 or uint8, or series `[N, L]`.
        None shows what `explain` was given; a sweep keeps none, and is shown without.
      labels: `[N]` true classes. None takes those of a sweep.
      classes: K names. None takes those of `explain`, or numbers.
      names: N names of the examples, such as files. Without explanations they are of the inputs of
        `attribution_graph`; beside them its inputs are numbered, for they may be others.
      graph: Of `layer_graph`: shown as a diagram and as a table of layers.
      evaluation: Of `evaluate`: shown as tables and pictures.
      tokens: N lists of texts, as for `plot.token_sheet`: the page shows these in place of images.
        Maps are `[N, L]` or `[N, L, D]` then, at least as long; the last axis is summed, and places
        past a text's end are left out. What is no such map is not drawn. Marks of word pieces and
        newlines are shown in their own way; what is saved from the page, `tokens.json`, has the
        texts as they were given.
      attribution_graph: Of `concepts.attribution_graph`, of 16 inputs at most: each a picture, with
        its largest edges as a table.
      title: Of the page.

    Returns:
      The file's path.

    Raises:
      ValueError: Shapes or counts that do not belong together, or a file that is no .html.
      TypeError: `found` is none of these.

    Example:
      >>> import tempfile
      >>> w, x = np.eye(16, 2, dtype=np.float32), np.ones((3, 4, 4, 1), np.float32)
      >>> net = lambda w, x: x.reshape(len(x), -1) @ w
      >>> found = jaxviz.explain(net, w, x, classes=("cat", "dog"), methods=["gradient"])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     written = report(found, f"{folder}/report.html", labels=[0, 1, 0])
      ...     "confusion" in written.read_text()
      True
    """
    check_file(out)
    if isinstance(found, Evaluation):
        if evaluation is not None:
            raise ValueError(
                "report: evaluation must not come twice; found is one too. Leave one out."
            )
        content, evaluation = None, found
    elif isinstance(found, AttributionGraph):
        if attribution_graph is not None:
            raise ValueError(
                "report: attribution_graph must not come twice; found is one too. Leave one out."
            )
        content, attribution_graph = None, found
    else:
        words = None if tokens is None else _words(tokens, images)
        content = _joined(content_of(found, words), images, labels)
    blocks: Blocks = {}
    meta: dict[str, Any] = {"count": 0}
    names_of_graph = None
    if content is not None:
        content = content._replace(classes=named(classes, content))
        meta, blocks = _data(content, images is None)
        meta["names"] = _names(names, content.count)
        manifest = content.manifest
    else:
        given = {"images": images, "labels": labels, "tokens": tokens}
        if attribution_graph is None:
            given["names"] = names
        else:
            names_of_graph = _names(names, len(attribution_graph.relevance), "input of the graph")
        for option in (option for option, value in given.items() if value is not None):
            raise ValueError(f"report: {option} must be left out of a report without explanations.")
        manifest = {}
    if evaluation is not None:
        manifest = {"explanations": manifest, "evaluation": evaluation.about}
        if content is None:
            manifest = evaluation.about
    drawn = [] if attribution_graph is None else wirings(attribution_graph, names_of_graph)
    what = title or (
        f"{content.count} examples explained"
        if content
        else "Methods judged by metrics"
        if evaluation is not None
        else "How units make a score"
    )
    _write(out, what, meta, blocks, content, graph, evaluation, drawn, manifest_text(manifest))
    return out


def check_file(out: Path) -> None:
    """Refuses what cannot become a page; the command line asks before it explains anything."""
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"report: out must be a file ending in .html; got {out}.")
    if out.is_dir():
        raise ValueError(f"report: out must be a file; {out} is a folder.")


def _path(who: str, option: str, value: Any) -> str:
    if isinstance(value, (str, os.PathLike)) and str(value):
        return os.fspath(value)
    raise refused(who, option, "a file's path", value)


def _joined(content: Content, images: Any, labels: Any) -> Content:
    """With the images and labels that were given in place of the result's own."""
    if images is not None:
        images = check_array("report", "images", images)
        if images.shape[:1] != (content.count,):
            raise ValueError(
                f"report: images must be {content.count}, one an example; got {images.shape}."
            )
        content = content._replace(images=images)
    if labels is not None:
        labels = check_vector("report", "labels", labels, content.count)
        content = content._replace(labels=labels)
    return content


def _words(tokens: Any, images: Any) -> list[list[str]]:
    from jaxviz.plot.tokens import token_lists  # matplotlib takes its time to import

    if images is not None:
        raise ValueError("report: images must be left out where tokens are shown in their place.")
    return token_lists("report", tokens)


def _names(names: Sequence[str] | None, count: int, of: str = "example") -> list[str] | None:
    if names is not None and len(names) != count:
        raise ValueError(f"report: names must be {count}, one an {of}; got {len(names)}.")
    return None if names is None else list(names)


def _data(content: Content, stretched: bool) -> tuple[dict[str, Any], Blocks]:
    """What the page's script knows at once, and the blocks that it decodes when they are needed."""
    blocks: Blocks = {}
    count, classes = content.count, len(content.classes)

    def array(name: str, values: Any, dtype: str) -> dict[str, Any]:
        rows = rows_of(values.shape, dtype)
        about, made = packed(name, values.shape, dtype, parts(values, rows))
        blocks.update(made)
        return about

    known = content.labels if content.labels is not None else content.predicted
    # Mean maps are of places that mean the same in all: pixels do, tokens of texts do not.
    groups = None if known is None or content.words is not None else np.asarray(known)
    shape = np.shape(content.images)
    images = mean_images = None
    if content.images is not None:
        images, made, as_bytes = packed_images("images", content.images, stretched=stretched)
        blocks.update(made)
        if groups is not None:
            means = group_means(content.images, as_bytes, groups, classes)
            mean_images = array("mean_images", np.nan_to_num(means).round(), "uint8")
    views = []
    for v, view in enumerate(content.views):
        maps = []
        for m, (name, values) in enumerate(view.maps.items()):
            if values.shape[0] != count:
                raise ValueError(f"report: map {name!r} must be of {count} examples.")
            block = f"map-{v}-{m}"
            if content.words is not None:
                about, made = packed_tokens(block, values, content.words)
                reduced = None
            else:
                about, made, reduced = packed_map(block, values, shape or values.shape)
            blocks.update(made)
            told = METHODS[name].title if name in METHODS else name
            mean = None
            if groups is not None and reduced is not None:
                means = group_means(values, reduced, groups, classes)
                mean = array(f"mean-{v}-{m}", means.astype(np.float32), "float32")
            maps.append({"name": name, "title": told, "array": about, "mean": mean})
        target = None if view.target is None else np.asarray(view.target)
        views.append(
            {
                "label": view.label,
                "target": None if target is None else array(f"target-{v}", target, "int32"),
                "maps": maps,
            }
        )
    shares = content.probabilities
    answers = {"labels": content.labels, "predicted": content.predicted}
    meta = {
        "count": count,
        "classes": list(content.classes),
        **{k: None if a is None else array(k, np.asarray(a), "int32") for k, a in answers.items()},
        "confidence": None if shares is None else array("confidence", shares.max(1), "float32"),
        "probabilities": None if shares is None else array("probabilities", shares, "float32"),
        "tokens": None if content.words is None else pairs(content.words),
        "words": content.words,  # as they were given: what is saved is matched with a tokenizer's
        "images": images,
        "mean_images": mean_images,
        "groups": None if groups is None else np.bincount(groups, minlength=classes).tolist(),
        "grouped_by": "true class" if content.labels is not None else "predicted class",
        "views": views,
        "colours": _colours(),
    }
    return meta, blocks


def _colours() -> dict[str, str]:
    """The colour maps of the plots, 256 colours each."""
    from jaxviz.plot.colour import SIGNED, UNSIGNED  # matplotlib takes its time to import

    at = np.linspace(0, 1, 256)
    of = {"signed": SIGNED, "unsigned": UNSIGNED}
    as_text = lambda found: base64.b64encode(np.round(found * 255).astype(np.uint8)).decode()
    return {name: as_text(colours(at)[:, :3]) for name, colours in of.items()}


# Small ones that every view of the page asks for: never in a file of their own.
_AT_ONCE = ("labels-", "predicted-", "confidence-", "target-")


def _write(
    out: Path,
    title: str,
    meta: dict[str, Any],
    blocks: Blocks,
    content: Content | None,
    graph: LayerGraph | None,
    evaluation: Evaluation | None,
    drawn: list[dict[str, Any]],
    manifest: str,
) -> None:
    import jinja2  # takes its time to import
    from markupsafe import Markup

    apart: Blocks = {}
    if sum(map(len, blocks.values())) > LIMIT:
        apart = {k: v for k, v in blocks.items() if not k.startswith(_AT_ONCE)}
        blocks = {k: v for k, v in blocks.items() if k.startswith(_AT_ONCE)}
    folder = out.with_name(f"{out.stem}_blocks")
    script, style = ((_PAGE / name).read_text("utf-8") for name in ("report.js", "report.css"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # In a script's element only `<` could end it.
    told = {**meta, "folder": folder.name if apart else None, "title": title}
    data = json.dumps(told, allow_nan=False).replace("<", "\\u003c")
    page = environment.get_template("report.html").render(
        title=title,
        version=jaxviz.__version__,
        meta=Markup(data),
        blocks=blocks,
        script=Markup(script),
        style=Markup(style),
        script_source=_source(script) + (" 'self' file:" if apart else ""),
        style_source=_source(style),
        facts=_facts(content),
        left_out={} if content is None else content.views[0].left_out,
        examples=content is not None,
        tokens=content is not None and content.words is not None,
        wirings=[{**one, "picture": _svg(one["picture"])} for one in drawn],
        layers=None if graph is None else _layers(graph),
        diagram=None if graph is None else _diagram(graph),
        metrics=None if evaluation is None else _metrics(evaluation),
        manifest=manifest,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if apart:
        folder.mkdir(exist_ok=True)
        for name, packed_text in apart.items():
            (folder / f"{name}.js").write_text(f'jaxvizBlock("{name}","{packed_text}")\n')
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    partial.write_text(page, "utf-8")
    os.replace(partial, out)


def _source(text: str) -> str:
    """What a content security policy lets run: this very text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _facts(content: Content | None) -> list[tuple[str, str]]:
    """Numbers that stand at the head of the page."""
    if content is None:
        return []
    facts = [("examples", f"{content.count:,}")]
    if content.labels is not None and content.predicted is not None:
        right = int((content.labels == content.predicted).sum())
        facts.append(("right", f"{right:,} ({right / max(content.count, 1):.2%})"))
    if content.probabilities is not None:
        sure = float(content.probabilities.max(1).mean())
        if content.probabilities.shape[1] > 1 and math.isfinite(sure):
            facts.append(("mean confidence", f"{sure:.2%}"))
    if content.classes:
        facts.append(("classes", f"{len(content.classes):,}"))
    facts.append(("methods", str(len(content.views[0].maps))))
    return facts


def _layers(graph: LayerGraph) -> dict[str, Any]:
    rows = [
        (layer.name, layer.kind, " x ".join(map(str, layer.shape[1:])), f"{layer.num_params:,}")
        for box in graph.boxes
        for layer in box.layers
    ]
    total = sum(box.num_params for box in graph.boxes)
    return {"rows": rows, "total": f"{total:,}"}


def _diagram(graph: LayerGraph) -> str:
    from jaxviz.plot.architecture import architecture

    return _svg(architecture(graph))


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Methods by mean rank, best first, with a cell a metric; and pictures of curves."""
    word = lambda value: "-" if np.isnan(value) else f"{value:.3g}"
    rows = []
    for m in evaluation.best_first():
        cells = []
        for k in range(len(evaluation.metrics)):
            mean, error, rank = (
                a[m, k] for a in (evaluation.mean, evaluation.standard_error, evaluation.rank)
            )
            spread = "" if np.isnan(error) else f" ± {error:.1g}"
            cells.append((f"{word(mean)}{spread}", word(rank), bool(rank == 1)))
        rows.append((evaluation.methods[m], word(evaluation.mean_rank[m]), cells))
    return {
        "count": evaluation.scores.shape[2],
        "heads": list(zip(evaluation.metrics, evaluation.better, strict=True)),
        "rows": rows,
        "agreement": [
            (name, [word(tau) for tau in row], word(w))
            for name, row, w in zip(
                evaluation.metrics, evaluation.agreement, evaluation.concordance, strict=True
            )
        ],
        "ranks": _svg(evaluation.figure()),
        "curves": [(name, _svg(evaluation.figure(name))) for name in evaluation.curves],
    }


def _svg(figure: Any) -> str:
    """A figure as the address of an image, which runs nothing; the same bytes each time."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "jaxviz", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue().encode()).decode()}"
