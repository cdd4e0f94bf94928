"""Which names mean the same model, and the shortest names that tell models apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from halos_eval.checkpoints.weights import short_name

Key = TypeVar("Key", bound=Hashable)
# A folder of a training run, which says nothing without the folder above it.
_STEP = re.compile(
    r"(?:[a-z_]*(?:checkpoint|ckpt|step|epoch|iter)[a-z]*[-_.=]?)?\d+|best|last|latest|final|model", re.I
)


class Known(NamedTuple):
    """A model that records or logs name in full."""

    name: str
    location: str


@lru_cache(10_000)  # each generator is compared with all models
def parts(location: str) -> tuple[str, ...]:
    """Return the parts of a path, URL or repository, without a FINAL at its end."""
    found = [part for part in location.split("/") if part not in {"", "."}]
    while len(found) > 1 and found[-1] == "FINAL":
        found.pop()
    return tuple(found)


@lru_cache(10_000)
def clean(location: str) -> str:
    """Return one spelling for all spellings of a location, such as those with and without a slash at the end."""
    root = "/" if location.startswith("/") else ""
    return root + "/".join(part for part in location.split("/") if part not in {"", "."})


def match(given: str, models: Mapping[Key, Known]) -> Key | None:
    """Return the one model that ``given`` names, or None if no model or more than one is meant.

    A generator of outputs is the location or the name of its model, or a path on another machine. Then the last parts
    are compared, and for a training step (checkpoint-500) the folder above it too.
    """
    for exact in (
        [key for key, (name, location) in models.items() if given == name or clean(given) == clean(location)],
        [key for key, (_, location) in models.items() if parts(given) == parts(location)],
    ):
        if exact:
            return exact[0] if len(exact) == 1 else None
    depth = 2 if _STEP.fullmatch(short_name(given)) else 1
    tail = parts(given)[-depth:]
    alike = [key for key, one in models.items() if tail in (parts(one.name)[-depth:], parts(one.location)[-depth:])]
    return alike[0] if len(alike) == 1 and len(tail) == depth else None


def candidates(name: str, location: str) -> list[str]:
    """Return the names of a model from short to long; the last has the whole location."""
    folders = parts(location) or (location,)
    tails = ["/".join(folders[-depth:]) for depth in range(1, len(folders) + 1)]
    tails += [location] if location != tails[-1] else []
    if name in tails:
        return tails[tails.index(name) :]
    return [name, *(f"{name} ({tail})" for tail in tails)]


def distinct(names: Mapping[Key, Sequence[str]]) -> dict[Key, str]:
    """Return the shortest distinct name of each model, from its `candidates`. Models with one name all get longer ones.

    The order of the models does not matter.
    """
    lengths = dict.fromkeys(names, 0)
    while True:
        chosen = {key: names[key][length] for key, length in lengths.items()}
        count = Counter(chosen.values())
        longer = [key for key, name in chosen.items() if count[name] > 1 and lengths[key] + 1 < len(names[key])]
        if not longer:
            return chosen
        for key in longer:
            lengths[key] += 1
