#!/usr/bin/env python3
"""Stand-in for metal-apiserver (the HTTP server): no real metal-apiserver can be installed here.

Serves the official package's Connect applications on IPv6 over HTTP/1.1 and HTTP/2 (h2c, or TLS with
ALPN), writes every request into the record, and cuts every Wait after N seconds without a farewell,
as the real server's WriteTimeout does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from pathlib import Path

import h2.errors
from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from metalstack.api.v2.token_connect import TokenServiceASGIApplication
from metalstack.infra.v2.boot_connect import BootServiceASGIApplication

import control
from services import LINE, Boot, Token, codecs
from state import INFRA, Settings, State
from state import Token as TokenRow

LOG = logging.getLogger("standin")

# An ASGI message of our own: drop the response where it stands.
CUT = "standin.cut"

# metal-apiserver reads a whole request into memory; 4 MiB is far above any honest Register.
MAX_REQUEST = 4 * 1024 * 1024


class CuttableStream(HTTPStream):
    """A stream whose response can be broken off: ASGI itself knows no such thing."""

    async def app_send(self, message) -> None:
        if message is None or message["type"] != CUT:
            await super().app_send(message)
            return
        self.state = ASGIHTTPState.CLOSED
        protocol = self.send.__self__
        if isinstance(protocol, H2Protocol):
            # Go's HTTP/2 server resets the stream with INTERNAL_ERROR when the write deadline passes.
            with contextlib.suppress(Exception):
                protocol.connection.reset_stream(self.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                await protocol._flush()
        await self.send(StreamClosed(stream_id=self.stream_id))


def _use_cuttable_streams() -> None:
    import hypercorn.protocol.h2 as h2_module
    import hypercorn.protocol.h11 as h11_module

    h2_module.HTTPStream = CuttableStream
    h11_module.HTTPStream = CuttableStream


class Front:
    """Record, route, cut."""

    def __init__(self, state: State) -> None:
        self.state = state
        boot = BootServiceASGIApplication(Boot(state), codecs=codecs(state), read_max_bytes=MAX_REQUEST)
        token = TokenServiceASGIApplication(Token(state), codecs=codecs(state), read_max_bytes=MAX_REQUEST)
        self.apps = {boot.path: boot, token.path: token}

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        service, _, method = scope["path"].rpartition("/")
        line = self.state.entry(method, str((scope.get("client") or ("?",))[0]), scope["http_version"])
        LINE.set(line)
        started = time.monotonic()
        app = self.apps.get(service)
        status = 0

        gone = asyncio.Event()

        async def heard():
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            return message

        async def watched(message) -> None:
            nonlocal status
            if line["verdict"] in ("cut", "left"):
                return  # what a cancelled handler still wants to say
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and status != 200 and line["verdict"] == "pending":
                line["verdict"] = _verdict(status, message.get("body", b""))
            await send(message)

        try:
            mode = self.state.errors.get(method)
            if mode is not None and mode.status is not None:
                # As a proxy in between would answer: no Connect error, just a status.
                self.state.error_for(method)
                line["verdict"] = f"HTTP {mode.status} on order"
                await _plain(send, mode.status, mode.message)
            elif app is None:
                line["verdict"] = "404 no such service"
                await _plain(send, 404, "404 page not found\n")
            else:
                limit = self.state.settings.wait_seconds if method == "Wait" else None
                serving = asyncio.create_task(app(scope, heard, watched))
                leaving = asyncio.create_task(gone.wait())
                done, _ = await asyncio.wait({serving, leaving}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                leaving.cancel()
                if serving not in done:
                    # Its own time is up, or the machine hung up (a Wait that only asked).
                    line["verdict"] = "left" if done else "cut"
                    await send({"type": CUT})
                    serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
                if status == 200 and line["verdict"] in ("pending", "open"):
                    line["verdict"] = "ok"
        except Exception as error:  # noqa: BLE001 - a stand-in that dies hides the agent's fault
            if line["verdict"] == "pending":
                line["verdict"] = f"{type(error).__name__}: {error}"
            LOG.warning("%s: %s", scope["path"], line["verdict"])
        line["seconds"] = round(time.monotonic() - started, 3)
        LOG.info("%s %s %s -> %s", line["method"], line["uuid"], line.get("event", ""), line["verdict"])
        await self.state.notify()


def _verdict(status: int, body: bytes) -> str:
    """`invalid_argument: message` of a refused unary call."""
    try:
        error = json.loads(body)
        return f"{error['code']}: {error.get('message', '')}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}"


async def _plain(send, status: int, text: str) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}
    )
    await send({"type": "http.response.body", "body": text.encode()})


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Stand-in for metal-apiserver, for tests only.")
    parser.add_argument("--listen", default="[::1]:8080", help="address and port, e.g. [2001:db8:ff::1]:8080")
    parser.add_argument("--control", required=True, help="path of the Unix socket for the test's orders")
    parser.add_argument("--infra-token-file", required=True, type=Path, help="bearer token of the boot helper")
    parser.add_argument("--partition", default="test-part")
    parser.add_argument("--switch", action="append", default=[], help="a known switch (twice); default leaf01, leaf02")
    parser.add_argument("--wait-seconds", type=float, default=60.0, help="cut every Wait after this time")
    parser.add_argument("--state", type=Path, help="file with what must survive a kill; go on from it when it is there")
    parser.add_argument("--tls-cert", help="PEM chain; with --tls-key: HTTPS instead of HTTP")
    parser.add_argument("--tls-key")
    return parser.parse_args(argv)


async def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    secret = options.infra_token_file.read_text().strip()
    if not secret:
        sys.exit(f"{options.infra_token_file} holds no token")
    settings = Settings(options.partition, options.switch or ["leaf01", "leaf02"], options.wait_seconds)
    state = State(settings)
    state.tokens[secret] = TokenRow(INFRA, None, float("inf"))
    if options.state:
        state.remember(options.state)
    config = Config()
    config.bind = [options.listen]
    config.keep_alive_timeout = 10.0  # the real server closes idle connections after 10 s
    config.graceful_timeout = 0.2
    config.include_server_header = False
    config.certfile, config.keyfile = options.tls_cert, options.tls_key
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _use_cuttable_streams()
    server = await control.serve(state, options.control)
    async with server:
        LOG.info("stand-in apiserver on %s, orders on %s", options.listen, options.control)
        await serve(Front(state), config, shutdown_trigger=stop.wait)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    asyncio.run(run(arguments(sys.argv[1:])))
