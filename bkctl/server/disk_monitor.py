"""Watches how full the disks of the ledger directories are.

Source: spec storage section 10; upstream LedgerDirsMonitor. Usage is 1 - usable / total, usable being
what is left to users other than root.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes of the file systems below a set of directories; each file system counts once."""

    total_bytes: int
    free_bytes: int
    usage_max: float  # of the fullest one, 0 to 1
    usage_min: float
    free_bytes_max: int  # of the roomiest one


def disk_space(directories: Sequence[str]) -> DiskSpace:
    """Raises OSError when a directory cannot be asked: its disk has failed."""
    by_device: dict[int, os.statvfs_result] = {}
    for directory in directories:
        by_device.setdefault(os.stat(directory).st_dev, os.statvfs(directory))
    sizes = [(s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize) for s in by_device.values()]
    usages = [1 - free / total if total else 1.0 for total, free in sizes]
    return DiskSpace(
        sum(total for total, _ in sizes),
        sum(free for _, free in sizes),
        max(usages),
        min(usages),
        max(free for _, free in sizes),
    )
