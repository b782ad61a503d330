"""Public functions: their arguments are checked by name and annotation, their errors named.

The annotation of a parameter says its kind (`int`, `float`, `bool`, `Literal`, a class, None); the
table below says what a name means wherever it stands, such as that there is one step at least.
"""

import collections.abc
import difflib
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import numpy as np

from jaxviz.calls import arrays, models, options
from jaxviz.calls.meshes import on_automatic_axes
from jaxviz.calls.naming import calling, ours
from jaxviz.calls.options import Check, maybe, real, several, whole

P = ParamSpec("P")
R = TypeVar("R")

_positive = real(0, above=True)

SIDES = "whole numbers, at least 1, one an axis, such as (h, w), or (t,) of a signal"

# What a parameter of this name must be, whichever public function it belongs to. Where None is the
# default, None will do.
OPTIONS: dict[str, Check] = {
    "apply_fn": models.model,
    "x": models.batch,
    "key": arrays.key,
    "layer": options.layer,
    "method": options.with_parameters,
    "channel": arrays.unit,
    "unit": arrays.unit,
    "segments": arrays.leaves_of(arrays.integers),
    "style": models.batch,
    "layers": options.layer_list,
    "style_layers": options.layer_list,
    "title": maybe(options.title),
    "path": options.path,
    "folder": options.path,
    "checkpoint": options.path,
    "num_steps": whole(1),
    "num_samples": whole(1),
    "num_segments": whole(1),
    "num_channels": whole(1),
    "num_octaves": whole(1),
    "num_views": whole(1),
    "num_images": whole(1),
    "num_frames": whole(0),
    "redirected_steps": whole(0),
    "chunk_size": whole(1),
    "batch_size": whole(1),
    "min_pixels": whole(0),
    "cells": whole(1),
    "window": several(whole(1), SIDES),
    "stride": several(whole(1), SIDES),
    "resize": options.size,
    "fill": arrays.fill_or_function,
    "baseline": maybe(arrays.tree),
    "baselines": arrays.tree,
    "attribution": arrays.tree,
    "kernels": arrays.real_array,
    "magnitude": arrays.rows(3, "[C, H, W // 2 + 1]"),
    "position": several(whole(0), "indices from 0, one for each axis of space"),
    "init": options.either(
        '"noise", "blank" or an image', options.choice("noise", "blank"), arrays.real_array
    ),
    "shape": several(whole(1), "whole numbers, at least 1, such as (H, W, C)"),
    "noise": real(0),
    "noise_scale": real(0),
    "kernel_width": _positive,
    "strength": real(0, traced=True),
    "sparsity": real(0, traced=True),
    "smoothness": real(0, traced=True),
    "keep": real(0, 1, above=True, below=True),
    "fraction": real(0, 1, above=True),
    "max_distance": real(0),
    "max_sigma": _positive,
    "sigma": _positive,
    "compactness": _positive,
    "octave_scale": real(1, above=True),
    "step_size": _positive,
    "cosine_power": real(0),
    "style_weight": real(0),
    "value_range": options.interval,
    "stabilizer": real(0),
    "epsilon": real(0),
    "tolerance": real(0),
    "gamma": real(0),
    "conv_gamma": real(0),
}

_ALWAYS = {"apply_fn", "x", "key"}


