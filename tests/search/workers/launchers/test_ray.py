"""The Ray launcher on real clusters of this machine, mostly with a stub instead of trainings."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest

from lesionseg.errors import InputError
from search.monitoring.status import StatusReader
from search.storage import trial_records
from search.study.location import StudyLocation
from search.study.opening import load_study
from search.trial_process.slot import Slot
from search.workers.launchers.launcher import LaunchContext, RestartPolicy
from search.workers.worker_result import StopReason, WorkerResult
from tests.conftest import _lacking
from tests.search.helpers import wait_until, write_study

pytestmark = pytest.mark.alone

COMMAND = Path(sys.executable).with_name("lesionsearch")
UNITS, SECONDS = 60, 0.2
#: Seconds after which a test fails.
TIMEOUT_S = 300.0
SECRET = "pa55-w0rd"
STORAGE = f"postgresql+psycopg://me:{SECRET}@db.example:5432/studies"
CPU_SLOT = Slot("cpu", 1)
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}


# --- work on the nodes: units that are claimed and finished by creating files


def create_file(path, text):
    """Create a file atomically; return False if it exists."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.write_text(text)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def claim(folder, units):
    """Return a unit that no living process holds, or None."""
    for unit in range(units):
        if (folder / f"done-{unit}").exists():
            continue
        attempt = 0
        while (held := folder / f"claim-{unit}-{attempt}").exists():
            if psutil.pid_exists(int(held.read_text())):
                break
            attempt += 1
        if not held.exists() and create_file(held, str(os.getpid())):
            return unit
    return None


def register(folder, slot):
    import ray

    info = {
        "pid": os.getpid(),
        "node": ray.get_runtime_context().get_node_id(),
        "device": slot.device,
        "threads": slot.threads,
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "main": threading.current_thread() is threading.main_thread(),
    }
    create_file(folder / f"worker-{os.getpid()}", json.dumps(info))


def do_units(location, slot, stop_event, units=UNITS):
    register(location.folder, slot)
    trials = 0
    while not stop_event.is_set():
        unit = claim(location.folder, units)
        if unit is None:
            if count_done(location.folder) == units:
                return WorkerResult(trials, StopReason.DONE)
            stop_event.wait(0.05)  # others hold the rest, and may die with it
        elif not stop_event.wait(SECONDS):
            if not create_file(location.folder / f"done-{unit}", str(os.getpid())):
                (location.folder / f"twice-{unit}").touch()
            trials += 1
    create_file(location.folder / f"stopped-{os.getpid()}", str(trials))
    return WorkerResult(trials, StopReason.STOPPED)


do_endless_units = partial(do_units, units=100_000)


def ignore_stop(location, slot, stop_event):
    register(location.folder, slot)
    threading.Event().wait()


def die(location, slot, stop_event):
    register(location.folder, slot)
    os._exit(1)


def raise_input_error(location, slot, stop_event):
    raise InputError("data: no images at /nowhere; name the folder with --data")


def block(location, slot, stop_event):
    from search.errors import WorkerBlocked

    raise WorkerBlocked("s: 3 trials in a row failed")


def reveal_password(location, slot, stop_event):
    raise RuntimeError(f"cannot reach {location.storage}\nwith {SECRET}")


# --- observation


def count_done(folder):
    return len(list(folder.glob("done-*")))


def registered(folder):
    return [json.loads(p.read_text()) for p in folder.glob("worker-*")]


def running(folder):
    return [w for w in registered(folder) if psutil.pid_exists(w["pid"])]


def assert_all_done_once(folder, units=UNITS):
    assert {p.name for p in folder.glob("done-*")} == {f"done-{n}" for n in range(units)}
    assert not list(folder.glob("twice-*"))


def drive(
    folder,
    *,
    work=do_units,
    address,
    is_done=None,
    storage=None,
    stop_event=None,
    slot=CPU_SLOT,
    max_workers=None,
    max_failures=10,
):
    """Run the launcher; return its events."""
    from search.workers.launchers.ray import run_on_ray

    events, deadline = [], time.monotonic() + TIMEOUT_S

    def checked_is_done():
        assert time.monotonic() < deadline, events
        return (is_done or (lambda: count_done(folder) == UNITS))()

    context = LaunchContext(
        StudyLocation("study", folder, storage),
        stop_event or threading.Event(),
        is_done=checked_is_done,
        on_event=events.append,
        restart_policy=RestartPolicy(
            max_failures, longest_pause_s=1.0 if max_failures > 2 else 0.1
        ),
    )
    run_on_ray(context, slot, max_workers=max_workers, address=address, work=work)
    return events


