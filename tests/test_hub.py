"""The hub: which commit a branch stands at, and what an answer means that is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from halos_eval import hub
from halos_eval.errors import BadInput, DataUnavailable, Incomplete


def answer(kind, status):
    request = httpx2.Request("GET", "https://hub.example/api")
    return kind("no", response=httpx2.Response(status, request=request))


def raising(error):
    def call(*_, **__):
        raise error

    return call


def test_the_commit_of_a_branch(monkeypatch):
    asked = []
    monkeypatch.setattr(
        HfApi, "repo_info", lambda _, *args, **more: asked.append((args, more)) or SimpleNamespace(sha="c")
    )
    monkeypatch.setattr(HfApi, "auth_check", lambda *_, **__: None)
    assert hub.commit("dataset", "openai/gsm8k", "v1") == "c"
    assert asked == [(("openai/gsm8k",), {"repo_type": "dataset", "revision": "v1"})]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (answer(GatedRepoError, 401), DataUnavailable, "the dataset a/b is gated. Accept its terms .* HF_TOKEN"),
        (answer(RepositoryNotFoundError, 404), DataUnavailable, "the hub has no dataset a/b, or it is private"),
        (answer(RevisionNotFoundError, 404), DataUnavailable, "the dataset a/b has no revision v1"),
        (answer(HfHubHTTPError, 403), DataUnavailable, "the dataset a/b is unavailable .HfHubHTTPError."),
        (answer(HfHubHTTPError, 503), Incomplete, "the dataset a/b is unavailable .HfHubHTTPError."),
        (answer(HfHubHTTPError, 429), Incomplete, "the dataset a/b is unavailable"),
        (httpx2.ConnectError("refused"), Incomplete, "is unavailable .ConnectError.. Check HF_ENDPOINT"),
        (httpx2.ReadTimeout("slow"), Incomplete, "is unavailable .ReadTimeout."),
        (OfflineModeIsEnabled("off"), DataUnavailable, "is unavailable .OfflineModeIsEnabled.. .* HF_HUB_OFFLINE"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_unavailable_data_of_the_hub(monkeypatch, error, kind, words):
    monkeypatch.setattr(HfApi, "repo_info", raising(error))
    with pytest.raises(kind, match=words) as caught:
        hub.commit("dataset", "a/b", "v1")
    assert hub.out_of_reach(caught.value) == (kind is Incomplete)


def test_a_gated_repository_is_detected_although_its_commit_is_public(monkeypatch):
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace(sha="c"))
    monkeypatch.setattr(HfApi, "auth_check", raising(answer(GatedRepoError, 403)))
    with pytest.raises(DataUnavailable, match="is gated"):
        hub.commit("model", "a/b")


def test_a_name_that_is_none():
    with pytest.raises(DataUnavailable, match="the hub has no model a b/c"):
        hub.commit("model", "a b/c")


def test_out_of_reach_looks_through_what_a_library_makes_of_it():
    wrapped = DataUnavailable("the data of t is unavailable")
    wrapped.__cause__ = ValueError()
    assert not hub.out_of_reach(wrapped)
    wrapped.__cause__.__context__ = httpx2.ConnectError("refused")
    assert hub.out_of_reach(wrapped)
    assert not hub.out_of_reach(DataUnavailable("gated"))
    assert not hub.out_of_reach(None)


def test_paths_below_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert hub.below_cache(tmp_path / "datasets" / "x") == "datasets/x"
    with pytest.raises(BadInput, match=r"/elsewhere/x is outside HF_HOME .* Unset HF_DATASETS_CACHE"):
        hub.below_cache(Path("/elsewhere/x"))
