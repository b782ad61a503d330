"""The site: `sphinx-build -W -b html docs docs/_build` after `pip install -e ".[docs]"`.

Pages of methods, the reference (`pages.py`) and notebooks (`notebooks.py`) are made at the start of
a build; pictures of methods are kept (`pictures.py`). Nothing is taken from a network, but by
`sphinx-build -b linkcheck docs docs/_build/links`, which asks for every page that is linked to.
"""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import notebooks  # noqa: E402
import pages  # noqa: E402

import jaxviz  # noqa: E402

project = "jaxviz"
author = "The jaxviz authors"
copyright = author
version = release = jaxviz.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]  # the second is myst-nb's
nb_execution_mode = "off"  # `notebooks.py` does that
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # pages that stand alone on the web too begin where they like

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_admonition_for_examples = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "jaxviz"
html_show_sourcelink = False
html_show_search_summary = False  # it is fetched, which browsers bar for pages on a disk

# Code between single backticks, over the end of a line too; or what is a mark outside of it.
_PLAIN = re.compile(r"`([^`]+)`(?=(\w?))|([*|\\]|(?<=\w)_(?!\w))")


def marked(app, what, name, thing, options, lines):
    """Docstrings' plain text as reStructuredText: code is literal, other marks are escaped."""
    paragraphs = re.split(r"(\n\s*\n)", "\n".join(lines))
    literal = lambda m: "``" + re.sub(r"\n\s*", " ", m[1]) + "``" + "\\ " * bool(m[2])
    for i, text in enumerate(paragraphs):
        if ">>>" not in text:
            paragraphs[i] = _PLAIN.sub(lambda m: literal(m) if m[1] else "\\" + m[0], text)
    lines[:] = "".join(paragraphs).split("\n")


def reachable(app, page, template, context, doctree):
    """What can be scrolled sideways is reached by keys; headings of the menu have a level."""
    for part, before, after in (
        ("body", "<pre>", '<pre tabindex="0">'),
        ("body", '<div class="table-wrapper', '<div tabindex="0" class="table-wrapper'),
        ("furo_navigation_tree", 'role="heading"', 'role="heading" aria-level="2"'),
    ):
        if part in context:
            context[part] = context[part].replace(before, after)


def setup(app):
    app.connect("builder-inited", lambda app: pages.write())
    app.add_config_value("run_notebooks", "all", "", str)  # or "short": see notebooks.py
    app.connect("builder-inited", lambda app: notebooks.write_index(app.config.run_notebooks))
    app.connect("build-finished", pages.for_machines)
    app.connect("html-page-context", reachable, priority=900)  # after the theme's own
    app.connect("autodoc-process-docstring", marked, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True}