def three_nodes(attempts=3):
    """A cluster; Ray gives a node 30 s to start, which a busy machine may exceed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(3):
            cluster.add_node(**NODE)
    except Exception:
        cluster.shutdown()
        if attempts == 1:
            raise
        return three_nodes(attempts - 1)
    return cluster


@pytest.fixture(scope="module")
def quiet_ray():
    """Ray in a folder of its own, without telemetry."""
    if importlib.util.find_spec("ray") is None:
        _lacking("no Ray; it comes with the extra 'ray'")
    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray leaves a token in the user's home
    place = Path(tempfile.mkdtemp(prefix="ray"))  # its sockets' paths must be short
    patch.setenv("RAY_TMPDIR", str(place))
    patch.setattr("search.workers.launchers.ray.RayLauncher.poll_s", 0.3)
    yield place
    patch.undo()
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def cluster(quiet_ray):
    """Three nodes of one CPU each; afterwards none of their processes is left."""
    cluster = three_nodes()
    yield cluster
    begun = psutil.Process().children(recursive=True)
    cluster.shutdown()
    _, left = psutil.wait_procs(begun, timeout=20)
    assert not [p for p in left if "ray" in " ".join(p.cmdline())]


@pytest.fixture
def folder(tmp_path):
    """The folder of the units; checks that no worker is left."""
    place = tmp_path / "study"
    place.mkdir()
    yield place
    workers = [psutil.Process(w["pid"]) for w in running(place)]
    assert not psutil.wait_procs(workers, timeout=20)[1]


# --- a new cluster


@pytest.mark.slow
def test_starts_and_ends_a_cluster_if_there_is_none(quiet_ray, folder):
    import ray

    def handler(number, frame):
        pass

    before, usual = set(psutil.Process().children(recursive=True)), signal.getsignal(signal.SIGTERM)
    seen = set()

    def is_done():
        assert signal.getsignal(signal.SIGTERM) is handler
        assert ray.nodes()[0]["Resources"]["object_store_memory"] <= 100_000_000
        seen.update(set(psutil.Process().children(recursive=True)) - before)
        return count_done(folder) == 10

    signal.signal(signal.SIGTERM, handler)
    try:
        events = drive(folder, work=partial(do_units, units=10), address=None, is_done=is_done)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert_all_done_once(folder, 10)
    assert not ray.is_initialized()
    assert seen
    assert not psutil.wait_procs(seen, timeout=20)[1]
    assert any("started on" in line for line in events)
    assert not any(w["main"] for w in registered(folder))


@pytest.mark.slow
def test_machine_that_is_too_small_is_refused(quiet_ray, folder):
    with pytest.raises(InputError, match=r"less than one worker needs: 1000 CPU$"):
        drive(folder, address="local", slot=Slot("cpu", 1000))


@pytest.mark.slow
def test_address_without_a_cluster_is_refused(quiet_ray, folder):
    with pytest.raises(InputError, match=r"no Ray cluster could be used at 127\.0\.0\.1:9 ") as got:
        drive(folder, address="127.0.0.1:9")
    assert "\n" not in str(got.value)


# --- a cluster of several nodes


@pytest.mark.slow
def test_every_node_works_and_every_unit_is_done_once(cluster, folder, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    drive(folder, address=None, is_done=lambda: False, slot=Slot("cpu", 1))
    assert_all_done_once(folder)
    nodes = Counter(w["node"] for w in registered(folder))
    assert nodes == {n.node_id: 1 for n in cluster.list_all_nodes()}


@pytest.mark.slow
def test_study_survives_the_loss_of_a_node(cluster, tiny_data, tmp_path):
    """The real command with real trainings, one of which is lost with its node."""
    study = write_study(tmp_path / "tiny.yaml", {"budget.epochs": 60, "budget.trials": 6})
    place = tmp_path / "s"
    command = [COMMAND, "run", study, "--data", tiny_data, "--out", place, "--no-final"]
    command += ["--engine", "ray", "--engine-set", f"address={cluster.address}"]
    command += ["--device", "cpu", "--threads", "1"]
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        going = None
        try:
            ended = "complete", "pruned"
            assert wait_until(lambda: (place / "run.json").exists(), TIMEOUT_S)
            assert wait_until(
                lambda: sum(StatusReader(place).read().counts[word] for word in ended) >= 2,
                TIMEOUT_S,
            )
            going = cluster.list_all_nodes()[1]
            cluster.remove_node(going, allow_graceful=False)
            output, _ = run.communicate(timeout=TIMEOUT_S)
        finally:
            run.kill()
            if going is not None:  # later tests need three nodes
                cluster.add_node(**NODE)
    assert run.returncode == 0, output
    counts = StatusReader(place).read().counts
    assert counts["complete"] + counts["pruned"] == 6, output
    assert counts["running"] == counts["waiting"] == counts["failed"] == 0
    trials = trial_records.all_trials(load_study(place))
    assert len({t.user_attrs["owner"]["worker"] for t in trials if "owner" in t.user_attrs}) >= 3
    lost = [t for t in trials if trial_records.reason_of(t) == trial_records.EndReason.LOST]
    again = {t.user_attrs.get("requeued_from") for t in trials}
    assert len(lost) == counts["closed"] == 1
    assert lost[0].number in again


@pytest.mark.slow
def test_done_study_starts_no_worker_and_the_cluster_stays(cluster, folder):
    assert drive(folder, address=cluster.address, is_done=lambda: True) == []
    assert not registered(folder)
    assert cluster.remaining_processes_alive()


@pytest.mark.slow
def test_existing_connection_is_left_alone(cluster, folder):
    import ray

    ray.init(cluster.address, log_to_driver=False)
    try:
        drive(folder, address=None)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert_all_done_once(folder)


@pytest.mark.slow
def test_work_of_a_lost_node_is_repeated(cluster, folder):
    going = cluster.add_node(**NODE)
    removed = []

    def is_done():
        if not removed and any(w["node"] == going.node_id for w in running(folder)):
            removed.append(going.node_id)
            cluster.remove_node(going, allow_graceful=False)
        return count_done(folder) == UNITS

    drive(folder, address=cluster.address, is_done=is_done)
    assert removed
    assert_all_done_once(folder)


@pytest.mark.slow
def test_new_node_gets_a_worker(cluster, folder):
    joined = []

    def is_done():
        if not joined and len(running(folder)) == 3:
            joined.append(cluster.add_node(**NODE))
        return any(w["node"] == n.node_id for w in running(folder) for n in joined)

    try:
        drive(folder, work=do_endless_units, address=cluster.address, is_done=is_done)
        assert len(registered(folder)) == 4
    finally:
        for node in joined:
            cluster.remove_node(node)


@pytest.mark.slow
def test_killed_worker_is_restarted(cluster, folder):
    killed = []

    def is_done():
        if not killed and count_done(folder):
            killed.append(running(folder)[0]["pid"])
            os.kill(killed[0], signal.SIGKILL)
        return len(registered(folder)) == 2

    events = drive(
        folder, work=do_endless_units, address=cluster.address, is_done=is_done, max_workers=1
    )
    assert any("its process or its node died; restarts in 1 s" in line for line in events), events
    assert len(registered(folder)) == 2


@pytest.mark.slow
def test_workers_share_a_gpu(cluster, folder):
    node = cluster.add_node(**NODE | {"num_cpus": 8, "num_gpus": 2})
    try:
        slot = Slot("cuda:1", threads=1, share=0.5)
        drive(
            folder,
            work=do_endless_units,
            address=cluster.address,
            is_done=lambda: len(registered(folder)) == 4,
            slot=slot,
        )
        workers = registered(folder)
        assert Counter(w["gpu"] for w in workers) == {"0": 2, "1": 2}
        assert {(w["device"], w["threads"], w["node"]) for w in workers} == {
            ("cuda", 1, node.node_id)
        }
    finally:
        cluster.remove_node(node)


@pytest.mark.slow
def test_waits_for_a_node_with_enough_resources(cluster, folder):
    polls, stopping = [], threading.Event()

    def is_done():
        polls.append(None)
        if len(polls) == 3:
            stopping.set()
        return False

    events = drive(
        folder,
        address=cluster.address,
        slot=Slot("cuda", 1),
        stop_event=stopping,
        is_done=is_done,
    )
    assert events == ["no node has room for a worker (1 CPU and 1 GPU); waiting"]


@pytest.mark.slow
def test_stop_event_stops_the_workers(cluster, folder):
    stopping = threading.Event()
    began = []

    def is_done():
        if count_done(folder) and not began:
            began.append(time.monotonic())
            stopping.set()
        return False

    drive(
        folder, work=do_endless_units, address=cluster.address, stop_event=stopping, is_done=is_done
    )
    assert time.monotonic() - began[0] < 15
    stopped = {int(p.name.removeprefix("stopped-")) for p in folder.glob("stopped-*")}
    assert stopped == {w["pid"] for w in registered(folder)}
    assert stopped


@pytest.mark.slow
def test_worker_that_ignores_the_stop_is_killed(cluster, folder, monkeypatch):
    monkeypatch.setattr("search.workers.launchers.ray.STOP_TIMEOUT_S", 2.0)
    drive(
        folder,
        work=ignore_stop,
        address=cluster.address,
        is_done=lambda: len(registered(folder)) == 3,
    )
    workers = registered(folder)
    _, left = psutil.wait_procs([psutil.Process(w["pid"]) for w in running(folder)], timeout=15)
    assert len(workers) == 3
    assert not left


@pytest.mark.slow
def test_input_error_of_a_worker_is_raised(cluster, folder):
    with pytest.raises(InputError) as got:
        drive(folder, work=raise_input_error, address=cluster.address)
    assert type(got.value) is InputError
    assert str(got.value) == "data: no images at /nowhere; name the folder with --data"


@pytest.mark.slow
def test_blocked_worker_is_not_started_again(cluster, folder):
    from search.errors import JobFailed

    # After ten restarts the workers would be given up too, but not within the test's time.
    with pytest.raises(JobFailed, match=r"every worker was given up; .* 3 trials in a row failed"):
        drive(folder, work=block, address=cluster.address, max_workers=1)


@pytest.mark.slow
def test_node_without_the_package_is_refused(cluster, folder, monkeypatch):
    here = types.ModuleType("only_here")
    exec("def work(location, slot, stop_event): pass", here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", here)
    with pytest.raises(InputError) as got:
        drive(folder, work=here.work, address=cluster.address)
    assert (
        "lacks what a worker needs (ModuleNotFoundError: No module named 'only_here'); install"
        in str(got.value)
    )


@pytest.mark.slow
def test_workers_that_always_die_raise(cluster, folder, monkeypatch):
    from search.errors import JobFailed

    with pytest.raises(
        JobFailed, match=r"every worker was given up; .* its process or its node died"
    ):
        drive(folder, work=die, address=cluster.address, max_failures=2)
    assert len(registered(folder)) == 2 * 3


@pytest.mark.slow
def test_password_is_not_shown(quiet_ray, cluster, folder, monkeypatch):
    import ray

    from search.errors import JobFailed

    monkeypatch.setattr(
        "ray._private.utils.get_entrypoint_name", lambda: f"run --storage {STORAGE}"
    )
    shown = []

    def is_done():
        shown.append(f"{ray._private.state.actors()}{ray._private.state.jobs()}")
        return False

    message = r"RuntimeError: cannot reach postgresql\S+:\*\*\*@\S+ with \*\*\*"
    with pytest.raises(JobFailed, match=message) as got:
        drive(
            folder,
            work=reveal_password,
            address=cluster.address,
            storage=STORAGE,
            is_done=is_done,
            max_failures=1,
        )
    assert "WorkerActor" in shown[-1]
    assert "lesionsearch" in shown[-1]
    logs = [p for p in quiet_ray.rglob("*") if p.is_file()]
    assert any("gcs_server" in p.name for p in logs)
    assert not [p for p in logs if SECRET.encode() in p.read_bytes()]
    assert SECRET not in "".join(shown) + str(got.value)


# --- arithmetic


@pytest.mark.parametrize(
    ("cpus", "share", "node", "times"),
    [
        (1, 0, {"CPU": 4.0}, 4),
        (3, 0, {"CPU": 8.0, "GPU": 8.0}, 2),
        (1, 1, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1, 0.5, {"CPU": 8.0, "GPU": 2.0}, 4),
        (1, 0.4, {"CPU": 8.0, "GPU": 2.0}, 4),  # not 5: one would need two GPUs
        (1, 0.1, {"CPU": 32.0, "GPU": 1.0}, 10),
        (4, 0.25, {"CPU": 9.0, "GPU": 4.0}, 2),  # limited by CPUs
        (1, 0.5, {"CPU": 8.0}, 0),
        (1, 0, {}, 0),
        (1, 0, {"CPU": 0.5}, 0),
    ],
)
def test_how_many_workers_a_node_holds(quiet_ray, cpus, share, node, times):
    from search.workers.launchers.ray import ResourceRequest

    assert ResourceRequest(cpus, share).count_in(node) == times
