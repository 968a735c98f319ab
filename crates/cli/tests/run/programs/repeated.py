"""Connects that follow one another: what is prepared for the next one fits it, or is not used."""
import errno, os, select, socket, threading

ANY, PORT, NOBODY = socket.VMADDR_CID_ANY, 26011, 26012


def serve(sock):
    while True:
        conn, _ = sock.accept()
        data = conn.recv(100)
        if data == b"end":
            return
        conn.sendall(data)
        conn.close()


def echo(sock, data):
    sock.sendall(data)
    assert sock.recv(100) == data
    assert sock.recv(100) == b""
    sock.close()


def blocking():
    sock = socket.socket(socket.AF_VSOCK)
    sock.connect((1, PORT))
    return sock


def nonblocking():
    sock = socket.socket(socket.AF_VSOCK)
    sock.setblocking(False)
    assert sock.connect_ex((1, PORT)) == errno.EINPROGRESS
    assert select.select([], [sock], [], 10)[1] == [sock]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    sock.setblocking(True)
    return sock


def refused():
    """The socket is as new afterwards."""
    sock = socket.socket(socket.AF_VSOCK)
    assert sock.connect_ex((1, NOBODY)) == errno.ECONNRESET
    sock.connect((1, PORT))
    return sock


def refused_later():
    sock = socket.socket(socket.AF_VSOCK)
    sock.setblocking(False)
    assert sock.connect_ex((1, NOBODY)) == errno.EINPROGRESS
    assert select.select([], [sock], [], 10)[1] == [sock]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    sock.close()
    return blocking()


def of_another_user():
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        echo(blocking(), b"child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return blocking()


server = socket.socket(socket.AF_VSOCK)
server.bind((ANY, PORT))
server.listen(128)
thread = threading.Thread(target=serve, args=(server,))
thread.start()
kinds = [blocking, nonblocking, refused, refused_later]
for first in kinds:
    for second in kinds:
        for number, kind in enumerate([first, first, first, second, second, second]):
            echo(kind(), b"%d" % number)
echo(of_another_user(), b"parent")
# Several at once: all but one do without.
sockets = [blocking() for _ in range(10)]
for sock in sockets:
    echo(sock, b"many")
blocking().sendall(b"end")
thread.join()
print("done")
