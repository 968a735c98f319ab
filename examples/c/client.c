/*
 * The client of a Hyper-V socket, from one text for Windows and for Linux: it sends a text, or with "-" what it reads from
 * standard input, to the server in the parent partition, in its own one, or in the virtual machine or container with a
 * GUID, and prints what comes back.
 *
 * client [TEXT|- [parent|loopback|GUID [PORT]]]
 *
 * Linux:   cc client.c $(pkg-config --cflags --libs hvsock) -o client
 * Windows: x86_64-w64-mingw32-gcc -I INCLUDE client.c -lws2_32 -o client.exe
 */
#include <winsock2.h>
#include <hvsocket.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char *what)
{
    fprintf(stderr, "client: %s failed: %d\n", what, WSAGetLastError());
    return 1;
}

/* Reads a partition: a word, or a GUID in its usual form. Returns whether it is one. */
static int partition_of(const char *text, GUID *id)
{
    unsigned data[11];
    int index, length = 0;

    if (strcmp(text, "parent") == 0) {
        *id = HV_GUID_PARENT;
        return 1;
    }
    if (strcmp(text, "loopback") == 0) {
        *id = HV_GUID_LOOPBACK;
        return 1;
    }
    if (sscanf(text, "%8x-%4x-%4x-%2x%2x-%2x%2x%2x%2x%2x%2x%n", &data[0], &data[1], &data[2], &data[3], &data[4],
            &data[5], &data[6], &data[7], &data[8], &data[9], &data[10], &length)
            != 11
        || length != 36 || text[length] != '\0') {
        return 0;
    }
    id->Data1 = data[0];
    id->Data2 = (unsigned short)data[1];
    id->Data3 = (unsigned short)data[2];
    for (index = 0; index < 8; index++) {
        id->Data4[index] = (unsigned char)data[3 + index];
    }
    return 1;
}

int main(int argc, char **argv)
{
    WSADATA data;
    SOCKADDR_HV address;
    SOCKET connection;
    ULONG timeout = 10000;
    const char *text = argc > 1 ? argv[1] : "hello";
    const char *partition = argc > 2 ? argv[2] : "parent";
    static char bytes[65536];
    size_t length = strlen(text);
    int count;

    if (strcmp(text, "-") == 0) {
        length = fread(bytes, 1, sizeof bytes, stdin);
        if (ferror(stdin) || getchar() != EOF) {
            fprintf(stderr, "client: cannot read the input, or it has more than %u bytes\n", (unsigned)sizeof bytes);
            return 1;
        }
        text = bytes;
    }

    if (WSAStartup(MAKEWORD(2, 2), &data) != 0) {
        return failed("WSAStartup");
    }
    connection = socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW);
    if (connection == INVALID_SOCKET) {
        return failed("socket");
    }
    if (setsockopt(connection, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (const char *)&timeout, sizeof timeout)
        == SOCKET_ERROR) {
        return failed("setsockopt");
    }

    memset(&address, 0, sizeof address);
    address.Family = AF_HYPERV;
    if (!partition_of(partition, &address.VmId)) {
        fprintf(stderr, "client: %s is not parent, loopback or a GUID\n", partition);
        return 2;
    }
    address.ServiceId = HV_GUID_VSOCK_TEMPLATE;
    address.ServiceId.Data1 = argc > 3 ? (ULONG)strtoul(argv[3], NULL, 10) : 2761;
    if (connect(connection, (const struct sockaddr *)&address, sizeof address) == SOCKET_ERROR) {
        return failed("connect");
    }
    while (length > 0) {
        count = (int)send(connection, text, (int)length, 0);
        if (count == SOCKET_ERROR) {
            return failed("send");
        }
        text += count;
        length -= (size_t)count;
    }
    if (shutdown(connection, SD_SEND) == SOCKET_ERROR) {
        return failed("shutdown");
    }
    while ((count = (int)recv(connection, bytes, sizeof bytes, 0)) > 0) {
        fwrite(bytes, 1, (size_t)count, stdout);
    }
    if (count == SOCKET_ERROR) {
        return failed("recv");
    }
    printf("\n");
    closesocket(connection);
    WSACleanup();
    return 0;
}
