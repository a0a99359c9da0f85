"""One contract for the study's folder, a shared folder and a bucket, and tests of each."""

import os
import socket
import sys
import threading
from contextlib import suppress

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from lesionseg.errors import InputError
from search.storage.artifact_store import ArtifactStoreUnavailable, open_artifact_store

KINDS = ["own", "shared", "s3"]


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch):
    """Settings of boto3 in the environment, and none of this machine's."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def bucket(aws, moto, request):
    """An empty bucket behind a real HTTP server."""
    aws.setenv("AWS_ENDPOINT_URL", moto)
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def location(kind, request, tmp_path):
    if kind == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/some/prefix/"
    return {"own": None, "shared": str(tmp_path / "shared")}[kind]


@pytest.fixture
def one(location, tmp_path):
    """The store as one host sees it."""
    return open_artifact_store(location, tmp_path / "one" / "mine")


@pytest.fixture
def two(location, kind, tmp_path):
    """The same study's store as another host sees it, from another folder."""
    host = "one" if kind == "own" else "two"
    return open_artifact_store(location, tmp_path / host / "mine")


def put_file(store, number, name, content):
    store.local_path(number, name).write_bytes(content)
    store.put(number, name)


# --- the contract ------------------------------------------------------------------------------


def test_another_host_fetches_what_was_put(one, two):
    put_file(one, 7, "model.safetensors", b"weights")
    path = two.fetch(7, "model.safetensors")
    assert path == two.local_path(7, "model.safetensors")
    assert path.read_bytes() == b"weights"
    assert path.name == "model.safetensors"


def test_a_new_version_replaces_a_fetched_one(one, two):
    put_file(one, 7, "state.pt", b"epoch 1")
    two.fetch(7, "state.pt")
    put_file(one, 7, "state.pt", b"epoch 2, longer")
    assert two.fetch(7, "state.pt").read_bytes() == b"epoch 2, longer"


def test_a_missing_file_is_not_fetched(one, two):
    put_file(one, 7, "state.pt", b"1")
    assert two.fetch(7, "history.csv") is None
    assert two.fetch(8, "state.pt") is None
    assert two.fetch(70, "state.pt") is None
    assert not (two.root / "trials" / "8").exists()


def test_files_are_listed_and_measured(one, two):
    assert two.list_files(1) == []
    assert two.total_bytes() == 0
    put_file(one, 1, "state.pt", b"12345")
    put_file(one, 1, "history.csv", b"678")
    put_file(one, 11, "state.pt", b"90")
    assert two.list_files(1) == ["history.csv", "state.pt"]
    assert two.list_files(11) == ["state.pt"]
    assert two.total_bytes() == 10


def test_a_deleted_file_is_gone_for_all_hosts(one, two):
    put_file(one, 1, "state.pt", b"1")
    put_file(one, 1, "history.csv", b"2")
    two.fetch(1, "state.pt")
    two.delete(1, "state.pt")
    assert one.fetch(1, "state.pt") is None
    assert two.fetch(1, "state.pt") is None
    assert not two.local_path(1, "state.pt").exists()
    assert one.list_files(1) == ["history.csv"]
    two.delete(1, "state.pt")  # repeated
    two.delete(99, "state.pt")


def test_a_deleted_trial_leaves_no_files(one, two):
    put_file(one, 1, "state.pt", b"1")
    put_file(one, 1, "history.csv", b"2")
    put_file(one, 11, "state.pt", b"3")
    one.delete_trial(1)
    one.delete_trial(2)
    assert two.list_files(1) == []
    assert two.list_files(11) == ["state.pt"]
    assert not (one.root / "trials" / "1").exists()


def test_a_given_name_overrides_the_folders(location, kind, one, tmp_path):
    renamed = open_artifact_store(location, tmp_path / "two" / "elsewhere", "mine")
    put_file(one, 1, "state.pt", b"1")
    found = renamed.fetch(1, "state.pt")
    assert (found is None) == (kind == "own")
    assert renamed.is_local == (kind != "s3")


def test_a_missing_file_cannot_be_put(one):
    with pytest.raises(FileNotFoundError):
        one.put(1, "state.pt")
    assert one.list_files(1) == []


