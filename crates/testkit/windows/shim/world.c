/* State shared by the processes under test: listeners, connections and partitions. It is a named file mapping
 * guarded by a named mutex. Every table has a fixed size. */
#include "shim.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LISTENERS 512
#define CONNECTIONS 8192
#define PARTITIONS 64

const GUID WILDCARD = {0};
const GUID BROADCAST = {0xffffffff, 0xffff, 0xffff, {255, 255, 255, 255, 255, 255, 255, 255}};
const GUID CHILDREN = {0x90db8b89, 0x0d35, 0x4f79, {0x8c, 0xe9, 0x49, 0xea, 0x0a, 0xc8, 0xb7, 0xcd}};
const GUID LOOPBACK = {0xe0e16197, 0xdd56, 0x4a10, {0x91, 0x95, 0x5e, 0xe7, 0xa1, 0x55, 0xa8, 0x38}};
const GUID PARENT = {0xa42e7cda, 0xd03f, 0x480c, {0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab, 0xb8, 0x78}};
const GUID SILOHOST = {0x36bd0c5c, 0x7276, 0x4223, {0x88, 0xba, 0x7d, 0x03, 0xb6, 0x54, 0xc5, 0x68}};

typedef struct {
    DWORD pid;  /* 0: free */
    DWORD uses; /* handles */
    USHORT port;
    int backlog; /* 0: bound, not listening */
    GUID partition; /* WILDCARD: the host */
    GUID vm, service;
} listener;

typedef struct {
    DWORD pid;
    DWORD uses; /* handles, in all processes */
    BOOL ended;
} connection_side;

typedef struct {
    enum { FREE, PENDING, ACCEPTED } state;
    USHORT client, listener; /* TCP ports */
    hv_address caller;
    connection_side sides[2]; /* the one that connected, the one that accepted */
} connection;

typedef struct {
    listener listeners[LISTENERS];
    connection connections[CONNECTIONS];
    struct {
        GUID id;
        DWORD pid;
    } partitions[PARTITIONS];
} world_data;

static world_data *world;
static HANDLE world_mutex;

BOOL world_same(const GUID *a, const GUID *b) { return memcmp(a, b, sizeof *a) == 0; }

static void lock(void) {
    /* WAIT_ABANDONED (the owner was killed) is fine: a partly written entry is harmless. */
    WaitForSingleObject(world_mutex, INFINITE);
}

static void unlock(void) { ReleaseMutex(world_mutex); }

static BOOL is_alive(DWORD pid) {
    HANDLE process = OpenProcess(SYNCHRONIZE, FALSE, pid);
    BOOL alive;
    if (!process)
        return FALSE;
    alive = WaitForSingleObject(process, 0) == WAIT_TIMEOUT;
    CloseHandle(process);
    return alive;
}

/* Parses a GUID, with or without braces, that a comma, a colon or the end of `text` follows. */
static BOOL parse(const char *text, GUID *id) {
    unsigned d[11];
    int i;
    if (*text == '{')
        text++;
    if (sscanf(text, "%8x-%4x-%4x-%2x%2x-%2x%2x%2x%2x%2x%2x", d, d + 1, d + 2, d + 3, d + 4, d + 5, d + 6,
               d + 7, d + 8, d + 9, d + 10) != 11)
        return FALSE;
    id->Data1 = d[0];
    id->Data2 = (USHORT)d[1];
    id->Data3 = (USHORT)d[2];
    for (i = 0; i < 8; i++)
        id->Data4[i] = (BYTE)d[3 + i];
    return TRUE;
}

/* The partition of this process; WILDCARD for the host. */
static GUID own_partition(void) {
    char text[64];
    GUID id = WILDCARD;
    DWORD length = GetEnvironmentVariableA("HV_SHIM_PARTITION", text, sizeof text);
    if (length && length < sizeof text && !parse(text, &id))
        id = WILDCARD;
    return id;
}

