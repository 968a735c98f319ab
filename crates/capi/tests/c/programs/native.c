/* What the functions of hvsock.h do, with both ends in this process. */
#include <hvsock.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                                           \
    do {                                                                                                           \
        if (!(condition)) {                                                                                        \
            fprintf(stderr, "%s:%d: %s; %d %s\n", __FILE__, __LINE__, #condition, hvsock_error_errno(),            \
                hvsock_error_text());                                                                              \
            exit(1);                                                                                               \
        }                                                                                                          \
    } while (0)

static void pair(const char *service, hvsock_connection **client, hvsock_connection **server,
    const hvsock_options *options)
{
    hvsock_listener *listener = hvsock_listen("any", service, options);
    CHECK(listener != NULL);
    *client = hvsock_connect("loopback", service, options);
    CHECK(*client != NULL);
    *server = hvsock_accept(listener, 20000);
    CHECK(*server != NULL);
    CHECK(hvsock_accept(listener, 0) == NULL && hvsock_error_errno() == ETIMEDOUT);
    hvsock_listener_close(listener);
}

static void bytes_and_addresses(void)
{
    hvsock_connection *client, *server, *clone;
    hvsock_peer peer;
    char bytes[64];
    unsigned char address[36];
    struct pollfd one;
    pair("HV Socket Demo", &client, &server, NULL);
    CHECK(hvsock_write(client, "hello", 5) == 5);
    CHECK(hvsock_poll(server, HVSOCK_READABLE, 20000) == HVSOCK_READABLE);
    CHECK(hvsock_peek(server, bytes, sizeof bytes) == 5 && hvsock_read(server, bytes, sizeof bytes) == 5);
    CHECK(memcmp(bytes, "hello", 5) == 0);
    CHECK(hvsock_set_nonblocking(server, 1) == 0);
    CHECK(hvsock_read(server, bytes, 1) == -1 && hvsock_error_errno() == EAGAIN && hvsock_error_wsa() == 10035);
    CHECK(hvsock_write_all(client, "again", 5) == 0);
    one.fd = hvsock_poll_fd(server);
    one.events = POLLIN;
    CHECK(poll(&one, 1, 20000) == 1 && hvsock_read(server, bytes, sizeof bytes) == 5);
    CHECK(hvsock_set_nonblocking(server, 0) == 0 && hvsock_set_timeouts(server, 20, 0) == 0);
    CHECK(hvsock_read(server, bytes, 1) == -1 && hvsock_error_errno() == ETIMEDOUT);
    CHECK(hvsock_peer_of(server, &peer) == 0 && peer.pid == getpid() && peer.partition[0] != 0);
    CHECK(hvsock_peer_of(client, &peer) == -1 && hvsock_error_errno() == ENOTCONN);
    CHECK(hvsock_peer_address(client, address) == 0 && address[0] == 34 && address[1] == 0);
    CHECK(hvsock_local_address(server, address) == 0 && address[20] == 0xc9 && address[21] == 0x0a);
    CHECK(hvsock_connection_id(client) == hvsock_connection_id(server));
    clone = hvsock_clone(client);
    hvsock_close(client);
    CHECK(hvsock_write_all(clone, "x", 1) == 0 && hvsock_read(server, bytes, 1) == 1);
    hvsock_close(clone);
    CHECK(hvsock_read(server, bytes, 1) == 0);
    hvsock_close(server);
}

static void *consume(void *argument)
{
    CHECK(hvsock_consume((hvsock_filled *)argument, 1) == -1 && hvsock_error_errno() == EPERM);
    return NULL;
}

