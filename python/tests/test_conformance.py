"""Runs the conformance cases of docs/vectors/conformance.json against the peer, blocking and with asyncio."""

import asyncio
import select
import socket
import threading
import unittest

import hvsock
import hvsock.asyncio

from .support import CASES, CLIENT_SERVICE, SERVICE, TIMEOUT, fast_pattern, listen, needs_broker, start_server, summary

ADDRESS = ("loopback", SERVICE)


class Failed(AssertionError):
    pass


def check_received(case, data):
    want = case["receive"]
    if "pattern" in want:
        is_received = data == fast_pattern(want["pattern"])
    elif "prefix" in want:
        is_received = fast_pattern(want["prefix"]).startswith(data)
    else:
        is_received = data == want["text"].encode()
    if not is_received:
        raise Failed(f"{len(data)} bytes, not {want}: {data[:80]!r}")


def check_end(case, error):
    expected = {"clean": type(None), "reset": hvsock.Reset}[case["end"]]
    if not isinstance(error, expected):
        raise Failed(f"the end is {error!r}, not {case['end']}")


class Blocking:
    """A client with blocking sockets and threads."""

    def request(self, line):
        sock = hvsock.connect(ADDRESS, timeout=TIMEOUT)
        sock.sendall(line.encode() + b"\n")
        return sock

    @staticmethod
    def read(sock):
        data, error = bytearray(), None
        try:
            while chunk := sock.recv(65536):
                data += chunk
        except OSError as caught:
            error = caught
        return bytes(data), error

    def answer(self, line):
        with self.request(line) as sock:
            data, error = self.read(sock)
            if error:
                raise error
            return data.decode()

    def all_at_once(self, count, function):
        errors = []

        def run():
            try:
                function()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def exchange(self, case, line):
        with self.request(line) as sock:
            errors = []

            def send():
                try:
                    data = memoryview(fast_pattern(case["send"]))
                    for at in range(0, len(data), case["write"]):
                        sock.sendall(data[at : at + case["write"]])
                    if case["half_close"] != "never":
                        sock.shutdown(hvsock.SHUT_WR)
                except OSError as error:
                    errors.append(error)

            if case["half_close"] == "after_end":
                data, error = self.read(sock)
                send()
            else:
                sender = threading.Thread(target=send)
                sender.start()
                data, error = self.read(sock)
                sender.join()
            check_received(case, data)
            check_end(case, error or next(iter(errors), None))

    def run(self, case, token):
        line = case.get("request", "").replace("{token}", token)
        getattr(self, f"do_{case['do']}")(case, line, token)
        if "outcome" in case:
            answer = self.answer(f"outcome {token}")
            if answer != case["outcome"]:
                raise Failed(f"{answer!r}, not {case['outcome']!r}")

    def do_exchange(self, case, line, _):
        self.all_at_once(case["connections"], lambda: self.exchange(case, line))

    def do_close(self, case, line, _):
        with self.request(line) as sock:
            sock.sendall(fast_pattern(case["send"]))

    def do_close_unread(self, case, line, _):
        with self.request(line) as sock:
            readable, _, _ = select.select([sock], [], [], TIMEOUT)
            if not readable:
                raise Failed("no data")

    def do_backpressure(self, case, line, token):
        with self.request(line) as sock:
            sock.setblocking(False)
            sent = 0
            data = memoryview(fast_pattern(8 << 20))
            try:
                while sent < len(data):
                    sent += sock.send(data[sent:])
                raise Failed("no write would block")
            except BlockingIOError:
                pass
            sock.settimeout(TIMEOUT)
            if self.answer(case["release"].replace("{token}", token)) != "ok\n":
                raise Failed("it is not released")
            sock.shutdown(hvsock.SHUT_WR)
            data, error = self.read(sock)
            if error or data.decode() != summary(sent) + "\n":
                raise Failed(f"{data!r}, {error!r}, not {summary(sent)}")

    def do_accept(self, case, line, _):
        def echo(sock):
            with sock:
                for chunk in iter(lambda: sock.recv(65536), b""):
                    sock.sendall(chunk)

        with listen(("any", CLIENT_SERVICE)) as listener:
            listener.settimeout(TIMEOUT)
            answers = []
            asking = threading.Thread(target=lambda: answers.append(self.answer(line)))
            asking.start()
            threads = []
            for _ in range(case["connections"]):
                sock, _ = listener.accept()
                sock.settimeout(TIMEOUT)
                threads.append(threading.Thread(target=echo, args=(sock,)))
                threads[-1].start()
            for thread in [*threads, asking]:
                thread.join()
            if answers != [case["receive"]["text"]]:
                raise Failed(repr(answers))

    def do_refused(self, case, _line, _):
        try:
            hvsock.connect((case["partition"], case["service"]), timeout=TIMEOUT).close()
        except hvsock.Refused as error:
            if error.refusal.label != case["label"]:
                raise Failed(str(error)) from error
        else:
            raise Failed("it connects")

    def do_deadline(self, case, line, _):
        with self.request(line) as sock:
            sock.settimeout(case["milliseconds"] / 1000)
            try:
                raise Failed(repr(sock.recv(1)))
            except socket.timeout:
                pass
            sock.settimeout(TIMEOUT)
            sock.sendall(b"x")
            if sock.recv(1) != b"x":
                raise Failed("another byte")


