"""AF_HYPERV by the C library's functions: addresses of 36 bytes, for which Python has no form here."""
import ctypes, errno, os, socket, struct, uuid

LIBC = ctypes.CDLL(None, use_errno=True)
SERVICE = uuid.UUID("999e53d4-3d5c-4c3e-8779-bed06ec056e1")
WILDCARD = uuid.UUID(int=0)
LOOPBACK = uuid.UUID("e0e16197-dd56-4a10-9195-5ee7a155a838")
BROADCAST = uuid.UUID(int=(1 << 128) - 1)


def address(vm, service=SERVICE, family=34, reserved=0):
    return struct.pack("<HH", family, reserved) + vm.bytes_le + service.bytes_le


def error(result):
    return errno.errorcode[ctypes.get_errno()] if result < 0 else None


def hyperv():
    return LIBC.socket(34, socket.SOCK_STREAM, 1)


def name(function, fd, space=64):
    buffer, length = ctypes.create_string_buffer(64), ctypes.c_uint32(space)
    if failed := error(function(fd, buffer, ctypes.byref(length))):
        return failed
    return buffer.raw[: min(space, length.value)], length.value


server = hyperv()
assert name(LIBC.getsockname, server) == "EINVAL"
assert error(LIBC.bind(server, address(WILDCARD, family=40), 36)) == "EAFNOSUPPORT"
assert error(LIBC.bind(server, address(WILDCARD), 35)) == "EINVAL"
assert error(LIBC.bind(server, address(WILDCARD, reserved=2), 36)) == "EINVAL"
assert error(LIBC.bind(server, ctypes.c_void_p(1), 36)) == "EFAULT"
assert LIBC.bind(server, address(WILDCARD), 36) == 0
assert error(LIBC.bind(server, address(WILDCARD), 36)) == "EINVAL"
assert LIBC.listen(server, 5) == 0
assert name(LIBC.getsockname, server) == (address(WILDCARD), 36)
assert name(LIBC.getsockname, server, 4) == (address(WILDCARD)[:4], 36)

client = hyperv()
assert error(LIBC.connect(client, address(LOOPBACK, uuid.uuid4()), 36)) == "ECONNREFUSED"
assert error(LIBC.connect(client, address(BROADCAST), 36)) == "EADDRNOTAVAIL"
# HVSOCKET_CONNECT_TIMEOUT and HVSOCKET_CONNECTED_SUSPEND, at the level HV_PROTOCOL_RAW.
timeout = ctypes.c_uint32(5000)
assert LIBC.setsockopt(client, 1, 1, ctypes.byref(timeout), 4) == 0
assert LIBC.setsockopt(client, 1, 4, ctypes.byref(ctypes.c_uint32(1)), 4) == 0
timeout.value = 300_001
assert error(LIBC.setsockopt(client, 1, 1, ctypes.byref(timeout), 4)) == "EINVAL"
assert LIBC.connect(client, address(LOOPBACK), 36) == 0
assert name(LIBC.getpeername, client) == (address(LOOPBACK), 36)

buffer, length = ctypes.create_string_buffer(64), ctypes.c_uint32(64)
conn = LIBC.accept4(server, buffer, ctypes.byref(length), os.O_CLOEXEC)
assert conn >= 0 and length.value == 36
assert buffer.raw[:2] == b"\x22\0"
assert name(LIBC.getpeername, conn) == (buffer.raw[:36], 36)
assert not os.get_inheritable(conn) and os.get_blocking(conn)
os.write(client, b"hello")
assert os.read(conn, 10) == b"hello"
os.close(client)
assert os.read(conn, 10) == b""
# A listener that is closed accepts no more, from wherever it did.
for _ in range(20):
    listener, client = hyperv(), hyperv()
    assert LIBC.bind(listener, address(WILDCARD, closed := uuid.uuid4()), 36) == 0
    assert LIBC.listen(listener, 5) == 0
    os.close(listener)
    assert error(LIBC.connect(client, address(LOOPBACK, closed), 36)) == "ECONNREFUSED"
    os.close(client)
print("done")
