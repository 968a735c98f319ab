#!/usr/bin/env python3
"""Measures streams of the Python package beside the Rust library's, in alternating turns.

    python3 bench/python/stream.py [--turns N] [--size BYTES] [--mib N]

It needs a broker in which this user may register services, and the accelerator. Each turn moves data from one process
to another over a new connection. The lanes are `rust` (the Rust library, in a loop without Python), `into` (`sendall`
and `recv_into`), `recv` (`sendall` and `recv`), `main` (as `into`, on the main threads, where a wait ends every 100 ms for
signal handlers) and `pure` (the package without the accelerator). The result is the
median rate of each lane, and of its ratio to the turn of `rust` before it.
"""

import argparse
import os
import statistics
import sys
import threading
import time
import uuid

import hvsock

NAME = "hvsock python bench"
LANES = ("rust", "into", "recv", "main", "pure")


def on_thread(lane, function, *arguments):
    """Runs a function on a thread of its own, or for the lane `main` on this one."""
    if lane == "main":
        return function(*arguments)
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)))
    thread.start()
    thread.join()
    return results[0]


def receive(lane, sock, size):
    """Reads to the end. Returns the number of bytes and the seconds from the first one on."""
    if lane == "rust":
        return sock._stream.receive_all(size)
    count = len(sock.recv(1))
    start = time.perf_counter()
    if lane == "recv":
        while chunk := sock.recv(size):
            count += len(chunk)
    else:
        buffer = bytearray(size)
        while read := sock.recv_into(buffer):
            count += read
    return count, time.perf_counter() - start


def send(lane, address, size, times):
    with hvsock.connect(address, shared_memory=lane != "pure") as sock:
        data = os.urandom(size)
        if lane == "rust":
            sock._stream.send_repeatedly(data, times)
            return
        for _ in range(times):
            sock.sendall(data)


def turn(lane, name, size, times):
    """One turn. Returns bytes per second."""
    with hvsock.create_server(("any", name), shared_memory=lane != "pure") as listener:
        child = os.fork()
        if child == 0:
            try:
                on_thread(lane, send, lane, ("loopback", name), size, times)
            finally:
                sys.stdout.flush()
                os._exit(0)
        sock, _ = listener.accept()
        with sock:
            count, seconds = on_thread(lane, receive, lane, sock, size)
        os.waitpid(child, 0)
    assert count == size * times, (lane, count)
    return count / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--lanes", default=",".join(LANES))
    arguments = parser.parse_args()
    if hvsock.implementation() != "accelerator":
        sys.exit("stream.py: the accelerator is not installed")
    times = (arguments.mib << 20) // arguments.size
    rates, ratios = {}, {}
    for number in range(arguments.turns):
        base = None
        for lane in arguments.lanes.split(","):
            # A name of its own: the broker may still have the listener of the turn before.
            name = f"{NAME} {number} {lane}"
            with hvsock.register(name, uuid.uuid4()):
                rate = turn(lane, name, arguments.size, times)
            base = rate if lane == "rust" else base
            rates.setdefault(lane, []).append(rate)
            if base:
                ratios.setdefault(lane, []).append(rate / base)
    print(f"{arguments.turns} turns of {arguments.mib} MiB in messages of {arguments.size} bytes")
    for lane, all_rates in rates.items():
        few, many = (statistics.quantiles(ratios[lane], n=4)[at] for at in (0, 2))
        ratio = statistics.median(ratios[lane])
        print(f"{lane:5} {statistics.median(all_rates) / 1e9:6.2f} GB/s   {ratio:5.2f} of rust ({few:.2f} to {many:.2f})")


if __name__ == "__main__":
    main()
