"""The tests of ``Behaviour`` for registries without a server. Those of MLflow and S3 are in tests/real."""

from __future__ import annotations

from uuid import uuid4

import pytest

from halos_eval.storage import filesystem
from tests.checkpoints.behaviour import Behaviour, FolderLab, ListLab


@pytest.fixture
def bucket():
    """An empty place in an object store that is in memory."""
    root = f"memory://{uuid4()}"
    yield root
    filesystem.delete(root)


class TestFolders(Behaviour):
    @pytest.fixture
    def lab(self, tmp_path):
        return FolderLab(str(tmp_path / "root"), tmp_path)


class TestFoldersInObjectStorage(Behaviour):
    @pytest.fixture
    def lab(self, tmp_path, bucket):
        return FolderLab(bucket, tmp_path)


class TestList(Behaviour):
    @pytest.fixture
    def lab(self, tmp_path):
        return ListLab(str(tmp_path / "root"), tmp_path)
