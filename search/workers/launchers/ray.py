"""Workers as actors of a Ray cluster, as many as the cluster has room for.

- Every node needs the same installation of lesionsearch, and the study's folder and the images
  under the same paths. Ray transfers neither code nor data.
- The cluster is polled every POLL_S seconds. A node that joins gets workers; workers of a lost
  node are started elsewhere once there is room.
- Actor names and constructor arguments, which Ray shows to everybody, contain nothing of a study.

Importing this module without Ray raises InputError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lesionseg.data.merge import resolve_roots
from lesionseg.errors import InputError
from search.storage.database import redact_password, storage_url
from search.study.location import StudyLocation
from search.trial_process.slot import Slot, StopEvent
from search.workers.launchers.launch_context import LaunchContext
from search.workers.launchers.ray_cluster import connect, ray
from search.workers.launchers.ray_node import SealedJob
from search.workers.launchers.ray_workers import RayWorkers, ResourceRequest, count_room
from search.workers.worker_result import WorkerResult

POLL_S = 2.0

Work = Callable[[StudyLocation, Slot, StopEvent], WorkerResult]


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
        slot = _resolve_device(slot)
        request = ResourceRequest(slot.threads, slot.share if slot.device == "cuda" else 0)
        if is_new and not count_room(request):
            raise InputError(f"engine: this machine has less than one worker needs: {request}")
        location = context.location
        location = replace(
            location,
            folder=location.folder.absolute(),
            data=location.data and resolve_roots(location.data, Path.absolute),
        )
        job = SealedJob(ray.cloudpickle.dumps((location, slot, work)))
        workers = RayWorkers(context, job, request, max_workers, _redactor(location))
        try:
            while not context.must_stop():
                workers.poll()
                if workers.are_done():
                    break
                context.stop_event.wait(POLL_S)
        finally:
            workers.stop()


def _resolve_device(slot: Slot) -> Slot:
    """Return the slot as a node sees it, where a worker's GPU is the only visible one."""
    kind = slot.device.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    return replace(slot, device=kind)


def _redactor(location: StudyLocation) -> Callable[[str], str]:
    """Return a function that makes one short line of a text, without the storage's password."""
    url = storage_url(location.storage, location.folder) if location.storage else None

    def redact(text: str) -> str:
        return " ".join((redact_password(url, text) if url else text).split())[:500]

    return redact
