"""A checkpoint's metadata change how it is asked, in the fingerprint and in the command of each stage."""

from __future__ import annotations

import pytest

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import SamplingSettings, TaskSettings
from halos_eval.errors import BadInput
from halos_eval.planning.chat import harness_of, sampling_of, scored_metadata
from halos_eval.planning.plan import make_plan
from tests.doubles import make_checkpoint

THINKS = Metadata(think_end_token="</t>", chat_template_args={"effort": "low"}, system_instruction="Think.")


def test_the_checkpoint_overrides_the_suite():
    suite = SamplingSettings(chat_template_args={"effort": "high", "other": 1}, system_instruction="Be brief.")
    found = sampling_of(suite, THINKS)
    assert found.chat_template_args == {"effort": "low", "other": 1}
    assert (found.system_instruction, found.mode) == ("Think.", "default")
    assert sampling_of(suite, Metadata()) == suite


def test_it_counts_only_with_the_chat_template():
    assert harness_of(TaskSettings(apply_chat_template=True), THINKS).mode == "default"
    assert harness_of(TaskSettings(), THINKS) == TaskSettings().harness()
    assert harness_of(TaskSettings(apply_chat_template=True, thinking="off"), THINKS).mode == "off"


def test_transformers_cannot_separate_the_thinking():
    found = harness_of(TaskSettings(apply_chat_template=True, backend="hf"), THINKS)
    assert (found.mode, found.system_instruction) == (None, "Think.")


def test_the_switch_is_the_suites_choice():
    with pytest.raises(ValueError, match="enable_thinking is the suite's choice"):
        Metadata(chat_template_args={"enable_thinking": True})


def test_digests_in_stores_stay_the_same():
    assert scored_metadata(Metadata(stop=("#",))) == [("#",)]
    assert scored_metadata(THINKS)[1] == THINKS.chat


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "{{ messages }}"}]}'),
    ],
)
def test_the_plan_rejects_what_the_template_does_not_know(suite, tmp_path, root, file, text):
    folder = make_checkpoint(tmp_path / "plain")
    (folder / file).write_text(text)
    own = suite("tasks: {demo_arithmetic: {apply_chat_template: true, thinking: on}}")
    with pytest.raises(BadInput, match="the chat template of plain cannot turn thinking on"):
        make_plan(own, Checkpoint(name="plain", location=str(folder)), root, load_cluster())


def test_planned(suite, tmp_path, root):
    folder = str(make_checkpoint(tmp_path / "thinks"))
    own = suite(
        "alpaca_eval: {prompts: demo, reference: demo, judge: demo}\n"
        "tasks: {demo_cloze: {}, demo_arithmetic: {apply_chat_template: true}}"
    )
    plans = [
        make_plan(own, Checkpoint(name="thinks", location=folder, metadata=metadata), root, load_cluster())
        for metadata in (Metadata(), THINKS)
    ]
    before, after = ({job.title: job for job in plan.jobs} for plan in plans)
    changed = {title for title in before if before[title].fingerprint != after[title].fingerprint}
    assert changed == {"sample", "judge", "demo_arithmetic"}
    for title in ("sample", "demo_arithmetic"):
        assert {"--think-end-token=</t>", "--system-instruction=Think."} <= set(after[title].argv)
    assert plans[0].metadata != plans[1].metadata
