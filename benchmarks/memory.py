"""Peak memory of a piece of code, as the operating system counts it: the same for any library."""

import contextlib
import ctypes
import pathlib
import re

BLOCK = 2**16  # bytes: from here on a block is the kernel's own again once it is freed


def give_back():
    """Makes this process give freed memory back at once, so that each call's peak shows (glibc)."""
    ctypes.CDLL(None).mallopt(-3, BLOCK)  # M_MMAP_THRESHOLD, which otherwise grows


class Peak(contextlib.AbstractContextManager):
    """Measures by how much the process's resident memory rose at most inside the block (Linux).

    Memory that earlier calls left to the allocator is given back first, so that it counts again.

    Attributes:
      mb: The rise in megabytes, once the block has ended.
    """

    mb = 0.0

    def __enter__(self):
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is used now
        self._before = _resident("VmRSS")
        return self

    def __exit__(self, *error):
        self.mb = _resident("VmHWM") - self._before


def _resident(which):
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{which}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def peak_mb(call):
    """By how many megabytes a call of JAX raises the memory of its process, or of its GPU."""
    import jax  # not at the top: the process with torch imports this file, too

    device = jax.devices()[0]
    if device.platform == "cpu":
        with Peak() as peak:
            jax.block_until_ready(call())
        return peak.mb
    # The peak is of the whole process so far: the row that needs most hides the smaller ones.
    jax.block_until_ready(call())
    return device.memory_stats()["peak_bytes_in_use"] / 2**20
