"""The registry of folders: HALOs' EXPERIMENT/FINAL, links, steps, and nothing outside the root."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from halos_eval.checkpoints import safetensors
from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.checkpoints.registry import NotRegistered
from halos_eval.errors import BadInput, DataUnavailable, StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.layout import safe_name
from tests.checkpoints.behaviour import FIRST, FolderLab
from tests.doubles import make_adapter, make_checkpoint

DAY = timedelta(days=1)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def registry(root, tmp_path):
    make_checkpoint(root / "kto" / "FINAL")
    make_checkpoint(root / "kto" / "step-100")
    make_checkpoint(root / "plain")
    make_adapter(root / "lora", root / "plain")
    (root / "logs").mkdir()
    make_checkpoint(root / ".cache")
    make_checkpoint(root / ".archive" / "2026")
    (root / "link").symlink_to(root / ".archive" / "2026")
    (root / "notes.txt").write_text("")
    return FolderRegistry(str(root))


def names(registry, *interval):
    return [one.name for one in registry.registered(*interval).checkpoints]


def set_time(folder, moment):
    """All files of ``folder`` were written then."""
    for path in folder.iterdir():
        os.utime(path, (moment.timestamp(), moment.timestamp()))


def test_folders_with_weights_are_listed(registry):
    assert sorted(names(registry)) == ["kto", "link", "lora", "plain"]
    assert registry.registered().skipped == {}
    for name in ("kto", "link", "lora", "plain"):
        assert registry.get(name).name == name


def test_an_experiment_means_its_final_folder(registry):
    assert registry.get("kto").location == f"{registry.root}/kto/FINAL"
    assert registry.get("kto/FINAL") == registry.get("kto")


def test_another_folder_of_an_experiment(registry):
    found = registry.get("kto/step-100")
    assert (found.name, found.location) == ("kto/step-100", f"{registry.root}/kto/step-100")


def test_steps_are_listed_if_asked_for(registry, root):
    (root / "kto" / "tensorboard").mkdir()
    assert sorted(names(FolderRegistry(str(root), steps=True))) == ["kto", "kto/step-100", "link", "lora", "plain"]


@pytest.mark.parametrize("name", ["notes.txt", "logs", "kto/none", "none/FINAL", "kto/FINAL/config.json"])
def test_what_holds_no_weights_is_no_checkpoint(registry, name):
    with pytest.raises(NotRegistered, match=r"available: kto, link, lora, plain"):
        registry.get(name)


def test_a_name_that_is_unsafe_is_reported(registry, root):
    for name in ("a[1]", "{{a}}", "a::b", "a\nb"):
        make_checkpoint(root / name / "FINAL")
    listed = registry.registered()
    assert sorted(listed.skipped) == ["a\nb", "a::b", "a[1]", "{{a}}"]
    assert all("expected up to four parts joined by" in why for why in listed.skipped.values())
    assert len(listed.checkpoints) == 4


@pytest.mark.parametrize("original", ["lr=1e-6 beta=0.1", "a__b", "kto-x0123456789", "模型", "a" * 200])
def test_an_unusual_name_is_replaced(registry, root, original):
    make_checkpoint(root / original / "FINAL")
    make_checkpoint(root / original / "step-100")
    name = safe_name(original)
    assert name in names(registry)
    assert registry.get(name) == registry.get(original) == registry.get(f"{name}/FINAL")
    assert registry.get(name).location == str(root / original / "FINAL")
    assert registry.get(f"{name}/step-100").location == str(root / original / "step-100")
    assert registry.get(f"{name}/step-100").name == f"{name}/step-100"


def test_an_empty_final_folder_is_reported(registry, root):
    (root / "orpo" / "FINAL").mkdir(parents=True)
    assert "does not exist or is empty" in registry.registered().skipped["orpo"]


def test_a_root_that_is_not_there(tmp_path):
    registry = FolderRegistry(str(tmp_path / "none"))
    with pytest.raises(DataUnavailable, match=r"does not exist\. Mount it or change HALOS_EVAL_CHECKPOINTS"):
        registry.registered()
    with pytest.raises(NotRegistered, match="available: none"):
        registry.get("kto")


@pytest.mark.parametrize("root", ["file://{}", "{}/", "{}"])
def test_a_root_is_written_as_path_or_url(tmp_path, root):
    make_checkpoint(tmp_path / "kto" / "FINAL")
    registry = FolderRegistry(root.format(tmp_path))
    assert registry.registered().checkpoints == [registry.get("kto")]
    assert registry.get("kto").location == str(tmp_path / "kto" / "FINAL")  # what vLLM loads


def test_a_checkpoint_is_registered_when_its_newest_file_was_written(registry, root):
    set_time(root / "kto" / "FINAL", FIRST)
    assert registry.get("kto").registered == FIRST
    os.utime(root / "kto" / "FINAL" / "tokenizer.json", ((FIRST + DAY).timestamp(),) * 2)
    assert registry.get("kto").registered == FIRST + DAY


def test_completing_an_incomplete_checkpoint_registers_it_later(tmp_path):
    lab = FolderLab(str(tmp_path / "root"), tmp_path)
    lab.begin("half")
    lab.add("between")
    lab.finish("half")
    assert lab.registry.get("half").registered == FIRST + 2 * DAY
    assert names(lab.registry, FIRST + 2 * DAY, FIRST + 3 * DAY) == ["half"]


def test_logs_that_are_written_on_do_not_register_it_again(registry, root):
    set_time(root / "kto" / "FINAL", FIRST)
    for name in ("train.log", "optimizer.pt", "README.md", "trainer_state.json"):
        (root / "kto" / "FINAL" / name).write_text("later")
    assert registry.get("kto").registered == FIRST


@pytest.mark.parametrize("name", ["halos_eval.yaml", "mine.jinja", "tokenizer_config.json"])
def test_what_changes_its_outputs_registers_it_again(registry, root, name):
    set_time(root / "kto" / "FINAL", FIRST)
    (root / "kto" / "FINAL" / name).write_text("")
    assert registry.get("kto").registered > FIRST


@pytest.mark.parametrize("way", ["link", "exp/FINAL"])
def test_a_link_counts_from_when_it_was_made(root, way):
    set_time(make_checkpoint(root / ".archive"), FIRST)
    (root / way).parent.mkdir(parents=True, exist_ok=True)
    (root / way).symlink_to(root / ".archive")
    began = datetime.now(UTC) - timedelta(seconds=10)
    registry = FolderRegistry(str(root))
    assert names(registry, began, None) == [way.removesuffix("/FINAL")]
    os.utime(root / way, ((FIRST + DAY).timestamp(),) * 2, follow_symlinks=False)
    assert registry.registered().checkpoints[0].registered == FIRST + DAY


def test_weights_that_are_links_within_the_root(root):
    blobs = make_checkpoint(root / ".blobs")
    (root / "kto").mkdir(parents=True)
    for blob in blobs.iterdir():
        (root / "kto" / blob.name).symlink_to(blob)
    registry = FolderRegistry(str(root))
    assert names(registry) == ["kto"]
    (blobs / "model.safetensors").unlink()
    assert "model.safetensors is missing" in registry.registered().skipped["kto"]


@pytest.mark.parametrize("way", ["kto", "kto/FINAL"])
def test_a_folder_outside_the_root_is_left_out(registry, root, tmp_path, way):
    outside = make_checkpoint(tmp_path / "outside")
    if way == "kto":
        shutil.rmtree(root / "kto")
    else:
        shutil.rmtree(root / "kto" / "FINAL")
    (root / way).symlink_to(outside)
    listed = registry.registered()
    assert sorted(one.name for one in listed.checkpoints) == ["link", "lora", "plain"]
    reason = f"{root / way} is a link to {outside}, outside {root}; expected a folder below it. Copy the checkpoint"
    assert listed.skipped["kto"].startswith(reason)
    with pytest.raises(BadInput, match="is a link to"):
        registry.get("kto")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "halos_eval.yaml", "own.jinja"])
def test_a_file_outside_the_root_costs_its_checkpoint_only(registry, root, tmp_path, name):
    path = root / "kto" / "FINAL" / name
    path.unlink(missing_ok=True)
    (tmp_path / "secret").write_text("AKIA-SECRET")
    path.symlink_to(tmp_path / "secret")
    listed = registry.registered()
    assert sorted(one.name for one in listed.checkpoints) == ["link", "lora", "plain"]
    expected = f"{path} is a link to {tmp_path}/secret; expected a file in {path.parent} or {root}"
    assert listed.skipped == {"kto": f"{expected}. Replace the link by a copy of the file (cp -L)"}


def test_links_that_lead_nowhere_or_in_circles(registry, root):
    (root / "nowhere").symlink_to(root / "none")
    (root / "circle").symlink_to(root / "circle")
    (root / "parent").symlink_to(root)
    assert sorted(names(registry)) == ["kto", "link", "lora", "plain"]
    assert registry.registered().skipped == {}


def test_a_folder_that_may_not_be_read_costs_itself_only(registry, root, monkeypatch):
    def scandir(path, real=os.scandir):
        if str(path) == str(root / "kto" / "FINAL"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listed = registry.registered()
    assert sorted(one.name for one in listed.checkpoints) == ["link", "lora", "plain"]
    assert f"{root}/kto/FINAL is not readable by user" in listed.skipped["kto"]


def test_a_disk_that_fails_is_no_empty_night(registry, root, monkeypatch):
    def scandir(path, real=os.scandir):
        if str(path) == str(root / "kto" / "FINAL"):
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StoreError, match="Input/output error"):
        registry.registered()


def test_a_checkpoint_that_is_removed_while_it_is_read(registry, monkeypatch):
    def read_bytes(url, *part, real=filesystem.read_bytes):
        if "/kto/FINAL/" in url:
            raise FileNotFoundError(url)
        return real(url, *part)

    monkeypatch.setattr(filesystem, "read_bytes", read_bytes)
    listed = registry.registered()
    assert "was removed while it was read" in listed.skipped["kto"]
    assert len(listed.checkpoints) == 3


def test_too_much_metadata(registry, root):
    (root / "kto" / "FINAL" / "halos_eval.yaml").write_text("#" * 100_001)
    with pytest.raises(BadInput, match="expected at most 100000 bytes"):
        registry.get("kto")


def test_thousands_are_listed_by_their_headers_alone(root, monkeypatch):
    template = make_checkpoint(root / "kto-0" / "FINAL")
    with (template / "model.safetensors").open("r+b") as file:  # a sparse file: reading it whole would be noticed
        length = int.from_bytes(file.read(8), "little")
        header = (
            file.read(length).replace(b"[0, 8]", b"[0, 8000000000]").replace(b'"shape": [8]', b'"shape": [8000000000]')
        )
        file.seek(0)
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 8_000_000_000)
    for number in range(1, 2000):
        (root / f"kto-{number}").mkdir()
        (root / f"kto-{number}" / "FINAL").mkdir()
        for path in template.iterdir():
            (root / f"kto-{number}" / "FINAL" / path.name).hardlink_to(path)
    read = []
    real = filesystem.read_bytes

    def read_bytes(*part):
        data = real(*part)
        read.append(len(data))
        return data

    monkeypatch.setattr(safetensors.filesystem, "read_bytes", read_bytes)
    listed = FolderRegistry(str(root)).registered()
    assert (len(listed.checkpoints), listed.skipped) == (2000, {})
    assert len(read) == 2000
    assert max(read) <= safetensors.FIRST_READ
