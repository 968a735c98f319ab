/*
 * Makes odd calls on sockets of AF_VSOCK and prints what each answers, a line for each: NAME: RESULT.
 *
 * The same program runs under `hvsock run`, with the preloaded library, and natively in a guest whose kernel has the
 * family, so that the answers can be compared. All connections are to the own partition (VMADDR_CID_LOCAL).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sockios.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define PORT 27000
#define NOBODY 27999
/* No memory of any program. */
#define NOWHERE ((void *)8)

static void result(const char *name, long answer)
{
	if (answer >= 0)
		printf("%s: %ld\n", name, answer);
	else
		printf("%s: %s\n", name, strerrorname_np(errno));
}

/* What only has to succeed. */
static void done(const char *name, long answer)
{
	result(name, answer < 0 ? answer : 0);
}

static struct sockaddr_vm at(unsigned int cid, unsigned int port)
{
	struct sockaddr_vm address;

	memset(&address, 0, sizeof(address));
	address.svm_family = AF_VSOCK;
	address.svm_cid = cid;
	address.svm_port = port;
	return address;
}

static int stream(int flags)
{
	return socket(AF_VSOCK, SOCK_STREAM | flags, 0);
}

static int bind_to(int fd, unsigned int cid, unsigned int port)
{
	struct sockaddr_vm address = at(cid, port);

	return bind(fd, (void *)&address, sizeof(address));
}

static int connect_to(int fd, unsigned int cid, unsigned int port)
{
	struct sockaddr_vm address = at(cid, port);

	return connect(fd, (void *)&address, sizeof(address));
}

static int listener(unsigned int port)
{
	int fd = stream(0);

	bind_to(fd, VMADDR_CID_ANY, port);
	listen(fd, 8);
	return fd;
}

/* Whose address it is, where the number is another one in each partition. */
static const char *cid(unsigned int number)
{
	switch (number) {
	case VMADDR_CID_ANY:
		return "any";
	case VMADDR_CID_LOCAL:
		return "local";
	default:
		return "own";
	}
}

static void name(const char *label, int (*call)(int, struct sockaddr *, socklen_t *), int fd,
		 int with_port)
{
	struct sockaddr_vm address = at(0, 0);
	socklen_t len = sizeof(address);

	if (call(fd, (void *)&address, &len) < 0) {
		result(label, -1);
		return;
	}
	printf("%s: family %d, length %u, %s", label, address.svm_family, len, cid(address.svm_cid));
	if (with_port)
		printf(" %d", (int)address.svm_port);
	else
		printf(" port %s", address.svm_port >= 1024 && address.svm_port != VMADDR_PORT_ANY ?
			"above 1023" : "other");
	printf("\n");
}

static int local(int fd, struct sockaddr *address, socklen_t *len)
{
	return getsockname(fd, address, len);
}

static int peer(int fd, struct sockaddr *address, socklen_t *len)
{
	return getpeername(fd, address, len);
}

static void creation(void)
{
	int fd;

	result("socket of SOCK_RAW", socket(AF_VSOCK, SOCK_RAW, 0));
	result("socket of type 0", socket(AF_VSOCK, 0, 0));
	result("socket of type 11", socket(AF_VSOCK, 11, 0));
	result("socket with unknown flags", socket(AF_VSOCK, SOCK_STREAM | 0x100, 0));
	result("socket of protocol 6", socket(AF_VSOCK, SOCK_STREAM, 6));
	done("socket of protocol AF_VSOCK", socket(AF_VSOCK, SOCK_STREAM, AF_VSOCK));
	result("socket of SOCK_DGRAM", socket(AF_VSOCK, SOCK_DGRAM, 0));
	done("socket of SOCK_SEQPACKET", socket(AF_VSOCK, SOCK_SEQPACKET, 0));
	fd = stream(SOCK_NONBLOCK | SOCK_CLOEXEC);
	result("O_NONBLOCK of a socket made so", !!(fcntl(fd, F_GETFL) & O_NONBLOCK));
	result("FD_CLOEXEC of a socket made so", fcntl(fd, F_GETFD));
	close(fd);
	fd = stream(0);
	result("O_NONBLOCK of a plain socket", !!(fcntl(fd, F_GETFL) & O_NONBLOCK));
	result("FD_CLOEXEC of a plain socket", fcntl(fd, F_GETFD));
	close(fd);
}

