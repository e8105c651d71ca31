"""Free memory: the machine's and the container's, whichever is less."""

from __future__ import annotations

from pathlib import Path

from backends.glm.checkpoint.memory import host_free_bytes

KIB, GIB = 1024, 1024**3


def _machine(folder: Path, available_kib: int) -> Path:
    file = folder / "meminfo"
    file.write_text(f"MemTotal:  99999999 kB\nMemAvailable:   {available_kib} kB\n")
    return file


def _container(folder: Path, limit: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nfile 9\n")
    return folder


def test_without_a_container_it_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert host_free_bytes(_machine(tmp_path, 4 * KIB), tmp_path / "none") == 4 * KIB * KIB


def test_a_container_with_less_counts(tmp_path: Path) -> None:
    machine = _machine(tmp_path, 8 * KIB * KIB)
    box = _container(tmp_path, str(2 * GIB), used=GIB, cached=GIB // 2)
    assert host_free_bytes(machine, box) == GIB + GIB // 2
    _container(tmp_path, str(GIB), used=3 * GIB, cached=0)
    assert host_free_bytes(machine, box) == 0


def test_a_container_without_a_limit_does_not(tmp_path: Path) -> None:
    box = _container(tmp_path, "max", used=GIB, cached=0)
    assert host_free_bytes(_machine(tmp_path, KIB), box) == KIB * KIB


def test_this_machine_has_some() -> None:
    assert 0 < host_free_bytes() < 1 << 50
    assert host_free_bytes(Path("/nowhere"), Path("/nowhere")) > 0
