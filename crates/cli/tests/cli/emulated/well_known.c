/* The addresses and options of Microsoft's documents, with the socket calls of Linux.
 *
 * Prints what each call answers. A listener that could be made is reached by LOOPBACK. */

#define _GNU_SOURCE
#include <errno.h>
#include <hvsocket.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static const struct {
	const char *name;
	const GUID *id;
} known[] = {
	{"WILDCARD", &HV_GUID_WILDCARD}, {"CHILDREN", &HV_GUID_CHILDREN},
	{"PARENT", &HV_GUID_PARENT},     {"LOOPBACK", &HV_GUID_LOOPBACK},
	{"SILOHOST", &HV_GUID_SILOHOST}, {"BROADCAST", &HV_GUID_BROADCAST},
};
enum { KNOWN = sizeof known / sizeof known[0] };

static const char *error(int result)
{
	return result < 0 ? strerrorname_np(errno) : "ok";
}

static SOCKADDR_HV at(const GUID *partition, unsigned port)
{
	SOCKADDR_HV address;

	memset(&address, 0, sizeof address);
	address.Family = AF_HYPERV;
	address.VmId = *partition;
	address.ServiceId = HV_GUID_VSOCK_TEMPLATE;
	address.ServiceId.Data1 = port;
	return address;
}

static int raw(void)
{
	return socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW);
}

static int reach(const GUID *partition, unsigned port)
{
	SOCKADDR_HV address = at(partition, port);
	int client = raw();
	ULONG timeout = 2000;

	setsockopt(client, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, &timeout, sizeof timeout);
	if (connect(client, (void *)&address, sizeof address) == 0)
		return client;
	close(client);
	return -1;
}

static void listeners(void)
{
	for (int i = 0; i < KNOWN; i++) {
		SOCKADDR_HV address = at(known[i].id, 7200 + i), name;
		socklen_t length = sizeof name;
		int sock = raw(), bound = bind(sock, (void *)&address, sizeof address);

		printf("bind %s: %s", known[i].name, error(bound));
		if (bound == 0) {
			int made = listen(sock, 4);
			printf(", listen: %s", error(made));
			getsockname(sock, (void *)&name, &length);
			printf(memcmp(&name, &address, sizeof name) ? ", another name" : "");
			if (made == 0) {
				int client = reach(&HV_GUID_LOOPBACK, 7200 + i);
				printf(", connect: %s", error(client));
				close(client);
			}
		}
		printf("\n");
		close(sock);
	}
}

static void connects(void)
{
	for (int i = 0; i < KNOWN; i++) {
		int client = reach(known[i].id, 7100);
		char byte = 'x';

		printf("connect %s: %s", known[i].name, error(client));
		if (client >= 0) {
			struct timeval limit = {10, 0};
			setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
			int sent = write(client, &byte, 1) == 1 && read(client, &byte, 1) == 1;
			printf(", echo: %s", sent ? "ok" : "none");
		}
		printf("\n");
		close(client);
	}
}

static void options(void)
{
	static const struct {
		const char *name;
		int number;
	} all[] = {
		{"CONNECT_TIMEOUT", HVSOCKET_CONNECT_TIMEOUT},
		{"CONTAINER_PASSTHRU", HVSOCKET_CONTAINER_PASSTHRU},
		{"CONNECTED_SUSPEND", HVSOCKET_CONNECTED_SUSPEND},
		{"HIGH_VTL", HVSOCKET_HIGH_VTL},
	};
	int sock = raw();

	for (int i = 0; i < 4; i++) {
		printf("%s:", all[i].name);
		for (socklen_t length = 0; length <= 8; length += 2) {
			ULONG value[2] = {1, 0};
			printf(" %s", error(setsockopt(sock, HV_PROTOCOL_RAW, all[i].number, value, length)));
		}
		printf("\n");
	}
	for (ULONG timeout = HVSOCKET_CONNECT_TIMEOUT_MAX; timeout <= HVSOCKET_CONNECT_TIMEOUT_MAX + 1; timeout++) {
		ULONG got = 0;
		socklen_t length = sizeof got;
		int set = setsockopt(sock, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, &timeout, sizeof timeout);
		printf("timeout %u: %s", timeout, error(set));
		getsockopt(sock, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, &got, &length);
		printf(", is %u\n", got);
	}
	close(sock);
}

int main(void)
{
	listeners();
	connects();
	options();
	return 0;
}
