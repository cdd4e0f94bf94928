"""The cluster file: unknown keys are rejected, keys are in camelCase, and impossible profiles are reported early."""

from __future__ import annotations

import typing

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

from halos_eval.config import cluster
from halos_eval.config.cluster import Cluster, Kubernetes, Pools, Profile, Volume, load_cluster
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped

LOCAL = {"pools": {"gpu": 2, "judge": 1}, "profiles": {"default": {"gpus": 1}}}
KUBERNETES = {
    "namespace": "halos",
    "images": {"worker": "docker.io/halos/worker:1", "judge": "docker.io/halos/judge:1"},
    "serviceAccountName": "stage",
}
REMOTE = {
    "pools": {"gpu": 8, "judge": 2},
    "profiles": {"default": {"gpus": 1}, "cpu": {}},
    "kubernetes": KUBERNETES,
}
MODELS = [
    one
    for one in vars(cluster).values()
    if isinstance(one, type) and issubclass(one, BaseModel) and one.__module__ == cluster.__name__
]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``load(document)`` writes the cluster's file and reads it; text and bytes are written as they are."""

    def load(document):
        path = tmp_path / "cluster.yaml"
        text = document if isinstance(document, str | bytes) else yaml.safe_dump(document, sort_keys=False)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(path))
        return load_cluster()

    return load


@pytest.fixture
def error(load):
    """Load a wrong file and return the message."""

    def error(document):
        with pytest.raises(BadInput, match=r"cluster .*/cluster\.yaml") as caught:
            load(document)
        return str(caught.value)

    return error


def kubernetes(**changes):
    return REMOTE | {"kubernetes": KUBERNETES | changes}


def profile(**changes):
    return LOCAL | {"profiles": {"default": changes}}


@pytest.mark.parametrize("path", sorted(shipped("clusters").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_files(path, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(path))
    assert load_cluster().gpu_profile("default")


def test_this_machine_is_the_default(monkeypatch):
    monkeypatch.delenv("HALOS_EVAL_CLUSTER", raising=False)
    found = load_cluster()
    assert found.kubernetes is None
    assert (found.pools.gpu, found.pools.judge) == (1, 1)
    assert (found.gpu_profile("default").gpus, found.gpu_profile("default").parts) == (1, 1)
    assert found.outbox is None


def test_every_key_is_spelled_as_kubernetes_does(load):
    for model in MODELS:
        for name, field in model.model_fields.items():
            assert field.alias == to_camel(name)
    volume = {"mountPath": "/out", "persistentVolumeClaim": "out", "readOnly": True}
    found = load(kubernetes(volumes={"outbox": volume}, imagePullSecrets=["pull"], priorityClasses={"nightly": "low"}))
    assert found.outbox == Volume(mount_path="/out", persistent_volume_claim="out", read_only=True)
    assert found.kubernetes.image_pull_secrets == ("pull",)


def test_names_that_people_choose_keep_their_spelling(load):
    found = load(
        {
            "pools": {"gpu": 8, "judge": 1},
            "profiles": {
                "default": {"nodeSelector": {"my_label": "x"}, "tolerations": [{"tolerationSeconds": 5, "my_key": 1}]},
                "cpu": {},
                "two_gpus": {"gpus": 2},
            },
            "kubernetes": KUBERNETES | {"environment": {"AWS_ENDPOINT_URL": "http://s3"}},
        }
    )
    assert found.profiles["two_gpus"].gpus == 2
    assert found.profiles["default"].node_selector == {"my_label": "x"}
    assert found.profiles["default"].tolerations == ({"tolerationSeconds": 5, "my_key": 1},)
    assert found.kubernetes.environment == {"AWS_ENDPOINT_URL": "http://s3"}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ((), "extra"),
        (("pools",), "extra"),
        (("profiles", "default"), "extra"),
        (("profiles", "default"), "shared_memory"),  # Python's spelling is not a second one
        (("kubernetes",), "extra"),
        (("kubernetes",), "service_account_name"),
        (("kubernetes", "images"), "extra"),
        (("kubernetes", "volumes", "cache"), "extra"),
        (("kubernetes", "secrets", "HF_TOKEN"), "extra"),
    ],
)
def test_unknown_keys_are_refused(error, path, key):
    document = yaml.safe_load(
        yaml.safe_dump(
            kubernetes(
                volumes={"cache": {"mountPath": "/cache", "hostPath": "/cache"}},
                secrets={"HF_TOKEN": {"name": "hub", "key": "token"}},
            )
        )
    )
    place = document
    for part in path:
        place = place[part]
    place[key] = "x"
    assert f"{'.'.join((*path, key))}: Extra inputs are not permitted" in error(document)


