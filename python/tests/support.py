"""What the tests share. Tests with a broker run where HVSOCK_ENDPOINT names the endpoint of one with the conformance
peer: `cargo test -p hvsock-examples --test python` starts both."""

import asyncio
import json
import os
import pathlib
import time
import unittest
import zlib

import hvsock
import hvsock.asyncio

VECTORS = pathlib.Path(
    os.environ.get("HVSOCK_TEST_VECTORS") or pathlib.Path(__file__).resolve().parents[2] / "docs" / "vectors"
)
#: The longest wait for anything that must happen, in seconds.
TIMEOUT = 30

needs_broker = unittest.skipUnless(os.environ.get("HVSOCK_TEST_PEER"), "it needs a broker with the conformance peer")


def load(name):
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


CASES = load("conformance")
SERVICE = CASES["service"]
CLIENT_SERVICE = CASES["client_service"]


def pattern(count):
    return bytes((i ^ i >> 8 ^ i >> 16 ^ i >> 24) & 255 for i in range(count))


class _Pattern:
    """A growing prefix of the pattern, as making it takes long in Python."""

    def __init__(self):
        self.data = b""

    def __call__(self, count):
        if len(self.data) < count:
            # 64 KiB of it differ from the first ones by the exclusive or of the upper bytes.
            block = pattern(1 << 16)
            blocks = range(len(self.data) >> 16, (count >> 16) + 1)
            table = [bytes(value ^ high for value in range(256)) for high in range(256)]
            self.data += b"".join(block.translate(table[(n ^ n >> 8) & 255]) for n in blocks)
        return self.data[:count]


fast_pattern = _Pattern()


def summary(count):
    return f"{count} {zlib.crc32(fast_pattern(count)):08x}"


def listen(address, **options):
    """Listens. A broker sees the end of an earlier test's listener a moment later than its process."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return hvsock.create_server(address, **options)
        except hvsock.Refused as error:
            if error.refusal.label != "address_in_use" or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


async def start_server(connected, address):
    """As :func:`listen`, for asyncio."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return await hvsock.asyncio.start_server(connected, address)
        except hvsock.Refused as error:
            if error.refusal.label != "address_in_use" or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.005)
