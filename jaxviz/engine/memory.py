"""Keeps large blocks of memory in the process, so that XLA's temporaries are not mapped anew."""

import ctypes
import platform

import jax

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_LARGEST = 2**31 - 1  # bytes; mallopt takes a C int


def keep_memory() -> bool:
    """Lets this process keep freed blocks below 2 GB instead of giving them back at once.

    On a CPU an XLA program asks the C library for one block of temporaries at each call. glibc
    takes blocks above 32 MB fresh from the kernel and gives them back afterwards, so every call
    pays for touching each page for the first time, which can take as long as the arithmetic.
    This raises glibc's two limits for the whole process, NumPy's arrays included, which is why no
    other function of the library does it. The process then stays as large as it ever was.

    glibc keeps blocks above 64 MB for a process's first thread alone, so JAX is also told to run
    CPU programs in the thread that calls them (`jax_cpu_enable_async_dispatch`): a call then
    returns when it is done, not before.

    Call it once, at the very start: JAX reads its part when it first uses the CPU. The environment
    variables `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_` and `JAX_CPU_ENABLE_ASYNC_DISPATCH`
    do the same from outside.

    Returns:
      Whether it took effect: False where the C library is not glibc.

    Example:
      >>> kept = keep_memory()  # True on most Linux systems

    Reference:
      mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; HEAP_MAX_SIZE in glibc's malloc/arena.c.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(limit, _LARGEST) == 1 for limit in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
