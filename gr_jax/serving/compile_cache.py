"""Compiled programs that are kept on disk, so that the next start of a server only loads them."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

FOLDER = "compiled"  # in the workdir
CPUINFO = Path("/proc/cpuinfo")


def keep(workdir: Path) -> Path | None:
    """Keeps what this process compiles from now on in the workdir of a run; the folder, or None where it may not write.

    To be called before anything is compiled.

    Programs depend on the processor: each kind has a folder of its own, since a workdir may be on a shared disk.
    """
    if not (workdir / "config.json").is_file() or not os.access(workdir, os.W_OK):
        return None  # nothing is made in a folder that holds no run
    folder = workdir / FOLDER / _machine()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _machine() -> str:
    """A name for the kind of processor, by what it can do."""
    can = ""
    if CPUINFO.is_file():
        can = next(
            (
                line
                for line in CPUINFO.read_text().splitlines()
                if line.startswith(("flags", "Features"))
            ),
            "",
        )
    return f"{platform.machine()}-{hashlib.sha256(can.encode()).hexdigest()[:8]}"
