"""Which model a score of a log belongs to, and which scores of a log are scores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.errors import BadInput
from tests.reports.test_halos_logs import HEADER, MINE, THEIRS, leaderboard, read_logs, read_text, table

KTO, DPO = "/runs/kto/checkpoint-500", "/runs/dpo/checkpoint-500"


def header(arguments, limit="None", model="hf"):
    return f"{model} ({arguments}), gen_kwargs: (None), limit: {limit}, num_fewshot: None, batch_size: 8\n"


def scores(**values):
    """A table of tasks with their accuracies, as lm_eval prints it."""
    return table([(task, "1", "none", "0", "acc", "↑", str(value), "±", "0.0100") for task, value in values.items()])


def of(path):
    """The accuracies of each row."""
    ends = "-acc"
    return {
        row["model_name"]: {key.removesuffix(ends): value for key, value in row.items() if key.endswith(ends)}
        for row in read_logs(path)
    }


def test_models_with_the_same_last_folder_are_two_rows_without_an_average(tmp_path):
    (tmp_path / "a.log").write_text(header(f"pretrained={DPO},dtype=auto") + scores(piqa=0.8))
    (tmp_path / "b.log").write_text(header(f"pretrained={KTO},dtype=auto") + scores(sciq=0.5))
    dpo, kto = read_logs(tmp_path)
    assert (dpo["model_name"], dpo["piqa-acc"], dpo["status"]) == (
        "dpo/checkpoint-500",
        0.8,
        "sciq: no score in the logs",
    )
    assert (kto["model_name"], kto["sciq-acc"], kto["status"]) == (
        "kto/checkpoint-500",
        0.5,
        "piqa: no score in the logs",
    )
    assert "avg" not in dpo.keys() | kto.keys()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("pretrained=/base,peft=/adapters/kto,dtype=auto", "kto"),
        ("peft=/adapters/kto/FINAL/,pretrained=/base", "kto"),
        ("pretrained=/base,lora_local_path=/adapters/kto", "kto"),
        ("pretrained=/base,delta=/adapters/kto", "kto"),
        ("{'pretrained': '/base', 'peft': '/adapters/kto', 'dtype': 'auto'}", "kto"),
        ("pretrained=org/base,revision=step1000", "base@step1000"),
        ("pretrained=org/base,subfolder=last,revision=a", "base@a/last"),
        ("{'pretrained': 'org/base', 'gguf_file': 'q4.gguf'}", "base@q4.gguf"),
    ],
)
def test_an_adapter_and_a_revision_are_not_their_base(arguments, name, tmp_path):
    base = "/base" if "/base" in arguments and "org" not in arguments else "org/base"
    text = header(f"pretrained={base},revision=main") + scores(piqa=0.5) + header(arguments) + scores(piqa=0.75)
    (tmp_path / "a.log").write_text(text)
    assert of(tmp_path) == {"base": {"piqa": 0.5}, name: {"piqa": 0.75}}


def test_an_adapter_of_two_bases_is_two_models(tmp_path):
    text = "".join(header(f"pretrained=/{base},peft=/kto") + scores(piqa=0.5) for base in "ab")
    (tmp_path / "a.log").write_text(text)
    assert sorted(of(tmp_path)) == ["/kto on /a", "/kto on /b"]


def test_an_adapter_in_a_command_that_the_log_repeats(tmp_path):
    command = "+ lm_eval --model_args pretrained=/base,peft=/adapters/kto --tasks piqa\n"
    (tmp_path / "a.log").write_text(command + scores(piqa=0.5))
    assert of(tmp_path) == {"kto": {"piqa": 0.5}}
    (tmp_path / "a.log").write_text("+ lm_eval --model_args pretrained=/base,peft=$ADAPTER\n" + scores(piqa=0.5))
    with pytest.raises(BadInput, match="no score found"):
        read_logs(tmp_path)


def test_a_leaderboards_path_is_the_model_with_that_path(tmp_path):
    for name, path, wins in (("a", KTO, MINE), ("b", DPO, THEIRS)):
        text = header(f"pretrained={path}/") + scores(piqa=0.5) + leaderboard(**{path: wins})
        (tmp_path / f"{name}.log").write_text(text)
    assert {row["model_name"]: row["alpacaeval_wr"] for row in read_logs(tmp_path)} == {
        "kto/checkpoint-500": 11.0,
        "dpo/checkpoint-500": 50.0,
    }


def test_a_leaderboards_name_that_two_models_have_is_a_row_of_its_own(tmp_path):
    for name, path in (("a", "/x/kto"), ("b", "/y/kto")):
        (tmp_path / f"{name}.log").write_text(header(f"pretrained={path}") + scores(piqa=0.5))
    (tmp_path / "c.log").write_text(leaderboard(kto=MINE))
    rows = {row["model_name"]: row.get("alpacaeval_wr") for row in read_logs(tmp_path)}
    assert rows == {"x/kto": None, "y/kto": None, "kto": 11.0}


GROUP = [
    ("leaderboard", "N/A", "", "", "", "", "", "", ""),
    (" - leaderboard_bbh", "N/A", "", "", "", "", "", "", ""),
    ("  - bbh_navigate", "0", "none", "3", "acc_norm", "↑", "0.42", "±", "0.03"),
    ("  - bbh_snarks", "0", "none", "3", "acc_norm", "↑", "0.52", "±", "0.03"),
]
PIQA = ("piqa", "1", "none", "0", "acc", "↑", "0.7000", "±", "0.0100")


@pytest.mark.parametrize(("more", "average"), [([], 0.47), ([PIQA], 0.5467)])
def test_the_members_of_a_group_without_a_score_stand_for_themselves(more, average, tmp_path):
    text = HEADER.format("m") + table([*GROUP, *more]) + table(GROUP[:2], ("Groups", *["Version"], *COLUMNS[2:]))
    (row,) = read_text(tmp_path, text)
    assert (row["bbh_navigate-acc_norm"], row["bbh_snarks-acc_norm"], row["avg"]) == (0.42, 0.52, average)


COLUMNS = ("Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr")


def test_a_group_with_a_score_below_one_without_stands_for_its_members(tmp_path):
    bbh = (" - leaderboard_bbh", "1", "none", "3", "acc_norm", "↑", "0.47", "±", "0.02")
    (row,) = read_text(tmp_path, HEADER.format("m") + table([GROUP[0], bbh, *GROUP[2:], PIQA]))
    assert {key: value for key, value in row.items() if key.endswith(("acc", "acc_norm"))} == {
        "leaderboard_bbh-acc_norm": 0.47,
        "piqa-acc": 0.7,
    }


def test_placeholders_are_no_scores(tmp_path):
    rows = [
        ("niah", "1", "none", "0", "131072", "↑", "-1.0000", "±", "N/A"),
        ("", "", "none", "0", "4096", "↑", "0.5000", "±", "N/A"),
        ("open", "1", "none", "0", "bypass", "", "999", "±", "N/A"),
    ]
    (row,) = read_text(tmp_path, HEADER.format("m") + table(rows[:2]))
    assert row == {"model_name": "m", "niah-4096": 0.5, "avg": 0.5}
    (row,) = read_text(tmp_path, HEADER.format("m") + table(rows))
    assert row == {"model_name": "m", "niah-4096": 0.5, "status": "open-bypass: the log has no number"}
    with pytest.raises(BadInput, match="no score found"):
        read_text(tmp_path, HEADER.format("m") + table(rows[2:]))


def test_a_task_that_has_no_score_anywhere_is_missing_only_where_it_ran(tmp_path):
    bypass = table([("open", "1", "none", "0", "bypass", "", "999", "±", "N/A")])
    text = header("pretrained=a") + scores(piqa=0.5) + header("pretrained=b") + scores(piqa=0.6) + bypass
    a, b = read_text(tmp_path, text)
    assert (a["avg"], a.get("status")) == (0.5, None)
    assert ("avg" in b, b["status"]) == (False, "open-bypass: the log has no number")


def test_a_full_run_overrides_a_later_trial_and_a_trial_says_so(tmp_path):
    full, trial = header("pretrained=m") + scores(piqa=0.5), header("pretrained=m", "100.0") + scores(piqa=0.9)
    assert read_text(tmp_path, full + trial) == read_text(tmp_path, trial + full) == read_text(tmp_path, full)
    (row,) = read_text(tmp_path, trial)
    assert (row["piqa-acc"], row["avg"], row["status"]) == (0.9, 0.9, "trial: limit 100")


def test_a_trial_is_not_compared_with_a_full_run(tmp_path):
    text = header("pretrained=a") + scores(piqa=0.5) + header("pretrained=b", "100.0") + scores(piqa=0.9)
    a, b = read_text(tmp_path, text)
    assert a["avg"] == 0.5
    assert "avg" not in b
    assert b["status"] == "avg: piqa has another limit in other logs; trial: limit 100"


MODELS = st.sampled_from(["/r/a/checkpoint-1", "/r/b/checkpoint-1/FINAL", "/r/b/checkpoint-2", "org/a", "c"])
RUNS = st.dictionaries(
    st.tuples(MODELS, st.sampled_from(["", "/adapters/x", "/adapters/y/FINAL"]), st.sampled_from(["t", "u", "v"])),
    st.integers(1, 9).map(lambda tenths: tenths / 10),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@given(runs=RUNS, data=st.data())
def test_each_score_is_in_the_row_of_its_model_whatever_the_files(scratch, runs, data):
    """Runs of any models, in any files and any order."""
    for file in scratch.glob("*.log"):
        file.unlink()
    tables = []
    for model, adapter, task in data.draw(st.permutations(sorted(runs))):
        arguments = f"pretrained={model},peft={adapter}" if adapter else f"pretrained={model}"
        text = header(arguments) + scores(**{task: runs[model, adapter, task]})
        file = scratch / f"{data.draw(st.integers(1, 3))}.log"
        with file.open("a", encoding="utf-8") as log:
            log.write(text)
        tables.append(text)
    found = read_logs(scratch)
    wanted = {}
    for (model, adapter, task), value in runs.items():
        wanted.setdefault((model, adapter), {})[f"{task}-acc"] = value
    rows = [{key: value for key, value in row.items() if key.endswith("-acc")} for row in found]
    assert sorted(map(sorted, map(dict.items, rows))) == sorted(map(sorted, map(dict.items, wanted.values())))
    assert len({row["model_name"] for row in found}) == len(wanted)
    tasks = {task for _, _, task in runs}
    for row in found:
        assert ("avg" in row) == all(f"{task}-acc" in row for task in tasks)
    # The order of the files' tables makes no difference.
    for file in scratch.glob("*.log"):
        file.unlink()
    (scratch / "one.log").write_text("".join(reversed(tables)), encoding="utf-8")
    os.utime(scratch / "one.log", (1, 1))
    again = {row["model_name"]: row for row in read_logs(scratch)}
    assert {name: {**row, "status": None} for name, row in again.items()} == {
        row["model_name"]: {**row, "status": None} for row in found
    }


def test_a_log_without_a_model_is_not_credited_to_the_file_before_it(tmp_path: Path, caplog) -> None:
    (tmp_path / "a.log").write_text(header("pretrained=m") + scores(piqa=0.5))
    (tmp_path / "b.log").write_text(scores(sciq=0.5))
    assert of(tmp_path) == {"m": {"piqa": 0.5}}
    assert "names its model" in caplog.text
