"""Runs the vectors of the text protocol, docs/vectors/text.json, with a client of ten lines."""

import os
import pathlib
import socket
import unittest

from .support import TIMEOUT, load, needs_broker

VECTORS = load("text")


def parse(line):
    """What an answer says: the text after OK, or a label and a reason."""
    if len(line) > 4096 or not line.endswith(b"\n") or b"\n" in line[:-1]:
        raise ValueError("not_a_line")
    word, _, rest = line[:-1].decode().partition(" ")
    if word not in ("OK", "ERR"):
        raise ValueError("unknown")
    return {"ok": rest} if word == "OK" else dict(zip(("label", "reason"), rest.split(" ", 1)))


def ask(line):
    path = pathlib.Path(os.environ["HVSOCK_ENDPOINT"]).with_name("text")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(path))
        connection.sendall(line)
        with connection.makefile("rb") as answer:
            return parse(answer.readline())


class Text(unittest.TestCase):
    def rows(self, section):
        rows = VECTORS[section]
        self.assertTrue(rows)
        for row in rows:
            with self.subTest(section=section, row=row):
                yield row, row["line"].encode()

    def test_answers(self):
        for row, line in self.rows("answers"):
            parsed = parse(line)
            for key, value in parsed.items():
                self.assertEqual(value, row[key])
            if "values" in row:
                values = dict(word.split("=", 1) for word in parsed["ok"].split())
                self.assertEqual({**values, **row["values"]}, values)
        for row, line in self.rows("invalid_answers"):
            with self.assertRaisesRegex(ValueError, f"^{row['error']}$"):
                parse(line)

    @needs_broker
    def test_a_broker_takes_every_request_and_refuses_every_invalid_one(self):
        for _, line in self.rows("requests"):
            self.assertNotEqual(ask(line).get("label"), "invalid_request")
        for _, line in self.rows("invalid_requests"):
            self.assertEqual(ask(line)["label"], "invalid_request")
