/*
 * A client of the conformance peer of docs/vectors, by one of the interfaces of the library:
 *
 *   winsock    the calls of Windows Sockets
 *   native     hvsock.h, with the bytes in shared memory
 *   descriptor hvsock.h, with the bytes in a socket
 *   in_place   hvsock.h, with the bytes in shared memory and without a copy
 *
 *   conformance INTERFACE exchange REQUEST WRITE after_send|after_end|never CONNECTIONS
 *   conformance INTERFACE close|close_unread REQUEST
 *   conformance INTERFACE refused PARTITION SERVICE
 *   conformance INTERFACE deadline REQUEST MILLISECONDS WAY
 *   conformance INTERFACE backpressure REQUEST RELEASE LIMIT WAY
 *   conformance INTERFACE accept REQUEST CONNECTIONS WAY
 *
 * A WAY is how a program bounds its calls: by a timeout of the socket, by a poll before each call, or in nonblocking mode.
 *
 * The data to send is on standard input. What is received goes to standard output, once for all connections, which
 * must agree; the end (clean, reset, or the number of another error), the label of a refusal or the count of the bytes
 * sent to standard error.
 */
#include <winsock2.h>
#include <hvsocket.h>
#include <hvsock.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const NAME = "hvsock conformance";
static const GUID ID = { 0xc7f5b0a2, 0x4d1e, 0x4c3b, { 0x9a, 0x60, 0x5d, 0x0e, 0x6b, 0x7a, 0x8c, 0x91 } };

enum { MOST = 8 << 20 };

/* A connection by one of the two. */
struct stream {
    SOCKET socket;
    hvsock_connection *native;
};

static int is_native, is_in_place;
static unsigned native_flags;
static char *input;
static size_t input_length;
static const char *request, *half_close;
static size_t write_size;

static int stream_connect(struct stream *stream)
{
    if (is_native) {
        hvsock_options options = HVSOCK_OPTIONS_INIT;
        options.timeout_ms = 30000;
        options.flags = native_flags;
        stream->native = hvsock_connect("loopback", NAME, &options);
        return stream->native == NULL ? -1 : 0;
    } else {
        SOCKADDR_HV address;
        ULONG limit = 30000;
        memset(&address, 0, sizeof address);
        address.Family = AF_HYPERV;
        address.VmId = HV_GUID_LOOPBACK;
        address.ServiceId = ID;
        stream->socket = socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW);
        setsockopt(stream->socket, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (const char *)&limit, sizeof limit);
        return connect(stream->socket, (struct sockaddr *)&address, sizeof address);
    }
}

static ptrdiff_t read_in_place(hvsock_connection *connection, char *to, size_t length)
{
    hvsock_filled *filled;
    hvsock_segment segments[2];
    size_t at, count = 0;
    int more = hvsock_fill(connection, &filled, segments);
    if (more <= 0) {
        return more;
    }
    for (at = 0; at < 2; at++) {
        size_t part = segments[at].length < length - count ? segments[at].length : length - count;
        memcpy(to + count, segments[at].data, part);
        count += part;
    }
    return hvsock_consume(filled, count) < 0 ? -1 : (ptrdiff_t)count;
}

static ptrdiff_t write_in_place(hvsock_connection *connection, const char *from, size_t length)
{
    hvsock_reserved *reserved;
    hvsock_segment segments[2];
    size_t at, count = 0;
    if (hvsock_reserve(connection, length, &reserved, segments) < 0) {
        return -1;
    }
    for (at = 0; at < 2; at++) {
        size_t part = segments[at].length < length - count ? segments[at].length : length - count;
        memcpy(segments[at].data, from + count, part);
        count += part;
    }
    return hvsock_commit(reserved, count) < 0 ? -1 : (ptrdiff_t)count;
}

static ptrdiff_t stream_read(struct stream *stream, void *to, size_t length)
{
    if (is_in_place) {
        return read_in_place(stream->native, (char *)to, length);
    }
    return is_native ? hvsock_read(stream->native, to, length) : recv(stream->socket, (char *)to, length, 0);
}

static ptrdiff_t stream_write_some(struct stream *stream, const char *from, size_t length)
{
    if (is_in_place) {
        return write_in_place(stream->native, from, length);
    }
    return is_native ? hvsock_write(stream->native, from, length) : send(stream->socket, from, length, 0);
}

static int stream_write(struct stream *stream, const char *from, size_t length)
{
    while (length > 0) {
        ptrdiff_t count = stream_write_some(stream, from, length);
        if (count < 0) {
            return -1;
        }
        from += count;
        length -= (size_t)count;
    }
    return 0;
}

