"""Model-written code has no network. Each test uses separate processes, because the filter cannot be removed."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from halos_eval.errors import EvaluationFailed
from halos_eval.stages.harness import sandbox

pytestmark = pytest.mark.skipif(platform.machine() not in sandbox.MACHINES, reason="needs x86_64 or aarch64")

PROBE = """
import ctypes, errno, json, multiprocessing, os, socket, subprocess, sys, threading

FAMILIES = ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_UNIX"]
PROGRAM = '''
import json, socket
def probe(family):
    try:
        socket.socket(getattr(socket, family), socket.SOCK_RAW if family == "AF_PACKET" else socket.SOCK_DGRAM).close()
        return "made"
    except OSError as error:
        return type(error).__name__
def probes():
    return {family: probe(family) for family in ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_UNIX"]}
'''
exec(PROGRAM)
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) < 0 else "done"

def program():
    words = [sys.executable, "-c", PROGRAM + "print(json.dumps(probes()))"]
    return json.loads(subprocess.run(words, capture_output=True, check=True).stdout)

def forked(work):
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    os.wait()
    return json.loads(text)

def threaded(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]

def child(queue):
    queue.put({
        "child": probes(),
        "its thread": threaded(probes),
        "its child": forked(probes),
        "its program": program(),
        "its child's program": forked(program),
        "io_uring": call(425, 8, 0),
        "x32": call(0x40000000 | 41, socket.AF_INET, socket.SOCK_DGRAM, 0),
        "files": os.path.exists("/"),
    })

def run():
    from halos_eval.stages.harness import sandbox
    sandbox.close_network_in_children()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    found = queue.get()
    process.join()
    return found | {"exit code": process.exitcode, "parent": probes(), "its own program": program()}

before = probes()
print(json.dumps({"before": before} | run()))
"""
OPEN = {"AF_INET": "made", "AF_NETLINK": "made", "AF_UNIX": "made"}
CLOSED = dict.fromkeys(("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"), "PermissionError") | {"AF_UNIX": "made"}


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def found():
    """Return the sockets that each process of a family could create."""
    done = run(PROBE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert OPEN.items() <= found["before"].items(), "this machine has no network to be taken away"
    return found


@pytest.mark.parametrize("process", ["child", "its thread", "its child", "its program", "its child's program"])
def test_children_and_all_that_they_start_make_local_sockets_only(found, process):
    assert found[process] == CLOSED


def test_there_is_no_way_round_by_other_calls(found):
    assert found["io_uring"] == "EPERM"
    if platform.machine() == "x86_64":
        assert found["x32"] == "EPERM"


def test_everything_else_works_in_children(found):
    assert (found["exit code"], found["files"]) == (0, True)


@pytest.mark.parametrize("process", ["parent", "its own program"])
def test_the_parent_keeps_its_network(found, process):
    """The parent must reach the model's own processes. Programs that it starts keep the network too, as documented."""
    assert found[process] == found["before"]


REFUSING = {
    "nothing is installed": "sandbox._install = lambda program: None",
    "the kernel takes no such filter": "sandbox._program = lambda *_: b'12345678'",
}


@pytest.mark.parametrize("how", REFUSING)
def test_a_system_that_refuses_executes_nothing(how):
    done = run(f"from halos_eval.stages.harness import sandbox\n{REFUSING[how]}\nsandbox.close_network_in_children()")
    assert done.returncode == 1
    assert (
        "EvaluationFailed: refusing to run model-written code: the kernel does not allow the seccomp filter"
        in done.stderr
    )


def test_a_machine_that_is_not_known_executes_nothing(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(EvaluationFailed, match="expected x86_64 or aarch64"):
        sandbox.close_network_in_children()
