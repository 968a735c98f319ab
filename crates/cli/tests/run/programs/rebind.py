"""A port is free again, and connects to it fail, as soon as its socket is closed, by whichever process."""
import os, socket, sys

ANY, PORT = socket.VMADDR_CID_ANY, 26004


def listen():
    sock = socket.socket(socket.AF_VSOCK)
    sock.bind((ANY, PORT))
    sock.listen(1)
    return sock


for _ in range(20):
    listen().close()
for _ in range(50):
    listen().close()
    try:
        socket.socket(socket.AF_VSOCK).connect((1, PORT))
        sys.exit("a closed listener has a connection")
    except ConnectionResetError:
        pass
for _ in range(5):
    child = os.fork()
    if child == 0:
        listen()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
# A duplicate keeps it.
sock = listen()
copy = os.dup(sock.fileno())
sock.close()
try:
    listen()
    sys.exit("the port was free")
except OSError as error:
    assert error.errno == 98, error
os.close(copy)
listen().close()
print("done")
