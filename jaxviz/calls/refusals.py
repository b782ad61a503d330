"""What JAX says of functions that it cannot differentiate or batch, in this library's words.

A model runs well by itself and fails in a gradient of it, inside of JAX, whose words say nothing of
the argument that it is about.
"""

import re

_NO_GRADIENT = "apply_fn must have a gradient"
_ANY_BATCH = "apply_fn must take a batch of any size"

# What JAX says, what is required, what came and what to do.
_TOLD = (
    (
        r"everse-mode differentiation does not work for lax.while_loop",
        f"{_NO_GRADIENT}; it has a loop that turns as often as its numbers say (lax.while_loop, or "
        "a fori_loop with traced bounds). Write it as lax.scan, or a fori_loop of a fixed number "
        "of turns.",
    ),
    (
        r"Linearization failed to produce known values",
        f"{_NO_GRADIENT} in reverse; a part of it has one in forward mode alone, such as a loop "
        "with traced bounds or lax.reduce_window with a start that is traced. Write it as "
        "lax.scan, or give the start as a number.",
    ),
    (
        r"callbacks? do(?:es)? not support JVP",
        f"{_NO_GRADIENT}; it calls back to Python (pure_callback, io_callback), of which JAX knows "
        "none. Put jax.custom_vjp around it, or hand it jax.lax.stop_gradient of what it reads.",
    ),
    (
        r"annot `vmap` ordered IO callback",
        f"{_ANY_BATCH}; it calls back to Python in order (ordered=True). Leave ordered out.",
    ),
    (
        r"vmap is only supported for .* when vmap_method is ",
        f"{_ANY_BATCH}; it calls back to Python without saying how a batch is computed. Pass "
        'vmap_method="sequential", say, to jax.pure_callback.',
    ),
    (
        r"checkify.check which was not functionalized",
        "apply_fn must be a pure function; it has a check of jax.experimental.checkify. Pass "
        "checkify.checkify(apply_fn)'s outputs without the error, or leave the check out.",
    ),
    (
        r"can't apply forward-mode differentiation \(jvp\) to a custom_vjp",
        "apply_fn must have derivatives in forward mode; a part of it has a jax.custom_vjp, which "
        "has none. Write that as a jax.custom_jvp.",
    ),
    (
        r"(?:Batching|Vmap)(?: rule)? for '?([\w-]+)'? not implemented",
        f"{_ANY_BATCH}; JAX cannot batch its operation {{0!r}}. Take a method that needs one pass, "
        "or write that operation another way.",
    ),
    (
        r"(?:Differentiation|Transpose|Linearization) rule (?:\(.*?\) )?for '?([\w-]+)'?"
        r".* not implemented",
        f"{_NO_GRADIENT}; JAX has none of its operation {{0!r}}. Put jax.custom_vjp around it.",
    ),
    (
        r"incompatible devices for jitted computation\. Got argument (?:options\[')?(\w+)\S* of "
        r".*?device ids (\[.*?\]) .*? argument (?:options\[')?(\w+)\S* of .*?device ids (\[.*?\])",
        "arguments must lie on the same devices; got {0} on devices {1} and {2} on {3}. Move one "
        "of them: jax.device_put(params, x.sharding), say.",
    ),
    (
        r"type <class 'jax.ShapeDtypeStruct'> is not a valid JAX type",
        "params must hold arrays, as must x; got shapes alone (jax.ShapeDtypeStruct), which tell "
        "of layers and not of numbers. Pass what `init` gave, or what was trained.",
    ),
)
# Of what works on the host, and of a user's function.
NO_NUMBERS = (
    "arguments must hold numbers, for some are read outside of compiled programs; got traced "
    "arrays (under jit, vmap, grad or scan){}. Call it outside of them."
)
_INSIDE = (r"`compiler_options` can only be passed to top-level", NO_NUMBERS.format(""))
_PATTERNS = [(re.compile(said), told) for said, told in (*_TOLD, _INSIDE)]


def told(error: BaseException) -> str | None:
    """What is required, what came and what to do, where JAX's words are known; else None.

    Example:
      >>> told(ValueError("Cannot `vmap` ordered IO callback."))[:40]
      'apply_fn must take a batch of any size; '
    """
    words = str(error)
    for pattern, meant in _PATTERNS:
        if found := pattern.search(words):
            return meant.format(*found.groups())
    return None
