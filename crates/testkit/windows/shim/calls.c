/* The Winsock calls that differ for AF_HYPERV sockets. Each forwards all other sockets to ws2_32.dll. */
#include "shim.h"
#include <string.h>

/* State passed to a duplicate of a socket, at the end of `szProtocol`, which no program reads. */
typedef struct {
    char magic[16];
    record original;
} duplicate_state;

static const char MAGIC[16] = "hvsock shim";
#define MAX_BACKLOG 200
#define DUPLICATE_STATE_AT (sizeof((WSAPROTOCOL_INFOW *)0)->szProtocol - sizeof(duplicate_state))
_Static_assert(sizeof(duplicate_state) < 400, "it fits behind the protocol's name");

static int fail(int error) {
    WSASetLastError(error);
    return SOCKET_ERROR;
}

/* Copies the socket's record. FALSE if it is not an AF_HYPERV socket. */
static BOOL copy_record(SOCKET socket, record *copy) {
    record *r;
    records_lock();
    r = record_of(socket);
    if (r)
        *copy = *r;
    records_unlock();
    return r != NULL;
}

static SOCKET new_socket(int type, int protocol, DWORD flags) {
    SOCKET socket;
    record *r;
    /* Assumed: which error belongs to which argument, from their description in Winsock. */
    if (type != SOCK_STREAM)
        return WSASetLastError(WSAESOCKTNOSUPPORT), INVALID_SOCKET;
    if (protocol != PROTOCOL)
        return WSASetLastError(WSAEPROTONOSUPPORT), INVALID_SOCKET;
    if (!world_open())
        return WSASetLastError(WSAENOBUFS), INVALID_SOCKET;
    socket = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL, 0, flags);
    if (socket == INVALID_SOCKET)
        return socket;
    records_lock();
    r = record_new(socket);
    records_unlock();
    if (r)
        return socket;
    closesocket(socket);
    return WSASetLastError(WSAEMFILE), INVALID_SOCKET;
}

SOCKET WSAAPI hv_socket(int family, int type, int protocol) {
    if (family != FAMILY)
        return socket(family, type, protocol);
    return new_socket(type, protocol, WSA_FLAG_OVERLAPPED);
}

SOCKET WSAAPI hv_WSASocketW(int family, int type, int protocol, WSAPROTOCOL_INFOW *info, GROUP group,
                            DWORD flags) {
    WSAPROTOCOL_INFOW tcp_info;
    duplicate_state old;
    SOCKET socket;
    record *r;
    if (!info)
        return family == FAMILY ? new_socket(type, protocol, flags)
                                : WSASocketW(family, type, protocol, NULL, group, flags);
    memcpy(&old, (char *)info->szProtocol + DUPLICATE_STATE_AT, sizeof old);
    if (memcmp(old.magic, MAGIC, sizeof MAGIC))
        return WSASocketW(family, type, protocol, info, group, flags);
    if (!world_open())
        return WSASetLastError(WSAENOBUFS), INVALID_SOCKET;
    tcp_info = *info;
    tcp_info.iAddressFamily = AF_INET;
    tcp_info.iProtocol = IPPROTO_TCP;
    socket = WSASocketW(AF_INET, SOCK_STREAM, IPPROTO_TCP, &tcp_info, group, flags);
    if (socket == INVALID_SOCKET)
        return socket;
    records_lock();
    r = record_new(socket);
    if (r) {
        old.original.socket = socket;
        old.original.serial = r->serial;
        *r = old.original;
        if (r->slot >= 0)
            world_share_side(r->slot, r->side);
        if (r->listener >= 0)
            world_share_listener(r->listener);
    }
    records_unlock();
    if (r)
        return socket;
    closesocket(socket);
    return WSASetLastError(WSAEMFILE), INVALID_SOCKET;
}

