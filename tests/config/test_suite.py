"""Suites: the shipped ones match their descriptions, and all errors of a file are reported at once."""

from __future__ import annotations

import pytest

from halos_eval.config.suite import label_of, load_suite, place_of, suite_names
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped

SHIPPED = sorted(path.stem for path in shipped("suites").glob("*.yaml"))
HALOS_TASKS = [
    "arc_easy", "arc_challenge", "winogrande", "mmlu", "bbh_cot_fewshot", "gsm8k_cot", "humaneval", "mbpp",
    "truthfulqa_mc2", "toxigen", "ifeval", "gpqa_main_zeroshot",
]  # fmt: skip


@pytest.fixture
def load(tmp_path):
    def load(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return load_suite(str(tmp_path / name))

    return load


@pytest.fixture
def error(load):
    def error(text, name="mine.yaml"):
        with pytest.raises(BadInput) as caught:
            load(text, name)
        return str(caught.value)

    return error


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suites(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.description
    assert suite.alpaca_eval
    assert suite.parts == ["alpaca_eval", *suite.tasks]


def test_halos_set_is_complete():
    suite = load_suite("halos")
    assert sorted(suite.tasks) == sorted(HALOS_TASKS)
    assert suite.alpaca_eval.judge == "gpt-4.1"
    assert suite.alpaca_eval.prompts == suite.alpaca_eval.reference == "alpaca_eval"
    # HALOs samples with these, and its tables are of whole tasks with each task's own number of examples.
    sampling = suite.alpaca_eval.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.7, 0.95, 2048)
    assert all(task.limit is None and task.num_fewshot is None for task in suite.tasks.values())


def test_only_tasks_that_execute_code_may():
    suite = load_suite("halos")
    assert {name for name, task in suite.tasks.items() if task.confirm_unsafe_code} == {"humaneval", "mbpp"}


def test_the_reasoning_suite_declares_thinking_everywhere_within_its_length():
    suite = load_suite("halos-reasoning")
    sampling = suite.alpaca_eval.sampling
    assert (sampling.mode, sampling.max_tokens) == ("default", 32768)
    assert sampling.max_tokens < sampling.max_model_len
    for task in suite.tasks.values():
        assert task.mode == "default"
        assert task.gen_kwargs["max_gen_toks"] < task.max_model_len


def test_options_of_generation(load):
    suite = load(
        "harness: {apply_chat_template: true, thinking: on, gen_kwargs: {temperature: 0.6}}\n"
        "tasks:\n  a: {thinking: off, limit: 0.1}\n  b: {thinking: null, gen_kwargs: {max_gen_toks: 9}, repeats: 4}\n"
        "  c: {thinking: null, chat_template_args: {enable_thinking: false}}\n  d: {thinking: null, think_end_token: T}"
    )
    assert [task.mode for task in suite.tasks.values()] == ["off", None, "off", "default"]
    assert suite.tasks["a"].gen_kwargs == {"temperature": 0.6}
    assert suite.tasks["b"].gen_kwargs == {"max_gen_toks": 9}
    assert (suite.tasks["a"].limit, suite.tasks["b"].repeats) == (0.1, 4)


def test_settings_count_in_a_fingerprint_only_if_they_are_set(load):
    task = load("tasks: {a: {}}").tasks["a"].harness()
    assert set(task.counted) == {
        "backend", "dtype", "num_fewshot", "batch_size", "limit", "apply_chat_template", "fewshot_as_multiturn", "seed",
        "max_model_len", "confirm_unsafe_code",
    }  # fmt: skip
    more = load("tasks: {a: {apply_chat_template: true, thinking: on, gen_kwargs: {top_k: 20}}}").tasks["a"].harness()
    assert more.counted.items() >= {"thinking": "on", "gen_kwargs": {"top_k": 20}}.items()


def test_tasks_start_from_the_suites_settings(load):
    suite = load("harness: {limit: 5, dtype: float32}\ntasks:\n  a: {}\n  b:\n  c: {limit: 7, metric: acc}")
    assert {name: (task.limit, task.dtype, task.metric) for name, task in suite.tasks.items()} == {
        "a": (5, "float32", None),
        "b": (5, "float32", None),
        "c": (7, "float32", "acc"),
    }


def test_a_reproducible_suite_is_so_in_all_its_parts(load):
    suite = load("reproducible: true\nalpaca_eval: {sampling: {seed: 3}}\ntasks: {a: {reproducible: false}, b: }")
    assert (suite.alpaca_eval.sampling.reproducible, suite.alpaca_eval.sampling.seed) == (True, 3)
    assert {name: task.harness().reproducible for name, task in suite.tasks.items()} == {"a": False, "b": True}


def test_without_the_key_its_settings_are_as_they_were_before_it_existed(load):
    suite = load("alpaca_eval: {}\ntasks: {a: }")
    assert "reproducible" not in suite.alpaca_eval.sampling.counted | suite.tasks["a"].harness().counted


def test_a_task_with_parentheses(load):
    task = "egymmlu_arabic_language_(general)"
    assert list(load(f"tasks: {{{task}: {{}}}}").keep([task]).tasks) == [task]


def test_profiles_of_the_suite_and_of_its_parts(load):
    suite = load("profile: big\nharness: {profile: two}\nalpaca_eval: {profile: four}\ntasks: {a: , b: {profile: one}}")
    assert (suite.profile, suite.alpaca_eval.profile) == ("big", "four")
    assert {name: task.profile for name, task in suite.tasks.items()} == {"a": "two", "b": "one"}
    usual = load("alpaca_eval: {}\ntasks: {a: }")
    assert (usual.profile, usual.alpaca_eval.profile, usual.tasks["a"].profile) == ("default", None, None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("task: {a: {}}", "task"),
        ("tensor_parallel_size: 2\ntasks: {a: {}}", "tensor_parallel_size"),  # the profile says it
        ("tasks: {a: {num_fewshots: 5}}", "tasks.a.num_fewshots"),
        ("harness: {limits: 5}\ntasks: {a: {}}", "tasks.a.limits"),
        ("alpaca_eval: {jugde: gpt-4.1}", "alpaca_eval.jugde"),
        ("alpaca_eval: {sampling: {temprature: 0}}", "alpaca_eval.sampling.temprature"),
    ],
)
def test_a_misspelt_key_is_named(error, text, key):
    message = error(text)
    assert f"{key}: Extra inputs are not permitted" in message
    assert "mine.yaml" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: {a: {limit: 0}}", "tasks.a.limit"),
        ("tasks: {a: {fewshot_as_multiturn: true}}", "fewshot_as_multiturn requires apply_chat_template"),
        ("tasks: {a: {backend: hf, batch_size: auto}}", "Set a number"),
        ("tasks: {a: 5}", "tasks.a"),
        ("tasks: {a: {limit: 1.0}}", "from 1 on, or a share between 0 and 1 (value: 1.0). Leave it out"),
        ("tasks: {a: {limit: true}}", "tasks.a.limit"),
        ("tasks: {a: {thinking: on}}", "thinking requires apply_chat_template: true"),
        ("tasks: {a: {thinking: sometimes, apply_chat_template: true}}", "tasks.a.thinking"),
        ("tasks: {a: {thinking: on, apply_chat_template: true, backend: hf}}", "thinking requires backend: vllm"),
        (
            "tasks: {a: {thinking: on, apply_chat_template: true, chat_template_args: {enable_thinking: false}}}",
            "thinking is on, but chat_template_args sets enable_thinking to False. Remove one of them",
        ),
        ("tasks: {a: {apply_chat_template: true, chat_template_args: {thinking: 1}}}", "expected true or false"),
        ("tasks: {a: {gen_kwargs: {tempreature: 1}}}", "tasks.a.gen_kwargs"),
        ("tasks: {a: {gen_kwargs: {temperature: 0, top_p: 0.9}}}", "top_p has no effect with temperature 0"),
        ("tasks: {a: {gen_kwargs: {max_gen_toks: 0}}}", "tasks.a.gen_kwargs"),
        ("tasks: {a: {gen_kwargs: {temperature: 0}, repeats: 2}}", "repeats are all equal with temperature 0"),
        ("tasks: {a: {gen_kwargs: {presence_penalty: 1}, backend: hf}}", "presence_penalty requires backend: vllm"),
        ("tasks: {a: {system_instruction: Be brief.}}", "system_instruction requires apply_chat_template: true"),
        ("tasks: [a]", "tasks"),
        ("harness: [a]\ntasks: {a: {}}", "harness"),
        ("harness: 5\ntasks: {a: {}}", "harness"),
        ("tasks: {../a: {}}", "'../a' is invalid or reserved"),
        ("tasks: {(a): {}}", "'(a)' is invalid or reserved"),
        ("tasks: {a*: {}}", "'a*' is invalid or reserved"),
        (f"tasks: {{{'a' * 201}: {{}}}}", "is invalid or reserved"),
        ("tasks: {alpaca_eval: {}}", "is invalid or reserved"),
        ("tasks: {1: {}}", "tasks"),
        ("1: 2", "1"),
        ("description: nothing to do", "alpaca_eval or at least one task"),
        ("tasks: {}", "alpaca_eval or at least one task"),
        ("alpaca_eval: {sampling: {samples_per_prompt: 2}}", "samples_per_prompt must be 1"),
        ("alpaca_eval: {sampling: {stop: '###'}}", "expected a JSON list"),
        ("gpu_memory_utilization: 1.5\nalpaca_eval: {}", "gpu_memory_utilization"),
        ("description: 2026-02-30", "is not valid YAML"),  # YAML's own dates
        ("a: [", "is not valid YAML"),
        ("[a]", "YAML mapping"),
        ("", "YAML mapping"),
    ],
)
def test_what_is_wrong_in_a_suite(error, text, words):
    assert words in error(text)


