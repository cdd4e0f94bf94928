"""Models on the hub get the checks of folders, and no weights are downloaded for that."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from halos_eval import hub
from halos_eval.checkpoints.architecture import Limits
from halos_eval.checkpoints.weights import inspect
from halos_eval.errors import BadInput, DataUnavailable, Incomplete
from tests.doubles import make_adapter, make_checkpoint, write_safetensors, write_tensors

COMMIT = "c0ffee"


class Repository(NamedTuple):
    """The model lab/m on a hub, which is a function in this process."""

    folder: Path
    sent: list[int]
    """Bytes of each answer with a file."""
    options: set[str]
    """``gated``: files need a token. ``no ranges``: files are sent whole. ``failing``: files end with 503."""

    def answer(self, request):
        """Answer a request of the client."""
        path = request.url.path
        if path.startswith("/api/models/lab/m"):
            names = sorted(self.folder.iterdir())
            siblings = [{"rfilename": one.name, "size": one.stat().st_size} for one in names]
            return httpx2.Response(200, json={"id": "lab/m", "sha": COMMIT, "siblings": siblings})
        assert path.startswith(f"/lab/m/resolve/{COMMIT}/")
        if "gated" in self.options:
            return httpx2.Response(403, headers={"X-Error-Code": "GatedRepo"}, json={"error": "gated"})
        if "failing" in self.options:
            return httpx2.Response(503)
        body = (self.folder / path.rpartition("/")[2]).read_bytes()
        status, span = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["Range"])
        if "no ranges" not in self.options:
            status, body = 206, body[int(span[1]) : int(span[2]) + 1 if span[2] else None]
        self.sent.append(len(body))
        return httpx2.Response(status, content=body)


@pytest.fixture
def repository(tmp_path):
    made = Repository(make_checkpoint(tmp_path / "m"), [], set())
    set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(made.answer)))
    yield made
    set_client_factory(default_client_factory)


@pytest.mark.parametrize("option", ["ranges", "no ranges"])
def test_a_complete_model(repository, option):
    repository.options.add(option)
    config = {"model_type": "llama", "num_attention_heads": 9, "max_position_embeddings": 2048}
    (repository.folder / "config.json").write_text(json.dumps(config))
    write_tensors(repository.folder / "model.safetensors", {"lm_head.weight": (100, 4)})
    found = inspect("lab/m")
    assert (found.model, found.revision, found.digest) == ("lab/m", COMMIT, f"hub:{COMMIT}")
    assert found.limits == Limits(heads=9, length=2048)


def test_only_headers_are_read(repository):
    write_tensors(repository.folder / "model.safetensors", {"lm_head.weight": (1000, 1000)})
    inspect("lab/m")
    assert len(repository.sent) == 2
    assert sum(repository.sent) < 100_000


def test_a_long_header_is_read_in_two_parts(repository):
    write_tensors(repository.folder / "model.safetensors", {f"layers.{one}.weight": (2, 2) for one in range(3000)})
    inspect("lab/m")
    assert len(repository.sent) == 3


def test_a_repository_with_an_adapter(repository):
    make_adapter(repository.folder, "lab/base")
    with pytest.raises(BadInput, match=r"lab/m is a LoRA adapter on the hub; expected full weights\. Download it"):
        inspect("lab/m")
    assert repository.sent == []


def test_a_repository_that_lacks_a_shard(repository):
    (repository.folder / "model.safetensors").rename(repository.folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (repository.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(
        BadInput, match=r"hf://lab/m@c0ffee is incomplete: model-00002-of-00002\.safetensors is missing"
    ):
        inspect("lab/m")
    write_safetensors(repository.folder / "model-00002-of-00002.safetensors")
    assert inspect("lab/m").revision == COMMIT


def test_a_repository_with_a_truncated_file(repository):
    path = repository.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"model\.safetensors is truncated"):
        inspect("lab/m")


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ("config.json", "lab/m@c0ffee is not a model; expected config.json"),
        ("model.safetensors", "lab/m has no safetensors weights. Convert them"),
    ],
)
def test_a_repository_without_usable_weights(repository, removed, words):
    (repository.folder / removed).rename(repository.folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=re.escape(words)):
        inspect("lab/m")


def test_a_repository_without_an_output_layer(repository):
    (repository.folder / "config.json").write_text('{"tie_word_embeddings": false}')
    with pytest.raises(BadInput, match="has no lm_head"):
        inspect("lab/m")


def test_an_adapters_base_on_the_hub(repository, tmp_path):
    adapter = make_adapter(tmp_path / "lora", "lab/m")
    assert inspect(str(adapter)).revision == COMMIT
    write_tensors(repository.folder / "model.safetensors", {"other.weight": (2, 2)})
    with pytest.raises(BadInput, match="its base has no module"):
        inspect(str(adapter))


def test_of_a_gated_repository_only_the_list_of_files_is_checked(repository):
    repository.options.add("gated")
    assert inspect("lab/m").digest == f"hub:{COMMIT}"
    (repository.folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="has no safetensors weights"):
        inspect("lab/m")


@pytest.mark.parametrize(("option", "kind"), [("gated", DataUnavailable), ("failing", Incomplete)])
def test_a_file_that_the_hub_does_not_deliver(repository, option, kind):
    repository.options.add(option)
    if option == "failing":
        with pytest.raises(kind):
            inspect("lab/m")
    with pytest.raises(kind, match=r"hf://lab/m@c0ffee/config\.json is unavailable .* Check HF_ENDPOINT, HF_TOKEN"):
        hub.read(f"hf://lab/m@{COMMIT}/config.json")


@pytest.mark.parametrize("option", ["ranges", "no ranges"])
@pytest.mark.parametrize(("start", "end"), [(None, None), (0, 4), (3, 9), (3, None), (0, 1000)])
def test_any_part_of_a_file(repository, option, start, end):
    repository.options.add(option)
    (repository.folder / "x").write_bytes(bytes(range(50)))
    assert hub.read(f"hf://lab/m@{COMMIT}/x", start, end) == bytes(range(50))[start:end]
