/* hv2_32.dll: what stands in for AF_HYPERV in tests on machines that have no Hyper-V, such as Wine.
 *
 * It exports what ws2_32.dll does and passes everything on to it but the sockets of AF_HYPERV, which
 * it carries over TCP on 127.0.0.1. So what is tested is the very program that ships: a copy of it
 * in which the name `ws2_32.dll` in the import table, which is as long, is replaced by `hv2_32.dll`.
 * The product has no hook for it.
 *
 * It shows that our code keeps to the interface as Microsoft documents it, and nothing about what
 * Windows does. Where the documentation is silent, a comment says what is assumed.
 *
 * `cargo xtask windows` builds it, and `cargo xtask wine --stand-in PROGRAM` runs a program over it. By
 * hand:
 *
 *   build    x86_64-w64-mingw32-gcc -shared -O2 -Wall -Wextra -Werror -o hv2_32.dll \
 *                *.c hv2_32.def -lws2_32 -ladvapi32
 *   patch    in a copy of the program: wherever the bytes "ws2_32.dll" stand in any case, with a zero
 *            byte after them, "hv2_32.dll". (An import table has each DLL by its own spelling, and a
 *            program of Rust has two: "WS2_32.dll" and "ws2_32.dll".)
 *   run      with hv2_32.dll beside the program or on WINEPATH
 *
 * The machine that it plays is a host, unless a variable says otherwise:
 *
 *   HV_STAND_IN_WORLD=name     another world: processes meet only those of the same name
 *   HV_STAND_IN_PARTITION=id   this process is in the host's virtual machine of that id
 *   HV_STAND_IN_VMS=id[:off|:paused],...
 *                              the host's virtual machines beside those that have a process
 *   HV_STAND_IN_ERROR=number   every connect comes to this error (10051, say)
 *   HV_STAND_IN_DELAY=ms       every connect is answered only after that long; one that takes longer
 *                              than HVSOCKET_CONNECT_TIMEOUT comes to WSAETIMEDOUT
 */
#ifndef STAND_IN_H
#define STAND_IN_H

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

/* What becomes of a connect: a TCP port that listens for it, or an error. Errors of the address come
 * from connect itself, the others when the connect is over, as with a real one. */
typedef struct {
    int error;
    BOOL at_once;
    USHORT port;
    /* The caller's address as the listener sees it. */
    hv_address caller;
} verdict;

/* world.c: what the processes share. None of these keeps a lock. */
BOOL world_open(void);
BOOL world_same(const GUID *a, const GUID *b);
/* 0 or an error. */
int world_bind(const hv_address *address, USHORT port, int *listener);
void world_listen(int listener, int backlog);
void world_share_listener(int listener);
void world_leave_listener(int listener);
verdict world_find(const hv_address *to, const GUID *own_service);
/* Announces the connection of the TCP port `client`; its slot, or -1 if there is no room. */
int world_announce(USHORT client, USHORT listener, const hv_address *caller);
/* The slot of the connection of the TCP port `client`, or -1; side 1 of it is the caller's now. */
int world_take(USHORT client, USHORT listener, hv_address *caller);
void world_share_side(int slot, int side);
/* One handle of this side is closed. */
void world_leave_side(int slot, int side);
/* Whether it is this side's only handle. */
BOOL world_is_last(int slot, int side);
/* This side ends its sending, as it should. */
void world_end_side(int slot, int side);
/* Whether this side's process is gone and had not closed its end. */
BOOL world_has_died(int slot, int side);
BOOL world_has_ended(int slot, int side);

/* records.c: the sockets of AF_HYPERV that this process has, each by its handle. */
typedef struct {
    SOCKET socket;
    DWORD serial;  /* tells it from another socket that has the same handle later */
    BOOL bound, listening, connecting, nonblocking, reset_on_close, has_peer;
    hv_address own, peer;
    USHORT port; /* TCP's, of a bound one */
    int listener, slot, side;
    BOOL own_shutdown[2], told[2]; /* by SD_RECEIVE and SD_SEND */
    int dead; /* how often watch has found the other side's process gone */
    int error;        /* what SO_ERROR is to say for a failed connect */
    DWORD options[9]; /* by their numbers: 1, 2, 4 and 8 */
} record;

#define CONNECT_TIMEOUT 1

void records_lock(void);
void records_unlock(void);
/* With the lock held; NULL if the socket is none of ours. */
record *record_of(SOCKET socket);
/* With the lock held; NULL if there is no room. */
record *record_new(SOCKET socket);
/* With the lock held. */
void record_drop(SOCKET socket);
/* With the lock held: has the other ends of this process's connections watched. */
void watch(void);
struct sockaddr_in loopback_at(USHORT port);
DWORD number_from_environment(const char *name, BOOL *is_set);
/* An address that nobody asked for, as a connecting socket gets it. */
GUID new_service(void);

/* connecting.c */
int begin_connect(SOCKET socket, const hv_address *to);

#endif
