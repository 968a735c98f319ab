/*
 * What the calls of winsock2.h do, with both ends in this process. Each test is a function of the table at the end; a
 * failed check ends the process with its line.
 */
#include <winsock2.h>
#include <hvsocket.h>
#include <hvsock.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <sched.h>

#define CHECK(condition)                                                                                            \
    do {                                                                                                            \
        if (!(condition)) {                                                                                         \
            fprintf(stderr, "%s:%d: %s; WSA %d, errno %d, %s\n", __FILE__, __LINE__, #condition, WSAGetLastError(), \
                errno, hvsock_error_text());                                                                        \
            exit(1);                                                                                                \
        }                                                                                                           \
    } while (0)

static SOCKADDR_HV address_of(GUID partition, ULONG port)
{
    SOCKADDR_HV address;
    memset(&address, 0, sizeof address);
    address.Family = AF_HYPERV;
    address.VmId = partition;
    address.ServiceId = HV_GUID_VSOCK_TEMPLATE;
    address.ServiceId.Data1 = port;
    return address;
}

static SOCKET new_socket(void)
{
    SOCKET s = socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW);
    CHECK(s != INVALID_SOCKET);
    return s;
}

static SOCKET listening(ULONG port)
{
    SOCKADDR_HV address = address_of(HV_GUID_WILDCARD, port);
    SOCKET s = new_socket();
    CHECK(bind(s, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(listen(s, 8) == 0);
    return s;
}

static int connect_to(SOCKET s, ULONG port)
{
    SOCKADDR_HV address = address_of(HV_GUID_LOOPBACK, port);
    return connect(s, (struct sockaddr *)&address, sizeof address);
}

static void pair(SOCKET *client, SOCKET *server)
{
    SOCKET listener = listening(2761);
    *client = new_socket();
    CHECK(connect_to(*client, 2761) == 0);
    *server = accept(listener, NULL, NULL);
    CHECK(*server != INVALID_SOCKET);
    CHECK(closesocket(listener) == 0);
}

static void set_nonblocking(SOCKET s, u_long on)
{
    CHECK(ioctlsocket(s, FIONBIO, &on) == 0);
}

static void bytes_go_both_ways(void)
{
    SOCKET client, server;
    char bytes[64];
    SOCKADDR_HV peer;
    int length = sizeof peer;
    pair(&client, &server);
    CHECK(send(client, "hello", 5, 0) == 5);
    CHECK(recv(server, bytes, 5, MSG_WAITALL) == 5 && memcmp(bytes, "hello", 5) == 0);
    CHECK(send(server, "world", 5, 0) == 5);
    CHECK(recv(client, bytes, 2, MSG_PEEK) == 2 && memcmp(bytes, "wo", 2) == 0);
    CHECK(recv(client, bytes, 5, MSG_WAITALL) == 5 && memcmp(bytes, "world", 5) == 0);
    CHECK(getpeername(client, (struct sockaddr *)&peer, &length) == 0);
    CHECK(length == sizeof peer && peer.Family == AF_HYPERV && peer.ServiceId.Data1 == 2761);
    CHECK(getsockname(server, (struct sockaddr *)&peer, &length) == 0);
    CHECK(peer.ServiceId.Data1 == 2761);
    length = 10;
    CHECK(getsockname(server, (struct sockaddr *)&peer, &length) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(closesocket(client) == 0);
    CHECK(closesocket(server) == 0);
}

static void a_half_close_ends_one_direction(void)
{
    SOCKET client, server;
    char bytes[64];
    pair(&client, &server);
    CHECK(send(client, "a", 1, 0) == 1);
    CHECK(shutdown(client, SD_SEND) == 0);
    CHECK(recv(server, bytes, sizeof bytes, 0) == 1);
    CHECK(recv(server, bytes, sizeof bytes, 0) == 0);
    CHECK(recv(server, bytes, sizeof bytes, 0) == 0);
    CHECK(send(server, "b", 1, 0) == 1);
    CHECK(recv(client, bytes, sizeof bytes, 0) == 1);
    CHECK(send(client, "c", 1, 0) == -1 && WSAGetLastError() == WSAESHUTDOWN && errno == EPIPE);
    CHECK(closesocket(server) == 0);
    CHECK(recv(client, bytes, sizeof bytes, 0) == 0);
    CHECK(closesocket(client) == 0);
}

static void a_peer_that_leaves_bytes_unread_is_a_reset_without_a_signal(void)
{
    SOCKET client, server;
    char bytes[64];
    int count = 0;
    pair(&client, &server);
    CHECK(send(client, "lost", 4, 0) == 4);
    CHECK(recv(server, bytes, 1, 0) == 1);
    CHECK(closesocket(server) == 0);
    while (send(client, "more", 4, 0) == 4) {
        CHECK(count++ < 1000000);
    }
    CHECK(WSAGetLastError() == WSAECONNRESET);
    CHECK(recv(client, bytes, sizeof bytes, 0) == -1 && WSAGetLastError() == WSAECONNRESET);
    CHECK(hvsock_error_wsa() == WSAECONNRESET && strcmp(hvsock_error_label(), "reset") == 0);
    CHECK(closesocket(client) == 0);
}

static void errors_have_the_numbers_of_windows(void)
{
    SOCKET s = new_socket();
    SOCKET listener;
    SOCKADDR_HV address = address_of(HV_GUID_LOOPBACK, 2762);
    SOCKADDR_HV name;
    int length = sizeof name;
    char byte;
    CHECK(send(s, "x", 1, 0) == -1 && WSAGetLastError() == WSAENOTCONN);
    CHECK(recv(s, &byte, 1, 0) == -1 && WSAGetLastError() == WSAENOTCONN);
    CHECK(shutdown(s, SD_SEND) == -1 && WSAGetLastError() == WSAENOTCONN);
    CHECK(getpeername(s, (struct sockaddr *)&name, &length) == -1 && WSAGetLastError() == WSAENOTCONN);
    CHECK(getsockname(s, (struct sockaddr *)&name, &length) == -1 && WSAGetLastError() == WSAEINVAL);
    CHECK(listen(s, 1) == -1 && WSAGetLastError() == WSAEINVAL);
    CHECK(accept(s, NULL, NULL) == INVALID_SOCKET && WSAGetLastError() == WSAEINVAL);
    CHECK(connect(s, (struct sockaddr *)&address, 20) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(connect(s, NULL, 36) == -1 && WSAGetLastError() == WSAEFAULT);
    address.Family = AF_INET;
    CHECK(connect(s, (struct sockaddr *)&address, sizeof address) == -1 && WSAGetLastError() == WSAEAFNOSUPPORT);
    /* Nobody listens: the socket can be tried again. */
    CHECK(connect_to(s, 2762) == -1 && WSAGetLastError() == WSAECONNREFUSED && errno == ECONNREFUSED);
    CHECK(hvsock_error_code() == 9 && strcmp(hvsock_error_label(), "no_listener") == 0);
    CHECK(connect_to(s, 2770) == -1 && WSAGetLastError() == WSAECONNREFUSED);
    listener = listening(2762);
    CHECK(connect_to(s, 2762) == 0);
    CHECK(connect_to(s, 2762) == -1 && WSAGetLastError() == WSAEISCONN);
    CHECK(closesocket(s) == 0);
    /* The address of a listener is in use. */
    s = new_socket();
    address = address_of(HV_GUID_WILDCARD, 2762);
    CHECK(bind(s, (struct sockaddr *)&address, sizeof address) == -1 && WSAGetLastError() == WSAEADDRINUSE);
    CHECK(send(listener, "x", 1, 0) == -1 && WSAGetLastError() == WSAENOTCONN);
    CHECK(recv(listener, &byte, 1, 0) == -1 && WSAGetLastError() == WSAENOTCONN);
    CHECK(closesocket(listener) == 0);
    CHECK(bind(s, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(bind(s, (struct sockaddr *)&address, sizeof address) == -1 && WSAGetLastError() == WSAEINVAL);
    CHECK(closesocket(s) == 0);
    CHECK(closesocket(s) == -1 && WSAGetLastError() == WSAENOTSOCK);
    CHECK(closesocket(-1) == -1 && WSAGetLastError() == WSAENOTSOCK);
    CHECK(socket(AF_HYPERV, SOCK_STREAM, 0) == INVALID_SOCKET && WSAGetLastError() == WSAEPROTONOSUPPORT);
    CHECK(socket(AF_HYPERV, SOCK_DGRAM, HV_PROTOCOL_RAW) == INVALID_SOCKET);
    WSASetLastError(WSAEINTR);
    CHECK(WSAGetLastError() == WSAEINTR);
    WSASetLastError(0);
    CHECK(WSAGetLastError() == 0);
}

static void options_have_windows_values(void)
{
    SOCKET client, server;
    ULONG value = 0;
    DWORD ms = 50;
    int length = sizeof value;
    char byte;
    struct timeval limit;
    socklen_t limit_length = sizeof limit;
    pair(&client, &server);
    value = 4000;
    CHECK(setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (const char *)&value, sizeof value) == 0);
    value = 0;
    CHECK(getsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (char *)&value, &length) == 0);
    CHECK(value == 4000 && length == 4);
    value = HVSOCKET_CONNECT_TIMEOUT_MAX + 1;
    CHECK(setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (const char *)&value, sizeof value) == -1);
    CHECK(WSAGetLastError() == WSAEINVAL);
    value = 1;
    CHECK(setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, (const char *)&value, sizeof value) == 0);
    CHECK(setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU, (const char *)&value, sizeof value) == 0);
    CHECK(setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_HIGH_VTL, (const char *)&value, sizeof value) == 0);
    CHECK(getsockopt(client, SOL_SOCKET, SO_ERROR, (char *)&value, &length) == 0 && value == 0);
    CHECK(getsockopt(client, SOL_SOCKET, SO_TYPE, (char *)&value, &length) == 0 && value == SOCK_STREAM);
    CHECK(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, (const char *)&ms, sizeof ms) == 0);
    value = 0;
    CHECK(getsockopt(client, SOL_SOCKET, SO_RCVTIMEO, (char *)&value, &length) == 0);
    /* The kernel counts in ticks of up to 10 ms. */
    CHECK(value >= 50 && value <= 60);
    CHECK(getsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, &limit_length) == 0);
    CHECK(limit.tv_sec == 0 && limit.tv_usec >= 50000 && limit.tv_usec < 60000);
    CHECK(recv(client, &byte, 1, 0) == -1 && WSAGetLastError() == WSAETIMEDOUT);
    CHECK(recv(client, &byte, 1, MSG_DONTWAIT) == -1 && WSAGetLastError() == WSAEWOULDBLOCK);
    CHECK(closesocket(client) == 0);
    CHECK(closesocket(server) == 0);
}

