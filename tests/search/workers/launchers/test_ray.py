"""The Ray engine on real clusters of this machine; mostly with a stub that counts as the work."""

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
from search.monitoring.status import status
from search.storage import trial_records
from search.study.opening import load_study
from search.study.location import StudyLocation
from search.trial_process.slot import Slot, WorkerResult
from tests.conftest import _lacking
from tests.search.helpers import wait_until, write_study

pytestmark = pytest.mark.alone

COMMAND = Path(sys.executable).with_name("lesionsearch")
UNITS, SECONDS = 60, 0.2
#: Seconds after which what a test waits for will not come.
LONGEST = 300.0
SECRET = "pa55-w0rd"
STORAGE = f"postgresql+psycopg://me:{SECRET}@db.example:5432/studies"
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}


# --- what runs on the nodes: units of work, claimed and finished by files that appear at once


def appear(path, text):
    """Whether the file was not there and now is, whole."""
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
    """A unit that nobody holds, or whose holder is dead; None where there is none."""
    for unit in range(units):
        if (folder / f"done-{unit}").exists():
            continue
        attempt = 0
        while (held := folder / f"claim-{unit}-{attempt}").exists():
            if psutil.pid_exists(int(held.read_text())):
                break
            attempt += 1
        if not held.exists() and appear(held, str(os.getpid())):
            return unit
    return None


def sign_in(folder, slot):
    import ray

    about = {
        "pid": os.getpid(),
        "node": ray.get_runtime_context().get_node_id(),
        "device": slot.device,
        "threads": slot.threads,
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "main": threading.current_thread() is threading.main_thread(),
    }
    appear(folder / f"worker-{os.getpid()}", json.dumps(about))


def serve(join, slot, stopping, units=UNITS):
    sign_in(join.folder, slot)
    trial_records = 0
    while not stopping.is_set():
        unit = claim(join.folder, units)
        if unit is None:
            if finished(join.folder) == units:
                return WorkerResult(trial_records, "done")
            stopping.wait(0.05)  # others hold the rest, and may die with it
        elif not stopping.wait(SECONDS):
            if not appear(join.folder / f"done-{unit}", str(os.getpid())):
                (join.folder / f"twice-{unit}").touch()
            trial_records += 1
    appear(join.folder / f"asked-{os.getpid()}", str(trial_records))
    return WorkerResult(trial_records, "asked")


serve_on_and_on = partial(serve, units=100_000)


def serve_deafly(join, slot, stopping):
    sign_in(join.folder, slot)
    threading.Event().wait()


def serve_and_die(join, slot, stopping):
    sign_in(join.folder, slot)
    os._exit(1)


def serve_wrong_data(join, slot, stopping):
    raise InputError("data: no images at /nowhere; name the folder with --data")


def serve_indiscreetly(join, slot, stopping):
    raise RuntimeError(f"cannot reach {join.storage}\nwith {SECRET}")


# --- what looks on


def finished(folder):
    return len(list(folder.glob("done-*")))


def signed_in(folder):
    return [json.loads(p.read_text()) for p in folder.glob("worker-*")]


def at_work(folder):
    return [w for w in signed_in(folder) if psutil.pid_exists(w["pid"])]


def assert_all_done_once(folder, units=UNITS):
    assert {p.name for p in folder.glob("done-*")} == {f"done-{n}" for n in range(units)}
    assert not list(folder.glob("twice-*"))


def drive(folder, *, stub=serve, address, is_done=None, storage=None, **kwargs):
    """Runs the engine; its events. No test waits for ever for what does not come."""
    from search.workers.launchers.ray import run_on_ray

    told, until = [], time.monotonic() + LONGEST

    def is_over():
        assert time.monotonic() < until, told
        return (is_done or (lambda: finished(folder) == UNITS))()

    kwargs = {"slot": Slot("cpu", 1), "workers": None, "stopping": threading.Event()} | kwargs
    run_on_ray(
        StudyLocation("study", folder, storage),
        is_done=is_over,
        address=address,
        serve=stub,
        on_event=told.append,
        **kwargs,
    )
    return told


