"""Small data sets for the hub's double, with the names and formats that lm_eval's tasks and AlpacaEval expect.

All of it was written for these tests. ``write_hub_data`` writes it; the other names let tests say what to expect.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

GENERATOR = "small-model"
"""Who made ``output_rows``."""
DRAWS = 3
"""How many of ``output_rows`` are equal to the reference: alpaca_eval asks no judge for them."""

GSM8K_TEST = [
    {
        "question": f"A basket holds {apples} apples, and {friends} friends bring {each} more each. How many?",
        "answer": f"The friends bring {friends} * {each} = {friends * each} apples.\n#### {apples + friends * each}",
    }
    for apples, friends, each in product((4, 9, 15), (2, 3), (1, 5))
]
GSM8K_TRAIN = [
    {
        "question": f"A train has {cars} cars with {seats} seats each. How many seats does it have?",
        "answer": f"It has {cars} * {seats} = {cars * seats} seats.\n#### {cars * seats}",
    }
    for cars, seats in product((3, 6), (20, 40))
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}({arguments}):\n    """{text}"""\n',
        "entry_point": name,
        "canonical_solution": f"    return {solution}\n",
        "test": f"\n\ndef check(candidate):\n    assert candidate{given} == {expected}\n",
    }
    for number, (name, arguments, text, solution, given, expected) in enumerate(
        [
            ("double", "number", "Return twice the number.", "2 * number", "(4)", "8"),
            ("shout", "text", "Return the text in capital letters.", "text.upper()", "('oh')", "'OH'"),
            ("evens", "numbers", "Return the even numbers.", "[n for n in numbers if n % 2 == 0]", "([1, 2])", "[2]"),
        ]
    )
]
BBH_SUBSETS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
BBH_ROWS = 2  # of each subset


def instructions() -> list[str]:
    """Return AlpacaEval's instructions: enough that a judge's stage can be killed in the middle."""
    forms = (
        "Explain {} to a child.",
        "Write a short poem about {}.",
        "List three facts about {}.",
        "Why do people care about {}?",
        "Draft an e-mail that praises {}.",
        "What could go wrong with {}?",
        "Compare {} with the weather.",
        "Invent a holiday for {}.",
    )
    subjects = ("rain", "bread", "tides", "bicycles", "owls", "bridges", "salt", "maps", "clocks", "soap")
    moments = ("at dawn", "in winter", "at sea")
    return [form.format(f"{subject} {when}") for form, subject, when in product(forms, subjects, moments)]


def reference_rows() -> list[dict[str, str]]:
    """Return the reference's output for each instruction."""
    return [
        _row(text, f"About this I can say a lot. {text} " * (1 + number % 4), "reference-model", number)
        for number, text in enumerate(instructions())
    ]


def output_rows(generator: str = GENERATOR) -> list[dict[str, str]]:
    """Return a model's outputs, as ``halos-eval sample`` writes them."""
    rows = [
        _row(text, f"{text} I would say so. " * (1 + number % 3), generator, number)
        for number, text in enumerate(instructions())
    ]
    references = reference_rows()
    for number in range(DRAWS):
        place = number * 50
        rows[place]["output"] = references[place]["output"]
    return rows


def _row(instruction: str, output: str, generator: str, number: int) -> dict[str, str]:
    dataset = ("helpful", "odd", "long")[number % 3]
    return {"dataset": dataset, "instruction": instruction, "output": output.strip(), "generator": generator}


def calibration() -> str:
    """Return the CSV file of annotations that length control is fitted with: two models on each instruction.

    Difficulty and length decide, so that the fit finds an effect of both.
    """
    drawn = random.Random(0)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"])
    difficulty = [round(drawn.gauss(0, 1), 5) for _ in instructions()]
    for model, shift in (("concise", 2.0), ("verbose", -1.0)):
        for number, difficult in enumerate(difficulty):
            length = round(drawn.gauss(shift, 1), 5)
            preference = round(1 / (1 + math.exp(2 * difficult - math.tanh(length))), 5)
            writer.writerow([f"{GENERATOR}_{model}", number, preference, length, difficult, False])
    return file.getvalue()


def bbh_rows(subset: str) -> list[dict[str, str]]:
    """Return the questions of one subset."""
    words = subset.replace("_", " ")
    return [
        {"input": f"Which letter of the words {words} has number {number}?", "target": words[number - 1]}
        for number in range(1, BBH_ROWS + 1)
    ]


def write_hub_data(root: Path) -> None:
    """Write all data sets below the folder ``root`` of a hub."""
    datasets = root / "datasets"
    _dataset(
        datasets / "openai" / "gsm8k",
        {"main": {"train": "main/train.jsonl", "test": "main/test.jsonl"}},
        {"main/train.jsonl": _lines(GSM8K_TRAIN), "main/test.jsonl": _lines(GSM8K_TEST)},
    )
    _dataset(
        datasets / "openai" / "openai_humaneval",
        {"openai_humaneval": {"test": "openai_humaneval/test.jsonl"}},
        {"openai_humaneval/test.jsonl": _lines(HUMANEVAL)},
    )
    _dataset(
        datasets / "SaylorTwift" / "bbh",
        {subset: {"test": f"{subset}/test.jsonl"} for subset in BBH_SUBSETS},
        {f"{subset}/test.jsonl": _lines(bbh_rows(subset)) for subset in BBH_SUBSETS},
    )
    prompts = [row | {"output": "", "generator": "nobody"} for row in reference_rows()]
    _dataset(
        datasets / "tatsu-lab" / "alpaca_eval",
        {"alpaca_eval": {"eval": "alpaca_eval.json"}},
        {
            "alpaca_eval.json": json.dumps(prompts, indent=1),
            "alpaca_eval_gpt4_baseline.json": json.dumps(reference_rows(), indent=1),
            "df_gamed.csv": calibration(),
        },
    )


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _dataset(folder: Path, configs: dict[str, dict[str, str]], files: dict[str, str]) -> None:
    """Write a repository whose README.md says which files are which split of which configuration."""
    front = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for name, splits in configs.items()
    ]
    front[0]["default"] = True
    readme = f"---\nconfigs: {json.dumps(front)}\n---\nWritten for the tests of halos-eval.\n"  # JSON is YAML
    for name, text in (files | {"README.md": readme}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
