"""Copies of weights from object storage: the same content, once, resumed, verified, and within the limit."""

from __future__ import annotations

import hashlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import s3fs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halos_eval.checkpoints import copies_in_use, download
from halos_eval.checkpoints.download import GIB, cached_copy, copied, reading
from halos_eval.checkpoints.weights import inspect, scored_files, state_of_stamps
from halos_eval.errors import BadInput, DataUnavailable, HalosEvalError, Incomplete, StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.claims import release, take
from halos_eval.storage.etags import Etag
from tests.doubles import make_checkpoint, write_safetensors
from tests.doubles.s3 import bucket, upload

PIECE = 64  # bytes, so that the weights arrive in several pieces
TURN = "turns/demo/kto"


@pytest.fixture(scope="module")
def server():
    with bucket() as url:
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; files arrive in small pieces."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    for module in (download, filesystem):
        monkeypatch.setattr(module, "PIECE", PIECE)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint on the disk, with files that are not copied."""
    return make_checkpoint(tmp_path / "kto", halos_eval_yaml="stop: ['#']", README="", optimizer_pt="large")


@pytest.fixture
def url(server, folder):
    """The same checkpoint in a bucket."""
    return upload(folder, f"{server}/{uuid4()}/kto/FINAL")


@pytest.fixture
def requested(monkeypatch):
    """The files that were requested, each with the byte at which the request begins."""
    found = []
    real = filesystem.stream

    def stream(url, state, start=0):
        found.append((url.rsplit("/", 1)[1], start))
        yield from real(url, state, start)

    monkeypatch.setattr(filesystem, "stream", stream)
    return found


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith(".")}


def test_the_digest_and_the_files_are_those_of_the_folder(url, folder):
    copy = copied(url)
    assert copy.digest == inspect(str(folder)).digest == inspect(cached_copy(copy)).digest
    expected = content(folder)
    del expected["README"], expected["optimizer_pt"]
    assert content(cached_copy(copy)) == expected
    assert copy.bytes == sum(map(len, expected.values()))
    assert copy.state == state_of_stamps(scored_files(Path(cached_copy(copy))))


def test_what_is_complete_is_not_requested_again(url, requested):
    copy = copied(url)
    assert len(requested) == 4
    assert copied(url) == copy
    assert len(requested) == 4


def test_another_folder_and_another_content_are_other_copies(url, folder, server):
    first = copied(url)
    moved = copied(upload(folder, f"{server}/{uuid4()}"))
    write_safetensors(folder / "model.safetensors", b"trained longer")
    changed = copied(upload(folder, url))
    assert len({first.path, moved.path, changed.path}) == 3
    assert first.digest == moved.digest != changed.digest == inspect(str(folder)).digest


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(after=st.integers(0, 6), broken=st.booleans())
def test_a_download_that_was_killed_at_any_piece_continues_there(server, folder, tmp_path_factory, after, broken):
    url = upload(folder, f"{server}/{uuid4()}")
    real, left = filesystem.stream, [after]
    asked: dict[str, int] = {}

    def dying(url, state, start=0):
        for piece in real(url, state, start):
            left[0] -= 1
            if left[0] < 0:
                raise ConnectionError("cut") if broken else SystemExit(143)
            yield piece

    def watched(url, state, start=0):
        asked[url] = start
        yield from real(url, state, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "THREADS", 1)
        patch.setattr(filesystem, "stream", dying)
        with pytest.raises((StoreError, SystemExit)):
            copied(url)
        patch.setattr(filesystem, "stream", watched)
        (partial,) = (
            path for path in download.cached_weights().glob("*.partial") if (path / download.EXPECTED).exists()
        )
        sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
        copy = copied(url)
    assert copy.digest == inspect(str(folder)).digest
    assert content(cached_copy(copy)).items() <= content(folder).items()
    for file, start in asked.items():
        size = sizes.get(file.rsplit("/", 1)[1], 0)
        assert size - PIECE <= start <= size
        assert start % PIECE == 0


def test_of_two_at_once_one_downloads(url, requested, monkeypatch):
    monkeypatch.setattr(download, "this_process", lambda: f"thread {threading.get_ident()}")
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: copied(url), range(2))
    assert one == two
    assert sorted(name for name, _ in requested) == [
        "config.json", "halos_eval.yaml", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_two_that_both_write_leave_the_same_files(url, folder, monkeypatch):
    """A process whose claim was taken over may still write for a while."""
    real, both = filesystem.stream, threading.Barrier(2, timeout=30)

    def together(url, state, start=0):
        both.wait()
        yield from real(url, state, start)

    files = filesystem.entries(url)
    path = download.cached_weights() / "0.partial" / "model.safetensors"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(filesystem, "stream", together)

    def fetch(_):
        return download._fetch(f"{url}/{path.name}", files[path.name], path, threading.Event())

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(fetch, range(2)))) == 1
    assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize("moment", ["before a file", "within a file", "after all files"])
def test_weights_that_are_saved_again_meanwhile_are_not_mixed(url, folder, monkeypatch, moment):
    real, done = filesystem.stream, []

    def save():
        if not done:
            done.append(True)
            (folder / "vocab.json").write_text("{}")
            write_safetensors(folder / "model.safetensors", b"trained longer")
            upload(folder, url)

    def stream(url, state, start=0):
        weights = url.endswith("model.safetensors")
        if weights and moment == "before a file":
            save()
        for piece in real(url, state, start):
            if weights and moment == "within a file":
                save()
            yield piece
        if weights and moment == "after all files":
            save()

    monkeypatch.setattr(filesystem, "stream", stream)
    monkeypatch.setattr(download, "THREADS", 1)
    with pytest.raises(Incomplete, match=r"while it was copied\. Run it again when it is saved"):
        copied(url)
    copy = copied(url)
    assert copy.digest == inspect(str(folder)).digest
    assert "vocab.json" in content(cached_copy(copy))


@pytest.fixture
def damage(monkeypatch):
    """``damage(change, times)`` changes what arrives of the weights, in so many of the first requests."""

    def damage(change, times):
        real, left = filesystem.stream, [times]

        def stream(url, state, start=0):
            pieces = list(real(url, state, start))
            if url.endswith("model.safetensors"):
                left[0] -= 1
                pieces = pieces if left[0] < 0 else change(pieces)
            yield from pieces

        monkeypatch.setattr(filesystem, "stream", stream)

    return damage


CHANGES = {"other bytes": lambda pieces: [bytes(map(len, pieces))] * 4, "cut short": lambda pieces: pieces[:1]}
CHANGES["flipped"] = lambda pieces: [*pieces[:-1], bytes([pieces[-1][0] ^ 1]) + pieces[-1][1:]]


@pytest.mark.parametrize("change", CHANGES)
def test_what_arrives_damaged_is_requested_again(url, folder, damage, change):
    damage(CHANGES[change], 1)
    copy = copied(url)
    assert copy.digest == inspect(str(folder)).digest == inspect(cached_copy(copy)).digest


def test_what_arrives_damaged_twice_is_not_kept(url, damage):
    damage(CHANGES["flipped"], 2)
    with pytest.raises(Incomplete, match=r"model\.safetensors arrived damaged twice \(last 240 of 240 bytes\)"):
        copied(url)
    assert not list(download.cached_weights().glob("*.partial/model.safetensors"))


def test_an_etag_of_an_encrypted_or_divided_object_is_no_checksum(server):
    import s3fs

    fs = s3fs.S3FileSystem()
    key = f"{server}/{uuid4()}".removeprefix("s3://")
    fs.call_s3(
        "put_object", Bucket=key.partition("/")[0], Key=key.partition("/")[2], Body=b"", ServerSideEncryption="aws:kms"
    )
    assert not filesystem.damaged(f"s3://{key}", f'"{"0" * 32}"', "1" * 32)
    assert not filesystem.damaged(f"s3://{key}", f'"{"0" * 32}-2"', "1" * 32)
    filesystem.write_bytes(f"s3://{key}", b"plain")
    assert filesystem.damaged(f"s3://{key}", f'"{"0" * 32}"', "1" * 32)


def test_a_checkpoint_that_is_gone_or_incomplete_leaves_nothing_behind(url, cache):
    filesystem.delete(f"{url}/model.safetensors")
    filesystem.write_bytes(f"{url}/pytorch_model.bin", b"")
    with pytest.raises(BadInput, match=r"model\.safetensors is missing\. Convert pytorch_model\.bin to safetensors"):
        copied(url)
    filesystem.delete(url)
    with pytest.raises(BadInput, match="does not exist or is empty"):
        copied(url)
    assert not cache.exists()


class TestLimit:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        """The limit is in hundreds of bytes: each checkpoint has about 400."""
        monkeypatch.setattr(download, "GIB", 100)

    @pytest.fixture
    def add(self, server, folder):
        def add(limit=9, turn=None):
            return copied(upload(folder, f"{server}/{uuid4()}"), limit, turn)

        return add

    @pytest.fixture
    def turn(self, root):
        """The turn of an evaluation that is not over."""
        turn = f"{root}/{TURN}"
        take(turn, "a run", lambda owner: True)
        return turn

    def present(self, *copies):
        return [Path(cached_copy(copy)).is_dir() for copy in copies]

    def test_the_copy_that_was_not_used_for_the_longest_time_goes(self, add, monkeypatch):
        one, two = add(), add()
        assert 300 < one.bytes <= 450
        copied(one.location, 9)
        three = add()
        assert self.present(one, two, three) == [True, False, True]
        assert len(list(download.cached_weights().glob("*.uses"))) == 2

    def test_copies_of_evaluations_that_are_not_over_stay(self, add, turn):
        one, two = add(turn=turn), add(turn=turn)
        with pytest.raises(StoreError, match=r"no space for .* the other copies are in use\. Run it again later"):
            add()
        assert self.present(one, two) == [True, True]
        release(turn, "a run")
        assert self.present(one, two, add()) == [False, True, True]

    def test_a_copy_that_a_stage_reads_stays(self, add):
        one, two = add(), add()
        with reading(cached_copy(one)):
            assert self.present(one, two, add()) == [True, False, True]
        add()
        assert self.present(one) == [False]

    def test_a_turn_that_cannot_be_read_keeps_a_copy_for_a_day(self, add, monkeypatch):
        def unreadable(*words):
            raise StoreError("it does not answer")

        monkeypatch.setattr(copies_in_use, "holder", unreadable)
        one, two = add(turn=TURN), add()
        assert self.present(one, two, add()) == [True, False, True]
        monkeypatch.setattr(copies_in_use, "time", lambda: 2e10)
        assert self.present(one, add()) == [False, True]

    def test_an_evaluation_that_begins_while_its_copy_is_removed_keeps_it(self, add, turn, monkeypatch):
        one, two = add(), add()
        real = Path.rename

        def rename(self, target):
            if str(target).endswith(".removed"):
                copies_in_use.note_use(Path(cached_copy(one)), turn)
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        assert self.present(one, two, add()) == [True, False, True]

    def test_a_removal_that_was_killed_is_finished_by_the_next_download(self, add, url, monkeypatch):
        one, two = add(), add()
        with monkeypatch.context() as patch:
            patch.setattr(download.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                copied(url, 9)
        [left] = download.cached_weights().glob("*.removed")
        assert left.name.startswith(Path(one.path).name)
        foreign = download.cached_weights() / "mine.removed"
        foreign.mkdir()
        assert self.present(one, two, copied(url, 9)) == [False, True, True]
        assert (left.exists(), foreign.exists()) == (False, True)

    def test_weights_larger_than_the_limit_remove_nothing(self, add):
        one = add()
        with pytest.raises(BadInput, match=r"the weights have .* GiB; expected at most 3, the limit of all copies"):
            add(limit=3)
        assert self.present(one) == [True]
        assert not list(download.cached_weights().glob("*.partial"))

    def test_a_full_disk_counts_too(self, add, monkeypatch):
        one = add(limit=GIB)
        real = shutil.disk_usage
        free = iter([0, 10**9, 10**9])
        monkeypatch.setattr(download.shutil, "disk_usage", lambda path: real(path)._replace(free=next(free)))
        assert self.present(one, add(limit=GIB)) == [False, True]

    def test_an_abandoned_download_counts_and_goes(self, add, url, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(download, "_fetch_all", lambda *_: (_ for _ in ()).throw(Incomplete("killed")))
            with pytest.raises(Incomplete):
                copied(url, 9)
        assert len(list(download.cached_weights().glob("*.partial"))) == 1
        one = add()
        assert self.present(one, add()) == [True, True]
        assert not list(download.cached_weights().glob("*.partial"))


def test_a_copy_that_was_removed_is_named_with_the_remedy(url):
    copy = copied(url)
    shutil.rmtree(cached_copy(copy))
    with pytest.raises(DataUnavailable, match="is no longer in the cache: it was removed for others"):
        inspect(cached_copy(copy))


def test_a_copy_that_is_being_removed_is_not_read(url):
    import fcntl

    copy = copied(url)
    with (Path(cached_copy(copy)) / download.ABOUT).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataUnavailable, match="is being removed from the cache"), reading(cached_copy(copy)):
            pass


def test_other_folders_are_not_locked(folder):
    with reading(str(folder)), reading("lab/model"):
        pass


def test_an_unreachable_bucket_is_a_store_error(monkeypatch):
    with pytest.raises((HalosEvalError,), match="s3://nowhere"):
        copied("s3://nowhere/kto")


@pytest.mark.parametrize(("sizes", "known"), [((6, 6, 1), True), ((6, 7, 1), False), ((6,), True)])
def test_an_upload_in_parts_of_one_size_is_verified(server, sizes, known, monkeypatch):
    monkeypatch.setattr(download, "PIECE", 1 << 20)
    bucket_name, key = server.removeprefix("s3://"), f"{uuid4()}/tensors"
    parts = [bytes([number]) * (size << 20) for number, size in enumerate(sizes)]
    files = s3fs.S3FileSystem()
    upload_id = files.call_s3("create_multipart_upload", Bucket=bucket_name, Key=key)["UploadId"]
    to = {"Bucket": bucket_name, "Key": key, "UploadId": upload_id}
    done = [
        {"PartNumber": number, "ETag": files.call_s3("upload_part", **to, PartNumber=number, Body=part)["ETag"]}
        for number, part in enumerate(parts, start=1)
    ]
    files.call_s3("complete_multipart_upload", **to, MultipartUpload={"Parts": done})
    url = f"{server}/{key}"
    entry = filesystem.entries(url.rpartition("/")[0])["tensors"]
    size = filesystem.part_size(url, entry)
    assert size == (6 << 20 if known else None)
    found, other = Etag(size), Etag(size)
    found.update(b"".join(parts))
    other.update(b"x" + b"".join(parts)[1:])
    assert not filesystem.damaged(url, entry.state, found.value)
    assert filesystem.damaged(url, entry.state, other.value) is known


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_an_etag_does_not_depend_on_the_pieces(pieces, size):
    whole, one_by_one = Etag(size), Etag(size)
    whole.update(b"".join(pieces))
    for piece in pieces:
        one_by_one.update(piece)
    assert whole.value == one_by_one.value
    content = b"".join(pieces)
    parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    md5s = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
    assert whole.value == f"{hashlib.md5(md5s, usedforsecurity=False).hexdigest()}-{len(parts)}"
