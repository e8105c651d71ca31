"""How much memory this machine could still give to a process. Linux; elsewhere half of all."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def host_free_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """The smaller of what the kernel calls available and what the container may still take."""
    return min(_available(meminfo), _left_in_cgroup(cgroup))


def _available(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_cgroup(cgroup: Path) -> int:
    """A container's limit less what it uses; cached files count as used but are given back."""
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        for line in (cgroup / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                used -= int(value)
        return max(0, limit - used)
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return 1 << 62
