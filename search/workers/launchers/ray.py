"""Workers as actors of a Ray cluster, as many as the cluster has room for.

- Every node needs the same installation of lesionsearch, and the study's folder and the images
  under the same paths. Ray transfers neither code nor data.
- The cluster is polled every few seconds. A node that joins gets workers; workers of a lost
  node are started elsewhere once there is room.
- Actor names and constructor arguments, which Ray shows to everybody, contain nothing of a study.

Importing this module without Ray raises InputError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.data.merge import resolve_roots
from lesionseg.errors import InputError
from search.storage.database import redact_password, storage_url
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.launchers.launcher import LaunchContext, Launcher, ManagedWorker
from search.workers.launchers.ray_cluster import connect, ray
from search.workers.launchers.ray_node import ActorResult, SealedJob, WorkerActor
from search.workers.worker_result import STUDY_ENDED, Work

#: Seconds that workers have to requeue their trials before they are killed.
STOP_TIMEOUT_S = 32.0


def run_on_ray(
    context: LaunchContext,
    slot: Slot,
    *,
    max_workers: int | None = None,
    address: str | None = None,
    work: Work | None = None,
) -> None:
    """Run workers until the study needs none, or until ``stop_event`` is set.

    A cuda slot takes its share of a GPU, others only threads; ``auto`` is cuda if the cluster has
    a GPU. Without ``address`` or RAY_ADDRESS the cluster of this machine is used; if there is
    none, it is started and ended. work: None for ``join_and_run_trials``.

    Raises:
        InputError: the cluster cannot be used, or a worker's data or spec is wrong.
        JobFailed: every worker was given up.
    """
    with connect(address) as is_new:
        # A worker's GPU is the only one that it sees.
        device = slot.device.partition(":")[0]
        if device == "auto":
            device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
        request = ResourceRequest(slot.threads, slot.share if device == "cuda" else 0)
        if is_new and not request.count_room():
            raise InputError(f"engine: this machine has less than one worker needs: {request}")
        location = context.location
        location = replace(
            location,
            folder=location.folder.absolute(),
            data=location.data and resolve_roots(location.data, Path.absolute),
        )
        job = SealedJob(ray.cloudpickle.dumps((location, replace(slot, device=device), work)))
        RayLauncher(context, job, request, max_workers).run()


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of one worker: CPUs, and a part of one GPU in [0, 1]."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def count_in(self, resources: Mapping[str, float]) -> int:
        """Return how many workers fit into a node's resources."""
        count = int(resources.get("CPU", 0)) // self.cpus
        if self.gpus:
            # Each GPU holds a whole number of workers: three parts of 0.4 cannot share two GPUs.
            count = min(count, int(resources.get("GPU", 0)) * int(1 / self.gpus + 1e-9))
        return count

    def count_room(self) -> int:
        """Return how many workers fit into the cluster."""
        return sum(self.count_in(node["Resources"]) for node in ray.nodes() if node["Alive"])


@dataclass
class ActorHandle:
    """An actor and its pending results. host, node: None until the actor has started."""

    actor: Any
    location_ref: Any
    result_ref: Any
    host: str | None = None
    node: str | None = None