def test_all_errors_are_reported_at_once(error):
    words = error(
        {
            "pools": {"gpu": 0},
            "profiles": {"default": {"gpus": -1, "runTimeoutSeconds": 0, "queue": "No_Label"}},
            "kubernetes": {"namespace": "A", "images": {}, "imagePullPolicy": "Sometimes", "unknown": 1},
            "more": 1,
        }
    )
    for place in (
        "pools.gpu", "pools.judge", "profiles.default.gpus", "profiles.default.runTimeoutSeconds",
        "profiles.default.queue", "kubernetes.namespace", "kubernetes.images.worker", "kubernetes.images.judge",
        "kubernetes.imagePullPolicy", "kubernetes.unknown", "more",
    ):  # fmt: skip
        assert f"{place}: " in words, place
    assert "\n" not in words


@pytest.mark.parametrize("document", ["", "[]", "3", "null"])
def test_a_file_that_is_no_mapping(error, document):
    assert "document: " in error(document)


@pytest.mark.parametrize("document", ["a: [", b"\xff\xfe", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_yaml(error, document):
    assert "(HALOS_EVAL_CLUSTER) is not valid YAML" in error(document)


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_a_file_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / name))
    with pytest.raises(BadInput, match=r"HALOS_EVAL_CLUSTER\) cannot be read"):
        load_cluster()


SOURCES = {"persistentVolumeClaim": "claim", "hostPath": "/data", "emptyDir": "1Gi", "configMap": "map"}


@pytest.mark.parametrize("source", SOURCES)
def test_a_volume_from_one_source(load, source):
    found = load(kubernetes(volumes={"data": {"mountPath": "/data", source: SOURCES[source]}}))
    assert found.kubernetes.volumes["data"].model_dump(exclude_none=True, by_alias=True) == {
        "mountPath": "/data", "readOnly": False, source: SOURCES[source],
    }  # fmt: skip


@pytest.mark.parametrize("sources", [[], ["hostPath", "emptyDir"], ["persistentVolumeClaim", "configMap"], SOURCES])
def test_a_volume_has_exactly_one_source(error, sources):
    volume = {"mountPath": "/data", **{source: SOURCES[source] for source in sources}}
    words = error(kubernetes(volumes={"data": volume}))
    assert "kubernetes.volumes.data: " in words
    assert "exactly one of persistentVolumeClaim, hostPath, emptyDir, configMap" in words


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_without_a_name_is_no_source(error, source):
    assert f"kubernetes.volumes.data.{source}: " in error(kubernetes(volumes={"data": {"mountPath": "/d", source: ""}}))


@pytest.mark.parametrize("change", [{"mountPath": "data"}, {"mountPath": ""}, {"hostPath": "data"}, {"hostPath": ""}])
def test_a_volumes_paths_are_absolute(error, change):
    volume = {"mountPath": "/data", "hostPath": "/data"} | change
    assert f"kubernetes.volumes.data.{next(iter(change))}: " in error(kubernetes(volumes={"data": volume}))


def test_profiles_that_are_needed(error):
    assert "profiles must contain default" in error(LOCAL | {"profiles": {"big": {}}})
    assert "profiles must contain default and cpu" in error(REMOTE | {"profiles": {"big": {}}})
    assert "profiles must contain cpu" in error(REMOTE | {"profiles": {"default": {}}})


