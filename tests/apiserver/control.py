"""Stand-in for metal-apiserver (the test's handle on it): one JSON object per line on a Unix socket.

The real server has an operator's API for this (allocations are made by users); it needs a database,
a task queue and a login, none of which belong into a test of the boot stage.
"""

from __future__ import annotations

import asyncio
import json
import time

from services import CODES
from state import ErrorMode, Refused, State, is_uuid


def _machine(order: dict) -> str:
    machine = str(order.get("uuid", "")).lower()
    if not is_uuid(machine):
        raise Refused(f"uuid {order.get('uuid')!r} is not a UUID")
    return machine


async def obey(state: State, order: dict) -> dict:
    """Carry out one order and answer what the test gets back."""
    match order.get("do"):
        case "allocate":
            uuid = state.allocate(_machine(order), order["allocation"])
            await state.notify()
            return {"allocation": uuid}
        case "clear":
            state.allocations.pop(_machine(order), None)
            state.keep()
            return {}
        case "error":
            code, status = order.get("code"), order.get("status")
            if (code is None) == (status is None) or (code is not None and code not in CODES):
                raise Refused(f"an error needs either a Connect code out of {sorted(CODES)} or an HTTP status")
            state.errors[order["method"]] = ErrorMode(
                code, status, order.get("message", "error on order of the test"), order.get("times")
            )
            return {}
        case "clear_errors":
            state.errors.clear()
            return {}
        case "revoke":
            return {"revoked": state.revoke(_machine(order))}
        case "set":
            for key, value in order["settings"].items():
                if not hasattr(state.settings, key):
                    raise Refused(f"there is no setting {key!r}")
                setattr(state.settings, key, value)
            return {}
        case "record":
            return {"record": state.record}
        case "machines":
            return {"machines": state.machines}
        case "await":
            return await _await(state, order)
        case other:
            raise Refused(f"unknown order {other!r}")


async def _await(state: State, order: dict) -> dict:
    """Answer as soon as `count` lines of the record fit, or with `timeout` after `seconds`."""
    deadline = time.monotonic() + float(order.get("seconds", 30))
    count = int(order.get("count", 1))
    while True:
        lines = state.matching(order["method"], order.get("uuid"), order.get("event"), order.get("verdict"))
        if len(lines) >= count:
            return {"lines": lines}
        left = deadline - time.monotonic()
        if left <= 0:
            return {"timeout": True, "lines": lines}
        async with state.changed:
            try:
                await asyncio.wait_for(state.changed.wait(), left)
            except TimeoutError:
                continue


async def serve(state: State, path: str) -> asyncio.Server:
    """Listen on the Unix socket `path` until the server is closed."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    answer = {"ok": True} | await obey(state, json.loads(line))
                except (Refused, KeyError, json.JSONDecodeError) as error:
                    answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the test went away; its orders stand
        finally:
            writer.close()

    return await asyncio.start_unix_server(talk, path, limit=4 * 1024 * 1024)
