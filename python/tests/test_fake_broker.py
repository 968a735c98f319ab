"""What a broker of another version, or a faulty one, may do."""

import array
import asyncio
import math
import os
import select
import socket
import tempfile
import threading
import unittest
import uuid

import hvsock
import hvsock.asyncio
from hvsock import addresses, messages

from .support import TIMEOUT

try:
    from hvsock._os.linux import exchange
except ImportError:  # Windows
    exchange = None

ADDRESS = ("web", "Demo")
VIOLATION = "this client violated the endpoint protocol: there is no message of kind 0x08 in this direction"
ENDS = {
    "local_vm": addresses.LOOPBACK,
    "local_service": addresses.ZERO,
    "peer_vm": addresses.PARENT,
    "peer_service": addresses.ZERO,
}


class FakeBroker:
    """A broker that runs `serve` for each endpoint connection, one after the other."""

    def __init__(self, serve):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "endpoint")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.requests = []
        self.errors = []
        self.thread = threading.Thread(target=self._run, args=(serve,), daemon=True)
        self.thread.start()

    def _run(self, serve):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT)
            with sock:
                try:
                    serve(self, sock)
                except OSError as error:
                    self.errors.append(error)

    def receive(self, sock):
        kind, fields = messages.decode_to_broker(sock.recv(8192))
        self.requests.append(kind)
        return kind, fields

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(TIMEOUT)
        self.folder.cleanup()


def send(sock, kind, descriptors=(), **fields):
    data = messages.encode_from_broker(kind, **fields)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([data], rights)


def send_connected(sock, transport=1, count=1):
    """CONNECTED with this number of descriptors. Returns the broker's end of the data."""
    ours, theirs = socket.socketpair()
    descriptors = [theirs.fileno()] * count
    send(sock, "CONNECTED", descriptors, transport=transport, connection=7, **ENDS)
    theirs.close()
    return ours


