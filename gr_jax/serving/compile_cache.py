"""A folder of compiled programs, so that the next start of a server only loads them.

A program in the folder runs as this user without a check. So the folder is the user's own cache,
closed to others, and never a part of a workdir, which may come from somewhere else.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sys
from pathlib import Path

import jax
import platformdirs

CPUINFO = Path("/proc/cpuinfo")


def keep() -> Path | None:
    """Keep the programs that this process compiles from now on; the folder, None if unsafe.

    To be called before anything is compiled. Programs depend on the processor, so each kind has a
    folder of its own: the user's cache may be on a disk that machines share.
    """
    root = Path(platformdirs.user_cache_dir("gr_jax")) / "compiled"
    folder = root / _processor()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for made in (root, folder):
            made.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        print(f"{folder}: compiled programs are not kept ({error.strerror})", file=sys.stderr)
        return None
    for checked in (root, folder):
        if reason := _unsafe(checked):
            print(f"{checked}: compiled programs are not kept ({reason})", file=sys.stderr)
            return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _unsafe(folder: Path) -> str:
    """Why others could put programs into a folder; "" if they cannot."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        return "not a folder"
    if about.st_uid != os.getuid():
        return "owned by another user"
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"writable by others: chmod 700 {folder}"
    return ""


def _processor() -> str:
    """A name for the kind of processor, by its features."""
    features = ""
    if CPUINFO.is_file():
        lines = CPUINFO.read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
