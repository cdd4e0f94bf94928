"""``python -m halos_eval.orchestration.doctor``: whether Airflow has what it needs, seen from where its tasks run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from halos_eval.cli.doctor import Checks, check_checkpoints, check_store, report
from halos_eval.config.cluster import Cluster, Kubernetes, Pools, Volume, load_cluster
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import Settings
from halos_eval.config.suite import load_suite, suite_names
from halos_eval.errors import BadInput, HalosEvalError

RIGHTS = {
    ("", "pods", ""): ("create", "delete", "get", "list", "patch"),
    ("", "pods", "log"): ("get",),
    ("", "events", ""): ("list", "watch"),
    ("", "persistentvolumeclaims", ""): ("get",),
}
"""The verbs of the chart's Role, by API group, resource and subresource."""
QUEUE_RIGHTS = {("kueue.x-k8s.io", "localqueues", ""): ("get",), ("kueue.x-k8s.io", "workloads", ""): ("list",)}
"""Those in addition if a profile has a queue."""


def main() -> None:
    """Print one line for each check, and exit with 1 if one fails."""
    try:
        report(_checks())
    except HalosEvalError as error:
        sys.exit(f"halos-eval: {type(error).__name__}: {error}")


def _checks() -> Checks:
    settings = Settings()
    yield "cluster file", _check_cluster
    yield "store", lambda: check_store(settings.store)
    yield "checkpoints", lambda: check_checkpoints(settings.checkpoints)
    yield "policy", _check_policy
    try:
        cluster = load_cluster()
    except HalosEvalError:
        return  # its own check has said so
    yield "pools", lambda: check_pools(cluster.pools)
    if kubernetes := cluster.kubernetes:
        queues = {profile.queue for profile in cluster.profiles.values() if profile.queue}
        yield "permissions", lambda: check_permissions(kubernetes, queues)
        claims = {one.persistent_volume_claim for one in _volumes(cluster) if one.persistent_volume_claim}
        yield "claims", lambda: check_claims(kubernetes.namespace, claims)


def _volumes(cluster: Cluster) -> Iterator[Volume]:
    for one in (cluster.kubernetes, *cluster.profiles.values()):
        yield from one.volumes.values() if one else ()


def _check_cluster() -> str:
    cluster = load_cluster()
    where = f"pods in namespace {cluster.kubernetes.namespace}" if cluster.kubernetes else "processes on this machine"
    return f"{Settings().cluster}: {where}, profiles {', '.join(cluster.profiles)}"


def _check_policy() -> str:
    suites = sorted({suite for rule in load_policy().rules for suite in rule.suites})
    for suite in suites:
        load_suite(suite)
    return f"gives {', '.join(suites) or 'no suites'}; {len(suite_names())} suites are known"


def check_pools(expected: Pools) -> str:
    """Compare Airflow's pools with the cluster file. Raise BadInput."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        found = {one.pool: (one.slots, one.include_deferred) for one in session.query(Pool)}
    wrong = [
        f"{name} is {_words(found.get(name))}; expected {_words((one['slots'], one['include_deferred']))}"
        for name, one in expected.document().items()
        if found.get(name) != (one["slots"], one["include_deferred"])
    ]
    if wrong:
        raise BadInput(
            f"{'; '.join(wrong)}. Run: halos-eval pools > /tmp/pools.json; airflow pools import /tmp/pools.json"
        )
    return ", ".join(f"{name}: {slots}" for name, (slots, _) in found.items())


def _words(pool: tuple[int, bool] | None) -> str:
    if pool is None:
        return "missing"
    return f"{pool[0]} slots {'with' if pool[1] else 'without'} deferred tasks"


def check_permissions(kubernetes: Kubernetes, queues: Iterable[str]) -> str:
    """Ask Kubernetes what this account may do in the namespace of the pods. Raise BadInput."""
    from kubernetes.client import AuthorizationV1Api

    rights = RIGHTS | (QUEUE_RIGHTS if queues else {})
    with _connected() as client:
        api = AuthorizationV1Api(client)
        missing = [
            f"{verb} {'/'.join(filter(None, (group, resource, subresource)))}"
            for (group, resource, subresource), verbs in rights.items()
            for verb in verbs
            if not _may(api, kubernetes.namespace, group, resource, subresource, verb)
        ]
    if missing:
        raise BadInput(
            f"this account may not {', '.join(missing)} in namespace {kubernetes.namespace}. Add it to "
            "airflow.serviceAccounts and its namespace to airflow.namespace in the chart's values"
        )
    return f"this account may start pods in namespace {kubernetes.namespace}"


def check_claims(namespace: str, names: Iterable[str]) -> str:
    """Look whether the claims of the pods' volumes are bound. Raise BadInput."""
    from kubernetes.client import ApiException, CoreV1Api

    wrong = {}
    with _connected() as client:
        for name in sorted(names):
            try:
                phase = CoreV1Api(client).read_namespaced_persistent_volume_claim(name, namespace).status.phase
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                phase = "missing"
            if phase != "Bound":
                wrong[name] = phase
    if wrong:
        raise BadInput(
            f"{', '.join(f'{name} is {phase}' for name, phase in wrong.items())} in namespace {namespace}; expected "
            "Bound. Name a storage class with ReadWriteMany in claims of the chart's values. Some classes bind a claim "
            "when the first pod uses it: then run helm test first"
        )
    return f"{', '.join(sorted(names)) or 'none'}: bound"


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield a client of Kubernetes that connects as the tasks do. Raise BadInput if it does not answer."""
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from airflow.sdk.exceptions import AirflowException
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield KubernetesHook(conn_id=KubernetesHook.default_conn_name).get_conn()
    except (ApiException, HTTPError, OSError, AirflowException) as error:
        raise BadInput(
            f"Kubernetes does not answer ({error}). Run this in a pod of Airflow, or set Airflow's connection "
            "kubernetes_default"
        ) from error


def _may(api: Any, namespace: str, group: str, resource: str, subresource: str, verb: str) -> bool:
    attributes = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
    review = {"spec": {"resourceAttributes": attributes | ({"subresource": subresource} if subresource else {})}}
    answer = api.create_self_subject_access_review(review)
    return bool(answer.status.allowed)


if __name__ == "__main__":
    main()
