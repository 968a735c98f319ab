"""The supervisor is killed: calls that wait and later ones fail, connections go on."""
import os, signal, socket, threading

ANY, PORT = socket.VMADDR_CID_ANY, 26006
sock = socket.socket(socket.AF_VSOCK)
sock.bind((ANY, PORT))
sock.listen(1)
client = socket.socket(socket.AF_VSOCK)
client.connect((1, PORT))
conn, _ = sock.accept()
threading.Timer(0.1, os.kill, (os.getppid(), signal.SIGKILL)).start()
for call in (sock.accept, lambda: socket.socket(socket.AF_VSOCK)):
    try:
        call()
        print("no error", flush=True)
    except OSError as error:
        assert error.errno == 38, error
conn.sendall(b"still here")
assert client.recv(100) == b"still here"
print("done", flush=True)
