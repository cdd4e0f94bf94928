"""The reduced index of lm_eval's tasks gives the tasks that lm_eval's own index gives."""

from __future__ import annotations

import json
import subprocess

import pytest

from halos_eval.config.suite import load_suite, suite_names
from halos_eval.shipped import shipped

pytestmark = [pytest.mark.real, pytest.mark.slow]  # it changes with the pin of lm_eval only

# Prints, for each list of names, how many entries were compared and those that differ.
COMPARE = """
import json, sys
from pathlib import Path
from lm_eval.tasks import TaskManager
from halos_eval.stages.harness.task_index import task_manager

folders, *lists = json.loads(sys.argv[1])
whole = TaskManager(include_path=folders)

def closure(name):
    entry = whole.task_index[name]
    yield name
    members = sorted(entry.tags) if entry.yaml_path is None else listed((entry.cfg or {}).get("task"))
    for member in members:
        if member in whole.task_index and member != name:
            yield from closure(member)

def listed(members):
    for member in members if isinstance(members, list) else ():
        if isinstance(member, str):
            yield member
        else:
            yield from (member[key] for key in ("group", "task") if isinstance(member.get(key), str))
            yield from listed(member.get("task"))

for names in lists:
    reduced = task_manager(names, map(Path, folders))
    compared = [member for name in names for member in closure(name)]
    # An entry holds the file from which lm_eval builds the task, and what stands in it, includes merged.
    differing = [name for name in compared if whole.task_index[name] != reduced.task_index.get(name)]
    print(json.dumps([len(compared), differing]))
"""


def compare(environments, folders, *lists):
    words = [environments / "worker" / "bin" / "python", "-c", COMPARE, json.dumps([[*map(str, folders)], *lists])]
    variables = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_ALLOW_CODE_EVAL": "1"}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_every_task_of_the_shipped_suites_is_the_same(environments):
    suites = [list(load_suite(name).tasks) for name in suite_names()]
    found = compare(environments, [shipped("tasks")], *suites)
    assert [differing for _, differing in found] == [[]] * len(suites)
    assert max(compared for compared, _ in found) > 57 + 27  # groups with all their members: mmlu and bbh


def test_includes_groups_tags_and_overrides_in_a_folder_of_ones_own(environments, tmp_path):
    files = {
        "_base": "tag: [my_tag, other_tag]\noutput_type: multiple_choice\ndataset_path: json\n",
        "deep/_middle_yaml": 'include: "../_base"\nnum_fewshot: 3\n',
        "deep/leaf.yaml": "include:\n  - _middle_yaml\ntask: my_leaf\n",
        "deep/inline.yaml": "include: [_middle_yaml]\ntask: 'my_inline (odd) name'\n",
        "without_a_name.yaml": "include: deep/leaf.yaml\n",  # a second my_leaf: the first in order counts
        "group.yaml": "group: my_group\ntask:\n  - my_tag\n  - group: my_nested\n    task: [my_lone, arc_easy]\n",
        "lone.yaml": "task: my_lone\noutput_type: generate_until\ndataset_path: json\n",
        "override.yaml": "task: arc_easy\noutput_type: generate_until\ndataset_path: json\n",
        "broken.yaml": "task: [my_lone\n",
        "__pycache__/cached.yaml": "task: my_lone\nnum_fewshot: 9\n",
        "quoted.yaml": '"include": "deep/_middle_yaml"\ntask: my_quoted\n',
        "list.yaml": "include:\n\n# beside it\n  - deep/_middle_yaml\ntask: my_list\nprocess: !function utils.f\n",
        "date.yaml": "include: 2024-13-45\ntask: my_lone\n",
        "../elsewhere/_base": "tag: [my_tag, other_tag]\n",
        "../elsewhere/linked.yaml": "include: _base\ntask: my_linked\noutput_type: generate_until\n",
    }
    folder = tmp_path / "tasks"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "linked.yaml").symlink_to(tmp_path / "elsewhere" / "linked.yaml")
    (folder / ".#locked.yaml").symlink_to("user@host.1:2")  # as an editor leaves it
    names = ["my_group", "other_tag", "my_inline (odd) name", "arc_easy"]
    (found,) = compare(environments, [folder], names)
    assert found == [17, []]  # some of them under two names