static void number(const char *label, int fd, int level, int option)
{
	int value = -1;
	socklen_t len = sizeof(value);

	if (getsockopt(fd, level, option, &value, &len) < 0)
		result(label, -1);
	else
		printf("%s: %d, length %u\n", label, value, len);
}

static void size(const char *label, int fd, int option, socklen_t space)
{
	unsigned char value[64];
	socklen_t len = space;

	memset(value, 0, sizeof(value));
	if (getsockopt(fd, AF_VSOCK, option, value, &len) < 0)
		result(label, -1);
	else
		printf("%s: %llu, length %u\n", label, *(unsigned long long *)value, len);
}

static void options(void)
{
	unsigned long long bytes = 4096;
	struct timeval timeout = { .tv_sec = 1, .tv_usec = 500000 };
	struct timeval wrong = { .tv_sec = 0, .tv_usec = 1000000 };
	struct timeval negative = { .tv_sec = -1, .tv_usec = 0 };
	char cut[4] = { 7, 7, 7, 7 };
	socklen_t len;
	int value = 1;
	int fd = stream(0);

	number("SO_TYPE", fd, SOL_SOCKET, SO_TYPE);
	number("SO_DOMAIN", fd, SOL_SOCKET, SO_DOMAIN);
	number("SO_PROTOCOL", fd, SOL_SOCKET, SO_PROTOCOL);
	number("SO_ERROR", fd, SOL_SOCKET, SO_ERROR);
	number("SO_ACCEPTCONN", fd, SOL_SOCKET, SO_ACCEPTCONN);
	number("an unknown option of SOL_SOCKET", fd, SOL_SOCKET, 9999);
	len = 2;
	result("SO_DOMAIN into two bytes", getsockopt(fd, SOL_SOCKET, SO_DOMAIN, cut, &len));
	printf("SO_DOMAIN in two bytes: %d %d %d, length %u\n", cut[0], cut[1], cut[2], len);
	len = 0;
	result("SO_DOMAIN into no bytes", getsockopt(fd, SOL_SOCKET, SO_DOMAIN, cut, &len));
	len = -1;
	result("SO_DOMAIN into -1 bytes", getsockopt(fd, SOL_SOCKET, SO_DOMAIN, cut, &len));
	len = 4;
	result("SO_DOMAIN to nowhere", getsockopt(fd, SOL_SOCKET, SO_DOMAIN, NOWHERE, &len));
	result("SO_DOMAIN of a length nowhere", getsockopt(fd, SOL_SOCKET, SO_DOMAIN, cut, NOWHERE));
	result("setting SO_DOMAIN", setsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, 4));
	result("setting SO_TYPE", setsockopt(fd, SOL_SOCKET, SO_TYPE, &value, 4));
	result("setting SO_ERROR", setsockopt(fd, SOL_SOCKET, SO_ERROR, &value, 4));
	result("SO_RCVTIMEO of 1.5 s", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
	len = sizeof(wrong);
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wrong, &len);
	printf("SO_RCVTIMEO as set: %ld %ld\n", (long)wrong.tv_sec, (long)wrong.tv_usec / 10000);
	result("SO_RCVTIMEO of two bytes", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, 2));

	size("buffer size", fd, SO_VM_SOCKETS_BUFFER_SIZE, 8);
	size("buffer size into 64 bytes", fd, SO_VM_SOCKETS_BUFFER_SIZE, 64);
	size("buffer size into 7 bytes", fd, SO_VM_SOCKETS_BUFFER_SIZE, 7);
	size("buffer size into no bytes", fd, SO_VM_SOCKETS_BUFFER_SIZE, 0);
	size("least buffer size", fd, SO_VM_SOCKETS_BUFFER_MIN_SIZE, 8);
	size("largest buffer size", fd, SO_VM_SOCKETS_BUFFER_MAX_SIZE, 8);
	size("connect timeout", fd, SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD, 16);
	size("connect timeout into 15 bytes", fd, SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD, 15);
	size("trusted", fd, SO_VM_SOCKETS_TRUSTED, 8);
	size("peer's VM", fd, SO_VM_SOCKETS_PEER_HOST_VM_ID, 8);
	size("an unknown option of AF_VSOCK", fd, 99, 8);
	result("setting the buffer size", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &bytes, 8));
	size("buffer size as set", fd, SO_VM_SOCKETS_BUFFER_SIZE, 8);
	bytes = 1 << 30;
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &bytes, 8);
	size("buffer size above the largest", fd, SO_VM_SOCKETS_BUFFER_SIZE, 8);
	result("setting the buffer size by 4 bytes", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &bytes, 4));
	result("setting the buffer size by -1 bytes", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, &bytes, -1));
	result("setting the buffer size from nowhere", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, NOWHERE, 8));
	result("setting the connect timeout", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD, &timeout, sizeof(timeout)));
	result("setting a negative connect timeout", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD, &negative, sizeof(negative)));
	wrong.tv_usec = 1000000;
	result("setting a connect timeout of 10^6 us", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD, &wrong, sizeof(wrong)));
	result("setting trusted", setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_TRUSTED, &bytes, 8));
	result("setting an unknown option of AF_VSOCK", setsockopt(fd, AF_VSOCK, 99, &bytes, 8));
	result("setting TCP_NODELAY", setsockopt(fd, 6, 1, &value, 4));
	number("TCP_NODELAY", fd, 6, 1);
	close(fd);
}

