"""Which stages share a pod, and with it one load of the model.

Loading and compiling a model takes minutes, which many tasks do not. Stages whose engines have the same settings share
pods until the work of each is ``ENOUGH`` loads. What takes longer keeps a pod of its own and runs beside the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

ENOUGH = 6
"""Work of a pod, in loads of the model, from which loading takes less than 15 % of its time (1 of 7)."""


class EngineKey(NamedTuple):
    """In what the engines of a suite's stages on one checkpoint can differ."""

    profile: str
    dtype: str
    max_model_len: int | None
    reproducible: bool

    def __str__(self) -> str:
        mode = ", reproducible" if self.reproducible else ""
        return f"profile {self.profile}, dtype {self.dtype}, max_model_len {self.max_model_len or 'of the model'}{mode}"


class Candidate(NamedTuple):
    """A stage that loads the model."""

    title: str
    """The lm_eval task, or ``sample``."""
    engine: EngineKey | None
    """None: it loads the model with transformers, which shares nothing."""
    work: float | None
    """Expected seconds without loading; None if unknown."""
    load: float
    """Expected seconds of loading."""


class Packing(NamedTuple):
    """Which stages share a pod, and why."""

    packs: tuple[tuple[str, ...], ...] = ()
    """Titles of the stages of each shared pod, in the order in which they run."""
    why: Mapping[str, str] = {}
    """The reason for each stage, whether it shares a pod or not."""

    def pack_of(self, title: str) -> int | None:
        """Return the number of the pack that has a stage; None if it has a pod of its own."""
        return next((number for number, titles in enumerate(self.packs) if title in titles), None)


def packed(candidates: Sequence[Candidate]) -> Packing:
    """Return the packs. Each stage is in at most one of them, and two engines are never in the same."""
    why = {one.title: reason for one in candidates if (reason := _alone(one))}
    groups: dict[EngineKey, list[Candidate]] = {}
    for one in candidates:
        if one.engine and one.title not in why:
            groups.setdefault(one.engine, []).append(one)
    packs: list[tuple[str, ...]] = []
    for engine, members in groups.items():
        for pack in _distributed(members):
            titles = tuple(one.title for one in pack)
            if len(titles) > 1:
                packs.append(titles)
                why |= {title: f"shares a pod with {_others(titles, title)}" for title in titles}
            elif len(members) == 1:
                why[titles[0]] = f"a pod of its own: no other short stage has its engine settings ({engine})"
            else:
                why[titles[0]] = "a pod of its own: the other pods have enough work"
    return Packing(tuple(packs), why)


def _alone(one: Candidate) -> str | None:
    """Return why a stage can share no pod, whatever the others are; None if it can."""
    if one.engine is None:
        return "a pod of its own: the backend hf shares no model"
    if one.work is None:
        return "a pod of its own: its work is unknown until it has a record"
    if one.work >= ENOUGH * one.load:
        return f"a pod of its own: about {one.work / 60:.0f} min of work for {one.load / 60:.1f} min of loading"
    return None


def _distributed(members: Sequence[Candidate]) -> Iterable[list[Candidate]]:
    """Return the stages of each pod, in the order of ``members``.

    There are as many pods as have ``ENOUGH`` work on average. The longest stages are placed first, each into the pod
    with the least work, so that the pods end at about the same time.
    """
    load = max(one.load for one in members)
    count = max(1, int(sum(one.work or 0 for one in members) // (ENOUGH * load)))
    pods: list[list[Candidate]] = [[] for _ in range(min(count, len(members)))]
    for one in sorted(members, key=lambda one: -(one.work or 0)):
        min(pods, key=lambda pod: sum(other.work or 0 for other in pod)).append(one)
    order = [one.title for one in members]
    filled = [sorted(pod, key=lambda one: order.index(one.title)) for pod in pods if pod]
    return sorted(filled, key=lambda pod: order.index(pod[0].title))


def _others(titles: Sequence[str], own: str) -> str:
    return ", ".join(title for title in titles if title != own)
