/*
 * The calls of Windows Sockets for programs with Hyper-V sockets, on Linux: link with -lhvsock.
 *
 * socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW) returns a descriptor that is a connection or a listener of
 * libhvsock. Every other socket, and a descriptor from anywhere else, behaves as without this header. On Windows
 * this is the system's winsock2.h.
 *
 * The functions of <sys/socket.h> keep their names: the compiler is told to call the ones of libhvsock. So there is
 * no macro that could replace a C++ member function or std::bind. Include this header before <sys/socket.h>, as on
 * Windows before <windows.h>. In the other order everything compiles, but with _FORTIFY_SOURCE recv and recvfrom stay
 * those of the C library, which set errno only and cannot tell a reset from an end.
 */
#if defined __GNUC__
#pragma GCC system_header
#endif

#ifdef _WIN32
#include_next <winsock2.h>
#else

#ifndef HVSOCK_WINSOCK2_H
#define HVSOCK_WINSOCK2_H

#ifndef __GNUC__
#error "winsock2.h of hvsock needs the extensions of GCC, which clang has, too"
#endif

#include "hvsock_types.h"

/*
 * The parameters of these functions differ from those of the C library (int * and not socklen_t *), which declares
 * them here under names that nobody uses.
 */
#ifndef _SYS_SOCKET_H
#define HVSOCK_OWN_DECLARATIONS
#define accept hvsock_hidden_accept
#define bind hvsock_hidden_bind
#define connect hvsock_hidden_connect
#define getpeername hvsock_hidden_getpeername
#define getsockname hvsock_hidden_getsockname
#define getsockopt hvsock_hidden_getsockopt
#define listen hvsock_hidden_listen
#define recv hvsock_hidden_recv
#define recvfrom hvsock_hidden_recvfrom
#define send hvsock_hidden_send
#define sendto hvsock_hidden_sendto
#define setsockopt hvsock_hidden_setsockopt
#define shutdown hvsock_hidden_shutdown
#define socket hvsock_hidden_socket
#include <sys/socket.h>
#undef accept
#undef bind
#undef connect
#undef getpeername
#undef getsockname
#undef getsockopt
#undef listen
#undef recv
#undef recvfrom
#undef send
#undef sendto
#undef setsockopt
#undef shutdown
#undef socket
#endif

#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/time.h>
#include <sys/types.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>

#ifndef WSAAPI
#define WSAAPI
#endif
#ifndef WINAPI
#define WINAPI
#endif
#ifndef PASCAL
#define PASCAL
#endif
#ifndef FAR
#define FAR
#endif

/* Annotations of parameters (SAL), which other compilers do not check. */
#ifndef _In_
#define _In_
#define _In_opt_
#define _In_reads_(n)
#define _In_reads_bytes_(n)
#define _In_reads_bytes_opt_(n)
#define _Inout_
#define _Inout_opt_
#define _Out_
#define _Out_opt_
#define _Out_writes_(n)
#define _Out_writes_bytes_(n)
#define _Out_writes_bytes_opt_(n)
#define _Outptr_
#define _Must_inspect_result_
#define _Success_(condition)
#endif

/* A descriptor: poll, select and epoll take it. */
typedef int SOCKET;
#define INVALID_SOCKET ((SOCKET)-1)
#define SOCKET_ERROR (-1)

#ifndef AF_HYPERV
#define AF_HYPERV 34
#endif
#ifndef PF_HYPERV
#define PF_HYPERV AF_HYPERV
#endif

#define SD_RECEIVE 0
#define SD_SEND 1
#define SD_BOTH 2

/* Each byte of a version: MAKEWORD(2, 2) is 2.2. */
#ifndef MAKEWORD
#define MAKEWORD(low, high) ((WORD)(((BYTE)(low)) | ((WORD)((BYTE)(high)) << 8)))
#endif
#ifndef LOBYTE
#define LOBYTE(word) ((BYTE)((word) & 0xff))
#define HIBYTE(word) ((BYTE)(((word) >> 8) & 0xff))
#endif
#ifndef LOWORD
#define LOWORD(dword) ((WORD)((dword) & 0xffff))
#define HIWORD(dword) ((WORD)(((dword) >> 16) & 0xffff))
#endif
#define WINSOCK_VERSION MAKEWORD(2, 2)

#define WSADESCRIPTION_LEN 256
#define WSASYS_STATUS_LEN 128