@pytest.mark.parametrize("base", [LOCAL, REMOTE])
def test_stages_without_a_gpu_reserve_none(error, base):
    assert "gpus must be 0" in error(base | {"profiles": {"default": {}, "cpu": {"gpus": 1}}})


def test_a_profile_that_is_not_there(load):
    found = load(LOCAL | {"profiles": {"default": {}, "big": {}}})
    with pytest.raises(BadInput, match="unknown profile 'huge' in the cluster file; available: default, big"):
        found.gpu_profile("huge")


def test_a_profile_with_more_gpus_than_the_pool(load):
    found = load({"pools": {"gpu": 2, "judge": 1}, "profiles": {"default": {"gpus": 2}, "big": {"gpus": 3}}})
    assert found.gpu_profile("default").gpus == 2
    with pytest.raises(BadInput, match=r"profile big requests 3 GPUs, but the pool has only 2.*Raise pools\.gpu"):
        found.gpu_profile("big")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, 1),
        ({"gpus": 0}, 1),
        ({"gpus": 1}, 1),
        ({"gpus": 4}, 4),
        ({"gpus": 8, "tensorParallelSize": 4}, 4),
        ({"gpus": 0, "tensorParallelSize": 2}, 2),  # a processor's nodes can be parts, too
    ],
)
def test_a_model_is_split_over_the_profiles_gpus(load, settings, parts):
    found = load(LOCAL | {"pools": {"gpu": 8, "judge": 1}, "profiles": {"default": settings}})
    assert found.gpu_profile("default").parts == parts


def test_the_outbox_is_a_volume_of_that_name(load):
    outbox = {"mountPath": "/outbox", "persistentVolumeClaim": "outbox"}
    assert load(kubernetes()).outbox is None
    assert load(kubernetes(volumes={"other": outbox})).outbox is None
    assert load(kubernetes(volumes={"outbox": outbox})).outbox.mount_path == "/outbox"


@pytest.mark.parametrize("name", ["manual", "nightly", "backfill"])
def test_priority_classes_are_those_of_a_run(load, error, name):
    assert load(kubernetes(priorityClasses={name: "x"})).kubernetes.priority_classes == {name: "x"}
    assert "kubernetes.priorityClasses.soon" in error(kubernetes(priorityClasses={"soon": "x"}))


def test_pools_count_deferred_tasks():
    assert Pools(gpu=8, judge=2).document() == {
        "halos_eval_gpu": {"slots": 8, "description": "GPUs", "include_deferred": True},
        "halos_eval_judge": {"slots": 2, "description": "judge stages", "include_deferred": True},
        "halos_eval_backfill": {"slots": 60, "description": "older checkpoints", "include_deferred": True},
    }


def test_nothing_of_it_can_be_changed():
    assert all(model.model_config["frozen"] and model.model_config["extra"] == "forbid" for model in MODELS)
    assert {Cluster, Kubernetes, Pools, Profile, Volume} <= set(MODELS)
    assert typing.get_args(cluster.Priority) == ("manual", "nightly", "backfill")


CLAIM = {"mountPath": "/cache", "persistentVolumeClaim": "cache"}


def test_on_one_machine_what_is_fetched_stays(load):
    found = load(LOCAL)
    assert found.can_fetch
    assert found.cache is None


@pytest.mark.parametrize("cache", [CLAIM, CLAIM | {"readOnly": True}, {"mountPath": "/c", "hostPath": "/srv/cache"}])
def test_a_cache_that_outlives_the_pod_can_be_staged_into(load, cache):
    found = load(kubernetes(volumes={"cache": cache}))
    assert found.can_fetch
    assert found.cache.mount_path == cache["mountPath"]


@pytest.mark.parametrize(
    "volumes",
    [
        {},
        {"other": CLAIM},
        {"cache": {"mountPath": "/cache", "emptyDir": "9Gi"}},
        {"cache": {"mountPath": "/cache", "configMap": "x"}},
    ],
)
def test_a_cache_that_ends_with_the_pod_cannot(load, volumes):
    found = load(kubernetes(volumes=volumes))
    assert not found.can_fetch
    assert found.cache is None


