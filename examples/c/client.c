/*
 * The client of a Hyper-V socket, from one text for Windows and for Linux: it sends its argument to the server in the
 * parent partition (or in the same one, with "loopback" as second argument) and prints what comes back.
 *
 * Linux:   cc client.c $(pkg-config --cflags --libs hvsock) -o client
 * Windows: x86_64-w64-mingw32-gcc -I INCLUDE client.c -lws2_32 -o client.exe
 */
#include <winsock2.h>
#include <hvsocket.h>

#include <stdio.h>
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
    char bytes[4096];
    int count;

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
    address.VmId = argc > 2 && strcmp(argv[2], "loopback") == 0 ? HV_GUID_LOOPBACK : HV_GUID_PARENT;
    address.ServiceId = HV_GUID_VSOCK_TEMPLATE;
    address.ServiceId.Data1 = 2761;
    if (connect(connection, (const struct sockaddr *)&address, sizeof address) == SOCKET_ERROR) {
        return failed("connect");
    }
    if (send(connection, text, (int)strlen(text), 0) == SOCKET_ERROR) {
        return failed("send");
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
