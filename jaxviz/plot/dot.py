"""A layer graph as source for Graphviz."""

import json

from jaxviz.calls.public import public
from jaxviz.graph.layer_graph import LayerGraph
from jaxviz.plot.box_words import batch_of, check_graph, counted, words
from jaxviz.plot.boxes import colours


@public()
def graphviz(graph: LayerGraph, *, title: str | None = None) -> str:
    """A layer graph in the DOT language, for `dot -Tsvg` or any tool that reads it.

    Each box has the lines of `plot.architecture`: name, what it does, output of one example and
    parameters. Modules of the outermost level are clusters.

    Args:
      graph: Of `jaxviz.layer_graph`.
      title: Above everything; None counts layers and parameters.

    Returns:
      The text of one `digraph`. Neither Graphviz nor its Python package is needed to write it.

    Raises:
      ValueError: the graph has no boxes.
      TypeError: it is none.

    Example:
      >>> from jaxviz.graph.layer_graph import Box
      >>> x, a = Box("<input>", "input", "", (1, 5), 0, ()), Box("a", "dense", "", (1, 3), 15, ())
      >>> print(graphviz(LayerGraph((x, a), (("<input>", "a"),)), title="one layer"))
      digraph {
        graph [label="one layer", labelloc=t, labeljust=l, fontname=Helvetica];
        node [shape=box, style="rounded,filled", fontname=Helvetica, fontsize=10];
        "<input>" [label="input\\n5", fillcolor="#ffffff", color="#444b57"];
        "a" [label="a\\ndense\\n3, 15 parameters", fillcolor="#d8eedd", color="#58a06a"];
        "<input>" -> "a";
      }
    """
    check_graph("graphviz", graph)
    batch = batch_of(graph)
    clusters: dict[str, list[str]] = {}
    for box in graph.boxes:
        told = words(box, batch)
        held = f", {told.held} parameters" if told.held else ""
        label = "\n".join([told.name, *([told.does] if told.does else []), told.shape + held])
        fill, edge = colours(box)
        node = f'{_quoted(box.name)} [label={_quoted(label)}, fillcolor="{fill}", color="{edge}"];'
        module = box.name.split("/")[0] if "/" in box.name else ""
        clusters.setdefault(module, []).append(node)
    out = [
        "digraph {",
        f"  graph [label={_quoted(title or counted(graph))}, labelloc=t, labeljust=l, "
        "fontname=Helvetica];",
        '  node [shape=box, style="rounded,filled", fontname=Helvetica, fontsize=10];',
    ]
    for number, (module, nodes) in enumerate(clusters.items()):
        if not module:
            out += [f"  {node}" for node in nodes]
            continue
        out += [f"  subgraph cluster_{number} {{", f"    label={_quoted(module)};"]
        out += [*(f"    {node}" for node in nodes), "  }"]
    out += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in graph.edges]
    return "\n".join([*out, "}"])


def _quoted(text: str) -> str:
    # DOT's strings are JSON's, but for letters that JSON would write as \u.
    return json.dumps(text, ensure_ascii=False)
