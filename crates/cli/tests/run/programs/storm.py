"""Connects of many processes at once to a small backlog, each a few times, which one thread accepts."""
import collections, os, select, socket, threading

ANY, PORT, PROCESSES, TIMES = socket.VMADDR_CID_ANY, 26012, 40, 4
LISTENER = socket.socket(socket.AF_VSOCK)
LISTENER.bind((ANY, PORT))
LISTENER.listen(2)


def blocking():
    return socket.socket(socket.AF_VSOCK).connect_ex((1, PORT))


def nonblocking():
    with socket.socket(socket.AF_VSOCK) as client:
        client.setblocking(False)
        client.connect_ex((1, PORT))
        select.select([], [client], [])
        return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def storm(connect):
    """The errors of all connects."""
    start, (results, output) = os.pipe(), os.pipe()
    for _ in range(PROCESSES):
        if os.fork() == 0:
            os.close(start[1])
            os.read(start[0], 1)
            errors = bytes(connect() for _ in range(TIMES))
            os.write(output, errors)
            os._exit(0)
    os.close(output)
    os.close(start[1])
    with open(results, "rb") as results:
        return collections.Counter(results.read())


def accept():
    while True:
        LISTENER.accept()[0].close()


threading.Thread(target=accept, daemon=True).start()
for connect in blocking, nonblocking:
    errors = storm(connect)
    assert errors == {0: PROCESSES * TIMES}, (connect.__name__, errors)
print("done", flush=True)
os._exit(0)