static void unconnected(void)
{
	struct sockaddr_vm address = at(VMADDR_CID_LOCAL, PORT);
	struct sockaddr_vm cut = at(0, 0);
	char byte = 1;
	socklen_t len;
	int value;
	int fd = stream(0);

	name("name of a new socket", local, fd, 1);
	name("peer of a new socket", peer, fd, 1);
	len = 4;
	result("name into four bytes", getsockname(fd, (void *)&cut, &len));
	printf("name in four bytes: family %d, port %u, length %u\n", cut.svm_family, cut.svm_port, len);
	len = 0;
	result("name into no bytes", getsockname(fd, (void *)&cut, &len));
	printf("length of a name in no bytes: %u\n", len);
	len = -1;
	result("name into -1 bytes", getsockname(fd, (void *)&cut, &len));
	len = sizeof(cut);
	result("name to nowhere", getsockname(fd, NOWHERE, &len));
	result("name of a length nowhere", getsockname(fd, (void *)&cut, NOWHERE));
	result("peer to nowhere", getpeername(fd, NOWHERE, &len));
	result("listen without an address", listen(fd, 1));
	result("accept on a new socket", accept(fd, NULL, NULL));
	result("accept4 with unknown flags", accept4(fd, NULL, NULL, 1));
	result("shutdown of reading, new", shutdown(fd, SHUT_RD));
	result("shutdown of writing, new", shutdown(fd, SHUT_WR));
	result("shutdown of both, new", shutdown(fd, SHUT_RDWR));
	result("shutdown of 3, new", shutdown(fd, 3));
	result("shutdown of -1, new", shutdown(fd, -1));
	result("send, new", send(fd, &byte, 1, MSG_NOSIGNAL));
	result("sendto with an address, new", sendto(fd, &byte, 1, MSG_NOSIGNAL, (void *)&address, sizeof(address)));
	result("recv, new", recv(fd, &byte, 1, MSG_DONTWAIT));
	result("read, new", read(fd, &byte, 1));
	result("recv of MSG_OOB, new", recv(fd, &byte, 1, MSG_OOB | MSG_DONTWAIT));
	result("FIONREAD, new", ioctl(fd, FIONREAD, &value));
	result("SIOCOUTQ, new", ioctl(fd, SIOCOUTQ, &value));
	result("lseek", lseek(fd, 0, SEEK_SET));
	close(fd);
	/* After all that. */
	fd = stream(0);
	shutdown(fd, SHUT_RDWR);
	result("bind after a shutdown that failed", bind_to(fd, VMADDR_CID_ANY, PORT + 1));
	result("listen after a shutdown that failed", listen(fd, 1));
	close(fd);
	result("bind of a closed descriptor", bind_to(fd, VMADDR_CID_ANY, PORT));
	result("shutdown of a closed descriptor", shutdown(fd, SHUT_RD));
	fd = open("/dev/null", O_RDWR);
	result("bind of a file", bind_to(fd, VMADDR_CID_ANY, PORT));
	result("shutdown of a file", shutdown(fd, SHUT_RD));
	close(fd);
}

