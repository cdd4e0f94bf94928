"""What the code of an item tries, and does not achieve: each attack runs in a confined process, as an answer does."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from halos_eval.stages.harness import items as module
from halos_eval.stages.harness import sandbox
from halos_eval.stages.harness.items import Items
from halos_eval.stages.harness.sandbox import Limits

VERSION = sandbox.landlock_version()
needs_landlock = pytest.mark.skipif(not VERSION, reason="the kernel of this machine has no Landlock")
needs_scopes = pytest.mark.skipif(VERSION < 6, reason=f"the kernel has Landlock {VERSION}; signals are scoped from 6")
SECRET = "AKIA-SECRET"
READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", sys.prefix, sys.base_prefix)
LIBC = ctypes.CDLL(None, use_errno=True)
# By machine: process_vm_readv, process_vm_writev, ptrace, memfd_create, unshare, io_uring_setup, setsid
CALLS = {"x86_64": (310, 311, 101, 319, 272, 425, 112), "aarch64": (270, 271, 117, 279, 97, 425, 157)}
READV, WRITEV, PTRACE, MEMFD, UNSHARE, IO_URING, SETSID = CALLS[os.uname().machine]


@pytest.fixture
def tmp_path():
    """A short path: a metric's manager has a socket in TMPDIR, and Linux allows 107 bytes for its path."""
    with tempfile.TemporaryDirectory(prefix="items-") as folder:
        yield Path(folder)


@pytest.fixture
def items(tmp_path):
    """``items(limits)`` makes what runs items; the folder beside theirs is not for them."""

    made = []

    def make(limits=None):
        made.append(Items(tmp_path / "item", READABLE, limits))
        return made[-1]

    yield make
    for one in made:
        one.close()
    LIBC.prctl(module.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def attack(items):
    """``attack(work)`` returns the name of the error that ``work`` ends with in an item, or its result."""

    def attack(work):
        def tried():
            try:
                return work()
            except OSError as error:
                return errno.errorcode[error.errno]

        return items().run(tried)

    return attack


@pytest.fixture
def outside(tmp_path):
    """A file of another: a record, a checkpoint, data of another task, a key."""
    path = tmp_path / "outside" / "record.json"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def call(number, *arguments):
    """Make a system call, and raise its error."""
    result = LIBC.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def children():
    """Return the processes of this one. What outlives its own parent becomes one of them."""
    found = set()
    for path in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(path.name))
    return found


def test_a_result_is_returned(items):
    assert items().run(lambda: {"pass@1": 1.0, "list": [1, "a", None]}) == {"pass@1": 1.0, "list": [1, "a", None]}


def test_what_programs_usually_do_works(items):
    def work():
        Path("scratch.txt").write_text("a")
        (Path.cwd() / "folder").mkdir()
        words = [sys.executable, "-c", "import json, tempfile; print(tempfile.mkdtemp())"]
        made = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        child = subprocess.Popen(["sleep", "60"])
        child.kill()
        left, right = socket.socketpair()
        left.send(b"a")
        with Path("/dev/null").open("w") as null:
            null.write("a")
        return [Path("scratch.txt").read_text(), Path(made).parent == Path.cwd(), child.wait(), right.recv(1).decode()]

    assert items().run(work) == ["a", True, -signal.SIGKILL, "a"]


def test_an_error_of_the_scoring_is_raised_here(items):
    with pytest.raises(RuntimeError, match="ValueError: no such metric"):
        items().run(lambda: (_ for _ in ()).throw(ValueError("no such metric")))


# Files: records, secrets, checkpoints, data of other tasks

CHANGES = {
    "write": lambda path: path.write_text("forged"),
    "append": lambda path: path.open("a"),
    "beside": lambda path: (path.parent / "new").write_text("forged"),
    "truncate": lambda path: os.truncate(path, 0),
    "remove": lambda path: path.unlink(),
    "rename": lambda path: path.rename(path.parent / "renamed"),
    "replace": lambda path: (Path("own").write_text("forged"), Path("own").replace(path)),
    "chmod": lambda path: path.chmod(0),
    "chown": lambda path: os.chown(path, 65534, 65534),
    "xattr": lambda path: os.setxattr(path, "user.x", b"x"),
    "hard link": lambda path: os.link(path, "linked"),
    "mkdir": lambda path: (path.parent / "runs").mkdir(),
    "fifo": lambda path: os.mkfifo(path.parent / "fifo"),
    "link": lambda path: (path.parent / "link").symlink_to(path),
}


@needs_landlock
@pytest.mark.parametrize("how", CHANGES)
def test_a_record_cannot_be_forged(attack, outside, how):
    before = sorted(outside.parent.iterdir()), outside.stat()[:5]
    assert attack(lambda: CHANGES[how](outside)) in {"EACCES", "EPERM", "EXDEV"}
    assert outside.read_text() == SECRET
    assert (sorted(outside.parent.iterdir()), outside.stat()[:5]) == before


