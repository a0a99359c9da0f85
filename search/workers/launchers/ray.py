"""Workers as actors of a Ray cluster, one per slot, as many as the cluster holds at the time.

Notable choices:
- Every node needs the same installation of lesionsearch, and sees the study's folder and the
  images under the same paths. Ray carries neither code nor data there.
- The cluster is looked at every LOOK seconds. A node that joins gets workers; those of one that
  goes are started elsewhere once there is room. A worker that dies is started again, after a
  pause that doubles.
- What runs on a node is pickled by value: one that lacks the package can still say so.
- Nothing of a study is put into an actor's name or constructor, which Ray shows to everybody, and
  the command line, which may hold a password, is kept from Ray's list of jobs.

Importing this module without Ray raises InputError.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from lesionseg.data.sets import placed
from lesionseg.errors import InputError
from search.errors import JobFailed
from search.study.location import StudyLocation
from search.trial_process.slot import Slot, StopEvent, WorkerResult
from search.workers.launchers.ray_cluster import connected, ray
from search.workers.launchers.ray_node import RayWorker, Sealed, Told

#: Seconds between two looks at the cluster.
LOOK = 2.0
#: Seconds that workers are given to put down their work before they are killed.
PATIENCE = 15.0
#: Seconds of the longest pause before a worker is started again.
LONGEST_PAUSE = 60.0
#: A worker that lived for so many seconds was no false start.
STEADY = 300.0
#: So many false starts in a row, with no trial brought to an end, and the search has failed.
MAY_DIE = 10
#: How a worker says that the study needs nobody any more.
OVER = frozenset({"done", "time", "exhausted"})

Serve = Callable[[StudyLocation, Slot, StopEvent], WorkerResult]


def _ignore(event: str) -> None:
    pass


def run_on_ray(
    join: StudyLocation,
    *,
    slot: Slot,
    workers: int | None,
    stopping: StopEvent,
    is_done: Callable[[], bool],
    address: str | None = None,
    serve: Serve | None = None,
    on_event: Callable[[str], None] = _ignore,
    ended: Callable[[], int] | None = None,
) -> None:
    """Keeps workers at a study until it needs nobody any more, or until stopping is set.

    slot: of each worker. One for cuda takes its share of a GPU, any other threads only; ``auto``
    is cuda where the cluster has a GPU. workers: at most so many, None for all that fit.
    address: of a running cluster, else that of RAY_ADDRESS, else a cluster of this machine; where
    there is none, one is started, and ended afterwards. serve: None for ``search.workers.loop.serve``.
    on_event: is told in one line what becomes of the workers. ended: how many trials of the study
    were brought to an end so far, by anybody.

    InputError where the cluster cannot be used, and that of a worker whose data or spec is wrong.
    Failed where MAY_DIE workers in a row died early and no trial was brought to an end.
    """
    with connected(address) as ours:
        slot = _placed(slot)
        need = _Need(slot.threads, slot.share if slot.device == "cuda" else 0)
        if ours and not _room(need):
            raise InputError(f"engine: this machine has less than one worker needs: {need}")
        join = replace(
            join, folder=join.folder.absolute(), data=join.data and placed(join.data, Path.absolute)
        )
        sealed = Sealed(ray.cloudpickle.dumps((join, slot, serve)))
        crew = _Crew(sealed, need, workers, _masking(join.storage), on_event, ended)
        try:
            while not (stopping.is_set() or is_done()):
                crew.look()
                if crew.is_done():
                    break
                stopping.wait(LOOK)
        finally:
            crew.put_down()


@dataclass(frozen=True)
class _Need:
    """What one worker takes of a node: CPUs, and a part of one GPU, in [0, 1]."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def times_in(self, has: Mapping[str, float]) -> int:
        """How many workers a node of these resources holds."""
        times = int(has.get("CPU", 0)) // self.cpus
        if self.gpus:
            # Two halves make a GPU, but three parts of 0.4 cannot share two.
            times = min(times, int(has.get("GPU", 0)) * int(1 / self.gpus + 1e-9))
        return times


@dataclass
class _Place:
    """A slot: its actor, while there is one, and how its workers fared.

    since, not_before: seconds of the monotonic clock. host, node: None until it has begun.
    """

    number: int
    actor: Any = None
    where: Any = None
    work: Any = None
    host: str | None = None
    node: str | None = None
    since: float = 0.0
    not_before: float = 0.0
    deaths: int = 0
    done: bool = False


