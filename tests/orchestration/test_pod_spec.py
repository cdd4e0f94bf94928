"""The pod of a stage: what it takes from the cluster file, and what it must not have."""

from __future__ import annotations

import json
import re

import kubernetes_validate
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halos_eval.config.cluster import Kubernetes, Profile
from halos_eval.errors import BadInput
from halos_eval.orchestration.pod_spec import manifest, pod_name
from halos_eval.planning.jobs import StageJob

VERSION = "1.34"  # of the schemas; the pods use no newer field
STAGES = ["fetch", "sample", "judge", "harness", "summarize"]
KUBERNETES = {
    "namespace": "halos",
    "images": {"worker": "docker.io/halos/worker:1", "judge": "docker.io/halos/judge:1"},
    "imagePullPolicy": "Always",
    "imagePullSecrets": ["pull"],
    "serviceAccountName": "stage",
    "codeServiceAccountName": "code",
    "environment": {"AWS_ENDPOINT_URL": "http://s3", "HF_ENDPOINT": "http://hub"},
    "secrets": {
        "OPENAI_API_KEY": {"name": "judge", "key": "api-key"},
        "HF_TOKEN": {"name": "hub", "key": "token"},
        "AWS_SECRET_ACCESS_KEY": {"name": "store", "key": "secret"},
    },
    "volumes": {
        "checkpoints": {"mountPath": "/checkpoints", "persistentVolumeClaim": "checkpoints", "readOnly": True},
        "cache": {"mountPath": "/cache", "hostPath": "/srv/cache"},
        "outbox": {"mountPath": "/outbox", "persistentVolumeClaim": "outbox"},
        "suites": {"mountPath": "/suites", "configMap": "suites"},
        "results": {"mountPath": "/results", "persistentVolumeClaim": "results"},
        "scratch": {"mountPath": "/scratch", "emptyDir": "10Gi"},
    },
    "priorityClasses": {"manual": "halos-manual", "nightly": "halos-nightly"},
}
PROFILE = {
    "gpus": 2,
    "gpuResource": "amd.com/gpu",
    "cpu": "16",
    "memory": "128Gi",
    "sharedMemory": "24Gi",
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "runtimeClassName": "nvidia",
    "imagePullSecrets": ["pull-too"],
    "queue": "evaluation",
    "runTimeoutSeconds": 7200,
}
CPU = {"cpu": "1", "memory": "8Gi"}
OUTBOX = "runs/kto/harness.humaneval/0123"
ANSWERS = "answers/kto/harness.humaneval/0123"


def make_job(stage="sample", **parts):
    image = "worker" if stage in {"fetch", "sample", "harness"} else "judge"
    task = "gsm8k_cot" if stage == "harness" else None
    return StageJob(**{"stage": stage, "task": task, "image": image, "argv": (stage,), "profile": "default"} | parts)


def make_code_job(reads=("/cache/halos-eval/m.json", "/cache/datasets/humaneval", "/suites/tasks", "/elsewhere")):
    return make_job(
        "harness", task="humaneval", argv=("score", "--", "/answers"), outbox=OUTBOX, answers=ANSWERS, reads=reads
    )


def make(job=None, kubernetes=None, profile=None, priority="manual"):
    return manifest(
        job or make_job(),
        Kubernetes.model_validate(KUBERNETES if kubernetes is None else kubernetes),
        Profile.model_validate(PROFILE if profile is None else profile),
        priority,
        Profile.model_validate(CPU),
    )


def make_served(**parts):
    """Return a judge that is served beside its stage."""
    return make_job("judge", argv=("judge", "--", "o"), server=("serve", "--", "/m"), gpus=2, **parts)


def minimal():
    """Return a pod with the required values only: no secrets, no volumes, no GPU."""
    return make(kubernetes={key: KUBERNETES[key] for key in ("namespace", "images", "serviceAccountName")}, profile={})


def container(pod):
    [only] = pod["spec"]["containers"]
    return only


def environment(pod):
    """Return plain variables with their values, and secret ones with (Secret, key)."""
    found = {}
    for one in container(pod)["env"]:
        assert one["name"] not in found, "given twice"
        reference = one.get("valueFrom", {}).get("secretKeyRef")
        found[one["name"]] = (reference["name"], reference["key"]) if reference else one["value"]
    return found


def mounts(pod):
    """Return the container's mounts by volume. Assert that each mount has a volume and each volume a mount."""
    found = {one["name"]: one for one in container(pod)["volumeMounts"]}
    assert found.keys() == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert len(found) == len(container(pod)["volumeMounts"]) == len(pod["spec"]["volumes"])
    return found


