"""Serves a trained run over HTTP, with a page to try it.

    python -m gr_jax.serve --workdir=runs/ml_1m --port=8000

Then http://127.0.0.1:8000/ shows the page, /docs the interface. /healthz answers 503 while the run
is loaded and its programs are compiled, 200 from then on; the programs are kept in the user's cache
folder, for the next start. Ctrl-C and SIGTERM answer the requests that have arrived and stop.
SIGHUP, and POST /reload from this machine, load the workdir again and exchange the model without a
pause; who has the token in $GR_JAX_RELOAD_TOKEN may POST from elsewhere.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and hasattr(signal, "SIGHUP"):
    # First, because the imports take a second, in which a reload would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

import argparse
import dataclasses
import errno
import importlib.util
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from gr_jax import cli
from gr_jax.config import ConfigError
from gr_jax.errors import shown
from gr_jax.serving import CACHE_MB, compile_cache, export
from gr_jax.serving.export.read import load_exported
from gr_jax.serving.http.guard import LOCAL, TOKEN_VARIABLE, is_loopback, name_of
from gr_jax.serving.http.limits import Limits
from gr_jax.serving.index import BACKENDS
from gr_jax.serving.model import TrainedModel

GRACE = 20  # seconds that a shutdown waits for requests


def main(argv: list[str]) -> int:
    """Load the run, then serve until a signal."""
    flags: dict[str, cli.Flag] = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "host": (str, "127.0.0.1", "address to listen on; 0.0.0.0 = all"),
        "port": (int, 8000, "port to listen on; 0 = any that is free"),
        "allowed_hosts": (
            [str],
            None,
            "names under which it is served, may be given several times; default: on a loopback"
            " address local names, else any",
        ),
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
        "max_queue_ms": (
            float,
            Limits.queue_ms,
            "work that may wait, by its predicted time; what comes beyond is answered 503",
        ),
        "max_connections": (int, Limits.connections, "open connections"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if not importlib.util.find_spec(package):
            raise ConfigError(f"serving needs the package {package}: pip install 'gr-jax[serve]'")
    limits = limits_of(args)
    hosts = allowed_hosts(args)
    listener, url = bind(args.host, args.port)
    print(f"loading  {args.workdir}; {url}healthz answers 503 until it is served", flush=True)
    return serve(lambda: _load(args), limits, listener, url, hosts)


def _load(args: argparse.Namespace) -> TrainedModel:
    compile_cache.keep()
    workdir = args.workdir.resolve()  # once: a link that moves meanwhile would mix two runs
    if args.exported:
        model = load_exported(workdir, data=args.data, index=args.index)
        meta = json.loads((workdir / export.FOLDER / export.META).read_text())
        model.version = meta["digest"][:12]
        return model
    from gr_jax.serving.load import load

    return load(workdir, data=args.data, index=args.index, cache_mb=args.cache_mb)


def serve(
    load: Callable[[], TrainedModel],
    limits: Limits,
    listener: socket.socket,
    url: str,
    hosts: frozenset[str] | None,
) -> int:
    """Serve what `load` gives on a bound socket, until a signal; the exit code.

    Raises:
      Exception: of `load`, at the start.
    """
    reload: Callable[[], None] = lambda: None  # nothing is loaded yet that could be old
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    before = hangup and signal.signal(hangup, lambda *_: reload())
    import uvicorn

    from gr_jax.serving.http.connections import limited
    from gr_jax.serving.http.server import make_app

    def when_settled() -> None:
        if service.failure:
            server.should_exit = True
        else:
            print(f"serving  {url}", flush=True)

    app = make_app(
        load,
        limits,
        allowed_hosts=hosts,
        reload_token=os.environ.get(TOKEN_VARIABLE, ""),
        say=lambda line: print(line, flush=True),
        when_settled=when_settled,
    )
    service = app.state.service
    reload = service.reload_soon
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=limited(limits), log_level="warning", timeout_graceful_shutdown=GRACE
        )
    )
    # The event loop takes turns with the threads that read and compute. Each read of a socket costs
    # it a turn, so these are short; measured with experiments/faults/overload.py.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        if service.was_loading:  # a compilation goes on, and the interpreter would wait for it
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(130)
        raise
    finally:
        sys.setswitchinterval(interval)
        if hangup:
            signal.signal(hangup, before)
    if service.failure:
        raise service.failure
    return 0


def bind(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens, before anything is loaded, and its URL.

    Raises:
      ConfigError: the port is taken, or the address is not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            told = f"--port={port}: another program listens there; choose another, or 0 for any"
        else:
            told = f"--host={shown(host)} --port={port}: {error.strerror or error}"
        raise ConfigError(told) from None
    shown_host = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown_host}:{listener.getsockname()[1]}/"


def allowed_hosts(args: argparse.Namespace) -> frozenset[str] | None:
    """Names that the server answers to; None = any.

    Raises:
      ConfigError: what no client can send as a name.
    """
    for name in args.allowed_hosts or ():
        if not re.fullmatch(r"[\w.-]+(:\d+)?|\[[\da-fA-F:.]+\](:\d+)?", name):
            raise ConfigError(
                f"--allowed_hosts={shown(name)}: expected a name, without http:// and commas;"
                " several are given as --allowed-hosts=A --allowed-hosts=B"
            )
    told = frozenset(name_of(name) for name in args.allowed_hosts or ())
    if not told and not is_loopback(args.host):
        return None
    own = name_of(f"[{args.host}]" if ":" in args.host else args.host)
    return told | {own, *LOCAL} if is_loopback(args.host) else told


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the flags set.

    Raises:
      ConfigError: a limit that is not allowed.
    """
    for name in ("max_batch", "max_k", "max_candidates", "max_body", "max_connections"):
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
    if args.max_queue_ms < 1:
        raise ConfigError(f"--max_queue_ms={args.max_queue_ms}: must be at least 1")
    return dataclasses.replace(
        Limits(),
        batch=args.max_batch,
        k=args.max_k,
        candidates=args.max_candidates,
        wait_ms=args.max_wait_ms,
        body_bytes=args.max_body,
        queue_ms=args.max_queue_ms,
        connections=args.max_connections,
    )


if __name__ == "__main__":
    cli.run(main)
