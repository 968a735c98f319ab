/* The AF_HYPERV sockets of this process. */
#include "shim.h"
#include <stdlib.h>
#include <string.h>

#define RECORDS 16384

static record *records[RECORDS]; /* by handle / 4: handles are multiples of 4 */
static CRITICAL_SECTION section;

static void __attribute__((constructor)) start(void) { InitializeCriticalSection(&section); }

void records_lock(void) { EnterCriticalSection(&section); }

void records_unlock(void) { LeaveCriticalSection(&section); }

record *record_of(SOCKET socket) {
    size_t index = (size_t)socket / 4;
    return index < RECORDS ? records[index] : NULL;
}

record *record_new(SOCKET socket) {
    static DWORD serials;
    size_t index = (size_t)socket / 4;
    record *r;
    if (index >= RECORDS)
        return NULL;
    r = records[index] ? records[index] : malloc(sizeof *r);
    if (!r)
        return NULL;
    memset(r, 0, sizeof *r);
    r->socket = socket;
    r->serial = ++serials;
    r->listener = r->slot = -1;
    r->options[CONNECT_TIMEOUT] = 2000;
    return records[index] = r;
}

void record_drop(SOCKET socket) {
    size_t index = (size_t)socket / 4;
    free(records[index]);
    records[index] = NULL;
}

/* Interval of the check for dead peers in milliseconds, and the count of checks after which a sender is woken
 * although received data is still unread. */
#define CHECK_INTERVAL 100
#define UNREAD_CHECKS 30

/* Wine 8 keeps the socket of a process that is killed during a call, so its peer never learns of the death.
 * This thread shuts the socket down instead: receiving once all data is read, then sending. In the reverse
 * order AFD would not report the end of receiving. */
static DWORD WINAPI watcher(void *unused) {
    size_t i;
    (void)unused;
    for (;;) {
        Sleep(CHECK_INTERVAL);
        records_lock();
        for (i = 0; i < RECORDS; i++) {
            record *r = records[i];
            u_long unread = 0;
            if (!r || r->slot < 0)
                continue;
            if (!r->dead) {
                r->dead = world_has_died(r->slot, !r->side);
                continue;
            }
            r->dead++;
            if (!r->watcher_shutdown[SD_RECEIVE] && !ioctlsocket(r->socket, FIONREAD, &unread) && !unread) {
                r->watcher_shutdown[SD_RECEIVE] = TRUE;
                if (!r->own_shutdown[SD_RECEIVE])
                    shutdown(r->socket, SD_RECEIVE);
            } else if (!r->watcher_shutdown[SD_SEND] &&
                       (r->watcher_shutdown[SD_RECEIVE] || r->dead > UNREAD_CHECKS)) {
                r->watcher_shutdown[SD_SEND] = TRUE;
                if (!r->own_shutdown[SD_SEND])
                    shutdown(r->socket, SD_SEND);
            }
        }
        records_unlock();
    }
    return 0;
}

void start_watcher(void) {
    static BOOL started;
    HANDLE thread;
    if (started)
        return;
    thread = CreateThread(NULL, 64 << 10, watcher, NULL, 0, NULL);
    if (thread) {
        CloseHandle(thread);
        started = TRUE;
    }
}

struct sockaddr_in loopback_at(USHORT port) {
    struct sockaddr_in address = {0};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

DWORD number_from_environment(const char *name, BOOL *is_set) {
    char text[32];
    DWORD length = GetEnvironmentVariableA(name, text, sizeof text);
    *is_set = length && length < sizeof text;
    return *is_set ? strtoul(text, NULL, 10) : 0;
}

GUID new_service(void) {
    /* The vsock template for Linux guests, with a port that no listener uses. */
    static volatile LONG next;
    GUID id = {0, 0xfacb, 0x11e6, {0xbd, 0x58, 0x64, 0x00, 0x6a, 0x79, 0x86, 0xd3}};
    id.Data1 = 0x80000000u + (GetCurrentProcessId() << 16) % 0x7fff0000u + (InterlockedIncrement(&next) & 0xffff);
    return id;
}
