/* Connecting: to the listener's TCP port, or to a closed port. The latter fails like any TCP connect, so that
 * select, AFD and SO_ERROR all report it. */
#include "shim.h"
#include <stdlib.h>
#include <string.h>

/* A connect with a delay. */
typedef struct {
    SOCKET socket;
    DWORD serial, delay;
    hv_address to;
    int error;
} delayed;

/* A TCP port that is bound and never listens. */
static USHORT closed_port(void) {
    static USHORT port; /* guarded by the records' lock */
    struct sockaddr_in address = loopback_at(0);
    int length = sizeof address;
    SOCKET socket;
    if (port)
        return port;
    socket = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_NO_HANDLE_INHERIT);
    if (socket != INVALID_SOCKET && !bind(socket, (struct sockaddr *)&address, sizeof address) &&
        !getsockname(socket, (struct sockaddr *)&address, &length))
        port = ntohs(address.sin_port); /* reserved: the socket stays open */
    return port;
}

/* Needs the lock. Sets `port` to the TCP port to connect to, or returns an error number. */
static int prepare(record *r, const hv_address *to, int error, USHORT *port) {
    struct sockaddr_in own = loopback_at(0);
    int length = sizeof own;
    verdict v = {0};
    if (!r->bound)
        r->own.service = new_service();
    r->own.family = FAMILY;
    v = world_find(to, &r->own.service);
    if (error) {
        v.error = error;
        v.immediate = FALSE;
    }
    if (v.error && v.immediate)
        return v.error;
    /* The listener finds the connection by this TCP port. A bound socket has one already. */
    if (!r->port) {
        if (bind(r->socket, (struct sockaddr *)&own, sizeof own) ||
            getsockname(r->socket, (struct sockaddr *)&own, &length))
            return WSAENOBUFS;
        r->port = ntohs(own.sin_port);
    }
    if (v.error) {
        r->error = v.error;
        *port = closed_port();
        return *port ? 0 : WSAENOBUFS;
    }
    r->slot = world_announce(r->port, v.port, &v.caller);
    if (r->slot < 0)
        return WSAENOBUFS;
    r->side = 0;
    start_watcher();
    r->peer = *to;
    r->has_peer = TRUE;
    if (!r->bound)
        r->own.vm = v.caller.vm;
    *port = v.port;
    return 0;
}

static BOOL is_connected(SOCKET socket) {
    struct sockaddr_in peer;
    int length = sizeof peer;
    return getpeername(socket, (struct sockaddr *)&peer, &length) == 0;
}

/* Connects, or fails with `error` if it is not 0. */
static int connect_now(SOCKET socket, const hv_address *to, DWORD serial, int error) {
    struct sockaddr_in address;
    USHORT port = 0;
    BOOL nonblocking = FALSE;
    DWORD one = 1;
    int forced = 0, result;
    record *r;
    records_lock();
    r = record_of(socket);
    if (!r || r->serial != serial) {
        records_unlock();
        WSASetLastError(WSAENOTSOCK);
        return SOCKET_ERROR;
    }
    error = prepare(r, to, error, &port);
    if (error) {
        r->connecting = FALSE;
        records_unlock();
        WSASetLastError(error);
        return SOCKET_ERROR;
    }
    forced = r->error;
    nonblocking = r->nonblocking;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, (char *)&one, sizeof one);
    address = loopback_at(port);
    /* A nonblocking connect keeps the lock, or the handle could be reused meanwhile. */
    if (!nonblocking)
        records_unlock();
    result = connect(socket, (struct sockaddr *)&address, sizeof address);
    if (result && forced && WSAGetLastError() != WSAEWOULDBLOCK)
        WSASetLastError(forced);
    if (nonblocking)
        records_unlock();
    return result;
}

static DWORD WINAPI connect_later(void *argument) {
    delayed *h = argument;
    Sleep(h->delay);
    connect_now(h->socket, &h->to, h->serial, h->error);
    free(h);
    return 0;
}

int begin_connect(SOCKET socket, const hv_address *to) {
    BOOL is_delayed, nonblocking;
    DWORD delay = number_from_environment("HV_SHIM_DELAY", &is_delayed), timeout, serial;
    int error = 0;
    record *r;
    delayed *h;
    HANDLE thread;
    records_lock();
    r = record_of(socket);
    if (!r)
        error = WSAENOTSOCK;
    else if (r->listening)
        error = WSAEINVAL;
    else if (r->connecting)
        error = is_connected(socket) ? WSAEISCONN : WSAEALREADY;
    if (error) {
        records_unlock();
        WSASetLastError(error);
        return SOCKET_ERROR;
    }
    r->connecting = TRUE;
    serial = r->serial;
    nonblocking = r->nonblocking;
    timeout = r->options[CONNECT_TIMEOUT];
    records_unlock();
    if (!is_delayed)
        return connect_now(socket, to, serial, 0);
    if (delay > timeout) {
        delay = timeout;
        error = WSAETIMEDOUT;
    }
    if (!nonblocking) {
        Sleep(delay);
        return connect_now(socket, to, serial, error);
    }
    h = malloc(sizeof *h);
    if (h) {
        h->socket = socket;
        h->serial = serial;
        h->delay = delay;
        h->to = *to;
        h->error = error;
        thread = CreateThread(NULL, 64 << 10, connect_later, h, 0, NULL);
        if (thread) {
            CloseHandle(thread);
            WSASetLastError(WSAEWOULDBLOCK);
            return SOCKET_ERROR;
        }
        free(h);
    }
    WSASetLastError(WSAENOBUFS);
    return SOCKET_ERROR;
}
