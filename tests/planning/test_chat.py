"""A checkpoint's metadata change how it is asked, in the fingerprint and in the command of each stage."""

from __future__ import annotations

import pytest

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import SamplingSettings, TaskSettings
from halos_eval.errors import BadInput
from halos_eval.planning.chat import harness_of, sampling_of, scored_metadata
from halos_eval.planning.plan import make_plan
from tests.doubles import make_adapter, make_checkpoint

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


CHAT = (
    "alpaca_eval: {prompts: demo, reference: demo, judge: demo}\n"
    "tasks: {demo_cloze: {}, demo_arithmetic: {apply_chat_template: true}}"
)


@pytest.fixture
def unavailable(suite, root):
    """``unavailable(folder, **metadata)`` plans a suite on a checkpoint, and returns the parts without a job."""

    def planned(folder, **metadata):
        checkpoint = Checkpoint(name="kto", location=str(folder), metadata=Metadata(**metadata))
        plan = make_plan(suite(CHAT), checkpoint, root, load_cluster())
        assert not {job.part for job in plan.jobs} & plan.unavailable.keys()
        assert "demo_cloze" in {job.part for job in plan.jobs}  # plain text needs no template
        return plan.unavailable

    return planned


def saved(folder, tokenizer="{}", **files):
    """A checkpoint with this tokenizer_config.json."""
    make_checkpoint(folder, tokenizer_config_json=tokenizer)
    for name, text in files.items():
        (folder / name.replace("_jinja", ".jinja")).write_text(text)
    return folder


def test_what_needs_a_chat_template_is_not_planned_without_one(unavailable, tmp_path):
    found = unavailable(saved(tmp_path / "base"))
    assert found.keys() == {"alpaca_eval", "demo_arithmetic"}
    assert found["alpaca_eval"].startswith("kto has no chat template; it may be a base model. Set chat_template in")
    assert unavailable(saved(tmp_path / "base"), chat_template="chatml") == {}


@pytest.mark.parametrize(
    "template",
    ["", "[]", "{}", '[{"name": "rag", "template": "x"}]', '{"rag": "x"}', '["x"]', "1"],
)
def test_templates_that_are_none_for_a_conversation(unavailable, tmp_path, template):
    document = f'{{"chat_template": {template or "null"}}}'
    assert unavailable(saved(tmp_path / "base", document)).keys() == {"alpaca_eval", "demo_arithmetic"}


@pytest.mark.parametrize(
    "template",
    ['"x"', '[{"name": "rag", "template": "y"}, {"name": "default", "template": "x"}]', '{"default": "x"}'],
)
def test_templates_in_the_tokenizers_configuration(unavailable, tmp_path, template):
    assert unavailable(saved(tmp_path / "chat", f'{{"chat_template": {template}}}')) == {}


def test_templates_in_files_of_their_own(unavailable, tmp_path):
    assert unavailable(saved(tmp_path / "one", chat_template_jinja="x")) == {}
    several = saved(tmp_path / "several")
    (several / "additional_chat_templates").mkdir()
    (several / "additional_chat_templates" / "default.jinja").write_text("x")
    assert unavailable(several) == {}


def test_tokenizers_that_are_not_in_the_folder(unavailable, tmp_path):
    base = make_checkpoint(tmp_path / "base")  # without tokenizer_config.json: of another form
    assert unavailable(base) == {}
    adapter = make_adapter(tmp_path / "lora", saved(tmp_path / "model"))
    assert unavailable(adapter) == {}  # the stage looks at its base's
    (adapter / "tokenizer_config.json").write_text("{}")
    assert unavailable(adapter).keys() == {"alpaca_eval", "demo_arithmetic"}


def test_planned(suite, tmp_path, root):
    folder = str(make_checkpoint(tmp_path / "thinks"))
    own = suite(CHAT)
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
