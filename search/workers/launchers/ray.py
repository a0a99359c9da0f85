"""Workers as actors of a Ray cluster, as many as the cluster has room for.

- Every node needs the same installation of lesionsearch, and the study's folder and the images
  under the same paths. Ray transfers neither code nor data.
- The cluster is polled every few seconds. A node that joins gets workers; workers of a lost
  node are started again, and Ray places them once there is room elsewhere.
- Actor names and constructor arguments, which Ray shows to everybody, contain nothing of a study.

Importing this module without Ray raises InputError.
"""

from __future__ import annotations

import re
import socket
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lesionseg.data.merge import list_roots
from lesionseg.errors import InputError
from search.errors import WorkerBlocked
from search.storage.database import redact_password, storage_url
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.launchers.launcher import LaunchContext, Launcher, ManagedWorker
from search.workers.launchers.ray_cluster import connect, ray
from search.workers.loop import join_and_run_trials
from search.workers.worker_result import Work, WorkerResult

#: Seconds that workers have to requeue their trials before they are killed.
STOP_TIMEOUT_S = 32.0
#: Seconds that starting actors have to answer before all are stopped.
START_TIMEOUT_S = 3.0


def run_on_ray(
    context: LaunchContext,
    slot: Slot,
    *,
    max_workers: int | None = None,
    address: str | None = None,
    work: Work = join_and_run_trials,
) -> None:
    """Run workers until the study needs none, or until ``stop_event`` is set.

    A cuda slot takes its share of a GPU, others only threads; ``auto`` is cuda if the cluster has
    a GPU. Without ``address`` or RAY_ADDRESS the cluster of this machine is used; if there is
    none, it is started and ended.

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
            data=location.data and tuple(root.absolute() for root in list_roots(location.data)),
        )
        slot = replace(slot, device=device)
        RayLauncher(context, (location, slot, work), request, max_workers).run()


class WorkerActor:
    """Runs a worker in one of its threads; another one can stop it."""

    def __init__(self) -> None:
        self.stop_event = threading.Event()

    def locate(self) -> str:
        """Return the host name."""
        return socket.gethostname()

    def stop(self) -> None:
        """Make the worker requeue its trial and end."""
        self.stop_event.set()

    def run(self, location: StudyLocation, slot: Slot, work: Work) -> WorkerResult | Exception:
        """Run the worker; return errors, since Ray would show those that are raised."""
        try:
            return work(location, slot, self.stop_event)
        except (InputError, WorkerBlocked) as error:
            return type(error)(str(error))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            return RuntimeError(text)


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
    """An actor and its pending results. host: None until the actor has started."""

    actor: Any
    host_ref: Any
    result_ref: Any
    host: str | None = None


class RayLauncher(Launcher):
    """Starts, restarts and stops the actors."""

    poll_s = 2.0

    def __init__(
        self,
        context: LaunchContext,
        job: tuple[StudyLocation, Slot, Work],
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
        """Start a worker wherever there is room; those without room wait for it in Ray's queue."""
        room = self.request.count_room()
        if self._has_room and not room:
            self.context.on_event(f"no node has room for a worker ({self.request}); waiting")
        self._has_room = bool(room)
        count = room if self.max_workers is None else self.max_workers
        # After one is done, only workers whose trials may have been lost are started again.
        while len(self.workers) < count and not any(worker.is_done for worker in self.workers):
            self.workers.append(ManagedWorker(str(len(self.workers)), self.context))
        return super().poll() or not self.workers

    def start(self, worker: ManagedWorker) -> None:
        actor = self.actor_class.remote()
        worker.handle = ActorHandle(actor, actor.locate.remote(), actor.run.remote(*self.job))

    def stop(self) -> None:
        """Stop all workers; kill those that do not end within STOP_TIMEOUT_S."""
        active = [worker for worker in self.workers if worker.handle is not None]
        # An actor that has just started must requeue its trial too.
        if starting := [w.handle.host_ref for w in active if w.handle.host is None]:
            ray.wait(starting, num_returns=len(starting), timeout=START_TIMEOUT_S)
        try:
            started = [worker.handle for worker in active if self._check_started(worker)]
            for handle in started:
                handle.actor.stop.remote()
            if started:
                results = [handle.result_ref for handle in started]
                ray.wait(results, num_returns=len(results), timeout=STOP_TIMEOUT_S)
        finally:
            for worker in active:
                ray.kill(worker.handle.actor)

    def check(self, worker: ManagedWorker) -> None:
        handle, has_ended = worker.handle, _is_ready(worker.handle.result_ref)
        self._check_started(worker)
        if not has_ended:
            return
        try:
            result = ray.get(handle.result_ref)
        except ray.exceptions.ActorDiedError:
            result = RuntimeError("its process or its node died")
        except ray.exceptions.RayError as error:
            result = RuntimeError(f"{type(error).__name__}: {error}")
        ray.kill(handle.actor)
        worker.handle = None
        host = handle.host or "its node"
        name = f"worker {worker.name} on {host}"
        if isinstance(result, WorkerResult):
            worker.is_done = True
            self.context.on_event(f"{name} ended: {result.reason}, {result.trials} trials")
            return
        reason = _redact(self.context.location, str(result))
        if isinstance(result, InputError):
            raise InputError(reason)
        if missing := re.search(r"(ModuleNotFound|Import)Error: .*", str(result)):
            raise InputError(
                f"engine: {host} lacks what a worker needs ({missing[0]}); "
                "install the same lesionsearch on every node"
            )
        self.last_failure = f"the last one, on {host}: {reason}"
        if isinstance(result, WorkerBlocked):
            worker.give_up(f"{name} stopped: {reason}")
        else:
            worker.record_failure(f"{name} failed: {reason}")

    def _check_started(self, worker: ManagedWorker) -> bool:
        """Return whether the worker's actor has started."""
        handle = worker.handle
        if handle.host is None and _is_ready(handle.host_ref):
            try:
                handle.host = ray.get(handle.host_ref)
            except ray.exceptions.RayError:
                return False  # its result describes the error
            worker.record_start()
            self.context.on_event(f"worker {worker.name} started on {handle.host}")
        return handle.host is not None


def _is_ready(ref: Any) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def _redact(location: StudyLocation, text: str) -> str:
    """Return one short line of a text, without the storage's password."""
    if location.storage:
        text = redact_password(storage_url(location.storage, location.folder), text)
    return " ".join(text.split())[:500]
