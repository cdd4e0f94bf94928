"""Two judges over the checkpoints of a suite that both have judged."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pytest

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.cli import judges as command
from halos_eval.cli.judges import JudgesConfig
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput, StoreError
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.reports.judges import compare
from halos_eval.reports.table import read_rows
from halos_eval.storage import result_files
from halos_eval.storage.records import Score
from tests.doubles import NOW, finish, make_checkpoint, make_provenance, result_of
from tests.reports.pandas_table import frame

SUITE = "alpaca_eval: {{prompts: demo, reference: demo, judge: {}}}"
PROMPTS = [f"prompt {number}" for number in range(40)]


@pytest.fixture
def judged(root, tmp_path):
    """``judged(name, judge=preferences, ...)`` writes the records of judges, with a preference for each prompt."""
    moments = iter(range(1000))

    def judged(name, outputs="outputs", equal=(), lc=None, **preferences):
        given = {judge.replace("_", "-").replace("gpt-4-1", "gpt-4.1"): values for judge, values in preferences.items()}
        own = load_suite("own")
        folder = make_checkpoint(tmp_path / "checkpoints" / name)
        plan = make_plan(own, Checkpoint(name=name, location=str(folder)), root, load_cluster())
        save_plan(plan, own, root)
        for job in plan.jobs:
            ended = NOW + timedelta(minutes=next(moments))
            if job.stage == "sample":
                finish(job, files={"outputs.json": outputs})
            elif job.judge in given:
                rows = [
                    {"instruction": text, "output_1": "a", "output_2": "a" if text in equal else "b", "preference": one}
                    for text, one in zip(PROMPTS, given[job.judge], strict=False)
                ]
                data = json.dumps(rows).encode()
                files = result_files.write(job.record.rpartition("/")[0], {"annotations.json": data})
                read = [one for one in given[job.judge] if one is not None]
                rates = {"win_rate": 100 * (sum(read) / len(read) - 1)}
                rates |= {"length_controlled_winrate": lc[job.judge]} if lc else {}
                finish(
                    job,
                    scores=tuple(Score(task="alpaca_eval", metric=key, value=value) for key, value in rates.items()),
                    files=files,
                    provenance=make_provenance(ended, outputs_sha256=outputs, judge_model=str(job.judge)),
                )
        return plan

    return judged


@pytest.fixture
def both(suite, root, monkeypatch):
    """The suite with both judges, and ``compare`` of its checkpoints."""
    monkeypatch.setattr("halos_eval.analysis.agreement.RESAMPLES", 199)
    suite(SUITE.format("[gpt-4.1, gpt-4.1-mini]"))
    return lambda old="gpt-4.1", new="gpt-4.1-mini": compare(root, load_suite("own"), old, new)


def draw(seed, share):
    """Preferences of two judges that agree in a share of the prompts."""
    random = np.random.default_rng(seed)
    one = random.choice([1.0, 2.0], len(PROMPTS))
    other = np.where(random.random(len(PROMPTS)) < share, one, 3 - one)
    return one.tolist(), other.tolist()


def test_what_two_judges_say_of_one_checkpoint(both, judged):
    judged("one", gpt_4_1=[1, 1, 2, 2, 1.5, None, 1], gpt_4_1_mini=[1, 2, 2, 2, 1.5, 2, 1], equal=["prompt 4"])
    found = both()
    (one,) = found.checkpoints
    assert (one.old, one.new) == (
        {"alpacaeval_wr": pytest.approx(100 * 2.5 / 6)},
        {"alpacaeval_wr": pytest.approx(100 * 4.5 / 7)},
    )
    # Prompt 5 was read by one judge only, and the outputs of prompt 4 are equal: nobody was asked.
    assert (one.difference.value, one.agreement.pairs, one.agreement.same) == (pytest.approx(100 / 6), 5, 0.8)
    assert found.agreement == one.agreement
    assert found.difference == one.difference
    change = found.changes["alpacaeval_wr"]
    assert (change.checkpoints, change.kendall, change.predictions) == (1, None, ())
    assert change.no_prediction == "1 common checkpoints; a prediction needs 5"


def test_checkpoints_that_only_the_old_judge_has_judged_get_a_prediction(both, judged, root):
    for number in range(8):
        wins = 4 * number + 2
        one = [2.0] * wins + [1.0] * (len(PROMPTS) - wins)
        other = [2.0] * (wins + 2 + number % 2) + [1.0] * (len(PROMPTS) - wins - 2 - number % 2)
        judged(f"both-{number}", gpt_4_1=one, gpt_4_1_mini=other)
    judged("inside", gpt_4_1=[2.0] * 20 + [1.0] * 20)
    judged("outside", gpt_4_1=[2.0] * 40)
    judged("neither")
    before = frame(read_rows(root, "own")).to_csv()
    found = both()
    assert len(found.checkpoints) == 8
    assert found.only_old == ("inside", "outside")
    change = found.changes["alpacaeval_wr"]
    assert change.kendall.value == pytest.approx(1)
    assert {one.checkpoint: one.extrapolated for one in change.predictions} == {"inside": False, "outside": True}
    inside = change.predictions[0]
    assert inside.old == 50
    assert 50 < inside.new.low < 56.25 < inside.new.high < 65
    assert change.difference.value == pytest.approx(6.25)
    assert found.difference.value == pytest.approx(6.25)
    assert frame(read_rows(root, "own")).to_csv() == before
    assert str(read_rows(root, "own")[-1].cells["alpacaeval_wr@gpt-4.1-mini"]) == "None"
    reverse = both("gpt-4.1-mini", "gpt-4.1")
    assert reverse.only_old == ()
    assert reverse.changes["alpacaeval_wr"].difference.value == pytest.approx(-6.25)


def test_the_agreement_over_all_checkpoints_is_over_prompts(both, judged):
    for seed in range(4):
        one, other = draw(seed, 0.8)
        judged(f"c{seed}", gpt_4_1=one, gpt_4_1_mini=other)
    found = both()
    assert found.agreement.pairs == 4 * len(PROMPTS)
    assert found.agreement.same == pytest.approx(np.mean([one.agreement.same for one in found.checkpoints]))
    low, high = found.agreement.kappa.low, found.agreement.kappa.high
    assert low < found.agreement.kappa.value < high
    assert all(high - low < one.agreement.kappa.high - one.agreement.kappa.low for one in found.checkpoints)


def test_length_controlled_win_rates_are_compared_apart(both, judged):
    for number in range(5):
        one, other = draw(number, 0.9)
        controlled = {"gpt-4.1": 10.0 * number, "gpt-4.1-mini": 5.0 + 8 * number}
        judged(f"c{number}", gpt_4_1=one, gpt_4_1_mini=other, lc=controlled)
    changes = both().changes
    assert list(changes) == ["alpacaeval_lcwr", "alpacaeval_wr"]
    assert changes["alpacaeval_lcwr"].difference.value == pytest.approx(np.mean([5 - 2 * n for n in range(5)]))
    assert changes["alpacaeval_lcwr"].spearman.value == pytest.approx(1)


def test_only_judgements_of_the_same_outputs_are_compared(both, judged):
    one, other = draw(1, 0.9)
    judged("one", gpt_4_1=one, outputs="first")
    judged("one", gpt_4_1_mini=other, outputs="second")
    with pytest.raises(BadInput, match=r"by both gpt-4.1 and gpt-4.1-mini.* for the same outputs \(1 by gpt-4.1\)"):
        both()
    judged("one", gpt_4_1=one, outputs="second")
    assert len(both().checkpoints) == 1


def test_a_changed_file_is_not_compared(both, judged):
    one, other = draw(1, 0.9)
    plan = judged("one", gpt_4_1=one, gpt_4_1_mini=other)
    file = result_of(plan.jobs[1].record.removeprefix("file://"), "annotations.json")
    file.write_text("[]")
    with pytest.raises(StoreError, match=f"{file} is missing or was changed after its record"):
        both()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gpt-4.1", "gpt-4.1", "gpt-4.1 and gpt-4.1 are the same judge"),
        ("gpt-4.1", "gpt-9", "unknown judge 'gpt-9'"),
        ("gpt-4.1", "demo", "no checkpoint of own has been judged by both gpt-4.1 and demo"),
    ],
)
def test_judges_that_cannot_be_compared(both, judged, old, new, words):
    judged("one", gpt_4_1=draw(1, 1)[0])
    with pytest.raises(BadInput) as caught:
        both(old, new)
    assert words in str(caught.value)


def test_a_suite_without_a_judge_or_without_results(suite, root):
    suite("tasks: {demo_cloze: {}}")
    with pytest.raises(BadInput, match="suite own has no alpaca_eval"):
        compare(root, load_suite("own"), "gpt-4.1", "demo")
    suite(SUITE.format("gpt-4.1"))
    with pytest.raises(BadInput, match="has no results of own's judges"):
        compare(root, load_suite("own"), "gpt-4.1", "demo")


def test_what_the_command_prints(both, judged, root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    for number in range(5):
        one = [2.0] * (5 * number + 5) + [1.0] * (35 - 5 * number)
        judged(f"c{number}", gpt_4_1=one, gpt_4_1_mini=[*one[1:], 1.0 + number % 2])
    judged("old-only", gpt_4_1=[2.0] * 18 + [1.0] * 22)
    options = {"old": "gpt-4.1", "new": "gpt-4.1-mini", "suite": "own", "store": root}
    command.judges(JudgesConfig(**options))
    shown = capsys.readouterr().out
    for words in ("gpt-4.1-mini", "new - old", "agreement: kappa", "Kendall's tau", "prediction, not in the table"):
        assert words in shown
    command.judges(JudgesConfig(**options, json=True))
    document = json.loads(capsys.readouterr().out)
    assert document == both().model_dump(mode="json")
    (prediction,) = document["changes"]["alpacaeval_wr"]["predictions"]
    assert (prediction["checkpoint"], prediction["old"]) == ("old-only", pytest.approx(45))


def test_without_scipy_the_command_names_the_environment_that_has_it(monkeypatch, root):
    monkeypatch.setattr("halos_eval.analysis.estimate.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"no SciPy or no statsmodels.*Run the command in the judge's environment"):
        command.judges(JudgesConfig(old="a", new="b", suite="own", store=root))
