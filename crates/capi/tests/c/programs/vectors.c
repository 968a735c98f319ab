/*
 * Reads test vectors as lines of words on standard input and prints for each what the library says. The test compares.
 *
 * guid TEXT: the 16 bytes in hexadecimal, or "invalid". format BYTES: the text. port NUMBER: the 16 bytes.
 */
#include <hvsock.h>
#include <hvsocket.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print(const unsigned char *bytes)
{
    int at;
    for (at = 0; at < 16; at++) {
        printf("%02x", bytes[at]);
    }
    printf("\n");
}

static void print_named(const char *name, const GUID *guid)
{
    unsigned char bytes[16];
    memcpy(bytes, guid, sizeof bytes);
    printf("%s ", name);
    print(bytes);
}

int main(void)
{
    static char line[70000];
    while (fgets(line, sizeof line, stdin) != NULL) {
        unsigned char bytes[16];
        char text[37];
        char *word;
        line[strcspn(line, "\n")] = '\0';
        word = strchr(line, ' ');
        if (word == NULL) {
            return 1;
        }
        *word++ = '\0';
        if (strcmp(line, "guid") == 0) {
            if (hvsock_guid_parse(word, bytes) == 0) {
                print(bytes);
            } else {
                printf("invalid\n");
            }
        } else if (strcmp(line, "port") == 0) {
            if (hvsock_service_of_port((uint32_t)strtoul(word, NULL, 10), bytes) != 0) {
                return 1;
            }
            print(bytes);
        } else if (strcmp(line, "format") == 0) {
            int at;
            for (at = 0; at < 16; at++) {
                unsigned value;
                if (sscanf(word + 2 * at, "%2x", &value) != 1) {
                    return 1;
                }
                bytes[at] = (unsigned char)value;
            }
            if (hvsock_guid_format(bytes, text) != 0) {
                return 1;
            }
            printf("%s\n", text);
        } else {
            return 1;
        }
    }
    print_named("HV_GUID_ZERO", &HV_GUID_ZERO);
    print_named("HV_GUID_WILDCARD", &HV_GUID_WILDCARD);
    print_named("HV_GUID_BROADCAST", &HV_GUID_BROADCAST);
    print_named("HV_GUID_CHILDREN", &HV_GUID_CHILDREN);
    print_named("HV_GUID_LOOPBACK", &HV_GUID_LOOPBACK);
    print_named("HV_GUID_PARENT", &HV_GUID_PARENT);
    print_named("HV_GUID_SILOHOST", &HV_GUID_SILOHOST);
    return 0;
}