int WSAAPI hv_WSADuplicateSocketW(SOCKET socket, DWORD process, WSAPROTOCOL_INFOW *info) {
    duplicate_state new = {0};
    int result = WSADuplicateSocketW(socket, process, info);
    if (result || !copy_record(socket, &new.original))
        return result;
    memcpy(new.magic, MAGIC, sizeof MAGIC);
    memcpy((char *)info->szProtocol + DUPLICATE_STATE_AT, &new, sizeof new);
    info->iAddressFamily = FAMILY;
    info->iProtocol = PROTOCOL;
    return 0;
}

int WSAAPI hv_closesocket(SOCKET socket) {
    u_long unread = 0;
    record *r;
    int result;
    records_lock();
    r = record_of(socket);
    if (!r) {
        records_unlock();
        return closesocket(socket);
    }
    if (r->slot >= 0) {
        /* Assumed, because msafd does so: closing shuts down sending, and TCP resets if unread bytes are
         * left or the linger time is zero. */
        ioctlsocket(socket, FIONREAD, &unread);
        if (!unread && !r->reset_on_close && world_is_last(r->slot, r->side))
            world_end_side(r->slot, r->side);
    }
    result = closesocket(socket);
    if (r->slot >= 0)
        world_leave_side(r->slot, r->side);
    if (r->listener >= 0)
        world_leave_listener(r->listener);
    record_drop(socket);
    records_unlock();
    return result;
}

/* Reads an address argument. Returns 0 or an error number. */
static int read_address(const struct sockaddr *name, int length, hv_address *address) {
    if (!name || length < (int)sizeof *address)
        return WSAEFAULT;
    memcpy(address, name, sizeof *address);
    return address->family == FAMILY ? 0 : WSAEAFNOSUPPORT;
}

/* Returns an address to the caller. */
static int write_address(struct sockaddr *name, int *length, const hv_address *address) {
    if (!name || !length || *length < (int)sizeof *address)
        return fail(WSAEFAULT);
    memcpy(name, address, sizeof *address);
    *length = sizeof *address;
    return 0;
}

int WSAAPI hv_bind(SOCKET socket, const struct sockaddr *name, int length) {
    struct sockaddr_in own = loopback_at(0);
    int own_length = sizeof own, error;
    hv_address address;
    record *r, copy;
    if (!copy_record(socket, &copy))
        return bind(socket, name, length);
    if ((error = read_address(name, length, &address)))
        return fail(error);
    if (copy.bound || copy.connecting)
        return fail(WSAEINVAL);
    if (world_same(&address.service, &WILDCARD))
        address.service = new_service();
    /* After a failed bind the TCP socket is bound already. */
    if (!copy.port && (bind(socket, (struct sockaddr *)&own, sizeof own) ||
                       getsockname(socket, (struct sockaddr *)&own, &own_length)))
        return fail(WSAENOBUFS);
    records_lock();
    r = record_of(socket);
    if (!r) {
        error = WSAENOTSOCK;
    } else {
        if (!r->port)
            r->port = ntohs(own.sin_port);
        error = world_bind(&address, r->port, &r->listener);
        if (!error) {
            r->bound = TRUE;
            r->own = address;
        }
    }
    records_unlock();
    return error ? fail(error) : 0;
}

int WSAAPI hv_listen(SOCKET socket, int backlog) {
    record *r, copy;
    int result;
    if (!copy_record(socket, &copy))
        return listen(socket, backlog);
    if (!copy.bound)
        return fail(WSAEINVAL);
    if (copy.connecting)
        return fail(WSAEISCONN);
    if (backlog < 0 || backlog > MAX_BACKLOG)
        backlog = MAX_BACKLOG;
    /* TCP's backlog never fills, because the shim counts pending connections itself. */
    result = listen(socket, MAX_BACKLOG + 16);
    if (result)
        return result;
    records_lock();
    r = record_of(socket);
    if (r) {
        r->listening = TRUE;
        world_listen(r->listener, backlog);
    }
    records_unlock();
    return 0;
}

