"""A stage as a pod: Airflow's KubernetesPodOperator, told what to run by the plan and where by the cluster's file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException, V1Pod

from halos_eval.config.cluster import load_cluster
from halos_eval.orchestration.failures import BASE, PodLost, StageFailure, diagnose, refused
from halos_eval.orchestration.pod_spec import manifest, pod_name
from halos_eval.planning.jobs import StageJob


class PodStageOperator(KubernetesPodOperator):
    """Run one planned job as a pod; succeed at once where there is nothing to do.

    :param job: what the plan says of it (StageJob); empty where there is nothing to do.
    """

    template_fields: Sequence[str] = ("job",)  # so that the plan's XCom is resolved; its strings are not rendered
    ui_color = "#cfe8fc"

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        super().__init__(
            base_container_name=BASE,
            # A pod waits for a GPU and runs for hours: no worker's slot is held meanwhile.
            deferrable=True,
            # In deferrable mode nothing of the log would be seen before the end.
            logging_interval=30,
            # A pod of hours need not be looked at every two seconds.
            poll_interval=5,
            # Where the pod's spec is printed, so are its variables.
            log_pod_spec_on_failure=False,
            # Why a node did not take it, or an image could not be pulled, is told in events only.
            log_events_on_failure=True,
            # The operator would put its own default over the manifest's.
            termination_message_policy="FallbackToLogsOnError",
            # Sampling finishes a step and saves what is finished.
            termination_grace_period=60,
            **kwargs,
        )
        self.job = job

    def execute(self, context: Context) -> None:
        """Start the pod, or find the one that an earlier try has started, and wait without a worker.

        Raises a StageFailure where Kubernetes does not take it.
        """
        if not self.job:
            # Not skipped: whoever waits for this stage can go ahead.
            self.log.info("nothing to do: not asked for, or its record is there already")
            return
        self._describe(context)
        try:
            super().execute(context)
        except ApiException as error:
            raise refused(error) or error from error

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Take over from the triggerer: the pod has ended, or could not start. Raises a StageFailure."""
        self._describe(context)
        try:
            return super().trigger_reentry(context, event)
        except StageFailure:
            raise
        except AirflowException as error:
            # Every other way has gone through cleanup(), so there was no pod to look at.
            raise PodLost(f"pod {event['name']} is gone: {error}") from error

    def cleanup(
        self, pod: V1Pod, remote_pod: V1Pod, xcom_result: dict[Any, Any] | None = None, context: Context | None = None
    ) -> None:
        """Delete the pod; the operator's one exception for every failure becomes one that tells which it was."""
        try:
            super().cleanup(pod, remote_pod, xcom_result, context)
        except AirflowException as error:
            raise diagnose(remote_pod) from error

    def _describe(self, context: Context) -> None:
        """Set what the operator needs to know of the pod. After templates were rendered, so nothing of it is one."""
        job = StageJob.model_validate(self.job)
        cluster = load_cluster()
        if cluster.kubernetes is None:
            raise AirflowException("the cluster's file has no kubernetes part, and had one when the DAG was read")
        profile = cluster.gpu_profile(job.profile)
        self.namespace = cluster.kubernetes.namespace
        self.name = pod_name(job)
        self.schedule_timeout_seconds = profile.schedule_timeout_seconds
        self.startup_timeout_seconds = profile.start_timeout_seconds
        self.pod_template_dict = manifest(job, cluster.kubernetes, profile, context["params"]["priority"])