/* Registers the partition of this process. It exists while such a process lives. */
static void enter_partition(void) {
    GUID own = own_partition();
    DWORD pid = GetCurrentProcessId();
    int i, slot = -1;
    if (world_same(&own, &WILDCARD))
        return;
    for (i = 0; i < PARTITIONS; i++) {
        if (world->partitions[i].pid == pid)
            return;
        if (!world->partitions[i].pid || !is_alive(world->partitions[i].pid))
            slot = i;
    }
    if (slot >= 0) {
        world->partitions[slot].id = own;
        world->partitions[slot].pid = pid;
    }
}

BOOL world_open(void) {
    char name[128] = "Local\\hvsock-shim-", mutex[128];
    size_t used = strlen(name);
    HANDLE mapping;
    if (world) {
        lock();
        enter_partition();
        unlock();
        return TRUE;
    }
    if (GetEnvironmentVariableA("HV_SHIM_WORLD", name + used, 64) >= 64)
        name[used] = 0;
    snprintf(mutex, sizeof mutex, "%s-lock", name);
    mapping = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0, sizeof *world, name);
    world_mutex = CreateMutexA(NULL, FALSE, mutex);
    if (mapping && world_mutex)
        /* A new mapping is zeroed, which means empty tables. */
        world = MapViewOfFile(mapping, FILE_MAP_ALL_ACCESS, 0, 0, sizeof *world);
    if (!world)
        return FALSE;
    lock();
    enter_partition();
    unlock();
    return TRUE;
}

/* Frees the entries of dead processes. */
static void reap(void) {
    int i, s, l;
    for (i = 0; i < LISTENERS; i++)
        if (world->listeners[i].pid && !is_alive(world->listeners[i].pid))
            world->listeners[i].pid = 0;
    for (i = 0; i < CONNECTIONS; i++) {
        connection *c = &world->connections[i];
        if (c->state == FREE)
            continue;
        for (s = 0; s < 2; s++)
            if (c->sides[s].uses && !is_alive(c->sides[s].pid))
                c->sides[s].uses = 0;
        if (c->sides[0].uses || c->sides[1].uses)
            continue;
        if (c->state == PENDING) {
            for (l = 0; l < LISTENERS; l++)
                if (world->listeners[l].pid && world->listeners[l].port == c->listener)
                    break;
            if (l < LISTENERS)
                continue;
        }
        c->state = FREE;
    }
}

static listener *listener_at(const GUID *partition, const GUID *vm, const GUID *service) {
    int i;
    for (i = 0; i < LISTENERS; i++) {
        listener *l = &world->listeners[i];
        if (!l->pid || !world_same(&l->partition, partition) || !world_same(&l->vm, vm) ||
            !world_same(&l->service, service))
            continue;
        if (is_alive(l->pid))
            return l;
        l->pid = 0;
    }
    return NULL;
}

typedef enum { UNKNOWN, OFF, PAUSED, RUNNING } vm_state;

static vm_state state_of(const GUID *id) {
    static char text[8192]; /* guarded by the lock */
    DWORD length = GetEnvironmentVariableA("HV_SHIM_VMS", text, sizeof text);
    char *item = text;
    int i;
    for (i = 0; i < PARTITIONS; i++)
        if (world->partitions[i].pid && world_same(&world->partitions[i].id, id) &&
            is_alive(world->partitions[i].pid))
            return RUNNING;
    if (!length || length >= sizeof text)
        return UNKNOWN;
    while (item) {
        char *next = strchr(item, ','), *state;
        GUID found;
        if (next)
            *next++ = 0;
        if (parse(item, &found) && world_same(&found, id)) {
            state = strchr(item, ':');
            if (state && !strcmp(state, ":off"))
                return OFF;
            return state && !strcmp(state, ":paused") ? PAUSED : RUNNING;
        }
        item = next;
    }
    return UNKNOWN;
}

/* Whether the service is registered in the host's registry. */
static BOOL is_registered(const GUID *id) {
    char path[256];
    HKEY key;
    snprintf(path, sizeof path,
             "SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Virtualization\\GuestCommunicationServices\\"
             "%08lx-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             id->Data1, id->Data2, id->Data3, id->Data4[0], id->Data4[1], id->Data4[2], id->Data4[3],
             id->Data4[4], id->Data4[5], id->Data4[6], id->Data4[7]);
    if (RegOpenKeyExA(HKEY_LOCAL_MACHINE, path, 0, KEY_READ | KEY_WOW64_64KEY, &key) != ERROR_SUCCESS)
        return FALSE;
    RegCloseKey(key);
    return TRUE;
}