static void nonblocking_sockets_wait_in_poll_select_and_epoll(void)
{
    SOCKET listener, client, server;
    WSAPOLLFD poll_one;
    fd_set readable, writable, exceptional;
    struct timeval limit = { 20, 0 };
    struct epoll_event event;
    int error = -1;
    int length = sizeof error;
    char byte;
    u_long count = 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(epoll >= 0);

    listener = listening(2761);
    set_nonblocking(listener, 1);
    CHECK(accept(listener, NULL, NULL) == INVALID_SOCKET && WSAGetLastError() == WSAEWOULDBLOCK);

    client = new_socket();
    set_nonblocking(client, 1);
    if (connect_to(client, 2761) == -1) {
        CHECK(WSAGetLastError() == WSAEWOULDBLOCK && errno == EINPROGRESS);
    }
    FD_ZERO(&writable);
    FD_SET(client, &writable);
    FD_ZERO(&exceptional);
    FD_SET(client, &exceptional);
    CHECK(select(0, NULL, &writable, &exceptional, &limit) == 1);
    CHECK(limit.tv_sec == 20);
    CHECK(FD_ISSET(client, &writable) && !FD_ISSET(client, &exceptional));
    CHECK(getsockopt(client, SOL_SOCKET, SO_ERROR, (char *)&error, &length) == 0 && error == 0);

    poll_one.fd = listener;
    poll_one.events = POLLRDNORM;
    CHECK(WSAPoll(&poll_one, 1, 20000) == 1 && (poll_one.revents & POLLRDNORM));
    server = accept(listener, NULL, NULL);
    CHECK(server != INVALID_SOCKET);
    /* As on Windows, the accepted socket has the mode of the listening one. */
    CHECK(recv(server, &byte, 1, 0) == -1 && WSAGetLastError() == WSAEWOULDBLOCK);

    memset(&event, 0, sizeof event);
    event.events = EPOLLIN;
    event.data.fd = server;
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, server, &event) == 0);
    CHECK(epoll_wait(epoll, &event, 1, 0) == 0);
    CHECK(send(client, "xy", 2, 0) == 2);
    CHECK(epoll_wait(epoll, &event, 1, 20000) == 1 && event.data.fd == server);
    CHECK(recv(server, &byte, 1, 0) == 1 && byte == 'x');
    CHECK(ioctlsocket(server, FIONREAD, &count) == 0 && count == 1);
    FD_ZERO(&readable);
    FD_SET(server, &readable);
    CHECK(select(0, &readable, NULL, NULL, NULL) == 1 && FD_ISSET(server, &readable));

    /* Until there is no free space. */
    while (send(client, "0123456789abcdef", 16, 0) > 0) {
    }
    CHECK(WSAGetLastError() == WSAEWOULDBLOCK);
    CHECK(closesocket(server) == 0);
    CHECK(closesocket(client) == 0);
    CHECK(closesocket(listener) == 0);
    CHECK(close(epoll) == 0);
}

