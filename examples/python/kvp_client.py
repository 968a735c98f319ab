#!/usr/bin/env python3
"""Exchanges key-value pairs with a guest by Google's gRPC for Python. It uses no code of hvsock.

    kvp_client.py SOCKET list POOL
    kvp_client.py SOCKET get POOL KEY
    kvp_client.py SOCKET set POOL KEY VALUE
    kvp_client.py SOCKET watch POOL KEY      prints values until the value is `last`

SOCKET is a Unix socket to the service, created by `hvsock forward` on the host:

    hvsock forward unix:/tmp/kvp.sock "web:service:hvsock kvp"

Generate the modules kvp_pb2 and kvp_pb2_grpc from the interface, as for any gRPC service:

    protoc -I crates/services/proto/hvsock --python_out=. --grpc_python_out=. \\
        --plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin kvp.proto
"""

import sys

import grpc

import kvp_pb2 as kvp
from kvp_pb2_grpc import KvpStub

POOLS = {
    "external": kvp.POOL_EXTERNAL,
    "guest": kvp.POOL_GUEST,
    "auto": kvp.POOL_AUTO,
    "auto-external": kvp.POOL_AUTO_EXTERNAL,
}
# Timeout of a call in seconds.
TIMEOUT = 30


def main(socket, verb, pool, key="", value=""):
    pool = POOLS[pool]
    # Without this option the library sends the path of the socket as the server's name.
    options = [("grpc.default_authority", "hvsock")]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        service = KvpStub(channel)
        if verb == "list":
            reply = service.List(kvp.ListRequest(pool=pool), timeout=TIMEOUT)
            for pair in reply.pairs:
                print(f"{pair.key}={pair.value}")
        elif verb == "get":
            reply = service.Get(kvp.GetRequest(pool=pool, key=key), timeout=TIMEOUT)
            print(reply.value)
        elif verb == "set":
            pair = kvp.Pair(key=key, value=value)
            service.Set(kvp.SetRequest(pool=pool, pairs=[pair]), timeout=TIMEOUT)
        elif verb == "watch":
            request = kvp.WatchRequest(pools=[pool], key=key)
            for event in service.Watch(request, timeout=TIMEOUT):
                kind = kvp.WatchEvent.Kind.Name(event.kind)
                print(kind, event.pair.value, flush=True)
                if event.pair.value == "last":
                    break
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
