"""Sockets of other families, and descriptors that are no sockets, are the kernel's."""
import errno, fcntl, os, socket, sys, tempfile

server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
conn, peer = server.accept()
assert peer == client.getsockname() and client.getpeername() == server.getsockname()
assert client.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
client.setsockopt(socket.SOL_SOCKET, 1, 0)

path = os.path.join(tempfile.mkdtemp(), "s")
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
client = socket.socket(socket.AF_UNIX)
client.connect(path)
conn, _ = server.accept()
assert client.getpeername() == path == conn.getsockname()

for function, want in [
    (lambda: socket.socket(fileno=os.open("/dev/zero", os.O_RDWR)), errno.ENOTSOCK),
    (lambda: fcntl.ioctl(server, 0x7B9, b"1234"), errno.ENOTTY),
]:
    try:
        function()
        sys.exit("no error")
    except OSError as error:
        assert error.errno in (want, errno.EOPNOTSUPP, errno.EINVAL), error

with open("/dev/vsock") as device:
    cid = fcntl.ioctl(device, 0x7B9, bytes(4))
    assert int.from_bytes(cid, "little") == 2, cid
print("done")
