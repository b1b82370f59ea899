"""Download of a raw log from its official site: progress bar, checksum, never half a file."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from gr_jax.config import ConfigError

_TIMEOUT = 30  # seconds without an answer
_BLOCK = 1 << 18
_MOST = 1 << 38  # bytes of a download: a quarter of a terabyte


def download(url: str, file: Path, *, checksum_url: str = "", progress: bool = False) -> Path:
    """Download `url` into `file`.

    Args:
      checksum_url: page with the file's published MD5; "" = the site publishes none.
      progress: show a bar, if stderr is a terminal.

    Raises:
      ConfigError: no network, the site refuses, or the checksum differs; says which file to put
        where.
    """
    by_hand = f"get {url} on a machine that can and put it at {file}, or set data.path"
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = _fetch(url, part, progress=progress and sys.stderr.isatty())
        expected = _published_md5(checksum_url, file.name)
        if expected and digest != expected:
            raise ConfigError(
                f"{url}: its MD5 is {digest}, the site says {expected}; try again, or {by_hand}"
            )
        os.replace(part, file)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise ConfigError(
            f"no {file}, and its download failed ({_reason(error)}); {by_hand}"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return file


def _open(url: str):
    request = urllib.request.Request(url, headers={"User-Agent": "gr_jax"})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:  # which is also the open answer
        with error:
            raise OSError(f"the site says {error.code} {error.reason}") from None


def _fetch(url: str, part: Path, *, progress: bool) -> str:
    """Write the content of `url` and return its MD5."""
    md5, written = hashlib.md5(usedforsecurity=False), 0
    with _open(url) as answer, open(part, "wb") as out, _bar(progress) as advance:
        total = _length(answer.headers.get("Content-Length"), part)
        while block := answer.read(_BLOCK):
            md5.update(block)
            out.write(block)
            written += len(block)
            if written > _MOST:
                raise OSError(f"it has more than {_MOST:,} bytes, which no log of ours has")
            advance(part.name.split(".")[0], written, total)
    if total and written != total:
        raise OSError(f"the connection ended after {written} of {total} bytes")
    return md5.hexdigest()


def _length(told: str | None, part: Path) -> int:
    """Bytes that a site says it sends; 0 = it does not say."""
    if told is None:
        return 0
    if not told.strip().isascii() or not told.strip().isdigit() or len(told) > 18:
        raise OSError(f"the site tells the length {told[:40]!r}")
    total, free = int(told), shutil.disk_usage(part.parent).free
    if total > min(free, _MOST):
        raise OSError(f"it has {total:,} bytes, the disk has {free:,} left")
    return total


@contextlib.contextmanager
def _bar(shown: bool):
    """A function of (name, bytes done, bytes in all) that draws a bar, or nothing."""
    if not shown:
        yield lambda name, done, total: None
        return
    from rich import progress  # slow to import, and rarely needed
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("")
        yield lambda name, done, total: bars.update(
            task, description=name, completed=done, total=total or None
        )


def _published_md5(checksum_url: str, name: str) -> str:
    """The MD5 of file `name` on a checksum page: a Zenodo record (JSON) or text with one digest."""
    if not checksum_url:
        return ""
    with _open(checksum_url) as answer:
        text = answer.read().decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            sums = {file["key"]: file["checksum"] for file in json.loads(text)["files"]}
            return sums[name].removeprefix("md5:")
    found = re.search(r"\b[0-9a-f]{32}\b", text)
    if not found:
        raise OSError(f"no checksum at {checksum_url}")
    return found[0]


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error)