def paths(pod):
    """Return the container's mounts by path."""
    found = {one["mountPath"]: one for one in container(pod)["volumeMounts"]}
    assert len(found) == len(container(pod)["volumeMounts"])
    assert {one["name"] for one in found.values()} == {volume["name"] for volume in pod["spec"]["volumes"]}
    return found


def volumes(pod):
    return {one.pop("name"): one for one in json.loads(json.dumps(pod["spec"]["volumes"]))}


PODS = {
    "gpu": make,
    "cpu": lambda: make(make_job("judge"), profile={}),
    "fetch": lambda: make(make_job("fetch"), profile={}),
    "summarize": lambda: make(make_job("summarize"), profile={}),
    "code": lambda: make(make_code_job()),
    "minimal": minimal,
}
any_pod = pytest.mark.parametrize("pod", [pod() for pod in PODS.values()], ids=PODS)


@any_pod
def test_kubernetes_accepts_it(pod):
    kubernetes_validate.validate(pod, VERSION, strict=True)
    json.dumps(pod)


def test_the_schema_would_find_a_mistake():
    pod = make()
    pod["spec"]["runtimeClass"] = "nvidia"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSION, strict=True)


@any_pod
def test_it_has_few_permissions(pod):
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["serviceAccountName"] == (
        "code" if pod["metadata"]["labels"]["halos-eval/network"] == "none" else "stage"
    )
    assert spec["restartPolicy"] == "Never"
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostAliases", "initContainers"} & spec.keys()
    assert not {"command", "envFrom", "lifecycle"} & container(pod).keys()


