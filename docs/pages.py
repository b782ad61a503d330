"""Writes the site's pages of methods and its reference, from the library itself.

`methods/` gets a page a family and a page a method: what `jaxviz.methods()` knows, what
`methods.toml` adds, the picture, the docstring. `reference/` gets a page a package. Both folders
are made at each build and are in no one's way in a checkout.
"""

import importlib
import pathlib
import re
import shutil
import tomllib

import jaxviz
from jaxviz.metrics.catalogue import METRICS

HERE = pathlib.Path(__file__).parent

# Family -> its sentence. Those of `jaxviz.methods()` come with their members, the others name them.
FAMILIES = {
    "gradient": "The slope of the score, and what is made of it alone.",
    "path": "Slopes gathered on a way from a baseline to the input: shares that add up.",
    "smoothed": "Any method, averaged over copies of the input.",
    "propagation": "The score handed back layer by layer by rules.",
    "CAM": "Which places of a layer speak for the class.",
    "attention": "What transformers attend to, found in the computation.",
    "perturbation": "Experiments: what the score does when parts are covered.",
}
OTHERS = {
    "attention": (
        "What transformers attend to, found in the computation.",
        [
            *("attentions", "patched", "steered", "activation_patching", "attribution_patching"),
            *("path_patching", "layer_ablation"),
        ],
    ),
    "sets": (
        "What a model makes of one feature over a whole set.",
        ["partial_dependence", "permutation_importance"],
    ),
    "interactions": (
        "What pairs of parts do together beyond what each does alone.",
        ["integrated_hessians", "shapley_interactions", "occlusion_interactions"],
    ),
    "learned": (
        "What a unit has learned, apart from any one image.",
        [
            *("maximize_activation", "maco", "accentuate", "deep_dream", "invert", "caricature"),
            "activation_grid",
            *("restyle", "top_examples", "feature_projection", "top_projections", "filters"),
        ],
    ),
    "composition": (
        "Methods of methods, and checks.",
        [
            "at_layer",
            "at_neuron",
            "augmented",
            "dave",
            "occlusion_scores",
            "completeness_gap",
            "lrp_conservation",
            "lrp_search",
            "path_integrated_gradients",
            "full_gradient",
        ],
    ),
}
PACKAGES = (
    *("jaxviz", "jaxviz.metrics", "jaxviz.plot", "jaxviz.rules", "jaxviz.models", "jaxviz.data"),
    *("jaxviz.concepts", "jaxviz.influence"),
    *("jaxviz.training", "jaxviz.features.objectives", "jaxviz.features.parametrizations"),
    *("jaxviz.features.regularizers", "jaxviz.features.transforms"),
)


def write() -> None:
    """Makes `methods/` and `reference/`; says which names have no page."""
    notes = tomllib.loads((HERE / "methods.toml").read_text())
    known = {method.name: method for method in jaxviz.methods()}
    families = {name: (said, []) for name, said in FAMILIES.items()}
    for method in known.values():
        families[method.family][1].append(method.name)
    for name, (said, members) in OTHERS.items():
        if members := [one for one in members if one in jaxviz.__all__]:
            members += [one for one in families.get(name, ("", []))[1] if one not in members]
            families[name] = said, members
    if strangers := set(notes) - {one for _, members in families.values() for one in members}:
        raise SystemExit(f"docs/methods.toml: no family has {', '.join(sorted(strangers))}")
    folder = HERE / "methods"
    trees = [*map(_file, families), "metrics"]
    _page(folder / "index.md", "Methods", [_overview(families, known), _tree(trees)])
    _page(folder / "metrics.md", "Metrics", [_metrics()])
    for name, (said, members) in families.items():
        table = _table(members, known, notes)
        parts = [said, table, *map(_picture, members), _tree(members)]
        _page(folder / f"{_file(name)}.md", _title(name), parts)
        for member in members:
            _page(folder / f"{member}.md", f"`{member}`", _method(member, known, notes))
    _reference(HERE / "reference")
    for path in {*HERE.glob("methods/*"), *HERE.glob("reference/*")} - _written:
        path.unlink()


