"""Serves a trained run over HTTP, with a page to try it.

    python -m gr_jax.serve --workdir=runs/ml_1m --port=8000

Then http://127.0.0.1:8000/ shows the page, /docs the interface. /healthz answers 200 once all is
compiled; the programs are kept in the user's cache folder, for the next start.
Ctrl-C and SIGTERM answer the requests that have arrived and stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path

from gr_jax import cli
from gr_jax.config import ConfigError
from gr_jax.serving import CACHE_MB, compile_cache
from gr_jax.serving.export.read import load_exported
from gr_jax.serving.http.limits import Limits
from gr_jax.serving.index import BACKENDS

GRACE = 20  # seconds that a shutdown waits for requests


def main(argv: list[str]) -> int:
    """Load the run, then serve until a signal."""
    flags: dict[str, cli.Flag] = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "host": (str, "127.0.0.1", "address to listen on; 0.0.0.0 = all"),
        "port": (int, 8000, "port to listen on"),
        "data": (
            str,
            "",
            "newer log, for histories as they are now; default: as they were at the training",
        ),
        "exported": (
            bool,
            False,
            "serve what python -m gr_jax.export wrote, without the model's code",
        ),
        "index": (BACKENDS, "exact", "how retrieval finds the best items; faiss is approximate"),
        "cache_mb": (
            float,
            CACHE_MB,
            "memory for cached histories, MiB; 0 keeps none",
        ),
        "max_batch": (int, Limits.batch, "requests computed together, at most 32"),
        "max_wait_ms": (
            float,
            Limits.wait_ms,
            "longest that a request waits for others in an idle server",
        ),
        "max_k": (int, Limits.k, "items of a /recommend"),
        "max_candidates": (int, Limits.candidates, "candidates of a /score"),
        "max_body": (int, Limits.body_bytes, "bytes of a request"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if not importlib.util.find_spec(package):
            raise ConfigError(f"serving needs the package {package}: pip install 'gr-jax[serve]'")
    limits = limits_of(args)
    compile_cache.keep()
    if args.exported:
        model = load_exported(args.workdir, data=args.data, index=args.index)
    else:
        from gr_jax.serving.load import load

        model = load(args.workdir, data=args.data, index=args.index, cache_mb=args.cache_mb)
    import uvicorn

    from gr_jax.serving.http.server import make_app

    print(model.description())
    print(f"serving  http://{args.host}:{args.port}/", flush=True)
    uvicorn.run(
        make_app(model, limits),
        host=args.host,
        port=args.port,
        log_level="warning",
        timeout_graceful_shutdown=GRACE,
    )
    return 0


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the flags set.

    Raises:
      ConfigError: a limit that is not allowed.
    """
    for name in ("max_batch", "max_k", "max_candidates", "max_body"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}={getattr(args, name)}: must be at least 1")
    if args.max_batch > Limits.batch:
        raise ConfigError(f"--max_batch={args.max_batch}: must be at most {Limits.batch}")
    if args.cache_mb < 0:
        raise ConfigError(f"--cache_mb={args.cache_mb}: must be at least 0")
    if not 0 <= args.max_wait_ms <= 1000:
        raise ConfigError(f"--max_wait_ms={args.max_wait_ms}: must be in [0, 1000]")
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port={args.port}: must be in [0, 65535]")
    sizes = {"batch": args.max_batch, "k": args.max_k, "candidates": args.max_candidates}
    return dataclasses.replace(
        Limits(), **sizes, wait_ms=args.max_wait_ms, body_bytes=args.max_body
    )


if __name__ == "__main__":
    cli.run(main)
