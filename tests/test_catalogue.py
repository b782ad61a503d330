"""The command line's methods: each is the public function of its name, called as it must be."""

import inspect

import pytest

import jaxviz as jv
from jaxviz.catalogue import METHODS

WRAPPERS = ("smooth_grad", "square_grad", "var_grad")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described_as_it_is(name):
    method = METHODS[name]
    public = getattr(jv, name)
    assert method.explain == (public(jv.gradient) if name in WRAPPERS else public)
    options = inspect.signature(method.explain).parameters
    assert ("layer" in options) == method.layer
    needed = {n for n, p in options.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    assert needed == ({"key"} if method.random else set())


def test_titles_differ():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
