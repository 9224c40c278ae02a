"""Stand-in for metal-apiserver (its BootService and TokenService), on the official package.

No real metal-apiserver can be installed here. The messages, the Connect wire format and the
constraints are the ones of the published `metal-stack-api`; what is written here are the rules that
the real server applies on top: who may call what, two switches for Register, silence for Wait.
"""

from __future__ import annotations

import contextvars
import json
import time

from connectrpc._codec import ProtoBinaryCodec, ProtoJSONCodec
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from metalstack.api.v2 import common_pb2, token_pb2
from metalstack.infra.v2 import boot_pb2

from state import INFRA, MACHINE, State, short_event, to_json, violations

# The line of the record that belongs to the request being served (set in server.py).
LINE: contextvars.ContextVar[dict] = contextvars.ContextVar("line")

CODES = {code.value: code for code in Code}


class ExtrasCodec(ProtoJSONCodec):
    """Official JSON, plus the fields that a test put into an allocation and the package lacks."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def encode(self, message) -> bytes:
        if isinstance(message, boot_pb2.BootServiceWaitResponse):
            body = to_json(message)
            body["allocation"].update(self._state.extras.get(message.allocation.uuid, {}))
            return json.dumps(body).encode()
        return super().encode(message)


def codecs(state: State) -> list:
    """JSON with the extras, and binary protobuf as the real server has it."""
    return [ProtoBinaryCodec(), ExtrasCodec(state)]


class Gate:
    """What comes before every method: record, error on order, token, constraints."""

    def __init__(self, state: State) -> None:
        self.state = state

    def enter(self, method: str, request, ctx, kind: str, machine: str | None = None) -> dict:
        """Open the door or raise; answers the line of the record. `machine`: when `uuid` is something else's."""
        line = LINE.get()
        uuid = getattr(request, "uuid", "") or None
        line.update(uuid=uuid.lower() if uuid else None, message=to_json(request))
        try:
            self._check(method, request, ctx, kind, line, machine)
        except ConnectError as error:
            line["verdict"] = f"{error.code.value}: {error.message}"
            raise
        return line

    def _check(self, method: str, request, ctx, kind: str, line: dict, machine: str | None) -> None:
        uuid = machine or getattr(request, "uuid", "") or None
        if mode := self.state.error_for(method):
            raise ConnectError(CODES[mode.code], mode.message)
        token = self.state.bearer(ctx.request_headers().get("authorization"))
        line["token"] = token.kind
        if token.kind != kind:
            raise ConnectError(Code.PERMISSION_DENIED, f"{method} is not for a {token.kind} token")
        if kind == MACHINE and token.machine != (uuid or "").lower():
            raise ConnectError(Code.PERMISSION_DENIED, f"the token belongs to machine {token.machine}, not to {uuid}")
        if problem := violations(request):
            raise ConnectError(Code.INVALID_ARGUMENT, f"validation error: {problem}")


