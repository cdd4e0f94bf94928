"""A model that thinks, through the whole pipeline: sampled, judged, scored by IFEval, and in the table."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
from statistics import fmean

import pytest

from tests.conftest import ROOT
from tests.doubles import outputs_in, result_of
from tests.doubles.judge import preference
from tests.real.conftest import write

pytestmark = [pytest.mark.real, pytest.mark.vllm]

# tests/thinking_model.py answers by the last character of the prompt: a thinks, b without an end, d does not.
PROMPTS = [f"Question {number} {'b' if number == 7 else 'd' if number % 6 == 0 else 'a'}" for number in range(24)]
ANSWERS = {"a": "5", "b": "", "d": "7"}
ENGINE = ("--max-model-len=64", "--dtype=float32", "--enforce-eager")
THINKING = ("--thinking=on", "--think-start-token=[T]", "--think-end-token=[/T]")
# IFEval's own scoring. The thinking has a comma, which breaks the instruction, and the stop string Q.
TASK = """
include: {ifeval}
task: no_comma
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
generation_kwargs: {{until: [Q], do_sample: false, max_gen_toks: 12}}
"""


@pytest.fixture(scope="module")
def thinker(environments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker") / "thinker" / "FINAL"
    words = [environments / "worker" / "bin" / "python", ROOT / "tests" / "thinking_model.py", folder]
    subprocess.run(words, check=True, capture_output=True)
    return folder


def test_thinking_is_neither_scored_nor_judged_and_cut_answers_are_in_the_table(
    fork, run, environments, thinker, serve_judge, tmp_path
):
    store = tmp_path / "store"
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (ifeval,) = environments.glob("worker/lib/python*/site-packages/lm_eval/tasks/ifeval/ifeval.yaml")
    rows = [
        {"key": number, "prompt": text, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for number, text in enumerate(PROMPTS)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "no_comma.yaml").write_text(TASK.format(ifeval=ifeval, data=tmp_path / "data.jsonl"))
    nltk = tmp_path / "nltk"
    (nltk / "tokenizers" / "punkt_tab").mkdir(parents=True)  # this instruction does not use it

    words = ("worker", "harness", thinker, "--task=no_comma", f"--include-path={tasks}", "--apply-chat-template")
    done = fork(*words, f"--output-dir={store / 'harness'}", *THINKING, *ENGINE, env={"NLTK_DATA": str(nltk)})
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((store / "harness" / "record.json").read_text())
    assert {score["metric"]: score["value"] for score in record["scores"]}["prompt_level_strict_acc"] == 1
    assert record["coverage"] == {"attempted": 24, "scored": 23}
    expected = {"cut_at_max_tokens": 1, "empty": 1, "unended_thinking": 0, "without_thinking": 4}
    assert record["details"].items() >= expected.items()
    samples = rows_in(store / "harness", "samples/no_comma.jsonl.gz")
    assert {row["resps"][0][0]: row["thinking"] for row in samples} == {"5": ["x,Qy[/T]"], "7": [""]}
    (cut,) = rows_in(store / "harness", "cut/no_comma.jsonl.gz")
    assert (cut["doc_id"], cut["resps"], cut["thinking"][0][:7]) == (7, [""], "[T]zwzw")

    prompts = write(tmp_path / "prompts.json", [{"instruction": text} for text in PROMPTS])
    words = ("worker", "sample", thinker, f"--prompts={prompts}", f"--output={store / 'outputs.json'}")
    done = fork(*words, "--max-tokens=12", "--temperature=0", *THINKING, *ENGINE)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = outputs_in(store)
    assert [row["output"] for row in outputs] == [ANSWERS[text[-1]] for text in PROMPTS]
    assert [row["instruction"] for row in outputs if row.get("cut")] == [PROMPTS[7]]
    assert outputs[1]["thinking"] == "x,Qy[/T]"

    reference = [{"instruction": text, "output": "No idea.", "generator": "r"} for text in PROMPTS]
    endpoint = serve_judge()
    words = ("judge", "judge", store / "outputs.record.json", "--judge=gpt-4.1", f"--output-dir={store / 'judge'}")
    done = run(
        *words, f"--reference={write(tmp_path / 'reference.json', reference)}", env=endpoint.environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    judged = json.loads((store / "judge" / "record.json").read_text())
    wins = [preference(text, ANSWERS[text[-1]], "No idea.") for text in PROMPTS if not text.endswith("b")]
    scores = {score["metric"]: score["value"] for score in judged["scores"]}
    assert scores["win_rate"] == pytest.approx(100 * fmean(wins), abs=1e-9)
    assert judged["coverage"] == {"attempted": 24, "scored": 23}

    done = run("judge", "summarize", store, f"--output={tmp_path / 'table.csv'}")
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert (row["no_comma-n_cut"], row["alpacaeval_n_cut"]) == ("1", "1")
    assert "no_comma: 1 of 24 answers were cut at max_tokens" in row["status"]


def rows_in(folder, name):
    file = result_of(folder / "record.json", name)
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
