/* The part of ws2tcpip.h that Linux has in other headers. */
#if defined __GNUC__
#pragma GCC system_header
#endif

#ifdef _WIN32
#include_next <ws2tcpip.h>
#else
#ifndef HVSOCK_WS2TCPIP_H
#define HVSOCK_WS2TCPIP_H
#include "winsock2.h"
#include <netdb.h>
#endif
#endif
