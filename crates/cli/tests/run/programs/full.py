"""A backlog that nothing is accepted from is full, as in a kernel."""
import errno, os, select, socket, time

ANY, PORT = socket.VMADDR_CID_ANY, 26013
listener = socket.socket(socket.AF_VSOCK)
listener.bind((ANY, PORT))
listener.listen(1)


def connect():
    client = socket.socket(socket.AF_VSOCK)
    return client, client.connect_ex((1, PORT))


waiting = [connect() for _ in range(2)]
assert [error for _, error in waiting] == [0, 0], waiting
for _ in range(3):
    assert connect()[1] == errno.ECONNRESET
started = time.monotonic()
# Only the first one waits for an accept.
assert connect()[1] == errno.ECONNRESET
assert time.monotonic() - started < 1
with socket.socket(socket.AF_VSOCK) as client:
    client.setblocking(False)
    assert client.connect_ex((1, PORT)) == errno.EINPROGRESS
    select.select([], [client], [])
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
# With space again it connects.
listener.accept()[0].close()
assert connect()[1] == 0
print("done", flush=True)