READINGS = {
    "read": lambda path: path.read_text(),
    "list": lambda path: list(path.parent.iterdir()),
    "by a link": lambda path: (Path("link").symlink_to(path), Path("link").read_text())[1],
}


@needs_landlock
@pytest.mark.parametrize("how", READINGS)
def test_a_checkpoint_and_another_tasks_data_cannot_be_read(attack, outside, how):
    assert attack(lambda: READINGS[how](outside)) == "EACCES"


@needs_landlock
def test_nor_by_a_program(attack, outside):
    assert attack(lambda: subprocess.run(["/bin/cat", outside], capture_output=True, check=False).returncode) == 1


@needs_landlock
@pytest.mark.parametrize("name", ["environ", "mem", "maps", "cmdline", "root/etc/passwd", "fd"])
def test_the_scorers_secrets_cannot_be_read(attack, name):
    scorer = os.getpid()
    assert attack(lambda: Path(f"/proc/{scorer}/{name}").open().read()) == "EACCES"  # noqa: SIM115


def test_home_and_password_files_cannot_be_read(attack):
    if not VERSION:
        pytest.skip("the kernel of this machine has no Landlock")
    assert attack(lambda: Path("/etc/shadow").read_text()) == "EACCES"
    assert attack(lambda: list(Path.home().iterdir())) == "EACCES"