def test_a_profile_with_a_cache_of_its_own_would_not_see_what_is_staged(load):
    document = kubernetes(volumes={"cache": CLAIM})
    for own, expected in ((CLAIM, True), (CLAIM | {"persistentVolumeClaim": "fast"}, False)):
        found = load(document | {"profiles": REMOTE["profiles"] | {"large": {"volumes": {"cache": own}}}})
        assert found.can_fetch is expected


# GPUs that are reserved for a size


def test_reserved_gpus_are_pools_of_their_own():
    pools = Pools(gpu=8, judge=1, reserved={"4": 4})  # Helm writes keys as text
    assert {name: pool["slots"] for name, pool in pools.document().items()} == {
        "halos_eval_gpu": 4,
        "halos_eval_gpu_4": 4,
        "halos_eval_judge": 1,
        "halos_eval_backfill": 60,
    }
    assert [pools.of(gpus) for gpus in (0, 1, 2, 4)] == ["halos_eval_gpu"] * 3 + ["halos_eval_gpu_4"]


@pytest.mark.parametrize(
    ("reserved", "words"),
    [
        ({4: 3}, "reserved: 3 GPUs are too few for stages with 4 GPUs"),
        ({0: 3}, "reserved: 3 GPUs are too few for stages with 0 GPUs"),
        ({4: 8, 2: 2}, r"reserved: expected at most gpu \(8\) GPUs in all"),
    ],
)
def test_impossible_reservations_are_rejected(reserved, words):
    with pytest.raises(ValidationError, match=words):
        Pools(gpu=8, judge=1, reserved=reserved)


@pytest.mark.parametrize(("gpus", "slots"), [(2, None), (3, 2), (4, None), (0, None)])
def test_a_stage_must_fit_in_its_pool(gpus, slots):
    cluster = Cluster(
        pools=Pools(gpu=6, judge=1, reserved={4: 4}), profiles={"default": Profile(), "own": Profile(gpus=gpus)}
    )
    if slots is None:
        assert cluster.gpu_profile("own").gpus == gpus
        return
    with pytest.raises(BadInput, match=f"profile own requests {gpus} GPUs, but the pool has only {slots}"):
        cluster.gpu_profile("own")


def test_if_all_gpus_are_reserved_stages_without_one_run_nevertheless():
    cluster = Cluster(
        pools=Pools(gpu=8, judge=1, reserved={4: 8}),
        profiles={"default": Profile(gpus=4), "cpu": Profile(), "trial": Profile()},
    )
    assert cluster.gpu_profile("default").gpus == 4
    assert cluster.gpu_profile("cpu").gpus == 0
    # A model that runs on processors takes one slot of the pool nevertheless.
    with pytest.raises(BadInput, match="profile trial requests 1 GPUs, but the pool has only 0"):
        cluster.gpu_profile("trial")


@pytest.mark.parametrize(
    ("profile", "parts", "copies"),
    [
        ({}, 1, None),
        ({"gpus": 8}, 8, None),
        ({"gpus": 8, "engines": 2}, 4, 2),
        ({"gpus": 8, "engines": 1}, 8, 1),
        ({"gpus": 8, "tensorParallelSize": 2}, 2, 1),
        ({"gpus": 8, "tensorParallelSize": 2, "engines": 4}, 2, 4),
    ],
    ids=str,
)
def test_gpus_are_shared_by_engines_or_split(profile, parts, copies):
    found = Profile.model_validate(profile)
    assert (found.parts, found.copies) == (parts, copies)


@pytest.mark.parametrize("profile", [{"gpus": 2, "engines": 3}, {"gpus": 4, "engines": 2, "tensorParallelSize": 4}])
def test_more_engines_than_gpus_are_rejected(profile):
    with pytest.raises(ValidationError, match="engines need more than"):
        Profile.model_validate(profile)


def test_a_model_that_is_split_over_more_gpus_than_there_are_is_rejected():
    with pytest.raises(ValidationError, match=r"tensorParallelSize is above gpus \(2\); expected at most 1\. Lower it"):
        Profile.model_validate({"gpus": 1, "tensorParallelSize": 2})
