"""Selections: every evaluation starts once, and those that do not start have a reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from halos_eval.checkpoints.registry import Checkpoint, Listing, Metadata, NotRegistered, in_interval
from halos_eval.config.cluster import load_cluster
from halos_eval.config.policy import EvaluationPolicy, Limit, Limits, Rule
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.planning.interrupted import write_note
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.planning.selection import Backfill, for_backfill, for_night, for_registration, look_back
from halos_eval.storage import layout
from halos_eval.storage.records import Usage
from tests.doubles import finish as finish_job
from tests.doubles import make_checkpoint, write_failure, write_safetensors

NOW = datetime(2026, 5, 10, 20, tzinfo=UTC)
POLICY = EvaluationPolicy(
    rules=(
        Rule(match="debug-*", suites=()),
        Rule(tags={"method": "kto"}, suites=("own", "demo")),
        Rule(match="*", suites=("own",)),
    )
)


class Registered:
    """A registry of checkpoints that a test sets."""

    def __init__(self, *checkpoints, skipped=None):
        self.checkpoints, self.skipped = list(checkpoints), skipped or {}

    def registered(self, start=None, end=None):
        return Listing([one for one in self.checkpoints if in_interval(one.registered, start, end)], self.skipped)

    def get(self, name):
        for one in self.checkpoints:
            if one.name == name:
                return one
        raise NotRegistered(f"there is no {name}")


class Unreadable(Registered):
    """A registry that cannot be read."""

    def registered(self, start=None, end=None):
        raise DataUnavailable("the registry is down")


@pytest.fixture
def suite(suite):
    suite("tasks: {demo_cloze: {}}")
    return suite


@pytest.fixture
def checkpoint(tmp_path, suite):
    """``checkpoint(name, days)`` makes a checkpoint that was registered that many days ago."""

    def checkpoint(name, days=0.5, **tags):
        folder = make_checkpoint(tmp_path / name / "FINAL")
        registered = NOW - timedelta(days=days)
        return Checkpoint(name=name, location=str(folder), registered=registered, metadata=Metadata(tags=tags))

    return checkpoint


def evaluate(root, checkpoint, finish=True, titles=None, **record):
    """Plan ``own``, then write records for all jobs (or those in ``titles``), or failure notes."""
    suite = load_suite("own")
    plan = make_plan(suite, checkpoint, root, load_cluster())
    save_plan(plan, suite, root)
    for job in plan.jobs:
        if titles and job.title not in titles:
            continue
        if finish:
            finish_job(job, **record)
        else:
            write_failure(layout.failure_beside(job.record))


def names(selection):
    return [(one.checkpoint, one.suite) for one in selection.evaluations]


def run_id(root, checkpoint):
    (one,) = night(root, checkpoint).evaluations
    return one.run_id


def never(run_id):
    """Return that no run exists."""
    return False


def night(root, *checkpoints, start=NOW - timedelta(days=1), **more):
    return for_night(Registered(*checkpoints, **more), POLICY, root, load_cluster(), never, start, NOW)


def backfill(root, registry, origin="origin", **asked):
    return for_backfill(registry, Backfill(suite="own", **asked), root, load_cluster(), never, origin)


def test_a_night_takes_the_checkpoints_of_its_interval_with_the_suites_of_the_policy(root, checkpoint):
    a, b, c, d = checkpoint("a"), checkpoint("b", method="kto"), checkpoint("debug-c"), checkpoint("d", days=2)
    late = checkpoint("late", days=0)
    found = night(root, a, b, c, d, late, skipped={"half": "it is incomplete"})
    assert names(found) == [("a", "own"), ("b", "own"), ("b", "demo")]
    assert found.left_out == {"half": "it is incomplete", "debug-c": "the policy file gives it no suite"}
    assert names(night(root, d, start=look_back(POLICY, NOW - timedelta(days=1)))) == [("d", "own")]


def test_a_night_and_an_event_give_a_run_the_same_name(root, checkpoint):
    a = checkpoint("team/a")
    (first,) = night(root, a).evaluations
    assert first.run_id.startswith("own__team__a__")
    assert (
        night(root, a).evaluations
        == for_registration(Registered(a), POLICY, root, load_cluster(), never, "team/a").evaluations
        == (first,)
    )


def test_another_registration_or_another_task_is_another_run(root, checkpoint, suite):
    a = checkpoint("a")
    later = a.model_copy(update={"registered": a.registered + timedelta(seconds=1)})
    seen = {run_id(root, a), run_id(root, later), run_id(root, a.model_copy(update={"revision": "b" * 40}))}
    suite("tasks: {demo_cloze: {}, demo_choice: {}}")
    seen.add(run_id(root, a))
    assert len(seen) == 4


def test_long_names_that_begin_alike_make_short_names_of_runs_that_differ(root, checkpoint):
    long = "/".join(["x" * 80] * 3)
    runs = {
        night(root, checkpoint("a").model_copy(update={"name": f"{long}{end}"})).evaluations[0].run_id for end in "ab"
    }
    assert len(runs) == 2
    assert max(map(len, runs)) < 200


def test_complete_evaluations_are_not_started_and_failed_ones_are(root, checkpoint):
    done, failed = checkpoint("done"), checkpoint("failed")
    evaluate(root, done)
    evaluate(root, failed, finish=False)
    found = night(root, done, failed)
    assert names(found) == [("failed", "own")]
    assert found.complete == ("done: own",)


def test_a_task_that_was_added_makes_it_incomplete(root, checkpoint, suite):
    done = checkpoint("done")
    evaluate(root, done)
    suite("tasks: {demo_cloze: {}, demo_choice: {}}")
    assert names(night(root, done)) == [("done", "own")]


def test_a_backfill_selects_by_pattern_tags_and_dates(root, checkpoint):
    shelf = Registered(
        checkpoint("llama-1", 30, method="kto"),
        checkpoint("llama-2", 20, method="dpo"),
        checkpoint("llama-3", 10, method="kto"),
        checkpoint("other", 10, method="kto"),
        skipped={"llama-4": "it is incomplete", "zephyr": "it is damaged"},
    )
    asked = Backfill.model_validate(
        {"suite": "own", "match": ["llama-*"], "tags": {"method": "k*"}, "registered_from": "2026-04-15"}
    )
    found = for_backfill(shelf, asked, root, load_cluster(), never, "origin")
    assert names(found) == [("llama-3", "own")]
    assert found.left_out == {"llama-4": "it is incomplete"}
    assert names(
        for_backfill(
            shelf, Backfill(suite="own", registered_until=NOW - timedelta(days=15)), root, load_cluster(), never, ""
        )
    ) == [
        ("llama-1", "own"),
        ("llama-2", "own"),
    ]


def test_each_backfill_has_runs_of_its_own(root, checkpoint):
    shelf = Registered(checkpoint("a"))
    runs = [backfill(root, shelf, origin).evaluations for origin in ("one", "two", "one")]
    assert runs[0] == runs[2] != runs[1]


def test_a_backfill_runs_everything_again_if_asked(root, checkpoint):
    done = checkpoint("done")
    evaluate(root, done)
    assert names(for_backfill(Registered(done), Backfill(suite="own"), root, load_cluster(), never, "")) == []
    assert names(
        for_backfill(Registered(done), Backfill(suite="own", only_missing=False), root, load_cluster(), never, "")
    ) == [("done", "own")]


def test_an_unknown_suite_is_bad_input(root, checkpoint):
    policy = EvaluationPolicy(rules=(Rule(suites=("nothing",)),))
    with pytest.raises(BadInput, match="nothing"):
        for_night(Registered(checkpoint("a")), policy, root, load_cluster(), never, None, None)
    with pytest.raises(BadInput, match="nothing"):
        for_backfill(Registered(), Backfill(suite="nothing"), root, load_cluster(), never, "")


def test_an_unavailable_registry_is_not_an_empty_night(root, suite):
    with pytest.raises(DataUnavailable):
        for_night(Unreadable(), POLICY, root, load_cluster(), never, None, None)


def test_an_event_of_an_unknown_checkpoint(root, suite):
    with pytest.raises(NotRegistered):
        for_registration(Registered(), POLICY, root, load_cluster(), never, "nobody")


def test_runs_that_exist_are_left_out_with_the_reason(root, checkpoint):
    a, b = checkpoint("a"), checkpoint("b")
    there = run_id(root, a)
    found = for_night(Registered(a, b), POLICY, root, load_cluster(), there.__eq__, None, NOW)
    assert names(found) == [("b", "own")]
    assert there in found.left_out["a: own"]


def test_a_night_starts_the_runs_that_fit_in_its_limit(root, checkpoint):
    usage = Usage(load_seconds=0, work_seconds=3600)
    evaluate(root, checkpoint("old", 5), usage=usage)
    limited = POLICY.model_copy(update={"limits": Limits(night=Limit(gpu_hours=2.5))})
    shelf = Registered(*(checkpoint(name) for name in "abc"))
    found = for_night(shelf, limited, root, load_cluster(), never, None, NOW)
    assert names(found) == [("a", "own"), ("b", "own")]
    assert "over the limit of 2.5" in found.left_out["c: own"]
    # Runs that exist do not count for this night's limit.
    found = for_night(shelf, limited, root, load_cluster(), run_id(root, shelf.get("a")).__eq__, None, NOW)
    assert names(found) == [("b", "own"), ("c", "own")]


def test_only_missing_parts_count_for_the_limit(root, checkpoint, suite):
    usage = Usage(load_seconds=0, work_seconds=3600)
    suite("tasks: {demo_cloze: {}, demo_choice: {}}")
    evaluate(root, checkpoint("old", 5), usage=usage)
    half = checkpoint("half")
    evaluate(root, half, titles=("demo_cloze",), usage=usage)
    for hours, wanted in ((1, [("half", "own")]), (0.9, [])):
        limited = POLICY.model_copy(update={"limits": Limits(night=Limit(gpu_hours=hours))})
        assert names(for_night(Registered(half), limited, root, load_cluster(), never, None, NOW)) == wanted


def test_new_tools_start_no_evaluation_but_a_backfill_brings_all_into_the_new_series(root, checkpoint, monkeypatch):
    done, failed = checkpoint("done"), checkpoint("failed")
    evaluate(root, done)
    evaluate(root, failed, finish=False)
    before = run_id(root, failed)
    monkeypatch.setattr("halos_eval.stages.tools.pinned", lambda package: "9.9")
    assert names(night(root, done)) == []
    assert run_id(root, failed) == before
    assert names(backfill(root, Registered(done))) == [("done", "own")]


def test_weights_that_were_saved_again_are_another_run(root, checkpoint, tmp_path):
    one = checkpoint("a")
    evaluate(root, one)
    assert names(night(root, one)) == []
    write_safetensors(tmp_path / "a" / "FINAL" / "model.safetensors", b"other   ")
    (again,) = night(root, one).evaluations
    assert again.run_id != run_id(root, checkpoint("a").model_copy(update={"name": "b"}))


def test_the_name_of_a_run_does_not_change_while_it_runs(root, checkpoint):
    one = checkpoint("a")
    before = run_id(root, one)
    evaluate(root, one, finish=False)
    assert run_id(root, one) == before


def test_what_the_infrastructure_ended_is_started_again_once(root, checkpoint, suite):
    """A night starts it again, under a name that the next nights know, and only what the infrastructure ended."""
    suite("tasks: {demo_cloze: {}, demo_choice: {}}")
    one = checkpoint("a")
    evaluate(root, one, finish=False)
    runs = [run_id(root, one)]

    def next_night():
        return for_night(Registered(one), POLICY, root, load_cluster(), runs.__contains__, None, NOW)

    assert next_night().evaluations == ()  # a failure of the evaluation waits for a change
    for parts in (("demo_choice",), ("demo_cloze", "demo_choice")):
        for part in parts:
            write_note(root, "own", "a", part, runs[-1], "Evicted 30 times")
        (again,) = next_night().evaluations
        assert again.parts == parts
        assert again.run_id not in runs
        runs.append(again.run_id)
        found = next_night()
        assert found.evaluations == ()
        assert again.run_id in found.left_out["a: own"]


def test_if_data_was_not_fetched_every_part_is_started_again(root, checkpoint):
    one = checkpoint("a")
    first = run_id(root, one)
    write_note(root, "own", "a", "fetch", first, "ImageNotPulled 30 times")
    (again,) = for_night(Registered(one), POLICY, root, load_cluster(), first.__eq__, None, NOW).evaluations
    assert again.parts == ()


def test_what_is_complete_is_not_started_again(root, checkpoint):
    one = checkpoint("a")
    first = run_id(root, one)
    write_note(root, "own", "a", "demo_cloze", first, "Evicted 30 times")
    evaluate(root, one)
    found = for_night(Registered(one), POLICY, root, load_cluster(), first.__eq__, None, NOW)
    assert found.complete == ("a: own",)
