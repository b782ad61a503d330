"""The site's sources: notes on methods that exist, on all of them, and blocks that run."""

import pathlib
import re
import tomllib

import jax
import pytest

import jaxviz as jv

DOCS = pathlib.Path(__file__).parents[1] / "docs"
NOTES = tomllib.loads((DOCS / "methods.toml").read_text())


def test_each_method_has_notes():
    assert {method.name for method in jv.methods()} <= set(NOTES)
    assert all(callable(getattr(jv, name)) for name in NOTES)
    assert all(note["use"] and note["beware"] for note in NOTES.values())


def test_each_method_has_a_picture():
    drawn = {path.stem for path in (DOCS / "pictures").glob("*.png")}
    assert {method.name for method in jv.methods() if not method.linear} <= drawn
    assert drawn <= set(NOTES)


@pytest.mark.parametrize("page", ["index.md", "how_it_works.md"])
def test_the_blocks_of_the_page_run(page):
    names = {"__name__": page}
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, page, "exec"), names)


def test_pages_name_functions_that_exist():
    for page in ("which_method.md", "coming_from.md", "troubleshooting.md"):
        text = (DOCS / page).read_text()
        for name in re.findall(r"\]\(methods/(\w+)\.md\)", text):
            assert name == "index" or hasattr(jv, name), (page, name)
