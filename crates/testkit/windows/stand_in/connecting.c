/* A connect: to the TCP port of who listens, or to one at which nobody does, so that it fails when and
 * how TCP's does and select, AFD and SO_ERROR all know of it. */
#include "stand_in.h"
#include <stdlib.h>
#include <string.h>

/* A connect whose answer is held back. */
typedef struct {
    SOCKET socket;
    DWORD serial, wait;
    hv_address to;
    int error;
} held;

/* A TCP port at which nobody will ever listen. */
static USHORT closed_port(void) {
    static USHORT port; /* under the records' lock */
    struct sockaddr_in address = loopback_at(0);
    int length = sizeof address;
    SOCKET socket;
    if (port)
        return port;
    socket = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, WSA_FLAG_NO_HANDLE_INHERIT);
    if (socket != INVALID_SOCKET && !bind(socket, (struct sockaddr *)&address, sizeof address) &&
        !getsockname(socket, (struct sockaddr *)&address, &length))
        port = ntohs(address.sin_port); /* and the socket keeps it */
    return port;
}

/* With the lock held, what is to be done to the TCP socket; `port` 0 and an error if nothing is. */
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
        v.at_once = FALSE;
    }
    if (v.error && v.at_once)
        return v.error;
    /* One that was bound has TCP's port already, by which the listener finds its entry. */
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
    watch();
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

/* Fails with `error` if there is one. */
static int go(SOCKET socket, const hv_address *to, DWORD serial, int error) {
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
    /* Not without the lock where it does not wait: the handle might be another's by then. */
    if (!nonblocking)
        records_unlock();
    result = connect(socket, (struct sockaddr *)&address, sizeof address);
    if (result && forced && WSAGetLastError() != WSAEWOULDBLOCK)
        WSASetLastError(forced);
    if (nonblocking)
        records_unlock();
    return result;
}

static DWORD WINAPI answer_later(void *argument) {
    held *h = argument;
    Sleep(h->wait);
    go(h->socket, &h->to, h->serial, h->error);
    free(h);
    return 0;
}

int begin_connect(SOCKET socket, const hv_address *to) {
    BOOL is_held, nonblocking;
    DWORD delay = number_from_environment("HV_STAND_IN_DELAY", &is_held), timeout, serial;
    int error = 0;
    record *r;
    held *h;
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
    if (!is_held)
        return go(socket, to, serial, 0);
    if (delay > timeout) {
        delay = timeout;
        error = WSAETIMEDOUT;
    }
    if (!nonblocking) {
        Sleep(delay);
        return go(socket, to, serial, error);
    }
    h = malloc(sizeof *h);
    if (h) {
        h->socket = socket;
        h->serial = serial;
        h->wait = delay;
        h->to = *to;
        h->error = error;
        thread = CreateThread(NULL, 64 << 10, answer_later, h, 0, NULL);
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
