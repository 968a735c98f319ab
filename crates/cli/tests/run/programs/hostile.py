"""Random calls with random arguments, from several threads, on emulated and other sockets."""
import ctypes, os, random, struct, sys, threading, time

LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = {
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "getsockname": 51,
    "getpeername": 52, "setsockopt": 54, "getsockopt": 55, "accept4": 288, "ioctl": 16, "close": 3,
    "shutdown": 48, "dup": 32, "fcntl": 72,
}
MEMORY = ctypes.create_string_buffer(1 << 20)
# Wrong lengths write around it.
BASE = ctypes.addressof(MEMORY) + (1 << 19)
DESCRIPTORS = []
SECONDS, SEED = 1.5, int(sys.argv[1]) if len(sys.argv) > 1 else 7


def word(value):
    return ctypes.c_uint64(value & (1 << 64) - 1)


def work(seed):
    rnd = random.Random(seed)
    pointers = [0, 1, BASE, BASE + 5, (1 << 64) - 1, 1 << 47, 0xFFFFFFFF81000000]
    numbers = [0, 1, 2, 4, 16, 36, 40, 34, 128, 129, -1, (1 << 31) - 1, -(1 << 31), 0x7B9]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        name = rnd.choice(list(CALLS))
        if name == "socket":
            kind = rnd.choice([1, 1 | 0o4000, 2, 5, 1 | 0o2000000])
            made = LIBC.syscall(CALLS[name], rnd.choice([40, 40, 34, 1]), kind, rnd.choice([0, 1, 40, 7]))
            if made >= 0:
                DESCRIPTORS.append(made)
            continue
        fd = rnd.choice(DESCRIPTORS or [0]) if rnd.random() < 0.95 else rnd.choice(numbers)
        if name == "close":
            if rnd.random() < 0.2 and len(DESCRIPTORS) > 20:
                LIBC.syscall(CALLS[name], DESCRIPTORS.pop(rnd.randrange(len(DESCRIPTORS))))
            continue
        if name == "fcntl" or name.startswith("accept"):
            # A blocking accept would wait for ever.
            LIBC.syscall(CALLS["fcntl"], fd, 4, 0o4000)
            if name == "fcntl":
                continue
        pointer, length = rnd.choice(pointers), rnd.choice(numbers)
        if rnd.random() < 0.6:
            family, cid = rnd.choice([40, 40, 34, 2]), rnd.choice([1, 2, 0xFFFFFFFF, 99])
            port = rnd.choice([27000, 27001, 27002, 0xFFFFFFFF, 80])
            address = struct.pack("HHIIB3x", family, 0, port, cid, rnd.choice([0, 0, 1, 9]))
            ctypes.memmove(BASE, address, 16)
            pointer, length = BASE, 16
        if name in ("connect", "bind"):
            LIBC.syscall(CALLS[name], fd, word(pointer), word(length))
        elif name in ("getsockopt", "setsockopt"):
            level, option = rnd.choice([40, 1]), rnd.choice([0, 1, 2, 6, 8, 4, 38, 39, 99])
            LIBC.syscall(CALLS[name], fd, level, option, word(pointer), word(rnd.choice(pointers)))
        elif name == "ioctl":
            LIBC.syscall(CALLS[name], fd, 0x7B9, word(pointer))
        elif name == "listen":
            LIBC.syscall(CALLS[name], fd, rnd.choice(numbers))
        else:
            made = LIBC.syscall(CALLS[name], fd, word(pointer), word(rnd.choice(pointers)), 0)
            if made >= 0 and (name == "dup" or name.startswith("accept")):
                DESCRIPTORS.append(made)


for number in range(4):
    threading.Thread(target=work, args=(SEED + number,), daemon=True).start()
time.sleep(SECONDS + 0.2)
# A child that ends in the middle of calls takes nobody with it.
if os.fork() == 0:
    os._exit(0)
os.wait()
print("done", flush=True)
os._exit(0)
