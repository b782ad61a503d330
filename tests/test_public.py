"""What a user meets first: public names, the version, the README's examples and promises."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import tomllib

import pytest

import jaxviz
from jaxviz.cli import command_line

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ["jaxviz"] + [
    f"jaxviz.{module.name}" for module in pkgutil.iter_modules(jaxviz.__path__) if module.ispkg
]


# Every public name of the package and of its floors, with what it stands for.
PUBLIC = [
    pytest.param(value, id=f"{package}.{name}")
    for package in PACKAGES
    for name in importlib.import_module(package).__all__
    for value in [getattr(importlib.import_module(package), name)]
    if str(getattr(value, "__module__", "")).startswith("jaxviz") and callable(value)
]
TOP = [value for name in jaxviz.__all__ if inspect.isfunction(value := getattr(jaxviz, name))]


@pytest.mark.parametrize("value", PUBLIC)
def test_every_public_name_is_documented(value):
    text = inspect.getdoc(value) or ""
    assert len(text) > 20, "no docstring"
    # A NamedTuple or dataclass without words of its own has its signature for a docstring.
    assert not text.startswith(f"{getattr(value, '__name__', '')}("), "no docstring of its own"


@pytest.mark.parametrize("value", PUBLIC)
def test_every_argument_is_documented(value):
    text = inspect.getdoc(value) or ""
    if not inspect.isfunction(value) or ("Args:" not in text and value not in TOP):
        pytest.skip("no function, or one whose only argument is what all of its kind take")
    missing = [
        name
        for name, parameter in inspect.signature(value).parameters.items()
        if not name.startswith("_")
        and not re.search(rf"(?m)^\s+\*{{0,2}}[\w, *]*\b{name}\b[\w, *]*:", text)
    ]
    assert not missing, f"not under Args: {missing}"


@pytest.mark.parametrize("path", sorted((ROOT / "jaxviz").rglob("*.py")), ids=str)
def test_every_file_says_what_it_is_for(path):
    assert path.read_text().startswith('"""')


def test_the_version_stands_in_one_place():
    number = re.escape(jaxviz.__version__)
    files = [*ROOT.glob("*.toml"), *(ROOT / "jaxviz").rglob("*.py")]
    assert [f.name for f in files if re.search(rf"\b{number}\b", f.read_text())] == ["__init__.py"]
    assert "version" in PROJECT["dynamic"]


def test_the_lower_bounds_are_those_that_are_tested():
    lines = (ROOT / "tests" / "lower_bounds.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
    promised = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    bounds = dict(re.split(r">=", re.sub(r"\[.*\]", "", one)) for one in promised)
    tools = {"ruff", "pyright"}  # they judge the code; the code does not run with them
    assert {k: v for k, v in bounds.items() if k not in tools} == {
        k: v for k, v in tested.items() if k != "jaxlib"
    }


def test_the_examples_of_the_readme_and_of_the_tour_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    for page, least in ((ROOT / "README.md", 2), (ROOT / "docs" / "tour.md", 6)):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        assert len(blocks) >= least
        names = {"__name__": page.stem}
        for block in blocks:
            exec(compile(block, page.name, "exec"), names)
        found |= names
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "explanations.png",
        "conv.png",
        "training.png",
        "channels.png",
    }
    assert found["slopes"].shape == (4, 32, 32, 3)
    assert found["by_unit"].shape == (4, 16, 16, 8)


@pytest.mark.parametrize("page", ["README.md", "docs/command_line.md"])
def test_the_commands_of_the_pages_exist(page):
    shell = "".join(re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    lines = re.findall(r"(?m)(?:^|&& )jaxviz (.*?)(?:\s+#.*)?$", shell)
    assert len(lines) >= 5
    for line in lines:
        command_line._parser().parse_args(line.split())


def test_what_the_pages_link_to_is_there():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            folder = target.split("/")[0]
            made = page.parent.name == "docs" and folder in ("methods", "notebooks", "reference")
            assert made or (page.parent / target).exists(), (page.name, target)
    assert (ROOT / "docs" / "demo.png").stat().st_size < 300_000