static void rings_in_place(void)
{
    hvsock_connection *client, *server;
    hvsock_reserved *reserved;
    hvsock_filled *filled;
    hvsock_segment segments[2];
    pthread_t thread;
    char byte;
    pair("Other", &client, &server, NULL);
    CHECK(strcmp(hvsock_transport(client), "ring") == 0);
    CHECK(hvsock_reserve(client, 10, &reserved, segments) == 1 && segments[0].length >= 1);
    CHECK(hvsock_write(client, "x", 1) == -1 && hvsock_error_errno() == EDEADLK);
    memcpy(segments[0].data, "abc", 3);
    CHECK(hvsock_commit(reserved, 1000) == -1 && hvsock_error_errno() == EINVAL);
    CHECK(hvsock_commit(reserved, 3) == 0);
    CHECK(hvsock_reserve(client, 10, &reserved, segments) == 1 && hvsock_commit(reserved, 0) == 0);
    CHECK(hvsock_fill(server, &filled, segments) == 1 && segments[0].length + segments[1].length == 3);
    CHECK(memcmp(segments[0].data, "abc", 3) == 0);
    CHECK(hvsock_read(server, &byte, 1) == -1 && hvsock_error_errno() == EDEADLK);
    CHECK(pthread_create(&thread, NULL, consume, filled) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(hvsock_consume(filled, 4) == -1 && hvsock_error_errno() == EINVAL);
    CHECK(hvsock_consume(filled, 1) == 0);
    CHECK(hvsock_read(server, &byte, 1) == 1 && byte == 'b');
    /* A borrow outlives the handle. */
    CHECK(hvsock_fill(server, &filled, segments) == 1);
    hvsock_close(server);
    CHECK(*(const char *)segments[0].data == 'c' && hvsock_consume(filled, 1) == 0);
    CHECK(hvsock_shutdown(client, HVSOCK_SHUTDOWN_WRITE) == 0);
    hvsock_close(client);
}

static void descriptors(void)
{
    hvsock_options options = HVSOCK_OPTIONS_INIT;
    hvsock_connection *client, *server;
    hvsock_filled *filled;
    hvsock_segment segments[2];
    char bytes[8];
    int fd;
    options.flags = HVSOCK_RAW_FD;
    pair("2763", &client, &server, &options);
    CHECK(strcmp(hvsock_transport(client), "descriptor") == 0);
    CHECK(hvsock_fill(client, &filled, segments) == -1 && hvsock_error_errno() == EOPNOTSUPP);
    fd = hvsock_into_fd(client);
    CHECK(fd >= 0 && write(fd, "fd", 2) == 2 && close(fd) == 0);
    CHECK(hvsock_read(server, bytes, sizeof bytes) == 2 && hvsock_read(server, bytes, sizeof bytes) == 0);
    hvsock_close(server);
}

static void names_and_guids(void)
{
    unsigned char id[16], other[16];
    char text[37];
    hvsock_lease *lease = hvsock_register("Leased", NULL, "a test", NULL);
    CHECK(lease != NULL && hvsock_lease_check(lease) == 0 && hvsock_lease_id(lease, id) == 0);
    CHECK(hvsock_service_id("Leased", NULL, other) == 0 && memcmp(id, other, 16) == 0);
    CHECK(hvsock_lease_poll_fd(lease) >= 0);
    hvsock_lease_close(lease);
    /* Until the broker knows that the descriptor is closed. */
    while (hvsock_service_id("Leased", NULL, other) == 0) {
        usleep(1000);
    }
    CHECK(strcmp(hvsock_error_label(), "unregistered") == 0);
    CHECK(hvsock_partition_id("web", NULL, id) == 0);
    CHECK(hvsock_partition_id("nobody", NULL, id) == -1 && hvsock_error_code() == 4);
    CHECK(hvsock_service_of_port(2761, id) == 0 && hvsock_guid_format(id, text) == 0);
    CHECK(strcmp(text, "00000ac9-facb-11e6-bd58-64006a7986d3") == 0);
    CHECK(hvsock_guid_parse("{00000AC9-FACB-11E6-BD58-64006A7986D3}", other) == 0 && memcmp(id, other, 16) == 0);
    CHECK(hvsock_guid_parse("no", other) == -1 && hvsock_error_errno() == EINVAL);
}

static void refusals_and_wrong_arguments(void)
{
    hvsock_options options = HVSOCK_OPTIONS_INIT;
    hvsock_connection *none;
    char *text;
    int succeeds = -1;
    char bytes[4];
    text = hvsock_explain_connect("loopback", "2764", NULL, &succeeds);
    CHECK(text != NULL && succeeds == 0 && strlen(text) > 0);
    hvsock_text_free(text);
    text = hvsock_explain_listen("any", "2764", NULL, &succeeds);
    CHECK(text != NULL && succeeds == 1);
    hvsock_text_free(text);
    options.flags = HVSOCK_EXPLAIN;
    none = hvsock_connect("loopback", "2764", &options);
    CHECK(none == NULL && hvsock_error_code() == 9 && strcmp(hvsock_error_fix_kind(), "start_listener") == 0);
    CHECK(hvsock_error_fix()[0] != '\0' && hvsock_error_explanation()[0] != '\0');
    CHECK(hvsock_connect(NULL, "x", NULL) == NULL && hvsock_error_errno() == EINVAL);
    CHECK(hvsock_connect("\xff", "x", NULL) == NULL && hvsock_error_errno() == EINVAL);
    CHECK(hvsock_connect_url("hvsock://loopback", NULL) == NULL && hvsock_error_errno() == EINVAL);
    CHECK(hvsock_connect_address("short", 5, NULL) == NULL && hvsock_error_errno() == EINVAL);
    options.size = 3;
    CHECK(hvsock_connect("loopback", "x", &options) == NULL && hvsock_error_errno() == EINVAL);
    options.size = sizeof options;
    options.flags = 0x8000;
    CHECK(hvsock_connect("loopback", "x", &options) == NULL && hvsock_error_errno() == EINVAL);
    options.flags = 0;
    options.endpoint = "/nowhere";
    CHECK(hvsock_connect("loopback", "2764", &options) == NULL && hvsock_error_errno() == ENOENT);
    CHECK(strcmp(hvsock_error_fix_kind(), "start_broker") == 0);
    CHECK(hvsock_read(NULL, bytes, 4) == -1 && hvsock_write(NULL, bytes, 4) == -1 && hvsock_poll_fd(NULL) == -1);
    CHECK(hvsock_accept(NULL, 0) == NULL && hvsock_transport(NULL) == NULL && hvsock_clone(NULL) == NULL);
    CHECK(hvsock_consume(NULL, 0) == 0 && hvsock_commit(NULL, 0) == 0);
    hvsock_close(NULL);
    hvsock_listener_close(NULL);
    hvsock_lease_close(NULL);
    hvsock_text_free(NULL);
    CHECK(hvsock_version() >= 0x000100);
}

int main(void)
{
    alarm(100);
    fprintf(stderr, "bytes\n");
    bytes_and_addresses();
    fprintf(stderr, "rings\n");
    rings_in_place();
    fprintf(stderr, "descriptors\n");
    descriptors();
    fprintf(stderr, "names\n");
    names_and_guids();
    fprintf(stderr, "refusals\n");
    refusals_and_wrong_arguments();
    return 0;
}