def public(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function public: wrong arguments are refused before any work, in its name.

    Args:
      **checks: Of parameters that mean something else here than by their name and annotation.

    Returns:
      A decorator. The decorated function keeps its signature and docstring.

    Example:
      >>> @public()
      ... def halves(num_steps: int = 1):
      ...     return num_steps / 2
      >>> halves(num_steps=0)
      Traceback (most recent call last):
      ValueError: halves: num_steps must be at least 1; got 0.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        read = reader(name, function, checks)

        @functools.wraps(function)
        def called(*args, **kwargs):
            with calling(name) as guarded:
                given = read(args, kwargs, guarded)
                run = lambda: function(*given.args, **given.kwargs)
                return on_automatic_axes(run, given.arguments)

        return called  # type: ignore[return-value]

    return decorate


def reader(
    name: str, function: Callable, checks: dict[str, Check] | None = None
) -> Callable[[tuple, dict, bool], inspect.BoundArguments]:
    """`(args, kwargs, guarded) -> arguments` of a function, each in the form that its check gives
    it; where `guarded` (`jax.transfer_guard`), x and params must be on a device."""
    ours(name)
    signature = inspect.signature(function)
    variable = [
        p.name
        for p in signature.parameters.values()
        if p.kind is p.VAR_KEYWORD and p.name not in (checks or {})
    ]

    @functools.cache  # annotations are read when they are first needed, not on import
    def found():
        own = {n: _or_none(signature, n, check) for n, check in (checks or {}).items()}
        return checks_of(function) | own

    def read(args, kwargs, guarded):
        bound = fitting(name, signature, args, kwargs)
        checked = found()
        given = bound.arguments
        for option, value in given.items():
            if guarded and option in ("params", "x"):
                arrays.on_device(name, option, value)
            arrays.there(name, option, value)
            check = checked.get(option)
            if check is not None:
                given[option] = check(name, option, value)
        for rest in variable:
            more = given.get(rest, {})
            for option in more.keys() & OPTIONS.keys():
                more[option] = OPTIONS[option](name, option, more[option])
        return bound

    return read


def _or_none(signature, name, check):
    """The check, that lets None pass where that is the default: saying so changes nothing."""
    parameter = signature.parameters.get(name)
    return maybe(check) if parameter is not None and parameter.default is None else check


def checks_of(function: Callable) -> dict[str, Check]:
    """The checks of a function's parameters, by their names and annotations."""
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        name, hint = parameter.name, hints.get(parameter.name, Any)
        if parameter.annotation is parameter.empty and name not in _ALWAYS:
            continue  # of a part of a public function, which has checked it
        if name == "target":
            continue  # is checked beside the outputs, whose shape says what it may be
        said = _by_annotation(hint)  # a list of words, or a check of its own, says more than a name
        check = said if _says_all(hint) else OPTIONS.get(name, said)
        if check is not None:
            found[name] = maybe(check) if parameter.default is None else check
    return found


def _says_all(hint):
    parts = [hint, *typing.get_args(hint)]
    return any(typing.get_origin(part) in (Literal, typing.Annotated) for part in parts)


_KINDS: dict[Any, Check] = {
    bool: options.flag,
    int: whole(),
    float: real(),
    str: options.text,
    jax.Array: arrays.array,
    np.ndarray: arrays.numbers_list,
    Callable: options.function,
    os.PathLike: options.instance(os.PathLike),
}


def _by_annotation(hint: Any) -> Check | None:
    """The check that an annotation asks for, or None where anything will do."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return None
    if origin is typing.Annotated:
        return parts[1]
    if origin is Literal:
        return options.choice(*parts)
    if origin in (types.UnionType, typing.Union):
        kinds = [part for part in parts if part is not type(None)]
        each = [_by_annotation(part) for part in kinds]
        found = [check for check in each if check is not None]
        if len(found) < len(each):
            return None
        one = found[0] if len(found) == 1 else options.either(_told(kinds), *found)
        return maybe(one) if len(kinds) < len(parts) else one
    if origin is collections.abc.Callable:
        return options.function
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        if origin is collections.abc.Iterable:
            return None
        kinds = [part for part in parts if part is not Ellipsis]
        one = _by_annotation(kinds[0]) if kinds else None
        each = one or (lambda who, option, value: value)
        count = len(kinds) if origin is tuple and Ellipsis not in parts else None
        told = f"a list or tuple, each {_told(kinds[:1])}" if one else "a list or tuple"
        return several(each, told, least=0, count=count)
    if hint is collections.abc.Sequence:
        return several(lambda who, option, value: value, "a list or tuple", least=0)
    if hint in _KINDS:
        return _KINDS[hint]
    if isinstance(hint, type) and hint is not object and origin is None:
        return options.instance(hint)
    return None


_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    jax.Array: "an array of numbers",
    np.ndarray: "an array of numbers",
}


def _told(kinds):
    words = []
    for kind in kinds:
        origin = typing.get_origin(kind)
        if kind in _WORDS:
            words.append(_WORDS[kind])
        elif origin is collections.abc.Callable or kind is Callable:
            words.append("a function")
        elif origin in (tuple, list, collections.abc.Sequence):
            words.append("a list or tuple")
        elif origin is dict or origin is collections.abc.Mapping:
            words.append("a dictionary")
        elif origin is Literal:
            words.extend(map(repr, typing.get_args(kind)))
        else:
            words.append(f"a {getattr(kind, '__name__', 'value')}")
    return " or ".join(words)


def fitting(name: str, signature: inspect.Signature, args: tuple, kwargs: dict):
    """The arguments by parameter; those that fit none are refused, with the nearest name."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(_misfit(name, signature, kwargs, error)) from None


def _misfit(name, signature, kwargs, error):
    """What Python says of arguments that fit no parameter, and the signature, short."""
    known = [p for p in signature.parameters if p not in ("args", "kwargs")]
    told = str(error).rstrip(".")
    wrong = next((k for k in kwargs if k not in known), None)
    near = difflib.get_close_matches(wrong, known, n=1) if wrong else []
    hint = f" Did you mean {near[0]}?" if near else ""
    if near and wrong and repr(near[0]) in told:  # the one that is missing is there by another name
        told = f"got an unexpected keyword argument {wrong!r}"
    if told.endswith("argument: 'key'"):
        hint = " Pass key=jax.random.key(0): the same key, the same answer." + hint
    return f"{name}: {told}.{hint} Its signature is {name}({signature_of(signature)})."


def signature_of(signature: inspect.Signature) -> str:
    """Names of parameters, and defaults that are short."""
    words, starred = [], False
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        if p.kind is p.VAR_POSITIONAL:
            starred = True
        mark = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        default = ""
        if p.default is not p.empty:
            default = "=" + (repr(p.default) if len(repr(p.default)) <= 20 else "...")
        words.append(f"{mark}{p.name}{default}")
    return ", ".join(words)