SOCKET WSAAPI hv_accept(SOCKET listener, struct sockaddr *name, int *length) {
    record *r, copy;
    if (!copy_record(listener, &copy))
        return accept(listener, name, length);
    if (name && (!length || *length < (int)sizeof(hv_address)))
        return fail(WSAEFAULT), INVALID_SOCKET;
    for (;;) {
        struct sockaddr_in peer;
        int peer_length = sizeof peer, slot;
        hv_address caller;
        DWORD one = 1;
        SOCKET socket = accept(listener, (struct sockaddr *)&peer, &peer_length);
        if (socket == INVALID_SOCKET)
            return socket;
        slot = world_accept(ntohs(peer.sin_port), copy.port, &caller);
        if (slot < 0) {
            /* The client is no AF_HYPERV socket. */
            closesocket(socket);
            continue;
        }
        setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, (char *)&one, sizeof one);
        records_lock();
        r = record_new(socket);
        if (r) {
            r->bound = r->connecting = r->has_peer = TRUE;
            r->nonblocking = copy.nonblocking;
            r->own = copy.own;
            r->peer = caller;
            r->slot = slot;
            r->side = 1;
            start_watcher();
        }
        records_unlock();
        if (!r) {
            world_leave_side(slot, 1);
            closesocket(socket);
            return fail(WSAEMFILE), INVALID_SOCKET;
        }
        if (name)
            write_address(name, length, &caller);
        return socket;
    }
}

int WSAAPI hv_connect(SOCKET socket, const struct sockaddr *name, int length) {
    hv_address to;
    record copy;
    int error;
    if (!copy_record(socket, &copy))
        return connect(socket, name, length);
    if ((error = read_address(name, length, &to)))
        return fail(error);
    return begin_connect(socket, &to);
}

int WSAAPI hv_getsockname(SOCKET socket, struct sockaddr *name, int *length) {
    record copy;
    if (!copy_record(socket, &copy))
        return getsockname(socket, name, length);
    if (!copy.bound && !copy.connecting)
        return fail(WSAEINVAL);
    return write_address(name, length, &copy.own);
}

int WSAAPI hv_getpeername(SOCKET socket, struct sockaddr *name, int *length) {
    struct sockaddr_in peer;
    int peer_length = sizeof peer;
    record copy;
    if (!copy_record(socket, &copy))
        return getpeername(socket, name, length);
    if (!copy.has_peer || getpeername(socket, (struct sockaddr *)&peer, &peer_length))
        return fail(WSAENOTCONN);
    return write_address(name, length, &copy.peer);
}

static BOOL is_option(int name) { return name == 1 || name == 2 || name == 4 || name == 8; }

int WSAAPI hv_setsockopt(SOCKET socket, int level, int name, const char *value, int length) {
    struct linger linger;
    record *r, copy;
    int error = 0;
    DWORD number;
    if (!copy_record(socket, &copy))
        return setsockopt(socket, level, name, value, length);
    if (level == SOL_SOCKET) {
        if (name == SO_LINGER && value && length >= (int)sizeof linger) {
            memcpy(&linger, value, sizeof linger);
            records_lock();
            if ((r = record_of(socket)))
                r->reset_on_close = linger.l_onoff && !linger.l_linger;
            records_unlock();
        }
        return setsockopt(socket, level, name, value, length);
    }
    if (level != PROTOCOL || !is_option(name))
        return fail(WSAENOPROTOOPT);
    if (!value || length != sizeof number)
        return fail(WSAEFAULT);
    memcpy(&number, value, sizeof number);
    if (name == CONNECT_TIMEOUT && number > 300000)
        return fail(WSAEINVAL);
    records_lock();
    if ((r = record_of(socket)))
        r->options[name] = number;
    else
        error = WSAENOTSOCK;
    records_unlock();
    return error ? fail(error) : 0;
}

