"""What a process sets up before its first computation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1jax import runtime

CODE = "import os, sys; from r1jax.runtime import use_huge_pages; use_huge_pages(); "


@pytest.mark.skipif("[madvise]" not in runtime._on_request(), reason="huge pages are not on request here")
def test_a_process_starts_anew_once_with_its_arguments():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for name in ("GLIBC_TUNABLES", "R1JAX_STARTED_ANEW"):
        environment.pop(name, None)
    code = CODE + "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], 'jax' in sys.modules)"
    call = [sys.executable, "-X", "utf8", "-c", code, "a b", "--c"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "glibc.malloc.hugetlb=1 ['a b', '--c'] False\n"


@pytest.mark.parametrize(
    ("enabled", "before", "after"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", None),
        ("[always] madvise never", None, None),
        ("always madvise [never]", None, None),
        (None, None, None),  # not Linux
    ],
)
def test_only_where_it_changes_something_and_nobody_decided(tmp_path, monkeypatch, enabled, before, after):
    file, calls = tmp_path / "enabled", []
    if enabled is not None:
        file.write_text(enabled)
    monkeypatch.setattr(runtime, "TRANSPARENT_HUGE_PAGES", file)
    for name in ("GLIBC_TUNABLES", "R1JAX_STARTED_ANEW"):
        monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)

    def execve(*call):
        calls.append(call)
        raise OSError("no such program")

    monkeypatch.setattr(os, "execve", execve)
    runtime.use_huge_pages()
    assert not calls  # within a process that has JAX, this one
    monkeypatch.delitem(sys.modules, "jax")
    runtime.use_huge_pages()  # goes on where it cannot
    if after is None:
        assert not calls
    else:
        [(program, argv, environment)] = calls
        assert (program, argv) == (sys.executable, sys.orig_argv)
        assert environment == os.environ | {"GLIBC_TUNABLES": after, "R1JAX_STARTED_ANEW": "1"}
        # Never twice, though the setting may be dropped, as where a program has more rights than its user.
        monkeypatch.setenv("R1JAX_STARTED_ANEW", "1")
        runtime.use_huge_pages()
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/job/step", "job/step/memory.max"),
        ("0::/job/step", "job/memory.max"),
        ("0::/job/step", "memory.max"),
        ("3:cpu,memory:/job", "memory/job/memory.limit_in_bytes"),
        ("3:cpu,memory:/job", "memory/memory.limit_in_bytes"),
    ],
)
def test_the_hosts_memory_is_what_the_control_groups_leave(tmp_path, monkeypatch, line, file):
    monkeypatch.setattr(runtime, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(runtime, "CONTROL_GROUP", tmp_path / "missing")
    whole = runtime.host_memory()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(runtime, "CONTROL_GROUP", tmp_path / "of this process")
    runtime.CONTROL_GROUP.write_text(f"7:freezer:/other\n{line}\n")
    assert runtime.host_memory() == whole
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    for text, memory in (("max", whole), (str(whole // 2), whole // 2), (str(2 * whole), whole)):
        (tmp_path / file).write_text(f"{text}\n")
        assert runtime.host_memory() == memory