@pytest.mark.parametrize(
    ("job", "secrets"),
    [
        (make_job("fetch"), {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}),
        (make_job("sample"), {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}),
        (make_job("harness"), {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}),
        (make_job("judge"), {"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"}),
        (make_job("summarize"), {"AWS_SECRET_ACCESS_KEY"}),
        (make_code_job(), set()),
        (make_job("sample", manifest="/cache/m.json"), {"AWS_SECRET_ACCESS_KEY"}),
        (make_job("harness", manifest="/cache/m.json"), {"AWS_SECRET_ACCESS_KEY"}),
    ],
    ids=[*STAGES, "code", "pinned-sample", "pinned-harness"],
)
def test_each_stage_has_its_own_secrets(job, secrets):
    found = environment(make(job))
    assert {name for name, value in found.items() if isinstance(value, tuple)} == secrets
    assert not (KUBERNETES["secrets"].keys() - secrets) & found.keys()
    for name in secrets:
        assert found[name] == tuple(KUBERNETES["secrets"][name].values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_secret_is_never_a_plain_value(stage):
    environment_too = KUBERNETES["environment"] | dict.fromkeys(KUBERNETES["secrets"], "sk-shown")
    pod = make(make_job(stage), KUBERNETES | {"environment": environment_too})
    assert "sk-shown" not in json.dumps(pod)


@pytest.mark.parametrize("stage", STAGES)
def test_plain_variables_are_for_all(stage):
    found = environment(make(make_job(stage)))
    assert KUBERNETES["environment"].items() <= found.items()
    assert found["HF_HOME"] == "/cache"
    assert not [name for name in found if name.startswith("AIRFLOW")]


def test_without_a_cache_there_is_no_folder_for_it():
    assert "HF_HOME" not in environment(minimal())


def test_model_written_code_is_isolated():
    pod = make(make_code_job())
    assert pod["metadata"]["labels"]["halos-eval/network"] == "none"
    found = environment(pod)
    assert (found["HF_HUB_OFFLINE"], found["HF_DATASETS_OFFLINE"]) == ("1", "1")
    assert found["HF_DATASETS_CACHE"].startswith("/tmp/")
    assert found["HF_MODULES_CACHE"].startswith("/tmp/")
    # It sees only its own folder of the outbox, the answers, and what its task needs: no checkpoint, no other data.
    assert paths(pod) == {
        "/outbox": {"name": "outbox", "mountPath": "/outbox", "subPath": OUTBOX},
        "/answers": {"name": "outbox", "mountPath": "/answers", "subPath": ANSWERS, "readOnly": True},
        "/cache/halos-eval/m.json": read_only("cache", "/cache/halos-eval/m.json", "halos-eval/m.json"),
        "/cache/datasets/humaneval": read_only("cache", "/cache/datasets/humaneval", "datasets/humaneval"),
        "/suites/tasks": read_only("suites", "/suites/tasks", "tasks"),
        "/scratch": {"name": "scratch", "mountPath": "/scratch"},
        "/tmp": {"name": "tmp", "mountPath": "/tmp"},
        "/dev/shm": {"name": "shm", "mountPath": "/dev/shm"},
    }
    assert {name for name, volume in volumes(pod).items() if "emptyDir" in volume} == {"scratch", "tmp", "shm"}
    assert (pod["metadata"]["name"], pod["metadata"]["labels"]["app.kubernetes.io/component"]) == (
        "halos-eval-score-humaneval", "score",
    )  # fmt: skip


def read_only(name, path, inside):
    return {"name": name, "mountPath": path, "subPath": inside, "readOnly": True}


def test_a_whole_volume_and_what_is_below_another_path_are_mounted_once():
    pod = make(make_code_job(("/suites", "/suites/tasks", "/cache/a", "/cache/a/b")))
    assert paths(pod)["/suites"] == {"name": "suites", "mountPath": "/suites", "readOnly": True}
    assert paths(pod)["/cache/a"] == read_only("cache", "/cache/a", "a")
    assert not paths(pod).keys() & {"/suites/tasks", "/cache/a/b"}


def test_a_path_is_read_from_the_innermost_volume():
    inner = {"mountPath": "/cache/inner", "persistentVolumeClaim": "inner"}
    pod = make(make_code_job(("/cache/inner/a",)), KUBERNETES | {"volumes": KUBERNETES["volumes"] | {"inner": inner}})
    assert paths(pod)["/cache/inner/a"] == read_only("inner", "/cache/inner/a", "a")
    assert "cache" not in volumes(pod)


def test_the_pod_that_generates_answers_writes_a_copy_for_the_other_one():
    pod = make(make_job("harness", answers=ANSWERS))
    assert mounts(pod)["outbox"] == {"name": "outbox", "mountPath": "/outbox", "subPath": ANSWERS}
    assert pod["metadata"]["labels"]["halos-eval/network"] == "egress"
    assert pod["spec"]["serviceAccountName"] == "stage"
    assert "AWS_SECRET_ACCESS_KEY" in environment(pod)


@pytest.mark.parametrize("stage", STAGES)
def test_the_outbox_is_for_code_and_the_summary(stage):
    pod = make(make_job(stage))
    assert pod["metadata"]["labels"]["halos-eval/network"] == "egress"
    if stage == "summarize":
        assert mounts(pod)["outbox"] == {"name": "outbox", "mountPath": "/outbox"}  # all of it, to empty it
    else:
        assert "outbox" not in mounts(pod)
    assert "HF_HUB_OFFLINE" not in environment(pod)
    assert mounts(pod)["cache"] == {"name": "cache", "mountPath": "/cache"}
    assert mounts(pod)["checkpoints"]["readOnly"] is True


@pytest.mark.parametrize("job", [*map(make_job, STAGES), make_code_job()], ids=[*STAGES, "code"])
def test_a_read_only_cache_is_written_by_fetch_alone(job):
    cache = {"mountPath": "/cache", "persistentVolumeClaim": "cache", "readOnly": True}
    pod = make(job, KUBERNETES | {"volumes": KUBERNETES["volumes"] | {"cache": cache}})
    found = [one for one in container(pod)["volumeMounts"] if one["name"] in {"cache", "checkpoints"}]
    assert {one.get("readOnly", False) for one in found if one["name"] == "cache"} == {job.stage != "fetch"}
    assert all(one["readOnly"] for one in found if one["name"] == "checkpoints")
    assert environment(pod)["HF_HOME"] == "/cache"


COMPILING = KUBERNETES | {
    "volumes": KUBERNETES["volumes"] | {"compile": {"mountPath": "/compile", "persistentVolumeClaim": "compile"}}
}


@pytest.mark.parametrize("stage", ["sample", "harness"])
def test_a_gpu_pod_writes_the_compile_cache(stage):
    pod = make(make_job(stage), COMPILING)
    assert mounts(pod)["compile"] == {"name": "compile", "mountPath": "/compile"}
    assert environment(pod)["HALOS_EVAL_COMPILE_CACHE"] == "/compile"


@pytest.mark.parametrize(
    "job",
    [*map(make_job, ("fetch", "judge", "summarize")), make_served(), make_code_job(("/compile/a",)), make_code_job()],
    ids=["fetch", "judge", "summarize", "served judge", "code that names it", "code"],
)
def test_no_other_pod_has_the_compile_cache(job):
    """Whoever may write it could let a GPU pod, with the store's secrets, execute what it wants."""
    pod = make(job, COMPILING)
    assert "compile" not in json.dumps(pod).lower()


def test_a_pod_without_a_gpu_compiles_nothing():
    pod = make(make_job("harness"), COMPILING, CPU)
    assert "compile" not in mounts(pod)
    assert "HALOS_EVAL_COMPILE_CACHE" not in environment(pod)


@pytest.mark.parametrize("source", [{"emptyDir": "1Gi"}, {"configMap": "compile"}], ids=str)
def test_a_profile_cannot_give_it_to_code(source):
    profile = PROFILE | {"volumes": {"compile": {"mountPath": "/compile", **source}}}
    assert "/compile" not in paths(make(make_code_job(), COMPILING, profile))


def test_volumes_come_from_their_source():
    assert volumes(make(make_job("summarize"))) == {
        "checkpoints": {"persistentVolumeClaim": {"claimName": "checkpoints"}},
        "cache": {"hostPath": {"path": "/srv/cache"}},
        "outbox": {"persistentVolumeClaim": {"claimName": "outbox"}},
        "suites": {"configMap": {"name": "suites"}},
        "results": {"persistentVolumeClaim": {"claimName": "results"}},
        "scratch": {"emptyDir": {"sizeLimit": "10Gi"}},
        "tmp": {"emptyDir": {"sizeLimit": "50Gi"}},
        "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "24Gi"}},
    }


def test_a_profile_has_volumes_of_its_own():
    cache = {"mountPath": "/cache", "persistentVolumeClaim": "fast"}
    pod = make(profile=PROFILE | {"volumes": {"cache": cache, "more": {"mountPath": "/more", "emptyDir": "1Gi"}}})
    assert volumes(pod)["cache"] == {"persistentVolumeClaim": {"claimName": "fast"}}
    assert mounts(pod)["more"]["mountPath"] == "/more"


@any_pod
def test_there_is_one_tmp_and_one_shm(pod):
    assert paths(pod).keys() >= {"/tmp", "/dev/shm"}


@pytest.mark.parametrize("name", ["tmp", "fast"])
def test_scratch_can_be_another_volume(name):
    pod = make(profile=PROFILE | {"volumes": {name: {"mountPath": "/tmp", "hostPath": "/nvme"}}})
    paths = {mount["mountPath"]: name for name, mount in mounts(pod).items()}
    assert paths["/tmp"] == name
    assert volumes(pod)[name] == {"hostPath": {"path": "/nvme"}}
    assert [mount["mountPath"] for mount in mounts(pod).values()].count("/tmp") == 1


@pytest.mark.parametrize("name", ["tmp", "fast"])
def test_model_written_code_has_its_own_scratch_folder(name):
    profile = PROFILE | {"volumes": {name: {"mountPath": "/tmp", "hostPath": "/nvme"}}}
    pod = make(make_code_job(), profile=profile)
    assert paths(pod)["/tmp"] == {"name": "tmp", "mountPath": "/tmp"}
    assert volumes(pod)["tmp"] == {"emptyDir": {"sizeLimit": "50Gi"}}
    assert "/nvme" not in json.dumps(pod)


def test_gpus_memory_and_processors():
    assert container(make())["resources"] == {
        "requests": {"cpu": "16", "memory": "128Gi", "amd.com/gpu": "2"},
        "limits": {"memory": "128Gi", "amd.com/gpu": "2"},
    }
    assert container(make(profile={"gpus": 1}))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container(make(profile={}))["resources"] == {
        "requests": {"cpu": "4", "memory": "32Gi"},
        "limits": {"memory": "32Gi"},
    }


def test_where_it_runs():
    pod = make()
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert spec["tolerations"] == PROFILE["tolerations"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["imagePullSecrets"] == [{"name": "pull"}, {"name": "pull-too"}]
    assert spec["activeDeadlineSeconds"] == 7200
    assert container(pod)["imagePullPolicy"] == "Always"
    assert pod["metadata"]["namespace"] == "halos"
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "evaluation"


def test_unset_values_are_left_to_kubernetes():
    pod = minimal()
    spec = pod["spec"]
    assert not {
        "nodeSelector", "tolerations", "priorityClassName", "runtimeClassName", "imagePullSecrets",
    } & spec.keys()  # fmt: skip
    assert "kueue.x-k8s.io/queue-name" not in pod["metadata"]["labels"]
    assert spec["activeDeadlineSeconds"] == 24 * 3600


@pytest.mark.parametrize(
    ("priority", "own", "found"),
    [
        ("manual", None, "halos-manual"),
        ("nightly", None, "halos-nightly"),
        ("backfill", None, None),
        ("backfill", "urgent", "urgent"),
        ("manual", "urgent", "urgent"),
    ],
)
def test_priority_classes(priority, own, found):
    pod = make(profile=PROFILE | {"priorityClassName": own}, priority=priority)
    assert pod["spec"].get("priorityClassName") == found
    assert pod["metadata"]["labels"]["halos-eval/priority"] == priority


@pytest.mark.parametrize("stage", STAGES)
def test_labels_and_image(stage):
    pod = make(make_job(stage))
    labels = pod["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == labels["app.kubernetes.io/part-of"] == "halos-eval"
    assert labels["app.kubernetes.io/component"] == stage
    assert container(pod)["image"] == f"docker.io/halos/{make_job(stage).image}:1"
    assert container(pod)["name"] == "base"
    assert container(pod)["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_arguments_are_not_split_or_joined():
    argv = ("sample", "--stop=a b; $(c) `d` {{ e }}", "", "--", "ü\n")
    assert [expanded(word, {}) for word in container(make(make_job(argv=argv)))["args"]] == list(argv)


OF_THE_OPERATOR = {
    "infrastructure_budget_seconds",
    "schedule_timeout_seconds",
    "start_timeout_seconds",
}  # tests/orchestration/test_pods.py
OF_THE_PLAN = {"engines", "tensor_parallel_size"}  # tests/planning/test_plan.py
CHANGES = {
    "gpus": 3,
    "gpu_resource": "intel.com/gpu",
    "cpu": "1",
    "memory": "1Gi",
    "shared_memory": "1Gi",
    "node_selector": {"other": "x"},
    "tolerations": ({"key": "other"},),
    "priority_class_name": "other",
    "runtime_class_name": "other",
    "image_pull_secrets": ("other",),
    "queue": "other",
    "volumes": {"other": {"mount_path": "/other", "empty_dir": "1Gi"}},
    "pod_overrides": {"spec": {"schedulerName": "volcano"}},
    "run_timeout_seconds": 1,
}


def test_no_field_of_a_profile_is_forgotten():
    assert CHANGES.keys() | OF_THE_OPERATOR | OF_THE_PLAN == Profile.model_fields.keys()


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_of_a_profile_changes_the_pod(field):
    usual = Profile.model_validate(PROFILE)
    other = Profile.model_validate({**usual.model_dump(), field: CHANGES[field]})
    arguments = make_job(), Kubernetes.model_validate(KUBERNETES)
    assert manifest(*arguments, other, "manual") != manifest(*arguments, usual, "manual")


DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (make_job("sample"), "halos-eval-sample"),
        (make_job("summarize"), "halos-eval-summarize"),
        (make_job("harness", task="bbh_cot_fewshot"), "halos-eval-harness-bbh-cot-fewshot"),
        (make_job("harness", task="MMLU__x.y"), "halos-eval-harness-mmlu-x-y"),
    ],
)
def test_a_pods_name_has_the_stage_and_the_task(job, name):
    assert pod_name(job) == name == make(job)["metadata"]["name"]


@given(task=st.text(max_size=80) | st.text("aZ9-_.", min_size=25, max_size=60))
@example(task="a" * 31 + "_" + "b")
@example(task="-" * 60)
def test_every_task_has_a_name_that_kubernetes_accepts(task):
    name = pod_name(make_job("harness", task=task))
    assert DNS_1123.fullmatch(name)
    assert len(name) <= 52  # the operator adds up to nine characters, and a label has at most 63
    assert name.startswith("halos-eval-harness")


# Words that Kubernetes would interpret


def expanded(text, variables):
    """Return ``text`` as the kubelet passes it to the container.

    https://github.com/kubernetes/kubernetes/blob/v1.34.0/third_party/forked/golang/expansion/expand.go
    """
    found, at = "", 0
    while at < len(text):
        rest = text[at:]
        if rest.startswith("$$"):
            word, length = "$", 2
        elif rest.startswith("$(") and ")" in rest:
            length = rest.index(")") + 1
            name = rest[2 : length - 1]
            word = variables.get(name, f"$({name})")
        else:
            word, length = rest[0], 1
        found, at = found + word, at + length
    return found


WORDS = st.text(alphabet="$()KEYa{} ", max_size=12)


def test_the_kubelet_would_print_a_secret():
    assert expanded("$(KEY).jinja $$ $$(KEY) $x $(NONE) $(", {"KEY": "secret"}) == "secret.jinja $ $(KEY) $x $(NONE) $("


@given(word=WORDS, value=WORDS)
@example(word="$(KEY).jinja", value="$(KEY)")
@example(word="$$", value="$$(KEY)")
def test_arguments_and_variables_reach_the_stage_as_they_are(word, value):
    pod = make(make_job(argv=("sample", word)), kubernetes=KUBERNETES | {"environment": {"OWN": value}})
    variables = {"KEY": "secret", "": "nothing"}
    assert [expanded(one, variables) for one in container(pod)["args"]] == ["sample", word]
    assert expanded(environment(pod)["OWN"], variables) == value


# A judge that is served: the stage, and beside it the server with the GPUs


@pytest.fixture
def served():
    """The two containers of a judge that is served, and their pod."""
    pod = make(make_served())
    stage, server = pod["spec"]["containers"]
    return pod, stage, server


def test_kubernetes_accepts_a_judge_with_its_server(served):
    pod, _, _ = served
    kubernetes_validate.validate(pod, VERSION, strict=True)
    kubernetes_validate.validate(make(make_served(), profile={}), VERSION, strict=True)


def test_the_operator_follows_the_stage_and_the_server_has_the_gpus(served):
    _, stage, server = served
    assert (stage["name"], server["name"]) == ("base", "server")
    assert (stage["image"], server["image"]) == ("docker.io/halos/judge:1", "docker.io/halos/worker:1")
    assert stage["args"] == ["judge", "--exchange=/exchange", "--", "o"]
    assert server["args"] == ["serve", "--exchange=/exchange", "--", "/m"]
    assert stage["resources"] == {"requests": {"cpu": "1", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}
    assert server["resources"]["limits"] == {"memory": "128Gi", "amd.com/gpu": "2"}


def test_both_containers_share_a_folder_that_ends_with_the_pod(served):
    pod, stage, server = served
    assert volumes(pod)["exchange"] == {"emptyDir": {"sizeLimit": "1Gi"}}
    for one in (stage, server):
        assert {"name": "exchange", "mountPath": "/exchange"} in one["volumeMounts"]
        assert {mount["name"] for mount in one["volumeMounts"]} == volumes(pod).keys()
    assert "exchange" not in volumes(make(make_job("judge")))


@pytest.mark.parametrize(("pinned", "hub"), [("/cache/m.json", set()), (None, {"HF_TOKEN"})])
def test_the_server_gets_at_most_the_hubs_token(pinned, hub):
    stage, server = make(make_served(manifest=pinned))["spec"]["containers"]
    secrets = [{one["name"] for one in each["env"] if "valueFrom" in one} for each in (stage, server)]
    assert secrets == [{"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"}, hub]


def test_both_containers_have_few_permissions(served):
    pod, stage, server = served
    assert (
        stage["securityContext"]
        == server["securityContext"]
        == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    )
    assert not {"initContainers", "shareProcessNamespace"} & pod["spec"].keys()
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "judge"


def test_an_override_of_the_container_is_for_both(served):
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy"}
    overrides = {"spec": {"containers": [{"name": "base", "env": [proxy]}]}}
    for one in make(make_served(), profile=PROFILE | {"podOverrides": overrides})["spec"]["containers"]:
        assert proxy in one["env"]
    own = {
        "spec": {
            "containers": [*overrides["spec"]["containers"], {"name": "server", "resources": {"limits": {"cpu": "8"}}}]
        }
    }
    stage, server = make(make_served(), profile=PROFILE | {"podOverrides": own})["spec"]["containers"]
    assert (proxy in stage["env"], proxy in server["env"]) == (True, False)
    assert server["resources"]["limits"]["cpu"] == "8"


@pytest.mark.parametrize(
    "change", [{"args": ["x"]}, {"securityContext": {"privileged": True}}, {"securityContext": {"runAsUser": 0}}]
)
def test_an_override_cannot_weaken_the_server(change):
    overrides = {"spec": {"containers": [{"name": "server", **change}]}}
    with pytest.raises(BadInput, match="podOverrides change"):
        make(make_served(), profile=PROFILE | {"podOverrides": overrides})