def test_all_mistakes_at_once(error):
    message = error("tasks:\n  a: {limit: -1, seed: 3}\n  b: {dtype: int8}\ngpu_memory_utilization: 2")
    for where in ("tasks.a.limit", "tasks.a.seed", "tasks.b.dtype", "gpu_memory_utilization"):
        assert where in message


@pytest.mark.parametrize("name", ["a b.yaml", "a.b.yaml", ".yaml", "é.yaml"])
def test_a_files_name_is_a_suites_name(error, name):
    assert "file name is invalid" in error("tasks: {a: {}}", name)


def test_a_suite_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is not valid YAML"):
        load_suite(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", ["nothing", "../suites/demo", "", "halos\n", "/none.yaml"])
def test_a_suite_that_is_not_there(name):
    with pytest.raises(BadInput) as caught:
        load_suite(name)
    assert name.endswith(".yaml") or ", ".join(SHIPPED) in str(caught.value)


def test_suites_of_ones_own_come_first(tmp_path, monkeypatch):
    (tmp_path / "quick.yaml").write_text("tasks: {a: {}}")
    (tmp_path / "mine.yaml").write_text("tasks: {b: {}}")
    monkeypatch.setenv("HALOS_EVAL_SUITES", str(tmp_path))
    assert list(load_suite("quick").tasks) == ["a"]
    assert list(load_suite("mine").tasks) == ["b"]
    assert load_suite("halos").alpaca_eval
    assert suite_names() == sorted({*SHIPPED, "mine"})


def test_ones_own_suite_is_found_by_its_file_in_another_environment_too(tmp_path, monkeypatch):
    (tmp_path / "quick.yaml").write_text("tasks: {a: {}}")
    monkeypatch.setenv("HALOS_EVAL_SUITES", str(tmp_path))
    assert place_of("quick") == str(tmp_path / "quick.yaml")
    assert place_of("halos") == "halos"  # another environment has it elsewhere
    with pytest.raises(BadInput, match="unknown suite"):
        place_of("nothing")


def test_files_are_those_beside_the_suite(load, tmp_path):
    for name in ("prompts.json", "judge.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "tasks").mkdir()
    suite = load("include_path: tasks\nalpaca_eval: {prompts: prompts.json, reference: demo, judge: judge.yaml}")
    names = suite.alpaca_eval
    folder = tmp_path.resolve()
    assert suite.include_path == f"{folder}/tasks"
    assert (names.prompts, names.judge) == (f"{folder}/prompts.json", f"{folder}/judge.yaml")
    assert names.reference == "demo"


def test_names_stay_names_whatever_lies_beside_the_suite(load, tmp_path):
    for name in ("demo", "gpt-4", "alpaca_eval"):
        (tmp_path / name).mkdir()
    names = load("alpaca_eval: {prompts: demo, judge: gpt-4.1}").alpaca_eval
    assert (names.prompts, names.reference, names.judge) == ("demo", "alpaca_eval", "gpt-4.1")


def test_keep_some_parts():
    suite = load_suite("demo")
    assert suite.keep([]) == suite
    assert suite.keep(["demo_cloze", "demo_choice"]).parts == ["demo_choice", "demo_cloze"]
    assert suite.keep(["alpaca_eval"]).parts == ["alpaca_eval"]
    assert suite.keep(["demo_cloze"]).tasks["demo_cloze"] == suite.tasks["demo_cloze"]


def test_keep_names_what_is_unknown():
    with pytest.raises(BadInput, match=r"suite demo has no mmlu, Demo_cloze; available: alpaca_eval, demo_choice"):
        load_suite("demo").keep(["demo_cloze", "mmlu", "Demo_cloze"])


def test_several_judges(load, tmp_path):
    (tmp_path / "ours.yaml").write_text("")
    settings = load(
        "alpaca_eval: {judge: [gpt-4.1, ours.yaml, weighted_alpaca_eval_gpt4_turbo], swap: true}"
    ).alpaca_eval
    assert settings.judges == ("gpt-4.1", str(tmp_path / "ours.yaml"), "weighted_alpaca_eval_gpt4_turbo")
    assert [label_of(one) for one in settings.judges] == ["gpt-4.1", "ours", "weighted_alpaca_eval_gpt4_turbo"]
    assert settings.swap
    one = load("alpaca_eval: {judge: demo}").alpaca_eval
    assert (one.judge, one.judges, one.swap) == ("demo", ("demo",), False)


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        ("[]", "expected at least one judge"),
        ("[gpt-4.1, gpt-4.1]", "two judges are called 'gpt-4.1'"),
        ("[demo, a/our.yaml, b/our.yaml]", "two judges are called 'our'"),
        ("[demo, 'our judge.yaml']", "judge 'our judge' cannot be the name of a column"),
    ],
)
def test_judges_that_cannot_have_columns_of_their_own(error, judges, words):
    assert words in error(f"alpaca_eval: {{judge: {judges}}}")
