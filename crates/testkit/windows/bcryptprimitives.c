/* Wine before version 9 lacks bcryptprimitives.dll, which supplies random numbers to every Rust program for
 * Windows. `cargo xtask windows` builds this replacement and puts it on WINEPATH. It is for tests under Wine
 * only: Windows finds the system's DLL first. */

#include <stddef.h>

/* RtlGenRandom of advapi32. Wine implements it by the host kernel's random numbers. */
unsigned char __stdcall SystemFunction036(void *buffer, unsigned long length);

__declspec(dllexport) int __stdcall ProcessPrng(unsigned char *buffer, size_t length) {
    while (length > 0) {
        unsigned long chunk = length > 0x40000000 ? 0x40000000 : (unsigned long)length;
        if (!SystemFunction036(buffer, chunk)) {
            return 0;
        }
        buffer += chunk;
        length -= chunk;
    }
    return 1;
}
