"""Raw files of any packing as plain text in UTF-8: gzip, zip, tar, UTF-16, lines ended by CR."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from gr_jax.config import ConfigError
from gr_jax.data.log.layout import BadRow

_BLOCK = 1 << 20
_LEAST_BOUND = 256 << 20  # bytes that any packed file may hold
_MOST_TIMES = 100  # its own size that a larger one may: logs pack to a fifth or a tenth
_BY_HAND = "unpack it by hand, and set data.path"
_KINDS = {  # first bytes of what is no text -> what it is, and what to do
    b"PAR1": "a Parquet file: data.source=parquet reads it",
    b"PK\x03\x04": f"a zip archive, or a workbook: name it .zip, or {_BY_HAND}",
    b"BZh": f"compressed by bzip2: {_BY_HAND}",
    b"\xfd7zXZ": f"compressed by xz: {_BY_HAND}",
    b"\x28\xb5\x2f\xfd": f"compressed by zstd: {_BY_HAND}",
    b"\x04\x22\x4d\x18": f"compressed by lz4: {_BY_HAND}",
    b"7z\xbc\xaf": f"a 7z archive: {_BY_HAND}",
    b"Rar!": f"a rar archive: {_BY_HAND}",
    b"ARROW1": "an Arrow file: write it as Parquet, which data.source=parquet reads",
    b"ORC": "an ORC file: write it as Parquet, which data.source=parquet reads",
    b"SQLite": "an SQLite database: export the table as CSV",
    b"\x89HDF": "an HDF5 file: write it as Parquet, which data.source=parquet reads",
    b"\x93NUMPY": "a NumPy file: write it as Parquet, which data.source=parquet reads",
    b"\x80\x04": "a pickle, which is a program: write it as Parquet instead",
    b"\x80\x05": "a pickle, which is a program: write it as Parquet instead",
}
_MARKS = {  # byte order marks; that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, KeyError),
)

_Members = Generator[tuple[str, io.BufferedIOBase], None, None]


def is_archive(file: Path) -> bool:
    """True if the name is that of a zip or tar archive."""
    return file.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def plain_text(file: Path, scratch: Path, *, on_bad_row: str) -> tuple[Path, int]:
    """A text file as polars reads it, and 1 if it is a gzip file that is cut short, else 0.

    That is the file itself, or one in `scratch` where it is gzip (of any name), in UTF-16 or UTF-32
    with a byte order mark, or ends its lines with carriage returns alone.

    Raises:
      ConfigError: it is no text; says what it looks like and what to do. BadRow: as `gunzip`.
    """
    plain, cut = file, 0
    if file.suffix == ".gz" or _head(file).startswith(b"\x1f\x8b"):
        plain = scratch / (file.stem if file.suffix == ".gz" else file.name)
        cut = gunzip(file, plain, on_bad_row=on_bad_row)
    head = _head(plain)
    for start, what in _KINDS.items():
        if head.startswith(start):
            raise ConfigError(f"{file}: not text but {what}")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")
    if not encoding and b"\0" in head:
        raise ConfigError(
            f"{file}: not text in UTF-8, it has zero bytes; if it is in UTF-16, write it in UTF-8,"
            " as iconv does"
        )
    if encoding:
        plain = _rewritten(file, plain, scratch, encoding, ("", ""))
        head = _head(plain)
    if b"\r" in head and b"\n" not in head:
        plain = _rewritten(file, plain, scratch, "utf-8", ("\r", "\n"))
    return plain, cut


def _head(file: Path) -> bytes:
    with open(file, "rb") as content:
        return content.read(_BLOCK)


def _rewritten(
    shown: Path, plain: Path, scratch: Path, encoding: str, change: tuple[str, str]
) -> Path:
    """A text in UTF-8 and with one text changed to another, in `scratch`."""
    target = scratch / f"{encoding}-{plain.name}"
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    try:
        with (
            open(plain, encoding=encoding, errors=errors, newline="") as text,
            open(target, "w", encoding="utf-8", errors=errors, newline="") as out,
        ):
            while block := text.read(_BLOCK):
                out.write(block.replace(*change) if change[0] else block)
    except UnicodeError as error:
        raise ConfigError(f"{shown}: damaged {encoding.upper()} text ({error.reason})") from None  # type: ignore[attr-defined]
    if plain != shown:
        plain.unlink()
    return target


def gunzip(file: Path, plain: Path, *, on_bad_row: str) -> int:
    """Write the content of a gzip file to `plain`; 1 if it is cut short, else 0.

    With on_bad_row="skip" all whole lines before the cut are kept.

    Raises:
      BadRow: cut short, with on_bad_row="error". ConfigError: not gzip, its checksum is wrong, or
        it holds more than a log does.
    """
    lines = 0
    try:
        with open(plain, "wb") as out, gzip.open(file) as source:
            for block in _bounded(source, file):
                lines += block.count(b"\n")
                out.write(block)
        return 0
    except EOFError:
        pass
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{file}: damaged gzip file ({error}); fetch it again") from None
    tail = _cut_partial_line(plain)
    if on_bad_row == "error":
        content = tail[:200].decode("utf-8", "replace")
        raise BadRow(
            f"{file}:{lines + 1}: truncated gzip file, it ends in {content!r}; "
            "fetch it again, or set data.on_bad_row=skip to use what is there"
        )
    return 1


def _bounded(source: io.BufferedIOBase, file: Path, before: int = 0) -> Iterator[bytes]:
    """Blocks of what is unpacked from `file`, until there is more than any log holds."""
    bound = max(_LEAST_BOUND, _MOST_TIMES * file.stat().st_size)
    while block := source.read1(_BLOCK):  # which gives what there is before a cut
        before += len(block)
        if before > bound:
            raise ConfigError(
                f"{file}: unpacks to more than {bound:,} bytes, {bound // file.stat().st_size:,}"
                f" times its size; if it is what it should be, {_BY_HAND}"
            )
        yield block


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
      ConfigError: the archive is damaged or encrypted, packed in an unknown way, holds more than a
        log does, or has two members of one name.
    """
    read, total = _zip_members if archive.name.endswith(".zip") else _tar_members, 0
    try:
        with contextlib.closing(read(archive, wanted)) as members:
            for name, content in members:
                target = folder / Path(name).name
                with content:
                    if target.exists():
                        two = f"two members are called {target.name}, one is {name}"
                        raise ConfigError(f"{archive}: {two}; {_BY_HAND}")
                    with open(target, "wb") as out:
                        for block in _bounded(content, archive, total):
                            total += len(block)
                            out.write(block)
    except ConfigError:  # which is a ValueError
        raise
    except (NotImplementedError, RuntimeError) as error:  # of zipfile
        what = "is encrypted" if "encrypted" in str(error) else "has an unknown compression"
        raise ConfigError(f"{archive}: {what}; {_BY_HAND}") from None
    except (*_DAMAGED, gzip.BadGzipFile) as error:
        raise ConfigError(f"{archive}: damaged archive ({error}); fetch it again") from None


def _zip_members(archive: Path, wanted: Callable[[str], bool]) -> _Members:
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            if wanted(Path(member.filename).name) and not member.is_dir():
                content = source.open(member)
                assert isinstance(content, io.BufferedIOBase)
                yield member.filename, content


def _tar_members(archive: Path, wanted: Callable[[str], bool]) -> _Members:
    with tarfile.open(archive) as source:
        for member in source:
            if not wanted(Path(member.name).name) or member.isdir():
                continue
            content = source.extractfile(member) if member.isreg() else None
            if content is None:  # a link may lead anywhere
                raise ConfigError(f"{archive}: {member.name} in it is no plain file; {_BY_HAND}")
            assert isinstance(content, io.BufferedIOBase)
            yield member.name, content
