"""What the recorded machines register as, judged by the server's own rules, and their inventories by the schema.

The snapshots are the agent's: src/hardware/recorded_tests.rs holds it to them, byte for byte.
"""

from __future__ import annotations

import json
import unittest
from pathlib import Path

import protovalidate
from google.protobuf import json_format
from jsonschema import Draft202012Validator
from metalstack.infra.v2 import boot_pb2

ROOT = Path(__file__).parents[2]
MACHINES = sorted(path.parent for path in ROOT.glob("tests/fixtures/machines/*/machine.txt"))
SCHEMA = json.loads((ROOT / "docs/inventory.schema.json").read_text())


def judged(message: dict) -> list[str]:
    """What the server would refuse; an unknown field is refused by the parser."""
    parsed = json_format.ParseDict(message, boot_pb2.BootServiceRegisterRequest())
    return [violation.proto.message for violation in protovalidate.collect_violations(parsed)]


class Machines(unittest.TestCase):
    def test_there_are_enough_of_them(self) -> None:
        self.assertGreaterEqual(len(MACHINES), 12)

    def test_the_server_takes_every_register(self) -> None:
        for machine in MACHINES:
            with self.subTest(machine.name):
                self.assertEqual(judged(json.loads((machine / "register.json").read_text())), [])

    def test_a_broken_register_is_refused(self) -> None:
        message = json.loads((MACHINES[0] / "register.json").read_text())
        message["partition"] = "x"
        message["hardware"]["cpus"][0]["model"] = "m" * 257
        self.assertEqual(len(judged(message)), 2)
        message["surprise"] = 1
        with self.assertRaises(json_format.ParseError):
            judged(message)

    def test_every_inventory_is_as_the_schema_says(self) -> None:
        Draft202012Validator.check_schema(SCHEMA)
        validator = Draft202012Validator(SCHEMA)
        for machine in MACHINES:
            with self.subTest(machine.name):
                inventory = json.loads((machine / "inventory.json").read_text())
                self.assertEqual([error.message for error in validator.iter_errors(inventory)], [])

    def test_another_inventory_is_not(self) -> None:
        inventory = json.loads((MACHINES[0] / "inventory.json").read_text())
        inventory["surprise"] = 1
        del inventory["tpm"]
        inventory["system"]["product"] = "\x1b[2J"
        self.assertEqual(len(list(Draft202012Validator(SCHEMA).iter_errors(inventory))), 3)


if __name__ == "__main__":
    unittest.main()