class Asynchronous:
    """A client with the streams of asyncio. Its cases run one after the other in a loop of their own."""

    def run(self, case, token):
        asyncio.run(asyncio.wait_for(self.run_async(case, token), TIMEOUT))

    async def run_async(self, case, token):
        line = case.get("request", "").replace("{token}", token)
        await getattr(self, f"do_{case['do']}")(case, line, token)
        if "outcome" in case:
            answer = await self.answer(f"outcome {token}")
            if answer != case["outcome"]:
                raise Failed(f"{answer!r}, not {case['outcome']!r}")

    async def request(self, line):
        reader, writer = await hvsock.asyncio.open_connection(ADDRESS, timeout=TIMEOUT)
        writer.write(line.encode() + b"\n")
        return reader, writer

    @staticmethod
    async def close(writer):
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass

    async def answer(self, line):
        reader, writer = await self.request(line)
        data = await reader.read()
        await self.close(writer)
        return data.decode()

    @staticmethod
    async def read(reader):
        data = bytearray()
        try:
            while chunk := await reader.read(65536):
                data += chunk
        except OSError as error:
            return bytes(data), error
        return bytes(data), None

    async def exchange(self, case, line):
        reader, writer = await self.request(line)

        async def send():
            data = memoryview(fast_pattern(case["send"]))
            try:
                for at in range(0, len(data), case["write"]):
                    writer.write(data[at : at + case["write"]])
                    await writer.drain()
                if case["half_close"] != "never":
                    writer.write_eof()
            except OSError as error:
                return error

        if case["half_close"] == "after_end":
            data, error = await self.read(reader)
            sent = await send()
        else:
            (data, error), sent = await asyncio.gather(self.read(reader), send())
        check_received(case, data)
        check_end(case, error or sent)
        await self.close(writer)

    async def do_exchange(self, case, line, _):
        await asyncio.gather(*(self.exchange(case, line) for _ in range(case["connections"])))

    async def do_close(self, case, line, _):
        _, writer = await self.request(line)
        writer.write(fast_pattern(case["send"]))
        await self.close(writer)

    async def do_backpressure(self, case, line, token):
        reader, writer = await self.request(line)
        data = fast_pattern(8 << 20)
        writer.write(data)
        try:
            await asyncio.wait_for(writer.drain(), 0.2)
            raise Failed("no write would block")
        except asyncio.TimeoutError:
            pass
        if await self.answer(case["release"].replace("{token}", token)) != "ok\n":
            raise Failed("it is not released")
        writer.write_eof()
        if (await reader.read()).decode() != summary(len(data)) + "\n":
            raise Failed("another summary")
        await self.close(writer)

    async def do_accept(self, case, line, _):
        accepted = []

        async def echo(reader, writer):
            accepted.append(writer)
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            await self.close(writer)

        async with await start_server(echo, ("any", CLIENT_SERVICE)):
            answer = await self.answer(line)
        if answer != case["receive"]["text"] or len(accepted) != case["connections"]:
            raise Failed(f"{answer!r}, {len(accepted)} connections")

    async def do_refused(self, case, _line, _):
        try:
            await hvsock.asyncio.open_connection((case["partition"], case["service"]))
        except hvsock.Refused as error:
            if error.refusal.label != case["label"]:
                raise Failed(str(error)) from error
        else:
            raise Failed("it connects")

    async def do_deadline(self, case, line, _):
        reader, writer = await self.request(line)
        try:
            raise Failed(repr(await asyncio.wait_for(reader.read(1), case["milliseconds"] / 1000)))
        except asyncio.TimeoutError:
            pass
        writer.write(b"x")
        if await reader.read(1) != b"x":
            raise Failed("another byte")
        await self.close(writer)


@needs_broker
class Conformance(unittest.TestCase):
    def run_all(self, client, name):
        ran = 0
        for index, case in enumerate(CASES["cases"]):
            if not hasattr(client, f"do_{case['do']}"):
                continue
            with self.subTest(case["name"]):
                client.run(case, f"{name}-{index}")
            ran += 1
        return ran

    def test_blocking_sockets_pass_every_case(self):
        self.assertEqual(self.run_all(Blocking(), "blocking"), len(CASES["cases"]))

    def test_asyncio_streams_pass_every_case_but_those_about_unread_data(self):
        # asyncio reads what comes, so a connection never has unread data.
        without = [case for case in CASES["cases"] if case["do"] != "close_unread"]
        self.assertEqual(self.run_all(Asynchronous(), "asyncio"), len(without))
