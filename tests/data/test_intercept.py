"""Interception of lm_eval's requests: whoever imported the function, and with one key for equal requests."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.data.intercept import answered_by, on_hub, request

OPTIONS = st.dictionaries(st.sampled_from(["data_dir", "data_files", "revision", "split_by"]), st.none() | st.text())
MEANS = st.dictionaries(st.sampled_from(["cache_dir", "download_mode", "token"]), st.text())


@given(OPTIONS, MEANS)
def test_a_request_names_what_is_asked_for_and_not_the_means(options, means):
    given = {key: value for key, value in options.items() if value is not None}
    assert request("a/b", "c", {**means, **options}) == request("a/b", "c", dict(reversed(given.items())))


def test_other_requests_have_other_names():
    asked = [("a/b", None, {}), ("a/b", "c", {}), ("a/c", "c", {}), ("a/b", "c", {"data_files": {"test": "x"}})]
    assert len({request(*one) for one in asked}) == len(asked)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for the three libraries, which the test environment has not."""

    def module(name, **content):
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    load = module("datasets.load", load_dataset_builder=lambda *_, **__: "hub")
    loading = module("evaluate.loading", evaluation_module_factory=lambda *_, **__: "hub")
    module("datasets", load=load)
    module("evaluate", loading=loading)
    module("datasets.packaged_modules", _PACKAGED_DATASETS_MODULES={"json": 1})
    return load, loading, module("nltk", download=lambda *_, **__: False)


def test_the_source_answers_until_the_end_however_it_ends(libraries):
    load, loading, nltk = libraries
    before = load.load_dataset_builder, loading.evaluation_module_factory, nltk.download
    source = SimpleNamespace(
        dataset=lambda build, *asked: (build, *asked),
        metric=lambda find, *asked: (find, *asked),
        nltk=lambda download, package: (download, package),
    )

    def ask():
        with answered_by(source):
            assert load.load_dataset_builder(path="a/b", name="c", revision="d") == (
                before[0], "a/b", "c", {"revision": "d"},
            )  # fmt: skip
            assert loading.evaluation_module_factory("code_eval", module_type=None) == (
                before[1], "code_eval", {"module_type": None},
            )  # fmt: skip
            assert nltk.download("punkt_tab", quiet=True) == (before[2], "punkt_tab")
            raise KeyError

    with pytest.raises(KeyError):
        ask()
    assert (load.load_dataset_builder, loading.evaluation_module_factory, nltk.download) == before


@pytest.mark.usefixtures("libraries")
def test_formats_and_folders_are_not_on_the_hub(tmp_path):
    assert on_hub("openai/gsm8k")
    assert not on_hub("json")
    assert not on_hub(str(tmp_path))