static void a_socket_stays_in_an_epoll_set_from_before_its_connect(void)
{
    SOCKET listener = listening(2761);
    struct epoll_event event;
    int mode;
    for (mode = 0; mode < 2; mode++) {
        SOCKET client = new_socket();
        SOCKET server, again;
        char byte;
        int error = -1;
        int length = sizeof error;
        int epoll = epoll_create1(EPOLL_CLOEXEC);
        CHECK(epoll >= 0);
        memset(&event, 0, sizeof event);
        event.events = EPOLLOUT | EPOLLET;
        set_nonblocking(client, (u_long)mode);
        if (mode == 0) {
            event.events = EPOLLIN | EPOLLET;
        }
        CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event) == 0);
        while (epoll_wait(epoll, &event, 1, 0) == 1) {
        }
        if (connect_to(client, 2761) == -1) {
            CHECK(mode == 1 && WSAGetLastError() == WSAEWOULDBLOCK);
            CHECK(epoll_wait(epoll, &event, 1, 20000) == 1 && (event.events & EPOLLOUT));
            while (getsockopt(client, SOL_SOCKET, SO_ERROR, (char *)&error, &length) == 0 && error == 0
                && send(client, "y", 1, 0) == -1 && WSAGetLastError() == WSAEWOULDBLOCK) {
                CHECK(epoll_wait(epoll, &event, 1, 20000) == 1);
            }
            CHECK(error == 0);
        } else {
            CHECK(send(client, "y", 1, 0) == 1);
        }
        server = accept(listener, NULL, NULL);
        CHECK(server != INVALID_SOCKET && recv(server, &byte, 1, 0) == 1 && byte == 'y');
        CHECK(send(server, "x", 1, 0) == 1);
        event.events = EPOLLIN;
        CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, client, &event) == 0);
        CHECK(epoll_wait(epoll, &event, 1, 20000) == 1 && (event.events & EPOLLIN));
        /* A duplicate is the same socket. */
        again = dup(client);
        CHECK(again >= 0 && recv(again, &byte, 1, 0) == 1 && byte == 'x');
        CHECK(closesocket(again) == 0 && send(client, "z", 1, 0) == 1);
        CHECK(recv(server, &byte, 1, 0) == 1 && byte == 'z');
        CHECK(closesocket(client) == 0 && recv(server, &byte, 1, 0) == 0);
        CHECK(closesocket(server) == 0 && close(epoll) == 0);
    }
    CHECK(closesocket(listener) == 0);
}