typedef struct WSAData {
    WORD wVersion;
    WORD wHighVersion;
    unsigned short iMaxSockets;
    unsigned short iMaxUdpDg;
    char *lpVendorInfo;
    char szDescription[WSADESCRIPTION_LEN + 1];
    char szSystemStatus[WSASYS_STATUS_LEN + 1];
} WSADATA, *LPWSADATA;

typedef struct sockaddr SOCKADDR, *PSOCKADDR, *LPSOCKADDR;
typedef struct sockaddr_in SOCKADDR_IN, *PSOCKADDR_IN, *LPSOCKADDR_IN;
typedef struct sockaddr_in6 SOCKADDR_IN6, *PSOCKADDR_IN6, *LPSOCKADDR_IN6;
typedef struct sockaddr_storage SOCKADDR_STORAGE, *PSOCKADDR_STORAGE, *LPSOCKADDR_STORAGE;
typedef struct in_addr IN_ADDR, *PIN_ADDR, *LPIN_ADDR;
typedef struct in6_addr IN6_ADDR, *PIN6_ADDR, *LPIN6_ADDR;
typedef struct linger LINGER, *PLINGER, *LPLINGER;
typedef struct timeval TIMEVAL, *PTIMEVAL, *LPTIMEVAL;
typedef struct hostent HOSTENT, *PHOSTENT, *LPHOSTENT;
typedef fd_set FD_SET, *PFD_SET, *LPFD_SET;
typedef struct pollfd WSAPOLLFD, *PWSAPOLLFD, *LPWSAPOLLFD;
typedef unsigned int GROUP;
typedef unsigned long u_long;
typedef unsigned int u_int;
typedef unsigned short u_short;
typedef unsigned char u_char;

typedef struct _WSABUF {
    ULONG len;
    CHAR *buf;
} WSABUF, *LPWSABUF;

#ifndef POLLRDNORM
#define POLLRDNORM 0x0040
#endif
#ifndef POLLRDBAND
#define POLLRDBAND 0x0080
#endif
#ifndef POLLWRNORM
#define POLLWRNORM 0x0100
#endif
#ifndef POLLWRBAND
#define POLLWRBAND 0x0200
#endif

#ifndef SO_EXCLUSIVEADDRUSE
#define SO_EXCLUSIVEADDRUSE (~SO_REUSEADDR)
#endif
#ifndef SO_UPDATE_ACCEPT_CONTEXT
#define SO_UPDATE_ACCEPT_CONTEXT 0x700b
#define SO_UPDATE_CONNECT_CONTEXT 0x7010
#endif

#define WSA_FLAG_OVERLAPPED 0x01
#define WSA_FLAG_NO_HANDLE_INHERIT 0x80

#define WSAEINTR 10004
#define WSAEBADF 10009
#define WSAEACCES 10013
#define WSAEFAULT 10014
#define WSAEINVAL 10022
#define WSAEMFILE 10024
#define WSAEWOULDBLOCK 10035
#define WSAEINPROGRESS 10036
#define WSAEALREADY 10037
#define WSAENOTSOCK 10038
#define WSAEDESTADDRREQ 10039
#define WSAEMSGSIZE 10040
#define WSAEPROTOTYPE 10041
#define WSAENOPROTOOPT 10042
#define WSAEPROTONOSUPPORT 10043
#define WSAESOCKTNOSUPPORT 10044
#define WSAEOPNOTSUPP 10045
#define WSAEPFNOSUPPORT 10046
#define WSAEAFNOSUPPORT 10047
#define WSAEADDRINUSE 10048
#define WSAEADDRNOTAVAIL 10049
#define WSAENETDOWN 10050
#define WSAENETUNREACH 10051
#define WSAENETRESET 10052
#define WSAECONNABORTED 10053
#define WSAECONNRESET 10054
#define WSAENOBUFS 10055
#define WSAEISCONN 10056
#define WSAENOTCONN 10057
#define WSAESHUTDOWN 10058
#define WSAETOOMANYREFS 10059
#define WSAETIMEDOUT 10060
#define WSAECONNREFUSED 10061
#define WSAELOOP 10062
#define WSAENAMETOOLONG 10063
#define WSAEHOSTDOWN 10064
#define WSAEHOSTUNREACH 10065
#define WSAENOTEMPTY 10066
#define WSAEPROCLIM 10067
#define WSAEUSERS 10068
#define WSAEDQUOT 10069
#define WSAESTALE 10070
#define WSAEREMOTE 10071
#define WSASYSNOTREADY 10091
#define WSAVERNOTSUPPORTED 10092
#define WSANOTINITIALISED 10093
#define WSAEDISCON 10101
#define WSAECANCELLED 10103
#define WSAHOST_NOT_FOUND 11001
#define WSATRY_AGAIN 11002
#define WSANO_RECOVERY 11003
#define WSANO_DATA 11004

