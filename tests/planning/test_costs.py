"""Cost estimates: from records, unknown without history, and compared with a limit."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.policy import Limit
from halos_eval.config.suite import load_suite
from halos_eval.errors import StoreError
from halos_eval.planning import costs
from halos_eval.planning.costs import Cost, History, excess, read_history, within
from halos_eval.planning.plan import make_plan, read_plan, save_plan
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Item
from halos_eval.storage.records import Usage, write_model
from tests.doubles import make_checkpoint, make_manifest, make_provenance, make_record

SUITE = """
packing: none
alpaca_eval: {prompts: demo, reference: demo, judge: gpt-4.1}
tasks: {demo_choice: {num_fewshot: 0}, demo_cloze: {profile: large}}
"""
CLUSTER = """
pools: {gpu: 8, judge: 1}
profiles: {default: {gpus: 1}, large: {gpus: 4}, small: {gpus: 0}}
"""
HOUR = Usage(load_seconds=600, work_seconds=3000, resumed=0)
PAID = Usage(load_seconds=1, work_seconds=9, prompt_tokens=100, completion_tokens=10, price_usd=4.1)
NEW = Checkpoint(name="new", location="/new")


@pytest.fixture
def suite(suite, tmp_path, monkeypatch):
    """The suite ``own``, on a cluster with a large and a small profile."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))

    def write(text=SUITE):
        return suite(text)

    write()
    return write


@pytest.fixture
def plan_of(root, tmp_path, suite):
    """``plan_of(name)`` plans ``own`` on a checkpoint."""

    def plan_of(name="new", profile=None, judge=None):
        folder = make_checkpoint(tmp_path / "checkpoints" / name)
        checkpoint = Checkpoint(name=name, location=str(folder), metadata=Metadata(profile=profile))
        return make_plan(load_suite("own"), checkpoint, root, load_cluster(), judge=judge)

    return plan_of


@pytest.fixture
def evaluated(root, plan_of):
    """``evaluated(name)`` plans ``own`` on a checkpoint and writes the records of its jobs, with their usage."""

    def evaluated(name, *, profile=None, judge=None, parts=1, sample=HOUR, judge_usage=PAID):
        plan = plan_of(name, profile, judge)
        save_plan(plan, load_suite("own"), root)
        made = make_provenance(outputs_sha256="o")
        for job in plan.jobs:
            usage = {"sample": sample, "judge": judge_usage}.get(job.title, HOUR)
            config = {"tensor_parallel_size": 4 if job.gpus == 4 else parts}
            provenance = made.model_copy(update={"config": config})
            record = make_record(job.stage, job.task, usage=usage, provenance=provenance, files={"o.json": "o"})
            write_model(job.record, record)
        return plan

    return evaluated


def history(root):
    return read_history(load_suite("own"), root)


def test_a_suite_that_has_never_run(root, plan_of):
    assert history(root) == ({}, {}, ({}, {}), {})
    cost = history(root).of_plan(plan_of())
    assert cost == Cost(pods=4, unknown=("sample", "judge", "demo_choice", "demo_cloze"))
    assert str(cost) == (
        "4 pods, at least 0.00 GPU-hours and 0.00 USD for the judge; "
        "no history for: sample, judge, demo_choice, demo_cloze"
    )


def test_missing_jobs_cost_what_earlier_ones_cost(root, evaluated, plan_of):
    done = evaluated("kto")
    cost = history(root).of_plan(plan_of())
    assert cost == Cost(pods=4, gpu_hours=1 + 1 + 4, judge_dollars=4.1)
    assert str(cost) == "4 pods, 6.00 GPU-hours and 4.10 USD for the judge"
    filesystem.delete(next(job.record for job in done.jobs if job.title == "demo_choice"))
    assert history(root).of_plan(plan_of("kto")) == Cost(pods=1, unknown=("demo_choice",))
    assert str(Cost(pods=1)).startswith("1 pod, ")


def test_a_task_that_executes_code_has_a_second_pod_without_gpus(root, suite, evaluated, plan_of):
    suite("tasks: {demo_choice: {confirm_unsafe_code: true}, demo_cloze: {}}")
    done = evaluated("kto")
    assert history(root).of_plan(plan_of()) == Cost(pods=3, gpu_hours=2)
    assert history(root).of_suite(load_suite("own"), NEW, ["demo_choice"]) == Cost(pods=2, gpu_hours=1)
    # With its answers there, only the second one is left.
    code = next(job for job in done.jobs if job.title == "demo_choice")
    filesystem.delete(code.record)
    write_model(code.record.replace("record.json", "generated.json"), make_record("harness", "demo_choice"))
    assert history(root).of_plan(plan_of("kto")) == Cost(pods=1)


