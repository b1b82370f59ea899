"""Which names of the server are answered, and what browsers may do with its pages."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from gr_jax.errors import shown
from gr_jax.serving.http.limits import Message, Receive, Send, answer_error

TOKEN_VARIABLE = "GR_JAX_RELOAD_TOKEN"  # of the environment: not seen in the list of processes
# Headers of proxies, and of what a browser sends for the page of a site.
FROM_ELSEWHERE = ("origin", "forwarded", "x-forwarded-for", "x-real-ip", "via")
LOCAL = ("localhost", "127.0.0.1", "[::1]")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def name_of(host: str) -> str:
    """The name in a `Host` header, without its port."""
    return re.sub(r":\d*$", "", host.strip().lower()).rstrip(".")


def refusal_of_reload(headers: Mapping[str, str], client: str, token: str) -> str:
    """Why a request may not have the server load its workdir again; "" if it may.

    Loading takes seconds of all cores, so not everyone may. What comes through a proxy, or from a
    page of another site in a browser, may come from anywhere.

    Args:
      headers: of the request, by lower-case name.
      client: the address it comes from.
      token: that allows it; "" = none is set.
    """
    if token:
        given = headers.get("authorization", "").encode()
        is_known = hmac.compare_digest(given, f"Bearer {token}".encode())
        return "" if is_known else "give the token: Authorization: Bearer TOKEN"
    if is_loopback(client) and not any(name in headers for name in FROM_ELSEWHERE):
        return ""
    return f"only programs on this machine may, or others with a token: set {TOKEN_VARIABLE}"


class Guard:
    """ASGI middleware that answers 400 under a foreign name, and adds `HEADERS` to all answers.

    A page of another site can have its own name resolve to 127.0.0.1 (DNS rebinding), and would
    then read answers as if they were its own. The browser still sends the name in `Host`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], *, allowed: Collection[str] | None):
        """`allowed`: names in lower case; None = any."""
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        for host in hosts:  # none: HTTP/1.0, which no browser speaks
            if self.allowed is not None and name_of(host) not in self.allowed:
                told = f"the host {shown(host)} is not served here: see --allowed-hosts"
                return await answer_error(with_headers, 400, told)
        await self.app(scope, receive, with_headers)


def content_policy(page: str) -> str:
    """The Content-Security-Policy that lets the scripts and styles of a page run, and no others."""

    def hashes(tag: str) -> str:
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in texts]
        return " ".join(f"'sha256-{digest.decode()}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )
