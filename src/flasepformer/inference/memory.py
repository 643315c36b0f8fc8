"""How much memory there is to work with, and sizes as people write them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

USABLE_SHARE = 0.5
"""Share of the free memory that is taken when nobody says how much; other programs need some meanwhile."""

SMALLEST_PLAIN_SIZE = 1_000_000
"""A text without a unit that is below this was not meant in bytes."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNLIMITED = 1 << 60  # what control groups call no limit is larger


def parse_size(text: int | str) -> int:
    """Return a size in bytes.

    Args:
        text: Bytes as an integer, or a number with K, M, G or T, the powers of 1000.

    Raises:
        ValueError: It is no size above zero, or a text of a few bytes, which lacks its unit.

    >>> parse_size("800M"), parse_size("1.5 GB"), parse_size(4096)
    (800000000, 1500000000, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(text).strip(), re.IGNORECASE)
    size = round(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size <= 0:
        raise ValueError(f"a size must be written like 800M or 4G, got {str(text)!r}")
    if isinstance(text, str) and match and not match[2] and size < SMALLEST_PLAIN_SIZE:
        raise ValueError(f"{text.strip()} are so many bytes; write the unit too, such as {text.strip()}G")
    return size


def format_size(n_bytes: float) -> str:
    """Write a size for a person.

    >>> format_size(812_345_678), format_size(1.25e10), format_size(3000)
    ('812 MB', '12.5 GB', '0.003 MB')
    """
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process could still take, or None where the system does not tell.

    The least of what the system has available, what each control group above the process has left, and what
    the process's own limit on its address space leaves.

    Args:
        root: Where `proc` and `sys` are.
    """
    return min((*_available(root), *_left_in_groups(root), *_left_in_address_space(root)), default=None)


def _available(root: Path) -> Iterator[int]:
    match = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if match:
        yield int(match[1]) * 1024
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS: half of all there is
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what is left in each control group of memory that holds the process, of either version."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (base / group, *(base / parent for parent in group.parents)):
            limit, used = _read(folder / names[0]).strip(), _read(folder / names[1]).strip()
            if not limit.isdigit() or not used.isdigit() or int(limit) > _UNLIMITED:
                continue
            cached = re.search(rf"^{names[2]} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
            # Pages of files count as used, but those that nobody needs go before anybody is killed.
            yield max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0))


def _left_in_address_space(root: Path) -> Iterator[int]:
    statm = _read(root / "proc/self/statm").split()
    if resource is None or not statm:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield max(0, limit - int(statm[0]) * resource.getpagesize())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not Linux, or a part of the system that a container does not show
        return ""
