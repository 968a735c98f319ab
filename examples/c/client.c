/*
 * The client of a Hyper-V socket, from one text for Windows and for Linux: it sends a text, or with "-" what it reads from
 * standard input, to the server in the parent partition or in its own one, and prints what comes back.
 *
 * client [TEXT|- [parent|loopback [PORT]]]
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
    address.VmId = strcmp(partition, "loopback") == 0 ? HV_GUID_LOOPBACK : HV_GUID_PARENT;
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
