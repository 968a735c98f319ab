"""A full close is a hang-up at the other end, a half-close is not, and nothing that was written is lost."""
import select, socket

ANY, PORT = socket.VMADDR_CID_ANY, 26007
server = socket.socket(socket.AF_VSOCK)
server.bind((ANY, PORT))
server.listen(8)


def pair():
    client = socket.socket(socket.AF_VSOCK)
    client.connect((1, PORT))
    return client, server.accept()[0]


def wait_for(sock, events):
    poll = select.poll()
    poll.register(sock, events)
    return poll.poll(5000)[0][1]


for swap in (False, True):
    one, other = pair()
    if swap:
        one, other = other, one
    one.shutdown(socket.SHUT_WR)
    seen = wait_for(other, select.POLLRDHUP)
    assert seen & select.POLLRDHUP and not seen & select.POLLHUP, seen
    other.sendall(b"x" * 100_000)
    other.close()
    got = b""
    while chunk := one.recv(65536):
        got += chunk
    assert got == b"x" * 100_000
    seen = wait_for(one, 0)
    assert seen & select.POLLHUP, seen
    one.close()

    one, other = pair()
    if swap:
        one, other = other, one
    one.sendall(b"last words")
    one.close()
    assert wait_for(other, 0) & select.POLLHUP
    assert other.recv(100) == b"last words"
    assert other.recv(100) == b""
    try:
        for _ in range(100):
            other.sendall(b"to nobody")
        raise SystemExit("writing to a closed connection")
    except (BrokenPipeError, ConnectionResetError):
        pass
print("done")