static void a_nonblocking_connect_that_fails_is_an_exception_with_its_error(void)
{
    SOCKET s = new_socket();
    WSAPOLLFD poll_one;
    fd_set writable, exceptional;
    struct timeval limit = { 20, 0 };
    int error = 0;
    int length = sizeof error;
    set_nonblocking(s, 1);
    CHECK(connect_to(s, 2762) == -1);
    if (WSAGetLastError() == WSAEWOULDBLOCK) {
        FD_ZERO(&writable);
        FD_SET(s, &writable);
        FD_ZERO(&exceptional);
        FD_SET(s, &exceptional);
        CHECK(select(0, NULL, &writable, &exceptional, &limit) == 1);
        CHECK(!FD_ISSET(s, &writable) && FD_ISSET(s, &exceptional));
        poll_one.fd = s;
        poll_one.events = POLLWRNORM;
        CHECK(WSAPoll(&poll_one, 1, 20000) == 1);
        CHECK((poll_one.revents & POLLERR) && (poll_one.revents & POLLHUP));
        CHECK(getsockopt(s, SOL_SOCKET, SO_ERROR, (char *)&error, &length) == 0 && error == WSAECONNREFUSED);
    } else {
        CHECK(WSAGetLastError() == WSAECONNREFUSED);
    }
    CHECK(send(s, "x", 1, 0) == -1 && WSAGetLastError() == WSAENOTCONN);
    CHECK(closesocket(s) == 0);
}

struct accepting {
    SOCKET listener;
    volatile pid_t tid;
    int error;
};

static void *accept_one(void *argument)
{
    struct accepting *accepting = (struct accepting *)argument;
    SOCKET s;
    accepting->tid = (pid_t)syscall(SYS_gettid);
    s = accept(accepting->listener, NULL, NULL);
    accepting->error = s == INVALID_SOCKET ? WSAGetLastError() : 0;
    if (s != INVALID_SOCKET) {
        closesocket(s);
    }
    return NULL;
}

/* Waits until a thread sleeps in a system call of sockets. */
static void until_blocked(volatile pid_t *tid)
{
    for (;;) {
        char path[64], text[256] = "";
        long number = -1;
        FILE *file;
        snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)*tid);
        file = fopen(path, "r");
        if (file != NULL) {
            if (fgets(text, sizeof text, file) != NULL && sscanf(text, "%ld", &number) != 1) {
                number = -1;
            }
            fclose(file);
        }
        if (number == SYS_recvfrom || number == SYS_sendto) {
            return;
        }
        sched_yield();
    }
}