def test_empty_and_large_files_are_unchanged(one, two):
    large = os.urandom(9 << 20)  # over the size from which uploads go in parts
    put_file(one, 1, "empty", b"")
    put_file(one, 1, "large", large)
    assert two.fetch(1, "empty").read_bytes() == b""
    assert two.fetch(1, "large").read_bytes() == large


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/etc/passwd", ".hidden", "a b", "é"])
def test_invalid_names_are_rejected(name, one):
    for method in (one.local_path, one.put, one.fetch, one.delete):
        with pytest.raises(ValueError, match="a file's name is letters"):
            method(1, name)


def test_studies_in_one_place_are_separate(location, one, tmp_path):
    other = open_artifact_store(location, tmp_path / "one" / "min")
    put_file(one, 1, "state.pt", b"mine")
    assert other.fetch(1, "state.pt") is None
    put_file(other, 1, "state.pt", b"other")
    assert one.fetch(1, "state.pt").read_bytes() == b"mine"
    assert one.total_bytes() == 4


def test_the_marker_identifies_the_study(one, two):
    with pytest.raises(InputError, match="holds nothing of the study as this host sees it; mount"):
        two.check_marker("uuid 1")
    one.claim_marker("uuid 1")
    one.claim_marker("uuid 1")  # resumed
    two.check_marker("uuid 1")
    with pytest.raises(InputError, match="is another study's"):
        two.check_marker("uuid 2")
    with pytest.raises(InputError, match="holds another study of this name"):
        two.claim_marker("uuid 2")
    two.check_marker("uuid 1")
    assert one.list_files(1) == []


def test_the_key_is_the_same_in_every_store(one, kind, tmp_path, request):
    put_file(one, 3, "state.pt", b"x")
    if kind == "s3":
        listed = boto3.client("s3").list_objects_v2(Bucket=request.getfixturevalue("bucket"))
        assert [o["Key"] for o in listed["Contents"]] == ["some/prefix/mine/trials/3/state.pt"]
    else:
        root = tmp_path / ("one" if kind == "own" else "shared")
        assert (root / "mine/trials/3/state.pt").read_bytes() == b"x"


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_that_is_not_shared_is_reported(tmp_path):
    open_artifact_store(None, tmp_path / "here").claim_marker("u")
    with pytest.raises(InputError) as caught:
        open_artifact_store(None, tmp_path / "there").check_marker("u")
    assert str(caught.value).startswith(f"artifacts: {tmp_path}/there: holds nothing of the study")
    assert "s3://bucket/prefix" in str(caught.value)


def test_a_location_that_cannot_be_a_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    store = open_artifact_store(str(tmp_path / "file"), tmp_path / "mine")
    for method in (store.claim_marker, store.check_marker):
        with pytest.raises(InputError, match=r"file/mine: cannot be read: Not a directory"):
            method("u")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://b/p", "must be a folder or s3://bucket/prefix, got 'gs://b/p'"),
        ("https://b/p?X-Amz-Signature=SECRET", "got 'https://b/p'"),
        ("s3:/b", "must be a folder"),
        ("s3://", "must be a folder"),
        ("s3:///prefix", "must be a folder"),
        ("s3://key:SECRET@bucket/p", "takes no credentials"),
        ("s3://key:SEC/RET@bucket/p", "takes no credentials"),
    ],
)
def test_invalid_locations_are_rejected(text, message, tmp_path):
    with pytest.raises(InputError) as caught:
        open_artifact_store(text, tmp_path)
    assert message in str(caught.value)
    assert "SEC" not in str(caught.value)


# --- buckets -----------------------------------------------------------------------------------


def test_an_unfinished_upload_does_not_replace_a_file(bucket, tmp_path):
    store = open_artifact_store(f"s3://{bucket}", tmp_path / "mine")
    put_file(store, 1, "state.pt", b"old")
    client, key = boto3.client("s3"), "mine/trials/1/state.pt"
    for name in ("state.pt", "model.safetensors"):
        key = f"mine/trials/1/{name}"
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(
            Bucket=bucket, Key=key, PartNumber=1, UploadId=upload, Body=b"n" * (5 << 20)
        )
    assert store.list_files(1) == ["state.pt"]
    assert store.fetch(1, "state.pt").read_bytes() == b"old"
    assert store.fetch(1, "model.safetensors") is None


