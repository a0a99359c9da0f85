"""The workers of one study on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lesionseg.errors import InputError
from search.errors import JobFailed
from search.workers.launchers.launch_context import LaunchContext
from search.workers.launchers.ray_cluster import ray
from search.workers.launchers.ray_node import ActorResult, SealedJob, WorkerActor
from search.workers.launchers.restart_policy import RestartPolicy
from search.workers.worker_result import STUDY_ENDED

#: Seconds that workers have to requeue their trials before they are killed.
STOP_TIMEOUT_S = 15.0


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


def count_room(request: ResourceRequest) -> int:
    """Return how many workers fit into the cluster."""
    return sum(request.count_in(node["Resources"]) for node in ray.nodes() if node["Alive"])


@dataclass
class RaySlot:
    """A worker and its actor, if there is one. host, node: None until the actor has started."""

    number: int
    policy: RestartPolicy
    actor: Any = None
    location_ref: Any = None
    result_ref: Any = None
    host: str | None = None
    node: str | None = None
    is_done: bool = False

    def release(self) -> None:
        """Kill the actor."""
        ray.kill(self.actor)
        self.actor = self.location_ref = self.result_ref = self.host = self.node = None


class RayWorkers:
    """Starts, restarts and stops workers."""

    def __init__(
        self,
        context: LaunchContext,
        job: SealedJob,
        request: ResourceRequest,
        max_workers: int | None,
        redact: Callable[[str], str],
    ) -> None:
        self.context, self.job, self.request = context, job, request
        self.max_workers, self.redact = max_workers, redact
        self.actor_class = ray.remote(WorkerActor).options(
            num_cpus=request.cpus,
            num_gpus=request.gpus,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
        )
        self.slots: list[RaySlot] = []
        self._has_room = True

    def poll(self) -> None:
        """Handle workers that ended, and start as many as there is room for."""
        for slot in self._active():
            has_ended = _is_ready(slot.result_ref)
            self._check_started(slot)
            if has_ended:
                self._handle_end(slot)
        room = count_room(self.request)
        if self._has_room and not room:
            self.context.on_event(f"no node has room for a worker ({self.request}); waiting")
        self._has_room = bool(room)
        self._start_missing(room if self.max_workers is None else min(room, self.max_workers))

    def are_done(self) -> bool:
        """Return whether every worker ended because the study needs none."""
        return bool(self.slots) and all(slot.is_done for slot in self.slots)

    def stop(self) -> None:
        """Stop all workers; kill those that do not end within STOP_TIMEOUT_S."""
        try:
            started = [slot for slot in self._active() if self._check_started(slot)]
            for slot in started:
                slot.actor.stop.remote()
            if started:
                results = [slot.result_ref for slot in started]
                ray.wait(results, num_returns=len(results), timeout=STOP_TIMEOUT_S)
        finally:
            for slot in self._active():
                slot.release()

    def _active(self) -> list[RaySlot]:
        return [slot for slot in self.slots if slot.actor is not None]

    def _start_missing(self, count: int) -> None:
        """Start workers until ``count`` are active; withdraw those that have no node any more."""
        active = self._active()
        waiting = [slot for slot in active if slot.node is None]
        for slot in waiting[: max(0, len(active) - count)]:
            slot.release()
        # After one is done, only workers whose trials may have been lost are started again.
        while len(self.slots) < count and not any(slot.is_done for slot in self.slots):
            self.slots.append(RaySlot(len(self.slots), self.context.new_restart_policy()))
        startable = [
            s for s in self.slots if s.actor is None and not s.is_done and s.policy.is_due()
        ]
        for slot in startable[: max(0, count - len(active))]:
            slot.actor = self.actor_class.remote()
            slot.location_ref = slot.actor.locate.remote()
            slot.result_ref = slot.actor.run.remote(self.job)

    def _check_started(self, slot: RaySlot) -> bool:
        """Return whether the worker's actor has started."""
        if slot.node is None and _is_ready(slot.location_ref):
            try:
                slot.host, slot.node = ray.get(slot.location_ref)
            except ray.exceptions.RayError:
                return False  # its result describes the error
            slot.policy.record_start()
            self.context.on_event(f"worker {slot.number} started on {slot.host}")
        return slot.node is not None

    def _handle_end(self, slot: RaySlot) -> None:
        result, host, node = _get_result(slot.result_ref), slot.host or "its node", slot.node
        slot.release()
        reason = self.redact(result.reason)
        if result.status == "input_error":
            raise InputError(reason)
        if result.status == "missing":
            raise InputError(
                f"engine: node {host} lacks what a worker needs ({reason}); "
                "install the same lesionsearch on every node"
            )
        if result.status == "ended" and reason in STUDY_ENDED:
            slot.is_done = True
            self.context.on_event(
                f"worker {slot.number} on {host} is done, after {result.trials} trials"
            )
        elif result.status == "crashed" and node is not None and not _is_alive(node):
            self.context.on_event(f"worker {slot.number} is lost: its node {host} has gone")
        elif result.trials:
            slot.policy.failures = 0
        else:
            self._handle_failure(slot, host, reason)

    def _handle_failure(self, slot: RaySlot, host: str, reason: str) -> None:
        action = slot.policy.record_failure(self.context.count_finished())
        self.context.on_event(f"worker {slot.number} on {host} failed: {reason}; {action}")
        if all(slot.policy.is_exhausted for slot in self.slots):
            raise JobFailed(f"every worker was given up; the last one, on {host}: {reason}")


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


def _is_alive(node_id: str) -> bool:
    return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id)
