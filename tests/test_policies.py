"""What holds for the whole package: import borders, a docstring everywhere, nothing printed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

import halos_eval

PACKAGE = Path(halos_eval.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
DAGS = sorted((ROOT / "dags").glob("*.py"))
FROZEN = {"model_config = FROZEN", "model_config = CAMEL"}
# ruff holds the border; here it is what is really imported that counts.
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
HEAVY = set(LINTER["flake8-tidy-imports"]["banned-module-level-imports"])


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*MODULES, *DAGS], ids=name_of)
def test_every_module_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def frozen_models():
    """Every class of the package that is a frozen model."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and FROZEN & set(map(ast.unparse, node.body)):
                yield node


def test_every_field_of_a_model_says_what_it_is():
    plain = {"stage", "task", "checkpoint", "settings"}  # of a Job: as in its record
    bare = set()
    for model in frozen_models():
        for field, after in pairwise([*model.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign) and not (
                isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            ):
                bare.add(f"{model.name}.{field.target.id}")
    assert bare == {f"Identity.{name}" for name in plain}
    assert len(list(frozen_models())) > 15


def test_only_the_command_line_prints_and_exits():
    allowed = {"cli", "demo", "doctor.py"}  # orchestration/doctor.py is a command line that imports Airflow
    for path in MODULES:
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if not allowed & set(path.relative_to(PACKAGE).parts):
            assert not {"print", "sys.exit", "exit"} & set(calls), path


def test_one_module_reads_this_projects_variables():
    for path in (*MODULES, *DAGS):
        if path.name not in {"settings.py", "installation.py"}:  # the demo sets them for others
            texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
            assert not [text for text in texts if re.fullmatch("HALOS_EVAL_[A-Z]+", str(text))], path


@pytest.mark.parametrize(
    "module",
    ["halos_eval.cli.main", "halos_eval.demo.run", "halos_eval.stages.judge.stage", "halos_eval.reports.table"],
)
def test_the_command_line_starts_without_what_it_does_not_need(module):
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert "halos_eval" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


def test_shipped_data_is_in_the_package():
    for kind, ending in (
        ("suites", "yaml"), ("judges", "yaml"), ("templates", "jinja"), ("tasks", "yaml"), ("prompt_sets", "json"),
        ("clusters", "yaml"),
    ):  # fmt: skip
        assert list((PACKAGE / "shipped" / kind).glob(f"*.{ending}")), kind
