"""Sockets, listeners, leases and look-ups with a broker."""

import os
import pickle
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import unittest
import uuid

import hvsock

from .support import CASES, CLIENT_SERVICE, SERVICE, TIMEOUT, listen, needs_broker

ADDRESS = ("loopback", SERVICE)
CLIENT = ("loopback", CLIENT_SERVICE)


def request(line, **options):
    sock = hvsock.connect(ADDRESS, TIMEOUT, **options)
    sock.sendall(line + b"\n")
    return sock


def pair(listener, **options):
    connected = hvsock.connect(CLIENT, TIMEOUT, **options)
    accepted, _ = listener.accept()
    accepted.settimeout(TIMEOUT)
    return connected, accepted


@needs_broker
class Connecting(unittest.TestCase):
    def test_every_form_of_an_address_connects(self):
        service = uuid.UUID(CASES["service_id"])
        for address in (
            ADDRESS,
            (hvsock.HV_GUID_LOOPBACK, CASES["service_id"]),
            (uuid.UUID(hvsock.HV_GUID_LOOPBACK), service),
            hvsock.Address(hvsock.HV_GUID_LOOPBACK, str(service)),
            "hvsock://loopback/" + SERVICE.replace(" ", "%20"),
        ):
            with self.subTest(address=address), hvsock.connect(address, TIMEOUT) as sock:
                self.assertEqual(sock.getpeername(), (hvsock.HV_GUID_LOOPBACK, str(service)))
                self.assertGreater(sock.connection_id, 0)

    def test_a_refusal_has_its_reason_its_class_and_what_would_help(self):
        with self.assertRaises(ConnectionRefusedError) as caught:
            hvsock.connect(("loopback", "no such service"))
        error = caught.exception
        self.assertIsInstance(error, hvsock.Refused)
        self.assertEqual((error.refusal.code, error.refusal.label, error.errno), (1, "unregistered", 111))
        self.assertIn("hvsock://loopback/no%20such%20service", str(error))
        with self.assertRaises(hvsock.RefusedConnection) as caught:
            hvsock.connect(CLIENT)
        error = caught.exception
        self.assertEqual(error.refusal.label, "no_listener")
        self.assertEqual(error.fix.kind, "start_listener")
        self.assertIn("; help: ", str(error))
        self.assertEqual(error.explanation.steps[-1].check, "listener")
        self.assertFalse(error.explanation.steps[-1].passed)
        with self.assertRaises(OSError) as caught:
            hvsock.connect(("parent", SERVICE))
        self.assertEqual(caught.exception.refusal.label, "not_supported")
        self.assertEqual(caught.exception.errno, 95)

    def test_invalid_arguments_are_value_errors_before_any_request(self):
        for address in ("parent/2761", ("no spaces", 1), ("web", 1 << 32), ("web", -1), ("web", "")):
            with self.subTest(address=address), self.assertRaises(ValueError):
                hvsock.connect(address, endpoint="/nowhere")
        for timeout in (0, -1):
            with self.assertRaises(ValueError):
                hvsock.connect(ADDRESS, timeout)

    def test_a_missing_broker_is_named_with_its_path(self):
        with self.assertRaises(FileNotFoundError) as caught:
            hvsock.connect(ADDRESS, endpoint="/nowhere/endpoint")
        self.assertIn("/nowhere/endpoint", str(caught.exception))

    def test_why_explains_a_connect_and_does_nothing(self):
        self.assertTrue(hvsock.why(ADDRESS).would_succeed)
        refused = hvsock.why(CLIENT)
        self.assertFalse(refused.would_succeed)
        self.assertEqual(refused.refusal.label, "no_listener")
        self.assertIn("help: ", str(refused))
        self.assertTrue(hvsock.why(("loopback", CLIENT_SERVICE), listening=True).would_succeed)
        self.assertEqual(hvsock.why(("any", SERVICE), listening=True).refusal.label, "address_in_use")

    def test_names_are_resolved(self):
        self.assertEqual(str(hvsock.lookup_service(SERVICE.upper())), CASES["service_id"])
        with self.assertRaises(hvsock.Refused) as caught:
            hvsock.lookup_service("no such service")
        self.assertEqual(caught.exception.refusal.label, "unregistered")
        with self.assertRaises(hvsock.Refused) as caught:
            hvsock.lookup_partition("nobody")
        self.assertIn('the partition "nobody"', str(caught.exception))

    def test_a_description_is_accepted(self):
        with request(b"echo", describe=("test", "x" * 5000)) as sock:
            sock.sendall(b"!")
            self.assertEqual(sock.recv(1), b"!")


