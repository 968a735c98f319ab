"""What only the accelerator has."""

import os
import signal
import socket
import threading
import unittest

import hvsock

from .support import CLIENT_SERVICE, SERVICE, TIMEOUT, fast_pattern, listen, needs_broker

ADDRESS = ("loopback", SERVICE)


@needs_broker
@unittest.skipUnless(hvsock.implementation() == "accelerator", "it needs the accelerator")
class Accelerator(unittest.TestCase):
    def request(self, line, **options):
        sock = hvsock.connect(ADDRESS, TIMEOUT, **options)
        self.addCleanup(sock.close)
        sock.sendall(line + b"\n")
        return sock

    def test_the_bytes_go_through_shared_memory_unless_that_is_not_wanted(self):
        self.assertIn(self.request(b"echo").transport, ("ring", "arena"))
        self.assertEqual(self.request(b"echo", shared_memory=False).transport, "descriptor")
        self.assertEqual(self.request(b"echo", raw_fd=True).transport, "descriptor")

    def test_the_gil_is_released_while_a_call_waits(self):
        sock = self.request(b"echo")
        ready, received = threading.Event(), []

        def receive():
            ready.set()
            received.append(sock.recv(1))

        waiting = threading.Thread(target=receive)
        waiting.start()
        self.assertTrue(ready.wait(TIMEOUT))
        sock.sendall(b"x")
        waiting.join(TIMEOUT)
        self.assertEqual(received, [b"x"])

    def test_a_signal_handler_runs_while_the_main_thread_waits(self):
        sock = self.request(b"echo")
        sock.settimeout(None)

        class Interrupted(Exception):
            pass

        def interrupt(*_):
            raise Interrupted

        previous = signal.signal(signal.SIGUSR1, interrupt)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with self.assertRaises(Interrupted):
            sock.recv(1)
        timer.join()
        # The connection goes on.
        sock.sendall(b"y")
        self.assertEqual(sock.recv(1), b"y")

    def test_every_kind_of_buffer_is_sent_and_received(self):
        data = fast_pattern(3000)
        for sent in (data, bytearray(data), memoryview(data), memoryview(b"-" + data)[1:]):
            sock = self.request(b"echo")
            sock.sendall(sent)
            buffer = bytearray(4000)
            view = memoryview(buffer)[500:]
            self.assertEqual(sock.recv_into(view, 3000, socket.MSG_WAITALL), 3000)
            self.assertEqual((buffer[500:3500], buffer[:500]), (data, bytes(500)))
        with self.assertRaises(BufferError):
            sock.recv_into(b"read-only")
        with self.assertRaises(BufferError):
            sock.sendall(memoryview(bytes(10))[::2])
        with self.assertRaises(ValueError):
            sock.recv_into(bytearray(1), 2)
        with self.assertRaises(TypeError):
            sock.sendall("text")

    def test_a_close_ends_the_calls_of_other_threads(self):
        sock = self.request(b"echo")
        sock.settimeout(None)
        ended = threading.Event()

        def receive():
            try:
                sock.recv(1)
            except OSError:
                pass
            ended.set()

        thread = threading.Thread(target=receive)
        thread.start()
        sock.close()
        self.assertTrue(ended.wait(TIMEOUT))
        thread.join()
        self.assertEqual(sock.fileno(), -1)
        for call in (lambda: sock.recv(1), lambda: sock.sendall(b"x"), lambda: sock.shutdown(hvsock.SHUT_WR)):
            with self.assertRaises(OSError):
                call()

    def test_a_pure_client_and_an_accelerated_server_understand_each_other(self):
        with listen(("any", CLIENT_SERVICE)) as listener:
            listener.settimeout(TIMEOUT)
            for shared_memory in (False, True):
                one = hvsock.connect(("loopback", CLIENT_SERVICE), TIMEOUT, shared_memory=shared_memory)
                other, _ = listener.accept()
                with one, other:
                    one.sendall(b"hello")
                    one.shutdown(hvsock.SHUT_WR)
                    self.assertEqual(b"".join(iter(lambda: other.recv(99), b"")), b"hello")
                    self.assertEqual(other.peer.pid, os.getpid())
