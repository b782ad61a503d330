"""The command line's methods: each is the public function of its name, called as it must be."""

import inspect

import numpy as np
import pytest

import jaxviz as jv
from jaxviz.catalogue import METHODS
from jaxviz.parts.coalitions import usual_segments

WRAPPERS = ("smooth_grad", "square_grad", "var_grad", "low_passed")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described_as_it_is(name):
    method = METHODS[name]
    public = getattr(jv, name)
    wanted = public(jv.gradient) if name in WRAPPERS else public
    assert method.explain == wanted or (method.scores and method.explain.__wrapped__ == wanted)
    assert method.explain is METHODS[name].explain  # for which nothing compiles twice
    options = inspect.signature(method.explain).parameters
    assert ("layer" in options) == method.layer
    needed = {n for n, p in options.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    told = set(method.options((8, 8))) - ({"segments"} if method.cells else set())
    assert needed == ({"key"} if method.random else set()) | told


def test_of_images_feature_ablation_hides_the_cells_that_others_hide():
    ablation = METHODS["feature_ablation"]
    for shape in [(30, 20), (5, 9, 8)]:
        x = np.zeros((1, *shape, 1), np.float32)
        np.testing.assert_array_equal(ablation.options(shape)["segments"], usual_segments(x))
    assert ablation.options((9,)) == {}  # columns, tokens: each its own
    assert ablation.cost == f"{ablation.options((30, 20))['segments'].max() + 1} forward"


def test_the_list_names_every_method_and_what_it_needs():
    found = {method.name: method for method in jv.methods()}
    assert set(METHODS) < set(found)
    for method in found.values():
        public = getattr(jv, method.name)
        options = inspect.signature(public).parameters
        assert (method.needs in options) or not method.needs
    text = repr(jv.methods())
    assert text.count("\n") == len(found)
    assert "occlusion" in text
    assert text in jv.methods()._repr_html_()


def test_titles_differ():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