class Boot(Gate):
    """BootService: what a machine and its boot helper call."""

    async def dhcp(self, request, ctx):
        self.enter("Dhcp", request, ctx, INFRA)
        return boot_pb2.BootServiceDhcpResponse()

    async def boot(self, request, ctx):
        self.enter("Boot", request, ctx, INFRA)
        base = self.state.settings.boot_files
        return boot_pb2.BootServiceBootResponse(
            kernel=f"{base}/vmlinuz", init_ram_disks=[f"{base}/initrd.img"], cmdline=self.state.settings.boot_cmdline
        )

    async def machine_token(self, request, ctx):
        if not self.state.settings.machine_token:
            LINE.get().update(uuid=request.uuid.lower(), message=to_json(request))
            raise ConnectError(Code.UNIMPLEMENTED, "metalstack.infra.v2.BootService.MachineToken is not implemented")
        self.enter("MachineToken", request, ctx, INFRA)
        seconds = request.expires.ToSeconds() if request.HasField("expires") else 8 * 3600
        secret, expires = self.state.issue(request.uuid, seconds)
        answer = boot_pb2.BootServiceMachineTokenResponse(secret=secret)
        answer.token.uuid = self.state.tokens[secret].id
        answer.token.user = request.user
        answer.token.expires.FromSeconds(int(expires))
        return answer

    async def super_user_password(self, request, ctx):
        self.enter("SuperUserPassword", request, ctx, MACHINE)
        password = self.state.settings.password
        return boot_pb2.BootServiceSuperUserPasswordResponse(
            feature_disabled=not password, super_user_password=password
        )

    async def register(self, request, ctx):
        self.enter("Register", request, ctx, MACHINE)
        settings = self.state.settings
        if not request.partition:
            raise ConnectError(Code.INVALID_ARGUMENT, "partition is empty")
        if request.partition != settings.partition:
            raise ConnectError(Code.NOT_FOUND, f"no partition with id {request.partition!r} found")
        seen = sorted({n.hostname for nic in request.hardware.nics for n in nic.neighbors})
        if len(seen) != 2:
            raise ConnectError(
                Code.FAILED_PRECONDITION,
                f"machine {request.uuid} is not connected to exactly two switches, found connections to {seen}",
            )
        if unknown := [name for name in seen if name not in settings.switches]:
            raise ConnectError(
                Code.FAILED_PRECONDITION, f"switches {unknown} are not known in partition {settings.partition}"
            )
        self.state.machines[request.uuid.lower()] = to_json(request)
        self.state.keep()
        return boot_pb2.BootServiceRegisterResponse(
            uuid=request.uuid, size="v1-small-x86", partition=request.partition
        )

    async def wait(self, request, ctx):
        line = self.enter("Wait", request, ctx, MACHINE)
        machine = request.uuid.lower()
        line["verdict"] = "open"
        await self.state.notify()
        # Silent, without even a header, until there is something to say (server.py cuts it off).
        while machine not in self.state.allocations:
            async with self.state.changed:
                await self.state.changed.wait()
        yield boot_pb2.BootServiceWaitResponse(allocation=self.state.allocations[machine])

    async def installation_succeeded(self, request, ctx):
        self.enter("InstallationSucceeded", request, ctx, MACHINE)
        return boot_pb2.BootServiceInstallationSucceededResponse()

    async def send_event(self, request, ctx):
        # The order of events is the test's business: whatever comes is kept.
        line = self.enter("SendEvent", request, ctx, MACHINE)
        line["event"] = short_event(line)
        return boot_pb2.BootServiceSendEventResponse()


class Token(Gate):
    """TokenService: Create, the way of boot helpers before MachineToken existed, and Revoke."""

    def __getattr__(self, name: str):
        async def missing(_request, _ctx):
            raise ConnectError(Code.UNIMPLEMENTED, f"TokenService.{name} is not part of the stand-in")

        if name.startswith("_"):
            raise AttributeError(name)
        return missing

    async def create(self, request, ctx):
        line = self.enter("Create", request, ctx, INFRA)
        machines = dict(request.machine_roles)
        if len(machines) != 1 or set(machines.values()) != {common_pb2.MACHINE_ROLE_EDITOR}:
            raise ConnectError(
                Code.INVALID_ARGUMENT, "machineRoles must give exactly one machine the role MACHINE_ROLE_EDITOR"
            )
        machine = next(iter(machines))
        line["uuid"] = machine.lower()
        seconds = request.expires.ToSeconds() if request.HasField("expires") else 8 * 3600
        secret, expires = self.state.issue(machine, seconds)
        answer = token_pb2.TokenServiceCreateResponse(secret=secret)
        answer.token.uuid = self.state.tokens[secret].id
        answer.token.expires.FromSeconds(int(expires))
        answer.token.issued_at.FromSeconds(int(time.time()))
        answer.token.machine_roles[machine] = common_pb2.MACHINE_ROLE_EDITOR
        return answer

    async def revoke(self, request, ctx):
        # "Self" in the package: whoever has a valid token may revoke its own user's tokens.
        token = self.state.bearer(ctx.request_headers().get("authorization"))
        line = self.enter("Revoke", request, ctx, token.kind, token.machine)
        line["uuid"] = token.machine
        self.state.revoke_one(token, request.uuid)
        return token_pb2.TokenServiceRevokeResponse()
