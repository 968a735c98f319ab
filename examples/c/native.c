/*
 * hvsock.h: a connection by names, with the reason and the help of a refusal, and the received bytes in place.
 *
 * cc native.c $(pkg-config --cflags --libs hvsock) -o native
 * ./native parent "HV Socket Demo" hello
 */
#include <hvsock.h>

#include <stdio.h>
#include <string.h>

static int failed(const char *what)
{
    fprintf(stderr, "native: %s: %s\n", what, hvsock_error_text());
    if (hvsock_error_code() != 0) {
        fprintf(stderr, "refusal %u: %s\n", (unsigned)hvsock_error_code(), hvsock_error_label());
    }
    if (hvsock_error_fix()[0] != '\0') {
        fprintf(stderr, "help: %s\n", hvsock_error_fix());
    }
    return 1;
}

int main(int argc, char **argv)
{
    hvsock_options options = HVSOCK_OPTIONS_INIT;
    hvsock_connection *connection;
    hvsock_filled *filled;
    hvsock_segment segments[2];
    const char *partition = argc > 1 ? argv[1] : "parent";
    const char *service = argc > 2 ? argv[2] : "HV Socket Demo";
    const char *text = argc > 3 ? argv[3] : "hello";
    int more;

    options.timeout_ms = 10000;
    options.flags = HVSOCK_EXPLAIN;
    connection = hvsock_connect(partition, service, &options);
    if (connection == NULL) {
        return failed("cannot connect");
    }
    if (hvsock_write_all(connection, text, strlen(text)) < 0
        || hvsock_shutdown(connection, HVSOCK_SHUTDOWN_WRITE) < 0) {
        return failed("cannot write");
    }
    fprintf(stderr, "transport: %s\n", hvsock_transport(connection));
    if (strcmp(hvsock_transport(connection), "ring") == 0) {
        while ((more = hvsock_fill(connection, &filled, segments)) > 0) {
            fwrite(segments[0].data, 1, segments[0].length, stdout);
            fwrite(segments[1].data, 1, segments[1].length, stdout);
            if (hvsock_consume(filled, segments[0].length + segments[1].length) < 0) {
                return failed("cannot consume");
            }
        }
    } else {
        char bytes[4096];
        ptrdiff_t count;
        while ((count = hvsock_read(connection, bytes, sizeof bytes)) > 0) {
            fwrite(bytes, 1, (size_t)count, stdout);
        }
        more = (int)count;
    }
    if (more < 0) {
        return failed("cannot read");
    }
    printf("\n");
    hvsock_close(connection);
    return 0;
}
