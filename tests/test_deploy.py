"""Deployments hold together: names, labels, ports, secrets; and their commands exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
import typer
import yaml
from sqlalchemy.engine import make_url

import cli
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
YAMLS = sorted(DEPLOY.rglob("*.yaml"))
PAGE = ROOT / "docs" / "distributed.md"


def documents(path):
    return [d for d in yaml.safe_load_all(path.read_text()) if d is not None]


KUSTOMIZATION = documents(KUBERNETES / "kustomization.yaml")[0]
OBJECTS = [
    (path.name, document)
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in documents(path)
]
COMPOSE = documents(DEPLOY / "docker-compose.yaml")[0]


def of_kind(kind):
    return {d["metadata"]["name"]: d for _, d in OBJECTS if d["kind"] == kind}


WORKLOADS = of_kind("Job") | of_kind("Deployment") | of_kind("StatefulSet")


def pods():
    return [(name, workload["spec"]["template"]) for name, workload in WORKLOADS.items()]


# Commands ---------------------------------------------------------------------------------------


def written():
    """Every command line of ours as (where, words)."""
    for name, template in pods():
        for container in template["spec"]["containers"]:
            if container["image"] == "lesionsearch":
                yield name, container["args"]
    for name, service in COMPOSE["services"].items():
        if service["image"] == "lesionsearch":
            yield f"compose {name}", service["command"]
    for path in [*DEPLOY.glob("s*/*"), *DEPLOY.glob("*.md"), *YAMLS, PAGE]:
        text = path.read_text().replace("\\\n", " ")
        # A command begins a line, or follows a prompt, a quote, an = or a path.
        for line in re.findall(r"(?:^|[$`=/] ?)lesionsearch ((?!\$)[a-z][^`\n]*)", text, re.M):
            yield path.name, shlex.split(line.partition(" #")[0].rstrip(" &"))


COMMANDS = list(written())


def refused(words):
    """What the command line says against these words without running them; None for nothing."""
    command, left = typer.main.get_command(cli.app), list(words)
    while hasattr(command, "commands"):
        name = left.pop(0) if left else ""
        if name not in command.commands:
            return f"no command {name!r}"
        command = command.commands[name]
    options = {o: p for p in command.params for o in (*p.opts, *p.secondary_opts)}
    given = []
    while left:
        word, _, value = left.pop(0).partition("=")
        if not word.startswith("-"):
            given.append(word)
        elif word not in options:
            return f"no option {word}"
        elif not (options[word].is_flag or value):
            if not left or left[0].startswith("--"):
                return f"{word} lacks its value"
            left.pop(0)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    needed = sum(bool(p.required) for p in arguments)
    endless = any(p.nargs == -1 for p in arguments)
    if not needed <= len(given) <= (len(given) if endless else len(arguments)):
        return f"{len(given)} arguments, which should be {needed} to {len(arguments)}"
    return None


def test_commands_are_found_in_every_deployment():
    places = {place for place, _ in COMMANDS}
    assert places >= {
        "lesionsearch-search",
        "lesionsearch-workers",
        "lesionsearch-final",
        "compose search",
        "compose worker",
        "worker.sbatch",
        "lesionsearch-worker@.service",
        "distributed.md",
    }


@pytest.mark.parametrize(
    ("place", "words"), COMMANDS, ids=[f"{p}: {' '.join(w)}"[:90] for p, w in COMMANDS]
)
def test_every_command_exists_with_its_options(place, words):
    told = refused(words)
    if len(words) == 1 and place.endswith(".md"):  # a mention
        assert not str(told).startswith("no command"), told
    else:
        assert told is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("walk x", "no command 'walk'"),
        ("run quick --data d --fast", "no option --fast"),
        ("run quick --data", "--data lacks its value"),
        ("run --data d", "0 arguments, which should be 1 to 1"),
        ("report a b", "2 arguments, which should be 1 to 1"),
        ("data sing d", "no command 'sing'"),
        ("run quick --data=d --no-final", None),
    ],
)
def test_what_is_wrong_with_a_command_is_seen(line, message):
    assert refused(line.split()) == message


# Kubernetes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.name)
def test_every_yaml_parses_and_holds_no_tabs_or_namespace(path):
    assert documents(path)
    assert "\t" not in path.read_text()
    assert not any("namespace" in (d.get("metadata") or {}) for d in documents(path))


def test_the_kustomization_names_every_file_but_the_one_for_the_end():
    files = {p.name for p in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "final.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files


def test_no_two_objects_of_a_kind_share_a_name():
    names = [(d["kind"], d["metadata"]["name"]) for _, d in OBJECTS]
    assert len(names) == len(set(names)) == 8
    assert all(name.startswith("lesionsearch-") for _, name in names)


@pytest.mark.parametrize("name", [*of_kind("Deployment"), *of_kind("StatefulSet")])
def test_selectors_match_the_labels_of_their_pods_and_of_no_others(name):
    selector = WORKLOADS[name]["spec"]["selector"]["matchLabels"]
    matching = [n for n, t in pods() if selector.items() <= t["metadata"]["labels"].items()]
    assert matching == [name]


def test_services_reach_the_ports_of_their_pods():
    for service in of_kind("Service").values():
        selector = service["spec"]["selector"].items()
        (pod,) = [t for _, t in pods() if selector <= t["metadata"]["labels"].items()]
        open_ports = {p["name"]: p for c in pod["spec"]["containers"] for p in c["ports"]}
        for port in service["spec"]["ports"]:
            assert open_ports[port["targetPort"]]["containerPort"] == port["port"]
    for stateful in of_kind("StatefulSet").values():
        assert stateful["spec"]["serviceName"] in of_kind("Service")


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_volume_is_there_and_every_mount_has_one(name):
    spec = WORKLOADS[name]["spec"]
    pod = spec["template"]["spec"]
    volumes = {v["name"] for v in pod["volumes"]}
    claimed = {c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", [])}
    mounted = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
    assert mounted == volumes | claimed
    for volume in pod["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert claim["claimName"] in of_kind("PersistentVolumeClaim")
        if secret := volume.get("secret"):
            there = of_kind("Secret")[secret["secretName"]]["stringData"]
            assert {item["key"] for item in secret["items"]} <= set(there)


@pytest.mark.parametrize("name", WORKLOADS)
def test_paths_in_arguments_and_environment_are_mounted(name):
    (container,) = WORKLOADS[name]["spec"]["template"]["spec"]["containers"]
    mounts = [m["mountPath"] for m in container["volumeMounts"]]
    paths = [w for w in container.get("args", []) if w.startswith("/")]
    paths += [e["value"] for e in container["env"] if e["value"].startswith("/")]
    assert paths
    for path in paths:
        assert any(path == m or path.startswith(f"{m}/") for m in mounts), path


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_are_bounded_unprivileged_and_end_in_time(name):
    pod = WORKLOADS[name]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 30
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"]:
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_jobs_end_at_bad_input():
    for job in of_kind("Job").values():
        pod = job["spec"]["template"]["spec"]
        rule = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
        assert rule["values"] == [2]
        assert [rule["containerName"]] == [c["name"] for c in pod["containers"]]
        assert pod["restartPolicy"] == "Never"  # or there may be no such policy


def test_the_storages_url_is_that_of_the_database():
    secret = of_kind("Secret")["lesionsearch-storage"]["stringData"]
    url = make_url(secret["storage"])
    ((name, service),) = of_kind("Service").items()
    assert (url.host, url.port) == (name, service["spec"]["ports"][0]["port"])
    assert url.password == secret["password"]
    (postgres,) = of_kind("StatefulSet").values()
    (container,) = postgres["spec"]["template"]["spec"]["containers"]
    told = {e["name"]: e["value"] for e in container["env"]}
    assert (url.username, url.database) == (told["POSTGRES_USER"], told["POSTGRES_DB"])


def test_supervisor_and_workers_work_at_one_study():
    for places in (
        ("lesionsearch-search", "lesionsearch-workers"),
        ("compose search", "compose worker"),
    ):
        run, worker = (next(w for p, w in COMMANDS if p == place) for place in places)
        assert run[1] == worker[1]
        for option in ("--out", "--data"):
            assert run[run.index(option) + 1] == worker[worker.index(option) + 1]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this host")
def test_kustomize_builds_what_is_there():
    command = ["kubectl", "kustomize", str(KUBERNETES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    built = list(yaml.safe_load_all(done.stdout))
    resources = [name for name, _ in OBJECTS if name != "final.yaml"]
    assert len(built) == len(resources)
    assert all("app.kubernetes.io/part-of" in d["metadata"]["labels"] for d in built)


# The rest ---------------------------------------------------------------------------------------


def test_compose_services_name_secrets_and_volumes_that_are_declared():
    for service in COMPOSE["services"].values():
        assert set(service["secrets"]) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", [])) <= set(COMPOSE["services"])
        for volume in service["volumes"]:
            source = volume.rsplit(":", 2 if volume.endswith(":ro") else 1)[0]
            assert source.startswith(("$", "..")) or source in COMPOSE["volumes"]
        path = service["environment"].get("LESIONSEARCH_STORAGE_FILE", "/run/secrets/password")
        assert path.removeprefix("/run/secrets/") in service["secrets"]


def test_the_image_copies_files_that_exist_and_are_not_ignored():
    text = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [w for line in re.findall(r"^COPY (.+)$", text, re.M) for w in line.split()[:-1]]
    assert set(copied) >= {"requirements.lock", "pyproject.toml", "cli.py", "search"}
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name
    user = re.search(r"^USER (\d+)$", text, re.M).group(1)
    for name, template in pods():
        if name != "lesionsearch-postgres":
            assert template["spec"]["securityContext"]["runAsUser"] == int(user)


def test_the_batch_script_is_bash():
    script = DEPLOY / "slurm" / "worker.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_readme_names_every_deployment():
    text = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.iterdir():
        if path.suffix not in {".md", ".dockerignore"}:
            assert f"`{path.name}" in text, path.name