@unittest.skipIf(exchange is None, "Windows has no broker")
class FakeBrokers(unittest.TestCase):
    def setUp(self):
        exchange._older_brokers.clear()

    def connect(self, broker, timeout=TIMEOUT):
        sock = hvsock.connect(ADDRESS, timeout, endpoint=broker.path, shared_memory=False)
        self.addCleanup(sock.close)
        return sock

    def test_an_older_broker_is_asked_in_more_steps_and_remembered(self):
        guid = uuid.uuid4()

        def serve(broker, sock):
            kind, fields = broker.receive(sock)
            if kind.endswith("_NAMED") or fields.get("flags"):
                return send(sock, "REFUSED", code=17, errno=104, detail=VIOLATION)
            while kind == "LOOKUP":
                send(sock, "FOUND", guid=guid)
                kind, fields = broker.receive(sock)
            self.assertEqual((fields["vm"], fields["service"], fields["flags"]), (guid, guid, 0))
            with send_connected(sock) as data:
                data.sendall(b"hi")
                send(sock, "SHUTDOWN")

        with FakeBroker(serve) as broker:
            self.assertEqual(self.connect(broker).recv(2), b"hi")
            self.assertEqual(broker.requests, ["CONNECT_NAMED", "LOOKUP", "LOOKUP", "CONNECT"])
            self.connect(broker)
            self.assertEqual(broker.requests[4:], ["LOOKUP", "LOOKUP", "CONNECT"])

    def test_other_tasks_go_on_while_a_connect_waits(self):
        asked, go_on = threading.Event(), threading.Event()

        def serve(broker, sock):
            broker.receive(sock)
            asked.set()
            if go_on.wait(TIMEOUT):
                send(sock, "REFUSED", code=1, errno=111, detail="")

        async def other_task():
            while not asked.is_set():
                await asyncio.sleep(0.001)
            go_on.set()

        async def both(path):
            other = asyncio.ensure_future(other_task())
            with self.assertRaises(ConnectionRefusedError) as caught:
                await hvsock.asyncio.open_connection(ADDRESS, endpoint=path)
            self.assertEqual(caught.exception.refusal.label, "unregistered")
            await other

        with FakeBroker(serve) as broker:
            asyncio.run(both(broker.path))

    def test_a_timeout_may_be_of_any_length(self):
        def serve(broker, sock):
            broker.receive(sock)
            with send_connected(sock) as data:
                data.sendall(b"hi")
                broker.done.wait(TIMEOUT)

        with FakeBroker(serve) as broker:
            broker.done = threading.Event()
            for timeout in (3e6, 1e12, 1e300, math.inf):
                with self.subTest(timeout=timeout):
                    sock = self.connect(broker, timeout)
                    sock.settimeout(timeout)
                    self.assertEqual(sock.recv(2), b"hi")
                    threading.Timer(0.01, broker.done.set).start()
                    with self.assertRaises(hvsock.Reset):
                        sock.recv(1)
                    broker.done.clear()
            sock.settimeout(1)
            for timeout in (math.nan, -1.0, -math.inf):
                with self.subTest(timeout=timeout), self.assertRaises(ValueError):
                    sock.settimeout(timeout)

    def test_a_peer_that_closes_for_good_after_its_end_is_no_reset(self):
        def serve(broker, sock):
            broker.receive(sock)
            with send_connected(sock) as data:
                data.sendall(b"hi")
                send(sock, "SHUTDOWN")

        with FakeBroker(serve) as broker:
            sock = self.connect(broker)
            self.assertEqual(sock.makefile("rb").read(), b"hi")
            with self.assertRaises(BrokenPipeError):
                sock.sendall(b"x")
            sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND, 1)
            sock.shutdown(hvsock.SHUT_WR)
            self.assertEqual(sock.recv(1), b"")

    def test_a_reset_after_the_peers_end_is_the_error_of_the_own_end(self):
        def serve(broker, sock):
            broker.receive(sock)
            with send_connected(sock):
                send(sock, "SHUTDOWN")
                send(sock, "RESET", code=17, errno=104, detail="the peer left data unread")

        with FakeBroker(serve) as broker:
            sock = self.connect(broker)
            self.assertEqual(sock.recv(1), b"")
            poll = select.poll()
            poll.register(sock._control._sock, 0)
            self.assertTrue(poll.poll(TIMEOUT * 1000), "the broker has not closed")
            with self.assertRaises(hvsock.Reset) as caught:
                sock.shutdown(hvsock.SHUT_WR)
            self.assertEqual(caught.exception.refusal.detail, "the peer left data unread")

    def test_a_reset_of_the_peer_is_no_older_broker(self):
        def serve(broker, sock):
            broker.receive(sock)
            send(sock, "REFUSED", code=17, errno=104, detail="the guest reset it")

        with FakeBroker(serve) as broker, self.assertRaises(hvsock.Reset) as caught:
            self.connect(broker)
        self.assertEqual(caught.exception.refusal.detail, "the guest reset it")
        self.assertEqual(broker.requests, ["CONNECT_NAMED"])

    def test_an_unknown_refusal_is_a_reset_that_names_it(self):
        def serve(broker, sock):
            broker.receive(sock)
            send(sock, "REFUSED", code=4000, errno=71, detail="moon")

        with FakeBroker(serve) as broker, self.assertRaises(ConnectionResetError) as caught:
            self.connect(broker)
        self.assertIn("unknown reason 4000: moon", str(caught.exception))

    def test_a_broker_of_another_version_is_a_reset_and_no_hang(self):
        for reply in (b"\2\x86\0\0", b"", b"\1\x81\0\0" + bytes(16), b"\1\x86", b"\1\x82\0\0" + bytes(76)):
            with self.subTest(reply=reply):

                def serve(broker, sock, reply=reply):
                    broker.receive(sock)
                    if reply:
                        sock.send(reply)

                with FakeBroker(serve) as broker, self.assertRaises(hvsock.Reset):
                    self.connect(broker)

    def test_descriptors_of_a_wrong_message_are_closed(self):
        for transport, count in ((1, 2), (2, 1), (1, 0), (4, 4), (1, 5)):
            before = len(os.listdir("/proc/self/fd"))

            def serve(broker, sock, transport=transport, count=count):
                broker.receive(sock)
                send_connected(sock, transport, count).close()

            with FakeBroker(serve) as broker, self.assertRaises(hvsock.Reset):
                self.connect(broker)
            self.assertEqual(len(os.listdir("/proc/self/fd")), before, (transport, count))

    def test_a_silent_broker_ends_the_connect_at_its_timeout(self):
        done = threading.Event()

        def serve(broker, sock):
            broker.receive(sock)
            done.wait(TIMEOUT)

        original, exchange.REPLY_TIMEOUT = exchange.REPLY_TIMEOUT, 0.05
        from hvsock._os.linux import backend

        backend.REPLY_TIMEOUT = 0.05
        try:
            with FakeBroker(serve) as broker:
                try:
                    with self.assertRaises(TimeoutError):
                        self.connect(broker, timeout=0.05)
                finally:
                    done.set()
        finally:
            exchange.REPLY_TIMEOUT = backend.REPLY_TIMEOUT = original

    def test_an_end_without_a_word_of_the_broker_is_an_error(self):
        def serve(broker, sock):
            broker.receive(sock)
            data = send_connected(sock)
            data.sendall(b"partial")
            data.close()

        with FakeBroker(serve) as broker:
            sock = self.connect(broker)
            self.assertEqual(sock.recv(99), b"partial")
            for _ in range(2):
                with self.assertRaises(hvsock.Reset) as caught:
                    sock.recv(99)
                self.assertIn("the broker went away", str(caught.exception))

    def test_the_reason_of_a_reset_reaches_reader_and_writer(self):
        def serve(broker, sock):
            broker.receive(sock)
            data = send_connected(sock)
            send(sock, "RESET", code=6, errno=112, detail="")
            data.close()

        with FakeBroker(serve) as broker:
            sock = self.connect(broker)
            with self.assertRaises(hvsock.Reset) as caught:
                sock.recv(1)
            self.assertEqual(caught.exception.refusal.label, "partition_paused")
            with self.assertRaises(hvsock.Reset) as caught:
                sock.sendall(b"x")
            self.assertEqual(caught.exception.refusal.label, "partition_paused")

    def test_a_message_that_cannot_come_now_resets_the_connection(self):
        def serve(broker, sock):
            broker.receive(sock)
            data = send_connected(sock)
            send(sock, "REGISTERED")
            data.close()

        with FakeBroker(serve) as broker, self.assertRaises(hvsock.Reset) as caught:
            self.connect(broker).recv(1)
        self.assertIn("REGISTERED", str(caught.exception))

    def test_the_end_is_announced_before_it_comes(self):
        seen = []

        def serve(broker, sock):
            broker.receive(sock)
            with send_connected(sock) as data:
                data.settimeout(TIMEOUT)
                while data.recv(99):
                    pass
                sock.setblocking(False)
                seen.append(broker.receive(sock)[0])

        with FakeBroker(serve) as broker:
            sock = self.connect(broker)
            sock.sendall(b"x")
            sock.close()
        self.assertEqual((seen, broker.errors), (["SHUTDOWN"], []))

    def test_a_busy_listener_skips_nothing_and_a_wrong_incoming_ends_it(self):
        def serve(broker, sock):
            broker.receive(sock)
            send(sock, "BOUND", backlog=1, listener=3, vm=addresses.ZERO, service=uuid.uuid4())
            send(sock, "INCOMING", transport=1, connection=5, pid=0, uid=0, gid=0, partition="x", **ENDS)
            sock.recv(99)

        with FakeBroker(serve) as broker:
            listener = hvsock.create_server(("any", "Demo"), endpoint=broker.path, shared_memory=False)
            with listener:
                for _ in range(2):
                    with self.assertRaises(hvsock.Reset):
                        listener.accept()

    def test_a_writer_with_a_timeout_learns_that_its_peer_reads_no_more(self):
        stop = threading.Event()

        def serve(broker, sock):
            broker.receive(sock)
            with send_connected(sock) as data:
                # The kernel does not wake a writer that polls while this much is unread.
                data.settimeout(TIMEOUT)
                data.recv(1)
                data.shutdown(socket.SHUT_RD)
                stop.wait(TIMEOUT)

        with FakeBroker(serve) as broker:
            sock = self.connect(broker)
            try:
                with self.assertRaises(BrokenPipeError):
                    sock.sendall(bytes(64 << 20))
            finally:
                stop.set()