/* Limits the blocking of each read and each write. 0 is no limit. */
static int stream_limit(struct stream *stream, DWORD read_ms, DWORD write_ms)
{
    if (is_native) {
        return hvsock_set_timeouts(stream->native, read_ms, write_ms);
    }
    return setsockopt(stream->socket, SOL_SOCKET, SO_RCVTIMEO, (const char *)&read_ms, sizeof read_ms)
        | setsockopt(stream->socket, SOL_SOCKET, SO_SNDTIMEO, (const char *)&write_ms, sizeof write_ms);
}

static int stream_set_nonblocking(struct stream *stream, int on)
{
    u_long mode = (u_long)on;
    return is_native ? hvsock_set_nonblocking(stream->native, on) : ioctlsocket(stream->socket, FIONBIO, &mode);
}

/* Whether it is readable, or else writable, within a time. */
static int stream_poll(struct stream *stream, int is_write, int milliseconds)
{
    WSAPOLLFD one;
    if (is_native) {
        return hvsock_poll(stream->native, is_write ? HVSOCK_WRITABLE : HVSOCK_READABLE, milliseconds) > 0;
    }
    one.fd = stream->socket;
    one.events = is_write ? POLLWRNORM : POLLRDNORM;
    return WSAPoll(&one, 1, milliseconds) > 0;
}

static int stream_end(struct stream *stream)
{
    return is_native ? hvsock_shutdown(stream->native, HVSOCK_SHUTDOWN_WRITE) : shutdown(stream->socket, SD_SEND);
}

static void stream_close(struct stream *stream)
{
    if (is_native) {
        hvsock_close(stream->native);
    } else {
        closesocket(stream->socket);
    }
}

struct exchange {
    struct stream stream;
    char *received;
    size_t length;
    /* 0, or the number of winsock2.h. */
    int send_error, receive_error;
};

static int failed(void)
{
    return hvsock_error_wsa();
}

static void *send_all(void *argument)
{
    struct exchange *exchange = (struct exchange *)argument;
    size_t at = 0;
    while (at < input_length) {
        size_t count = input_length - at < write_size ? input_length - at : write_size;
        if (stream_write(&exchange->stream, input + at, count) != 0) {
            exchange->send_error = failed();
            return NULL;
        }
        at += count;
    }
    if (strcmp(half_close, "never") != 0 && stream_end(&exchange->stream) != 0) {
        exchange->send_error = failed();
    }
    return NULL;
}

static void receive_all(struct exchange *exchange)
{
    ptrdiff_t count;
    exchange->received = (char *)malloc(MOST);
    while ((count = stream_read(&exchange->stream, exchange->received + exchange->length, MOST - exchange->length)) > 0) {
        exchange->length += (size_t)count;
    }
    if (count < 0) {
        exchange->receive_error = failed();
    }
}

static int begin(struct stream *stream)
{
    if (stream_connect(stream) != 0 || stream_write(stream, request, strlen(request)) != 0
        || stream_write(stream, "\n", 1) != 0) {
        fprintf(stderr, "%s\n", hvsock_error_text());
        return 0;
    }
    return 1;
}

static void *run_exchange(void *argument)
{
    struct exchange *exchange = (struct exchange *)argument;
    pthread_t sender;
    if (!begin(&exchange->stream)) {
        exchange->send_error = -1;
        return NULL;
    }
    if (strcmp(half_close, "after_end") == 0) {
        receive_all(exchange);
        send_all(exchange);
    } else if (pthread_create(&sender, NULL, send_all, exchange) == 0) {
        receive_all(exchange);
        pthread_join(sender, NULL);
    }
    stream_close(&exchange->stream);
    return NULL;
}

static int exchanges(int connections)
{
    struct exchange *all = (struct exchange *)calloc((size_t)connections, sizeof *all);
    pthread_t *threads = (pthread_t *)calloc((size_t)connections, sizeof *threads);
    int at, error = 0, status = 0;
    for (at = 0; at < connections; at++) {
        if (pthread_create(&threads[at], NULL, run_exchange, &all[at]) != 0) {
            return 1;
        }
    }
    for (at = 0; at < connections; at++) {
        pthread_join(threads[at], NULL);
    }
    for (at = 0; at < connections; at++) {
        int own = all[at].receive_error != 0 ? all[at].receive_error : all[at].send_error;
        if (all[at].length != all[0].length || memcmp(all[at].received, all[0].received, all[0].length) != 0) {
            status = 1;
        }
        if (own != 0) {
            error = own;
        }
    }
    fwrite(all[0].received, 1, all[0].length, stdout);
    if (error == 0) {
        fprintf(stderr, "clean");
    } else if (error == WSAECONNRESET) {
        fprintf(stderr, "reset");
    } else {
        fprintf(stderr, "%d", error);
    }
    for (at = 0; at < connections; at++) {
        free(all[at].received);
    }
    free(all);
    free(threads);
    return status;
}

