"""Compressed raw files as plain files: gzip, and the wanted members of zip and tar archives."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from gr_jax.config import ConfigError
from gr_jax.data.log.layout import BadRow

_BLOCK = 1 << 20


def is_archive(file: Path) -> bool:
    """True if the name is that of a zip or tar archive."""
    return file.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def gunzip(file: Path, plain: Path, *, on_bad_row: str) -> int:
    """Write the content of a gzip file to `plain`; 1 if it is cut short, else 0.

    With on_bad_row="skip" all whole lines before the cut are kept.

    Raises:
      BadRow: cut short, with on_bad_row="error". ConfigError: not gzip, or its checksum is wrong.
    """
    lines = 0
    with open(plain, "wb") as out:
        try:
            with gzip.open(file) as source:
                while block := source.read1(_BLOCK):
                    lines += block.count(b"\n")
                    out.write(block)
            return 0
        except EOFError:
            pass
        except (gzip.BadGzipFile, zlib.error, OSError) as error:
            raise ConfigError(f"{file}: damaged gzip file ({error}); fetch it again") from None
    tail = _cut_partial_line(plain)
    if on_bad_row == "error":
        content = tail[:200].decode("utf-8", "replace")
        raise BadRow(
            f"{file}:{lines + 1}: truncated gzip file, it ends in {content!r}; "
            "fetch it again, or set data.on_bad_row=skip to use what is there"
        )
    return 1


def _cut_partial_line(plain: Path) -> bytes:
    """Cut off and return the text after the last line break."""
    with open(plain, "r+b") as file:
        end = file.seek(0, 2)
        tail = b""
        while end and b"\n" not in tail:
            start = max(0, end - _BLOCK)
            file.seek(start)
            tail, end = file.read(end - start) + tail, start
        cut = tail.rfind(b"\n") + 1
        file.truncate(end + cut)
        return tail[cut:]


def extract(archive: Path, folder: Path, *, wanted: Callable[[str], bool]) -> None:
    """Write the members whose base name is `wanted` into `folder`, without their directories.

    Raises:
      ConfigError: the archive is damaged.
    """
    try:
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as source:
                for member in source.infolist():
                    if wanted(Path(member.filename).name):
                        with (
                            source.open(member) as content,
                            open(folder / Path(member.filename).name, "wb") as out,
                        ):
                            shutil.copyfileobj(content, out, _BLOCK)
        else:
            with tarfile.open(archive) as source:
                for member in source:
                    content = source.extractfile(member) if wanted(Path(member.name).name) else None
                    if content is not None:
                        with content, open(folder / Path(member.name).name, "wb") as out:
                            shutil.copyfileobj(content, out, _BLOCK)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ConfigError(f"{archive}: damaged archive ({error}); fetch it again") from None
