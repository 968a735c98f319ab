//! The programs in Python, as a person writes them for `AF_VSOCK`.

/// Sends with blocking calls of one thread, and receives with those of another.
pub const BLOCKING_CLIENT: &str = "\
import socket, sys, threading
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.connect((int(sys.argv[1]), int(sys.argv[2])))
def send():
    s.sendall(sys.stdin.buffer.read())
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
while data := s.recv(65536): sys.stdout.buffer.write(data)
";

/// One thread for each connection.
pub const BLOCKING_SERVER: &str = "\
import socket, sys, threading
l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
l.listen()
def serve(c):
    with c:
        while data := c.recv(65536): c.sendall(data)
while True:
    c, _ = l.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
";

/// A timeout makes Python's sockets non-blocking, so that it polls before each call.
pub const TIMEOUT_CLIENT: &str = "\
import socket, sys, threading
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.settimeout(30)
s.connect((int(sys.argv[1]), int(sys.argv[2])))
def send():
    s.sendall(sys.stdin.buffer.read())
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
while data := s.recv(65536): sys.stdout.buffer.write(data)
";

/// A loop of `selectors` with one connection after the other.
pub const TIMEOUT_SERVER: &str = "\
import socket, sys
l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
l.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
l.listen()
l.settimeout(1)
while True:
    try: c, _ = l.accept()
    except TimeoutError: continue
    c.settimeout(30)
    with c:
        while data := c.recv(65536): c.sendall(data)
";

/// An event loop: the connect is non-blocking, and epoll says when it is done.
pub const ASYNCIO_CLIENT: &str = "\
import asyncio, socket, sys
async def main():
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.setblocking(False)
    await asyncio.get_running_loop().sock_connect(s, (int(sys.argv[1]), int(sys.argv[2])))
    reader, writer = await asyncio.open_connection(sock=s)
    data = sys.stdin.buffer.read()
    async def send():
        writer.write(data)
        await writer.drain()
        writer.write_eof()
    sending = asyncio.create_task(send())
    while data_in := await reader.read(65536): sys.stdout.buffer.write(data_in)
    await sending
asyncio.run(main())
";

/// A server of asyncio with a listening socket of its own.
pub const ASYNCIO_SERVER: &str = "\
import asyncio, socket, sys
async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    l.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
    l.listen()
    server = await asyncio.start_server(serve, sock=l)
    await server.serve_forever()
asyncio.run(main())
";
