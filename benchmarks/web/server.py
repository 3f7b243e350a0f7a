"""The server of the page: it serves listed files under a secret address, and carries messages.

It runs in a thread with an event loop of its own. Nothing is read from disk by a name that a client sends.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from u2export.benchmarks.web.channel import Channel
from u2export.errors import UserError

# Seconds that a request for messages is held.
HOLD = 20.0
# Requests of one address: so many a second on average, and so many at once. Without the secret, so many a minute.
RATE, BURST, STRANGER = 100.0, 400.0, 30
# Bytes of a request without a mask.
SMALL = 65_536
TYPES = {
    ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
    ".wasm": "application/wasm", ".jpg": "image/jpeg", ".svg": "image/svg+xml",
}  # fmt: skip
HEADERS = {
    # Threads and exact clocks need a page that is isolated from other origins.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# What the server gives: a file, or bytes with the suffix that tells their type.
Content = Path | tuple[bytes, str]


class PageServer:
    """Serves one bench to one page.

    Args:
        channel: carries the messages.
        files: the files that everybody with the address may have, by name.
        largest: bytes of the largest answer.

    Attributes:
        token: the secret in the address.
        private: what only the page itself may have, by name; it may change while the server runs.
    """

    def __init__(self, channel: Channel, files: Mapping[str, Path], largest: int) -> None:
        self.token = secrets.token_urlsafe(16)
        self.private: dict[str, Content] = {}
        self._channel, self._files, self._largest = channel, dict(files), largest
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="u2export-page", daemon=True)
        self._news: asyncio.Event
        self._limits = _Limits()
        self._runner: Any = None

    def start(self, listeners: list[tuple[str, int, ssl.SSLContext | None]]) -> list[int]:
        """Serve on these hosts and ports, and return the ports; a port 0 becomes a free one.

        Raises:
            UserError: a port is taken.
        """
        self._thread.start()
        try:
            return list(self._run(self._start(listeners)))
        except OSError as error:
            self.stop()
            said = error.strerror or str(error)
            raise UserError(f"cannot serve the page: {said}", "choose another port: --device web:PORT") from None

    def stop(self) -> None:
        """Close the server and all its connections."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, listeners: list[tuple[str, int, ssl.SSLContext | None]]) -> list[int]:
        from aiohttp import web

        self._news = asyncio.Event()
        self._channel.wake = self._wake

        async def guard(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
            return await self._guard(request, handler)

        app = web.Application(client_max_size=self._largest, middlewares=[web.middleware(guard)])
        app.add_routes([
            web.post("/{token}/hello", self._hello), web.get("/{token}/next", self._next),
            web.post("/{token}/answer", self._answer), web.post("/{token}/bye", self._bye),
            web.get("/{token}/private/{name}", self._private), web.get("/{token}/{name:.*}", self._public),
        ])  # fmt: skip
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        ports = []
        for host, port, context in listeners:
            site = web.TCPSite(self._runner, host, port, ssl_context=context, reuse_address=True)
            await site.start()
            ports.append(int(self._runner.addresses[-1][1]))
        return ports

    async def _close(self) -> None:
        if self._runner:
            server = self._runner.server
            lines = [line.transport for line in (server.connections if server else []) if line.transport]
            await self._runner.cleanup()
            for transport in lines:  # a connection with TLS would wait for the other side
                transport.abort()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.01)  # for what the aborted connections have left to do

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._news.set)

    # Requests

    async def _guard(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Refuse what lacks the token or comes too often; add the headers."""
        from aiohttp import web

        given = str(request.match_info.get("token", ""))
        known = hmac.compare_digest(given.encode(errors="replace"), self.token.encode())
        address = str(request.remote)
        if not self._limits.allow(address, known):
            response = web.Response(status=429, text="too many requests\n")
        elif not known:
            response = web.Response(status=404, text="not found\n")
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text=f"{error.reason}\n")
        response.headers.update(HEADERS)
        if not _trusted(request):  # a browser ignores this header, and calls it an error
            del response.headers["Cross-Origin-Opener-Policy"]
        return response

    async def _public(self, request: Any) -> Any:
        from aiohttp import web

        found = self._files.get(request.match_info["name"] or "index.html")
        return _response(found) if found else web.Response(status=404, text="not found\n")

    async def _private(self, request: Any) -> Any:
        from aiohttp import web

        found = self.private.get(request.match_info["name"])
        if not self._channel.knows(request.headers.get("X-Session", "")) or found is None:
            return web.Response(status=404, text="not found\n")
        return _response(found)

    async def _hello(self, request: Any) -> Any:
        from aiohttp import web

        identity = await _json(request, SMALL)
        session = self._channel.claim(identity)
        if not session:
            return web.json_response({"problem": "Another browser already runs this bench."}, status=409)
        return web.json_response({"session": session})

    async def _next(self, request: Any) -> Any:
        from aiohttp import web

        if not self._channel.knows(request.headers.get("X-Session", "")):
            return web.Response(status=403, text="another browser runs this bench\n")
        after = request.query.get("after", "0")
        number = int(after) if after.isascii() and after.isdigit() and len(after) < 12 else 0
        end = monotonic() + HOLD
        while True:
            self._news.clear()
            if found := self._channel.messages(number):
                return web.json_response(found)
            if (left := end - monotonic()) <= 0:
                return web.json_response({"messages": []})
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)

    async def _answer(self, request: Any) -> Any:
        from aiohttp import web

        if not self._channel.knows(request.headers.get("X-Session", "")):
            return web.Response(status=403, text="another browser runs this bench\n")
        data = await _json(request, self._largest)
        seq, reply, state = data.get("seq"), data.get("reply"), data.get("state")
        if not isinstance(seq, int) or not isinstance(reply, dict):
            return web.Response(status=400, text="no answer\n")
        if isinstance(state, dict) and len(json.dumps(state)) < SMALL:
            self._channel.state = state
        self._channel.put(seq, reply)
        return web.json_response({})

    async def _bye(self, request: Any) -> Any:
        """A page that closes tells so; it can send no header then."""
        from aiohttp import web

        data = await _json(request, SMALL)
        if self._channel.knows(str(data.get("session", ""))):
            self._channel.lose("the page was closed or loaded again in the browser")
        return web.Response(status=204)


async def _json(request: Any, most: int) -> dict[str, Any]:
    """Return the object that a request holds.

    Raises:
        HTTPException: the request is too large or too slow, or holds something else.
    """
    from aiohttp import web

    if (request.content_length or 0) > most:
        raise web.HTTPRequestEntityTooLarge(most, request.content_length)
    try:
        body = await asyncio.wait_for(request.read(), 60)
        data = json.loads(body) if len(body) <= most else None
    except (ValueError, RecursionError, asyncio.TimeoutError):
        data = None
    if not isinstance(data, dict):
        raise web.HTTPBadRequest()
    return data


def _trusted(request: Any) -> bool:
    """Tell whether a browser takes the address as secure: https, or the loopback of its own machine."""
    host = request.url.host or ""
    return bool(request.secure) or host == "localhost" or host.startswith("127.")


def _response(content: Content) -> Any:
    from aiohttp import web

    suffix = content.suffix if isinstance(content, Path) else content[1]
    kind = TYPES.get(suffix, "application/octet-stream")
    if isinstance(content, Path):
        return web.FileResponse(content, headers={"Content-Type": kind})
    return web.Response(body=content[0], content_type=kind)


class _Limits:
    """How often an address may ask: with the token, a bucket of requests; without it, a few a minute."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}
        self._strangers: dict[str, list[float]] = {}

    def allow(self, address: str, known: bool) -> bool:
        """Tell whether a request may pass, and count it."""
        now = monotonic()
        if not known:
            if len(self._strangers) > 1000:
                self._strangers.clear()
            recent = [t for t in self._strangers.get(address, []) if now - t < 60]
            self._strangers[address] = [*recent[-STRANGER:], now]
            return len(recent) < STRANGER
        left, then = self._left.get(address, (BURST, now))
        left = min(BURST, left + (now - then) * RATE)
        self._left[address] = (max(0.0, left - 1), now)
        return left >= 1
