"""Makes notebooks of the example scripts: the same code, cut into cells, figures shown.

A build of the site writes docs/notebooks/NAME.ipynb and runs those that have no outputs yet, or
whose script has changed: a minute each on one core. `-D run_notebooks=short` runs those of `SHORT`
alone. What needs data that are not in $JAXVIZ_DATA is shown without outputs: a build asks no
network.

`python docs/notebooks.py [NAME ...]` does the same without the site, and downloads what it needs.
"""

import ast
import os
import pathlib
import re
import shutil
import sys
import textwrap

HERE = pathlib.Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
FOLDER = HERE / "notebooks"
SHORT = ("own_network",)  # seconds: these run in every build
LONG = ("cifar_cnn", "deconstruct_mnist", "six_ways", "filters_and_features", "mnist_end_to_end")
# What a notebook takes in place of the script's defaults: it is done in a minute of one core.
BRIEFER = {
    "cifar_cnn": {"epochs": 2, "images": 20_000},
    "deconstruct_mnist": {"epochs": 1, "num_steps": 64},
    "six_ways": {"epochs": 1, "num_steps": 50},
    "filters_and_features": {"num_steps": 64},
    "mnist_end_to_end": {"epochs": 3},
}
# Files below $JAXVIZ_DATA without which a script would ask the network, or end.
NEEDS = {
    "cifar_cnn": ("cifar10",),
    "filters_and_features": ("imagenet/macaw.jpg", "weights/squeezenet1_1_imagenet.safetensors"),
}


_PYTHON = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
_INTRODUCTION = """\
The example scripts, cut into cells: from data and a network to pictures and what they say. A
network of your own takes the place of the one that each trains or loads. They train less, and climb
fewer steps, than their scripts, as the cell of settings says. A build of the site runs them, a
minute each on one core, where `JAXVIZ_DATA` has their data, and keeps what they showed;
`python docs/notebooks.py six_ways` runs one. They lie in `docs/notebooks/`."""


def title(name: str) -> tuple[str, str]:
    """What a script asks, and what the first line of its docstring says besides."""
    source = (EXAMPLES / f"{name}.py").read_text()
    line = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    asked, mark, rest = line.partition("? ")
    return asked + mark.strip(), rest


def cells(name: str) -> list[tuple[str, str]]:
    """The cells of a script: pairs of "markdown" or "code" and a text."""
    source = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(source)
    rest = (ast.get_docstring(tree) or "").partition("\n")[2]
    main = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    imports, pieces = [], []
    for node in tree.body[1 : tree.body.index(main)]:
        text = _with_comment(source, node)
        if not isinstance(node, ast.Import | ast.ImportFrom):
            pieces.append(text)
        elif not re.search(r"argparse|out_folder", text):
            imports.append(text)
    imports = {*imports, "import pathlib"}
    # Names that mean something else in the notebook, where there is but one scope.
    taken = {node.id for node in ast.walk(main) if isinstance(node, ast.Name)}
    settings, names = _settings(name, source, main, taken)
    asked, more = title(name)
    out = [
        ("markdown", f"# {asked}\n\n{more}\n\n{rest.strip()}"),
        ("code", "%matplotlib inline\n" + "\n".join(sorted(imports, key=_order))),
    ]
    out += [("code", text) for text in pieces] + [("code", settings)]
    for paragraph in re.split(r"\n\n+", textwrap.dedent("\n".join(_worked(source, main, names)))):
        out += _cells_of(paragraph)
    return out


def _order(line):
    standard = line.split()[1].split(".")[0] in sys.stdlib_module_names
    return not standard, "jaxviz" in line, line.startswith("from"), line


def _with_comment(source, node):
    """The lines of a statement, and those of the comment ahead of it."""
    lines, first = source.splitlines(), node.lineno - 1
    while lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(lines[first : node.end_lineno])


def _settings(name, source, main, taken):
    """What the script takes as options, as a cell of names with their defaults; and the names."""
    lines = ["jv.keep_compiled()", f'out = pathlib.Path("{name}")  # what is trained stays here']
    names = {"out": "out"}
    for node in main.body:
        text = ast.unparse(node)
        if text.startswith("kept = "):
            lines.append(text)
        if not text.startswith("parser.add_argument") or "'--out'" in text:
            continue
        given = {keyword.arg: keyword.value for keyword in node.value.keywords}
        option = node.value.args[0].value.removeprefix("--").replace("-", "_")
        names[option] = f"{option}_name" if option in taken else option
        default = ast.unparse(given["default"]) if "default" in given else "None"
        said = [given["help"].value] if "help" in given else []
        taken_here = BRIEFER.get(name, {}).get(option)
        if taken_here is not None:
            said.append(f"the script: {default}")
            default = repr(taken_here)
        said = f"  # {'; '.join(said)}" if said else ""
        lines.append(f"{names[option]} = {default}{said}")
    return "\n".join(lines), names


