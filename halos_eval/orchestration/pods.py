"""The operator that runs a stage as a pod: Airflow's KubernetesPodOperator with a planned job and the cluster file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException, V1Pod
from pendulum import DateTime

from halos_eval.config.cluster import load_cluster
from halos_eval.orchestration.failures import BASE, PodLost, StageFailure, diagnose, refused
from halos_eval.orchestration.pod_spec import manifest, pod_name
from halos_eval.orchestration.turns import task_owner
from halos_eval.planning.jobs import StageJob
from halos_eval.storage.records import readable_record


class PodStageOperator(KubernetesPodOperator):
    """Operator that runs one planned job as a pod; it succeeds at once if there is nothing to do.

    :param job: the fields of the StageJob; empty if there is nothing to do.
    """

    template_fields: Sequence[str] = ("job",)  # Airflow resolves the plan's XCom; it does not render the strings in it
    ui_color = "#cfe8fc"

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        super().__init__(
            base_container_name=BASE,
            # A pod waits for a GPU and runs for hours. Deferred, it holds no worker slot meanwhile.
            deferrable=True,
            # Without an interval, a deferred task shows the pod's log only after the end.
            logging_interval=30,
            # The default is 2 seconds, which is needlessly often for a pod that runs for hours.
            poll_interval=5,
            # A pod's spec contains its environment variables.
            log_pod_spec_on_failure=False,
            # Only events say why no node accepted the pod, or why the image could not be pulled.
            log_events_on_failure=True,
            # The operator's default would override the manifest's value.
            termination_message_policy="FallbackToLogsOnError",
            # Sampling needs time to finish a step and save it.
            termination_grace_period=60,
            **kwargs,
        )
        self.job = job

    def execute(self, context: Context) -> None:
        """Start the pod, or find the one that an earlier try started, and defer until it ends.

        Raise StageFailure if Kubernetes rejects the pod.
        """
        if not self.job:
            # Succeed instead of skipping, so that the tasks after this one run.
            self.log.info("nothing to do: this stage was not selected, or its record exists")
            return
        job = StageJob.model_validate(self.job)
        if job.unless and readable_record(job.unless)[0]:
            self.log.info("nothing to do: the record exists (%s)", job.unless)
            return
        self._describe(context)
        try:
            super().execute(context)
        except ApiException as error:
            raise refused(error) or error from error

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Resume after the pod has ended or could not start. Raise StageFailure if it did not succeed."""
        self._describe(context)
        try:
            return super().trigger_reentry(context, event)
        except StageFailure:
            raise
        except AirflowException as error:
            # Other failures went through cleanup(), which raises StageFailure. Without it, the pod no longer exists.
            raise PodLost(f"pod {event['name']} is gone: {error}") from error

    def invoke_defer_method(self, last_log_time: DateTime | None = None, context: Context | None = None) -> None:
        """Defer to a triggerer that connects as this task did.

        A hook without configuration falls back to the pod's own account. The triggerer's hook does so only
        with ``in_cluster`` (https://github.com/apache/airflow/issues/44325); otherwise it looks for a kubeconfig.
        """
        self.in_cluster = self.hook.is_in_cluster
        super().invoke_defer_method(last_log_time, context)

    def cleanup(
        self, pod: V1Pod, remote_pod: V1Pod, xcom_result: dict[Any, Any] | None = None, context: Context | None = None
    ) -> None:
        """Delete the pod. Replace the operator's exception, which is the same for all failures, by a StageFailure."""
        try:
            super().cleanup(pod, remote_pod, xcom_result, context)
        except AirflowException as error:
            raise diagnose(remote_pod) from error

    def _describe(self, context: Context) -> None:
        """Set the operator's fields for this pod. Called after rendering, so that Airflow renders none of them."""
        job = StageJob.model_validate(self.job)
        cluster = load_cluster()
        if cluster.kubernetes is None:
            raise AirflowException(
                "the cluster file has no key kubernetes, but had it when Airflow read the DAG. Add the key again, or "
                "wait until Airflow has read the DAG again"
            )
        profile = cluster.gpu_profile(job.profile)
        self.namespace = cluster.kubernetes.namespace
        self.name = pod_name(job)
        self.schedule_timeout_seconds = profile.schedule_timeout_seconds
        self.startup_timeout_seconds = profile.start_timeout_seconds
        job = job.model_copy(update={"argv": job.owned_by(task_owner(context))})
        self.pod_template_dict = manifest(job, cluster.kubernetes, profile, context["params"]["priority"])
