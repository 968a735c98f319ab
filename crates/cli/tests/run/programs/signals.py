"""Signals, timeouts and kills in calls that wait."""
import ctypes, os, signal, socket, threading, time

ANY, PORT = socket.VMADDR_CID_ANY, 26003
sock = socket.socket(socket.AF_VSOCK)
sock.bind((ANY, PORT))
sock.listen(1)

# A handler runs while accept waits, again and again, and accept goes on.
count = 0


def tick(*_):
    global count
    count += 1
    if count == 5:
        threading.Thread(target=knock).start()


def knock():
    client = socket.socket(socket.AF_VSOCK)
    client.connect((1, PORT))
    client.close()


signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
sock.accept()[0].close()
signal.setitimer(signal.ITIMER_REAL, 0)
assert count >= 5, count


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    sock.accept()
    raise SystemExit("accept was not interrupted")
except Interrupted:
    pass


# SO_RCVTIMEO ends a blocking accept.
def receive_timeout(micros):
    # Python takes options of AF_VSOCK as numbers of 64 bits only.
    value = (ctypes.c_int64 * 2)(0, micros)
    option = (sock.fileno(), socket.SOL_SOCKET, socket.SO_RCVTIMEO)
    assert ctypes.CDLL(None).setsockopt(*option, value, 16) == 0


receive_timeout(50_000)
try:
    sock.accept()
    raise SystemExit("accept did not time out")
except BlockingIOError:
    pass
receive_timeout(0)

# A child that is killed while it waits takes no connection with it.
child = os.fork()
if child == 0:
    sock.accept()
    os._exit(1)
time.sleep(0.1)
os.kill(child, signal.SIGKILL)
assert os.waitpid(child, 0)[1] == signal.SIGKILL
thread = threading.Thread(target=knock)
thread.start()
sock.accept()[0].close()
thread.join()
print("done")