static void closing_a_listener_ends_the_accept_of_another_thread(void)
{
    struct accepting accepting;
    pthread_t thread;
    int at;
    for (at = 0; at < 2; at++) {
        accepting.listener = listening(2761);
        accepting.error = -1;
        accepting.tid = 0;
        CHECK(pthread_create(&thread, NULL, accept_one, &accepting) == 0);
        if (at == 1) {
            until_blocked(&accepting.tid);
        }
        CHECK(closesocket(accepting.listener) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(accepting.error == WSAEINTR || (at == 0 && (accepting.error == WSAENOTSOCK || accepting.error == WSAEINVAL)));
    }
}

/* A thread that makes one call. */
struct calling {
    SOCKET s;
    int is_send;
    volatile pid_t tid;
    int error;
};

static void *call_once(void *argument)
{
    struct calling *calling = (struct calling *)argument;
    static char bytes[1 << 16];
    ssize_t count = 0;
    calling->tid = (pid_t)syscall(SYS_gettid);
    if (calling->is_send) {
        while ((count = send(calling->s, bytes, sizeof bytes, 0)) > 0) {
        }
    } else {
        count = recv(calling->s, bytes, 1, 0);
    }
    calling->error = count < 0 ? WSAGetLastError() : 0;
    return NULL;
}

static void closing_a_socket_ends_the_calls_of_other_threads(void)
{
    int at;
    for (at = 0; at < 2; at++) {
        struct calling calling;
        pthread_t thread;
        SOCKET client, server;
        char bytes[65536];
        pair(&client, &server);
        memset(&calling, 0, sizeof calling);
        calling.s = client;
        calling.is_send = at;
        CHECK(pthread_create(&thread, NULL, call_once, &calling) == 0);
        until_blocked(&calling.tid);
        CHECK(closesocket(client) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        /* The thread that sends may have been between two calls. */
        CHECK(calling.error == WSAEINTR || (at == 1 && calling.error == WSAENOTSOCK));
        while (recv(server, bytes, sizeof bytes, 0) > 0) {
        }
        CHECK(closesocket(server) == 0);
    }
}

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

static void a_signal_ends_a_blocking_call_unless_its_handler_restarts_it(void)
{
    struct sigaction action, before;
    int restarts, accepts;
    memset(&action, 0, sizeof action);
    action.sa_handler = count_signal;
    for (restarts = 0; restarts < 2; restarts++) {
        for (accepts = 0; accepts < 2; accepts++) {
            struct accepting accepting;
            struct calling calling;
            pthread_t thread;
            SOCKET client, server = INVALID_SOCKET;
            memset(&calling, 0, sizeof calling);
            action.sa_flags = restarts ? SA_RESTART : 0;
            CHECK(sigaction(SIGUSR1, &action, &before) == 0);
            signals = 0;
            if (accepts) {
                accepting.listener = listening(2761);
                accepting.error = -1;
                accepting.tid = 0;
                CHECK(pthread_create(&thread, NULL, accept_one, &accepting) == 0);
                until_blocked(&accepting.tid);
            } else {
                pair(&client, &server);
                calling.s = server;
                CHECK(pthread_create(&thread, NULL, call_once, &calling) == 0);
                until_blocked(&calling.tid);
            }
            CHECK(pthread_kill(thread, SIGUSR1) == 0);
            while (signals == 0) {
                sched_yield();
            }
            if (restarts) {
                until_blocked(accepts ? &accepting.tid : &calling.tid);
                if (accepts) {
                    client = new_socket();
                    CHECK(connect_to(client, 2761) == 0);
                    CHECK(closesocket(client) == 0);
                } else {
                    CHECK(send(client, "x", 1, 0) == 1);
                }
            }
            CHECK(pthread_join(thread, NULL) == 0);
            CHECK((accepts ? accepting.error : calling.error) == (restarts ? 0 : WSAEINTR));
            if (accepts) {
                CHECK(closesocket(accepting.listener) == 0);
            } else {
                CHECK(closesocket(client) == 0 && closesocket(server) == 0);
            }
            CHECK(sigaction(SIGUSR1, &before, NULL) == 0);
        }
    }
}

static void an_accept_ends_after_the_time_of_its_option(void)
{
    SOCKET listener = listening(2761);
    SOCKET client, server;
    struct timeval limit = { 0, 30000 };
    DWORD value = 0;
    int length = sizeof value;
    char byte;
    CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK(accept(listener, NULL, NULL) == INVALID_SOCKET && WSAGetLastError() == WSAETIMEDOUT);
    CHECK(getsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, (char *)&value, &length) == 0 && value >= 30 && value <= 40);
    /* The mode of the kernel is that of the listener. */
    CHECK(fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK) == 0);
    CHECK(accept(listener, NULL, NULL) == INVALID_SOCKET && WSAGetLastError() == WSAEWOULDBLOCK);
    set_nonblocking(listener, 0);
    client = new_socket();
    CHECK(connect_to(client, 2761) == 0);
    server = accept(listener, NULL, NULL);
    CHECK(server != INVALID_SOCKET);
    /* As on Windows, the accepted socket has the options of the listening one. */
    CHECK(recv(server, &byte, 1, 0) == -1 && WSAGetLastError() == WSAETIMEDOUT);
    CHECK(closesocket(server) == 0 && closesocket(client) == 0 && closesocket(listener) == 0);
    /* And the listening one those from before listen. */
    listener = new_socket();
    value = 20;
    CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, (const char *)&value, sizeof value) == 0);
    {
        SOCKADDR_HV address = address_of(HV_GUID_WILDCARD, 2761);
        CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0);
    }
    CHECK(accept(listener, NULL, NULL) == INVALID_SOCKET && WSAGetLastError() == WSAETIMEDOUT);
    CHECK(closesocket(listener) == 0);
}