class RayLauncher(Launcher):
    """Starts, restarts and stops the actors."""

    poll_s = 2.0

    def __init__(
        self,
        context: LaunchContext,
        job: SealedJob,
        request: ResourceRequest,
        max_workers: int | None,
    ) -> None:
        super().__init__(context)
        self.job, self.request, self.max_workers = job, request, max_workers
        self.actor_class = ray.remote(WorkerActor).options(
            num_cpus=request.cpus,
            num_gpus=request.gpus,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
        )
        self._has_room = True

    def poll(self) -> bool:
        """Handle workers that ended, and start as many as there is room for."""
        for worker in self._active():
            self.check(worker)
        room = self.request.count_room()
        if self._has_room and not room:
            self.context.on_event(f"no node has room for a worker ({self.request}); waiting")
        self._has_room = bool(room)
        self._start_missing(room if self.max_workers is None else min(room, self.max_workers))
        is_done = bool(self.workers) and all(worker.is_done for worker in self.workers)
        return not (is_done or self.is_given_up())

    def start(self, worker: ManagedWorker) -> None:
        actor = self.actor_class.remote()
        worker.handle = ActorHandle(actor, actor.locate.remote(), actor.run.remote(self.job))

    def stop(self) -> None:
        """Stop all workers; kill those that do not end within STOP_TIMEOUT_S."""
        try:
            started = [w.handle for w in self._active() if self._check_started(w)]
            for handle in started:
                handle.actor.stop.remote()
            if started:
                results = [handle.result_ref for handle in started]
                ray.wait(results, num_returns=len(results), timeout=STOP_TIMEOUT_S)
        finally:
            for worker in self._active():
                _release(worker)

    def check(self, worker: ManagedWorker) -> None:
        has_ended = _is_ready(worker.handle.result_ref)
        self._check_started(worker)
        if not has_ended:
            return
        handle = worker.handle
        result, host = _get_result(handle.result_ref), handle.host or "its node"
        _release(worker)
        reason = _redact(self.context.location, result.reason)
        name = f"worker {worker.name} on {host}"
        if result.status == "input_error":
            raise InputError(reason)
        if result.status == "missing":
            raise InputError(
                f"engine: node {host} lacks what a worker needs ({reason}); "
                "install the same lesionsearch on every node"
            )
        is_lost = handle.node is not None and not any(
            node["Alive"] for node in ray.nodes() if node["NodeID"] == handle.node
        )
        if result.status == "ended" and reason in STUDY_ENDED:
            worker.is_done = True
            self.context.on_event(f"{name} is done, after {result.trials} trials")
        elif result.status == "crashed" and is_lost:
            self.context.on_event(f"worker {worker.name} is lost: its node {host} has gone")
        elif result.trials:
            worker.policy.failures = 0
        else:
            self.last_failure = f"the last one, on {host}: {reason}"
            worker.record_failure(f"{name} failed: {reason}")

    def _active(self) -> list[ManagedWorker]:
        return [worker for worker in self.workers if worker.handle is not None]

    def _start_missing(self, count: int) -> None:
        """Start workers until ``count`` are active; withdraw those that have no node any more."""
        active = self._active()
        waiting = [worker for worker in active if worker.handle.node is None]
        for worker in waiting[: max(0, len(active) - count)]:
            _release(worker)
        # After one is done, only workers whose trials may have been lost are started again.
        while len(self.workers) < count and not any(worker.is_done for worker in self.workers):
            self.workers.append(ManagedWorker(str(len(self.workers)), self.context))
        due = [worker for worker in self.workers if worker.is_due()]
        for worker in due[: max(0, count - len(active))]:
            self.start(worker)

    def _check_started(self, worker: ManagedWorker) -> bool:
        """Return whether the worker's actor has started."""
        handle = worker.handle
        if handle.node is None and _is_ready(handle.location_ref):
            try:
                handle.host, handle.node = ray.get(handle.location_ref)
            except ray.exceptions.RayError:
                return False  # its result describes the error
            worker.policy.record_start()
            self.context.on_event(f"worker {worker.name} started on {handle.host}")
        return handle.node is not None


def _release(worker: ManagedWorker) -> None:
    ray.kill(worker.handle.actor)
    worker.handle = None


def _is_ready(ref: Any) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def _get_result(ref: Any) -> ActorResult:
    try:
        result: ActorResult = ray.get(ref)
    except ray.exceptions.ActorDiedError:
        return ActorResult("crashed", "its process was killed or crashed")
    except ray.exceptions.RayError as error:
        return ActorResult("crashed", f"{type(error).__name__}: {error}")
    return result


def _redact(location: StudyLocation, text: str) -> str:
    """Return one short line of a text, without the storage's password."""
    if location.storage:
        text = redact_password(storage_url(location.storage, location.folder), text)
    return " ".join(text.split())[:500]
