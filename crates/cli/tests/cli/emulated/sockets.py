"""Scenarios of a program that uses AF_VSOCK and has never heard of hvsock.

usage: sockets.py SCENARIO PORT

Prints what a test compares, or fails with an exception.
"""

import asyncio
import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

ANY = socket.VMADDR_CID_ANY
LOCAL = 1
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 0
libc = ctypes.CDLL(None, use_errno=True)


def vsock():
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


def listener(port=PORT, backlog=128):
    s = vsock()
    s.bind((ANY, port))
    s.listen(backlog)
    return s


def dial(port=PORT, cid=LOCAL):
    s = vsock()
    s.connect((cid, port))
    return s


def number(call, *args):
    """The name of the error of a call, or what it returns."""
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def echo(connection):
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def echo_server(s, count):
    def serve():
        threads = []
        for _ in range(count):
            connection, _ = s.accept()
            threads.append(threading.Thread(target=echo, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def exchange(s, data=b"hello"):
    with s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        got = b""
        while part := s.recv(65536):
            got += part
    assert got == data, got


def blocking():
    s = listener()
    server = echo_server(s, 1)
    c = dial()
    assert c.getpeername() == (LOCAL, PORT), c.getpeername()
    assert c.getsockname()[1] >= 1024, c.getsockname()
    exchange(c, os.urandom(300000))
    server.join()


def timeout():
    s = listener()
    s.settimeout(0.05)
    assert number(s.accept) is None or True
    try:
        s.accept()
        raise AssertionError("nobody connects")
    except TimeoutError:
        pass
    c = vsock()
    c.settimeout(10)
    c.connect((LOCAL, PORT))
    s.settimeout(10)
    a, _ = s.accept()
    c.settimeout(0.05)
    try:
        c.recv(1)
        raise AssertionError("nothing was sent")
    except TimeoutError:
        pass
    a.sendall(b"x")
    c.settimeout(10)
    assert c.recv(1) == b"x"


def nonblocking():
    """epoll sees a socket before its connect, and the connect's end; level and edge triggered."""
    for flags in 0, select.EPOLLET:
        s = vsock()
        s.bind((ANY, PORT))
        s.setblocking(False)
        events = select.epoll()
        events.register(s, select.EPOLLIN | flags)
        s.listen(5)
        assert number(s.accept) == "EAGAIN"
        c = vsock()
        c.setblocking(False)
        events.register(c, select.EPOLLOUT | select.EPOLLIN | flags)
        events.poll(0)
        assert c.connect_ex((LOCAL, PORT)) == errno.EINPROGRESS
        assert c.connect_ex((LOCAL, PORT)) in (errno.EALREADY, errno.EISCONN)
        seen = 0
        while not seen & select.EPOLLOUT:
            for fd, event in events.poll(10):
                if fd == c.fileno():
                    seen |= event
        assert not seen & (select.EPOLLERR | select.EPOLLHUP), seen
        assert c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert c.connect_ex((LOCAL, PORT)) == errno.EISCONN
        assert c.getpeername() == (LOCAL, PORT)
        a, _ = s.accept()
        c.sendall(b"data and no filler")
        a.settimeout(10)
        assert a.recv(100) == b"data and no filler"
        a.sendall(b"back")
        assert select.select([c], [], [], 10)[0] == [c]
        assert c.recv(100) == b"back"
        a.close()
        assert select.select([c], [], [], 10)[0] == [c]
        assert c.recv(1) == b""
        c.close()
        s.close()


def nonblocking_refused():
    c = vsock()
    c.setblocking(False)
    refused(c, select.epoll())
    assert c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert number(c.getpeername) == "ENOTCONN"


def refused(c, events=None):
    if events:
        events.register(c, select.EPOLLOUT)
    done = c.connect_ex((LOCAL, PORT))
    if not events:
        events = select.epoll()
        events.register(c, select.EPOLLOUT)
    if done == errno.EINPROGRESS:
        assert events.poll(10), "the refusal shows"
        done = c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert done == errno.ECONNRESET, done


def connects_again(early=lambda: None):
    """A socket whose connect was refused connects when somebody listens."""
    c = vsock()
    c.setblocking(False)
    for _ in range(3):
        refused(c, early())
    s = listener()
    events = early()
    if events:
        events.register(c, select.EPOLLOUT)
    assert c.connect_ex((LOCAL, PORT)) == errno.EINPROGRESS
    assert not events or events.poll(10), "the connect shows"
    assert select.select([], [c], [], 10)[1] == [c]
    assert c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    a, _ = s.accept()
    a.sendall(b"x")
    c.setblocking(True)
    assert c.recv(1) == b"x"


def connects_again_early():
    """epoll watches the socket from before each connect."""
    connects_again(select.epoll)


def asyncio_both():
    async def main():
        async def handle(reader, writer):
            writer.write(await reader.read())
            await writer.drain()
            writer.close()

        s = vsock()
        s.bind((ANY, PORT))
        server = await asyncio.start_server(handle, sock=s)

        async def one(i):
            c = vsock()
            c.setblocking(False)
            await asyncio.get_running_loop().sock_connect(c, (LOCAL, PORT))
            reader, writer = await asyncio.open_connection(sock=c)
            data = b"%d" % i * 10000
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data
            writer.close()

        await asyncio.wait_for(asyncio.gather(*(one(i) for i in range(20))), 30)
        server.close()

    asyncio.run(main())


def fork():
    """Children accept and answer; the parent's descriptors keep working."""
    s = listener()
    children = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            c, peer = s.accept()
            assert c.getpeername() == peer
            assert s.getsockname() == (ANY, PORT), s.getsockname()
            echo(c)
            os._exit(0)
        children.append(pid)
    for _ in children:
        exchange(dial())
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    # A connection that the parent made, used by a child.
    server = echo_server(s, 1)
    c = dial()
    if (pid := os.fork()) == 0:
        # It may have the other end, too, so there is no end of the data to wait for.
        assert c.getpeername() == (LOCAL, PORT)
        c.sendall(b"from a child")
        assert c.recv(100) == b"from a child"
        os._exit(0)
    c.close()
    assert os.waitpid(pid, 0)[1] == 0
    server.join()


def duplicates():
    s = vsock()
    numbers = [os.dup(s.fileno()), 200, 201]
    os.dup2(s.fileno(), 200)
    libc.dup3(s.fileno(), 201, os.O_CLOEXEC)
    first = socket.socket(fileno=numbers[0])
    assert first.family == socket.AF_VSOCK, first
    first.bind((ANY, PORT))
    socket.socket(fileno=200).listen(4)
    os.set_inheritable(s.fileno(), False)
    assert not os.get_inheritable(201)
    server = echo_server(socket.socket(fileno=201), 1)
    c = dial()
    d = c.dup()
    c.close()
    assert d.getpeername() == (LOCAL, PORT)
    exchange(d)
    server.join()
    assert s.getsockname() == (ANY, PORT)


def executed():
    """A listener and a connection survive exec."""
    s = listener()
    c = dial()
    a, _ = s.accept()
    for fd in s, a, c:
        fd.set_inheritable(True)
    numbers = [str(fd.fileno()) for fd in (s, a, c)]
    os.execv(sys.executable, [sys.executable, __file__, "executed_again", str(PORT)] + numbers)


def executed_again():
    s, a, c = (socket.socket(fileno=int(n)) for n in sys.argv[3:6])
    assert s.family == a.family == c.family == socket.AF_VSOCK, (s, a, c)
    assert s.getsockname() == (ANY, PORT), s.getsockname()
    assert c.getpeername() == (LOCAL, PORT), c.getpeername()
    server = threading.Thread(target=echo, args=(a,))
    server.start()
    exchange(c)
    server.join()
    server = echo_server(s, 1)
    exchange(dial())
    server.join()


def passed():
    """SCM_RIGHTS to a process that did not make the sockets."""
    here, there = socket.socketpair()
    s = listener()
    child = subprocess.Popen(
        [sys.executable, __file__, "passed_here", str(PORT), str(there.fileno())],
        pass_fds=[there.fileno()],
    )
    socket.send_fds(here, [b"x"], [s.fileno()])
    s.close()
    exchange(dial())
    assert child.wait(30) == 0


def passed_here():
    channel = socket.socket(fileno=int(sys.argv[3]))
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    s = socket.socket(fileno=fds[0])
    c, _ = s.accept()
    echo(c)


def many():
    s = listener()
    server = echo_server(s, 200)
    errors = []

    def one(i):
        try:
            exchange(dial(), b"%d" % i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(100):
        exchange(dial(), b"%d" % i)
    server.join()
    assert not errors, errors[:3]
    assert len(os.listdir("/proc/self/fd")) < 15, os.listdir("/proc/self/fd")


def rebind():
    for i in range(20):
        s = listener()
        c = dial()
        a, _ = s.accept()
        s.close()
        a.close()
        c.close()


def errors():
    s = vsock()
    print("unbound", s.getsockname(), number(s.getpeername))
    print("listen unbound", number(s.listen))
    print("accept", number(s.accept))
    print("no cid", number(s.connect, (4711, PORT)))
    print("nobody", number(s.connect, (LOCAL, PORT)))
    print("bind elsewhere", number(s.bind, (4711, PORT)))
    s.bind((ANY, PORT))
    print("bind again", number(s.bind, (ANY, PORT + 1)))
    s.listen()
    other = vsock()
    print("bind in use", number(other.bind, (ANY, PORT)))
    print("connect a listener", number(s.connect, (LOCAL, PORT)))
    print("options", s.getsockopt(1, socket.SO_TYPE), s.getsockopt(1, socket.SO_ACCEPTCONN))
    print("domain", s.getsockopt(1, 39), s.getsockopt(1, 38), s.getsockopt(1, socket.SO_ERROR))
    c = dial()
    print("connect again", number(c.connect, (LOCAL, PORT)))
    print("listen connected", number(c.listen), number(c.accept))
    for option in 0, 1, 2:
        print("buffer", option, c.getsockopt(40, option))
    print("unknown option", number(c.getsockopt, 40, 99), number(c.setsockopt, 40, 99, 8))
    print("dgram", number(socket.socket, 40, socket.SOCK_DGRAM), number(socket.socket, 40, 1, 6))
    print("cid", number(lambda: c.getsockname()[0] > 1))


def pointers():
    """Bad pointers are EFAULT and never a crash."""
    bad = ctypes.c_void_p(8)
    size = ctypes.c_uint32(16)
    good = ctypes.create_string_buffer(bytes(socket.AF_VSOCK.to_bytes(2, "little")) + bytes(14))
    s = listener()
    c = dial()
    u = vsock()

    def call(name, *args):
        ctypes.set_errno(0)
        done = getattr(libc, name)(*args)
        return "ok" if done == 0 else errno.errorcode.get(ctypes.get_errno(), done)

    print("bind", call("bind", u.fileno(), bad, 16), call("bind", u.fileno(), None, 16))
    print("short", call("bind", u.fileno(), good, 15), call("bind", u.fileno(), good, 0))
    print("long", call("bind", u.fileno(), good, 129), call("bind", u.fileno(), good, -1))
    print("connect", call("connect", u.fileno(), bad, 16), call("connect", u.fileno(), good, 2))
    for name in "getsockname", "getpeername":
        fd = c.fileno()
        print(name, call(name, fd, bad, ctypes.byref(size)), call(name, fd, good, bad))
        negative = ctypes.c_int32(-1)
        print(name, call(name, fd, good, ctypes.byref(negative)), call(name, fd, None, None))
        small = ctypes.c_uint32(4)
        print(name, call(name, fd, good, ctypes.byref(small)), small.value)
    print("getsockopt", call("getsockopt", c.fileno(), 40, 0, bad, ctypes.byref(ctypes.c_uint32(8))))
    print("getsockopt", call("getsockopt", c.fileno(), 40, 0, good, bad))
    print("setsockopt", call("setsockopt", c.fileno(), 40, 0, bad, 8))
    print("setsockopt", call("setsockopt", c.fileno(), 40, 0, good, 0x7FFFFFFF))
    a = libc.accept(s.fileno(), bad, ctypes.byref(size))
    print("accept", a, errno.errorcode[ctypes.get_errno()])
    print("closed", number(socket.socket.getsockname, u) is not None, call("listen", 999, 1))


def descriptors():
    """An accept without free descriptors fails and loses nothing."""
    import resource

    s = listener()
    c = dial()
    taken = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (30, limit[1]))
    try:
        while True:
            taken.append(os.open("/dev/null", 0))
    except OSError:
        pass
    assert number(s.accept) == "EMFILE"
    assert number(vsock) == "EMFILE"
    for fd in taken:
        os.close(fd)
    a, _ = s.accept()
    a.sendall(b"kept")
    assert c.recv(4) == b"kept"


def signals():
    """A signal interrupts accept, or not, as its handler says."""
    s = listener()
    for restarts in False, True:
        got = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
        signal.siginterrupt(signal.SIGUSR1, not restarts)
        main = threading.get_ident()
        done = threading.Event()

        def storm():
            for _ in range(50):
                signal.pthread_kill(main, signal.SIGUSR1)
                time.sleep(0.002)
            done.set()
            libc.usleep(1000)
            c = dial()
            c.close()

        thread = threading.Thread(target=storm)
        thread.start()
        fd, interrupted = -1, 0
        while fd < 0:
            fd = libc.accept(s.fileno(), None, None)
            if fd < 0:
                assert ctypes.get_errno() == errno.EINTR, ctypes.get_errno()
                interrupted += 1
        os.close(fd)
        thread.join()
        print("interrupted" if interrupted else "restarted")


def broker_gone():
    """Waits in recv until the test has killed the broker."""
    s = listener()
    c = dial()
    a, _ = s.accept()
    print("ready", flush=True)
    assert number(c.recv, 1) in (b"", "ECONNRESET")
    # Its endpoint may be closed a moment after its connections.
    assert number(dial) in ("ECONNRESET", "ENODEV")
    assert number(dial) == "ENODEV"
    print("socket", vsock().family)
    exchange_foreign()


def broker_restarted():
    """Serves one connection before and one after a restart of the broker."""
    s = listener()
    print("ready", flush=True)
    for _ in range(2):
        while True:
            try:
                a, _ = s.accept()
                break
            except ConnectionAbortedError:
                pass
        echo(a)
        print("served", flush=True)


def supervisor_gone():
    """Waits in accept until the test has killed the supervisor."""
    s = listener()
    c = dial()
    a, _ = s.accept()
    print("ready", flush=True)
    print("accept", number(s.accept))
    print("socket", number(vsock))
    # The data has never passed through it.
    c.sendall(b"still here")
    print("data", a.recv(100))


def serve_one():
    s = listener()
    a, peer = s.accept()
    print("peer", peer[0], flush=True)
    echo(a)


def dial_one():
    c = dial(cid=int(sys.argv[3]))
    assert c.getpeername() == (int(sys.argv[3]), PORT)
    print("own", c.getsockname()[0])
    exchange(c)


def exchange_foreign():
    s = socket.create_server(("127.0.0.1", 0))
    server = echo_server(s, 1)
    exchange(socket.create_connection(s.getsockname()))
    server.join()
    s.close()


def undumpable():
    """A program that other processes may not look at: works, or fails with an error."""
    assert libc.prctl(4, 0, 0, 0, 0) == 0
    print(number(blocking))


def closes_everything():
    """Descriptors that the program closes without telling anybody are not used for others."""
    s = listener()
    c = vsock()
    c.setblocking(False)
    c.connect_ex((LOCAL, PORT))
    low = s.fileno()
    os.closerange(low, 100)
    if hasattr(libc, "close_range"):
        libc.close_range(low, 0xFFFFFFFF, 0)
    foreign = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(8)]
    assert low in [f.fileno() for f in foreign]
    for f in foreign:
        assert f.getsockopt(1, 39) == 2
        assert number(f.getpeername) == "ENOTCONN"
        f.bind(("127.0.0.1", 0))
        f.listen()
        assert f.getsockname()[0] == "127.0.0.1"
    # The number of the listener is free again, too.
    again = listener()
    server = echo_server(again, 1)
    exchange(dial())
    server.join()
    for leaked in s, c:
        leaked.detach()


def accepted_once():
    """A listener whose connection was accepted is not readable any more."""
    s = listener()
    for _ in range(200):
        client = dial()
        assert select.select([s], [], [], 20)[0]
        connection, _ = s.accept()
        assert not select.select([s], [], [], 0)[0]
        client.close()
        connection.close()


def never_accepts():
    """A listener that accepts nothing: connects end, and nothing hangs."""
    s = listener(backlog=2)
    results = []

    def one():
        c = vsock()
        c.settimeout(8)
        results.append(number(c.connect, (LOCAL, PORT)))
        kept.append(c)

    kept = []
    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(results) == 12 and results.count(None) >= 2, results
    assert set(results) <= {None, "ECONNRESET", "ETIMEDOUT"}, results
    s.close()


def closes_while_others_wait():
    """Threads wait in calls on descriptors that another thread closes and makes again."""
    stop = threading.Event()
    failures = []

    def churn(i):
        port = PORT + 1 + i
        while not stop.is_set():
            s = vsock()
            s.setblocking(False)
            number(s.bind, (ANY, port))
            number(s.listen)
            number(s.accept)
            c = vsock()
            c.setblocking(False)
            number(c.connect, (LOCAL, port))
            number(c.getpeername)
            c.close()
            s.close()

    def foreign():
        while not stop.is_set():
            try:
                a, b = socket.socketpair()
                a.sendall(b"abc")
                assert b.recv(3) == b"abc"
                assert a.family == socket.AF_UNIX and a.getsockopt(1, 39) == 1
                a.close()
                b.close()
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(3)]
    threads += [threading.Thread(target=foreign) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failures, failures
    blocking()


def urgent():
    """A storm of signals, as Go's runtime sends, during connects, accepts and names."""
    signal.signal(signal.SIGURG, lambda *_: None)
    signal.siginterrupt(signal.SIGURG, False)
    stop = threading.Event()
    main = threading.get_ident()

    def storm():
        while not stop.is_set():
            signal.pthread_kill(main, signal.SIGURG)
            time.sleep(0.0002)

    s = listener()
    thread = threading.Thread(target=storm)
    thread.start()
    try:
        address = socket.AF_VSOCK.to_bytes(2, "little") + bytes(2)
        address += PORT.to_bytes(4, "little") + LOCAL.to_bytes(4, "little") + bytes(4)
        interrupted = 0
        for i in range(50):
            c = vsock()
            # Python takes EINTR for a connect that goes on, which one of AF_VSOCK does not.
            while libc.connect(c.fileno(), address, 16) != 0:
                assert ctypes.get_errno() == errno.EINTR, ctypes.get_errno()
                interrupted += 1
                assert interrupted < 5000
                c.close()
                c = vsock()
            assert c.getpeername() == (LOCAL, PORT)
            c.sendall(b"x")
            # A connect that a signal ended may have left a connection that is closed.
            while True:
                a, peer = s.accept()
                assert a.getpeername() == peer and s.getsockname() == (ANY, PORT)
                if a.recv(1) == b"x":
                    break
            a.close()
            c.close()
    finally:
        stop.set()
        thread.join()


def children():
    """Many processes that use sockets at once, and more than the test's share is refused, not served."""
    s = listener()
    pids = []
    for i in range(40):
        if (pid := os.fork()) == 0:
            exchange(dial(), b"%d" % i)
            os._exit(0)
        pids.append(pid)
    server = echo_server(s, 40)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    server.join()


def eventually(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "this never happens"
        time.sleep(0.01)


def killed():
    """Processes that are killed in calls, or end with sockets, leave nothing in `hvsock run`."""
    run = os.getppid()

    def descriptors():
        return len(os.listdir(f"/proc/{run}/fd"))

    def many(call):
        pids = []
        for i in range(40):
            if (pid := os.fork()) == 0:
                try:
                    call(i)
                finally:
                    os._exit(0)
            pids.append(pid)
        return pids

    def end(pids):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)

    s = listener()
    before = descriptors()
    for _ in range(2000):
        vsock().close()
    waiting = many(lambda i: s.accept())
    full = listener(PORT + 1, 1)
    connecting = many(lambda i: (dial(PORT + 1), time.sleep(100)))
    listening = many(lambda i: (listener(PORT + 2 + i), time.sleep(100)))
    for i in range(40):
        eventually(lambda: number(lambda: dial(PORT + 2 + i).close()) is None)
    end(waiting + connecting + listening)
    full.close()
    for i in range(40):
        eventually(lambda: number(lambda: listener(PORT + 2 + i).close()) is None)
    eventually(lambda: descriptors() < before + 8)
    # A thread that calls while another one executes a program.
    for _ in range(10):
        if (pid := os.fork()) == 0:

            def churn():
                while True:
                    c = vsock()
                    c.settimeout(0.01)
                    number(c.connect, (LOCAL, PORT + 1))
                    c.close()

            for _ in range(3):
                threading.Thread(target=churn, daemon=True).start()
            time.sleep(0.02)
            os.execv("/bin/true", ["true"])
        assert os.waitpid(pid, 0)[1] == 0
    server = echo_server(s, 1)
    exchange(dial())
    server.join()
    eventually(lambda: descriptors() < before + 8)


def device():
    import fcntl

    with open("/dev/vsock", "rb") as file:
        cid = fcntl.ioctl(file, 0x7B9, bytes(4))
        print(int.from_bytes(cid, sys.byteorder) > 1)


def foreign():
    """All that a program can do with other sockets: the same output with and without us."""
    bad = ctypes.c_void_p(8)
    try:
        ours = vsock(), listener()
    except OSError:
        ours = socket.socketpair()
    families = [1, 2, 10, 16, 17, 34, 39, 41, 0, -1, 1000]
    for family in families:
        for kind in (1, 2, 3, 5, 1 | 0o4000, 1 | 0o2000000, 1 | 0x100, 15, -1):
            for protocol in (0, 1, 6, 40, 255, -1):
                if family == 34 and kind & 15 == 1:
                    continue
                ctypes.set_errno(0)
                fd = libc.socket(family, kind, protocol)
                print(family, kind, protocol, fd >= 0, ctypes.get_errno())
                if fd < 0:
                    continue
                buffer = ctypes.create_string_buffer(bytes(range(64)), 128)
                size = ctypes.c_uint32(128)
                calls = [
                    ("bind", buffer, 16), ("bind", bad, 16), ("bind", None, -1), ("connect", bad, 16),
                    ("listen", -1), ("listen", 5), ("shutdown", 2), ("shutdown", 77),
                    ("getsockname", buffer, ctypes.byref(size)), ("getsockname", bad, bad),
                    ("getpeername", buffer, ctypes.byref(size)),
                    ("getsockopt", 1, 39, buffer, ctypes.byref(size)), ("getsockopt", 40, 0, buffer, bad),
                    ("getsockopt", 1, 3, buffer, ctypes.byref(size)),
                    ("setsockopt", 1, 2, buffer, 4), ("setsockopt", 40, 6, buffer, 16), ("setsockopt", 1, 1, bad, 4),
                    ("ioctl", 0x7B9, buffer), ("ioctl", 0x5421, buffer), ("accept4", None, None, 0o4000 | 0x99),
                ]
                for name, *args in calls:
                    ctypes.set_errno(77)
                    done = getattr(libc, name)(fd, *args)
                    print(" ", name, done, ctypes.get_errno() if done < 0 else "")
                libc.close(fd)
    assert ours
    exchange_foreign()
    u = socket.socketpair()
    u[0].sendall(b"x")
    print(u[1].recv(1), u[1].getpeername(), number(open, "/dev/null/x"), os.path.exists("/proc"))
    for fd in -1, 9999:
        for name, *args in [("listen", 1), ("close",), ("shutdown", 2), ("ioctl", 0x7B9, bad)]:
            ctypes.set_errno(0)
            print(name, getattr(libc, name)(fd, *args), ctypes.get_errno())


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("done")
