"""Where model-written code cannot be confined, none is executed. Its confinement is tested in test_items.py."""

from __future__ import annotations

import ctypes
import errno
import platform
import subprocess
import sys

import pytest

from halos_eval.errors import EvaluationFailed
from halos_eval.stages.harness import sandbox

pytestmark = pytest.mark.skipif(platform.machine() not in sandbox.MACHINES, reason="needs x86_64 or aarch64")
REFUSED = "refusing to run model-written code"


def test_this_machine_can_confine():
    if not sandbox.landlock_version():
        pytest.skip("the kernel of this machine has no Landlock")
    assert sandbox.check(accept_weak=False) == sandbox.landlock_version()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSYS, "the kernel has no Landlock; expected Linux 5.13 or later"),
        (errno.EOPNOTSUPP, "Landlock is switched off; expected `landlock` in the kernel's parameter lsm"),
        (errno.EPERM, "the seccomp profile of containers denies Landlock"),
    ],
)
def test_a_kernel_without_landlock_executes_nothing_unless_that_is_accepted(monkeypatch, code, reason):
    def refused():
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(sandbox, "_ask_landlock", refused)
    with pytest.raises(EvaluationFailed, match=f"{REFUSED}, .*: {reason}.*ACCEPT_WEAK_SANDBOX=true"):
        sandbox.check(accept_weak=False)
    assert sandbox.check(accept_weak=True) == 0


REFUSING = {
    "nothing is installed": ("install", lambda program: None),
    "the kernel takes no such filter": ("network_filter", lambda: b"12345678"),
}


@pytest.mark.parametrize("how", REFUSING)
def test_a_system_without_the_filter_executes_nothing(monkeypatch, how):
    monkeypatch.setattr(sandbox, *REFUSING[how])
    with pytest.raises(EvaluationFailed, match=f"{REFUSED}: the kernel does not allow the seccomp filter"):
        sandbox.check(accept_weak=True)


def test_a_machine_that_is_not_known_executes_nothing(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(EvaluationFailed, match="expected x86_64 or aarch64"):
        sandbox.check(accept_weak=True)


SCORER = """
import os, socket, subprocess, sys
from halos_eval.stages.harness import sandbox
sandbox.protect()
socket.socket(socket.AF_INET).close()
sandbox.install(sandbox.network_filter())
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    try:
        socket.socket(family)
        sys.exit("it has a network")
    except PermissionError:
        pass
socket.socketpair()
tried = subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], capture_output=True, text=True)
print("PermissionError" in tried.stderr, os.path.exists("/"), os.stat("/proc/self/environ").st_uid)
"""


def test_a_scorer_has_no_network_nor_have_its_programs():
    done = subprocess.run([sys.executable, "-c", SCORER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["True", "True"]), done.stderr


@pytest.mark.parametrize("machine", sandbox.MACHINES)
def test_a_filter_fits_in_the_kernels_limit_and_ends_in_a_decision(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program = sandbox.item_filter({1, 10, 11})
    lines = [program[start : start + 8] for start in range(0, len(program), 8)]
    assert len(lines) <= 4096
    assert lines[-1] == sandbox._encoded([(sandbox.RETURN, sandbox.ALLOW, 0, 0)])
