"""Where links in a checkpoint's folder may lead: as the registry, the plan and a stage see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from halos_eval.checkpoints.links import TEMPLATES, check_links
from halos_eval.checkpoints.weights import inspect
from halos_eval.errors import BadInput
from tests.doubles import make_adapter, make_checkpoint


@pytest.fixture
def outside(tmp_path):
    """A file that no checkpoint has to do with."""
    path = tmp_path / "secret"
    path.write_text("AKIA-SECRET")
    return path


def link(path, target):
    """Put a link in place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_a_folder_without_links(tmp_path):
    check_links(str(make_checkpoint(tmp_path / "kto")))
    check_links(str(tmp_path / "none"))
    check_links("s3://bucket/kto")


@pytest.mark.parametrize("target", ["other.json", "step-1/config.json", "../kto/other.json"])
def test_a_link_within_the_folder(tmp_path, target):
    folder = make_checkpoint(tmp_path / "kto")
    make_checkpoint(folder / "step-1")
    (folder / "config.json").rename(folder / "other.json")
    link(folder / "config.json", target)
    assert inspect(str(folder)).name == "kto"


def test_the_folder_itself_may_be_a_link_where_it_is_named(tmp_path):
    make_checkpoint(tmp_path / "kto")
    (tmp_path / "best").symlink_to("kto")
    assert inspect(str(tmp_path / "best")).name == "best"


def test_a_snapshot_in_the_hubs_cache(tmp_path, outside):
    repository = tmp_path / "models--lab--kto"
    blobs = make_checkpoint(repository / "blobs")
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs", blob.name))
    assert inspect(str(snapshot)).digest == inspect(str(blobs)).digest
    link(snapshot / "tokenizer.json", outside)
    with pytest.raises(BadInput, match=r"tokenizer\.json is a link to"):
        inspect(str(snapshot))


@pytest.mark.parametrize("name", ["blobs", "snapshots"])
def test_only_the_hubs_own_layout_has_blobs(tmp_path, name):
    make_checkpoint(tmp_path / "lab" / "blobs")
    folder = tmp_path / "lab" / name / "kto"
    make_checkpoint(folder)
    link(folder / "tokenizer.json", "../../blobs/tokenizer.json")
    with pytest.raises(BadInput, match="is a link to"):
        inspect(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("through", ["directly", "by a second link", "by a folder"])
def test_what_leaves_the_folder_is_named_with_the_remedy(tmp_path, outside, name, through):
    folder = make_checkpoint(tmp_path / "kto")
    target = outside
    if through == "by a second link":
        target = folder / "second"
        target.symlink_to(outside)
    elif through == "by a folder":
        (folder / "up").symlink_to("..")
        target = Path("up/secret")
    link(folder / name, target)
    with pytest.raises(BadInput) as caught:
        inspect(str(folder))
    assert str(caught.value) == (
        f"{folder}/{name} is a link to {outside}; expected a file in {folder}. Replace the link by a copy of the file "
        "(cp -L)"
    )


def test_nothing_of_what_a_link_leads_to_is_read_first(tmp_path, outside):
    folder = make_checkpoint(tmp_path / "kto")
    link(folder / "config.json", outside)  # is no JSON, which would be another error
    with pytest.raises(BadInput, match=r"config\.json is a link to"):
        inspect(str(folder))


def test_files_that_are_not_read_may_be_links(tmp_path, outside):
    folder = make_checkpoint(tmp_path / "kto")
    for name in ("optimizer.pt", "train.log"):
        (folder / name).symlink_to(outside)
    (folder / "wandb").symlink_to(tmp_path)
    inspect(str(folder))


@pytest.mark.parametrize("way", ["the folder", "a file"])
def test_more_chat_templates(tmp_path, outside, way):
    folder = make_checkpoint(tmp_path / "kto")
    if way == "the folder":
        (tmp_path / "templates").mkdir()
        (folder / TEMPLATES).symlink_to(tmp_path / "templates")
    else:
        (folder / TEMPLATES).mkdir()
        (folder / TEMPLATES / "tools.jinja").symlink_to(outside)
    with pytest.raises(BadInput, match=TEMPLATES):
        inspect(str(folder))


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_adapters_and_their_bases(tmp_path, outside, part):
    base = make_checkpoint(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    link((base if part == "base" else adapter) / "tokenizer_config.json", outside)
    with pytest.raises(BadInput, match=f"{part}/tokenizer_config.json is a link to"):
        inspect(str(adapter))


def test_a_registrys_root(tmp_path, outside):
    root = tmp_path / "root"
    shared = make_checkpoint(root / "shared")
    folder = make_checkpoint(root / "kto" / "FINAL")
    link(folder / "tokenizer.json", shared / "tokenizer.json")
    inspect(str(folder), root=str(root))
    with pytest.raises(BadInput, match=r"tokenizer\.json is a link to"):
        inspect(str(folder))
    link(folder / "tokenizer.json", outside)
    with pytest.raises(BadInput, match=f"expected a file in {folder} or {root}"):
        inspect(str(folder), root=str(root))


def test_a_root_that_is_a_link(tmp_path):
    make_checkpoint(tmp_path / "disk" / "kto" / "FINAL")
    (tmp_path / "root").symlink_to("disk")
    inspect(str(tmp_path / "root" / "kto" / "FINAL"), root=str(tmp_path / "root"))


def test_a_root_allows_nothing_to_folders_beside_it(tmp_path):
    make_checkpoint(tmp_path / "root" / "kto")
    folder = make_checkpoint(tmp_path / "elsewhere")
    link(folder / "tokenizer.json", tmp_path / "root" / "kto" / "tokenizer.json")
    with pytest.raises(BadInput, match="is a link to"):
        inspect(str(folder), root=str(tmp_path / "root"))


def test_a_link_that_is_made_between_plan_and_stage(tmp_path, outside):
    """A stage looks again before it reads anything, with the same root as the plan."""
    root = tmp_path / "root"
    folder = make_checkpoint(root / "kto" / "FINAL")
    planned = inspect(str(folder), root=str(root))
    link(folder / "config.json", outside)
    with pytest.raises(BadInput, match=r"config\.json is a link to"):
        inspect(str(folder), root=str(root))
    with pytest.raises(BadInput, match="was saved again"):
        planned.check_unchanged()