class BreakingServer:
    """A bucket with one object, which a GET returns half of."""

    LISTING = (
        b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Contents>'
        b"<Key>p/mine/trials/1/state.pt</Key><Size>8</Size></Contents></ListBucketResult>"
    )

    def __init__(self):
        self.answered, self.listening = 0, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                request = b""
                while b"\r\n\r\n" not in request:
                    request += client.recv(65536)
                body, length = b"", 8
                if b"list-type" in request:
                    body, length = self.LISTING, len(self.LISTING)
                elif request.startswith(b"GET"):
                    self.answered += 1
                    body = b"half"
                head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
                client.sendall(head.encode() + body)
                client.close()


def test_an_interrupted_download_keeps_the_existing_file(aws, tmp_path):
    server = BreakingServer()
    aws.setenv("AWS_ENDPOINT_URL", server.url)
    store = open_artifact_store("s3://bucket/p", tmp_path / "mine")
    path = store.local_path(1, "state.pt")
    path.write_bytes(b"whole")
    with pytest.raises(ArtifactStoreUnavailable) as caught:
        store.fetch(1, "state.pt")
    assert str(caught.value).startswith("artifacts: s3://bucket/p/mine: ")
    assert "\n" not in str(caught.value)
    assert server.answered > 1
    assert os.listdir(path.parent) == ["state.pt"]
    assert path.read_bytes() == b"whole"
    server.listening.shutdown(socket.SHUT_RDWR)


def rejection(location, tmp_path) -> str:
    with pytest.raises(InputError) as caught:
        open_artifact_store(location, tmp_path / "mine")
    assert "\n" not in str(caught.value)
    assert "secret-of-the-test" not in str(caught.value)
    return str(caught.value)


def test_a_missing_bucket_is_reported(bucket, tmp_path):
    assert rejection("s3://no-such-bucket/p", tmp_path) == (
        "artifacts: s3://no-such-bucket/p/mine: there is no bucket 'no-such-bucket'; create it"
    )


def test_a_deleted_bucket_is_reported(bucket, tmp_path):
    store = open_artifact_store(f"s3://{bucket}", tmp_path / "mine")
    boto3.client("s3").delete_bucket(Bucket=bucket)
    store.local_path(1, "state.pt").write_bytes(b"1")
    for method in (store.put, store.fetch, store.delete):
        with pytest.raises(InputError, match="there is no bucket"):
            method(1, "state.pt")
    assert store.local_path(1, "state.pt").exists()
    with pytest.raises(InputError, match="there is no bucket"):
        store.claim_marker("u")


def test_denied_access_is_reported(bucket, moto, tmp_path):
    store = open_artifact_store(f"s3://{bucket}", tmp_path / "mine")
    store.local_path(1, "state.pt").write_bytes(b"1")
    requests.post(f"{moto}/moto-api/reset-auth", data=b"0", timeout=10)
    try:
        message = rejection(f"s3://{bucket}/p", tmp_path)
        for method in (store.put, store.fetch, store.delete):
            with pytest.raises(InputError, match="not permitted"):
                method(1, "state.pt")
    finally:
        requests.post(f"{moto}/moto-api/reset-auth", data=b"inf", timeout=10)
    assert message.startswith(f"artifacts: s3://{bucket}/p/mine: not permitted (")
    assert message.endswith("this host must list, get, put and delete objects there")


def test_missing_credentials_are_reported(bucket, aws, tmp_path):
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    boto3.DEFAULT_SESSION = None
    assert "Unable to locate credentials" in rejection(f"s3://{bucket}", tmp_path)
    boto3.DEFAULT_SESSION = None


def test_an_unreachable_endpoint_is_unavailable(aws, tmp_path):
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(
        ArtifactStoreUnavailable, match=r"^artifacts: s3://b1x/mine: Could not connect"
    ):
        open_artifact_store("s3://b1x", tmp_path / "mine")


def test_an_invalid_endpoint_is_reported(aws, tmp_path):
    aws.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert "Invalid endpoint: nonsense" in rejection("s3://b1x", tmp_path)


def test_a_missing_boto3_is_reported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert rejection("s3://bucket", tmp_path).endswith("install lesionsearch with its extra 's3'")
    open_artifact_store(None, tmp_path)