class _Crew:
    """All workers of one study on one cluster."""

    def __init__(
        self,
        sealed: Sealed,
        need: _Need,
        most: int | None,
        mask: Callable[[str], str],
        on_event: Callable[[str], None],
        ended: Callable[[], int] | None,
    ) -> None:
        self.sealed, self.need, self.most = sealed, need, most
        self.mask, self.on_event, self.ended = mask, on_event, ended
        self.actor_class = ray.remote(RayWorker).options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
        )
        self.places: list[_Place] = []
        self.false_starts, self.known = 0, ended() if ended else 0
        self.told_of_no_room = False

    def look(self) -> None:
        """Hears those that ended, and has as many at work as there is room for."""
        for place in self._at_work():
            over = _is_ready(place.work)
            self._greet(place)
            if over:
                self._part(place)
        room = _room(self.need)
        if not room and not self.told_of_no_room:
            self.on_event(f"no node has room for a worker ({self.need}); waiting for one")
        self.told_of_no_room = not room
        self._fill(room if self.most is None else min(room, self.most))

    def is_done(self) -> bool:
        """Whether every worker said that the study needs nobody any more."""
        return bool(self.places) and all(p.done for p in self.places)

    def put_down(self) -> None:
        """Tells all to stop, waits for at most PATIENCE, kills the rest."""
        try:
            begun = [p for p in self._at_work() if self._greet(p)]
            for place in begun:
                place.actor.stop.remote()
            if begun:
                works = [p.work for p in begun]
                ray.wait(works, num_returns=len(works), timeout=PATIENCE)
        finally:
            for place in self._at_work():
                self._release(place)

    def _at_work(self) -> list[_Place]:
        return [p for p in self.places if p.actor is not None]

    def _fill(self, wanted: int) -> None:
        now, at_work = time.monotonic(), self._at_work()
        for place in [p for p in at_work if p.node is None][: max(0, len(at_work) - wanted)]:
            self._release(place)  # it waits for a node that has gone
        # Once one is done, the study has work for those alone whose trials may have been lost.
        while len(self.places) < wanted and not any(p.done for p in self.places):
            self.places.append(_Place(len(self.places)))
        free = [p for p in self.places if p.actor is None and not p.done and p.not_before <= now]
        for place in free[: max(0, wanted - len(at_work))]:
            self._hire(place)

    def _hire(self, place: _Place) -> None:
        place.actor, place.since = self.actor_class.remote(), time.monotonic()
        place.where = place.actor.where.remote()
        place.work = place.actor.work.remote(self.sealed)

    def _release(self, place: _Place) -> None:
        ray.kill(place.actor)
        place.actor = place.where = place.work = place.host = place.node = None

    def _greet(self, place: _Place) -> bool:
        """Whether its worker has begun."""
        if place.node is None and _is_ready(place.where):
            try:
                place.host, place.node = ray.get(place.where)
            except ray.exceptions.RayError:
                return False  # its work says as much
            place.since = time.monotonic()
            self.on_event(f"worker {place.number} began on {place.host}")
        return place.node is not None

    def _part(self, place: _Place) -> None:
        told, host, node = _hear(place.work), place.host or "its node", place.node
        self._release(place)
        text = self.mask(told.text)
        if told.how == "input":
            raise InputError(text)
        if told.how == "lacking":
            raise InputError(
                f"engine: node {host} lacks what a worker needs ({text}); "
                "install the same lesionsearch on every node"
            )
        if told.trials:
            self.false_starts = place.deaths = 0
        if told.how in OVER:
            place.done = True
            self.on_event(f"worker {place.number} on {host} is done, after {told.trials} trials")
        elif told.how == "broken" and node is not None and not _is_alive(node):
            self.on_event(f"worker {place.number} is lost: its node {host} has gone")
        elif not told.trials:
            self._mourn(place, host, text or f"it ended with no trial: {told.how}")

    def _mourn(self, place: _Place, host: str, why: str) -> None:
        now = time.monotonic()
        known = self.ended() if self.ended else 0
        if now - place.since >= STEADY:
            place.deaths = 0
        else:
            self.false_starts = self.false_starts + 1 if known == self.known else 1
        self.known = known
        if self.false_starts >= MAY_DIE:
            raise JobFailed(
                f"{MAY_DIE} workers died one after another and no trial came to its end; "
                f"the last, on {host}: {why}"
            )
        place.deaths += 1
        pause = min(LONGEST_PAUSE, 2.0 ** (place.deaths - 1))
        place.not_before = now + pause
        self.on_event(f"worker {place.number} on {host} died: {why}; again in {pause:g} s")


def _is_ready(ref: Any) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def _hear(work: Any) -> Told:
    try:
        told: Told = ray.get(work)
    except ray.exceptions.ActorDiedError:
        return Told("broken", text="its process was killed or crashed")
    except ray.exceptions.RayError as error:
        return Told("broken", text=f"{type(error).__name__}: {error}")
    return told


def _is_alive(node: str) -> bool:
    return any(n["Alive"] for n in ray.nodes() if n["NodeID"] == node)


def _room(need: _Need) -> int:
    return sum(need.times_in(n["Resources"]) for n in ray.nodes() if n["Alive"])


def _placed(slot: Slot) -> Slot:
    """The slot as a node sees it, where a worker's GPU is the only one that it is shown."""
    kind = slot.device.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    return replace(slot, device=kind)


def _masking(storage: str | None) -> Callable[[str], str]:
    """What makes one short line of a text, without the storage's password."""
    hidden = [storage] if storage else []
    try:
        url = make_url(storage) if storage else None
        hidden += [str(url.password)] if url is not None and url.password else []
    except (ArgumentError, ValueError):
        pass

    def mask(text: str) -> str:
        for secret in hidden:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:500]

    return mask