int world_bind(const hv_address *address, USHORT port, int *index) {
    GUID own = own_partition();
    BOOL host = world_same(&own, &WILDCARD);
    int error = 0, i;
    lock();
    /* Addresses that no partition can have. Microsoft documents "Physical host: Not supported" for PARENT.
     * Assumed: the error number, and the same for SILOHOST outside a container. */
    if (world_same(&address->vm, &BROADCAST) || world_same(&address->vm, &SILOHOST) ||
        (host && world_same(&address->vm, &PARENT)))
        error = WSAEADDRNOTAVAIL;
    else if (!world_same(&address->vm, &WILDCARD) && !world_same(&address->vm, &CHILDREN) &&
             !world_same(&address->vm, &LOOPBACK) && !world_same(&address->vm, &PARENT) &&
             (!host || state_of(&address->vm) == UNKNOWN))
        error = WSAEADDRNOTAVAIL;
    /* Reported in github.com/nbdd0121/wsld/issues/5. */
    else if (host && state_of(&address->vm) != UNKNOWN && !is_registered(&address->service))
        error = WSAEACCES;
    else if (listener_at(&own, &address->vm, &address->service))
        error = WSAEADDRINUSE;
    if (!error) {
        for (i = 0; i < LISTENERS && world->listeners[i].pid; i++)
            ;
        if (i == LISTENERS) {
            reap();
            for (i = 0; i < LISTENERS && world->listeners[i].pid; i++)
                ;
        }
        if (i == LISTENERS) {
            error = WSAENOBUFS;
        } else {
            listener *l = &world->listeners[i];
            l->uses = 1;
            l->port = port;
            l->backlog = 0;
            l->partition = own;
            l->vm = address->vm;
            l->service = address->service;
            l->pid = GetCurrentProcessId();
            *index = i;
        }
    }
    unlock();
    return error;
}

void world_listen(int index, int backlog) { world->listeners[index].backlog = backlog > 0 ? backlog : 1; }

void world_share_listener(int index) {
    lock();
    world->listeners[index].uses++;
    unlock();
}

void world_leave_listener(int index) {
    listener *l = &world->listeners[index];
    int i;
    lock();
    if (!--l->uses) {
        l->pid = 0;
        for (i = 0; i < CONNECTIONS; i++) {
            connection *c = &world->connections[i];
            if (c->state == PENDING && c->listener == l->port && !c->sides[0].uses)
                c->state = FREE;
        }
    }
    unlock();
}

/* The listener in `partition` at the first of `count` ids that has one. */
static const listener *find(const GUID *partition, const GUID *service, const GUID *const *ids, int count) {
    int i;
    for (i = 0; i < count; i++) {
        const listener *l = listener_at(partition, ids[i], service);
        if (l && l->backlog)
            return l;
    }
    return NULL;
}

/* Whether the backlog is full. The next connect is then refused, as TCP on Windows does. */
static BOOL is_full(const listener *l) {
    int i, pending = 0;
    for (i = 0; i < CONNECTIONS; i++)
        pending += world->connections[i].state == PENDING && world->connections[i].listener == l->port;
    return pending >= l->backlog;
}

