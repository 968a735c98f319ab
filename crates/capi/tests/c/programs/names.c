/* Compiled, never run: names of Windows, and members that have the names of functions. */
#include <winsock2.h>
#include <hvsocket.h>
#include <ws2tcpip.h>
#include <winsock2.h>
#include <sys/socket.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#ifdef __cplusplus
#include <functional>
#include <thread>
#include <memory>
struct Client { int connect(int x) { return x; } int bind(int) { return 1; } int send(const char*s, int n) { return s[n]; } ssize_t recv(int) { return 3;} int select() {return 0;} };
int g(Client &c);
int g(Client &c) { auto b = std::bind(&Client::connect, &c, std::placeholders::_1); return b(1) + c.bind(3) + c.send("x", 0) + (int)c.recv(1) + c.select(); }
#else
struct ops { int (*connect)(int); int (*accept)(int,int,int); int (*send)(void);};
int g(struct ops *o);
int g(struct ops *o) { int accept = 3; (void)accept; return o->connect(3) + o->accept(1,2,3) + o->send(); }
#endif
int f(SOCKET s, char*b);
int f(SOCKET s, char *b) { struct SOCKADDR_HV a; int l = sizeof a; socklen_t m = sizeof a; (void)m;
 struct _SOCKADDR_HV a2; SOCKADDR_HV a3; memset(&a2, 0, sizeof a2); memset(&a3, 0, sizeof a3);
 WSADATA w; fd_set fs; struct timeval tv = {1, 0}; FD_ZERO(&fs); FD_SET(s, &fs);
 u_long one = 1; ULONG two = 1; DWORD ms = 100;
 int (*fn)(int, const struct sockaddr *, socklen_t) = 0; 
 if (WSAStartup(MAKEWORD(2, 2), &w) != 0) return 1;
 SOCKET n = accept(s, (struct sockaddr*)&a, &l);
 if (n == INVALID_SOCKET) return WSAGetLastError();
 n = accept(s, (struct sockaddr*)&a, &m);
 n = accept(s, NULL, NULL);
 a.VmId = HV_GUID_PARENT; a.Family = AF_HYPERV;
#ifdef __cplusplus
 if (a.VmId == HV_GUID_ZERO || IsEqualGUID(a.VmId, HV_GUID_WILDCARD)) return 4;
#else
 if (IsEqualGUID(&a.VmId, &HV_GUID_WILDCARD)) return 4;
#endif
 getsockname(s, (SOCKADDR*)&a, &l); getpeername(s, (SOCKADDR*)&a, &m);
 getsockopt(s, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, (char*)&ms, &l);
 setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, (const char*)&ms, sizeof ms);
 ioctlsocket(s, FIONBIO, &one); ioctlsocket(s, FIONREAD, &two);
 select(0, &fs, NULL, NULL, &tv);
 n += bind(s, (struct sockaddr*)&a, sizeof a);
 (void)fn;
 n += connect(s, (const struct sockaddr*)&a, sizeof a);
 n += (int)recvfrom(s, b, 3, 0, NULL, NULL);
 n += (int)send(s, b, 20, 0); shutdown(s, SD_SEND); closesocket(s); WSACleanup();
 return n + (int)recv(s, b, 20, 0); }