def three_nodes(attempts=3):
    """A cluster; Ray gives a node 30 s to start, which a busy machine may exceed."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        for _ in range(3):
            made.add_node(**NODE)
    except Exception:
        made.shutdown()
        if attempts == 1:
            raise
        return three_nodes(attempts - 1)
    return made


@pytest.fixture(scope="module")
def quiet_ray():
    """Ray as light and as silent as it gets, in a folder of its own."""
    if importlib.util.find_spec("ray") is None:
        _lacking("no Ray; it comes with the extra 'ray'")
    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray leaves a token in the user's home
    place = Path(tempfile.mkdtemp(prefix="ray"))  # its sockets' paths must be short
    patch.setenv("RAY_TMPDIR", str(place))
    yield place
    patch.undo()
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def cluster(quiet_ray):
    """Three nodes of one CPU each; afterwards none of their processes is left."""
    made = three_nodes()
    yield made
    begun = psutil.Process().children(recursive=True)
    made.shutdown()
    _, left = psutil.wait_procs(begun, timeout=20)
    assert not [p for p in left if "ray" in " ".join(p.cmdline())]


@pytest.fixture
def folder(tmp_path):
    """Where the units are; afterwards no worker is left."""
    place = tmp_path / "study"
    place.mkdir()
    yield place
    workers = [psutil.Process(w["pid"]) for w in at_work(place)]
    assert not psutil.wait_procs(workers, timeout=20)[1]


# --- a cluster of the engine's own


@pytest.mark.slow
def test_without_a_cluster_it_starts_one_and_ends_it(quiet_ray, folder):
    import ray

    def handler(number, frame):
        pass

    before, usual = set(psutil.Process().children(recursive=True)), signal.getsignal(signal.SIGTERM)
    seen = set()

    def is_done():
        assert signal.getsignal(signal.SIGTERM) is handler  # Ray has not put its own there
        assert ray.nodes()[0]["Resources"]["object_store_memory"] <= 100_000_000
        seen.update(set(psutil.Process().children(recursive=True)) - before)
        return finished(folder) == 10

    signal.signal(signal.SIGTERM, handler)
    try:
        told = drive(folder, stub=partial(serve, units=10), address=None, is_done=is_done)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert_all_done_once(folder, 10)
    assert not ray.is_initialized()
    assert seen
    assert not psutil.wait_procs(seen, timeout=20)[1]
    assert any("began on" in line for line in told)
    assert not any(w["main"] for w in signed_in(folder))


@pytest.mark.slow
def test_a_machine_too_small_for_one_worker_is_told(quiet_ray, folder):
    with pytest.raises(InputError, match=r"less than one worker needs: 1000 CPU$"):
        drive(folder, address="local", slot=Slot("cpu", 1000))


@pytest.mark.slow
def test_an_address_where_no_cluster_is_is_told_in_one_line(quiet_ray, folder):
    with pytest.raises(InputError, match=r"no Ray cluster could be used at 127\.0\.0\.1:9 ") as got:
        drive(folder, address="127.0.0.1:9")
    assert "\n" not in str(got.value)


# --- a cluster of several nodes


@pytest.mark.slow
def test_every_node_works_and_every_unit_is_done_once(cluster, folder, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    # Nobody but the workers says that it is over.
    drive(folder, address=None, is_done=lambda: False, slot=Slot("cpu", 1))
    assert_all_done_once(folder)
    nodes = Counter(w["node"] for w in signed_in(folder))
    assert nodes == {n.node_id: 1 for n in cluster.list_all_nodes()}


@pytest.mark.slow
def test_a_study_survives_the_loss_of_a_node(cluster, tiny_data, tmp_path):
    """The real command with real trainings, one of which goes with its node."""
    study = write_study(tmp_path / "tiny.yaml", {"budget.epochs": 60, "budget.trials": 10})
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
            assert wait_until(lambda: (place / "run.json").exists(), LONGEST)
            assert wait_until(
                lambda: sum(status(place)["counts"][word] for word in ended) >= 2, LONGEST
            )
            going = cluster.list_all_nodes()[1]
            cluster.remove_node(going, allow_graceful=False)
            told, _ = run.communicate(timeout=LONGEST)
        finally:
            run.kill()
            if going is not None:  # the tests to come count on three
                cluster.add_node(**NODE)
    assert run.returncode == 0, told
    counts = status(place)["counts"]
    assert counts["complete"] + counts["pruned"] == 10, told
    assert counts["running"] == counts["waiting"] == counts["failed"] == 0
    known = trial_records.all_trials(load_study(place))
    assert len({t.user_attrs["owner"]["worker"] for t in known if "owner" in t.user_attrs}) >= 3
    lost = [t for t in known if trial_records.reason_of(t) == trial_records.EndReason.LOST]
    again = {t.user_attrs.get("requeued_from") for t in known}
    assert len(lost) == counts["skipped"] == 1
    assert lost[0].number in again


@pytest.mark.slow
def test_no_more_workers_than_asked_for(cluster, folder):
    drive(folder, address=cluster.address, workers=2)
    assert_all_done_once(folder)
    assert len(signed_in(folder)) == 2


@pytest.mark.slow
def test_a_cluster_outlives_the_search_and_a_finished_study_starts_nobody(cluster, folder):
    assert drive(folder, address=cluster.address, is_done=lambda: True) == []
    assert not signed_in(folder)
    assert cluster.remaining_processes_alive()


@pytest.mark.slow
def test_a_connection_made_by_others_is_left_alone(cluster, folder):
    import ray

    ray.init(cluster.address, log_to_driver=False)
    try:
        drive(folder, address=None)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert_all_done_once(folder)


@pytest.mark.slow
def test_a_node_that_goes_takes_no_work_along(cluster, folder):
    going = cluster.add_node(**NODE)
    removed = []

    def is_done():
        if not removed and any(w["node"] == going.node_id for w in at_work(folder)):
            removed.append(going.node_id)
            cluster.remove_node(going, allow_graceful=False)
        return finished(folder) == UNITS

    drive(folder, address=cluster.address, is_done=is_done)
    assert removed
    assert_all_done_once(folder)


@pytest.mark.slow
def test_workers_of_a_lost_node_come_back_with_another(cluster, folder):
    lost, joined = [], []

    def is_done():
        for node in cluster.list_all_nodes()[1:]:
            if not lost and any(w["node"] == node.node_id for w in at_work(folder)):
                lost.append(node.node_id)
                cluster.remove_node(node, allow_graceful=False)
                joined.append(cluster.add_node(**NODE).node_id)
        return any(w["node"] in joined for w in at_work(folder))

    drive(folder, stub=serve_on_and_on, address=cluster.address, is_done=is_done)
    assert len(lost) == len(joined) == 1


@pytest.mark.slow
def test_a_node_that_joins_gets_a_worker(cluster, folder):
    joined = []

    def is_done():
        if not joined and len(at_work(folder)) == 3:
            joined.append(cluster.add_node(**NODE))
        return any(w["node"] == n.node_id for w in at_work(folder) for n in joined)

    try:
        drive(folder, stub=serve_on_and_on, address=cluster.address, is_done=is_done)
        assert len(signed_in(folder)) == 4
    finally:
        for node in joined:
            cluster.remove_node(node)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(cluster, folder):
    killed = []

    def is_done():
        if not killed and finished(folder):
            killed.append(at_work(folder)[0]["pid"])
            os.kill(killed[0], signal.SIGKILL)
        return len(signed_in(folder)) == 2

    told = drive(folder, stub=serve_on_and_on, address=cluster.address, is_done=is_done, workers=1)
    assert any("its process was killed or crashed; again in 1 s" in line for line in told), told
    assert len(signed_in(folder)) == 2


@pytest.mark.slow
def test_workers_share_a_gpu_and_see_it_alone(cluster, folder):
    node = cluster.add_node(**NODE | {"num_cpus": 8, "num_gpus": 2})
    try:
        slot = Slot("cuda:1", threads=1, share=0.5)
        drive(
            folder,
            stub=serve_on_and_on,
            address=cluster.address,
            is_done=lambda: len(signed_in(folder)) == 4,
            slot=slot,
        )
        workers = signed_in(folder)
        assert Counter(w["gpu"] for w in workers) == {"0": 2, "1": 2}
        assert {(w["device"], w["threads"], w["node"]) for w in workers} == {
            ("cuda", 1, node.node_id)
        }
    finally:
        cluster.remove_node(node)


@pytest.mark.slow
def test_where_nothing_fits_it_says_so_once_and_waits(cluster, folder):
    looks, stopping = [], threading.Event()

    def is_done():
        looks.append(None)
        if len(looks) == 3:
            stopping.set()
        return False

    told = drive(
        folder,
        address=cluster.address,
        slot=Slot("cuda", 1),
        stopping=stopping,
        is_done=is_done,
    )
    assert told == ["no node has room for a worker (1 CPU and 1 GPU); waiting for one"]


@pytest.mark.slow
def test_stopping_lets_the_workers_put_down_their_work(cluster, folder):
    stopping = threading.Event()
    began = []

    def is_done():
        if finished(folder) and not began:
            began.append(time.monotonic())
            stopping.set()
        return False

    drive(folder, stub=serve_on_and_on, address=cluster.address, stopping=stopping, is_done=is_done)
    assert time.monotonic() - began[0] < 15
    asked = {int(p.name.removeprefix("asked-")) for p in folder.glob("asked-*")}
    assert asked == {w["pid"] for w in signed_in(folder)}
    assert asked


@pytest.mark.slow
def test_a_worker_that_does_not_listen_is_killed(cluster, folder, monkeypatch):
    monkeypatch.setattr("search.workers.launchers.ray.LONG_WAIT_S", 2.0)
    drive(
        folder,
        stub=serve_deafly,
        address=cluster.address,
        is_done=lambda: len(signed_in(folder)) == 3,
    )
    workers = signed_in(folder)
    _, left = psutil.wait_procs([psutil.Process(w["pid"]) for w in at_work(folder)], timeout=15)
    assert len(workers) == 3
    assert not left


@pytest.mark.slow
def test_wrong_input_stops_all_as_it_was_told(cluster, folder):
    with pytest.raises(InputError) as got:
        drive(folder, stub=serve_wrong_data, address=cluster.address)
    assert type(got.value) is InputError
    assert str(got.value) == "data: no images at /nowhere; name the folder with --data"


@pytest.mark.slow
def test_a_node_that_lacks_a_module_is_told_in_one_line(cluster, folder, monkeypatch):
    here = types.ModuleType("only_here")
    exec("def serve(join, slot, stopping): pass", here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", here)
    with pytest.raises(InputError) as got:
        drive(folder, stub=here.serve, address=cluster.address)
    assert "lacks what a worker needs (No module named 'only_here'); install the same" in str(
        got.value
    )


@pytest.mark.slow
def test_workers_that_always_die_are_a_failure(cluster, folder, monkeypatch):
    from search.errors import JobFailed

    monkeypatch.setattr("search.workers.launchers.ray.LONGEST_PAUSE", 0.1)
    with pytest.raises(JobFailed, match=r"10 workers died one after another .* killed or crashed"):
        drive(folder, stub=serve_and_die, address=cluster.address)
    assert 10 <= len(signed_in(folder)) <= 12  # those that had begun when the tenth was heard


@pytest.mark.slow
def test_deaths_do_not_add_up_where_trials_end(cluster, folder, monkeypatch):
    monkeypatch.setattr("search.workers.launchers.ray.LONGEST_PAUSE", 0.1)
    drive(
        folder,
        stub=serve_and_die,
        address=cluster.address,
        ended=lambda: len(signed_in(folder)),
        is_done=lambda: len(signed_in(folder)) >= 15,
    )
    assert len(signed_in(folder)) >= 15


@pytest.mark.slow
def test_a_password_is_seen_nowhere(quiet_ray, cluster, folder, monkeypatch):
    import ray

    from search.errors import JobFailed

    monkeypatch.setattr("search.workers.launchers.ray.LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(
        "ray._private.utils.get_entrypoint_name", lambda: f"run --storage {STORAGE}"
    )
    shown = []

    def is_done():
        shown.append(f"{ray._private.state.actors()}{ray._private.state.jobs()}")
        return False

    with pytest.raises(JobFailed, match=r"RuntimeError: cannot reach \*\*\* with \*\*\*") as got:
        drive(
            folder,
            stub=serve_indiscreetly,
            address=cluster.address,
            storage=STORAGE,
            is_done=is_done,
        )
    assert "RayWorker" in shown[-1]
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
        (1, 0.4, {"CPU": 8.0, "GPU": 2.0}, 4),  # not 5: one would sit on two GPUs
        (1, 0.1, {"CPU": 32.0, "GPU": 1.0}, 10),
        (4, 0.25, {"CPU": 9.0, "GPU": 4.0}, 2),  # the CPUs are what lacks
        (1, 0.5, {"CPU": 8.0}, 0),
        (1, 0, {}, 0),
        (1, 0, {"CPU": 0.5}, 0),
    ],
)
def test_how_many_workers_a_node_holds(quiet_ray, cpus, share, node, times):
    from search.workers.launchers.ray import _Need

    assert _Need(cpus, share).times_in(node) == times