static void ends_well(pid_t child)
{
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_child_process_serves_a_connection_that_its_parent_closes(void)
{
    SOCKET client, server;
    struct calling calling;
    pthread_t thread;
    char bytes[64];
    pid_t child;
    pair(&client, &server);
    child = fork();
    if (child == 0) {
        ssize_t count;
        CHECK(closesocket(client) == 0);
        while ((count = recv(server, bytes, sizeof bytes, 0)) > 0) {
            CHECK(send(server, bytes, (size_t)count, 0) == count);
        }
        CHECK(count == 0 && closesocket(server) == 0);
        _exit(0);
    }
    CHECK(closesocket(server) == 0);
    CHECK(send(client, "child", 5, 0) == 5 && recv(client, bytes, 5, MSG_WAITALL) == 5);
    CHECK(shutdown(client, SD_SEND) == 0 && recv(client, bytes, 1, 0) == 0);
    ends_well(child);
    CHECK(closesocket(client) == 0);

    /* A child that closes the sockets it has no use for does not end the calls of its parent's threads. */
    pair(&client, &server);
    memset(&calling, 0, sizeof calling);
    calling.s = client;
    CHECK(pthread_create(&thread, NULL, call_once, &calling) == 0);
    until_blocked(&calling.tid);
    child = fork();
    if (child == 0) {
        CHECK(closesocket(client) == 0 && closesocket(server) == 0);
        client = new_socket();
        CHECK(closesocket(client) == 0);
        _exit(0);
    }
    ends_well(child);
    CHECK(send(server, "x", 1, 0) == 1);
    CHECK(pthread_join(thread, NULL) == 0 && calling.error == 0);
    CHECK(closesocket(client) == 0 && closesocket(server) == 0);
}

static void arguments_that_point_nowhere_are_errors(void)
{
    SOCKET client, server;
    int number, length = 0;
    struct timeval now = { 0, 0 };
    WSABUF buffer = { 4, NULL };
    DWORD count = 0;
    static const int numbers[] = { -1, 1000000, 2147483647, -2147483647 };
    size_t at;
    char byte, four[4];
    pair(&client, &server);
    CHECK(send(server, "abcd", 4, 0) == 4);
    CHECK(recv(client, NULL, 4, 0) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(recv(client, NULL, 0, 0) == 0);
    CHECK(send(client, NULL, 4, 0) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(send(client, NULL, 0, 0) == 0);
    CHECK(WSARecv(client, &buffer, 1, &count, NULL, NULL, NULL) == -1);
    CHECK(WSARecv(client, NULL, 1, &count, NULL, NULL, NULL) == -1 && WSAGetLastError() == WSAEINVAL);
    CHECK(WSASend(client, &buffer, 4000000000u, &count, 0, NULL, NULL) == -1);
    CHECK(WSAGetLastError() == WSAEINVAL);
    CHECK(accept(client, NULL, NULL) == INVALID_SOCKET && WSAGetLastError() == WSAEINVAL);
    CHECK(getsockname(client, NULL, NULL) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(getpeername(client, NULL, &length) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, NULL, 4) == -1);
    CHECK(setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (const char *)&byte, 1) == -1);
    CHECK(getsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, NULL, NULL) == -1);
    CHECK(ioctlsocket(client, FIONREAD, (u_long *)NULL) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(WSAPoll(NULL, 1, 0) == -1 && WSAGetLastError() == WSAEFAULT);
    CHECK(WSAPoll(NULL, 0, 0) == 0 && select(0, NULL, NULL, NULL, &now) == 0);
    for (at = 0; at < sizeof numbers / sizeof numbers[0]; at++) {
        SOCKET s = numbers[at];
        SOCKADDR_HV address = address_of(HV_GUID_LOOPBACK, 2761);
        CHECK(send(s, "x", 1, 0) == -1 && WSAGetLastError() == WSAENOTSOCK);
        CHECK(recv(s, &byte, 1, 0) == -1 && WSAGetLastError() == WSAENOTSOCK);
        CHECK(bind(s, (struct sockaddr *)&address, sizeof address) == -1 && WSAGetLastError() == WSAENOTSOCK);
        CHECK(connect(s, (struct sockaddr *)&address, sizeof address) == -1 && WSAGetLastError() == WSAENOTSOCK);
        CHECK(listen(s, 1) == -1 && accept(s, NULL, NULL) == INVALID_SOCKET && shutdown(s, SD_BOTH) == -1);
        length = sizeof number;
        CHECK(getsockopt(s, SOL_SOCKET, SO_ERROR, (char *)&number, &length) == -1);
        CHECK(closesocket(s) == -1 && WSAGetLastError() == WSAENOTSOCK);
    }
    /* There is nothing to receive into memory that is not there. */
    CHECK(recv(client, four, sizeof four, MSG_WAITALL) == sizeof four);
    CHECK(recv(client, &byte, (size_t)-1, MSG_DONTWAIT) == -1);
    CHECK(closesocket(client) == 0 && closesocket(server) == 0);
}

enum { MANY = 2000, PAIRS = 50 };

static void thousands_of_sockets_are_polled(void)
{
    struct rlimit limit;
    WSAPOLLFD *all = (WSAPOLLFD *)calloc(MANY, sizeof *all);
    SOCKET ends[PAIRS];
    SOCKADDR_HV address = address_of(HV_GUID_WILDCARD, 2761);
    SOCKET listener = new_socket();
    int at;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < 4096) {
        limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    }
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, SOMAXCONN) == 0);
    for (at = 0; at < MANY; at++) {
        all[at].events = POLLRDNORM;
        all[at].fd = new_socket();
        if (at < PAIRS) {
            CHECK(connect_to(all[at].fd, 2761) == 0);
            ends[at] = accept(listener, NULL, NULL);
            CHECK(ends[at] != INVALID_SOCKET);
        }
    }
    CHECK(send(ends[0], "a", 1, 0) == 1 && closesocket(ends[PAIRS - 1]) == 0);
    CHECK(WSAPoll(all, PAIRS, 20000) >= 1);
    while (!(all[PAIRS - 1].revents & POLLRDNORM)) {
        CHECK(WSAPoll(&all[PAIRS - 1], 1, 20000) == 1);
    }
    CHECK(WSAPoll(all, MANY, 0) >= 2 && (all[0].revents & POLLRDNORM) && !(all[1].revents & POLLRDNORM));
    for (at = 0; at < MANY; at++) {
        CHECK(closesocket(all[at].fd) == 0);
        if (at < PAIRS - 1) {
            CHECK(closesocket(ends[at]) == 0);
        }
    }
    CHECK(closesocket(listener) == 0);
    free(all);
}

