/* Wine before version 9 has no bcryptprimitives.dll, from which every program that Rust builds for
 * Windows takes its random numbers. `cargo xtask windows` builds this one and puts it on WINEPATH.
 * For tests under Wine only: on Windows the system's own is found first. */

#include <stddef.h>

/* advapi32's RtlGenRandom, which Wine fills from the kernel of the machine below. */
unsigned char __stdcall SystemFunction036(void *buffer, unsigned long length);

__declspec(dllexport) int __stdcall ProcessPrng(unsigned char *buffer, size_t length) {
    while (length > 0) {
        unsigned long piece = length > 0x40000000 ? 0x40000000 : (unsigned long)length;
        if (!SystemFunction036(buffer, piece)) {
            return 0;
        }
        buffer += piece;
        length -= piece;
    }
    return 1;
}
