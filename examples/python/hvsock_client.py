#!/usr/bin/env python3
"""A client of hvsock's endpoint protocol (docs/endpoint.md) with the standard library only.

hvsock_client.py listen  PARTITION SERVICE   echoes the data of each connection
hvsock_client.py connect PARTITION SERVICE   sends stdin, prints the reply
PARTITION is any, parent, loopback, a GUID or a name; SERVICE is a port, a GUID or a name.
"""
import os, socket, struct, sys, threading, uuid

LOOKUP, CONNECT, LISTEN, ACCEPTED, SHUTDOWN = 1, 3, 4, 6, 7
FOUND, CONNECTED, LISTENING, INCOMING, REFUSED, ENDED, RESET = 0x81, 0x82, 0x83, 0x85, 0x86, 0x87, 0x88
WORDS = {"any": uuid.UUID(int=0), "parent": uuid.UUID("a42e7cda-d03f-480c-9cc2-a4de20abb878"),
         "loopback": uuid.UUID("e0e16197-dd56-4a10-9195-5ee7a155a838")}

class Endpoint:
    """An endpoint connection, or the control descriptor of an accepted connection."""
    def __init__(self, sock=None):
        self.sock = sock or socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if sock is None:
            self.sock.connect(os.environ.get("HVSOCK_ENDPOINT", "/run/hvsock/endpoint"))
    def send(self, kind, body=b""):
        self.sock.send(struct.pack("<BBH", 1, kind, 0) + body)
    def receive(self, wanted):
        data, fds, _, _ = socket.recv_fds(self.sock, 4096, 2, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise ConnectionResetError("the broker closed the connection")
        if data[1] in (REFUSED, RESET):
            code, errno = struct.unpack_from("<II", data, 4)
            raise OSError(errno, f"{os.strerror(errno)} (refusal {code}) {data[12:].decode()}")
        assert data[:2] == bytes([1, wanted]), f"message {data[:2].hex()} is unexpected"
        return data, [socket.socket(fileno=fd) for fd in fds]
    def guid(self, text, what):
        try:
            return uuid.UUID(text).bytes_le
        except ValueError:
            self.send(LOOKUP, struct.pack("<I", what) + text.encode())
            return self.receive(FOUND)[0][4:20]
    def request(self, kind, number, partition, service):
        vm = WORDS[partition].bytes_le if partition in WORDS else self.guid(partition, 2)
        if service.isdigit():
            service = f"{int(service):08x}-facb-11e6-bd58-64006a7986d3"
        self.send(kind, struct.pack("<II", number, 1) + vm + self.guid(service, 1))

def chunks(data, control):
    """The peer's data until its half-close. End of file without ENDED is an error: the peer died."""
    while chunk := data.recv(65536):
        yield chunk
    control.receive(ENDED)

def send_all(source, data, control):
    for chunk in source:
        data.sendall(chunk)
    control.send(SHUTDOWN)  # before the end of file, or the peer sees a reset
    data.shutdown(socket.SHUT_WR)

def listen(*address):
    listener = Endpoint()
    listener.request(LISTEN, 128, *address)
    listener.receive(LISTENING)
    print("listening", flush=True)
    while True:
        message, (data, control) = listener.receive(INCOMING)
        listener.send(ACCEPTED, message[8:16])
        peer = data, Endpoint(control)
        threading.Thread(target=send_all, args=(chunks(*peer), *peer), daemon=True).start()

def connect(*address):
    control = Endpoint()
    control.request(CONNECT, 2000, *address)
    [data] = control.receive(CONNECTED)[1]
    stdin = iter(lambda: sys.stdin.buffer.read1(65536), b"")
    threading.Thread(target=send_all, args=(stdin, data, control), daemon=True).start()
    for chunk in chunks(data, control):
        sys.stdout.buffer.write(chunk), sys.stdout.flush()

if __name__ == "__main__":
    try:
        {"listen": listen, "connect": connect}[sys.argv[1]](*sys.argv[2:4])
    except OSError as error:
        sys.exit(f"hvsock_client: {error}")
