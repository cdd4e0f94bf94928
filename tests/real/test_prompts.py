"""Prompts with a real tokenizer: their token ids are lm_eval's, and answers end with the turn on both backends."""

import json
import subprocess

import pytest

from tests.conftest import ROOT
from tests.doubles import outputs_in
from tests.real.test_harness import record_of, samples_of, scores_of

pytestmark = [pytest.mark.real, pytest.mark.vllm]

ENGINE = ("--dtype=float32", "--enforce-eager")
# The prompt opens the answer with `start`, so that the model's answer is known (tests/scripted_model.py).
TASK = """
task: turns
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
description: "Say it quickly.\\n\\n"
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
gen_prefix: "{{{{start}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
DOCUMENTS = (("Q", "a", "b"), ("Q", "x", "yzw"), ("Q", "p", "qpqpqpqp"), ("Q", "m", ""), ("long " * 40, "a", "b"))

# Prints for each text the token ids of this project, and of lm_eval's two backends.
ENCODE = """
import json, sys
from types import SimpleNamespace
from lm_eval.models.huggingface import HFLM
from lm_eval.models.vllm_causallms import VLLM
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.tokenizer import load_tokenizer
found = []
for model, template, texts in json.load(sys.stdin):
    tokenizer = load_tokenizer(model)
    prompting = Prompting.chat(tokenizer, template, (), model)
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    backend = SimpleNamespace(tokenizer=tokenizer, prefix_token_id=prefix, add_bos_token=None)
    for text in [*texts, *(prompting.render([{"role": "user", "content": text}]) for text in texts)]:
        ids = prompting.encode(text), HFLM.tok_encode(backend, text), VLLM.tok_encode(backend, text)
        backend.backend = "causal"
        batch, _ = HFLM.tok_batch_encode(backend, [text])
        found.append([*ids, batch[0].tolist()])
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def scripted(environments, tmp_path_factory):
    """A model whose answers are known. Its tokenizer adds BOS and has the end token of a base model."""
    folder = tmp_path_factory.mktemp("scripted") / "scripted" / "FINAL"
    words = [environments / "worker" / "bin" / "python", ROOT / "tests" / "scripted_model.py", folder]
    subprocess.run(words, check=True, capture_output=True)
    return folder


@pytest.fixture
def turns(tmp_path):
    """A task of our own, in a folder for --include-path."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    keys = ("question", "start", "answer")
    rows = [json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in DOCUMENTS]
    (folder / "data.jsonl").write_text("".join(rows))
    (folder / "turns.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
    return folder


@pytest.mark.parametrize("backend", ["vllm", "hf"])
def test_an_answer_ends_with_its_turn_and_what_spoils_a_score_is_counted(fork, scripted, turns, backend, tmp_path):
    options = ("--apply-chat-template", f"--include-path={turns}", "--max-model-len=128", *ENGINE)
    words = ("harness", scripted, "--task=turns", f"--backend={backend}", f"--output-dir={tmp_path / 'out'}", *options)
    done = fork("worker", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    record = record_of(tmp_path / "out")
    answers = [row["resps"][0][0] for row in samples_of(tmp_path / "out", "turns")]
    assert answers == [answer for _, _, answer in DOCUMENTS]
    assert scores_of(record) == {("turns", "exact_match", "none"): 1}
    assert record["details"] == {
        "truncated_prompts": 1,
        "dropped_system_texts": 5,
        "generated_answers": len(DOCUMENTS),
        "cut_at_max_tokens": 1,
        "empty": 1,
    }
    inputs = record["provenance"]["inputs"]
    assert (inputs["prompt:bos"], inputs["prompt:stop"], inputs["prompt:num_fewshot"]) == ("<s>", '["<|im_end|>"]', "0")


def test_sampling_sends_bos_and_ends_with_the_turn(fork, scripted, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps([{"instruction": "Hello"}]))
    words = (scripted, f"--prompts={tmp_path / 'prompts.json'}")
    done = fork("worker", "sample", *words, f"--output={tmp_path / 'outputs.json'}", "--temperature=0", *ENGINE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["output"] for row in outputs_in(tmp_path)] == ["hi"]
    record = json.loads((tmp_path / "outputs.record.json").read_text())
    printed = fork("worker", "prompt", *words, "--json")
    assert printed.returncode == 0, printed.stderr[-2000:]
    found = json.loads(printed.stdout)
    (request,) = found["requests"]
    assert request["text"] == "<s><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert record["usage"]["prompt_tokens"] == len(request["token_ids"])
    assert (found["bos"], found["stop"], found["end_token"]) == ("<s>", ["<|im_end|>"], "</s>")
    assert record["provenance"]["inputs"]["prompt:bos"] == "<s>"


def test_a_tasks_prompt_is_printed_without_weights(fork, scripted, turns, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for path in scripted.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    words = ("worker", "prompt", folder, "--task=turns", f"--include-path={turns}", "--first=2")
    done = fork(*words, "--apply-chat-template")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("<s><|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n") == 2
    assert '--- ends at: ["\\n", "<|im_end|>"]' in done.stdout
    assert "drops the system turn" in done.stdout
    plain = fork(*words)
    assert plain.returncode == 0, plain.stderr[-2000:]
    assert "<s>Say it quickly.\n\nQ" in plain.stdout
    assert '--- ends at: ["\\n"]' in plain.stdout


def test_token_ids_are_those_of_both_backends_of_lm_eval(run, environments, scripted, tiny, tmp_path):
    (tmp_path / "bos.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    texts = ["Hello", " two  spaces ", "<s>begun", "<|im_start|>user\nHi", "a<s>b", "naïve 日本 \U0001f600\n"]
    cases = [
        (str(model), name, texts)
        for model in (scripted, tiny)
        for name in (None, "chatml", str(tmp_path / "bos.jinja"))
    ]
    words = [environments / "worker" / "bin" / "python", "-c", ENCODE]
    done = subprocess.run(
        words, input=json.dumps(cases), capture_output=True, text=True, env=run.variables, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == len(cases) * len(texts) * 2
    for ours, *theirs in found:
        assert theirs == [ours] * 3
