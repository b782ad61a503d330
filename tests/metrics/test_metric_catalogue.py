"""The table of metrics: each public one is there, with the direction that its docstring tells."""

import inspect

import jaxviz as jv
from jaxviz.metrics.catalogue import METRICS


def test_every_metric_of_an_explanation_is_in_the_table():
    public = {name: getattr(jv.metrics, name) for name in jv.metrics.__all__}
    judges = {
        name
        for name, value in public.items()
        if inspect.isfunction(value)
        and {"attribution", "method"} & inspect.signature(value).parameters.keys()
    }
    assert judges == METRICS.keys()


def test_the_table_says_what_the_docstrings_say():
    for name, metric in METRICS.items():
        function = getattr(jv.metrics, name)
        told = " ".join((inspect.getdoc(function) or "")[:300].lower().split())
        told = told.replace("1 is better than 0", "higher is better")
        assert f"{metric.better} is better" in told, name
        other = {"higher": "lower", "lower": "higher"}[metric.better]
        assert f"{other} is better" not in told, name
        required = {
            option
            for option, p in inspect.signature(function).parameters.items()
            if p.default is p.empty and option in ("mask", "layer")
        }
        assert required == {metric.needs} - {""}, name
        assert metric.better_with({"order": "least_first"}) == other
        assert metric.better_with({"order": "most_first"}) == metric.better