def test_the_median_counts(root, evaluated):
    for name, hours in (("a", 1), ("b", 2), ("c", 30)):
        evaluated(
            name,
            sample=Usage(load_seconds=0, work_seconds=hours * 3600),
            judge_usage=PAID.model_copy(update={"price_usd": hours}),
        )
    found = history(root)
    assert (found.gpu_hours["sample", "default"], found.judge_dollars) == (2, {"gpt-4.1": 2})


def test_each_profile_has_its_own(root, evaluated, suite):
    evaluated("kto")
    evaluated("kto-70b", profile="large")
    found = history(root)
    assert found.gpu_hours == {
        ("sample", "default"): 1, ("demo_choice", "default"): 1, ("demo_cloze", "large"): 4,
        ("sample", "large"): 4, ("demo_choice", "large"): 4,
    }  # fmt: skip
    large = NEW.model_copy(update={"metadata": Metadata(profile="large")})
    small = NEW.model_copy(update={"metadata": Metadata(profile="small")})
    own = suite()
    assert found.of_suite(own, NEW, own.parts) == Cost(pods=4, gpu_hours=6, judge_dollars=4.1)
    assert found.of_suite(own, large, own.parts).gpu_hours == 12
    assert found.of_suite(own, small, own.tasks).unknown == ("demo_choice", "demo_cloze")


def test_the_estimate_is_the_same_before_and_after_the_plan(root, evaluated, plan_of, suite):
    evaluated("kto")
    for profile in (None, "large", "small"):
        checkpoint = NEW.model_copy(update={"metadata": Metadata(profile=profile)})
        expected = history(root).of_plan(plan_of(profile=profile))
        assert history(root).of_suite(suite(), checkpoint, suite().parts) == expected
    assert history(root).of_suite(suite(), NEW, ["demo_cloze"]) == Cost(pods=1, gpu_hours=4)


def test_a_profile_without_gpus_costs_no_gpu_hours(root, evaluated):
    evaluated("kto", profile="small")
    assert history(root).gpu_hours["sample", "small"] == 0


@pytest.mark.parametrize(("resumed", "hours"), [(None, 1), (0, 1), (0.5, (600 + 6000) / 3600), (0.51, None), (1, None)])
def test_the_time_of_a_resumed_run_is_scaled_up(root, evaluated, resumed, hours):
    evaluated("kto", sample=HOUR.model_copy(update={"resumed": resumed}))
    assert history(root).gpu_hours.get(("sample", "default")) == pytest.approx(hours)


def test_a_run_on_another_number_of_gpus_does_not_count(root, evaluated):
    evaluated("kto", parts=2)
    assert history(root).gpu_hours == {("demo_cloze", "large"): 4}


def test_each_judge_has_its_own_price(root, evaluated, plan_of, suite):
    evaluated("kto")
    assert history(root).of_plan(plan_of(judge="gpt-4.1-mini")).unknown == ("judge",)
    evaluated("dpo", judge="gpt-4.1-mini")
    assert history(root).judge_dollars == {"gpt-4.1": 4.1, "gpt-4.1-mini": 4.1}


@pytest.mark.parametrize(
    ("dollars", "shares"),
    [
        ({"gpt-4.1": 6.0, "gpt-4.1-mini": 2.0}, [3, 1]),
        ({"gpt-4.1": 6.0, "gpt-4.1-mini": 0.0}, [4, 0]),
        ({"gpt-4.1": 6.0}, [2, 2]),  # no history for one
        ({"gpt-4.1": 6.0, "gpt-4.1-mini": None}, [2, 2]),
        ({"gpt-4.1": 0.0, "gpt-4.1-mini": 0.0}, [2, 2]),
    ],
)
def test_several_judges_share_a_limit(plan_of, suite, dollars, shares):
    suite("alpaca_eval: {prompts: demo, reference: demo, judge: [gpt-4.1, gpt-4.1-mini]}")
    jobs = [job for job in plan_of().jobs if job.stage == "judge"]
    assert History({}, dollars).shares(jobs, 4.0) == shares


def test_without_judges_nothing_is_shared():
    assert History({}, {}).shares([], 4.0) == []


@pytest.mark.parametrize(
    "usage",
    [
        PAID.model_copy(update={"price_usd": None}),  # no price list
        PAID.model_copy(update={"price_usd": 0, "prompt_tokens": 0, "completion_tokens": 0}),  # tokens not counted
        PAID.model_copy(update={"price_usd": 0, "prompt_tokens": None}),
    ],
)
def test_a_judge_without_a_price_is_not_free(root, evaluated, plan_of, suite, usage):
    evaluated("kto", judge_usage=usage)
    assert history(root).judge_dollars == {"gpt-4.1": None}
    for cost in (history(root).of_plan(plan_of()), history(root).of_suite(suite(), NEW, suite().parts)):
        assert cost == Cost(pods=4, gpu_hours=6, unknown=("judge (no price)",))
    evaluated("dpo")
    assert history(root).judge_dollars == {"gpt-4.1": 4.1}