enum { THREADS = 8, ROUNDS = 20 };

static void *echo(void *argument)
{
    SOCKET listener = *(SOCKET *)argument;
    int round;
    for (round = 0; round < ROUNDS; round++) {
        char bytes[1000];
        ssize_t count;
        SOCKET s = accept(listener, NULL, NULL);
        CHECK(s != INVALID_SOCKET);
        while ((count = recv(s, bytes, sizeof bytes, 0)) > 0) {
            CHECK(send(s, bytes, (size_t)count, 0) == count);
        }
        CHECK(count == 0);
        CHECK(closesocket(s) == 0);
    }
    return NULL;
}

static void *ask(void *argument)
{
    int round;
    (void)argument;
    for (round = 0; round < ROUNDS; round++) {
        char bytes[1000];
        ssize_t count, total = 0;
        SOCKET s = new_socket();
        ULONG limit = 30000;
        memset(bytes, round, sizeof bytes);
        CHECK(setsockopt(s, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (const char *)&limit, sizeof limit) == 0);
        CHECK(connect_to(s, 2761) == 0);
        CHECK(send(s, bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes);
        CHECK(shutdown(s, SD_SEND) == 0);
        while ((count = recv(s, bytes, sizeof bytes, 0)) > 0) {
            CHECK(bytes[0] == round && bytes[count - 1] == round);
            total += count;
        }
        CHECK(count == 0 && total == (ssize_t)sizeof bytes);
        CHECK(closesocket(s) == 0);
    }
    return NULL;
}

static void many_threads_connect_and_accept_at_a_time(void)
{
    SOCKADDR_HV address = address_of(HV_GUID_WILDCARD, 2761);
    pthread_t threads[2 * THREADS];
    SOCKET listener = new_socket();
    int at;
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(listen(listener, SOMAXCONN) == 0);
    for (at = 0; at < THREADS; at++) {
        CHECK(pthread_create(&threads[2 * at], NULL, echo, &listener) == 0);
        CHECK(pthread_create(&threads[2 * at + 1], NULL, ask, NULL) == 0);
    }
    for (at = 0; at < 2 * THREADS; at++) {
        CHECK(pthread_join(threads[at], NULL) == 0);
    }
    CHECK(closesocket(listener) == 0);
}

static void other_sockets_and_files_are_untouched(void)
{
    struct sockaddr_in inet;
    struct sockaddr_in name;
    struct sockaddr_un local;
    int length = sizeof name;
    int ends[2];
    int flag = 1;
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    int client, server, unix_socket;
    char byte;
    struct timeval limit = { 0, 20000 };
    memset(&inet, 0, sizeof inet);
    inet.sin_family = AF_INET;
    inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(tcp >= 0);
    CHECK(setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &flag, sizeof flag) == 0);
    CHECK(bind(tcp, (struct sockaddr *)&inet, sizeof inet) == 0);
    CHECK(listen(tcp, 1) == 0);
    CHECK(getsockname(tcp, (struct sockaddr *)&name, &length) == 0 && length == sizeof name);
    client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&name, sizeof name) == 0);
    server = accept(tcp, NULL, NULL);
    CHECK(server >= 0 && send(client, "t", 1, 0) == 1 && recv(server, &byte, 1, 0) == 1 && byte == 't');
    CHECK(setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK(recv(server, &byte, 1, 0) == -1 && errno == EAGAIN && WSAGetLastError() == WSAETIMEDOUT);
    CHECK(closesocket(client) == 0 && recv(server, &byte, 1, 0) == 0 && closesocket(server) == 0);
    CHECK(closesocket(tcp) == 0);
    client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&name, sizeof name) == -1);
    CHECK(errno == ECONNREFUSED && WSAGetLastError() == WSAECONNREFUSED);
    CHECK(close(client) == 0);

    unix_socket = socket(AF_UNIX, SOCK_DGRAM, 0);
    memset(&local, 0, sizeof local);
    local.sun_family = AF_UNIX;
    CHECK(unix_socket >= 0 && bind(unix_socket, (struct sockaddr *)&local, sizeof(sa_family_t)) == 0);
    CHECK(close(unix_socket) == 0);
    CHECK(pipe(ends) == 0);
    CHECK(send(ends[1], "x", 1, 0) == -1 && WSAGetLastError() == WSAENOTSOCK && errno == ENOTSOCK);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void a_number_that_was_closed_by_close_is_no_socket_any_more(void)
{
    SOCKET s = listening(2761);
    int file;
    SOCKET again;
    SOCKADDR_HV address = address_of(HV_GUID_WILDCARD, 2761);
    CHECK(close(s) == 0);
    file = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(file == s);
    CHECK(send(file, "x", 1, 0) == -1 && WSAGetLastError() == WSAENOTSOCK);
    CHECK(listen(file, 1) == -1 && errno == ENOTSOCK);
    /* Its listener is found to be gone by the next bind. */
    again = new_socket();
    CHECK(bind(again, (struct sockaddr *)&address, sizeof address) == 0 && listen(again, 1) == 0);
    CHECK(closesocket(again) == 0 && close(file) == 0);
}

