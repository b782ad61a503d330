"""Where axes go when a value is transposed, stretched or reshaped."""


def moved(name, params, parts, before, after):
    """The parts of a value's axes after it was moved about; None where that is not known."""
    if name == "transpose":
        return tuple(parts[a] for a in params["permutation"])
    if name == "squeeze":
        return tuple(p for a, p in enumerate(parts) if a not in params["dimensions"])
    if name == "broadcast_in_dim":
        found = [frozenset()] * len(after)
        for a, place in enumerate(params["broadcast_dimensions"]):
            found[place] = parts[a] if before[a] == after[place] else frozenset()
        return tuple(found)
    if name == "reshape" and params.get("dimensions") is None:
        return _regrouped(parts, before, after)
    return None


def _regrouped(parts, before, after):
    """Axes joined or divided by a reshape: each has a part of all that were joined."""
    found = [frozenset()] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        first, start, a, b = i, j, before[i], after[j]
        while a != b:
            if a < b:
                i += 1
                a *= before[i]
            else:
                j += 1
                b *= after[j]
        i, j = i + 1, j + 1
        joint = frozenset().union(*parts[first:i])
        for k in range(start, j):
            if j - start == 1 or after[k] > 1:
                found[k] = joint
    return tuple(found)