def test_a_judge_that_is_free_is_free(root, evaluated, plan_of):
    evaluated("kto", judge_usage=PAID.model_copy(update={"price_usd": 0}))
    assert history(root).of_plan(plan_of()) == Cost(pods=4, gpu_hours=6)


def test_records_of_other_settings_do_not_count(root, evaluated, plan_of, suite):
    evaluated("kto")
    suite(SUITE.replace("num_fewshot: 0", "limit: 10"))
    assert history(root).of_plan(plan_of()) == Cost(pods=4, gpu_hours=5, judge_dollars=4.1, unknown=("demo_choice",))


@pytest.fixture
def more_prompts(tmp_path):
    """A suite with other prompts, in a file."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([{"instruction": f"Count to {number}."} for number in range(5000)]))
    return SUITE.replace("prompts: demo", f"prompts: {file}")


def test_records_of_other_prompts_do_not_count(root, evaluated, plan_of, suite, more_prompts):
    evaluated("kto")
    own = suite(more_prompts)
    without = Cost(pods=4, gpu_hours=5, unknown=("sample", "judge"))
    assert history(root).of_plan(plan_of()) == history(root).of_suite(own, NEW, own.parts) == without
    more = PAID.model_copy(update={"price_usd": 1700.0})
    evaluated("dpo", sample=HOUR.model_copy(update={"work_seconds": 10200}), judge_usage=more)
    assert history(root).of_plan(plan_of()) == Cost(pods=4, gpu_hours=8, judge_dollars=1700)


def test_a_trial_of_an_earlier_plan_does_not_count_for_other_prompts(root, evaluated, suite, more_prompts):
    evaluated("kto", judge="gpt-4.1-mini")
    suite(more_prompts)
    evaluated("kto")
    assert [str(one.judge) for one in read_plan(layout.plan_url(root, "own", "kto")).trials] == ["gpt-4.1-mini"]
    assert history(root).judge_dollars == {"gpt-4.1": 4.1}


def test_a_judges_records_count_only_for_outputs_that_are_sampled_as_now(root, evaluated, plan_of, suite):
    evaluated("kto")
    suite(SUITE.replace("judge: gpt-4.1", "judge: gpt-4.1, sampling: {max_tokens: 9}"))
    assert history(root).of_plan(plan_of()).unknown == ("sample", "judge")


def test_prompts_of_the_hub_are_compared_by_the_manifest_or_the_plan(root, evaluated, suite, tmp_path):
    evaluated("kto")
    own = suite(SUITE.replace("prompts: demo", "prompts: alpaca_eval"))
    file = Item(
        kind="file", asked="alpaca_eval.json", repo="a/b", revision="c", bytes=1, needed_by=("alpaca_eval",), path="f",
        digest="d",
    )  # fmt: skip
    manifest = make_manifest(own, items=[file])
    checkpoint = Checkpoint(name="new", location=str(make_checkpoint(tmp_path / "checkpoints" / "new")))
    plan = make_plan(own, checkpoint, root, load_cluster(), manifest=manifest)
    assert read_history(own, root, plan).of_plan(plan).unknown == ("sample", "judge")
    write_model(layout.manifest_url(root, "own"), manifest)
    assert read_history(own, root).of_suite(own, NEW, own.parts).unknown == ("sample", "judge")
    filesystem.write_bytes(layout.manifest_url(root, "own"), b"{")
    assert read_history(own, root).judge_dollars == {"gpt-4.1": 4.1}  # damaged: not compared, the plan will say so


def test_prompts_that_cannot_be_read_are_left_to_the_plan(root, evaluated, suite, caplog):
    evaluated("kto")
    suite(SUITE.replace("prompts: demo", "prompts: /nowhere.json"))
    assert history(root).judge_dollars == {"gpt-4.1": 4.1}
    assert "the estimate is not for these prompts: prompts /nowhere.json: No such file" in caplog.text


def test_unreadable_records_and_plans_are_excluded(root, evaluated, plan_of, caplog):
    damaged = evaluated("kto")
    evaluated("dpo")
    filesystem.write_bytes(damaged.jobs[0].record, b"{")
    filesystem.write_bytes(layout.plan_url(root, "own", "orpo"), b"{")
    assert history(root).of_plan(plan_of()) == Cost(pods=4, gpu_hours=6, judge_dollars=4.1)
    assert caplog.text.count("excluded from the estimate: ") == 2


def test_an_outage_of_the_store_is_no_missing_history(root, evaluated, monkeypatch):
    evaluated("kto")
    read = filesystem.read_bytes

    def fail(url):
        if "/runs/" in url:
            raise StoreError(f"{url}: unreachable")
        return read(url)

    monkeypatch.setattr(filesystem, "read_bytes", fail)
    monkeypatch.setattr(filesystem, "read_many", lambda urls: {url: fail(url) for url in urls})
    with pytest.raises(StoreError, match="unreachable"):
        history(root)


def test_plans_without_records_do_not_hide_those_with_records(root, evaluated, plan_of, tmp_path, monkeypatch):
    evaluated("kto")
    plans = tmp_path / "store" / "plans" / "own"
    os.utime(plans / "kto.json", (1e9, 1e9))
    text = (plans / "kto.json").read_text().replace("/runs/kto/", "/runs/waiting/")
    for number in range(3 * costs.READERS):
        (plans / f"waiting-{number}.json").write_text(text)
    assert history(root).gpu_hours["sample", "default"] == 1
    monkeypatch.setattr(costs, "MOST", 3 * costs.READERS)
    assert history(root).gpu_hours == {}


def test_no_more_is_read_than_is_needed(root, evaluated, tmp_path, monkeypatch):
    evaluated("kto")
    plans = tmp_path / "store" / "plans" / "own"
    for number in range(100):
        (plans / f"again-{number}.json").write_text((plans / "kto.json").read_text())
    read = []
    real = filesystem.read_bytes
    monkeypatch.setattr(filesystem, "read_bytes", lambda url: read.append(url) or real(url))
    history(root)
    most = 2 * costs.READERS  # two rounds, 20 being more than 16
    assert sum("/plans/" in url for url in read) == most
    assert len(read) == 5 * most


@given(
    st.lists(
        st.builds(
            Cost,
            pods=st.integers(0, 9),
            gpu_hours=st.floats(0, 50),
            judge_dollars=st.floats(0, 50),
            unknown=st.lists(st.sampled_from("abc"), unique=True).map(tuple),
        )
    ),
    st.builds(Limit, gpu_hours=st.none() | st.floats(0, 100), judge_dollars=st.none() | st.floats(0, 100)),
)
def test_a_night_never_exceeds_its_limit_and_keeps_the_order(items, limit):
    kept, left_out = within(enumerate(items), limit)
    total = sum((items[number] for number in kept), Cost())
    assert limit.gpu_hours is None or total.gpu_hours <= limit.gpu_hours
    assert limit.judge_dollars is None or total.judge_dollars <= limit.judge_dollars
    assert kept == sorted(kept)
    assert sorted([*kept, *(number for number, _ in left_out)]) == list(range(len(items)))
    for number, why in left_out:  # it did not fit when its turn came
        before = sum((items[one] for one in kept if one < number), Cost())
        assert excess(before + items[number], limit)
        assert why.startswith("too large for any night") == bool(excess(items[number], limit))


def test_a_run_that_does_not_fit_does_not_block_smaller_ones():
    hours = {"first": 3, "too large": 11, "large": 8, "small": 7}
    kept, left_out = within([(name, Cost(gpu_hours=one)) for name, one in hours.items()], Limit(gpu_hours=10))
    assert kept == ["first", "small"]
    assert dict(left_out) == {
        "too large": "too large for any night: 11.00 GPU-hours, 1.00 over the limit of 10. Raise limits.night in the "
        "policy file",
        "large": "left for the next night: with the runs before it, 11.00 GPU-hours, 1.00 over the limit of 10",
    }


def test_an_excess_names_the_amounts_and_the_remedy():
    cost = Cost(gpu_hours=2.5, judge_dollars=4.1, unknown=("bbh",))
    assert excess(cost, Limit()) is None
    assert excess(cost, Limit(gpu_hours=2.5, judge_dollars=4.1)) is None
    assert excess(Cost(pods=9, unknown=("bbh",)), Limit(gpu_hours=0, judge_dollars=0)) is None
    assert excess(cost, Limit(gpu_hours=1, judge_dollars=4)) == (
        "estimated cost: 2.50 GPU-hours, 1.50 over the limit of 1 and 4.10 USD for the judge, 0.10 over the limit of "
        "4. Select fewer parts of the suite, or raise limits.run in the policy file (HALOS_EVAL_POLICY)"
    )


def test_costs_add_up():
    one = Cost(pods=1, gpu_hours=1.5, judge_dollars=2, unknown=("a", "b"))
    assert one + Cost(pods=2, gpu_hours=1, unknown=("b", "c")) == Cost(
        pods=3, gpu_hours=2.5, judge_dollars=2, unknown=("a", "b", "c")
    )
