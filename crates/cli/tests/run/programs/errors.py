"""The error numbers of the kernel's af_vsock."""
import errno, select, socket

ANY = socket.VMADDR_CID_ANY


def error(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


def vsock():
    return socket.socket(socket.AF_VSOCK)


for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    assert error(socket.socket, socket.AF_VSOCK, kind) == "ESOCKTNOSUPPORT"
assert error(socket.socket, socket.AF_VSOCK, socket.SOCK_STREAM, 6) == "EPROTONOSUPPORT"
sock = vsock()
assert sock.getsockname() == (ANY, ANY)
assert error(sock.getpeername) == "ENOTCONN"
assert error(sock.listen, 1) == "EINVAL"
assert error(sock.accept) == "EINVAL"
assert error(sock.bind, (77, 5000)) == "EADDRNOTAVAIL"
assert error(sock.connect, (1, 26999)) == "ECONNRESET"
assert error(sock.connect, (99, 26999)) == "ENODEV"
# A socket whose connect has failed can be used.
sock.bind((ANY, 26002))
assert error(sock.bind, (ANY, 26003)) == "EINVAL"
other = vsock()
assert error(other.bind, (ANY, 26002)) == "EADDRINUSE"
assert error(other.bind, (2, 26002)) == "EADDRINUSE"
other.bind((ANY, ANY))
assert other.getsockname()[1] >= 1024
sock.listen(1)
assert error(sock.connect, (1, 26002)) == "EINVAL"
sock.setblocking(False)
assert error(sock.accept) == "EAGAIN"

client = vsock()
client.connect((1, 26002))
assert error(client.connect, (1, 26002)) == "EISCONN"
assert error(client.listen, 1) == "EINVAL"

refused = vsock()
refused.setblocking(False)
result = error(refused.connect, (1, 26999))
if result == "EINPROGRESS":
    poll = select.poll()
    poll.register(refused, select.POLLOUT)
    assert poll.poll(5000)
    number = refused.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert errno.errorcode[number] == "ECONNRESET", number
    assert refused.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    # It can be used again.
    assert error(refused.connect, (1, 26002)) == "EINPROGRESS"
    poll = select.poll()
    poll.register(refused, select.POLLOUT)
    assert poll.poll(5000) == [(refused.fileno(), select.POLLOUT)]
    assert refused.getpeername() == (1, 26002)
else:
    assert result == "ECONNRESET", result

# 34 is the family of Hyper-V sockets, for which Python has no addresses here.
hyperv = socket.socket(34, socket.SOCK_STREAM, 1)
assert hyperv.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == 34
assert hyperv.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == 1
assert error(socket.socket, 34, socket.SOCK_STREAM, 2) == "EPROTONOSUPPORT"

client.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, 4096)
assert client.getsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE) == 4096
assert error(client.getsockopt, socket.AF_VSOCK, 99) == "ENOPROTOOPT"
print("done")
