"""The command line's methods: each is the public function of its name, called as it must be."""

import inspect

import pytest

import jaxviz as jv
from jaxviz.catalogue import METHODS

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
    assert needed == ({"key"} if method.random else set()) | set(method.options((8, 8)))


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
