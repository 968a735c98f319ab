"""Every way to wait for a connect, and both ways to end."""
import asyncio, select, socket, threading

HOST = socket.VMADDR_CID_ANY
PORT = 26001


def listener(port):
    sock = socket.socket(socket.AF_VSOCK)
    sock.bind((HOST, port))
    sock.listen(128)
    return sock


def serve(sock, count):
    for _ in range(count):
        conn, peer = sock.accept()
        assert peer == conn.getpeername(), peer
        assert conn.getsockname()[1] == PORT
        data = b""
        while chunk := conn.recv(4096):
            data += chunk
        conn.sendall(data.upper())
        conn.close()


def exchange(sock):
    assert sock.getpeername() == (1, PORT)
    assert sock.family == socket.AF_VSOCK
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_VSOCK
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(100) == b"HELLO"
    assert sock.recv(100) == b""
    sock.close()


server = listener(PORT)
assert server.getsockname() == (HOST, PORT)
thread = threading.Thread(target=serve, args=(server, 5))
thread.start()

sock = socket.socket(socket.AF_VSOCK)
sock.connect((1, PORT))
exchange(sock)

sock = socket.socket(socket.AF_VSOCK)
sock.settimeout(5)
sock.connect((1, PORT))
exchange(sock)

# Watched before it is connected, edge-triggered.
sock = socket.socket(socket.AF_VSOCK)
sock.setblocking(False)
epoll = select.epoll()
epoll.register(sock, select.EPOLLOUT | select.EPOLLET)
epoll.poll(0)
assert sock.connect_ex((1, PORT)) == 115
assert [events & select.EPOLLOUT for _, events in epoll.poll(5)] == [select.EPOLLOUT]
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
assert sock.connect_ex((1, PORT)) == 106
sock.setblocking(True)
exchange(sock)

sock = socket.socket(socket.AF_VSOCK)
sock.setblocking(False)
assert sock.connect_ex((1, PORT)) == 115
_, writable, _ = select.select([], [sock], [], 5)
assert writable == [sock]
sock.setblocking(True)
exchange(sock)


async def connect():
    sock = socket.socket(socket.AF_VSOCK)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (1, PORT))
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(b"hello")
    writer.write_eof()
    assert await reader.read() == b"HELLO"
    writer.close()


asyncio.run(connect())
thread.join()
print("done")