/* A way to bound calls. */
enum way { BY_TIMEOUT, BY_POLL, NONBLOCKING };

static enum way way_of(const char *name)
{
    return strcmp(name, "timeout") == 0 ? BY_TIMEOUT : strcmp(name, "poll") == 0 ? BY_POLL : NONBLOCKING;
}

/* A read fails at its deadline, and then a byte that is sent comes back. */
static int deadline(int milliseconds, enum way way)
{
    struct stream stream;
    char byte = 0;
    int number;
    if (!begin(&stream)) {
        return 1;
    }
    switch (way) {
    case BY_TIMEOUT:
        if (stream_limit(&stream, (DWORD)milliseconds, 0) != 0 || stream_read(&stream, &byte, 1) != -1) {
            return 1;
        }
        break;
    case BY_POLL:
        if (stream_poll(&stream, 0, milliseconds)) {
            return 1;
        }
        break;
    case NONBLOCKING:
        if (stream_set_nonblocking(&stream, 1) != 0 || stream_read(&stream, &byte, 1) != -1) {
            return 1;
        }
    }
    number = failed();
    if (way != BY_POLL && number != (way == BY_TIMEOUT ? WSAETIMEDOUT : WSAEWOULDBLOCK)) {
        fprintf(stderr, "the read fails with %d", number);
        return 1;
    }
    if (stream_limit(&stream, 30000, 30000) != 0 || stream_write(&stream, "x", 1) != 0
        || !stream_poll(&stream, 0, 30000) || stream_read(&stream, &byte, 1) != 1 || byte != 'x') {
        return 1;
    }
    stream_close(&stream);
    return 0;
}

/* Byte i is the exclusive or of the four bytes of i. */
static char pattern(size_t at)
{
    return (char)((at ^ (at >> 8) ^ (at >> 16) ^ (at >> 24)) & 0xff);
}

/* Sends what a request is answered by to standard output. */
static int answer(struct stream *stream)
{
    char bytes[256];
    ptrdiff_t count;
    while ((count = stream_read(stream, bytes, sizeof bytes)) > 0) {
        fwrite(bytes, 1, (size_t)count, stdout);
    }
    stream_close(stream);
    return count == 0 ? 0 : 1;
}

/* Sends until a write would block, then has the peer read everything. */
static int backpressure(const char *release, size_t limit, enum way way)
{
    struct stream stream, other;
    char bytes[60000];
    char byte;
    size_t sent = 0;
    if (!begin(&stream)) {
        return 1;
    }
    if (way == BY_TIMEOUT ? stream_limit(&stream, 30000, 200) != 0 : stream_set_nonblocking(&stream, 1) != 0) {
        return 1;
    }
    for (;;) {
        size_t at;
        ptrdiff_t count;
        for (at = 0; at < sizeof bytes; at++) {
            bytes[at] = pattern(sent + at);
        }
        if (sent >= limit) {
            fprintf(stderr, "no write would block");
            return 1;
        }
        if (way == BY_POLL && !stream_poll(&stream, 1, 200)) {
            break;
        }
        count = stream_write_some(&stream, bytes, sizeof bytes);
        if (count < 0 && way != BY_POLL && failed() == (way == BY_TIMEOUT ? WSAETIMEDOUT : WSAEWOULDBLOCK)) {
            break;
        }
        if (count < 0) {
            fprintf(stderr, "the write fails with %d", failed());
            return 1;
        }
        sent += (size_t)count;
    }
    fprintf(stderr, "%lu", (unsigned long)sent);
    request = release;
    if (!begin(&other) || stream_read(&other, &byte, 1) != 1) {
        return 1;
    }
    stream_close(&other);
    if (stream_set_nonblocking(&stream, 0) != 0 || stream_limit(&stream, 30000, 30000) != 0
        || stream_end(&stream) != 0) {
        return 1;
    }
    return answer(&stream);
}

static void *echo(void *argument)
{
    struct stream *stream = (struct stream *)argument;
    char bytes[4096];
    ptrdiff_t count;
    while ((count = stream_read(stream, bytes, sizeof bytes)) > 0) {
        if (stream_write(stream, bytes, (size_t)count) != 0) {
            break;
        }
    }
    stream_close(stream);
    return NULL;
}

