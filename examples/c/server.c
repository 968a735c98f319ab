/*
 * The server of a Hyper-V socket, from one text for Windows and for Linux: it accepts a connection and sends back what it
 * receives, until the client has sent everything.
 *
 * server [CONNECTIONS [PORT]]
 *
 * Linux:   cc server.c $(pkg-config --cflags --libs hvsock) -o server
 * Windows: x86_64-w64-mingw32-gcc -I INCLUDE server.c -lws2_32 -o server.exe
 *
 * The service is the vsock port 2761: hvsock service register "HV Socket Demo" --port 2761
 */
#include <winsock2.h>
#include <hvsocket.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char *what)
{
    fprintf(stderr, "server: %s failed: %d\n", what, WSAGetLastError());
    return 1;
}

int main(int argc, char **argv)
{
    WSADATA data;
    SOCKADDR_HV address;
    SOCKADDR_HV peer;
    SOCKET listener;
    int connections = argc > 1 ? atoi(argv[1]) : 1;

    if (WSAStartup(MAKEWORD(2, 2), &data) != 0) {
        return failed("WSAStartup");
    }
    listener = socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW);
    if (listener == INVALID_SOCKET) {
        return failed("socket");
    }

    memset(&address, 0, sizeof address);
    address.Family = AF_HYPERV;
    address.VmId = HV_GUID_WILDCARD;
    address.ServiceId = HV_GUID_VSOCK_TEMPLATE;
    address.ServiceId.Data1 = argc > 2 ? (ULONG)strtoul(argv[2], NULL, 10) : 2761;
    if (bind(listener, (const struct sockaddr *)&address, sizeof address) == SOCKET_ERROR) {
        return failed("bind");
    }
    if (listen(listener, SOMAXCONN) == SOCKET_ERROR) {
        return failed("listen");
    }
    printf("listening\n");
    fflush(stdout);

    for (; connections > 0; connections--) {
        char bytes[4096];
        int length = sizeof peer;
        int count;
        SOCKET connection = accept(listener, (struct sockaddr *)&peer, &length);
        if (connection == INVALID_SOCKET) {
            return failed("accept");
        }
        while ((count = (int)recv(connection, bytes, sizeof bytes, 0)) > 0) {
            int sent = 0;
            while (sent < count) {
                int more = (int)send(connection, bytes + sent, count - sent, 0);
                if (more == SOCKET_ERROR) {
                    return failed("send");
                }
                sent += more;
            }
        }
        if (count == SOCKET_ERROR) {
            return failed("recv");
        }
        closesocket(connection);
    }
    closesocket(listener);
    WSACleanup();
    return 0;
}
