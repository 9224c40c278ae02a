#!/usr/bin/env python3
"""A BMC with Redfish for one QEMU machine: the emulator of sushy-tools with a driver of our own.

The emulator's own drivers need libvirt or start nothing. This one runs QEMU and speaks QMP: power, reset,
virtual CD, boot order. The machine's command line comes from the test (JSON list), without the CD.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import threading
import time

from sushy_tools import error
from sushy_tools.emulator import main as emulator
from sushy_tools.emulator.resources.systems.base import AbstractSystemsDriver

# Where the firmware looks for the CD in its boot order: before the disks, or never in front of them.
FIRST, LAST = 0, 99


class Machine(AbstractSystemsDriver):
    """One machine: QEMU, while its power is on."""

    def __init__(self, uuid: str, command: list[str], qmp: str) -> None:
        super().__init__()
        self._uuid, self._command, self._qmp_path = uuid, command, qmp
        self._process: subprocess.Popen | None = None
        self._qmp = None
        self._image: str | None = None
        self._source = "Hdd"
        self._lock = threading.RLock()

    # --- QMP --------------------------------------------------------------------------------

    def _connect(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            stream = socket.socket(socket.AF_UNIX)
            try:
                stream.connect(self._qmp_path)
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise error.FishyError("QEMU does not answer") from None
                time.sleep(0.05)
        self._qmp = stream.makefile("rw")
        self._qmp.readline()
        self._do("qmp_capabilities")

    def _do(self, command: str, **arguments):
        self._qmp.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._qmp.flush()
        while line := self._qmp.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise error.FishyError(f"{command}: {answer['error'].get('desc')}")
        raise error.FishyError(f"{command}: QEMU is gone")

    def _is_on(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            return False
        # A guest that powered itself off leaves QEMU stopped (-no-shutdown).
        return self._do("query-status")["status"] not in ("shutdown", "guest-panicked")

    # --- what a reset takes over -------------------------------------------------------------

    def _medium(self) -> None:
        if self._image:
            self._do("blockdev-change-medium", id="cd", filename=self._image, format="raw")
        else:
            self._do("eject", id="cd", force=True)

    def _order(self, place: int) -> None:
        # Out of the order first: QEMU refuses a place that is taken, by the CD itself too.
        for value in (-1, place):
            self._do("qom-set", path="/machine/peripheral/cd", property="bootindex", value=value)

    def _start(self) -> None:
        # Paused until medium and order are as they should be.
        self._process = subprocess.Popen(self._command + ["-S"], stdin=subprocess.DEVNULL)
        self._connect()
        if self._image:
            self._medium()
        self._reset()
        self._do("cont")

    def _reset(self) -> None:
        """Reset; an order for one boot is spent by it."""
        self._order(FIRST if self._source == "Cd" else LAST)
        self._do("system_reset")
        self._source = "Hdd"

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._qmp = None

    # --- the emulator's questions -------------------------------------------------------------

    @property
    def driver(self) -> str:
        return "<qmp>"

    @property
    def systems(self) -> list[str]:
        return [self._uuid]

    def uuid(self, identity) -> str:
        if identity != self._uuid:
            raise error.NotFound(f"no system {identity}")
        return self._uuid

    name = uuid

    def get_power_state(self, identity) -> str:
        with self._lock:
            return "On" if self._is_on() else "Off"

    def set_power_state(self, identity, state) -> None:
        with self._lock:
            if state in ("On", "ForceOn"):
                if not self._is_on():
                    self._stop()
                    self._start()
            elif state in ("ForceOff", "GracefulShutdown"):
                self._stop()
            elif "Restart" in state:
                if self._is_on():
                    self._reset()
            else:
                raise error.NotSupportedError(state)

    def get_boot_device(self, identity) -> str:
        return self._source

    def set_boot_device(self, identity, boot_source) -> None:
        if boot_source not in ("Cd", "Hdd"):
            raise error.NotSupportedError(boot_source)
        self._source = boot_source

    def get_boot_mode(self, identity) -> str:
        return "UEFI"

    def set_boot_mode(self, identity, boot_mode) -> None:
        if boot_mode != "UEFI":
            raise error.NotSupportedError(boot_mode)

    def get_boot_image(self, identity, device):
        return self._image, True, self._image is not None

    def set_boot_image(self, identity, device, boot_image=None, write_protected=True) -> None:
        with self._lock:
            self._image = boot_image
            if self._process is not None and self._process.poll() is None:
                self._medium()

    def get_nics(self, identity) -> list:
        return []


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A BMC for one QEMU machine, for tests only.")
    parser.add_argument("--listen", default="::1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--uuid", required=True)
    parser.add_argument("--command", required=True, help="QEMU's command line as a JSON list")
    parser.add_argument("--qmp", required=True, help="path of the QMP socket that the command line names")
    parser.add_argument("--auth-file", required=True, help="htpasswd file with bcrypt hashes")
    parser.add_argument("--state-dir", required=True)
    options = parser.parse_args()
    machine = Machine(options.uuid, json.loads(options.command), options.qmp)
    emulator.Application.systems = machine
    emulator.app.configure(
        extra_config={
            "SUSHY_EMULATOR_AUTH_FILE": options.auth_file,
            "SUSHY_EMULATOR_STATE_DIR": options.state_dir,
            "SUSHY_EMULATOR_FEATURE_SET": "vmedia",
        }
    )
    emulator.app.run(host=options.listen, port=options.port)


if __name__ == "__main__":
    main()
