"""Streams and servers of hvsock.asyncio, beyond the conformance cases."""

import asyncio
import os
import unittest

import hvsock
import hvsock.asyncio

from .support import CASES, CLIENT_SERVICE, SERVICE, TIMEOUT, needs_broker, start_server

CLIENT = ("loopback", CLIENT_SERVICE)


@needs_broker
class Streams(unittest.IsolatedAsyncioTestCase):
    async def test_a_server_knows_its_clients_and_its_address(self):
        peers = []

        async def serve(reader, writer):
            sock = writer.get_extra_info("socket")
            peers.append((writer.get_extra_info("peername"), sock is not None))
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await start_server(serve, ("any", CLIENT_SERVICE))
        async with server:
            self.assertTrue(server.is_serving())
            self.assertEqual(server.getsockname().service_id, CASES["client_service_id"])
            reader, writer = await hvsock.asyncio.open_connection(CLIENT, timeout=TIMEOUT)
            writer.write(b"line\n")
            self.assertEqual(await reader.read(), b"line\n")
            writer.close()
            await writer.wait_closed()
        self.assertFalse(server.is_serving())
        self.assertEqual(peers, [((hvsock.HV_GUID_LOOPBACK, hvsock.HV_GUID_ZERO), True)])

    async def test_a_cancelled_connect_and_a_closed_server_leak_nothing(self):
        async def once():
            server = await start_server(lambda r, w: w.close(), ("any", CLIENT_SERVICE))
            task = asyncio.ensure_future(hvsock.asyncio.open_connection(CLIENT))
            await asyncio.sleep(0)
            task.cancel()
            try:
                _, writer = await task
                writer.close()
            except asyncio.CancelledError:
                pass
            serving = asyncio.ensure_future(server.serve_forever())
            await asyncio.sleep(0)
            serving.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await serving
            self.assertFalse(server.is_serving())
            # Let what is scheduled run.
            await asyncio.sleep(0.01)

        await once()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await once()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_a_refusal_is_an_exception(self):
        with self.assertRaises(ConnectionRefusedError) as caught:
            await hvsock.asyncio.open_connection(("loopback", "no such service"))
        self.assertEqual(caught.exception.refusal.label, "unregistered")

    async def test_a_reset_is_an_exception_of_the_reader(self):
        reader, writer = await hvsock.asyncio.open_connection(("loopback", SERVICE))
        writer.write(b"close-unread 5\n!")
        with self.assertRaises(hvsock.Reset):
            while await reader.read(100):
                pass
        writer.close()
        with self.assertRaises(ConnectionResetError):
            await writer.wait_closed()

    async def test_a_server_ends_with_the_reason_of_its_listener(self):
        lease = hvsock.register("python asyncio")
        server = await hvsock.asyncio.start_server(lambda r, w: w.close(), ("any", "python asyncio"))
        serving = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        lease.close()
        with self.assertRaises(hvsock.Reset) as caught:
            await asyncio.wait_for(serving, TIMEOUT)
        self.assertEqual(caught.exception.refusal.label, "unregistered")
