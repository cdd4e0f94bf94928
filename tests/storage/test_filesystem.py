"""Storage: the same behaviour on a disk and in object storage, and atomic writes."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError
from botocore.utils import parse_timestamp
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from halos_eval.errors import BadInput, StoreError
from halos_eval.storage import filesystem


class Behaviour:
    """The behaviour of every kind of storage. ``root`` is an empty URL."""

    def test_what_is_written_is_read(self, root):
        url = filesystem.join(root, "deep", "folder", "a.bin")
        filesystem.write_bytes(url, b"\x00\xff")
        assert filesystem.read_bytes(url) == b"\x00\xff"
        filesystem.write_bytes(url, b"new")
        assert filesystem.read_bytes(url) == b"new"

    def test_what_is_not_there(self, root):
        with pytest.raises(FileNotFoundError):
            filesystem.read_bytes(filesystem.join(root, "none"))
        assert not filesystem.exists(filesystem.join(root, "none"))
        assert filesystem.find(filesystem.join(root, "none"), "") == []
        filesystem.delete(filesystem.join(root, "none"))

    def test_many_files_are_read_at_once_and_those_that_are_not_there_are_left_out(self, root):
        urls = [filesystem.join(root, name) for name in ("a", "none", "folder/b")]
        filesystem.write_bytes(urls[0], b"1")
        filesystem.write_bytes(urls[2], b"2")
        assert filesystem.read_many(urls) == {urls[0]: b"1", urls[2]: b"2"}
        assert filesystem.read_many([]) == {}

    def test_a_single_file_is_deleted(self, root):
        for name in ("a", "b"):
            filesystem.write_bytes(filesystem.join(root, name), b"")
        filesystem.delete_file(filesystem.join(root, "a"))
        filesystem.delete_file(filesystem.join(root, "none"))
        assert list(filesystem.entries(root)) == ["b"]

    def test_find_goes_deep_and_gives_urls_in_order(self, root):
        names = ["b/record.json", "a/x/outputs.record.json", "a/record.json", "a/record.json.bak", "other.json"]
        for name in names:
            filesystem.write_bytes(filesystem.join(root, name), name.encode())
        found = filesystem.find(root, "record.json")
        assert [filesystem.read_bytes(url).decode() for url in found] == sorted(names[:3])
        assert all("://" in url for url in found)

    def test_a_new_file_is_found_at_once(self, root):
        filesystem.write_bytes(filesystem.join(root, "a"), b"")
        assert len(filesystem.find(root, "")) == 1
        filesystem.write_bytes(filesystem.join(root, "b"), b"")
        assert len(filesystem.find(root, "")) == 2

    def test_a_file_and_a_folder_are_deleted(self, root):
        for name in ("a", "folder/b", "folder/deep/c", "folders"):
            filesystem.write_bytes(filesystem.join(root, name), b"")
        filesystem.delete(filesystem.join(root, "folder"))
        filesystem.delete(filesystem.join(root, "a"))
        assert [url.rsplit("/", 1)[1] for url in filesystem.find(root, "")] == ["folders"]

    def test_a_part_of_a_file(self, root):
        url = filesystem.join(root, "a")
        filesystem.write_bytes(url, b"0123456789")
        assert filesystem.read_bytes(url, 2, 5) == b"234"
        assert filesystem.read_bytes(url, 8, 100) == b"89"

    def test_the_entries_of_a_folder(self, root):
        for name in ("b", "a/x", "a/y/z"):
            filesystem.write_bytes(filesystem.join(root, name), b"12345")
        found = filesystem.entries(root)
        assert {name: entry.is_folder for name, entry in found.items()} == {"a": True, "b": False}
        assert found["b"].size == 5
        assert abs(datetime.now(UTC) - found["b"].modified) < timedelta(minutes=1)
        assert filesystem.entries(filesystem.join(root, "a")).keys() == {"x", "y"}
        assert filesystem.entries(filesystem.join(root, "none")) == filesystem.entries(filesystem.join(root, "b")) == {}

    def test_all_files_of_a_folder(self, root):
        for name in ("b", "a/x", "a/y/z"):
            filesystem.write_bytes(filesystem.join(root, name), b"12345")
        found = filesystem.tree(root)
        assert {name: entry.size for name, entry in found.items()} == {"b": 5, "a/x": 5, "a/y/z": 5}
        assert all(abs(datetime.now(UTC) - entry.modified) < timedelta(minutes=1) for entry in found.values())
        assert filesystem.tree(filesystem.join(root, "none")) == {}

    def test_only_an_empty_folder_is_removed(self, root):
        filesystem.write_bytes(filesystem.join(root, "a", "b", "c"), b"")
        filesystem.remove_empty(filesystem.join(root, "a"))
        filesystem.remove_empty(filesystem.join(root, "none"))
        assert filesystem.exists(filesystem.join(root, "a", "b", "c"))
        filesystem.delete(filesystem.join(root, "a", "b", "c"))
        filesystem.remove_empty(filesystem.join(root, "a", "b"))
        assert not filesystem.exists(filesystem.join(root, "a", "b"))

    def test_what_is_no_link(self, root):
        filesystem.write_bytes(filesystem.join(root, "a", "b"), b"")
        for name in ("a", "a/b", "none"):
            assert filesystem.linked(filesystem.join(root, name)) is None

    def test_a_folder_exists(self, root):
        filesystem.write_bytes(filesystem.join(root, "folder", "a"), b"")
        assert filesystem.exists(filesystem.join(root, "folder"))


class TestPlainPath(Behaviour):
    @pytest.fixture
    def root(self, tmp_path):
        return str(tmp_path)


class TestFile(Behaviour):
    @pytest.fixture
    def root(self, tmp_path):
        return f"file://{tmp_path}/"


class TestMemory(Behaviour):
    @pytest.fixture
    def root(self):
        root = f"memory://{uuid4()}"
        yield root
        filesystem.delete(root)


class TestS3(Behaviour):
    @pytest.fixture
    def root(self, strict_bucket):
        return f"{strict_bucket}/{uuid4()}"

    def test_a_server_that_is_gone_is_no_missing_file(self, root, monkeypatch):
        async def lost(*_, **__):
            raise ClientPayloadError("Response payload is not completed")

        monkeypatch.setattr(S3FileSystem, "_cat_file", lost)
        with pytest.raises(StoreError, match="Response payload is not completed"):
            filesystem.read_many([f"{root}/a", f"{root}/b"])

    @pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SlowDown", "XMinioStorageFull"])
    def test_a_store_that_refuses_is_no_missing_file(self, root, monkeypatch, code):
        """Credentials that expired while it ran, or a bucket that is full or too busy."""
        filesystem.write_bytes(f"{root}/a", b"old")
        filesystem.write_bytes(f"{root}/b/c", b"old")

        async def refused(*_, **__):
            raise ClientError({"Error": {"Code": code, "Message": f"the server says {code}"}}, "Any")

        with monkeypatch.context() as patch:
            patch.setattr(S3FileSystem, "_call_s3", refused)
            for call in (
                lambda: filesystem.read_bytes(f"{root}/a"),
                lambda: filesystem.read_many([f"{root}/a"]),
                lambda: filesystem.write_bytes(f"{root}/a", b"new"),
                lambda: filesystem.create(f"{root}/new", b"new"),
                lambda: filesystem.exists(f"{root}/a"),
                lambda: filesystem.entries(f"{root}/b"),
                lambda: filesystem.find(root, "c"),
            ):
                with pytest.raises(StoreError, match=f"the server says {code}"):
                    call()
        assert filesystem.read_bytes(f"{root}/a") == b"old"

    @pytest.mark.parametrize("error", [ReadTimeoutError, ConnectTimeoutError, EndpointConnectionError])
    def test_a_store_that_is_too_slow_is_no_missing_file(self, root, monkeypatch, error):
        async def slow(*_, **__):
            raise error(endpoint_url="http://store")

        with monkeypatch.context() as patch:
            patch.setattr(S3FileSystem, "_call_s3", slow)
            for call in (
                lambda: filesystem.read_bytes(f"{root}/a"),
                lambda: filesystem.write_bytes(f"{root}/a", b"new"),
                lambda: filesystem.exists(f"{root}/a"),
                lambda: filesystem.find(root, "a"),
            ):
                with pytest.raises(StoreError, match="http://store"):
                    call()


@pytest.mark.parametrize(
    "text",
    ["2026-11-28T02:09:34.000Z", "2026-11-28T02:09:34Z", "Sat, 28 Nov 2026 02:09:34 GMT", "1795831774", 1795831774.5],
)
def test_times_are_parsed_as_botocore_does(text):
    assert filesystem._time(text) == parse_timestamp(text)


@pytest.mark.parametrize("broken", [(os, "fsync"), (Path, "replace")], ids=lambda broken: broken[1])
def test_a_full_disk_leaves_the_old_content(tmp_path, monkeypatch, broken):
    url = str(tmp_path / "a")
    filesystem.write_bytes(url, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*broken, full)
    with pytest.raises(StoreError) as caught:
        filesystem.write_bytes(url, b"new")
    for words in (url, "No space left on device", "free space", "AWS_ENDPOINT_URL", "run the command again"):
        assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert filesystem.read_bytes(url) == b"old"


def test_a_kill_while_writing_leaves_the_old_content(tmp_path, monkeypatch):
    filesystem.write_bytes(str(tmp_path / "a"), b"old")

    def killed(*_):
        raise SystemExit(143)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(SystemExit):
        filesystem.write_bytes(str(tmp_path / "a"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_other_users_can_read_what_is_written(tmp_path):
    filesystem.write_bytes(str(tmp_path / "a"), b"")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="permissions"):
        filesystem.write_bytes(str(tmp_path / "file" / "a"), b"")


def test_a_missing_bucket_is_not_a_missing_file(tmp_path, monkeypatch):
    def no_bucket(*_):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(filesystem, "_replace", no_bucket)
    with pytest.raises(StoreError, match="bucket does not exist"):
        filesystem.write_bytes(str(tmp_path / "a"), b"")


def test_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(StoreError, match="directory"):
        filesystem.read_bytes(str(tmp_path))


@pytest.mark.parametrize(
    ("url", "joined"),
    [("s3://b", "s3://b/x/y"), ("s3://b/", "s3://b/x/y"), ("/a", "/a/x/y"), ("file:///a", "file:///a/x/y")],
)
def test_join(url, joined):
    assert filesystem.join(url, "x", "y") == joined


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_name_is_a_name_and_no_chain_of_file_systems(tmp_path, scheme):
    root = f"{scheme}{tmp_path}"
    url = filesystem.join(root, "a::b", "simplecache::memory:", "c")
    filesystem.write_bytes(url, b"x")
    assert filesystem.read_bytes(url) == b"x"
    assert filesystem.entries(root).keys() == {"a::b"}


def test_links_are_followed_and_have_the_later_time(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-file").symlink_to(tmp_path / "file")
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.utime(tmp_path / "file", (1e9, 1e9))
    os.utime(tmp_path / "to-file", (2e9, 2e9), follow_symlinks=False)
    os.utime(tmp_path / "to-folder", (2e9, 2e9), follow_symlinks=False)
    found = filesystem.entries(str(tmp_path))
    assert found.keys() == {"file", "folder", "to-file", "to-folder"}
    assert found["to-folder"].is_folder
    assert (found["to-file"].size, found["to-file"].modified.timestamp()) == (5, 2e9)
    os.utime(tmp_path / "file", (3e9, 3e9))
    assert filesystem.entries(str(tmp_path))["to-file"].modified.timestamp() == 3e9
    assert filesystem.linked(str(tmp_path / "to-folder")).timestamp() == 2e9


def test_a_folder_whose_content_is_unreadable_is_not_empty(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(StoreError, match="Permission denied"):
        filesystem.tree(str(tmp_path / "a"))


def test_links_are_listed_and_not_followed(tmp_path):
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "file").write_text("mine")
    root = str(tmp_path / "root")
    filesystem.write_bytes(f"{root}/a/file", b"")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "broken").symlink_to("nothing")
    assert filesystem.tree(root).keys() == {"a/file", "link", "broken"}
    assert filesystem.tree(f"{root}/link") == {}
    assert [filesystem.inside(root, f"{root}/{name}") for name in ("a/file", "none", "link", "link/deep/file")] == [
        True, True, False, False,
    ]  # fmt: skip
    for name in ("link", "broken"):
        filesystem.delete(f"{root}/{name}")
    assert filesystem.tree(root).keys() == {"a/file"}
    assert (tmp_path / "outside" / "deep" / "file").read_text() == "mine"


def test_a_connection_that_is_lost_in_the_middle_is_the_stores_fault(monkeypatch):
    def cat_file(*_, **__):
        raise ClientPayloadError("Response payload is not completed")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(StoreError, match="Response payload is not completed"):
        filesystem.read_bytes("memory://a")


@pytest.mark.parametrize("url", ["gs://bucket/store", "abfs://container/store", "https://example.org/store"])
def test_other_storage_is_rejected_with_the_remedy(url):
    for call in (filesystem.read_bytes, filesystem.entries, filesystem.exists):
        with pytest.raises(BadInput, match=r"is not supported .*expected a folder or s3://.*AWS_ENDPOINT_URL"):
            call(url)
