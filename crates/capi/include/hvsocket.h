/*
 * Hyper-V sockets: the names and values of the header of the Windows SDK, for Linux and for Windows.
 *
 * On Windows this is the compiler's own header where it has one, with the names that it lacks. Include
 * <winsock2.h> for the calls.
 */
#ifndef HVSOCK_HVSOCKET_H
#define HVSOCK_HVSOCKET_H

#if defined __GNUC__
#pragma GCC system_header
#endif

#ifdef _WIN32
#include <winsock2.h>
#if defined __has_include_next
#if __has_include_next(<hvsocket.h>)
#include_next <hvsocket.h>
#define HVSOCK_SYSTEM_HVSOCKET_H
#endif
#endif
#else
#include "hvsock_types.h"
#include <sys/types.h>
#endif

#ifndef AF_HYPERV
#define AF_HYPERV 34
#endif

#ifndef HV_PROTOCOL_RAW
#define HV_PROTOCOL_RAW 1
#endif

/* Options at the level HV_PROTOCOL_RAW. Each value is a ULONG. */
#ifndef HVSOCKET_CONNECT_TIMEOUT
#define HVSOCKET_CONNECT_TIMEOUT 0x01
#endif
#ifndef HVSOCKET_CONNECT_TIMEOUT_MAX
#define HVSOCKET_CONNECT_TIMEOUT_MAX 300000
#endif
#ifndef HVSOCKET_CONTAINER_PASSTHRU
#define HVSOCKET_CONTAINER_PASSTHRU 0x02
#endif
#ifndef HVSOCKET_CONNECTED_SUSPEND
#define HVSOCKET_CONNECTED_SUSPEND 0x04
#endif
#ifndef HVSOCKET_HIGH_VTL
#define HVSOCKET_HIGH_VTL 0x08
#endif

/* The field Reserved of SOCKADDR_HV. */
#ifndef HVSOCKET_ADDRESS_FLAG_PASSTHRU
#define HVSOCKET_ADDRESS_FLAG_PASSTHRU 0x00000001
#endif

#ifndef HVSOCK_SYSTEM_HVSOCKET_H

#ifdef _WIN32
#include <guiddef.h>
#if defined __GNUC__
#define HVSOCK_UNUSED __attribute__((__unused__))
#else
#define HVSOCK_UNUSED
#endif
#endif

/* 00000000-0000-0000-0000-000000000000: a listener there accepts connections from all partitions. */
static const GUID HV_GUID_ZERO HVSOCK_UNUSED = { 0, 0, 0, { 0, 0, 0, 0, 0, 0, 0, 0 } };
#define HV_GUID_WILDCARD HV_GUID_ZERO

/* ffffffff-ffff-ffff-ffff-ffffffffffff */
static const GUID HV_GUID_BROADCAST HVSOCK_UNUSED = {
    0xffffffff, 0xffff, 0xffff, { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }
};

/* 90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd: a listener there accepts connections from its children. */
static const GUID HV_GUID_CHILDREN HVSOCK_UNUSED = {
    0x90db8b89, 0x0d35, 0x4f79, { 0x8c, 0xe9, 0x49, 0xea, 0x0a, 0xc8, 0xb7, 0xcd }
};

/* e0e16197-dd56-4a10-9195-5ee7a155a838: the partition of the program itself. */
static const GUID HV_GUID_LOOPBACK HVSOCK_UNUSED = {
    0xe0e16197, 0xdd56, 0x4a10, { 0x91, 0x95, 0x5e, 0xe7, 0xa1, 0x55, 0xa8, 0x38 }
};

/* a42e7cda-d03f-480c-9cc2-a4de20abb878: the host of the virtual machine or container. */
static const GUID HV_GUID_PARENT HVSOCK_UNUSED = {
    0xa42e7cda, 0xd03f, 0x480c, { 0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab, 0xb8, 0x78 }
};

/* 36bd0c5c-7276-4223-88ba-7d03b654c568: the host of a container's silo. */
static const GUID HV_GUID_SILOHOST HVSOCK_UNUSED = {
    0x36bd0c5c, 0x7276, 0x4223, { 0x88, 0xba, 0x7d, 0x03, 0xb6, 0x54, 0xc5, 0x68 }
};

/* 00000000-facb-11e6-bd58-64006a7986d3: Data1 is the port of a Linux guest's AF_VSOCK. */
static const GUID HV_GUID_VSOCK_TEMPLATE HVSOCK_UNUSED = {
    0x00000000, 0xfacb, 0x11e6, { 0xbd, 0x58, 0x64, 0x00, 0x6a, 0x79, 0x86, 0xd3 }
};

/* The documents use the tag SOCKADDR_HV and the SDK _SOCKADDR_HV; this type has both. */
struct SOCKADDR_HV {
    ADDRESS_FAMILY Family;
    USHORT Reserved;
    GUID VmId;
    GUID ServiceId;
};
typedef struct SOCKADDR_HV SOCKADDR_HV;
typedef struct SOCKADDR_HV *PSOCKADDR_HV;
#define _SOCKADDR_HV SOCKADDR_HV

typedef struct _HVSOCKET_ADDRESS_INFO {
    GUID SystemId;
    GUID VirtualMachineId;
    GUID SiloId;
    ULONG Flags;
} HVSOCKET_ADDRESS_INFO, *PHVSOCKET_ADDRESS_INFO;

#endif

#endif
