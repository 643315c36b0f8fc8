import resource
from pathlib import Path

import pytest
from tests.processes import start

from flasepformer.inference.memory import format_size, free_memory, parse_size

GIB = 2**30


def write(root, **files):
    for name, text in files.items():
        path = root.joinpath(*name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def system(tmp_path):
    """A system with 8 GiB available, as its files under /proc tell."""
    write(tmp_path, proc__meminfo=f"MemTotal: 1 kB\nMemAvailable: {8 * 2**20} kB\nSwapFree: 0 kB\n")
    return tmp_path


@pytest.mark.parametrize("text", ["", "0", "-1", "4 GiB", "G", "lots", "1e9", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="written like 800M or 4G"):
        parse_size(text)


def test_a_size_without_its_unit_is_asked_about():  # issue 16
    with pytest.raises(ValueError, match="10 are so many bytes; write the unit too, such as 10G"):
        parse_size("10")
    assert parse_size("200000000") == 200_000_000


def test_sizes_read_as_they_are_written():
    assert [parse_size(text) for text in (1, "2k", "3.5M", "4 gb", "0.001T")] == [
        1, 2000, 3_500_000, 4_000_000_000, 1_000_000_000,
    ]  # fmt: skip
    assert parse_size(format_size(4_130_000_000)) == 4_130_000_000


def test_without_groups_all_that_is_available_is_free(system):
    assert free_memory(system) == 8 * GIB


def test_the_tightest_group_above_the_process_counts_and_files_do_not(system):
    write(system, proc__self__cgroup="0::/user/job\n")
    write(system / "sys/fs/cgroup/user", **{"memory.max": f"{3 * GIB}\n", "memory.current": f"{2 * GIB}\n"})
    write(system / "sys/fs/cgroup/user/job", **{"memory.max": "max\n", "memory.current": f"{GIB}\n"})
    assert free_memory(system) == GIB
    write(
        system / "sys/fs/cgroup/user", **{"memory.stat": f"anon 5\ninactive_file {GIB // 2}\nactive_file 9\n"}
    )
    assert free_memory(system) == GIB + GIB // 2
    write(system / "sys/fs/cgroup", **{"memory.max": f"{4 * GIB}\n", "memory.current": f"{5 * GIB}\n"})
    assert free_memory(system) == 0


def test_groups_of_the_first_version_count_too(system):
    write(system, proc__self__cgroup="9:name=systemd:/\n4:memory:/docker/abc\n0::/\n")
    group = {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": f"{GIB}\n"}
    write(system / "sys/fs/cgroup/memory/docker/abc", **group)
    assert free_memory(system) == 8 * GIB
    # In a container the path is the host's; what the container sees stands at the root.
    group = {"memory.limit_in_bytes": f"{2 * GIB}\n", "memory.usage_in_bytes": f"{GIB}\n"}
    write(system / "sys/fs/cgroup/memory", **group)
    assert free_memory(system) == GIB


def tell_what_is_free(folder):
    """Write what is free in this process, before and after it is told to grow by no more than 50 MB."""
    before = free_memory()
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 50_000_000, -1))
    (folder / "free").write_text(f"{before} {free_memory()}")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the size of a process")
def test_the_limit_of_the_address_space_counts(tmp_path):
    process = start(tell_what_is_free, tmp_path)
    process.join(timeout=120)
    assert process.exitcode == 0
    before, after = map(int, (tmp_path / "free").read_text().split())
    assert before > 50_000_000
    assert after == pytest.approx(50_000_000, abs=2_000_000)
