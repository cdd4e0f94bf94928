"""The check of requirements before `make demo` and `make up`, on simulated machines that lack something."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "halos_eval" / "demo" / "preflight.sh"
GB = 10**9
# Doubles of the programs that the script runs. python3.11 reads the program of -c as one word.
PROGRAMS = {
    "uname": "echo Linux",
    "df": "printf 'header\\n/dev/x 100000000 1 %s 1%% /\\n' $((50 * 1000000000 / 1024))",
    "python3.11": 'case "$*" in *exit*) exit 0;; *venv*) exit 0;; esac',
    "git": "",
    "make": "",
    "setpriv": "",
}


class Machine:
    """A simulated machine: its programs, its memory and a container's limit."""

    def __init__(self, root):
        self.root, self.bin, self.group = root, root / "bin", root / "cgroup"
        for folder in (self.bin, self.group, root / "checkout"):
            folder.mkdir()
        for name, body in PROGRAMS.items():
            self.program(name, body)
        self.memory(16)

    def program(self, name, body):
        """Add a program to the PATH, or replace it."""
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def remove(self, *names):
        """Remove programs."""
        for name in names:
            (self.bin / name).unlink()

    def disk(self, gigabytes):
        """Set the free space that `df` reports."""
        self.program("df", f"printf 'header\\n/dev/x 1 1 {int(gigabytes * GB / 1024)} 1%% /\\n'")

    def memory(self, gigabytes):
        """Set the available memory that the kernel reports."""
        lines = f"MemTotal: 99 kB\nMemAvailable:  {int(gigabytes * GB / 1024)} kB\nSwapFree: 0 kB\n"
        (self.root / "meminfo").write_text(lines)

    def limit(self, most, used=0, cache=0):
        """Set a container's limit, in gigabytes."""
        (self.group / "memory.max").write_text(f"{most if most == 'max' else int(most * GB)}\n")
        (self.group / "memory.current").write_text(f"{int(used * GB)}\n")
        (self.group / "memory.stat").write_text(f"anon 1\ninactive_file {cache * GB}\nactive_file 2\n")

    @property
    def variables(self):
        """The environment of a process on this machine."""
        return {
            "PATH": str(self.bin),
            "PREFLIGHT_MEMINFO": str(self.root / "meminfo"),
            "PREFLIGHT_CGROUP": str(self.group),
        }

    def check(self, python="python3.11", worker="cpu"):
        """Run the script and return the lines that it prints; none if the machine meets the requirements."""
        done = subprocess.run(
            ["/bin/sh", SCRIPT, python, "venv", worker],
            env=self.variables,
            cwd=self.root / "checkout",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == ""
        assert done.returncode == bool(done.stderr)
        return done.stderr.splitlines()


@pytest.fixture
def machine(tmp_path):
    """A machine that meets all requirements."""
    return Machine(tmp_path)


def test_a_machine_that_has_everything(machine):
    assert machine.check() == []


def test_everything_that_is_missing_is_named_at_once(machine):
    machine.remove("python3.11", "git", "make", "setpriv")
    machine.memory(3.25)
    machine.disk(2.25)
    assert machine.check() == [
        "This machine does not meet the requirements of the demo. Nothing was installed.",
        "- free memory is too small (3.2 GB); expected 6 GB. Close other programs.",
        f"- free disk space is too small (2.2 GB in {machine.root}/checkout); expected 5 GB. "
        "Free some, or clone to a larger disk.",
        "- python3.11 is missing; expected Python 3.11. "
        "Install it, or name the one that you have: make demo PYTHON=/path/to/python3.11",
        "- git is missing.",
        "- make is missing.",
        "- setpriv is missing.",
        "On Debian or Ubuntu: apt install python3.11 python3.11-venv git make util-linux",
        "To skip these checks: make demo PREFLIGHT=",
    ]


def test_another_operating_system(machine):
    machine.program("uname", "echo Darwin")
    (machine.root / "meminfo").unlink()
    assert machine.check()[1:] == [
        "- the operating system is Darwin; expected Linux. Use a virtual machine or a container.",
        "To skip these checks: make demo PREFLIGHT=",
    ]


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ({"most": "max"}, None),
        ({"most": 8, "used": 1}, None),
        ({"most": 8, "used": 4.75}, "(3.2 GB); expected 6 GB. Raise the container's limit."),
        # cached files count as free
        ({"most": 8, "used": 5, "cache": 4}, None),
        ({"most": 64}, None),
    ],
)
def test_a_container_has_the_memory_that_its_limit_leaves(machine, limit, found):
    machine.limit(**limit)
    lines = machine.check()
    assert [line.partition("too small ")[2] for line in lines[1:2]] == ([found] if found else [])


def test_the_machine_may_have_less_than_the_containers_limit(machine):
    machine.limit(64)
    machine.memory(4.25)
    assert "(4.2 GB); expected 6 GB. Close other programs." in machine.check()[1]


def test_another_version_of_python(machine):
    machine.program("python3", 'case "$*" in *exit*) exit 1;; -V) echo Python 3.12.4;; esac')
    assert "- python3 is another version (Python 3.12.4); expected Python 3.11." in machine.check("python3")[1]


def test_a_python_that_cannot_make_environments(machine):
    machine.program("python3.11", 'case "$*" in *exit*) exit 0;; *venv*) exit 1;; esac')
    lines = machine.check()
    assert lines[1] == "- python3.11 cannot make environments: its modules venv and ensurepip are missing."
    assert lines[2] == "On Debian or Ubuntu: apt install python3.11-venv"


def test_installed_environments_need_neither_python_nor_their_space_again(machine):
    machine.remove("python3.11")
    machine.disk(2.25)
    for name in ("airflow", "worker"):
        (machine.root / "checkout" / "venv" / name).mkdir(parents=True)
        (machine.root / "checkout" / "venv" / name / ".done").touch()
    assert len(machine.check()) > 1
    (machine.root / "checkout" / "venv" / "judge").mkdir()
    (machine.root / "checkout" / "venv" / "judge" / ".done").touch()
    assert machine.check() == []


def test_cuda_takes_more_space(machine):
    machine.disk(8)
    assert machine.check() == []
    assert "expected 12 GB" in machine.check(worker="cuda")[1]


def test_the_python_that_runs_these_tests_is_accepted(machine):
    """The script's checks, run by a real Python."""
    machine.remove("python3.11")
    assert machine.check(python=sys.executable) == []


@pytest.mark.parametrize("goal", ["demo", "up"])
def test_make_installs_nothing_on_a_machine_that_is_too_small(machine, goal):
    machine.memory(1)
    words = [shutil.which("make"), "-j4", goal, f"VENV={machine.root}/made", "PYTHON=python3.11"]
    path = f"{machine.bin}:/usr/bin:/bin"
    done = subprocess.run(
        words, cwd=ROOT, env=machine.variables | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "free memory is too small" in done.stderr
    assert not (machine.root / "made").exists()


def test_the_other_goals_of_make_check_nothing(machine):
    for words in (["test-fast"], ["demo", "PREFLIGHT="]):
        command = ["make", "-n", f"VENV={machine.root}/made", *words]
        assert "preflight" not in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
