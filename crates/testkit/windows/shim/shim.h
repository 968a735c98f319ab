/* hv2_32.dll: a shim that implements AF_HYPERV for tests on machines without Hyper-V, such as Wine.
 *
 * It exports the functions of ws2_32.dll and forwards all calls to it, except those on AF_HYPERV sockets,
 * which it implements over TCP on 127.0.0.1. The tested program is the one that ships: a copy in which the
 * import table names `hv2_32.dll` instead of `ws2_32.dll`, which has the same length. The product has no
 * hook for the shim.
 *
 * A test over the shim shows that our code keeps to the interface that Microsoft documents. It shows nothing
 * about what Windows does. Where the documentation says nothing, a comment states the assumption.
 *
 * `cargo xtask windows` builds it, and `cargo xtask wine --shim PROGRAM` runs a program over it. By
 * hand:
 *
 *   build    x86_64-w64-mingw32-gcc -shared -O2 -Wall -Wextra -Werror -o hv2_32.dll \
 *                *.c hv2_32.def -lws2_32 -ladvapi32
 *   patch    in a copy of the program, replace each "ws2_32.dll" that a zero byte follows, in any case,
 *            by "hv2_32.dll". (The import table keeps each spelling of a DLL, and a Rust program has two:
 *            "WS2_32.dll" and "ws2_32.dll".)
 *   run      with hv2_32.dll in the program's folder or on WINEPATH
 *
 * By default a process is in a Hyper-V host. Environment variables change that:
 *
 *   HV_SHIM_WORLD=name     a separate world: processes reach only those with the same name
 *   HV_SHIM_PARTITION=id   this process is in the host's virtual machine with that id
 *   HV_SHIM_VMS=id[:off|:paused],...
 *                              the host's virtual machines, in addition to those with a process
 *   HV_SHIM_ERROR=number   every connect fails with this error (10051, for example)
 *   HV_SHIM_DELAY=ms       every connect completes after this delay; one that takes longer than
 *                              HVSOCKET_CONNECT_TIMEOUT fails with WSAETIMEDOUT
 */
#ifndef SHIM_H
#define SHIM_H

#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <windows.h>

#define FAMILY 34
#define PROTOCOL 1

/* SOCKADDR_HV. */
typedef struct {
    USHORT family;
    USHORT reserved;
    GUID vm;
    GUID service;
} hv_address;
_Static_assert(sizeof(hv_address) == 36, "SOCKADDR_HV has 36 bytes");

extern const GUID WILDCARD, BROADCAST, CHILDREN, LOOPBACK, PARENT, SILOHOST;

/* The outcome of a connect: the TCP port of the listener, or an error. Errors of the address are returned by
 * connect itself, the others when the connect completes, as Winsock does. */
typedef struct {
    int error;
    BOOL immediate; /* returned by connect itself */
    USHORT port;
    /* The address of the connecting socket as the listener sees it. */
    hv_address caller;
} verdict;

/* world.c: state shared by all processes. No function returns with the lock held. */
BOOL world_open(void);
BOOL world_same(const GUID *a, const GUID *b);
/* Returns 0 or an error number. */
int world_bind(const hv_address *address, USHORT port, int *listener);
void world_listen(int listener, int backlog);
void world_share_listener(int listener);
void world_leave_listener(int listener);
verdict world_find(const hv_address *to, const GUID *own_service);
/* Announces the connection from TCP port `client`. Returns its slot, or -1 if the table is full. */
int world_announce(USHORT client, USHORT listener, const hv_address *caller);
/* Accepts the connection from TCP port `client`: the caller gets side 1. Returns the slot, or -1. */
int world_accept(USHORT client, USHORT listener, hv_address *caller);
void world_share_side(int slot, int side);
/* Drops one handle of this side. */
void world_leave_side(int slot, int side);
/* Whether this side has one handle left. */
BOOL world_is_last(int slot, int side);
/* Records that this side has shut down sending or closed. */
void world_end_side(int slot, int side);
/* Whether this side's process has died without closing its end. */
BOOL world_has_died(int slot, int side);
BOOL world_has_ended(int slot, int side);

/* records.c: this process's AF_HYPERV sockets, by handle. */
typedef struct {
    SOCKET socket;
    DWORD serial;  /* distinguishes it from a later socket with the same handle */
    BOOL bound, listening, connecting, nonblocking, reset_on_close, has_peer;
    hv_address own, peer;
    USHORT port; /* TCP port, if bound */
    int listener, slot, side;
    /* Indexed by SD_RECEIVE and SD_SEND: shutdowns by this program, and by the watcher. */
    BOOL own_shutdown[2], watcher_shutdown[2];
    int dead;         /* how often the watcher has found the peer's process dead */
    int error;        /* SO_ERROR of a failed connect */
    DWORD options[9]; /* by option number: 1, 2, 4 and 8 */
} record;

#define CONNECT_TIMEOUT 1

void records_lock(void);
void records_unlock(void);
/* Needs the lock. NULL if the socket is not an AF_HYPERV one. */
record *record_of(SOCKET socket);
/* Needs the lock. NULL if the table is full. */
record *record_new(SOCKET socket);
/* Needs the lock. */
void record_drop(SOCKET socket);
/* Needs the lock. Starts the thread that detects dead peers. */
void start_watcher(void);
struct sockaddr_in loopback_at(USHORT port);
DWORD number_from_environment(const char *name, BOOL *is_set);
/* A service id for a connecting socket that was not bound. */
GUID new_service(void);

/* connecting.c */
int begin_connect(SOCKET socket, const hv_address *to);

#endif
