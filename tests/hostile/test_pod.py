"""The pod of a stage, whatever the texts in its command: Kubernetes takes it, and expands nothing in it."""

from __future__ import annotations

import json

import kubernetes_validate
from hypothesis import given, settings

from halos_eval.orchestration.local import _command
from tests.hostile.values import BATCH
from tests.orchestration.test_pod_spec import KUBERNETES, VERSION, container, environment, expanded, make, make_job


@settings(max_examples=60, deadline=None)
@given(BATCH)
def test_arguments_and_variables_are_what_the_plan_has(words):
    words = [word.replace("\0", "").encode(errors="ignore").decode() for word in words]  # others never get a job
    job = make_job(argv=("sample", *words))
    pod = json.loads(json.dumps(make(job, kubernetes=KUBERNETES | {"environment": {"OWN": words[0]}})))
    kubernetes_validate.validate(pod, VERSION, strict=True)
    variables = {"KEY": "secret", "HOME": "/", "": "nothing", "id": "nothing"}
    assert [expanded(one, variables) for one in container(pod)["args"]] == ["sample", *words]
    assert expanded(environment(pod)["OWN"], variables) == words[0]
    assert _command(job)[-len(words) :] == words  # a process gets the same words, without a shell
