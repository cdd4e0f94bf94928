"""The place of a checkpoint's tokenizer, without transformers."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.stages.tokenizer import load_tokenizer
from tests.doubles import make_adapter, make_checkpoint


@pytest.fixture
def transformers(monkeypatch):
    """Returns where a tokenizer was read from, or raises ``error``."""
    found = SimpleNamespace(error=None)

    def from_pretrained(model, revision, trust_remote_code):
        assert trust_remote_code is False
        if found.error:
            raise found.error
        return model, revision

    found.AutoTokenizer = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", found)
    return found


@pytest.mark.usefixtures("transformers")
def test_where_it_is(tmp_path):
    base = make_checkpoint(tmp_path / "base")
    with_own = make_adapter(tmp_path / "own", base)
    (with_own / "tokenizer_config.json").write_text("{}")
    assert load_tokenizer(str(base)) == (str(base), "main")
    assert load_tokenizer(str(with_own)) == (str(with_own), "main")
    assert load_tokenizer(str(make_adapter(tmp_path / "none", base))) == (str(base), "main")
    assert load_tokenizer(str(make_adapter(tmp_path / "hub", "org/base", revision="v1"))) == ("org/base", "v1")
    assert load_tokenizer("org/model", "v2") == ("org/model", "v2")


def test_a_folder_without_a_tokenizer(transformers, tmp_path):
    transformers.error = OSError("no tokenizer.json")
    with pytest.raises(BadInput, match=r"has no usable tokenizer .*Save the tokenizer"):
        load_tokenizer(str(make_checkpoint(tmp_path / "base")))


def test_a_repository_that_is_not_there(transformers):
    transformers.error = OSError("404")
    with pytest.raises(DataUnavailable, match=r"org/none is unavailable .*HF_ENDPOINT"):
        load_tokenizer("org/none")
    with pytest.raises(BadInput, match="neither a folder nor a hub repository"):
        load_tokenizer("nowhere")