int WSAAPI hv_getsockopt(SOCKET socket, int level, int name, char *value, int *length) {
    record copy;
    int result, error;
    if (!copy_record(socket, &copy))
        return getsockopt(socket, level, name, value, length);
    if (level == SOL_SOCKET) {
        result = getsockopt(socket, level, name, value, length);
        if (!result && name == SO_ERROR && *length == sizeof error) {
            memcpy(&error, value, sizeof error);
            if (error && copy.error)
                memcpy(value, &copy.error, sizeof error);
        }
        return result;
    }
    if (level != PROTOCOL || !is_option(name))
        return fail(WSAENOPROTOOPT);
    if (!value || !length || *length < (int)sizeof copy.options[name])
        return fail(WSAEFAULT);
    memcpy(value, &copy.options[name], sizeof copy.options[name]);
    *length = sizeof copy.options[name];
    return 0;
}

int WSAAPI hv_ioctlsocket(SOCKET socket, long command, u_long *argument) {
    int result = ioctlsocket(socket, command, argument);
    record *r;
    if (!result && command == (long)FIONBIO) {
        records_lock();
        if ((r = record_of(socket)))
            r->nonblocking = *argument != 0;
        records_unlock();
    }
    return result;
}

int WSAAPI hv_shutdown(SOCKET socket, int how) {
    record *r;
    records_lock();
    r = record_of(socket);
    if (r && how != SD_SEND)
        r->own_shutdown[SD_RECEIVE] = TRUE;
    if (r && how != SD_RECEIVE)
        r->own_shutdown[SD_SEND] = TRUE;
    if (r && r->slot >= 0 && how != SD_RECEIVE)
        world_end_side(r->slot, r->side);
    records_unlock();
    return shutdown(socket, how);
}

/* Whether an end of file that TCP reports was not made by the peer. Under Wine, TCP reports a reset and the
 * death of the peer's process as end of file. */
static BOOL is_reset(SOCKET socket) {
    record copy;
    return copy_record(socket, &copy) && copy.slot >= 0 && !world_has_ended(copy.slot, !copy.side);
}

/* Maps WSAESHUTDOWN to a reset or end of file after the peer has died: see the watcher in records.c. */
static int map_dead_peer(SOCKET socket, int how) {
    record copy;
    int error = WSAGetLastError();
    if (error == WSAESHUTDOWN && copy_record(socket, &copy) && copy.dead && !copy.own_shutdown[how])
        return how == SD_RECEIVE && world_has_ended(copy.slot, !copy.side) ? 0 : fail(WSAECONNRESET);
    WSASetLastError(error);
    return SOCKET_ERROR;
}

int WSAAPI hv_recv(SOCKET socket, char *buffer, int length, int flags) {
    int result = recv(socket, buffer, length, flags);
    if (result < 0)
        return map_dead_peer(socket, SD_RECEIVE);
    return result == 0 && length > 0 && is_reset(socket) ? fail(WSAECONNRESET) : result;
}

int WSAAPI hv_send(SOCKET socket, const char *buffer, int length, int flags) {
    int result = send(socket, buffer, length, flags);
    return result < 0 ? map_dead_peer(socket, SD_SEND) : result;
}

int WSAAPI hv_WSASend(SOCKET socket, WSABUF *buffers, DWORD count, DWORD *sent, DWORD flags,
                      WSAOVERLAPPED *overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine) {
    int result = WSASend(socket, buffers, count, sent, flags, overlapped, routine);
    return result && !overlapped ? map_dead_peer(socket, SD_SEND) : result;
}

int WSAAPI hv_WSARecv(SOCKET socket, WSABUF *buffers, DWORD count, DWORD *received, DWORD *flags,
                      WSAOVERLAPPED *overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE routine) {
    int result = WSARecv(socket, buffers, count, received, flags, overlapped, routine);
    DWORD i;
    if (result && !overlapped) {
        if (received)
            *received = 0;
        return map_dead_peer(socket, SD_RECEIVE);
    }
    if (result || overlapped || !received || *received)
        return result;
    for (i = 0; i < count; i++)
        if (buffers[i].len)
            return is_reset(socket) ? fail(WSAECONNRESET) : 0;
    return 0;
}
