"""Stand-in for metal-apiserver (what it remembers): no real metal-apiserver can be installed here.

Tokens, allocations, errors on order and the record of every request live here, so that the services
(`services.py`) and the test's control socket (`control.py`) see one and the same state. All of it is
touched from one event loop only; there are no locks.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import secrets
import time
import uuid as uuidlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import protovalidate
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from google.protobuf import json_format
from metalstack.api.v2 import machine_pb2

# The two kinds of token.
INFRA = "infra"
MACHINE = "machine"


class Refused(ValueError):
    """A control request that makes no sense; its text goes back to the test."""


@dataclass
class Token:
    """What a bearer secret may do: the helper's own (infra) or one machine's."""

    kind: str
    machine: str | None
    expires: float
    id: str = field(default_factory=lambda: str(uuidlib.uuid4()))


@dataclass
class ErrorMode:
    """Answer `method` with this Connect code or bare HTTP status, `times` times (None: always)."""

    code: str | None
    status: int | None
    message: str
    times: int | None


@dataclass
class Settings:
    """What the command line fixes and the control socket may change."""

    partition: str
    switches: list[str]
    wait_seconds: float = 60.0
    machine_token: bool = True
    token_seconds: float | None = None
    password: str = "standin-superuser"
    boot_files: str = "http://standin.invalid"
    boot_cmdline: str | None = None


@dataclass
class State:
    """Everything the stand-in knows."""

    settings: Settings
    tokens: dict[str, Token] = field(default_factory=dict)
    machines: dict[str, dict] = field(default_factory=dict)
    allocations: dict[str, machine_pb2.MachineAllocation] = field(default_factory=dict)
    extras: dict[str, dict] = field(default_factory=dict)
    errors: dict[str, ErrorMode] = field(default_factory=dict)
    record: list[dict] = field(default_factory=list)
    file: Path | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def notify(self) -> None:
        """Wake every Wait stream and every awaiting test."""
        async with self.changed:
            self.changed.notify_all()

    # --- what survives a kill ----------------------------------------------------------------

    def keep(self) -> None:
        """Write what the real server has in its database: machine tokens, machines, allocations."""
        if self.file is None:
            return
        kept = {
            "tokens": {secret: asdict(token) for secret, token in self.tokens.items() if token.kind == MACHINE},
            "machines": self.machines,
            "allocations": {
                machine: to_json(message) | self.extras.get(message.uuid, {})
                for machine, message in self.allocations.items()
            },
        }
        new = self.file.with_suffix(".new")
        new.touch(0o600)
        new.write_text(json.dumps(kept))
        new.replace(self.file)

    def remember(self, file: Path) -> None:
        """Go on where another process that kept its state in `file` was ended; keep it there from now on."""
        if file.exists():
            kept = json.loads(file.read_text())
            self.tokens |= {secret: Token(**token) for secret, token in kept["tokens"].items()}
            self.machines |= kept["machines"]
            for machine, given in kept["allocations"].items():
                self.allocate(machine, given)
        self.file = file

    # --- tokens -----------------------------------------------------------------------------

    def issue(self, machine: str, seconds: float) -> tuple[str, float]:
        """A new secret for one machine; answers it with its expiry (Unix seconds)."""
        life = self.settings.token_seconds if self.settings.token_seconds is not None else seconds
        secret = f"machine-secret-{secrets.token_urlsafe(24)}"
        expires = time.time() + life
        self.tokens[secret] = Token(MACHINE, machine.lower(), expires)
        self.keep()
        return secret, expires

    def revoke(self, machine: str) -> int:
        """Forget every token of a machine; answers how many there were."""
        doomed = [s for s, t in self.tokens.items() if t.machine == machine.lower()]
        for secret in doomed:
            del self.tokens[secret]
        self.keep()
        return len(doomed)

    def revoke_one(self, token: Token, id: str) -> None:
        """Forget the token with this id on behalf of `token`'s own user, or `not_found`."""
        for secret, other in self.tokens.items():
            if other.id == id and (other.kind, other.machine) == (token.kind, token.machine):
                del self.tokens[secret]
                self.keep()
                return
        raise ConnectError(Code.NOT_FOUND, f"no token with id {id} belongs to this user")

    def bearer(self, header: str | None) -> Token:
        """The token behind an Authorization header, or `unauthenticated`."""
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise ConnectError(Code.UNAUTHENTICATED, "no bearer token in the Authorization header")
        token = self.tokens.get(secret.strip())
        if token is None:
            raise ConnectError(Code.UNAUTHENTICATED, "the token is unknown or was revoked")
        if token.expires <= time.time():
            raise ConnectError(Code.UNAUTHENTICATED, "the token has expired")
        return token

    # --- allocations ------------------------------------------------------------------------

    def allocate(self, machine: str, given: dict) -> str:
        """Give `machine` an allocation (JSON as on the wire); answers its uuid.

        Fields that the pinned package does not know are kept aside and merged into the JSON sent: the
        agent honours the future `reinstall` and carries any other one through.
        """
        known = {f.json_name for f in machine_pb2.MachineAllocation.DESCRIPTOR.fields}
        extra = {k: v for k, v in given.items() if k not in known}
        message = machine_pb2.MachineAllocation()
        try:
            json_format.ParseDict({k: v for k, v in given.items() if k in known}, message)
        except json_format.ParseError as error:
            raise Refused(f"allocation is not a MachineAllocation: {error}") from error
        if problem := violations(message):
            raise Refused(f"allocation breaks the official constraints: {problem}")
        if not message.uuid:
            raise Refused("allocation has no uuid")
        self.allocations[machine.lower()] = message
        self.extras[message.uuid] = extra
        self.keep()
        return message.uuid

    # --- errors on order --------------------------------------------------------------------

    def error_for(self, method: str) -> ErrorMode | None:
        """The error to answer this call of `method` with, counted down."""
        mode = self.errors.get(method)
        if mode is None:
            return None
        if mode.times is not None:
            mode.times -= 1
            if mode.times <= 0:
                del self.errors[method]
        return mode

    # --- record -----------------------------------------------------------------------------

    def entry(self, method: str, peer: str, http: str) -> dict:
        """Open a line of the record; its verdict is filled in when the answer is known."""
        line = {
            "index": len(self.record),
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "method": method,
            "http": http,
            "peer": peer,
            "uuid": None,
            "message": None,
            "verdict": "pending",
        }
        self.record.append(line)
        return line

    def matching(self, method: str, uuid: str | None, event: str | None, verdict: str | None) -> list[dict]:
        """Lines of the record that fit every given criterion; `event` is the short name (CRASHED)."""
        found = []
        for line in self.record:
            if line["method"] != method or (uuid and line["uuid"] != uuid.lower()):
                continue
            if verdict and line["verdict"] != verdict:
                continue
            if event and short_event(line) != event:
                continue
            found.append(line)
        return found


def short_event(line: dict) -> str | None:
    """CRASHED for a recorded SendEvent of MACHINE_PROVISIONING_EVENT_TYPE_CRASHED."""
    name = ((line["message"] or {}).get("event") or {}).get("event", "")
    return name.removeprefix("MACHINE_PROVISIONING_EVENT_TYPE_") or None


def violations(message) -> str | None:
    """What protovalidate says against a message, as one line; None when it is good."""
    found = protovalidate.collect_violations(message)
    texts = []
    for violation in found:
        path = ".".join(element.field_name for element in violation.proto.field.elements)
        texts.append(f"{path}: {violation.proto.message or violation.proto.rule_id}")
    return "; ".join(texts) or None


def is_uuid(text: str) -> bool:
    """True for RFC 4122 text in lower case."""
    try:
        return str(uuidlib.UUID(text)) == text
    except ValueError:
        return False


def to_json(message) -> dict:
    """A protobuf message as the JSON object the wire would carry."""
    return json.loads(json_format.MessageToJson(message))