@needs_broker
class Leases(unittest.TestCase):
    def test_a_lease_registers_a_service_until_it_is_closed(self):
        with hvsock.register("python lease", purpose="a test") as lease:
            lease.check()
            self.assertEqual(str(hvsock.lookup_service("python lease")), lease.service_id)
            with hvsock.create_server(("any", "python lease")) as listener:
                self.assertEqual(listener.getsockname(), (hvsock.HV_GUID_ZERO, lease.service_id))
            with self.assertRaises(hvsock.Refused):
                hvsock.register("python lease")
        with self.assertRaises(ConnectionRefusedError):
            hvsock.connect(("loopback", lease.service_id))

    def test_a_port_can_be_registered(self):
        with hvsock.register("python port", 27610):
            self.assertEqual(hvsock.lookup_service("python port"), hvsock.service_of_port(27610))


@needs_broker
class Sockets(unittest.TestCase):
    def setUp(self):
        self.listener = listen(("any", CLIENT_SERVICE), backlog=16)
        self.addCleanup(self.listener.close)
        self.listener.settimeout(TIMEOUT)

    def pair(self, **options):
        one, other = pair(self.listener, **options)
        self.addCleanup(one.close)
        self.addCleanup(other.close)
        return one, other

    def test_an_accepted_connection_says_who_connected(self):
        _, accepted = self.pair()
        self.assertEqual((accepted.peer.pid, accepted.peer.uid), (os.getpid(), os.getuid()))
        self.assertTrue(accepted.peer.partition)
        self.assertEqual(accepted.getsockname().service_id, CASES["client_service_id"])

    def test_the_methods_of_a_socket_move_data(self):
        one, other = self.pair()
        self.assertEqual(one.send(b"abc"), 3)
        self.assertEqual(other.recv(3, socket.MSG_PEEK), b"abc")
        buffer = bytearray(8)
        self.assertEqual(other.recv_into(buffer), 3)
        self.assertEqual(one.sendmsg([b"de", b"f"]), 3)
        self.assertEqual(other.recv_into(memoryview(buffer)[3:], 2), 2)
        self.assertEqual(buffer[:5], b"abcde")
        self.assertEqual(other.recvfrom(9)[0], b"f")
        self.assertEqual(other.recv(0), b"")
        self.assertEqual((one.family, one.type, one.proto), (34, socket.SOCK_STREAM, 1))
        self.assertEqual(one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_a_half_close_is_a_clean_end_now_and_for_ever(self):
        one, other = self.pair()
        one.sendall(b"x")
        one.shutdown(hvsock.SHUT_WR)
        self.assertEqual(other.recv(9), b"x")
        for _ in range(3):
            self.assertEqual(other.recv(9), b"")
        other.sendall(b"y")
        other.close()
        self.assertEqual(one.recv(9), b"y")
        self.assertEqual(one.recv(9), b"")
        self.assertEqual(other.fileno(), -1)

    def test_a_file_keeps_the_connection_open_until_it_is_closed(self):
        one, other = self.pair()
        with one.makefile("rw", encoding="utf-8", newline="\n") as file:
            one.close()
            file.write("grüße\n")
            file.flush()
            with other.makefile("rb") as lines:
                self.assertEqual(lines.readline().decode(), "grüße\n")
            other.sendall(b"back\n")
            self.assertEqual(file.readline(), "back\n")
            self.assertGreaterEqual(one.fileno(), 0)
        self.assertEqual(one.fileno(), -1)
        self.assertEqual(other.recv(1), b"")

    def test_a_file_is_sent(self):
        one, other = self.pair()
        with open(__file__, "rb") as file:
            content = file.read()
            file.seek(0)
            self.assertEqual(one.sendfile(file), len(content))
        one.shutdown(hvsock.SHUT_WR)
        self.assertEqual(b"".join(iter(lambda: other.recv(999), b"")), content)

    def test_timeouts_and_modes_are_those_of_a_socket(self):
        one, other = self.pair()
        self.assertEqual(one.gettimeout(), TIMEOUT)
        one.settimeout(0.01)
        with self.assertRaises(socket.timeout):
            one.recv(1)
        one.setblocking(False)
        self.assertFalse(one.getblocking())
        with self.assertRaises(BlockingIOError):
            one.recv(1)
        one.setblocking(True)
        self.assertIsNone(one.timeout)
        self.listener.settimeout(0.01)
        with self.assertRaises(socket.timeout):
            self.listener.accept()
        self.listener.setblocking(False)
        with self.assertRaises(BlockingIOError):
            self.listener.accept()
        other.settimeout(0.05)
        with self.assertRaises(socket.timeout):
            other.sendall(bytes(64 << 20))

    def test_selectors_watch_connections_and_listeners(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            self.assertEqual(selector.select(0), [])
            connected = hvsock.connect(CLIENT, TIMEOUT)
            self.addCleanup(connected.close)
            self.assertTrue(selector.select(TIMEOUT))
            accepted, _ = self.listener.accept()
            self.addCleanup(accepted.close)
            selector.register(accepted, selectors.EVENT_READ)
            connected.close()
            self.assertTrue(selector.select(TIMEOUT))
            accepted.setblocking(False)
            self.assertEqual(accepted.recv(1), b"")

    def test_a_killed_peer_is_a_reset_with_the_reason_after_its_data(self):
        program = (
            f"import hvsock, os; s = hvsock.connect({CLIENT!r}); s.sendall(b'partial'); "
            "s.recv(1); os.kill(os.getpid(), 9)"
        )
        child = subprocess.Popen([sys.executable, "-c", program])
        accepted, _ = self.listener.accept()
        with accepted:
            accepted.settimeout(TIMEOUT)
            self.assertEqual(accepted.recv(7, socket.MSG_WAITALL), b"partial")
            accepted.sendall(b"!")
            self.assertEqual(child.wait(TIMEOUT), -signal.SIGKILL)
            with self.assertRaises(hvsock.Reset) as caught:
                accepted.recv(1)
            self.assertIsInstance(caught.exception, ConnectionResetError)
            self.assertEqual(caught.exception.refusal.label, "reset")
            self.assertTrue(caught.exception.refusal.detail)
            with self.assertRaises(ConnectionError):
                while True:
                    accepted.send(b"x")

    def test_a_writer_learns_that_its_peer_reads_no_more(self):
        one, other = self.pair()
        other.shutdown(hvsock.SHUT_RD)
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            for _ in range(10_000):
                one.sendall(bytes(4096))

    def test_a_writer_that_waits_learns_that_its_peer_has_stopped_reading(self):
        one, other = self.pair()
        errors = []

        def write():
            try:
                while True:
                    one.sendall(bytes(65536))
            except OSError as error:
                errors.append(error)

        one.settimeout(None)
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        # It is full when a short time passes without a byte that goes out.
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        while poll.poll(200):
            pass
        other.shutdown(hvsock.SHUT_RD)
        writer.join(TIMEOUT)
        self.assertEqual([type(error) for error in errors], [BrokenPipeError])
        self.assertEqual(other.recv(10), b"")

    def test_a_raw_descriptor_outlives_the_socket_object(self):
        one, other = self.pair(raw_fd=True)
        descriptor = one.detach()
        self.assertEqual(one.fileno(), -1)
        subprocess.run(["echo", "from a child"], stdout=descriptor, check=True)
        os.close(descriptor)
        self.assertEqual(b"".join(iter(lambda: other.recv(99), b"")), b"from a child\n")
        with self.assertRaises(OSError):
            other.detach()

    def test_an_option_survives_a_wrong_level(self):
        one, _ = self.pair(connected_suspend=True)
        one.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND, 0)
        one.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_HIGH_VTL, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)

    def test_threads_share_a_connection(self):
        one, other = self.pair()
        total = 8 * 100_000
        senders = [threading.Thread(target=lambda: one.sendall(bytes(100_000))) for _ in range(8)]
        counts = []

        def receive():
            count = 0
            while chunk := other.recv(4096):
                count += len(chunk)
            counts.append(count)

        readers = [threading.Thread(target=receive) for _ in range(3)]
        for thread in readers + senders:
            thread.start()
        for thread in senders:
            thread.join()
        one.shutdown(hvsock.SHUT_WR)
        for thread in readers:
            thread.join()
        self.assertEqual(sum(counts), total)

    def test_a_connection_that_nobody_closed_warns_and_ends_cleanly(self):
        one, other = pair(self.listener)
        self.addCleanup(other.close)
        with self.assertWarns(ResourceWarning):
            del one
        self.assertEqual(other.recv(1), b"")

    def test_a_closed_listener_resets_what_it_has_not_accepted(self):
        connected = hvsock.connect(CLIENT, TIMEOUT)
        self.addCleanup(connected.close)
        self.listener.close()
        with self.assertRaises(ConnectionResetError):
            connected.recv(1)
        with self.assertRaises(OSError):
            self.listener.accept()

    def test_a_socket_cannot_be_pickled(self):
        one, _ = self.pair()
        with self.assertRaises(TypeError):
            pickle.dumps(one)

    def test_no_descriptor_leaks(self):
        def count():
            return len(os.listdir("/proc/self/fd"))

        def use():
            one, other = pair(self.listener)
            one.close()
            other.close()
            for address in (("loopback", "no such service"), ("parent", SERVICE)):
                with self.assertRaises(OSError):
                    hvsock.connect(address)
            hvsock.why(ADDRESS)

        # The accelerator keeps memory for the connections of a pair of processes.
        for _ in range(5):
            use()
        before = count()
        for _ in range(20):
            use()
        self.assertEqual(count(), before)
