"""The operator that runs a stage as a pod: Airflow's KubernetesPodOperator with a planned job and the cluster file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, NoReturn

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger
from kubernetes.client import ApiException, V1Pod
from pendulum import DateTime
from urllib3.exceptions import HTTPError

from halos_eval.config.cluster import CPU_PROFILE, Profile, load_cluster
from halos_eval.config.settings import Settings
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.orchestration.evaluate import requested_name
from halos_eval.orchestration.failures import (
    BASE,
    ApiUnavailable,
    Infrastructure,
    InfrastructureFailed,
    NodeUnreachable,
    PodLost,
    QueueRejected,
    StageFailure,
    StageWaiting,
    diagnose,
    refused,
)
from halos_eval.orchestration.packs import check_result, waits
from halos_eval.orchestration.pod_spec import manifest, pod_name
from halos_eval.orchestration.pod_trigger import UNREACHABLE, StagePodTrigger
from halos_eval.orchestration.queues import CHECK_SECONDS, gated, queue_problem, scheduled
from halos_eval.orchestration.restarts import Restarts, next_start
from halos_eval.orchestration.turns import task_owner
from halos_eval.orchestration.waiting import rescheduled
from halos_eval.planning.interrupted import write_note
from halos_eval.planning.jobs import StageJob
from halos_eval.storage.records import readable_record

ENDED = {"Succeeded": "success", "Failed": "failed"}
"""Phases of a pod that has ended, and the status of the trigger's event for each."""
REDEFERRALS = "_redefer_count"
"""Key of the operator's own count among the values that go with a deferred task."""
RESTARTS = "restarts"
"""Key of the failures of this try among the values that go with a deferred task."""
LOG_LINES = 2000
"""Lines at the end of a failed pod's log that are searched for the reason."""


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
        if job.packed and waits(self, context, job.packed):
            return
        if job.unless and readable_record(job.unless)[0]:
            self.log.info("nothing to do: the record exists (%s)", job.unless)
            return
        self.start_again(context)

    def pack_ended(self, context: Context, event: object = None) -> None:
        """Resume after the wait for a pack. Raise StageFailed if it left no record."""
        if packed := StageJob.model_validate(self.job).packed:
            check_result(self, packed)

    def start_again(self, context: Context, event: object = None, restarts: dict[str, Any] | None = None) -> None:
        """Start the pod, or find it, and defer. Called again after each failure of the infrastructure."""
        profile = self._describe(context, restarts)
        self._restarting(context, profile, restarts, lambda: super(PodStageOperator, self).execute(context))

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Resume after the pod has ended or could not start. Raise StageFailure, or defer, if it did not succeed.

        Raise AirflowRescheduleException if the stage waits for a batch.
        """
        # The operator counts its deferrals after errors over the pod's whole life, and then waits for the pod itself.
        event = {key: value for key, value in event.items() if key != REDEFERRALS}
        restarts = event.get(RESTARTS)
        profile = self._profile_now()
        self._limit(profile, restarts)
        work = self._abandon if event["status"] == UNREACHABLE else self._resume
        return self._restarting(context, profile, restarts, lambda: work(context, event, profile))

    def _abandon(self, context: Context, event: dict[str, Any], profile: Profile) -> Any:
        """Remove a pod that Kubernetes keeps only because its node does not confirm its end. Raise NodeUnreachable."""
        pod = self._pod_now(event)
        if pod and pod.status.phase in ENDED:  # it answered just now
            return self._resume(context, event | {"status": ENDED[pod.status.phase]}, profile)
        try:
            self.client.delete_namespaced_pod(event["name"], event["namespace"], grace_period_seconds=0)
        except ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        raise NodeUnreachable(f"{event['name']} was deleted and does not end: its node does not answer. Check the node")

    def _resume(self, context: Context, event: dict[str, Any], profile: Profile) -> Any:
        problem = ""
        if event["status"] == "timeout":
            event, problem = self._look_again(context, event, profile)
        try:
            return super().trigger_reentry(context, event)
        except StageWaiting as waiting:
            self.log.info("%s", waiting)
            raise rescheduled(waiting) from None
        except StageFailure as error:
            if problem:
                raise QueueRejected(
                    f"{event['name']} waits at Kueue's gate, and {problem}. Create or change the queue, or name "
                    "another one in queue of the profile; then clear this task"
                ) from error
            raise
        except AirflowException as error:
            # Other failures went through cleanup(), which raises StageFailure. Without it, the pod no longer exists.
            raise PodLost(f"pod {event['name']} is gone: {error}") from error

    def _pod_now(self, event: dict[str, Any]) -> V1Pod | None:
        """Return the pod of an event; None if it no longer exists."""
        try:
            return self.hook.get_pod(event["name"], event["namespace"])
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def _look_again(self, context: Context, event: dict[str, Any], profile: Profile) -> tuple[dict[str, Any], str]:
        """Defer again if the pod has started since the trigger gave up, or still has time.

        Otherwise return the event, and why Kueue will never admit the pod; empty for other reasons.
        """
        pod = self.pod = self._pod_now(event)
        if pod is None:
            return event, ""  # the operator itself reports it
        if pod.status.phase in ENDED:
            return event | {"status": ENDED[pod.status.phase]}, ""
        now = datetime.now(UTC)
        has_node = scheduled(pod)
        if has_node or pod.status.phase == "Running":
            since = has_node.last_transition_time if has_node else None
            left = profile.start_timeout_seconds - (now - since).total_seconds() if since else 0
            if pod.status.phase == "Running" or left > 0:
                self.startup_timeout_seconds = max(1, int(left))
                self.invoke_defer_method(context=context)
            return event, ""
        waited = (now - pod.metadata.creation_timestamp).total_seconds()
        problem = queue_problem(self.client.api_client, pod, profile.queue) if profile.queue and gated(pod) else ""
        if problem or waited >= profile.schedule_timeout_seconds:
            return event, problem
        self.log.info("the pod has no node yet, and still has time")
        self.schedule_timeout_seconds = max(1, profile.schedule_timeout_seconds - int(waited))
        self.invoke_defer_method(context=context)
        return event, ""

    def _restarting(
        self, context: Context, profile: Profile, restarts: dict[str, Any] | None, work: Callable[[], Any]
    ) -> Any:
        """Do ``work``. Defer until the next start of a pod if the infrastructure fails, and raise other failures."""
        try:
            return work()
        except Infrastructure as error:
            failure = error
        except ApiException as error:
            refusal = refused(error)
            if not isinstance(refusal, Infrastructure):
                raise refusal from error
            failure = refusal
        except HTTPError as error:
            failure = ApiUnavailable(f"Kubernetes is not reachable: {error}")
        return self._defer_start(context, profile, restarts, failure)

    def _defer_start(
        self, context: Context, profile: Profile, restarts: dict[str, Any] | None, failure: Infrastructure
    ) -> NoReturn:
        before = Restarts.model_validate(restarts) if restarts else None
        budget = timedelta(seconds=profile.infrastructure_budget_seconds)
        try:
            at, after = next_start(before, failure, budget, datetime.now(UTC))
        except InfrastructureFailed as error:
            self._keep(context, error)
            raise
        self.log.warning("%s: %s", type(failure).__name__, failure)
        self.log.warning("the stage starts again at %s; until now: %s", at.strftime("%H:%M:%S UTC"), after)
        kwargs = {RESTARTS: after.model_dump(mode="json")}
        self.defer(trigger=DateTimeTrigger(at), method_name="start_again", kwargs=kwargs)

    def _keep(self, context: Context, failure: InfrastructureFailed) -> None:
        """Keep the failure in the store, so that a night starts the evaluation again."""
        params = dict(context["params"])
        title = StageJob.model_validate(self.job).title
        try:
            name = requested_name(params)
            write_note(Settings().store, params["suite"], name, title, context["run_id"], str(failure))
        except (HalosEvalError, AirflowException) as error:
            self.log.warning("no night will start this evaluation again, because its failure was not kept: %s", error)

    def invoke_defer_method(self, last_log_time: DateTime | None = None, context: Context | None = None) -> None:
        """Defer to a triggerer that connects as this task did.

        A hook without configuration falls back to the pod's own account. The triggerer's hook does so only
        with ``in_cluster`` (https://github.com/apache/airflow/issues/44325); otherwise it looks for a kubeconfig.
        """
        self.in_cluster = self.hook.is_in_cluster
        super().invoke_defer_method(last_log_time, context)

    def defer(self, *, trigger: BaseTrigger, **kwargs: Any) -> NoReturn:
        """Defer, with this project's trigger in place of the operator's own, which it creates itself."""
        if type(trigger) is KubernetesPodTrigger:
            trigger = StagePodTrigger(**trigger.serialize()[1])
        super().defer(trigger=trigger, **kwargs)

    def cleanup(
        self, pod: V1Pod, remote_pod: V1Pod, xcom_result: dict[Any, Any] | None = None, context: Context | None = None
    ) -> None:
        """Delete the pod. Replace the operator's exception, which is the same for all failures, by a StageFailure."""
        log = self._end_of_log(remote_pod)  # before the pod is deleted
        try:
            super().cleanup(pod, remote_pod, xcom_result, context)
        except AirflowException as error:
            raise diagnose(remote_pod, log) from error

    def _end_of_log(self, pod: V1Pod) -> str:
        """Return the end of a failed pod's log; empty if it cannot be read."""
        if self._killed or not pod or pod.status.phase != "Failed" or not pod.status.container_statuses:
            return ""
        where = {"name": pod.metadata.name, "namespace": pod.metadata.namespace, "container": BASE}
        try:
            # Otherwise the client returns the repr of the log's bytes.
            reply = self.client.read_namespaced_pod_log(**where, tail_lines=LOG_LINES, _preload_content=False)
            return str(reply.data.decode(errors="replace"))
        except (ApiException, HTTPError) as error:
            self.log.warning("the end of the log could not be read: %s", error)
            return ""

    def _describe(self, context: Context, restarts: dict[str, Any] | None) -> Profile:
        """Set the operator's fields for this pod, and return its profile.

        Called after rendering, so that Airflow renders none of them.
        """
        job = StageJob.model_validate(self.job)
        cluster = load_cluster()
        if cluster.kubernetes is None:
            raise AirflowException(
                "the cluster file has no key kubernetes, but had it when Airflow read the DAG. Add the key again, or "
                "wait until Airflow has read the DAG again"
            )
        profile = cluster.gpu_profile(job.profile)
        self._limit(profile, restarts)
        self.namespace = cluster.kubernetes.namespace
        self.name = pod_name(job)
        abandoned = Restarts.model_validate(restarts).counts.get(NodeUnreachable.__name__, 0) if restarts else 0
        job = job.model_copy(update={"argv": job.owned_by(task_owner(context, abandoned))})
        self.pod_template_dict = manifest(
            job, cluster.kubernetes, profile, context["params"]["priority"], cluster.profiles[CPU_PROFILE]
        )
        return profile

    def _profile_now(self) -> Profile:
        """Return the profile of the pod; the defaults if the cluster file was changed so that it has none any more.

        The pod has what it needs, so its result must not depend on a change that was made while it ran.
        """
        name = StageJob.model_validate(self.job).profile
        try:
            return load_cluster().gpu_profile(name)
        except BadInput as error:
            self.log.warning("the cluster file was changed while the pod ran: %s", error)
            return Profile()

    def _limit(self, profile: Profile, restarts: dict[str, Any] | None) -> None:
        """Set the operator's fields for a wait."""
        first_look = CHECK_SECONDS if profile.queue else profile.schedule_timeout_seconds
        self.schedule_timeout_seconds = min(first_look, profile.schedule_timeout_seconds)
        self.startup_timeout_seconds = profile.start_timeout_seconds
        self.trigger_kwargs = {RESTARTS: restarts} if restarts else {}
