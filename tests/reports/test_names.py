"""Names of models: which mean the same, and the shortest that are distinct."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.reports.names import Known, candidates, clean, distinct, match

MODELS = {
    "a": Known("kto", "/x/kto/FINAL"),
    "b": Known("dpo", "/x/dpo"),
    "c": Known("team/sft", "s3://bucket/sft"),
    "d": Known("expA/step-1000", "/runs/expA/step-1000"),
    "e": Known("expB/step-1000", "/runs/expB/step-1000"),
    "f": Known("old/orpo", "/old/orpo"),
    "g": Known("new/orpo", "/new/orpo"),
}


@pytest.mark.parametrize(
    ("given_name", "key"),
    [
        ("/x/kto/FINAL", "a"),
        ("/x/kto/", "a"),
        ("/elsewhere/kto/FINAL", "a"),
        ("kto", "a"),
        ("./x/dpo", "b"),
        ("sft", "c"),
        ("team/sft", "c"),
        ("s3://bucket/sft/", "c"),
        ("expA/step-1000", "d"),
        ("/mnt/expB/step-1000/FINAL", "e"),
        ("/new/orpo", "g"),
        # unknown, or more than one
        ("step-1000", None),
        ("/mnt/expC/step-1000", None),
        ("orpo", None),
        ("/mnt/orpo", None),
        ("other", None),
        ("", None),
        ("/", None),
    ],
)
def test_the_model_that_a_generator_names(given_name, key):
    assert match(given_name, MODELS) == key


@pytest.mark.parametrize(("location", "same"), [("/a//b/./c/", "/a/b/c"), ("a/b", "a/b"), ("/a/FINAL", "/a/FINAL")])
def test_spellings_of_a_location(location, same):
    assert clean(location) == same


def test_names_are_as_short_as_they_can_be():
    names = {
        "a": candidates("step-1", "/runs/expA/step-1"),
        "b": candidates("step-1", "/runs/expB/step-1/FINAL"),
        "c": candidates("kto", "/runs/kto/FINAL"),
        "d": candidates("mine", "/runs/x"),
        "e": candidates("mine", "/runs/y"),
        "f": candidates("z", "/z"),
        "g": candidates("z", "/z/FINAL"),
    }
    assert distinct(names) == {
        "a": "expA/step-1",
        "b": "expB/step-1",
        "c": "kto",
        "d": "mine (x)",
        "e": "mine (y)",
        "f": "/z",
        "g": "/z/FINAL",
    }


PARTS = st.lists(st.sampled_from(["a", "b", "FINAL", "step-1"]), min_size=0, max_size=4)
LOCATIONS = st.builds(lambda root, parts: root + "/".join(parts), st.sampled_from(["", "/"]), PARTS).map(clean)


@given(locations=st.lists(LOCATIONS, min_size=1, max_size=6, unique=True), data=st.data())
def test_different_locations_have_different_names_in_any_order(locations, data):
    short = {one: data.draw(st.sampled_from(["kto", one.split("/")[-1] or one])) for one in locations}
    names = {one: candidates(short[one], one) for one in locations}
    found = distinct(names)
    assert len(set(found.values())) == len(locations)
    assert distinct({one: names[one] for one in data.draw(st.permutations(locations))}) == found