static void vectors_of_buffers_are_sent_and_received(void)
{
    SOCKET client, server;
    char one[3] = { 'a', 'b', 'c' };
    char two[2] = { 'd', 'e' };
    char to[5];
    WSABUF out[2], in[1];
    DWORD count = 0;
    DWORD flags = MSG_WAITALL;
    pair(&client, &server);
    out[0].len = 3;
    out[0].buf = one;
    out[1].len = 2;
    out[1].buf = two;
    CHECK(WSASend(client, out, 2, &count, 0, NULL, NULL) == 0 && count == 5);
    in[0].len = sizeof to;
    in[0].buf = to;
    CHECK(WSARecv(server, in, 1, &count, &flags, NULL, NULL) == 0 && count == 5);
    CHECK(memcmp(to, "abcde", 5) == 0);
    CHECK(WSASend(client, out, 2, &count, 0, &count, NULL) == -1 && WSAGetLastError() == WSAEOPNOTSUPP);
    CHECK(closesocket(client) == 0 && closesocket(server) == 0);
}

static void versions_are_negotiated(void)
{
    WSADATA data;
    CHECK(WSAStartup(MAKEWORD(2, 2), &data) == 0 && data.wVersion == MAKEWORD(2, 2));
    CHECK(WSAStartup(MAKEWORD(1, 1), &data) == 0 && data.wVersion == MAKEWORD(1, 1));
    CHECK(WSAStartup(MAKEWORD(3, 0), &data) == 0 && data.wVersion == MAKEWORD(2, 2));
    CHECK(WSAStartup(MAKEWORD(0, 9), &data) == WSAVERNOTSUPPORTED);
    CHECK(WSACleanup() == 0);
}

/* Runs all tests but the one that is named. */
int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        { "versions", versions_are_negotiated },
        { "both ways", bytes_go_both_ways },
        { "half-close", a_half_close_ends_one_direction },
        { "reset", a_peer_that_leaves_bytes_unread_is_a_reset_without_a_signal },
        { "errors", errors_have_the_numbers_of_windows },
        { "options", options_have_windows_values },
        { "non-blocking", nonblocking_sockets_wait_in_poll_select_and_epoll },
        { "failing connect", a_nonblocking_connect_that_fails_is_an_exception_with_its_error },
        { "epoll", a_socket_stays_in_an_epoll_set_from_before_its_connect },
        { "closing a listener", closing_a_listener_ends_the_accept_of_another_thread },
        { "closing a socket", closing_a_socket_ends_the_calls_of_other_threads },
        { "signals", a_signal_ends_a_blocking_call_unless_its_handler_restarts_it },
        { "deadline of accept", an_accept_ends_after_the_time_of_its_option },
        { "fork", a_child_process_serves_a_connection_that_its_parent_closes },
        { "arguments", arguments_that_point_nowhere_are_errors },
        { "many", thousands_of_sockets_are_polled },
        { "threads", many_threads_connect_and_accept_at_a_time },
        { "others", other_sockets_and_files_are_untouched },
        { "close", a_number_that_was_closed_by_close_is_no_socket_any_more },
        { "vectors", vectors_of_buffers_are_sent_and_received },
    };
    size_t at;
    signal(SIGPIPE, SIG_DFL);
    alarm(100);
    for (at = 0; at < sizeof tests / sizeof tests[0]; at++) {
        if (argc > 1 && strcmp(argv[1], tests[at].name) == 0) {
            continue;
        }
        fprintf(stderr, "%s\n", tests[at].name);
        tests[at].run();
    }
    return 0;
}