#ifdef __cplusplus
#define HVSOCK_CALL(type, name, parameters) type name parameters __asm__("hvsock_ws_" #name)
#ifdef __THROW
#define HVSOCK_CALL_NOTHROW(type, name, parameters) \
    type name parameters __THROW __asm__("hvsock_ws_" #name)
#else
#define HVSOCK_CALL_NOTHROW(type, name, parameters) HVSOCK_CALL(type, name, parameters)
#endif
extern "C" {
#else
#define HVSOCK_CALL(type, name, parameters) extern type name parameters __asm__("hvsock_ws_" #name)
#define HVSOCK_CALL_NOTHROW(type, name, parameters) HVSOCK_CALL(type, name, parameters)
#endif

/*
 * The length of an address or option: int * as on Windows, and socklen_t * as on Linux. C++ has the function for
 * int * below.
 */
#if defined HVSOCK_OWN_DECLARATIONS && !defined __cplusplus
typedef union {
    int *as_int;
    socklen_t *as_socklen;
} hvsock_length __attribute__((__transparent_union__));
#else
typedef socklen_t *hvsock_length;
#if !defined __cplusplus
#pragma GCC diagnostic ignored "-Wpointer-sign"
#endif
#endif

#ifdef HVSOCK_OWN_DECLARATIONS
#define HVSOCK_RESTRICT
#define HVSOCK_ADDRESS struct sockaddr *
#define HVSOCK_CONST_ADDRESS const struct sockaddr *
#else
#define HVSOCK_RESTRICT __restrict
#ifdef __SOCKADDR_ARG
#define HVSOCK_ADDRESS __SOCKADDR_ARG
#define HVSOCK_CONST_ADDRESS __CONST_SOCKADDR_ARG
#else
#define HVSOCK_ADDRESS struct sockaddr *__restrict
#define HVSOCK_CONST_ADDRESS const struct sockaddr *
#endif
#endif

HVSOCK_CALL_NOTHROW(SOCKET, socket, (int af, int type, int protocol));
HVSOCK_CALL_NOTHROW(int, bind, (SOCKET s, HVSOCK_CONST_ADDRESS name, socklen_t namelen));
HVSOCK_CALL_NOTHROW(int, listen, (SOCKET s, int backlog));
HVSOCK_CALL(SOCKET, accept, (SOCKET s, HVSOCK_ADDRESS addr, hvsock_length HVSOCK_RESTRICT addrlen));
HVSOCK_CALL(int, connect, (SOCKET s, HVSOCK_CONST_ADDRESS name, socklen_t namelen));
HVSOCK_CALL_NOTHROW(int, getsockname, (SOCKET s, HVSOCK_ADDRESS name, hvsock_length HVSOCK_RESTRICT namelen));
HVSOCK_CALL_NOTHROW(int, getpeername, (SOCKET s, HVSOCK_ADDRESS name, hvsock_length HVSOCK_RESTRICT namelen));
HVSOCK_CALL_NOTHROW(int, getsockopt, (SOCKET s, int level, int optname, void *HVSOCK_RESTRICT optval,
    hvsock_length HVSOCK_RESTRICT optlen));
HVSOCK_CALL_NOTHROW(int, setsockopt, (SOCKET s, int level, int optname, const void *optval, socklen_t optlen));
HVSOCK_CALL_NOTHROW(int, shutdown, (SOCKET s, int how));
HVSOCK_CALL(ssize_t, send, (SOCKET s, const void *buf, size_t len, int flags));
HVSOCK_CALL(ssize_t, sendto, (SOCKET s, const void *buf, size_t len, int flags, HVSOCK_CONST_ADDRESS to,
    socklen_t tolen));
HVSOCK_CALL(int, select, (int nfds, fd_set *__restrict readfds, fd_set *__restrict writefds,
    fd_set *__restrict exceptfds, struct timeval *__restrict timeout));
#if !defined HVSOCK_OWN_DECLARATIONS && defined __USE_FORTIFY_LEVEL && defined __fortify_function
#if __USE_FORTIFY_LEVEL > 0
/* glibc has defined recv and recvfrom already, as inline functions. */
#define HVSOCK_INLINE_RECV
#endif
#endif
#ifndef HVSOCK_INLINE_RECV
HVSOCK_CALL(ssize_t, recv, (SOCKET s, void *buf, size_t len, int flags));
HVSOCK_CALL(ssize_t, recvfrom, (SOCKET s, void *HVSOCK_RESTRICT buf, size_t len, int flags, HVSOCK_ADDRESS from,
    hvsock_length HVSOCK_RESTRICT fromlen));
#endif

HVSOCK_CALL(int, WSAStartup, (WORD wVersionRequested, LPWSADATA lpWSAData));
HVSOCK_CALL(int, WSACleanup, (void));
HVSOCK_CALL(int, WSAGetLastError, (void));
HVSOCK_CALL(void, WSASetLastError, (int iError));
HVSOCK_CALL(SOCKET, WSASocketA, (int af, int type, int protocol, void *lpProtocolInfo, GROUP g, DWORD dwFlags));
HVSOCK_CALL(SOCKET, WSASocketW, (int af, int type, int protocol, void *lpProtocolInfo, GROUP g, DWORD dwFlags));
#define WSASocket WSASocketA
HVSOCK_CALL(int, WSAPoll, (LPWSAPOLLFD fdArray, ULONG fds, INT timeout));
HVSOCK_CALL(int, WSASend, (SOCKET s, LPWSABUF lpBuffers, DWORD dwBufferCount, LPDWORD lpNumberOfBytesSent,
    DWORD dwFlags, void *lpOverlapped, void *lpCompletionRoutine));
HVSOCK_CALL(int, WSARecv, (SOCKET s, LPWSABUF lpBuffers, DWORD dwBufferCount, LPDWORD lpNumberOfBytesRecvd,
    LPDWORD lpFlags, void *lpOverlapped, void *lpCompletionRoutine));
HVSOCK_CALL(int, closesocket, (SOCKET s));
HVSOCK_CALL(int, ioctlsocket, (SOCKET s, long cmd, u_long *argp));

#if defined HVSOCK_INLINE_RECV && defined __cplusplus
extern ssize_t hvsock_ws_recv(SOCKET s, void *buf, size_t len, int flags);
#endif

/* ioctlsocket with the size of its argument, which is a u_long or, as on Windows, a ULONG. */
extern int hvsock_ws_ioctl_sized(SOCKET s, long cmd, void *argp, size_t size);
#define ioctlsocket(s, cmd, argp) hvsock_ws_ioctl_sized((s), (cmd), (argp), sizeof *(argp))

#ifdef __cplusplus
}

/* The type of a length that is an int, for the functions below. */
template <typename Length, typename Result> struct hvsock_if_int {};
template <typename Result> struct hvsock_if_int<int, Result> { typedef Result type; };

template <typename Length>
inline typename hvsock_if_int<Length, SOCKET>::type accept(SOCKET s, struct sockaddr *addr, Length *addrlen)
{
    return accept(s, addr, reinterpret_cast<socklen_t *>(addrlen));
}

template <typename Length>
inline typename hvsock_if_int<Length, int>::type getsockname(SOCKET s, struct sockaddr *name, Length *namelen)
{
    return getsockname(s, name, reinterpret_cast<socklen_t *>(namelen));
}

template <typename Length>
inline typename hvsock_if_int<Length, int>::type getpeername(SOCKET s, struct sockaddr *name, Length *namelen)
{
    return getpeername(s, name, reinterpret_cast<socklen_t *>(namelen));
}

template <typename Length>
inline typename hvsock_if_int<Length, int>::type getsockopt(SOCKET s, int level, int optname, void *optval,
    Length *optlen)
{
    return getsockopt(s, level, optname, optval, reinterpret_cast<socklen_t *>(optlen));
}

template <typename Length>
inline typename hvsock_if_int<Length, ssize_t>::type recvfrom(SOCKET s, void *buf, size_t len, int flags,
    struct sockaddr *from, Length *fromlen)
{
    return recvfrom(s, buf, len, flags, from, reinterpret_cast<socklen_t *>(fromlen));
}

#ifdef HVSOCK_INLINE_RECV
/* For every buffer but void *, a better match than the inline function. */
template <typename Byte> inline ssize_t recv(SOCKET s, Byte *buf, size_t len, int flags)
{
    return hvsock_ws_recv(s, buf, len, flags);
}
#endif
#endif

#undef HVSOCK_CALL
#undef HVSOCK_CALL_NOTHROW
#undef HVSOCK_ADDRESS
#undef HVSOCK_CONST_ADDRESS
#undef HVSOCK_RESTRICT
#undef HVSOCK_OWN_DECLARATIONS
#undef HVSOCK_INLINE_RECV

#endif
#endif
