"""Tests of every registry. A registry's tests inherit ``Behaviour`` and provide a ``lab`` for registering."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
import yaml

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.checkpoints.listed import ListRegistry
from halos_eval.checkpoints.registry import Listing, Metadata, NotRegistered
from halos_eval.checkpoints.safetensors import check_weights, files_of
from halos_eval.errors import BadInput
from halos_eval.storage import filesystem
from halos_eval.storage.layout import NAME, safe_name
from tests.doubles import make_checkpoint

FIRST = datetime(2026, 10, 1, 12, tzinfo=UTC)
SHARDS = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
INDEX = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}


class FolderLab:
    """Checkpoints in ROOT/NAME/FINAL. On a disk each is a day newer than the one before."""

    def __init__(self, root, scratch):
        self.root, self.scratch, self.days = root, scratch, 0
        filesystem.write_bytes(filesystem.join(root, ".keep"), b"")

    @property
    def registry(self):
        return FolderRegistry(self.root)

    def folder(self, name):
        return filesystem.join(self.root, name, "FINAL")

    def put(self, name, files):
        """Write files (names and contents) into the folder of a checkpoint."""
        for file, content in files.items():
            filesystem.write_bytes(filesystem.join(self.folder(name), file), content)
        if "://" not in self.root:
            moment = (FIRST + timedelta(days=self.days)).timestamp()
            for file in files:
                os.utime(filesystem.join(self.folder(name), file), (moment, moment))
            self.days += 1

    def add(self, name, metadata=None):
        """Register a complete checkpoint; its name in the registry."""
        self.put(name, self.contents(halos_eval_yaml=metadata) if metadata else self.contents())
        return self.register(name)

    def begin(self, name):
        """Register a checkpoint of which a shard is not there yet; its name in the registry."""
        files = self.contents(model_safetensors_index_json=json.dumps(INDEX))
        files[SHARDS[0]] = files.pop("model.safetensors")
        self.put(name, files)
        return self.register(name)

    def finish(self, name):
        """Write the shard that was not there."""
        self.put(name, {SHARDS[1]: self.contents()["model.safetensors"]})

    def remove(self, name):
        """Delete the weights."""
        filesystem.delete(filesystem.join(self.root, name))

    def register(self, name):
        return name

    def contents(self, **files):
        names = {"halos_eval_yaml": "halos_eval.yaml", "model_safetensors_index_json": "model.safetensors.index.json"}
        folder = make_checkpoint(self.scratch / "contents")
        texts = {names[name]: text.encode() for name, text in files.items()}
        return {path.name: path.read_bytes() for path in folder.iterdir()} | texts


class ListLab(FolderLab):
    """Checkpoints of a list in YAML; their weights are below ROOT/weights."""

    def __init__(self, root, scratch):
        super().__init__(filesystem.join(root, "weights"), scratch)
        self.place, self.entries = filesystem.join(root, "list.yaml"), []
        self._write()

    @property
    def registry(self):
        return ListRegistry(self.place)

    def register(self, name):
        self.entries.append({"name": name, "location": f"./weights/{name}/FINAL"})
        self._write()
        return name

    def _write(self):
        filesystem.write_bytes(self.place, yaml.dump({"checkpoints": self.entries}).encode())


class Behaviour:
    """What holds for every registry. ``lab`` is one with nothing in it."""

    def test_nothing_is_registered(self, lab):
        assert lab.registry.registered() == Listing([], {})
        with pytest.raises(NotRegistered, match="available: none"):
            lab.registry.get("kto")

    def test_what_is_listed_is_what_is_given_by_name(self, lab):
        names = [lab.add("kto"), lab.add("dpo")]
        listed = lab.registry.registered()
        assert [one.name for one in listed.checkpoints] == names
        assert listed.skipped == {}
        for one in listed.checkpoints:
            assert lab.registry.get(one.name) == one
            assert one.registered.utcoffset() == timedelta(0)
            check_weights(one.location, files_of(one.location))

    def test_an_interval_has_its_start_and_not_its_end(self, lab):
        names = [lab.add(name) for name in ("a", "b", "c")]
        times = [one.registered for one in lab.registry.registered().checkpoints]
        assert times == sorted(set(times))

        def between(start, end):
            return [one.name for one in lab.registry.registered(start, end).checkpoints]

        assert between(times[0], times[1]) == names[:1]
        assert between(times[0], times[2]) == names[:2]
        assert between(times[1], None) == names[1:]
        assert between(None, times[1]) == names[:1]
        assert between(times[1], times[1]) == []
        assert between(times[2] + timedelta(microseconds=1), None) == []

    def test_intervals_that_touch_have_everything_once(self, lab):
        names = [lab.add(name) for name in ("a", "b", "c", "d")]
        first, *_, last = (one.registered for one in lab.registry.registered().checkpoints)
        step = max((last - first) / 7, timedelta(microseconds=1))
        edges = [first + step * number for number in range(9)]
        found = [one.name for start, end in pairwise(edges) for one in lab.registry.registered(start, end).checkpoints]
        assert found == names

    def test_an_interval_in_another_time_zone_is_the_same(self, lab):
        name = lab.add("kto")
        (found,) = lab.registry.registered().checkpoints
        tokyo = timezone(timedelta(hours=9))
        start = found.registered.astimezone(tokyo)
        assert [one.name for one in lab.registry.registered(start, start + timedelta(hours=1)).checkpoints] == [name]
        assert lab.registry.registered(start - timedelta(hours=1), start).checkpoints == []

    def test_an_incomplete_checkpoint_is_skipped_until_it_is_complete(self, lab):
        half, whole = lab.begin("half"), lab.add("whole")
        listed = lab.registry.registered()
        assert [one.name for one in listed.checkpoints] == [whole]
        assert list(listed.skipped) == [half]
        assert f"is incomplete: {SHARDS[1]} is missing" in listed.skipped[half]
        with pytest.raises(BadInput, match="is incomplete"):
            lab.registry.get(half)
        lab.finish("half")
        listed = lab.registry.registered()
        assert {one.name for one in listed.checkpoints} == {half, whole}
        assert listed.skipped == {}

    def test_a_truncated_shard_makes_a_checkpoint_incomplete(self, lab):
        name = lab.add("cut")
        lab.put("cut", {"model.safetensors": lab.contents()["model.safetensors"][:-1]})
        assert "is truncated" in lab.registry.registered().skipped[name]

    def test_metadata_beside_the_weights(self, lab):
        content = "chat_template: chatml\nstop: ['###']\nprofile: large\ntags: {method: kto, base_model: llama3-8b}"
        name = lab.add("kto", content)
        expected = Metadata(
            chat_template="chatml", stop=("###",), profile="large", tags={"method": "kto", "base_model": "llama3-8b"}
        )
        assert lab.registry.get(name).metadata == expected

    @pytest.mark.parametrize("content", ["stops: ['###']", "a: [", "stop: [2026-02-30]", "[" * 500])
    def test_damaged_metadata_costs_its_own_checkpoint_only(self, lab, content):
        damaged, whole = lab.add("damaged", content), lab.add("whole")
        listed = lab.registry.registered()
        assert [one.name for one in listed.checkpoints] == [whole]
        assert list(listed.skipped) == [damaged]
        assert "halos_eval.yaml" in listed.skipped[damaged]
        with pytest.raises(BadInput, match=r"halos_eval\.yaml"):
            lab.registry.get(damaged)

    def test_a_skipped_checkpoint_is_reported_in_its_interval(self, lab):
        lab.add("before")
        damaged = lab.add("damaged", "a: [")
        lab.add("after")
        before, after = (one.registered for one in lab.registry.registered().checkpoints)
        assert list(lab.registry.registered(before + timedelta(microseconds=1), after).skipped) == [damaged]
        assert lab.registry.registered(after, None).skipped == {}
        assert lab.registry.registered(None, before + timedelta(microseconds=1)).skipped == {}

    def test_a_checkpoint_that_is_deleted_costs_itself_only(self, lab):
        gone, there = lab.add("gone"), lab.add("there")
        lab.remove("gone")
        assert [one.name for one in lab.registry.registered().checkpoints] == [there]
        with pytest.raises(BadInput):
            lab.registry.get(gone)

    def test_an_unknown_name_shows_some_that_are_known(self, lab):
        names = sorted([lab.add("kto"), lab.add("dpo")])
        with pytest.raises(NotRegistered, match=f"unknown checkpoint 'orpo/v1' in .*; available: {', '.join(names)}"):
            lab.registry.get("orpo/v1")

    def test_an_unusual_name_is_replaced_and_kept_in_a_tag(self, lab):
        original = lab.add("llama3-8b sft+kto", "tags: {method: kto}")
        half = lab.begin("beta=0.1")
        listed = lab.registry.registered()
        (found,) = listed.checkpoints
        assert NAME.fullmatch(found.name)
        assert found.name == safe_name(original) != original
        assert found.metadata.tags == {"method": "kto", "original_name": original}
        assert lab.registry.get(found.name) == found == lab.registry.get(original)
        assert list(listed.skipped) == [safe_name(half)]

    @pytest.mark.parametrize("name", ["../outside", "/etc", "kto/../../outside", "a__b", ".cache", "", "a b", "a::b"])
    def test_an_unsafe_name_is_refused(self, lab, name):
        lab.add("kto")
        with pytest.raises(BadInput):
            lab.registry.get(name)

    def test_a_template_outside_the_checkpoints_folder_is_refused(self, lab):
        for number, template in enumerate(("../other.jinja", "/etc/hostname", "a/../../b.jinja", '"\\0/x"')):
            name = lab.add(f"bad{number}", f"chat_template: {template}")
            assert "is outside" in lab.registry.registered().skipped[name]

    def test_a_template_beside_the_weights(self, lab):
        found = lab.registry.get(lab.add("kto", "chat_template: mine.jinja"))
        assert found.metadata.chat_template == filesystem.join(found.location, "mine.jinja")
