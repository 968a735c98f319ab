/*
 * A client of the conformance peer of docs/vectors, by the calls of Winsock or by hvsock.h:
 *
 *   conformance winsock|native exchange REQUEST WRITE after_send|after_end|never CONNECTIONS
 *   conformance winsock|native close|close_unread REQUEST
 *   conformance winsock|native refused PARTITION SERVICE
 *
 * The data to send is on standard input. What is received goes to standard output, once for all connections, which
 * must agree; the end (clean, reset, or the number of another error) or the label of a refusal to standard error.
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

static int is_native;
static char *input;
static size_t input_length;
static const char *request, *half_close;
static size_t write_size;

static int stream_connect(struct stream *stream)
{
    if (is_native) {
        hvsock_options options = HVSOCK_OPTIONS_INIT;
        options.timeout_ms = 30000;
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

static ptrdiff_t stream_read(struct stream *stream, void *to, size_t length)
{
    return is_native ? hvsock_read(stream->native, to, length) : recv(stream->socket, (char *)to, length, 0);
}

static int stream_write(struct stream *stream, const char *from, size_t length)
{
    while (length > 0) {
        ptrdiff_t count = is_native ? hvsock_write(stream->native, from, length) : send(stream->socket, from, length, 0);
        if (count < 0) {
            return -1;
        }
        from += count;
        length -= (size_t)count;
    }
    return 0;
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

int main(int argc, char **argv)
{
    struct stream stream;
    char byte;
    if (argc < 4) {
        return 2;
    }
    is_native = strcmp(argv[1], "native") == 0;
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
