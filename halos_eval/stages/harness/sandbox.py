"""Confine processes that execute code that a model wrote: Landlock, a seccomp filter, limits, no privileges.

None of it needs a privilege, and a process cannot remove it. Landlock decides which files a process reaches, and from
its version 6 also which processes it signals (https://docs.kernel.org/userspace-api/landlock.html). The filter removes
what Landlock does not cover: the network, other processes' memory and limits, leaving the process group.

The libraries for this do not fit: sandlock 0.9 requires Landlock 6 (Linux 6.12) and starts programs, and importing
lm_eval for each item takes 10 s; py-landlock 0.1 is an alpha without a release since January 2026.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from halos_eval.errors import EvaluationFailed

Line = tuple[int, int, int, int]
"""One instruction of classic BPF: operation, value, lines to skip if true, lines to skip if not."""

# From <linux/prctl.h>, <linux/seccomp.h>, <linux/bpf_common.h>, <linux/audit.h>, <linux/sched.h>, <linux/capability.h>.
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 4, 38, 22, 2
LOAD, EQUAL, AT_LEAST, HAS_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, DENY, UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000  # numbers of x86-64's second set of calls begin here
NEGATIVE = 0x80000000
CLONE_NEWUSER = 0x10000000
CAPABILITY_VERSION = 0x20080522
# machine -> audit architecture
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers on x86_64 and aarch64; None: the machine does not have the call.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "clone": (56, 220), "clone3": (435, 435), "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122), "kill": (62, 129), "tgkill": (234, 131),
}  # fmt: skip
DENIED: dict[str, tuple[int | None, int | None]] = {
    # signals, memory and priority of other processes
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # the process group, by which the scorer ends everything that an item started
    "setsid": (112, 157), "setpgid": (109, 154),
    # changes of files that Landlock does not cover, in all or in some of its versions
    "truncate": (76, 45), "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "removexattr": (197, 14), "lremovexattr": (198, 15),
    # memory that no limit counts, and memory that processes of the same user share
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190),
    # io_uring creates sockets without the call ``socket``; the others are rare parts of the kernel
    "io_uring_setup": (425, 425), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218),
}  # fmt: skip

# Landlock's rights, with the version that has them first; from <linux/landlock.h>.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE, READ, LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL = 1 << 13, 1 << 14, 1 << 15
FIRST_RIGHTS = (1 << 13) - 1
MAKE_DEVICES = 1 << 6 | 1 << 11
RIGHTS_OF_FILES = EXECUTE | WRITE | READ | TRUNCATE | IOCTL
RIGHTS = {1: FIRST_RIGHTS, 2: REFER, 3: TRUNCATE, 5: IOCTL}
ALL_TCP, ALL_SCOPES = 0b11, 0b11  # version 4: bind and connect; version 6: abstract sockets and signals

GIB = 1 << 30
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Access(NamedTuple):
    """What a confined process reaches."""

    readable: tuple[str, ...]
    """Folders and files that it may read and execute; those that do not exist are left out."""
    writable: tuple[str, ...] = ()
    """Folders in which it may do everything."""


class Limits(NamedTuple):
    """What one item may use. Programs of humaneval and mbpp use some megabytes and milliseconds."""

    seconds: float = 300
    """Time from its start."""
    cpu_seconds: int = 120
    """CPU time of each process."""
    memory: int = 2 * GIB
    """Bytes, in addition to the scorer's own, of each process and of all together."""
    file_size: int = GIB // 4
    """Bytes of each file."""
    threads: int = 256
    """Threads of all its processes."""


# What the kernel says where there is no Landlock.
REASONS = {
    errno.ENOSYS: "the kernel has no Landlock; expected Linux 5.13 or later",
    errno.EOPNOTSUPP: "Landlock is switched off; expected `landlock` in the kernel's parameter lsm",
    errno.EPERM: "the seccomp profile of containers denies Landlock; expected that of a current containerd or CRI-O",
}


def landlock_version() -> int:
    """Return the version of the kernel's Landlock; 0 if it has none."""
    return max(0, _ask_landlock())


def _ask_landlock() -> int:
    return int(_libc().syscall(LANDLOCK_CREATE_RULESET, None, 0, 1))


def _no_landlock() -> str:
    """Return why there is no Landlock, with the remedy."""
    ctypes.set_errno(0)
    _ask_landlock()
    return REASONS.get(ctypes.get_errno(), REASONS[errno.ENOSYS])


def check(accept_weak: bool) -> int:
    """Return Landlock's version. Raise EvaluationFailed if processes cannot be confined.

    :param accept_weak: whether the operator accepts a kernel without Landlock.
    """
    if platform.machine() not in MACHINES:
        raise EvaluationFailed(
            f"refusing to run model-written code on {platform.machine()}; expected {' or '.join(MACHINES)}, for which "
            "a seccomp filter is available"
        )
    version = landlock_version()
    if not version and not accept_weak:
        raise EvaluationFailed(
            f"refusing to run model-written code, which could read and change files: {_no_landlock()}. Use another "
            "node or machine, leave tasks that execute code out of the suite, or set "
            "HALOS_EVAL_ACCEPT_WEAK_SANDBOX=true for the stage to accept that"
        )
    if not _is_filtered():
        # Without the filter each item fails, which would be scored as a wrong answer.
        raise EvaluationFailed("refusing to run model-written code: the kernel does not allow the seccomp filter")
    return version


