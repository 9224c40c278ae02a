"""Tests of the stand-in apiserver: a stand-in that is too kind hides the agent's faults.

Stand-in because no real metal-apiserver can be installed here. Run: python -m unittest (in the venv).
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).parent
MACHINE = "4c4c4544-0042-3510-8054-b7c04f4c3432"
OTHER = "00000000-0000-4000-8000-000000000001"
BOOT = "/metalstack.infra.v2.BootService/"


def nic(port: int, *switches: str) -> dict:
    mac = f"52:54:00:00:00:0{port}"
    neighbors = [
        {"mac": "02:00:00:00:00:0a", "identifier": "02:00:00:00:00:0a", "name": "swp1", "hostname": s} for s in switches
    ]
    return {"mac": mac, "identifier": mac, "name": f"eth{port}", "neighbors": neighbors}


def registration(**changes) -> dict:
    hardware = {
        "memory": "1073741824",
        "disks": [{"name": "/dev/vda", "size": "4294967296"}],
        "cpus": [{"vendor": "GenuineIntel", "model": "x", "cores": 1, "threads": 1}],
        "nics": [nic(0, "leaf01"), nic(1, "leaf02")],
    }
    return {"uuid": MACHINE, "hardware": hardware, "partition": "test-part", "metalHammerVersion": "v0"} | changes


def allocation(**changes) -> dict:
    return {
        "uuid": OTHER,
        "meta": {"createdAt": "2026-11-22T00:00:00Z"},
        "name": "tiny",
        "project": OTHER,
        "image": {"id": "tiny", "url": "http://[2001:db8:ff::1]:8081/tiny/img.tar.lz4", "name": "tiny"},
        "hostname": "tiny",
        "allocationType": "MACHINE_ALLOCATION_TYPE_MACHINE",
        "filesystemLayout": {
            "id": "default",
            "disks": [
                {
                    "device": "/dev/vda",
                    "partitions": [
                        {"number": 1, "label": "efi", "size": "64", "gptType": "GPT_TYPE_BOOT"},
                        {"number": 2, "label": "root", "gptType": "GPT_TYPE_LINUX"},
                    ],
                }
            ],
            "filesystems": [
                {"device": "/dev/vda1", "format": "FORMAT_VFAT", "path": "/boot/efi", "label": "efi"},
                {"device": "/dev/vda2", "format": "FORMAT_EXT4", "path": "/", "label": "root"},
            ],
        },
    } | changes


class Standin(unittest.TestCase):
    def setUp(self) -> None:
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        token = Path(self.dir.name, "token")
        token.write_text("infra-secret\n")
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            self.port = probe.getsockname()[1]
        self.control = os.path.join(self.dir.name, "control")
        self.command = [sys.executable, str(HERE / "server.py"), "--listen", f"[::1]:{self.port}"]
        self.command += ["--control", self.control, "--infra-token-file", str(token), "--wait-seconds", "1.5"]
        self.command += ["--state", os.path.join(self.dir.name, "state")]
        self.start()

    def start(self) -> None:
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.process = process
        self.addCleanup(self.stop, process)
        self.wait_until_listening()
        self.handle = socket.socket(socket.AF_UNIX)
        self.handle.connect(self.control)
        self.addCleanup(self.handle.close)
        self.lines = self.handle.makefile("r")
        self.addCleanup(self.lines.close)

    def wait_until_listening(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.fail(f"the stand-in ended: {self.process.stdout.read()}")
            try:
                socket.create_connection(("::1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.fail("the stand-in does not listen")

    def stop(self, process: subprocess.Popen) -> None:
        process.terminate()
        process.communicate(timeout=10)

    def order(self, **order) -> dict:
        self.handle.sendall(json.dumps(order).encode() + b"\n")
        return json.loads(self.lines.readline())

    def call(self, method: str, body: dict, token: str | None, service: str = BOOT) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("::1", self.port, timeout=10)
        headers = {"Content-Type": "application/json", "Connect-Protocol-Version": "1"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        connection.request("POST", service + method, json.dumps(body), headers)
        answer = connection.getresponse()
        self.date = answer.getheader("Date")
        text = answer.read()
        connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, {"text": text.decode()}

    def token(self, machine: str = MACHINE) -> str:
        request = {"uuid": machine, "user": "metal-boot", "expires": "259200s"}
        status, answer = self.call("MachineToken", request, "infra-secret")
        self.assertEqual(status, 200, answer)
        return answer["secret"]

    def wait(self, token: str, machine: str = MACHINE) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("::1", self.port, timeout=10)
        body = json.dumps({"uuid": machine}).encode()
        connection.request(
            "POST",
            BOOT + "Wait",
            b"\0" + struct.pack(">I", len(body)) + body,
            {"Content-Type": "application/connect+json", "Authorization": f"Bearer {token}"},
        )
        self.addCleanup(connection.close)
        return connection

    def envelopes(self, data: bytes) -> list[tuple[int, dict]]:
        found = []
        while data:
            flag, length = data[0], struct.unpack(">I", data[1:5])[0]
            found.append((flag, json.loads(data[5 : 5 + length])))
            data = data[5 + length :]
        return found

    # --- tokens -----------------------------------------------------------------------------

    def test_no_token_a_wrong_one_and_the_wrong_kind_are_refused(self) -> None:
        event = {"uuid": MACHINE, "event": {"event": "MACHINE_PROVISIONING_EVENT_TYPE_ALIVE"}}
        self.assertEqual(self.call("SendEvent", event, None)[1]["code"], "unauthenticated")
        self.assertEqual(self.call("SendEvent", event, "guess")[1]["code"], "unauthenticated")
        self.assertEqual(self.call("SendEvent", event, "infra-secret")[1]["code"], "permission_denied")
        mine = self.token()
        self.assertEqual(self.call("SendEvent", event | {"uuid": OTHER}, mine)[1]["code"], "permission_denied")
        request = {"uuid": MACHINE, "user": "x-boot", "expires": "259200s"}
        self.assertEqual(self.call("MachineToken", request, mine)[1]["code"], "permission_denied")
        self.assertEqual(self.call("SendEvent", event, mine)[0], 200)

    def test_expired_and_revoked_tokens_are_refused(self) -> None:
        self.order(do="set", settings={"token_seconds": 0})
        stale = self.token()
        self.assertIn("expired", self.call("SuperUserPassword", {"uuid": MACHINE}, stale)[1]["message"])
        self.order(do="set", settings={"token_seconds": None})
        good = self.token()
        self.assertEqual(self.call("SuperUserPassword", {"uuid": MACHINE}, good)[0], 200)
        self.assertEqual(self.order(do="revoke", uuid=MACHINE)["revoked"], 2)
        self.assertEqual(self.call("SuperUserPassword", {"uuid": MACHINE}, good)[1]["code"], "unauthenticated")

    def test_fallback_to_token_service(self) -> None:
        self.order(do="set", settings={"machine_token": False})
        request = {"uuid": MACHINE, "user": "metal-boot", "expires": "259200s"}
        self.assertEqual(self.call("MachineToken", request, "infra-secret")[1]["code"], "unimplemented")
        create = {"description": "boot", "expires": "259200s", "machineRoles": {MACHINE: "MACHINE_ROLE_EDITOR"}}
        status, answer = self.call("Create", create, "infra-secret", "/metalstack.api.v2.TokenService/")
        self.assertEqual(status, 200, answer)
        self.assertEqual(self.call("SuperUserPassword", {"uuid": MACHINE}, answer["secret"])[0], 200)
        short = create | {"expires": "5s"}
        self.assertEqual(
            self.call("Create", short, "infra-secret", "/metalstack.api.v2.TokenService/")[1]["code"], "invalid_argument"
        )

    def test_a_token_revokes_itself_and_no_other(self) -> None:
        request = {"uuid": MACHINE, "user": "metal-boot", "expires": "600s"}
        answer = self.call("MachineToken", request, "infra-secret")[1]
        revoke = {"uuid": answer["token"]["uuid"]}
        service = "/metalstack.api.v2.TokenService/"
        self.assertEqual(self.call("Revoke", revoke, "infra-secret", service)[1]["code"], "not_found")
        self.assertEqual(self.call("Revoke", revoke, answer["secret"], service)[0], 200)
        again = self.call("SuperUserPassword", {"uuid": MACHINE}, answer["secret"])
        self.assertEqual(again[1]["code"], "unauthenticated")

    # --- Register ---------------------------------------------------------------------------

    def test_register_holds_to_the_official_constraints(self) -> None:
        token = self.token()
        self.assertEqual(self.call("Register", registration(), token), (200, {
            "uuid": MACHINE, "size": "v1-small-x86", "partition": "test-part",
        }))
        self.assertIsNotNone(self.date)
        bad_bmc = registration(bmc={"address": "nonsense", "mac": "zz"})
        status, answer = self.call("Register", bad_bmc, token)
        self.assertEqual((status, answer["code"]), (400, "invalid_argument"))
        self.assertIn("bmc.address", answer["message"])
        self.assertEqual(self.call("Register", registration(partition=""), token)[1]["code"], "invalid_argument")

    def test_register_demands_exactly_two_known_switches(self) -> None:
        token = self.token()
        for switches in (["leaf01"], ["leaf01", "leaf02", "leaf03"], ["leaf01", "leaf09"], []):
            nics = [nic(i, s) for i, s in enumerate(switches)] or [nic(0)]
            body = registration()
            body["hardware"]["nics"] = nics
            self.assertEqual(self.call("Register", body, token)[1]["code"], "failed_precondition", switches)

    # --- Wait -------------------------------------------------------------------------------

    def test_wait_is_silent_then_cut(self) -> None:
        connection = self.wait(self.token())
        started = time.monotonic()
        with self.assertRaises((http.client.RemoteDisconnected, ConnectionError)):
            connection.getresponse()
        self.assertAlmostEqual(time.monotonic() - started, 1.5, delta=1.0)
        cut = self.order(do="await", method="Wait", uuid=MACHINE, verdict="cut", seconds=5)
        self.assertEqual(len(cut["lines"]), 1, cut)

    def test_wait_that_the_machine_leaves_is_no_longer_open(self) -> None:
        self.order(do="set", settings={"wait_seconds": 30})
        connection = self.wait(self.token())
        self.assertIn("lines", self.order(do="await", method="Wait", verdict="open", seconds=5))
        connection.close()
        left = self.order(do="await", method="Wait", verdict="left", seconds=5)
        self.assertEqual(len(left["lines"]), 1, left)

    def test_wait_tells_an_allocation_at_once_and_when_it_comes(self) -> None:
        token = self.token()
        self.order(do="set", settings={"wait_seconds": 30})
        connection = self.wait(token)
        self.assertIn("lines", self.order(do="await", method="Wait", verdict="open", seconds=5))
        self.assertTrue(self.order(do="allocate", uuid=MACHINE, allocation=allocation(reinstall=True))["ok"])
        for answer in (connection.getresponse(), self.wait(token).getresponse()):
            (flag, message), (end, trailer) = self.envelopes(answer.read())
            self.assertEqual((flag, end), (0, 2))
            self.assertNotIn("error", trailer)
            self.assertEqual(message["allocation"]["hostname"], "tiny")
            self.assertIs(message["allocation"]["reinstall"], True)

    def test_wait_with_a_bad_token_fails_inside_the_stream(self) -> None:
        answer = self.wait("guess").getresponse()
        self.assertEqual(answer.status, 200)
        ((flag, message),) = self.envelopes(answer.read())
        self.assertEqual((flag, message["error"]["code"]), (2, "unauthenticated"))

    def test_a_bad_allocation_is_not_given(self) -> None:
        answer = self.order(do="allocate", uuid=MACHINE, allocation=allocation(hostname="not a host"))
        self.assertFalse(answer["ok"])
        self.assertIn("hostname", answer["error"])

    def test_a_kill_loses_no_token_and_no_allocation(self) -> None:
        mine, revoked = self.token(), self.token(OTHER)
        self.order(do="revoke", uuid=OTHER)
        self.order(do="allocate", uuid=MACHINE, allocation=allocation(reinstall=True))
        self.process.kill()
        self.process.wait(10)
        self.start()
        (_, message), _ = self.envelopes(self.wait(mine).getresponse().read())
        self.assertEqual((message["allocation"]["uuid"], message["allocation"]["reinstall"]), (OTHER, True))
        self.assertEqual(self.call("SuperUserPassword", {"uuid": OTHER}, revoked)[1]["code"], "unauthenticated")

    # --- events, errors, record -------------------------------------------------------------

    def test_events_are_recorded_in_any_order(self) -> None:
        token = self.token()
        for event in ("WAITING", "PREPARING", "CRASHED"):
            body = {"event": f"MACHINE_PROVISIONING_EVENT_TYPE_{event}", "message": f"about {event}"}
            self.assertEqual(self.call("SendEvent", {"uuid": MACHINE, "event": body}, token)[0], 200)
        record = self.order(do="record")["record"]
        self.assertEqual([r["event"] for r in record if r["method"] == "SendEvent"], ["WAITING", "PREPARING", "CRASHED"])
        crashed = self.order(do="await", method="SendEvent", uuid=MACHINE, event="CRASHED")["lines"]
        self.assertEqual(crashed[0]["message"]["event"]["message"], "about CRASHED")
        self.assertNotIn("secret", json.dumps(record))

    def test_no_rule_of_the_api_bounds_an_events_message(self) -> None:
        # The agent cuts at 1000 characters (EVENT_MESSAGE_CHARS), in no language longer than 4000 bytes.
        token = self.token()
        for message in ("x" * 1000, "\U0001f980" * 1000, "x" * 100_000):
            body = {"event": "MACHINE_PROVISIONING_EVENT_TYPE_CRASHED", "message": message}
            self.assertEqual(self.call("SendEvent", {"uuid": MACHINE, "event": body}, token)[0], 200)

    def test_errors_on_order(self) -> None:
        token = self.token()
        body = {"uuid": MACHINE}
        self.order(do="error", method="SuperUserPassword", status=503, times=1)
        self.assertEqual(self.call("SuperUserPassword", body, token)[0], 503)
        self.assertEqual(self.call("SuperUserPassword", body, token)[0], 200)
        self.order(do="error", method="SuperUserPassword", code="failed_precondition", message="no such rack")
        self.assertEqual(self.call("SuperUserPassword", body, token)[1]["message"], "no such rack")
        self.order(do="clear_errors")
        self.assertEqual(self.call("SuperUserPassword", body, token)[0], 200)

    def test_what_is_not_a_message_is_recorded_as_such(self) -> None:
        token = self.token()
        self.assertEqual(self.call("SuperUserPassword", {"uuid": MACHINE, "typo": 1}, token)[0] // 100, 5)
        self.assertNotEqual(self.order(do="record")["record"][-1]["verdict"], "ok")
        self.assertEqual(self.call("Nothing", {}, token)[0], 404)

    def test_console_password_has_its_length(self) -> None:
        token = self.token()
        body = {"uuid": MACHINE, "consolePassword": "x"}
        self.assertEqual(self.call("InstallationSucceeded", body, token)[1]["code"], "invalid_argument")
        body["consolePassword"] = "long enough"
        self.assertEqual(self.call("InstallationSucceeded", body, token)[0], 200)


if __name__ == "__main__":
    unittest.main()
