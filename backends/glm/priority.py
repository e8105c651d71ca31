"""Who gets the cores: a worker that loads gives way to those that serve beside it.

A worker that is started again imports torch, reads a checkpoint and lays out its matrices: seconds
of a core, or minutes, while the workers that are left carry its share as well. Linux knows two ways
to say "the others first", and which of them counts depends on where the process stands:

- Processes of one control group (a container) are told apart by the *nice value* of each thread.
  Without privileges it can only grow, so it is given to a thread that does the loading and ends
  with it. What that thread has started keeps its value: nothing that serves is started there.
- Outside of one, each session is an *autogroup* (sched(7)): nice values count inside of it, and
  between sessions the group's own does. Its owner may raise and lower that between 0 and 19.

Both are set where they can be. Elsewhere, and where the kernel declines, a worker loads as before.

They say who comes first on a core, not on which core. Two busy workers beside an endless loop at
nice 10 or 19 took 1.35 times as long on two cores (1.13 under SCHED_IDLE), and 1.0 times beside a
loop that slept for 0.3 ms after each ms of work. We take it that a core on which something runs
without a pause counts as busy, whatever its weight, so that those that serve share the other one;
and that a core which falls idle takes over what waits there. So a worker that loads takes breath.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# A tenth of the weight of one that serves (sched(7): a factor of 1.25 a step). Not the least there
# is: on cores that are busy throughout, that would mean one hundredth, and no end of loading.
GIVING_WAY = 10
AS_USUAL = 0
BREATH_S = 0.0003
BREATH_EVERY_S = 0.001
# The kernel takes a new value every 100 ms from whoever is not root, of all processes together.
PATIENCE_S = 5.0
RETRY_S = 0.11

_AUTOGROUP = Path("/proc/self/autogroup")


def give_way() -> None:
    """This process's session comes after others, if it is this process's own: a shell's other
    jobs are not slowed down with it."""
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        _set_autogroup(GIVING_WAY)


def take_part() -> None:
    """The opposite. Blocks for up to PATIENCE_S where other processes ask for the same."""
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        _set_autogroup(AS_USUAL)


def gently(work: Callable[[], T]) -> T:
    """What `work` returns or raises. It runs in a thread that gives way, and so do the threads that
    it starts, for as long as they live."""
    with ThreadPoolExecutor(1, thread_name_prefix="glm-load", initializer=_lower) as pool:
        return pool.submit(work).result()


class Breath:
    """Pauses between the imports of modules, for the time of a `with` statement: importing is most
    of loading, and there are thousands of modules. At most a quarter of the time is spent so."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, _name: str, _path: object = None, _target: object = None) -> None:
        """A finder that finds nothing and takes its time."""
        if time.monotonic() >= self._next_s:
            time.sleep(BREATH_S)
            self._next_s = time.monotonic() + BREATH_EVERY_S


def _lower() -> None:
    if sys.platform == "linux":  # elsewhere a nice value belongs to the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GIVING_WAY)


def _set_autogroup(nice: int) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            _AUTOGROUP.write_text(str(nice))
        except BlockingIOError:  # EAGAIN: somebody else has just set one
            time.sleep(RETRY_S)
        except OSError:  # a kernel without autogroups, or one that is not ours to set
            return
        else:
            return
