"""A server to which nobody comes. It ends with its input, and its port is free when a child closes it, too."""
import os, select, socket, sys


def listen():
    sock = socket.socket(socket.AF_VSOCK)
    sock.bind((socket.VMADDR_CID_ANY, 26013))
    sock.listen(1)
    return sock


sock = listen()
print("listens", flush=True)
readable, _, _ = select.select([sock, sys.stdin], [], [])
assert readable == [sys.stdin]
sock.close()
listen()
print("done")