/* Listens at the client's service, has the peer dial, and sends back what comes. */
static int accepts(int connections, enum way way)
{
    static const char *const CLIENT_NAME = "hvsock conformance client";
    struct stream asking, *all = (struct stream *)calloc((size_t)connections, sizeof *all);
    pthread_t *threads = (pthread_t *)calloc((size_t)connections, sizeof *threads);
    hvsock_listener *native = NULL;
    SOCKET listener = INVALID_SOCKET;
    WSAPOLLFD one;
    int at, status;
    if (is_native) {
        hvsock_options options = HVSOCK_OPTIONS_INIT;
        options.flags = native_flags;
        native = hvsock_listen("any", CLIENT_NAME, &options);
        if (native == NULL || (way != BY_TIMEOUT && hvsock_listener_set_nonblocking(native, 1) != 0)) {
            return 1;
        }
        one.fd = hvsock_listener_poll_fd(native);
    } else {
        SOCKADDR_HV address;
        u_long mode = 1;
        DWORD limit = 30000;
        memset(&address, 0, sizeof address);
        address.Family = AF_HYPERV;
        address.ServiceId = ID;
        address.ServiceId.Data4[7]++;
        listener = socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW);
        if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, SOMAXCONN) != 0) {
            return 1;
        }
        if (way == BY_TIMEOUT ? setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, (const char *)&limit, sizeof limit) != 0
                              : ioctlsocket(listener, FIONBIO, &mode) != 0) {
            return 1;
        }
        one.fd = listener;
    }
    one.events = POLLIN;
    if (!begin(&asking)) {
        return 1;
    }
    for (at = 0; at < connections; at++) {
        struct stream *stream = &all[at];
        for (;;) {
            if (way == BY_POLL && WSAPoll(&one, 1, 30000) <= 0) {
                return 1;
            }
            if (is_native) {
                stream->native = hvsock_accept(native, 30000);
            } else {
                stream->socket = accept(listener, NULL, NULL);
            }
            if (is_native ? stream->native != NULL : stream->socket != INVALID_SOCKET) {
                break;
            }
            if (way == BY_TIMEOUT || failed() != WSAEWOULDBLOCK || WSAPoll(&one, 1, 30000) <= 0) {
                fprintf(stderr, "the accept fails with %d", failed());
                return 1;
            }
        }
        if (stream_set_nonblocking(stream, 0) != 0 || pthread_create(&threads[at], NULL, echo, stream) != 0) {
            return 1;
        }
    }
    status = answer(&asking);
    for (at = 0; at < connections; at++) {
        pthread_join(threads[at], NULL);
    }
    if (is_native) {
        hvsock_listener_close(native);
    } else {
        closesocket(listener);
    }
    free(all);
    free(threads);
    return status;
}

int main(int argc, char **argv)
{
    struct stream stream;
    char byte;
    if (argc < 4) {
        return 2;
    }
    is_native = strcmp(argv[1], "winsock") != 0;
    is_in_place = strcmp(argv[1], "in_place") == 0;
    native_flags = strcmp(argv[1], "descriptor") == 0 ? HVSOCK_NO_SHARED_MEMORY : 0;
    request = argv[3];
    input = (char *)malloc(MOST);
    input_length = fread(input, 1, MOST, stdin);
    alarm(100);
    if (strcmp(argv[2], "exchange") == 0 && argc == 7) {
        int status;
        write_size = (size_t)strtoul(argv[4], NULL, 10);
        half_close = argv[5];
        status = exchanges(atoi(argv[6]));
        free(input);
        return status;
    }
    if (strcmp(argv[2], "refused") == 0 && argc == 5) {
        if (hvsock_connect(argv[3], argv[4], NULL) != NULL) {
            return 1;
        }
        fprintf(stderr, "%s", hvsock_error_label());
        return 0;
    }
    if (strcmp(argv[2], "deadline") == 0 && argc == 6) {
        return deadline(atoi(argv[4]), way_of(argv[5]));
    }
    if (strcmp(argv[2], "backpressure") == 0 && argc == 7) {
        return backpressure(argv[4], (size_t)strtoul(argv[5], NULL, 10), way_of(argv[6]));
    }
    if (strcmp(argv[2], "accept") == 0 && argc == 6) {
        return accepts(atoi(argv[4]), way_of(argv[5]));
    }
    if (!begin(&stream)) {
        return 1;
    }
    if (strcmp(argv[2], "close") == 0) {
        if (stream_write(&stream, input, input_length) != 0) {
            return 1;
        }
    } else if (is_native) {
        if (hvsock_peek(stream.native, &byte, 1) != 1) {
            return 1;
        }
    } else if (recv(stream.socket, &byte, 1, MSG_PEEK) != 1) {
        return 1;
    }
    stream_close(&stream);
    fprintf(stderr, "closed");
    return 0;
}