def _is_filtered() -> bool:
    """Return whether a child process is denied a network socket."""
    child = os.fork()
    if not child:
        try:
            install(network_filter())
            socket.socket(socket.AF_INET)
        except PermissionError:
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def holds(inside: Path, outside: Path) -> bool:
    """Return whether a confined process can write to the new folder ``inside`` but not read the file ``outside``."""
    inside.mkdir()
    child = os.fork()
    if not child:
        code = 1
        try:
            confine(Access((), (str(inside),)), Limits(), {os.getppid()})
            (inside / "file").write_bytes(b"")
            outside.read_bytes()
        except PermissionError as error:
            code = int(error.filename != str(outside))
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def protect() -> None:
    """Hide this process's memory and variables from other processes of its user."""
    _libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends."""
    _libc().prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)


def confine(access: Access, limits: Limits, protected: Iterable[int]) -> None:
    """Confine this process and all that it starts. Raise OSError if a part of it is impossible.

    :param protected: processes that it must not signal. Landlock 6 protects all others, too.
    """
    _limit(limits)
    if version := landlock_version():
        _landlock(access, version)
    _drop_capabilities()
    install(item_filter(protected))


def _limit(limits: Limits) -> None:
    # RLIMIT_NPROC counts all processes of a user on the node, whichever pod they are in. So the scorer counts threads.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    wanted = {
        resource.RLIMIT_DATA: used + limits.memory,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 1024,
    }
    for kind, value in wanted.items():
        highest = resource.getrlimit(kind)[1]
        most = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(kind, (most, most))


def _landlock(access: Access, version: int) -> None:
    handled = sum(right for first, right in RIGHTS.items() if first <= version)
    attributes = struct.pack("=Q", handled)
    attributes += struct.pack("=Q", ALL_TCP) if version >= 4 else b""
    attributes += struct.pack("=Q", ALL_SCOPES) if version >= 6 else b""
    rules = _call(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    for path in access.readable:
        _allow(rules, path, (EXECUTE | READ | LIST) & handled)
    for path in DEVICES:
        _allow(rules, path, (READ | WRITE) & handled)
    for path in access.writable:
        _allow(rules, path, handled & ~MAKE_DEVICES)
    _no_new_privileges()
    _call(LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # also a folder that this user cannot reach
        return
    if not stat.S_ISDIR(os.fstat(handle).st_mode):
        rights &= RIGHTS_OF_FILES
    _call(LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", rights, handle), 0)
    os.close(handle)


def _drop_capabilities() -> None:
    """Give up the capabilities of root, which local stages may have."""
    _check(_libc().capset(struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24)))


def network_filter() -> bytes:
    """Return the filter that allows local sockets only."""
    return _encoded([*_beginning(), *_denied("io_uring_setup", DENIED), *_unix_sockets_only(), (RETURN, ALLOW, 0, 0)])


def item_filter(protected: Iterable[int]) -> bytes:
    """Return the filter for processes that execute a model's code."""
    lines = [*_beginning(), *(line for name in DENIED for line in _denied(name, DENIED)), *_unix_sockets_only()]
    lines += _if(EQUAL, _number("clone3", CALLS), UNKNOWN)  # its flags are in memory: libraries then use clone
    lines += _on_first_argument("clone", _if(HAS_BIT, CLONE_NEWUSER, DENY), ALLOW)
    for name in ("prlimit64", "sched_setaffinity"):
        lines += _on_first_argument(name, _if(EQUAL, 0, ALLOW), DENY)  # of this process only
    # A negative number stands for a process group or for all processes.
    targets = _if(AT_LEAST, NEGATIVE, DENY) + [line for pid in protected for line in _if(EQUAL, pid, DENY)]
    for name in ("kill", "tgkill"):
        lines += _on_first_argument(name, targets, ALLOW)
    return _encoded([*lines, (RETURN, ALLOW, 0, 0)])


def _number(name: str, calls: dict[str, tuple[int | None, int | None]]) -> int | None:
    return calls[name][list(MACHINES).index(platform.machine())]


def _beginning() -> list[Line]:
    """Deny the calls of other architectures, and load the number of the call."""
    lines: list[Line] = [(LOAD, ARCHITECTURE, 0, 0), (EQUAL, MACHINES[platform.machine()], 1, 0), (RETURN, DENY, 0, 0)]
    return [*lines, (LOAD, NUMBER, 0, 0), *_if(AT_LEAST, X32, DENY)]


def _if(operation: int, value: int | None, action: int) -> list[Line]:
    return [] if value is None else [(operation, value, 0, 1), (RETURN, action, 0, 0)]


def _denied(name: str, calls: dict[str, tuple[int | None, int | None]]) -> list[Line]:
    return _if(EQUAL, _number(name, calls), DENY)


def _unix_sockets_only() -> list[Line]:
    return _on_first_argument("socket", _if(EQUAL, socket.AF_UNIX, ALLOW), DENY)


def _on_first_argument(name: str, tests: list[Line], otherwise: int) -> list[Line]:
    """Decide on a call by its first argument, of which the lower 32 bits are loaded."""
    number = _number(name, CALLS)
    block: list[Line] = [(LOAD, FIRST_ARGUMENT, 0, 0), *tests, (RETURN, otherwise, 0, 0)]
    return [] if number is None else [(EQUAL, number, 0, len(block)), *block]


def _encoded(lines: list[Line]) -> bytes:
    return b"".join(struct.pack("=HBBI", operation, yes, no, value) for operation, value, yes, no in lines)


def install(program: bytes) -> None:
    """Filter the system calls of this process and of all that it starts. Raise OSError."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of lines, padding, a pointer to them
    filters = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    _no_new_privileges()
    _check(_libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters, 0, 0))


def _no_new_privileges() -> None:
    _check(_libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes) -> int:
    return _check(_libc().syscall(number, *arguments))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
