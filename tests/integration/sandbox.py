"""`python sandbox.py SYSTEM-CALLS COMMAND ...`: runs COMMAND, which can use only SYSTEM-CALLS, as under systemd.

The script sets what a service manager sets between fork and exec: no new privileges, no memory that is both writable
and executable, and a filter that makes all system calls except SYSTEM-CALLS fail with EPERM. The script needs
libseccomp, which systemd requires.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def main(calls: list[str], command: list[str]) -> None:
    """Replaces this process with the command. Raises OSError if a restriction is not available."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option in (PR_SET_NO_NEW_PRIVS, PR_SET_MDWE):
        if libc.prctl(option, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
            # PR_SET_MDWE exists since Linux 6.3. On older kernels, systemd uses a filter instead of PR_SET_MDWE.
            if option == PR_SET_MDWE and ctypes.get_errno() == errno.EINVAL:
                continue
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    rules = seccomp.seccomp_init(ERRNO | errno.EPERM)
    for call in calls:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        # A negative number means that this architecture does not have the system call.
        if number >= 0 and (error := seccomp.seccomp_rule_add(rules, ALLOW, number, 0)):
            raise OSError(-error, call)
    if error := seccomp.seccomp_load(rules):
        raise OSError(-error, "seccomp_load")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text().split(), sys.argv[2:])
