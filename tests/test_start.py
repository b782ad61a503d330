"""What starting takes: which modules are imported by what, counted in processes of their own."""

import ast
import pathlib
import pickle
import subprocess
import sys

import optax
import pytest

import jaxviz as jv
from jaxviz import catalogue, data, models, words
from jaxviz.sweep.loop import STORED

HEAVY = {
    *("jax", "numpy", "flax", "optax", "orbax", "tensorstore", "matplotlib", "PIL", "rich"),
    *("scipy", "sklearn", "skimage", "pooch", "safetensors", "jinja2"),
}


def imported(code):
    """The heavy packages that a process has imported once it has run `code`."""
    told = f"{code}\nimport sys\nprint('imported', *{HEAVY} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return set(out.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_imports_nothing_heavy():
    assert imported("import jaxviz, jaxviz.sweep, jaxviz.models, jaxviz.plot") == set()


def test_methods_import_jax_alone():
    code = (
        "import jaxviz as jv\njv.saliency, jv.lrp, jv.grad_cam, jv.occlusion, jv.split, jv.layers"
    )
    assert imported(code) <= {"jax", "numpy", "scipy"}


def test_an_explanation_of_a_plain_function_needs_no_flax():
    code = "import jaxviz as jv\nimport jax.numpy as jnp\n"
    call = "jv.saliency(lambda w, x: jnp.tanh(x) @ w, jnp.ones((2, 3)), jnp.ones((1, 2)))"
    assert imported(code + call) <= {"jax", "numpy", "scipy"}


@pytest.mark.parametrize(
    "line", ["--help", "", "explain --help", "--version", "exlain", "sweep x -q"]
)
def test_the_command_line_talks_without_jax(line):
    code = f"import jaxviz.cli\ntry: jaxviz.cli.main({line.split()})\nexcept SystemExit: pass"
    assert imported(code) == set()


def test_words_of_the_command_line_are_those_of_the_library():
    assert words.SMALL_NETS == tuple(models.small_nets)
    assert words.NETS == tuple(models.nets)
    assert words.DATA == tuple(data.class_names)
    assert words.STORED == STORED
    assert all(callable(getattr(optax, name)) for name in words.OPTIMIZERS)
    assert set(words.DEFAULT_METHODS) < set(catalogue.METHODS)
    assert set(words.DEFAULT_INFLUENCES) < set(words.INFLUENCES) < set(jv.influence.__all__)


PACKAGES = [
    jv,
    data,
    models,
    jv.concepts,
    jv.influence,
    jv.metrics,
    jv.plot,
    jv.rules,
    jv.training,
    sys.modules["jaxviz.sweep"],
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_offers_what_its_stub_says(package):
    stub = ast.parse((pathlib.Path(package.__path__[0]) / "__init__.pyi").read_text())
    told = [n.asname for s in stub.body if isinstance(s, ast.ImportFrom) for n in s.names]
    assert len(told) > 2
    assert package.__all__ == told
    assert set(told) <= set(dir(package))
    for name in told:
        found = getattr(package, name)
        assert getattr(found, "__name__", name).split(".")[-1] in (name, "dict", "Callable")
        assert vars(package)[name] is found  # kept: the second time nothing is looked up


def test_star_gives_every_public_name():
    names = {}
    exec("from jaxviz import *", names)
    assert {name for name in names if name != "__builtins__"} == set(jv.__all__)
    assert names["lrp"] is jv.lrp


def test_modules_are_attributes_and_do_not_hide_functions_of_their_name():
    code = (
        "import jaxviz, jaxviz.sweep.loop, jaxviz.plot.architecture\n"
        "assert jaxviz.sweep is jaxviz.sweep and callable(jaxviz.sweep)\n"
        "assert callable(jaxviz.plot.architecture)\n"
        "assert jaxviz.attribution.cam.grad_cam is jaxviz.grad_cam\n"
        "assert jaxviz.rules.lrp.__name__ == 'jaxviz.rules.lrp'\n"
        "from jaxviz.sweep import Sweep\n"
        "assert Sweep is jaxviz.Sweep"
    )
    assert "jax" in imported(code)


def test_public_functions_are_pickled_by_name():
    assert pickle.loads(pickle.dumps(jv.sweep)) is jv.sweep


def test_a_name_that_is_not_there_gets_the_nearest():
    with pytest.raises(
        AttributeError, match=r"jaxviz: there is no gradcam in it. Did you mean gra"
    ):
        jv.gradcam  # noqa: B018
    with pytest.raises(AttributeError, match=r"jaxviz.plot: there is no atlas in it. Did you mean"):
        jv.plot.atlas  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'salience'"):
        exec("from jaxviz import salience")
    assert not hasattr(jv, "__wrapped__")


def test_layers_of_a_model_that_imports_linen_itself_have_their_names():
    code = (
        "import sys, jax, jax.numpy as jnp, jaxviz as jv\n"
        "def net(w, x):\n"
        "    import flax.linen as nn\n"
        "    class Net(nn.Module):\n"
        "        @nn.compact\n"
        "        def __call__(self, x):\n"
        "            return nn.Dense(2, name='last')(x)\n"
        "    return Net().apply(w, x)\n"
        "w = {'params': {'last': {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros(2)}}}\n"
        "assert 'flax.linen' not in sys.modules\n"
        "assert [l.name for l in jv.layers(net, w, jnp.ones((1, 3)))][0] == 'last'"
    )
    assert "flax" in imported(code)


def test_weights_and_shapes_compile_nothing(tmp_path):
    code = f"""
import jax, numpy as np
from jaxviz import models
from jaxviz.models.registry import variable_shapes
compiled = []
hear = lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
jax.monitoring.register_event_duration_secs_listener(hear)
net, path = models.CIFARNet(), {str(tmp_path / "net.safetensors")!r}
shapes = variable_shapes(net, (32, 32, 3))
drawn = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
models.save_torchvision(net, drawn, path)
loaded = models.load_torchvision(net, path)
assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(loaded))
assert not compiled, compiled
jax.jit(lambda a: a + 1)(1.0)
assert compiled  # such events are heard
"""
    found = imported(code)
    assert "flax" in found
    assert not found & {"optax", "orbax", "matplotlib"}


# Each folder one floor: a file imports from its own and from floors below.
FLOORS = {
    name: height
    for height, names in enumerate(
        [
            ("lazy", "words", "folders"),
            ("calls",),
            ("graph",),
            ("rules", "plot", "adapters"),
            ("engine",),
            ("parts",),
            ("attribution", "features", "attention"),
            ("interventions", "concepts", "influence"),
            ("catalogue", "chosen", "metrics"),
            ("sweep",),
            ("data", "models", "training", "explanation"),
            ("report",),
            ("cli",),
        ]
    )
    for name in names
}


def floors_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module="jaxviz"):
                modules = [f"jaxviz.{alias.name}" for alias in node.names]
            case ast.ImportFrom():
                modules = [node.module]
            case ast.Import():
                modules = [alias.name for alias in node.names]
            case _:
                continue
        yield from (module.split(".")[1] for module in modules if module.startswith("jaxviz."))


def test_nothing_imports_upwards():
    root = pathlib.Path(jv.__file__).parent
    upwards = [
        (str(path.relative_to(root)), floor)
        for name, height in FLOORS.items()
        for path in [*root.glob(f"{name}.py"), *root.glob(f"{name}/**/*.py")]
        for floor in floors_imported(path)
        if FLOORS.get(floor, len(FLOORS)) > height
    ]
    assert not upwards
