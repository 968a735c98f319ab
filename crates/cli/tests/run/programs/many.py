"""100 connects at once, accepted by four processes that share one socket."""
import os, socket, threading

ANY, PORT = socket.VMADDR_CID_ANY, 26005
sock = socket.socket(socket.AF_VSOCK)
sock.bind((ANY, PORT))
sock.listen(128)
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        while True:
            conn, _ = sock.accept()
            data = conn.recv(100)
            if data == b"end":
                os._exit(0)
            conn.sendall(data)
            conn.close()
    children.append(child)
results = []


def dial(number):
    client = socket.socket(socket.AF_VSOCK)
    client.settimeout(20)
    client.connect((1, PORT))
    text = b"%d" % number
    client.sendall(text)
    results.append(client.recv(100) == text)
    client.close()


threads = [threading.Thread(target=dial, args=(number,)) for number in range(100)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert results == [True] * 100, results.count(False)
for _ in children:
    client = socket.socket(socket.AF_VSOCK)
    client.connect((1, PORT))
    client.sendall(b"end")
    client.recv(1)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
print("done")
