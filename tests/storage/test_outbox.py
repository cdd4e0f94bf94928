"""The outbox: complete results are moved once, and files of model-written code are ignored."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from halos_eval.digests import digest_bytes
from halos_eval.errors import StoreError
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.storage import filesystem, layout
from halos_eval.storage import outbox as module
from halos_eval.storage.outbox import collect
from halos_eval.storage.records import Record, read_failure, read_record, write_model
from halos_eval.storage.result_files import named
from tests.doubles import make_record, write_failure

CONTENTS = {"results.json": b'{"pass@1": 0.5}', "samples/humaneval.jsonl.gz": b"\x1f\x8bgzip"}
FILES = {named(name, digest_bytes(data)): data for name, data in CONTENTS.items()}
RESULTS, SAMPLES = FILES
SECRET = b"the node's own"


@pytest.fixture
def outbox(tmp_path):
    (tmp_path / "outbox").mkdir()
    return tmp_path / "outbox"


@pytest.fixture
def root(tmp_path):
    return f"file://{tmp_path}/store"


@pytest.fixture
def secret(tmp_path):
    """A file outside of the outbox that must never be carried."""
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def finish(outbox):
    """``finish(task)`` leaves a finished folder, with what a test changes in its record."""

    def finish(task="humaneval", checkpoint="kto", fingerprint="f1", contents=FILES, **changes):
        folder = outbox / "runs" / checkpoint.replace("/", "__") / f"harness.{task}" / fingerprint
        for name, data in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        files = {name: digest_bytes(data) for name, data in contents.items()}
        record = {"task": task, "name": checkpoint, "fingerprint": fingerprint, "files": files} | changes
        write_model(str(folder / "record.json"), make_record(**record))
        return folder

    return finish


@pytest.fixture
def stays(outbox, root, finish, caplog):
    """Whatever is wrong with ``folder``: it stays, nothing of it is in the store, and the others are carried."""

    def stays(folder, *words):
        before = sorted(os.walk(folder))
        other = finish("mbpp", fingerprint="f2")
        collect(outbox, root)
        assert sorted(os.walk(folder)) == before
        assert not other.exists()
        assert sorted(in_store(root)) == sorted(f"runs/kto/harness.mbpp/f2/{name}" for name in ("record.json", *FILES))
        assert SECRET not in b"".join(in_store(root).values())
        [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert line.startswith(f"left in the outbox: {folder}: ")
        assert "\n" not in line
        for word in words:
            assert word in line

    return stays


def in_store(root):
    """Every file of the store with its content."""
    folder = Path(root.removeprefix("file://"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder, **changes):
    """Change what the record of ``folder`` says."""
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What a task without a network leaves


@pytest.mark.parametrize("checkpoint", ["kto", "team/kto"])
def test_a_finished_folder_is_carried_whole_and_removed(outbox, root, finish, checkpoint):
    folder = finish(checkpoint=checkpoint)
    (folder / "parts").mkdir()
    (folder / "parts" / "0.jsonl").write_text("left by a kill")
    record = Record.model_validate_json((folder / "record.json").read_text())
    target = layout.stage_folder(root, checkpoint, "harness", "humaneval", "f1")
    write_failure(f"{target}/failure.json")
    answers, others = (outbox / "answers" / folder.parent.relative_to(outbox / "runs") / name for name in ("f1", "f2"))
    for one in (answers, others):
        one.mkdir(parents=True)
        (one / "answers.json.gz").write_bytes(b"answers")
    collect(outbox, root)
    assert not folder.exists()
    assert (answers.exists(), others.exists()) == (False, True)
    assert read_record(f"{target}/record.json") == record
    assert {name: filesystem.read_bytes(f"{target}/{name}") for name in FILES} == FILES
    assert len(in_store(root)) == 3  # no failure, no parts


def test_an_unfinished_folder_stays(outbox, root):
    folder = outbox / "runs" / "kto" / "harness.humaneval" / "f1"
    (folder / "parts").mkdir(parents=True)
    (folder / RESULTS).write_text("{}")
    collect(outbox, root)
    assert (folder / "parts").is_dir()
    assert in_store(root) == {}


def test_a_failure_note_is_copied_and_stays(outbox, root):
    """It stays with the parts from which the next run resumes."""
    folder = outbox / "runs" / "kto" / "harness.humaneval" / "f1"
    folder.mkdir(parents=True)
    write_failure(str(folder / "failure.json"), "no data", "DataUnavailable")
    collect(outbox, root)
    assert (folder / "failure.json").exists()
    target = layout.stage_folder(root, "kto", "harness", "humaneval", "f1")
    assert read_failure(f"{target}/failure.json").message == "no data"
    assert list(in_store(root)) == ["runs/kto/harness.humaneval/f1/failure.json"]


@pytest.mark.parametrize("make", [None, Path.mkdir])
def test_an_outbox_with_nothing_in_it(tmp_path, root, make):
    if make:
        make(tmp_path / "outbox")
    collect(tmp_path / "outbox", root)
    assert in_store(root) == {}


def test_twice_is_as_once(outbox, root, finish):
    finish()
    collect(outbox, root)
    carried = in_store(root)
    collect(outbox, root)
    assert in_store(root) == carried
    finish()  # forced: it is run again under the same fingerprint
    collect(outbox, root)
    assert in_store(root) == carried


@pytest.mark.parametrize("place", ["write_model", "rmtree"])
def test_killed_in_the_middle(outbox, root, finish, monkeypatch, place):
    folder = finish()

    def killed(*arguments):
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(module if place == "write_model" else shutil, place, killed)
        with pytest.raises(SystemExit):
            collect(outbox, root)
    assert folder.exists()
    # The record is the last that comes: where it is, all is.
    assert ("runs/kto/harness.humaneval/f1/record.json" in in_store(root)) == (place == "rmtree")
    collect(outbox, root)
    assert not folder.exists()
    assert len(in_store(root)) == 3


def test_a_store_that_is_full_loses_nothing(outbox, root, finish, monkeypatch):
    folder = finish()

    def full(url, data):
        raise StoreError("no space left")

    monkeypatch.setattr(filesystem, "write_bytes", full)
    with pytest.raises(StoreError):
        collect(outbox, root)
    assert (folder / "record.json").exists()


def test_the_summary_has_what_was_carried(outbox, root, finish, tmp_path):
    finish()
    rows = summarize(SummarizeConfig(root=root, outbox=str(outbox), output=str(tmp_path / "summary.csv")))
    assert [row.checkpoint for row in rows] == ["kto"]
    assert list(outbox.glob("runs/*/*/*")) == []


# What a model's code may have put there


@pytest.mark.parametrize(
    "change",
    [
        {"task": "mbpp"},
        {"task": None},
        {"stage": "judge"},
        {"fingerprint": "f9"},
        {"checkpoint": {"name": "the-rivals", "location": "/x", "digest": "d"}},
        {"checkpoint": {"name": "../../x", "location": "/x", "digest": "d"}},
    ],
)
def test_a_record_of_something_else(finish, stays, change):
    folder = finish()
    edit(folder, **change)
    stays(folder)


@pytest.mark.parametrize("text", ["", "{}", "[", '{"stage": 1}', "null", "\x00", "[" * 100_000])
def test_a_record_that_is_none(finish, stays, text):
    folder = finish()
    (folder / "record.json").write_text(text)
    stays(folder)


def test_a_failure_that_is_none(outbox, stays):
    folder = outbox / "runs" / "kto" / "harness.humaneval" / "f1"
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text("{}")
    stays(folder)


def test_a_digest_that_is_wrong(finish, stays):
    folder = finish()
    (folder / RESULTS).write_text("{}")
    stays(folder, "do not match the digests")


def test_a_file_that_is_not_there(finish, stays):
    folder = finish()
    (folder / RESULTS).unlink()
    stays(folder)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/", f"../f1/{RESULTS}", f"samples/../{RESULTS}", f"samples//{SAMPLES}",
        f"./{RESULTS}", f"{RESULTS}/", "samples/.jsonl.gz", "results.json",
        "results-0123456789abcdef.json", "a\x00b", "a::b", "s3://bucket/x", "é" * 300,
        "parts/0.jsonl", "failure.json", "record.json", "samples/record.json", "deep/record.json",
        "deep/er/record.json",
    ],
)  # fmt: skip
def test_a_name_that_no_task_saves(finish, stays, name):
    """A second record in the folder would be another row of the table."""
    folder = finish()
    (folder / "deep" / "er").mkdir(parents=True)
    for inner in ("deep", "deep/er", "samples"):
        write_model(str(folder / inner / "record.json"), make_record(task="mmlu", name="the-rivals"))
    edit(folder, files={name: digest_bytes(FILES[RESULTS])})
    stays(folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_name_that_leads_outside(finish, stays, secret, absolute):
    folder = finish()
    name = str(secret) if absolute else os.path.relpath(secret, folder)
    edit(folder, files={name: digest_bytes(SECRET)})
    stays(folder, "its record names unexpected files")


@given(name=st.text(max_size=30) | st.text("./~:{}$ a\x00\n", max_size=12))
@example(name="\ud800")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_name_stops_the_others_or_leaves_the_folder(outbox, root, finish, name):
    folder = finish()
    edit(folder, files={name: digest_bytes(b"x")})
    finish("mbpp")
    collect(outbox, root)
    assert (folder / "record.json").exists()
    assert len(in_store(root)) == 3
    assert {path.parts[:2] for path in map(Path, in_store(root))} == {("runs", "kto")}


@pytest.mark.parametrize("name", ["record.json", RESULTS, SAMPLES])
def test_a_file_that_is_a_link(finish, stays, secret, name):
    folder = finish()
    files = {one: digest_bytes(SECRET if one == name else data) for one, data in FILES.items()}
    edit(folder, files=files)
    if name == "record.json":
        secret.write_bytes((folder / name).read_bytes())  # a record that would fit
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    stays(folder)


def test_a_failure_that_is_a_link(outbox, stays, secret):
    folder = outbox / "runs" / "kto" / "harness.humaneval" / "f1"
    folder.mkdir(parents=True)
    write_failure(str(secret), SECRET.decode())
    (folder / "failure.json").symlink_to(secret)
    stays(folder)


def move(folder, elsewhere):
    """Put ``folder`` elsewhere, and a link in its place."""
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def test_a_folder_of_samples_that_is_a_link(finish, stays, tmp_path):
    folder = finish()
    move(folder / "samples", tmp_path / "elsewhere")
    stays(folder)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_folder_above_that_is_a_link(outbox, root, finish, tmp_path, level, caplog):
    """The results beyond it are complete, but they are not in the outbox."""
    folder = finish()
    move((folder, *folder.parents)[level], tmp_path / "elsewhere")
    collect(outbox, root)
    assert folder.exists()
    assert in_store(root) == {}
    assert "left in the outbox" in caplog.text


def test_a_link_to_another_tasks_folder(outbox, root, finish, stays):
    mine = finish(fingerprint="f1")
    theirs = outbox / "runs" / "kto" / "harness.humaneval" / "f9"
    theirs.symlink_to(mine)
    collect(outbox, root)
    assert sorted(in_store(root)) == sorted(f"runs/kto/harness.humaneval/f1/{name}" for name in ("record.json", *FILES))
    assert theirs.is_symlink()


@pytest.mark.parametrize("name", ["record.json", RESULTS])
@pytest.mark.parametrize("writer", [False, True], ids=["no writer", "a writer that says nothing"])
def test_a_named_pipe(finish, stays, name, writer):
    folder = finish()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    handle = os.open(folder / name, os.O_RDWR) if writer else None
    try:
        stays(folder)
    finally:
        if handle is not None:
            os.close(handle)


@pytest.mark.parametrize("name", ["record.json", RESULTS])
def test_a_device(finish, stays, name, secret):
    folder = finish()
    (folder / name).unlink()
    try:
        os.mknod(folder / name, 0o20666, os.makedev(1, 5))  # /dev/zero, without an end
    except PermissionError:
        pytest.skip("needs the right to make a device")
    stays(folder)


@pytest.mark.parametrize("name", ["record.json", RESULTS, "failure.json"])
def test_a_folder_instead_of_a_file(finish, stays, name):
    folder = finish()
    if name == "failure.json":
        (folder / "record.json").unlink()
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    stays(folder)


def test_a_file_instead_of_a_folder(outbox, stays):
    file = outbox / "runs" / "kto" / "harness.humaneval" / "f1"
    file.parent.mkdir(parents=True)
    file.write_text("no folder")
    stays(file)


def test_a_file_that_fills_the_memory(finish, stays):
    folder = finish()
    with (folder / RESULTS).open("wb") as file:
        file.truncate(2**42)  # four terabytes, but sparse: the disk is not filled
    stays(folder, "not a regular file of at most")


def test_folders_too_deep_to_be_removed_do_not_stop_the_others(outbox, root, finish, caplog):
    folder = finish()
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("x", dir_fd=handle)
        deeper = os.open("x", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    os.close(handle)
    finish("mbpp")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own; libraries raise it
    try:
        collect(outbox, root)
    finally:
        sys.setrecursionlimit(limit)
        subprocess.run(["rm", "-rf", folder], check=True)  # pytest could not
    assert len(in_store(root)) == 6
    assert f"left in the outbox: {folder}: " in caplog.text


def test_a_folder_that_the_kubelet_has_made_stays_empty(outbox, root, finish, monkeypatch, caplog):
    """The folder above it is not ours, so it cannot be removed; nothing is said of it, now or the next time."""
    folder = finish()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rmdir", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            collect(outbox, root)
            assert list(folder.iterdir()) == []
    assert caplog.text == ""