/* A process that may not bind reserved ports. */
static void drop_capability(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];

	syscall(SYS_capget, &header, data);
	data[0].effective &= ~(1u << CAP_NET_BIND_SERVICE);
	syscall(SYS_capset, &header, data);
}

static void binding(void)
{
	unsigned char bytes[256];
	struct sockaddr_vm *address = (void *)bytes;
	int fd = stream(0), other = stream(0), third;

	memset(bytes, 0, sizeof(bytes));
	*address = at(VMADDR_CID_ANY, PORT + 2);
	result("bind by no bytes", bind(fd, (void *)bytes, 0));
	result("bind by one byte", bind(fd, (void *)bytes, 1));
	result("bind by two bytes", bind(fd, (void *)bytes, 2));
	result("bind by 15 bytes", bind(fd, (void *)bytes, 15));
	result("bind by 129 bytes", bind(fd, (void *)bytes, 129));
	result("bind by -1 bytes", bind(fd, (void *)bytes, -1));
	result("bind from nowhere", bind(fd, NOWHERE, 16));
	result("bind from nowhere by no bytes", bind(fd, NOWHERE, 0));
	address->svm_family = AF_INET;
	result("bind to AF_INET", bind(fd, (void *)bytes, 16));
	address->svm_family = AF_UNSPEC;
	result("bind to AF_UNSPEC", bind(fd, (void *)bytes, 16));
	address->svm_family = AF_VSOCK;
	bytes[12] = 2;
	result("bind with an unknown flag", bind(fd, (void *)bytes, 16));
	bytes[12] = 0;
	result("bind to the CID of another", bind_to(fd, 77, PORT + 2));
	result("bind to CID 0", bind_to(fd, 0, PORT + 2));
	bytes[2] = 1;
	bytes[13] = 1;
	result("bind by 128 bytes, reserved ones set", bind(fd, (void *)bytes, 128));
	name("name of a bound socket", local, fd, 1);
	result("bind twice", bind_to(fd, VMADDR_CID_ANY, PORT + 3));
	result("bind twice to the same", bind_to(fd, VMADDR_CID_ANY, PORT + 2));
	result("bind to a bound port", bind_to(other, VMADDR_CID_ANY, PORT + 2));
	result("bind to a bound port at CID 1", bind_to(other, VMADDR_CID_LOCAL, PORT + 2));
	result("accept on a bound socket", accept(fd, NULL, NULL));
	result("shutdown of a bound socket", shutdown(fd, SHUT_WR));
	close(fd);
	result("bind to a port that was closed", bind_to(other, VMADDR_CID_LOCAL, PORT + 2));
	name("name at CID 1", local, other, 1);
	third = stream(0);
	result("bind to any port", bind_to(third, VMADDR_CID_ANY, VMADDR_PORT_ANY));
	name("name at any port", local, third, 0);
	close(third);
	third = stream(0);
	result("bind to port 0", bind_to(third, VMADDR_CID_ANY, 0));
	close(third);
	third = stream(0);
	result("bind to port 1023", bind_to(third, VMADDR_CID_ANY, 1023));
	close(third);
	drop_capability();
	third = stream(0);
	result("bind to port 1023 without the capability", bind_to(third, VMADDR_CID_ANY, 1023));
	result("bind to port 0 without the capability", bind_to(third, VMADDR_CID_ANY, 0));
	result("bind to another's CID without the capability", bind_to(third, 77, 1023));
	result("bind to port 1024 without the capability", bind_to(third, VMADDR_CID_ANY, 1024));
	close(third);
	close(other);
}

