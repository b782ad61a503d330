"""The site's sources: notes on methods that exist, on all of them, and blocks that run."""

import importlib.util
import pathlib
import re
import tomllib

import jax
import pytest
from flax import nnx

import jaxviz as jv

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
SKILL = ROOT / ".agents" / "skills" / "jaxviz" / "SKILL.md"
NOTES = tomllib.loads((DOCS / "methods.toml").read_text())
SPEC = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
assert SPEC is not None
assert SPEC.loader is not None
notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(notebooks)


def test_each_method_has_notes():
    assert {method.name for method in jv.methods()} <= set(NOTES)
    assert all(callable(getattr(jv, name)) for name in NOTES)
    assert all(note["use"] and note["beware"] for note in NOTES.values())
    listed = {method.name for method in jv.methods()}  # whose cost stands there
    assert {name for name, note in NOTES.items() if "cost" in note} == set(NOTES) - listed


def test_each_method_has_a_picture():
    drawn = {path.stem for path in (DOCS / "pictures").glob("*.png")}
    assert {method.name for method in jv.methods() if not method.linear} <= drawn
    assert drawn <= set(NOTES)


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def attending(params, x):
    """A model for blocks that begin with the reader's own."""
    weights = jax.nn.softmax((x @ params) @ x.transpose(0, 2, 1))
    return (weights @ x).mean(1)


X = jax.random.normal(jax.random.key(0), (2, 5, 4))
OWN = {"jv": jv, "apply_fn": attending, "params": jax.numpy.eye(4), "x": X, "attribution": X}
PAGES = {
    "index.md": {},
    "how_it_works.md": {},
    "text.md": {},
    "autoencoders.md": {},
    "examples_by_search.md": {},
    "attention.md": OWN,
    "influence.md": {},
    "interventions.md": OWN,
    "graphs.md": {},
    "concepts.md": {},
    "is_it_true.md": OWN,
    "command_line.md": {"nnx": nnx, "Net": lambda rngs: None},
}


def run(path, names):
    names = {"__name__": path.stem, **names}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks(path):
            exec(compile(block, path.name, "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_the_page_run(page):
    assert blocks(DOCS / page)
    run(DOCS / page, PAGES[page])


def test_each_page_with_blocks_is_run_by_some_test():
    elsewhere = {"adapters.md", "inputs.md", "tour.md"}  # by tests that look at what comes out
    assert {path.name for path in DOCS.glob("*.md") if blocks(path)} == elsewhere | set(PAGES)


def test_the_recipes_of_the_skill_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = SKILL.read_text()
    assert re.match(r"---\nname: jaxviz\ndescription: .{50,1000}\n---\n", text)
    recipes = re.split(r"\n## (?=\d+\. )", text)[1:]
    assert len(recipes) == 10
    assert all("```python" in recipe for recipe in recipes)
    found = run(SKILL, {})
    assert abs(found["gap"]).max() < 1e-4
    assert found["region"].shape == found["lost"].shape == (2, 8, 8)
    assert found["per_token"].shape == (1, 4)
    assert set(found["values"]) == {"conv", "relu_0"}
    assert found["curve"].area.shape == (2,)
    assert found["climb"].images.shape == (1, 8, 8, 1)
    assert sorted(found["suspicious"].tolist()) == [0, 1]
    assert (tmp_path / "explanations.png").exists()


def test_what_machines_read_links_to_what_is_there():
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "llms.txt").read_text())
    assert len(targets) > 10
    assert all((ROOT / target).exists() for target in targets)
    told = re.findall(r"`(docs/[\w.]+)`", SKILL.read_text())
    assert told
    assert all((ROOT / target).exists() for target in told)


def test_the_recipes_and_pages_name_functions_that_exist():
    for path in (SKILL, ROOT / "llms.txt", *DOCS.glob("*.md")):
        for name in re.findall(r"`jv\.(\w+)", path.read_text()):
            assert hasattr(jv, name), (path.name, name)


@pytest.mark.parametrize("name", notebooks.SHORT + notebooks.LONG)
def test_a_script_becomes_a_notebook(name):
    script = (notebooks.EXAMPLES / f"{name}.py").read_text()
    cells = notebooks.cells(name)
    assert cells[0][1].startswith("# ")
    assert sum(text.count("\n## ") + text.startswith("## ") for _, text in cells) >= 4
    code = [text for kind, text in cells if kind == "code"]
    whole = "\n".join(code).replace("%matplotlib inline", "")
    compile(whole, name, "exec")
    assert not re.search(r"arguments|parser|argparse|figures\b|savefig|__main__", whole)
    assert whole.count("display(") == len(re.findall(r"^ *figures\[", script, re.MULTILINE)) >= 2


def test_a_notebook_takes_less_than_its_script_and_says_so():
    for name, options in notebooks.BRIEFER.items():
        settings = next(text for _, text in notebooks.cells(name) if "keep_compiled" in text)
        for option, value in options.items():
            assert re.search(rf"(?m)^{option} = {value}  # .*the script: \w+$", settings), option


def test_a_build_runs_what_has_its_data(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIZ_DATA", str(tmp_path))
    assert notebooks.runnable("short") == ("own_network",)
    assert not {"cifar_cnn", "filters_and_features"} & set(notebooks.runnable("all"))
    (tmp_path / "cifar10").mkdir()
    assert set(notebooks.LONG) - set(notebooks.runnable("all")) == {"filters_and_features"}
    with pytest.raises(ValueError, match='which must be "all" or "short"; got \'none\''):
        notebooks.runnable("none")


def test_the_table_of_all_methods_has_a_name_or_a_reason_in_every_row():
    text = (DOCS / "all_methods_table.md").read_text()
    rows = re.findall(r"(?m)^\| (?!\*\*|method|-)(.+?) \| (.+) \|$", text)
    assert len(rows) == 100
    for method, here in rows:
        names = re.findall(r"`(?:jv\.)?([\w.]+)(?:\(|`)", here)
        assert names or re.search("left out|none is needed", here), method
        assert all(map(resolved, names)), (method, names)


def test_what_other_libraries_have_is_here_by_a_name_that_exists():
    rows = re.findall(r"(?m)^\| .+? \| (.+?) \| .*\|$", (DOCS / "coming_from.md").read_text())
    assert len(rows) > 80
    for here in rows:
        # Options end in "=", and what is no name begins with none of letters and a bracket.
        names = re.findall(r"`(?:jv\.)?([a-z][\w.]*)(?:\(|`)", here)
        assert all(map(resolved, names)), (here, names)


def resolved(name):
    """Whether a name of the table, with its package, is public."""
    home = jv
    for part in name.split("."):
        if not hasattr(home, part) and home is jv and part in ("plot", "training", "influence"):
            importlib.import_module(f"jaxviz.{part}")
        if not hasattr(home, part):
            return False
        home = getattr(home, part)
    return True


def test_each_paper_stands_once_and_whole():
    entries = re.split(r"\n\n(?=@)", (DOCS / "references.bib").read_text().strip())
    keys = [re.match(r"@\w+\{(\w+),\n", entry)[1] for entry in entries]
    assert len(keys) > 90
    assert len(set(keys)) == len(keys)
    broken = [e for e in entries if e.count("{") != e.count("}") or not e.endswith("\n}")]
    assert not broken


def test_pages_name_functions_that_exist():
    for page in ("which_method.md", "coming_from.md", "troubleshooting.md"):
        text = (DOCS / page).read_text()
        for name in re.findall(r"\]\(methods/(\w+)\.md\)", text):
            assert name == "index" or hasattr(jv, name), (page, name)