# The parent


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def test_the_parents_memory_cannot_be_read_or_written(attack):
    scorer = os.getpid()
    target = ctypes.create_string_buffer(b"score")
    own = ctypes.create_string_buffer(b"forged")
    local, remote = _Vector(ctypes.addressof(own), 5), _Vector(ctypes.addressof(target), 5)
    for number in (READV, WRITEV):
        assert attack(
            lambda number=number: call(number, scorer, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        ) == ("EPERM")
    assert attack(lambda: call(PTRACE, 16, scorer, 0, 0)) == "EPERM"  # PTRACE_ATTACH
    assert target.value == b"score"
    if VERSION:
        assert attack(lambda: os.open(f"/proc/{scorer}/mem", os.O_RDWR)) == "EACCES"


KILLS = {
    "the scorer": lambda scorer: os.kill(scorer, signal.SIGKILL),
    "its parent": lambda scorer: os.kill(os.getppid(), signal.SIGSTOP),
    "all": lambda scorer: os.kill(-1, signal.SIGKILL),
    "its group": lambda scorer: os.killpg(os.getpgid(scorer), signal.SIGKILL),
    "by a thread": lambda scorer: signal.pidfd_send_signal(os.pidfd_open(scorer), signal.SIGKILL),
    "by a limit": lambda scorer: __import__("resource").prlimit(scorer, 0, (0, 0)),
}


@pytest.mark.parametrize("how", KILLS)
def test_the_parent_cannot_be_killed(attack, how):
    scorer = os.getpid()
    assert attack(lambda: KILLS[how](scorer)) == "EPERM"


@needs_scopes
def test_other_processes_cannot_be_signalled(attack):
    with subprocess.Popen(["sleep", "60"]) as other:
        assert attack(lambda: os.kill(other.pid, signal.SIGKILL)) == "EPERM"
        assert other.poll() is None
        other.kill()


def test_an_item_cannot_leave_its_group(attack):
    assert attack(os.setsid) == "EPERM"
    assert attack(os.setpgrp) == "EPERM"
    assert attack(lambda: os.posix_spawn("/bin/true", ["true"], {}, setsid=True)) == "EPERM"


# Other items


def test_what_an_item_leaves_ends_with_it_and_is_gone(items, tmp_path):
    """A process that outlives its item could change the score of the next one."""
    both = items()
    before = children()

    def leave():
        Path("left").write_text("forged")
        (tmp_path / "item" / "left").write_text("forged")
        if not os.fork():
            if not os.fork():
                while True:
                    time.sleep(1)
            os._exit(0)
        return "done"

    assert both.run(leave) == "done"
    assert children() == before
    assert both.run(lambda: sorted(str(path) for path in (tmp_path / "item").rglob("*"))) == [
        str(tmp_path / "item" / "tmp")
    ]


def test_an_item_sends_no_result_but_its_own(items):
    """The result is read from a pipe that only the item has, as JSON of one document."""

    before = {path.name for path in Path("/proc/self/fd").iterdir()}

    def forge():
        for handle in {*map(str, range(3, 64))} - before:
            with suppress(OSError):
                os.write(int(handle), b'["result", {"pass@1": 1.0}]')
        return {"pass@1": 0.0}

    with pytest.raises(module._StoppedError, match="ended without a result"):
        items().run(forge)
    assert items().run(lambda: {"pass@1": 0.0}) == {"pass@1": 0.0}


@pytest.mark.parametrize("message", [b"1", b"[]", b'["result"]', b"[" * 100_000, b"\xff"])
def test_a_result_of_another_form_is_none(items, message):
    def work():
        os.write(max(int(path) for path in map(str, range(3, 256)) if is_pipe(int(path))), message)
        os._exit(0)

    with pytest.raises(module._StoppedError, match="ended without a result"):
        items().run(work)


def is_pipe(handle):
    with suppress(OSError):
        return stat.S_ISFIFO(os.fstat(handle).st_mode)
    return False


def test_folders_that_cannot_be_removed_do_not_reach_the_next_item(items, tmp_path):
    both = items()

    def leave():
        Path("closed").mkdir(mode=0)
        for _ in range(1500):
            Path("deep").mkdir()
            os.chdir("deep")
        return "done"

    assert both.run(leave) == "done"
    assert both.run(lambda: sorted(path.name for path in (tmp_path / "item").rglob("*"))) == ["tmp"]
    subprocess.run(["rm", "-rf", *tmp_path.glob("item-*")], check=True)  # pytest could not


class Metric:
    """Executes an answer with its test as the metric code_eval does: in a fork that appends to a list of a manager."""

    def __init__(self, answer):
        self.program = f"{answer}\nassert add(1, 2) == 3"

    def __call__(self):
        with multiprocessing.get_context("fork").Manager() as manager:
            result = manager.list()
            process = multiprocessing.get_context("fork").Process(target=self._execute, args=(result,))
            process.start()
            process.join(timeout=3)
            if process.is_alive():
                process.kill()
            return {"pass@1": float(list(result)[:1] == ["passed"])}

    def _execute(self, result):
        try:
            exec(self.program, {})
            result.append("passed")
        except BaseException as error:  # noqa: BLE001
            result.append(f"failed: {error}")


ANSWERS = {
    "right": "def add(a, b):\n    return a + b",
    "wrong": "def add(a, b):\n    return a - b",
    "exit": "raise SystemExit(0)",
    "end of the process": "import os\nos._exit(0)",
    "another error": "import builtins\nbuiltins.AssertionError = KeyboardInterrupt\ndef add(a, b):\n    return 0",
    "output": "print('passed', flush=True)\nraise SystemExit",
    "the result's pipe": """
import json, os
for handle in range(3, 256):
    try:
        os.write(handle, b'["result", {"pass@1": 1.0}]')
    except OSError:
        pass
""",
    "the result's pipe, then the end of the metric": """
import os, signal
for handle in range(3, 256):
    try:
        os.write(handle, b'["result", {"pass@1": 1.0}]')
    except OSError:
        pass
os.kill(os.getppid(), signal.SIGKILL)
""",
    "the pipe of the metric's own process": """
import os
for handle in os.listdir(f"/proc/{os.getppid()}/fd"):
    with open(f"/proc/{os.getppid()}/fd/{handle}", "w") as file:
        file.write('["result", {"pass@1": 1.0}]')
""",
}


@needs_landlock
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_does_not_send_its_own_result(items, answer):
    """As far as it can be prevented where answer and test are one program: see SECURITY.md."""
    try:
        score = items().run(Metric(ANSWERS[answer]))["pass@1"]
    except module._StoppedError:  # scored as an empty answer
        score = 0.0
    assert score == (answer == "right")


def test_an_item_does_not_reach_what_the_scorer_has_open(items, tmp_path):
    with (tmp_path / "open").open("w+") as file, (tmp_path / "read").open("w+") as secret:
        secret.write("secret")
        secret.flush()
        secret.seek(0)

        def attack():
            os.write(file.fileno(), b"forged")
            return os.read(secret.fileno(), 6).decode()

        assert items().run(attack) == ""
        assert file.read() == ""


def test_only_the_result_s_pipe_is_closed_in_forks_and_in_their_forks(items):
    def work():
        if not (child := os.fork()):
            handles = [os.open("written", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(40)]
            if not (second := os.fork()):
                for handle in handles:
                    os.write(handle, b"a")
                os._exit(0)
            os.waitpid(second, 0)
            os._exit(0)
        os.waitpid(child, 0)
        return Path("written").read_text()

    assert items().run(work) == "a" * 40


def test_a_result_is_not_a_pickle(items):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/forged",)

    assert "Evil" in items().run(lambda: {"pass@1": Evil()})["pass@1"]


# The network


def test_there_is_no_network(attack):
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
        assert attack(lambda family=family: socket.socket(family)) == "EPERM"
    assert attack(lambda: call(IO_URING, 8, 0)) == "EPERM"
    words = [sys.executable, "-c", "import socket; socket.socket()"]
    done = attack(lambda: subprocess.run(words, capture_output=True, text=True, check=False).stderr)
    assert "PermissionError" in done


# Resources


def test_forking_without_end_is_stopped(items):
    def bomb():
        while True:
            with suppress(OSError):
                os.fork()

    made = items(Limits(threads=16))
    before = children()
    with pytest.raises(module._StoppedError, match=r"started \d+ threads; expected at most 16"):
        made.run(bomb)
    assert children() == before


def test_a_process_gets_no_more_memory_than_its_limit(items):
    def hog():
        try:
            return len(bytearray(300 << 20))
        except MemoryError:
            return "MemoryError"

    assert items(Limits(memory=200 << 20)).run(hog) == "MemoryError"


def test_all_processes_of_an_item_get_no_more_together(items):
    def hogs():
        for _ in range(3):
            if not os.fork():
                data = bytearray(os.urandom(1)) * (60 << 20)
                time.sleep(60)
                os._exit(data[0])
        time.sleep(60)

    with pytest.raises(module._StoppedError, match=r"used \d+ bytes"):
        items(Limits(memory=100 << 20)).run(hogs)


def test_shared_memory_counts_too(items):
    def hog():
        shared = mmap.mmap(-1, 150 << 20)
        for start in range(0, len(shared), 4096):
            shared[start] = 1
        time.sleep(60)

    with pytest.raises(module._StoppedError, match=r"used \d+ bytes"):
        items(Limits(memory=100 << 20)).run(hog)


def test_memory_outside_of_the_limits_is_not_there(attack):
    assert attack(lambda: os.memfd_create("hidden")) == "EPERM"
    assert attack(lambda: call(UNSHARE, 0x10000000)) == "EPERM"


def test_a_file_gets_no_larger_than_its_limit(items):
    def fill():
        try:
            Path("large").write_bytes(bytes(2 << 20))
        except OSError as error:
            return errno.errorcode[error.errno]

    assert items(Limits(file_size=1 << 20)).run(fill) == "EFBIG"


def test_an_item_ends_after_its_time(items):
    with pytest.raises(module._StoppedError, match=r"took more than 0\.2 s"):
        items(Limits(seconds=0.2)).run(lambda: time.sleep(60))


def test_cpu_time_is_limited(items):
    def spin():
        while True:
            pass

    with pytest.raises(module._StoppedError, match="ended without a result"):
        items(Limits(cpu_seconds=1)).run(spin)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities")
def test_root_has_no_capabilities(attack):
    assert attack(lambda: os.setuid(65534)) == "EPERM"


# How lm_eval's tasks use it


class Task:
    """As lm_eval calls it: a document, and the answers that passed a filter."""

    class config:  # noqa: N801
        task = "own_code"

    def process_results(self, doc, results):
        if results == [["bomb"]]:
            time.sleep(60)
        return {"pass@1": float(results == [["right"]]), "process": os.getpid()}


def test_a_task_scores_each_document_in_an_item(items):
    made, task = items(Limits(seconds=3)), Task()
    made.wrap(task)
    found = [task.process_results({}, [[text]]) for text in ("right", "wrong", "bomb", "right")]
    assert [one["pass@1"] for one in found] == [1, 0, 0, 1]  # an item that is stopped counts as an empty answer
    assert made.stopped == 1
    assert os.getpid() not in {one["process"] for one in found}


def test_an_empty_answer_has_the_shape_of_the_answer():
    assert module._emptied([["a", "b"], ("c", 1.5)]) == [["", ""], ("", 1.5)]


def test_numbers_of_numpy_are_numbers(items):
    import numpy

    found = items().run(lambda: {"a": numpy.float32(0.5), "b": numpy.int64(2), "c": numpy.bool_(True)})
    assert json.dumps(found) == '{"a": 0.5, "b": 2, "c": true}'


# A kernel without Landlock


def test_without_landlock_the_rest_still_holds(items, outside, monkeypatch):
    monkeypatch.setattr(sandbox, "landlock_version", lambda: 0)
    scorer = os.getpid()

    def tried():
        found = [outside.read_text()]  # what the operator accepted
        for work in (
            socket.socket,
            lambda: os.kill(scorer, signal.SIGKILL),
            lambda: call(PTRACE, 16, scorer),
        ):
            try:
                found.append(str(work()))
            except OSError as error:
                found.append(errno.errorcode[error.errno])
        return found

    assert items().run(tried) == [SECRET, "EPERM", "EPERM", "EPERM"]


@needs_landlock
@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_every_version_of_landlock_closes_files(items, outside, monkeypatch, version):
    monkeypatch.setattr(sandbox, "landlock_version", lambda: version)

    def tried():
        for work in (
            outside.read_text,
            lambda: outside.write_text("forged"),
            lambda: os.truncate(outside, 0),
        ):
            with pytest.raises(PermissionError):
                work()
        return Path("own").write_text("a")

    assert items().run(tried) == 1