static void listening(void)
{
	struct timeval timeout = { .tv_sec = 0, .tv_usec = 50000 };
	struct sockaddr_vm address;
	struct pollfd poll_fd;
	socklen_t len = sizeof(address);
	char byte = 1;
	int fd = stream(0), client, accepted;

	bind_to(fd, VMADDR_CID_ANY, PORT + 4);
	result("connect to a bound socket", connect_to(stream(0), VMADDR_CID_LOCAL, PORT + 4));
	result("listen with backlog -1", listen(fd, -1));
	result("listen again with backlog 0", listen(fd, 0));
	result("listen again", listen(fd, 8));
	number("SO_ACCEPTCONN of a listener", fd, SOL_SOCKET, SO_ACCEPTCONN);
	number("SO_TYPE of a listener", fd, SOL_SOCKET, SO_TYPE);
	number("SO_DOMAIN of a listener", fd, SOL_SOCKET, SO_DOMAIN);
	number("SO_ERROR of a listener", fd, SOL_SOCKET, SO_ERROR);
	name("name of a listener", local, fd, 1);
	name("peer of a listener", peer, fd, 1);
	result("bind of a listener", bind_to(fd, VMADDR_CID_ANY, PORT + 5));
	result("connect of a listener", connect_to(fd, VMADDR_CID_LOCAL, PORT + 4));
	result("connect of a listener by 2 bytes", connect(fd, (void *)&address, 2));
	result("shutdown of a listener", shutdown(fd, SHUT_RDWR));
	result("send of a listener", send(fd, &byte, 1, MSG_NOSIGNAL));
	poll_fd = (struct pollfd){ .fd = fd, .events = POLLIN | POLLOUT };
	result("poll of a listener", poll(&poll_fd, 1, 0));
	result("accept4 of a listener with unknown flags", accept4(fd, NULL, NULL, 1));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	result("accept of nothing, non-blocking", accept(fd, NULL, NULL));
	fcntl(fd, F_SETFL, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	result("accept of nothing, SO_RCVTIMEO", accept(fd, NULL, NULL));
	client = stream(0);
	result("connect", connect_to(client, VMADDR_CID_LOCAL, PORT + 4));
	poll_fd.revents = 0;
	result("poll of a listener with a connection", poll(&poll_fd, 1, 2000));
	result("its events", poll_fd.revents);
	accepted = accept4(fd, (void *)&address, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
	done("accept4", accepted);
	printf("peer of accept4: family %d, length %u\n", address.svm_family, len);
	result("O_NONBLOCK of accept4", !!(fcntl(accepted, F_GETFL) & O_NONBLOCK));
	result("FD_CLOEXEC of accept4", fcntl(accepted, F_GETFD));
	close(accepted);
	close(client);
	client = stream(0);
	connect_to(client, VMADDR_CID_LOCAL, PORT + 4);
	accepted = accept(fd, NULL, NULL);
	done("accept without an address", accepted);
	number("SO_DOMAIN of an accepted socket", accepted, SOL_SOCKET, SO_DOMAIN);
	number("SO_ACCEPTCONN of an accepted socket", accepted, SOL_SOCKET, SO_ACCEPTCONN);
	name("name of an accepted socket", local, accepted, 1);
	result("listen of an accepted socket", listen(accepted, 1));
	result("bind of an accepted socket", bind_to(accepted, VMADDR_CID_ANY, PORT + 6));
	result("accept of an accepted socket", accept(accepted, NULL, NULL));
	result("connect of an accepted socket", connect_to(accepted, VMADDR_CID_LOCAL, PORT + 4));
	close(accepted);
	close(client);
	close(fd);
	result("connect after the listener's close", connect_to(stream(0), VMADDR_CID_LOCAL, PORT + 4));
	fd = stream(0);
	bind_to(fd, VMADDR_CID_LOCAL, PORT + 7);
	listen(fd, 1);
	client = stream(0);
	result("connect to a listener at CID 1", connect_to(client, VMADDR_CID_LOCAL, PORT + 7));
	close(client);
	close(fd);
}

static void connecting(void)
{
	unsigned char bytes[256];
	struct sockaddr_vm *address = (void *)bytes;
	struct pollfd poll_fd;
	int fd = stream(0), server = listener(PORT + 8), client;

	memset(bytes, 0, sizeof(bytes));
	*address = at(VMADDR_CID_LOCAL, PORT + 8);
	result("connect by no bytes", connect(fd, (void *)bytes, 0));
	result("connect by two bytes", connect(fd, (void *)bytes, 2));
	result("connect by 15 bytes", connect(fd, (void *)bytes, 15));
	result("connect by 129 bytes", connect(fd, (void *)bytes, 129));
	result("connect by -1 bytes", connect(fd, (void *)bytes, -1));
	result("connect from nowhere", connect(fd, NOWHERE, 16));
	address->svm_family = AF_INET;
	result("connect to AF_INET", connect(fd, (void *)bytes, 16));
	address->svm_family = AF_UNSPEC;
	result("connect to AF_UNSPEC", connect(fd, (void *)bytes, 16));
	address->svm_family = AF_VSOCK;
	bytes[12] = 4;
	result("connect with an unknown flag", connect(fd, (void *)bytes, 16));
	bytes[12] = 0;
	name("name after connects that failed at once", local, fd, 1);
	result("connect to nobody", connect_to(fd, VMADDR_CID_LOCAL, NOBODY));
	number("SO_ERROR after a connect to nobody", fd, SOL_SOCKET, SO_ERROR);
	name("peer after a connect to nobody", peer, fd, 1);
	result("send after a connect to nobody", send(fd, "x", 1, MSG_NOSIGNAL));
	result("shutdown after a connect to nobody", shutdown(fd, SHUT_WR));
	result("connect to nobody again", connect_to(fd, VMADDR_CID_LOCAL, NOBODY));
	result("connect to port any", connect_to(fd, VMADDR_CID_LOCAL, VMADDR_PORT_ANY));
	result("connect to a listener after that", connect_to(fd, VMADDR_CID_LOCAL, PORT + 8));
	close(fd);
	close(accept(server, NULL, NULL));

	fd = stream(SOCK_NONBLOCK);
	result("non-blocking connect to nobody", connect_to(fd, VMADDR_CID_LOCAL, NOBODY));
	poll_fd = (struct pollfd){ .fd = fd, .events = POLLOUT };
	result("poll of a connect to nobody", poll(&poll_fd, 1, 2000));
	result("POLLERR or POLLHUP of a connect to nobody", !!(poll_fd.revents & (POLLERR | POLLHUP)));
	number("SO_ERROR of a connect to nobody", fd, SOL_SOCKET, SO_ERROR);
	number("SO_ERROR of a connect to nobody, again", fd, SOL_SOCKET, SO_ERROR);
	close(fd);
	client = stream(SOCK_NONBLOCK);
	result("non-blocking connect", connect_to(client, VMADDR_CID_LOCAL, PORT + 8));
	poll_fd = (struct pollfd){ .fd = client, .events = POLLOUT };
	result("poll of a connect", poll(&poll_fd, 1, 2000));
	result("events of a connect", poll_fd.revents);
	number("SO_ERROR of a connect", client, SOL_SOCKET, SO_ERROR);
	result("non-blocking connect again", connect_to(client, VMADDR_CID_LOCAL, PORT + 8));
	close(client);
	close(server);
}

static void connected(void)
{
	struct timeval timeout = { .tv_sec = 0, .tv_usec = 50000 };
	struct sockaddr_vm address = at(VMADDR_CID_LOCAL, PORT + 9);
	struct sockaddr_vm from = at(0, 0);
	struct msghdr message;
	struct iovec part;
	char bytes[16];
	socklen_t len = sizeof(from);
	int value, server = listener(PORT + 9), fd = stream(0), accepted;

	connect_to(fd, VMADDR_CID_LOCAL, PORT + 9);
	accepted = accept(server, NULL, NULL);
	name("peer of a connection", peer, fd, 1);
	result("connect twice", connect_to(fd, VMADDR_CID_LOCAL, PORT + 9));
	result("connect twice by two bytes", connect(fd, (void *)&address, 2));
	result("connect twice to nobody", connect_to(fd, VMADDR_CID_LOCAL, NOBODY));
	result("bind of a connection", bind_to(fd, VMADDR_CID_ANY, PORT + 10));
	result("listen of a connection", listen(fd, 1));
	result("accept of a connection", accept(fd, NULL, NULL));
	number("SO_ERROR of a connection", fd, SOL_SOCKET, SO_ERROR);
	result("sendto with an address", sendto(fd, "x", 1, MSG_NOSIGNAL, (void *)&address, sizeof(address)));
	result("shutdown of 3", shutdown(fd, 3));
	result("recv of nothing, MSG_DONTWAIT", recv(fd, bytes, 1, MSG_DONTWAIT));
	result("recv of nothing, MSG_PEEK", recv(fd, bytes, 1, MSG_DONTWAIT | MSG_PEEK));
	result("recv of MSG_OOB", recv(fd, bytes, 1, MSG_DONTWAIT | MSG_OOB));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	result("recv of nothing, SO_RCVTIMEO", recv(fd, bytes, 1, 0));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	result("read of nothing, non-blocking", read(fd, bytes, 1));
	fcntl(fd, F_SETFL, 0);
	result("send", send(accepted, "hello", 5, MSG_NOSIGNAL));
	result("recv of MSG_PEEK", recv(fd, bytes, 5, MSG_PEEK | MSG_WAITALL));
	value = -1;
	result("FIONREAD", ioctl(fd, FIONREAD, &value));
	result("recv of two bytes", recv(fd, bytes, 2, 0));
	result("send of the rest", send(accepted, "wor", 3, MSG_NOSIGNAL));
	result("recv of MSG_WAITALL", recv(fd, bytes, 6, MSG_WAITALL));
	send(accepted, "x", 1, MSG_NOSIGNAL);
	result("recvfrom", recvfrom(fd, bytes, 1, 0, (void *)&from, &len));
	printf("address of recvfrom: family %d, length %u\n", from.svm_family, len);
	send(accepted, "x", 1, MSG_NOSIGNAL);
	part = (struct iovec){ bytes, sizeof(bytes) };
	memset(&message, 0, sizeof(message));
	message.msg_iov = &part;
	message.msg_iovlen = 1;
	message.msg_flags = -1;
	result("recvmsg", recvmsg(fd, &message, 0));
	result("flags of recvmsg", message.msg_flags);
	result("send of nothing", send(fd, "", 0, MSG_NOSIGNAL));
	result("shutdown of writing", shutdown(fd, SHUT_WR));
	result("send after the shutdown", send(fd, "x", 1, MSG_NOSIGNAL));
	result("recv of the end", recv(accepted, bytes, 1, 0));
	result("shutdown of writing again", shutdown(fd, SHUT_WR));
	name("peer after the shutdown", peer, fd, 1);
	result("connect after the shutdown", connect_to(fd, VMADDR_CID_LOCAL, PORT + 9));
	result("shutdown of reading", shutdown(fd, SHUT_RD));
	result("recv after the shutdown", recv(fd, bytes, 1, 0));
	close(accepted);
	close(fd);
	close(server);
	fd = stream(0);
	server = listener(PORT + 11);
	bind_to(fd, VMADDR_CID_ANY, PORT + 12);
	result("connect of a bound socket", connect_to(fd, VMADDR_CID_LOCAL, PORT + 11));
	name("name of a bound socket that connected", local, fd, 1);
	close(fd);
	close(server);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(60);
	creation();
	options();
	unconnected();
	binding();
	if (argc > 1 && !strcmp(argv[1], "unconnected"))
		return 0;
	listening();
	connecting();
	connected();
	return 0;
}
