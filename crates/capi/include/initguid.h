/*
 * From here on, DEFINE_GUID defines the program's own GUIDs instead of declaring them, as on Windows.
 */
#if defined __GNUC__
#pragma GCC system_header
#endif

#ifdef _WIN32
#include_next <initguid.h>
#else

#ifndef INITGUID
#define INITGUID
#endif
#include "hvsock_types.h"

#undef DEFINE_GUID
#define DEFINE_GUID(name, l, w1, w2, b1, b2, b3, b4, b5, b6, b7, b8) \
    HVSOCK_EXTERN_C const GUID name HVSOCK_WEAK; \
    const GUID name = { l, w1, w2, { b1, b2, b3, b4, b5, b6, b7, b8 } }

#endif