verdict world_find(const hv_address *to, const GUID *own_service) {
    GUID own = own_partition();
    BOOL host = world_same(&own, &WILDCARD);
    verdict v = {0};
    const listener *l = NULL;
    BOOL set;
    int error = (int)number_from_environment("HV_SHIM_ERROR", &set);
    lock();
    v.caller.family = FAMILY;
    v.caller.service = *own_service;
    if (set) {
        v.error = error;
        v.immediate = error == WSAEACCES || error == WSAEINVAL || error == WSAEADDRNOTAVAIL;
    } else if (world_same(&to->vm, &LOOPBACK)) {
        const GUID *ids[] = {&LOOPBACK, &WILDCARD};
        l = find(&own, &to->service, ids, 2);
        /* Assumed: the address of a loopback peer. */
        v.caller.vm = LOOPBACK;
    } else if (!host && world_same(&to->vm, &PARENT)) {
        const GUID *ids[] = {&own, &CHILDREN, &WILDCARD};
        if (is_registered(&to->service))
            l = find(&WILDCARD, &to->service, ids, 3);
        v.caller.vm = own;
    } else if (host && !world_same(&to->vm, &WILDCARD)) {
        const GUID *ids[] = {&PARENT, &WILDCARD};
        switch (state_of(&to->vm)) {
        case UNKNOWN: /* PARENT, CHILDREN, BROADCAST and SILOHOST, too */
            v.error = WSAEADDRNOTAVAIL;
            v.immediate = TRUE;
            break;
        case OFF:
            v.error = WSAENETUNREACH;
            break;
        case PAUSED:
            v.error = WSAENETDOWN;
            break;
        case RUNNING:
            l = find(&to->vm, &to->service, ids, 2);
        }
        v.caller.vm = PARENT;
    } else {
        v.error = WSAEADDRNOTAVAIL;
        v.immediate = TRUE;
    }
    if (l && !is_full(l))
        v.port = l->port;
    else if (!v.error)
        v.error = WSAECONNREFUSED;
    unlock();
    return v;
}

static connection *at_ports(USHORT client, USHORT port) {
    int i;
    for (i = 0; i < CONNECTIONS; i++) {
        connection *c = &world->connections[i];
        if (c->state == PENDING && c->client == client && c->listener == port)
            return c;
    }
    return NULL;
}

int world_announce(USHORT client, USHORT port, const hv_address *caller) {
    connection *c;
    int i, slot = -1;
    lock();
    /* A stale entry with the same ports, whose client is gone. */
    if ((c = at_ports(client, port)))
        c->state = FREE;
    for (i = 0; i < CONNECTIONS && world->connections[i].state != FREE; i++)
        ;
    if (i == CONNECTIONS) {
        reap();
        for (i = 0; i < CONNECTIONS && world->connections[i].state != FREE; i++)
            ;
    }
    if (i < CONNECTIONS) {
        c = &world->connections[i];
        memset(c, 0, sizeof *c);
        c->client = client;
        c->listener = port;
        c->caller = *caller;
        c->sides[0].pid = GetCurrentProcessId();
        c->sides[0].uses = 1;
        c->state = PENDING;
        slot = i;
    }
    unlock();
    return slot;
}

int world_accept(USHORT client, USHORT port, hv_address *caller) {
    connection *c;
    int slot = -1;
    lock();
    if ((c = at_ports(client, port))) {
        c->sides[1].pid = GetCurrentProcessId();
        c->sides[1].uses = 1;
        c->state = ACCEPTED;
        *caller = c->caller;
        slot = (int)(c - world->connections);
    }
    unlock();
    return slot;
}

void world_share_side(int slot, int side) {
    lock();
    world->connections[slot].sides[side].uses++;
    unlock();
}

void world_leave_side(int slot, int side) {
    connection *c = &world->connections[slot];
    lock();
    c->sides[side].uses--;
    /* A pending connection belongs to its listener, which accepts or drops it. */
    if (c->state == ACCEPTED && !c->sides[0].uses && !c->sides[1].uses)
        c->state = FREE;
    unlock();
}

BOOL world_is_last(int slot, int side) { return world->connections[slot].sides[side].uses == 1; }

void world_end_side(int slot, int side) { world->connections[slot].sides[side].ended = TRUE; }

BOOL world_has_ended(int slot, int side) { return world->connections[slot].sides[side].ended; }

BOOL world_has_died(int slot, int side) {
    const connection *c = &world->connections[slot];
    DWORD pid = c->sides[side].pid;
    return c->state == ACCEPTED && c->sides[side].uses && pid != GetCurrentProcessId() && !is_alive(pid);
}
