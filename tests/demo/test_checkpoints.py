"""The demo's tasks and prompts: well formed, without repetition, and with correct answers where a program can check."""

from __future__ import annotations

import ast
import importlib.util
import json
import operator
import re
from collections import Counter

import pytest
import yaml

from halos_eval.demo import checkpoints
from halos_eval.errors import DataUnavailable
from halos_eval.shipped import shipped

TASKS = shipped("tasks")
TASK_SIZES = {"demo_arithmetic": 16, "demo_choice": 24, "demo_cloze": 24}
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


class _FunctionName(str):
    """The name after ``!function``, unresolved."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Loader of lm_eval's YAML dialect that does not import functions."""


_Loader.add_constructor("!function", lambda loader, node: _FunctionName(loader.construct_scalar(node)))


def _task(name):
    return yaml.load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"), Loader=_Loader)


def _items(name):
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _value(node):
    """Return the value of an expression of integers, +, - and *. Raise KeyError or TypeError for anything else."""
    if isinstance(node, ast.Expression):
        return _value(node.body)
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    raise TypeError(f"not a plain sum: {ast.dump(node)}")


def _evaluate(expression):
    return _value(ast.parse(expression, mode="eval"))


def test_every_task_file_is_known():
    assert {file.stem for file in TASKS.glob("*.yaml")} == set(TASK_SIZES)


@pytest.mark.parametrize("name", TASK_SIZES)
def test_task_reads_its_own_files(name):
    task = _task(name)
    assert task["task"] == name
    assert isinstance(task["custom_dataset"], _FunctionName)
    assert task["custom_dataset"] == "utils.load_jsonl"
    files = task["dataset_kwargs"]["files"]
    assert all((TASKS / file).is_file() for file in files.values())
    assert {task["test_split"], task.get("fewshot_split", "test")} == set(files)
    # With a name on the hub, the task would need the network.
    assert not {"dataset_path", "dataset_name"} & set(task)


def test_no_data_file_is_left_over():
    used = {file for name in TASK_SIZES for file in _task(name)["dataset_kwargs"]["files"].values()}
    assert {file.name for file in TASKS.glob("*.jsonl")} == used


@pytest.mark.parametrize(("name", "size"), TASK_SIZES.items())
def test_task_size_and_no_repetition(name, size):
    items = _items(name)
    texts = [item["context"] if name == "demo_cloze" else item["question"] for item in items]
    assert len(items) == size
    assert len({text.casefold() for text in texts}) == size
    assert all(text == text.strip() and text for text in texts)


def test_choice_items():
    for item in _items("demo_choice"):
        assert set(item) == {"question", "choices", "answer"}
        assert len(set(item["choices"])) == 4
        assert item["answer"] in range(4)
        # lm_eval adds a space before a choice, so a choice with a leading space would have two.
        assert all(choice == choice.strip() and choice for choice in item["choices"])


def test_choice_answers_favour_no_position():
    assert set(Counter(item["answer"] for item in _items("demo_choice")).values()) == {6}


def test_cloze_items():
    for item in _items("demo_cloze"):
        assert set(item) == {"context", "last_word"}
        assert re.fullmatch(r"[A-Za-z]+", item["last_word"])


def test_arithmetic_answers_are_right():
    for item in _items("demo_arithmetic"):
        assert set(item) == {"question", "expression", "answer"}
        assert item["answer"] == str(_evaluate(item["expression"])), item["question"]


@pytest.mark.parametrize("name", ["demo_arithmetic", "demo_arithmetic_fewshot"])
def test_arithmetic_expressions_use_only_numbers_of_the_question(name):
    for item in _items(name):
        assert set(re.findall(r"\d+", item["expression"])) <= set(re.findall(r"\d+", item["question"])), item


def test_fewshot_examples_show_the_form_that_the_filters_read():
    examples = _items("demo_arithmetic_fewshot")
    task = _task("demo_arithmetic")
    assert len(examples) == task["num_fewshot"] == 3
    strict, flexible = (entry["filter"][0] for entry in task["filter_list"])
    for item in examples:
        assert set(item) == {"question", "expression", "solution", "answer"}
        assert item["answer"] == str(_evaluate(item["expression"]))
        assert f"{item['expression']} = {item['answer']}." in item["solution"]
        assert re.findall(strict["regex_pattern"], item["solution"]) == [item["answer"]]
        assert re.findall(flexible["regex_pattern"], item["solution"])[flexible["group_select"]] == item["answer"]


def test_fewshot_examples_are_not_test_items():
    questions = {
        name: {item["question"] for item in _items(name)} for name in ("demo_arithmetic", "demo_arithmetic_fewshot")
    }
    assert questions["demo_arithmetic"].isdisjoint(questions["demo_arithmetic_fewshot"])


@pytest.mark.parametrize("expression", ["2 ** 3", "__import__('os')", "1.5 + 1", "True + 1"])
def test_only_plain_sums_are_evaluated(expression):
    with pytest.raises((KeyError, TypeError)):
        _evaluate(expression)


def test_prompts_serve_as_reference_too():
    prompts = json.loads((shipped("prompt_sets") / "demo.json").read_text(encoding="utf-8"))
    assert len(prompts) == 12
    assert len({prompt["instruction"].casefold() for prompt in prompts}) == 12
    for prompt in prompts:
        assert set(prompt) == {"instruction", "output", "generator", "dataset"}
        assert prompt["generator"] == "halos_eval_reference"
        assert prompt["dataset"] == "demo"
        assert all(text == text.strip() and text for text in (prompt["instruction"], prompt["output"]))
    # Length-controlled win rates need references of different lengths.
    lengths = [len(prompt["output"]) for prompt in prompts]
    assert max(lengths) > 5 * min(lengths)


def test_checkpoints_that_exist_are_not_changed(tmp_path, monkeypatch, caplog):
    folders = [tmp_path / name / "FINAL" for name in ("smollm2-135m", "smollm2-135m-rounded")]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.setattr(checkpoints, "_load", lambda: pytest.fail("the model is loaded although nothing is missing"))
    with caplog.at_level("INFO"):
        assert checkpoints.build(tmp_path) == folders
    assert caplog.text.count("skipped") == 2


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(DataUnavailable, match="pip install"):
        checkpoints.build(tmp_path)
    assert not list(tmp_path.iterdir())
