"""The process's own heap: freed memory is kept between steps, and given back in rest.

A step of a model allocates and frees the same few megabytes for every layer. glibc returns what is
freed at the end of its heap to the system, and takes large blocks from the system one by one; each
page must then be cleared and mapped anew. A norm of 1024 x 1024 bfloat16 takes 4.1 ms that way and
0.95 ms in memory that was kept (two cores of an Intel Xeon of 2023). Kept memory that nobody needs
is returned when the worker has nothing to do.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt(3): names and values. 32 MB is the most glibc takes for a threshold. One arena for all
# threads, because what is kept in one cannot be used in another: a worker with nano is 5 % smaller,
# and no slower.
SETTINGS = (
    (-1, 1 << 30),  # M_TRIM_THRESHOLD
    (-3, 32 << 20),  # M_MMAP_THRESHOLD
    (-8, 1),  # M_ARENA_MAX
)


def keep_freed() -> bool:
    """Keep freed memory for the next step; whether this system's C library can. To be called before
    there are threads."""
    return all([_call("mallopt", name, value) for name, value in SETTINGS])


@contextmanager
def filling() -> Iterator[None]:
    """What is made meanwhile stays: of the hundreds of thousands of objects that libraries make
    when they are imported next to none is garbage, and looking for it took a seventh of the CPU
    time from the start to the model (0.5 of 3.4 s)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle() -> None:
    """What is there now stays for good: the collector need not look at it again.

    368,000 objects of the libraries would make every full collection stop the worker for 0.13 s,
    and make it so rare that cycles with pictures in them pile up. The collector waits until a
    quarter of what its last full collection left has been made anew; the second collection here
    leaves almost nothing, so that this count does not go by the frozen objects either. Without it,
    a worker that never rests grew by 15 MB with every thousand pictures.
    """
    give_back()
    gc.freeze()
    gc.collect()


def give_back() -> None:
    """Return to the system what is not in use."""
    gc.collect()
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> int:
    """A function of the C library; 0 where it has none of this name, as in musl."""
    function = getattr(ctypes.CDLL(None), name, None)
    return 0 if function is None else int(function(*arguments))