def _worked(source, main, names):
    """The lines of `main` that do the work, figures shown where they are made."""
    all_lines, start = source.splitlines(), main.body[0].lineno
    lines = dict(enumerate(all_lines[start - 1 : main.end_lineno], start))
    for node in ast.walk(main):
        match node:
            case ast.For(iter=ast.Call(func=ast.Attribute(value=ast.Name(id="figures")))):
                gone = True  # the loop that saves them
            case ast.Assign(targets=[ast.Name(id="figures")]):
                gone = True
            case ast.Return():
                gone = node in main.body
            case ast.Assign() | ast.Expr() if node in main.body:
                gone = re.match(r"parser|arguments = |kept = ", ast.unparse(node))
            case _:
                gone = False
        if gone:
            for line in range(node.lineno, node.end_lineno + 1):
                lines.pop(line, None)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("figures["):
            head = re.match(r"\s*figures\[.*?\] = ", lines[node.lineno])[0]
            indent = " " * (len(head) - len(head.lstrip()))
            lines[node.lineno] = f"{indent}display({lines[node.lineno][len(head) :]}"
            lines[node.end_lineno] += ")"
    return [re.sub(r"\barguments\.(\w+)", lambda m: names[m[1]], text) for text in lines.values()]


def _cells_of(paragraph):
    """A comment ahead of a paragraph is text; where it has a number, its beginning is a heading."""
    lines = paragraph.strip("\n").splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    said, code = " ".join(line[2:] for line in lines[:count]), "\n".join(lines[count:])
    if found := re.match(r"\d+\. (.+?)(?:: (.+)|\. (.+)|\.)$", said):
        said = found[2] or found[3] or ""
        said = f"## {found[1]}\n\n{said[:1].upper()}{said[1:]}".strip()
    if said:
        yield "markdown", said
    if code:
        yield "code", code


def write(run=(), names=SHORT + LONG) -> dict[str, bool]:
    """Writes notebooks, and runs those of `run`; outputs of what has not changed stay.

    Returns:
      Name -> whether it has outputs.
    """
    import nbclient  # the tests read cells without these
    import nbformat

    FOLDER.mkdir(exist_ok=True)
    shown = {}
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        made = nbformat.v4.new_notebook(metadata=_PYTHON)
        for number, (kind, text) in enumerate(cells(name)):
            cell = getattr(nbformat.v4, f"new_{kind}_cell")(text)
            cell["id"] = str(number)  # the same in every build
            made.cells.append(cell)
        before = nbformat.read(path, 4) if path.exists() else made
        if [cell.source for cell in before.cells] == [cell.source for cell in made.cells]:
            for cell, ran in zip(made.cells, before.cells, strict=True):
                cell.update({k: ran[k] for k in ("outputs", "execution_count") if k in ran})
        shown[name] = any(cell.get("outputs") for cell in made.cells)
        if name in run and not shown[name]:
            shutil.rmtree(FOLDER / name, ignore_errors=True)  # trained by other settings, maybe
            where = {"metadata": {"path": str(FOLDER)}}
            nbclient.NotebookClient(made, timeout=None, resources=where).execute()
            shown[name] = True
        nbformat.write(made, path)
    return shown


def runnable(which: str) -> tuple[str, ...]:
    """The notebooks that a build runs: `which` is "all" whose data are there, or "short"."""
    if which not in ("all", "short"):
        raise ValueError(f'notebooks: which must be "all" or "short"; got {which!r}.')
    folder = pathlib.Path(os.environ.get("JAXVIZ_DATA", ""))
    there = lambda name: all((folder / path).exists() for path in NEEDS.get(name, ()))
    return SHORT + tuple(name for name in LONG if which == "all" and there(name))


def write_index(which: str = "all") -> None:
    """Writes all, runs what can be run, and a page that lists them."""
    shown = write(run=runnable(which))
    lines = ["# Notebooks", "", _INTRODUCTION, "", "| notebook | pictures here |", "|---|---|"]
    for name, here in shown.items():
        lines.append(f"| [{title(name)[0]}]({name}.ipynb) | {'yes' if here else 'no'} |")
    lines += ["", "```{toctree}", ":hidden:", "", *shown, "```", ""]
    (FOLDER / "index.md").write_text("\n".join(lines))


if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or SHORT + LONG
    write(run=wanted, names=wanted)
