"""Runs a program under a seccomp filter that denies socket(AF_VSOCK), as those of Docker and podman do.

usage: denied.py CALL... -- PROGRAM ARGUMENTS, where CALL is one of the names below
"""

import ctypes
import os
import platform
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER, FIRST_ARGUMENT = 0, 16
ALLOW, DENY = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
X86 = {"socket": 41, "seccomp": 317, "pidfd_getfd": 438, "process_vm_readv": 310}
ARM = {"socket": 198, "seccomp": 277, "pidfd_getfd": 438, "process_vm_readv": 270}
NUMBERS = X86 if platform.machine() == "x86_64" else ARM


def program(names):
    """The classic BPF program: of socket only the family 40, of others all calls."""
    code = []
    for name in names:
        code.append((LOAD, 0, 0, NUMBER))
        if name == "socket":
            code.append((JUMP_EQUAL, 0, 3, NUMBERS[name]))
            code.append((LOAD, 0, 0, FIRST_ARGUMENT))
            code.append((JUMP_EQUAL, 0, 1, 40))
        else:
            code.append((JUMP_EQUAL, 0, 1, NUMBERS[name]))
        code.append((RETURN, 0, 0, DENY))
    code.append((RETURN, 0, 0, ALLOW))
    return code


end = sys.argv.index("--")
code = program(sys.argv[1:end])
text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))


class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


libc = ctypes.CDLL(None, use_errno=True)
loaded = Program(len(code), ctypes.addressof(text))
for arguments in (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, 2, ctypes.byref(loaded), 0, 0):
    if libc.prctl(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
