/*
 * The names of the Windows headers that hvsocket.h and winsock2.h need, for systems other than Windows.
 * Both include this file; a program does not.
 *
 * A program that has these names from elsewhere (Wine, unixODBC) defines HVSOCK_NO_WINDOWS_TYPES first. GUID has
 * the usual guard, GUID_DEFINED.
 */
#ifndef HVSOCK_TYPES_H
#define HVSOCK_TYPES_H

#if defined __GNUC__
#pragma GCC system_header
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef HVSOCK_NO_WINDOWS_TYPES
/* ULONG and DWORD have 32 bits on every system. */
typedef char CHAR;
typedef unsigned char UCHAR;
typedef unsigned char BYTE;
typedef short SHORT;
typedef unsigned short USHORT;
typedef unsigned short WORD;
typedef int INT;
typedef unsigned int UINT;
typedef int LONG;
typedef unsigned int ULONG;
typedef unsigned int DWORD;
typedef int BOOL;
typedef uintptr_t UINT_PTR;
typedef void *PVOID;
typedef void *LPVOID;
typedef void *HANDLE;
typedef char *LPSTR;
typedef const char *LPCSTR;
typedef DWORD *LPDWORD;
typedef ULONG *PULONG;
#endif

/* The address family of a socket address, as `sa_family_t`. */
typedef unsigned short ADDRESS_FAMILY;

#ifndef TRUE
#define TRUE 1
#endif
#ifndef FALSE
#define FALSE 0
#endif

#ifndef GUID_DEFINED
#define GUID_DEFINED
typedef struct _GUID {
    uint32_t Data1;
    uint16_t Data2;
    uint16_t Data3;
    uint8_t Data4[8];
} GUID;
#endif

#ifndef _REFGUID_DEFINED
#define _REFGUID_DEFINED
#ifdef __cplusplus
#define REFGUID const GUID &
#else
#define REFGUID const GUID *
#endif
#endif

#ifdef __cplusplus
#define HVSOCK_EXTERN_C extern "C"
#else
#define HVSOCK_EXTERN_C extern
#endif

#if defined __GNUC__
#define HVSOCK_UNUSED __attribute__((__unused__))
#define HVSOCK_WEAK __attribute__((__weak__))
#else
#define HVSOCK_UNUSED
#define HVSOCK_WEAK
#endif

/* Without INITGUID it declares a GUID; with it (<initguid.h>) it defines one, in any number of files. */
#ifndef DEFINE_GUID
#ifdef INITGUID
#define DEFINE_GUID(name, l, w1, w2, b1, b2, b3, b4, b5, b6, b7, b8) \
    HVSOCK_EXTERN_C const GUID name HVSOCK_WEAK; \
    const GUID name = { l, w1, w2, { b1, b2, b3, b4, b5, b6, b7, b8 } }
#else
#define DEFINE_GUID(name, l, w1, w2, b1, b2, b3, b4, b5, b6, b7, b8) HVSOCK_EXTERN_C const GUID name
#endif
#endif

#ifndef IsEqualGUID
#ifdef __cplusplus
inline int InlineIsEqualGUID(REFGUID a, REFGUID b) { return memcmp(&a, &b, sizeof(GUID)) == 0; }
inline int IsEqualGUID(REFGUID a, REFGUID b) { return memcmp(&a, &b, sizeof(GUID)) == 0; }
#ifndef _SYS_GUID_OPERATOR_EQ_
#define _SYS_GUID_OPERATOR_EQ_
inline bool operator==(REFGUID a, REFGUID b) { return IsEqualGUID(a, b) != 0; }
inline bool operator!=(REFGUID a, REFGUID b) { return IsEqualGUID(a, b) == 0; }
#endif
#else
#define IsEqualGUID(a, b) (memcmp((a), (b), sizeof(GUID)) == 0)
#define InlineIsEqualGUID(a, b) IsEqualGUID(a, b)
#endif
#endif

#ifndef ZeroMemory
#define ZeroMemory(destination, length) memset((destination), 0, (length))
#define CopyMemory(destination, source, length) memcpy((destination), (source), (length))
#define MoveMemory(destination, source, length) memmove((destination), (source), (length))
#define FillMemory(destination, length, fill) memset((destination), (fill), (length))
#endif

#endif
