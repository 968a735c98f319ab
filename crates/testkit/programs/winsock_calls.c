/*
 * The calls of winsock2.h without libhvsock: each is that of the C library, so that a program of the documents, which is
 * compiled with winsock2.h, asks the kernel for sockets of AF_HYPERV. Under `hvsock run` it gets them.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int hvsock_ws_socket(int af, int type, int protocol)
{
    return socket(af, type, protocol);
}

int hvsock_ws_bind(int s, const struct sockaddr *name, socklen_t length)
{
    return bind(s, name, length);
}

int hvsock_ws_listen(int s, int backlog)
{
    return listen(s, backlog);
}

int hvsock_ws_accept(int s, struct sockaddr *name, socklen_t *length)
{
    return accept(s, name, length);
}

int hvsock_ws_connect(int s, const struct sockaddr *name, socklen_t length)
{
    return connect(s, name, length);
}

int hvsock_ws_setsockopt(int s, int level, int name, const void *value, socklen_t length)
{
    return setsockopt(s, level, name, value, length);
}

ssize_t hvsock_ws_send(int s, const void *data, size_t length, int flags)
{
    return send(s, data, length, flags | MSG_NOSIGNAL);
}

ssize_t hvsock_ws_recv(int s, void *data, size_t length, int flags)
{
    return recv(s, data, length, flags);
}

int hvsock_ws_shutdown(int s, int how)
{
    return shutdown(s, how);
}

int hvsock_ws_closesocket(int s)
{
    return close(s);
}

int hvsock_ws_WSAStartup(unsigned short version, void *data)
{
    memcpy(data, &version, sizeof version);
    return 0;
}

int hvsock_ws_WSACleanup(void)
{
    return 0;
}

int hvsock_ws_WSAGetLastError(void)
{
    return errno;
}