def for_machines(app, error) -> None:
    """Puts `llms.txt` at the root of the built site, with links to what is there."""
    if error or app.builder.format != "html":
        return

    def there(link):
        given = pathlib.Path(link[1])
        if given.suffix == ".md" and given.parent.name == "docs":
            return f"](_sources/{given.name}.txt)"  # the page as it was written
        shutil.copy(HERE.parent / given, app.outdir)
        return f"]({given.name})"

    text = (HERE.parent / "llms.txt").read_text()
    (pathlib.Path(app.outdir) / "llms.txt").write_text(re.sub(r"\]\(([^)]+)\)", there, text))


_written = set()


def _page(path, title, parts):
    """Writes a page, unless it is there: a second build reads what has changed alone."""
    path.parent.mkdir(exist_ok=True)
    text = "\n\n".join([f"# {title}", *(part for part in parts if part)]) + "\n"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    _written.add(path)


def _file(family):
    return f"{family.lower()}_methods"  # a method may have its family's name


def _title(family):
    return {"CAM": "Class activation maps", "learned": "What a layer has learned"}.get(
        family, family.capitalize()
    )


def _tree(names):
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])


def _overview(families, known):
    rows = ["| family | members |", "|---|---|"]
    for name, (said, members) in families.items():
        links = " ".join(f"[`{member}`]({member}.md)" for member in members)
        rows.append(f"| [{_title(name)}]({_file(name)}.md): {said} | {links} |")
    return "\n".join(rows)


def _table(members, known, notes):
    rows = ["| method | passes through the net | when |", "|---|---|---|"]
    for member in members:
        cost = _cost(member, known, notes)
        use = notes.get(member, {}).get("use", "")
        rows.append(f"| [`{member}`]({member}.md) | {cost} | {use} |")
    return "\n".join(rows)


def _metrics():
    rows = ["| metric | what it asks | family | better | needs |", "|---|---|---|---|---|"]
    for name, metric in METRICS.items():
        said = (getattr(jaxviz.metrics, name).__doc__ or "").split("\n\n")[0]
        asked = re.split(r"[:.](?: |$)", " ".join(said.split()))[0].replace("|", "\\|")
        link = f"{{py:func}}`{name} <jaxviz.metrics.{name}>`"
        rows.append(f"| {link} | {asked} | {metric.family} | {metric.better} | {metric.needs} |")
    return "\n".join(["How they are called: [Is it true?](../is_it_true.md).", "", *rows])


def _cost(name, known, notes):
    return known[name].cost if name in known else notes.get(name, {}).get("cost", "")


def _method(name, known, notes):
    said, method = notes.get(name, {}), known.get(name)
    facts = [("When", said.get("use")), ("When not", said.get("beware"))]
    cost = _cost(name, known, notes)
    facts += [("Cost", f"{cost}, by default" if method else cost)]
    facts += [("In other libraries", said.get("peers"))]
    return [
        "\n".join(f"- **{head}:** {text}" for head, text in facts if text),
        _picture(name),
        "## Formula, arguments, errors, example",
        _described("jaxviz", name),
    ]


def _picture(name):
    if not (HERE / "pictures" / f"{name}.png").exists():
        return ""
    return f"![What `{name}` shows of handwritten digits](../pictures/{name}.png)"


def _described(module, name):
    kind = (
        "autoclass"
        if isinstance(getattr(importlib.import_module(module), name), type)
        else (
            "autofunction"
            if callable(getattr(importlib.import_module(module), name))
            else "autodata"
        )
    )
    return "\n".join(["```{eval-rst}", f".. {kind}:: {module}.{name}", "```"])


def _reference(folder):
    listed = []
    documented = {path.stem for path in (HERE / "methods").glob("*.md")}
    for package in PACKAGES:
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError:
            continue
        names = [name for name in _public(module) if package != "jaxviz" or name not in documented]
        parts = [(module.__doc__ or "").split("\n")[0], *(_described(package, n) for n in names)]
        if package == "jaxviz":
            links = " ".join(
                f"[`{n}`](../methods/{n}.md)" for n in sorted(documented & {*module.__all__})
            )
            parts.insert(1, f"On pages of their own: {links}.")
        _page(folder / f"{package}.md", f"`{package}`", parts)
        listed.append(package)
    _page(folder / "index.md", "Reference", ["Every public name, by package.", _tree(listed)])


def _public(module):
    named = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
    ]
    values = {name: getattr(module, name) for name in named if not name.startswith("_")}
    return [name for name, value in values.items() if callable(value)]
