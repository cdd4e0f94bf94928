"""Block network access for code that a model wrote.

On a cluster a NetworkPolicy does so for the whole pod, but some clusters do not enforce it, and local processes have
none. lm_eval forks a child process to execute such code, so a seccomp filter also blocks the creation of network
sockets in each child (https://docs.kernel.org/userspace-api/seccomp_filter.html). The filter needs no privilege and
cannot be removed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct

from halos_eval.errors import EvaluationFailed

# From <linux/prctl.h>, <linux/seccomp.h>, <linux/bpf_common.h> and <linux/audit.h>.
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, DENY = 0x7FFF0000, 0x00050000 | errno.EPERM
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000  # numbers of x86-64's second set of calls begin here
IO_URING_SETUP = 425  # io_uring creates sockets without the call ``socket``
# machine -> (audit architecture, number of the call ``socket``)
MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}


def close_network_in_children() -> None:
    """Limit all processes that are forked from this one to local sockets. Raise EvaluationFailed if that is impossible.

    Programs that ``subprocess`` starts are not forked by Python and keep the network.
    """
    if platform.machine() not in MACHINES:
        raise EvaluationFailed(
            f"refusing to run model-written code on {platform.machine()}; expected {' or '.join(MACHINES)}, for which "
            "a seccomp filter is available"
        )
    program = _program(*MACHINES[platform.machine()])
    os.register_at_fork(after_in_child=lambda: _install(program))
    if not _is_closed():
        # Without the filter each child exits, and lm_eval would score that as a wrong answer.
        raise EvaluationFailed("refusing to run model-written code: the kernel does not allow the seccomp filter")


def _is_closed() -> bool:
    """Return whether a child process is denied a network socket."""
    child = os.fork()
    if not child:
        try:
            socket.socket(socket.AF_INET)
        except PermissionError:
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _program(architecture: int, socket_call: int) -> bytes:
    """Return the filter in classic BPF. Lines are (operation, value, lines to skip if true, lines to skip if not)."""
    lines = [
        (LOAD, ARCHITECTURE, 0, 0),
        (EQUAL, architecture, 0, 7),
        (LOAD, NUMBER, 0, 0),
        (AT_LEAST, X32, 5, 0),
        (EQUAL, IO_URING_SETUP, 4, 0),
        (EQUAL, socket_call, 0, 2),
        (LOAD, FIRST_ARGUMENT, 0, 0),
        (EQUAL, socket.AF_UNIX, 0, 1),
        (RETURN, ALLOW, 0, 0),
        (RETURN, DENY, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", operation, yes, no, value) for operation, value, yes, no in lines)


def _install(program: bytes) -> None:
    """Filter the system calls of this process. Exit if that fails, so that no code runs without the filter."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of lines, padding, a pointer to them
    filters = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters, 0, 0):
        os._exit(errno.EPERM)
