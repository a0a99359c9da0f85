"""A checkpoint gives the same network back, or one line that says why not."""

import json
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.inference.ensemble import Ensemble
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.models import MODELS, build_model
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint

UNET = TrialConfig(model=ComponentConfig("unet", {"width": 4, "depth": 2}), image_size=16, seed=3)


def trained(config, size):
    """A network whose batch norms have statistics of some batches."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, image_size=config.image_size).to(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size) * 3 + 1)
    return model.eval()


def refusal(path):
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint."""
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained(UNET, 16).state_dict(), UNET)
    return path


@pytest.fixture
def ensemble(tmp_path):
    """A small checkpoint of an ensemble, in the same place."""
    path = tmp_path / "model.safetensors"
    checkpoint.save_ensemble(path, members_of(0.75, 0.25))
    return path


@pytest.fixture(params=["saved", "ensemble"])
def either(request):
    return request.getfixturevalue(request.param)


def members_of(*weights):
    """Members of different depth."""
    configs = [replace(UNET, model=ComponentConfig("unet", {"width": 4, "depth": d}))
               for d in (2, 1, 3)]  # fmt: skip
    return [
        checkpoint.MemberWeights(trained(config, 16).state_dict(), config, weight)
        for config, weight in zip(configs, weights, strict=False)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_state_of_every_network_is_restored(name, tmp_path):
    params = MODELS[name].resolve({})
    small = {"encoder": "efficientnet-b0", "width": 8, "init_filters": 8}
    for key, value in small.items():
        if key in params and (key != "encoder" or value in MODELS[name].space[key].choices):
            params[key] = value
    config = TrialConfig(
        model=ComponentConfig(name, params), optimizer=ComponentConfig("sgd", {"lr": 0.1}), seed=1
    )
    state = build_model(config.model, image_size=config.image_size).state_dict()
    # Values that no fresh network has, in running statistics and counters too.
    state = {k: torch.full_like(v, i % 1000 + 1) for i, (k, v) in enumerate(state.items())}
    path = tmp_path / "deep" / "er" / "model.safetensors"
    checkpoint.save(path, state, config)
    again, its_config = checkpoint.load(path)
    path.unlink()
    assert its_config == config
    assert not again.training
    loaded = again.state_dict()
    assert list(loaded) == list(state)
    assert all(loaded[k].dtype == v.dtype and torch.equal(loaded[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "config", [UNET, TrialConfig(model=ComponentConfig("segnet", {"width": 4}))]
)
def test_loaded_network_is_bit_identical(config, tmp_path):
    model = trained(config, 32)
    checkpoint.save(tmp_path / "model.safetensors", model.state_dict(), config)
    again, _ = checkpoint.load(tmp_path / "model.safetensors")
    again = again.to(memory_format=torch.channels_last)  # kernels round by the layout in memory
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


def test_save_replaces_an_older_file(saved):
    other = TrialConfig(model=ComponentConfig("unet", {"width": 4, "depth": 1}), image_size=16)
    checkpoint.save(saved, trained(other, 16).state_dict(), other)
    assert [n for n in os.listdir(saved.parent) if "model" in n] == ["model.safetensors"]
    assert checkpoint.load(saved)[1] == other


def test_file_is_safetensors_with_the_configuration_in_its_header(saved):
    with safe_open(saved, framework="numpy") as file:
        assert json.loads(file.metadata()["config"]) == UNET.to_dict()
        assert file.metadata()["format"] == "lesionsearch/1"
        assert set(file.keys()) == set(build_model(UNET.model, image_size=16).state_dict())


def test_save_on_a_full_disk_keeps_the_old_file(saved):
    """A file-size limit makes writes fail like a full disk."""
    before = saved.read_bytes()
    code = """
import resource, sys
from pathlib import Path
from lesionseg.training import checkpoint
from lesionseg.config import TrialConfig
from lesionseg.models import build_model
from lesionseg.space import ComponentConfig
config = TrialConfig(model=ComponentConfig("unet", {"width": 8, "depth": 2}))
weights = build_model(config.model, image_size=config.image_size).state_dict()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save(Path(sys.argv[1]), weights, config)
except Exception as error:
    print("failed", type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("failed")
    assert saved.read_bytes() == before
    assert [n for n in os.listdir(saved.parent) if "model" in n] == ["model.safetensors"]


def test_missing_file(tmp_path):
    assert refusal(tmp_path / "none.safetensors") == "no such file"
    assert refusal(tmp_path) == "no such file"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"\0" * 8, b"\xff" * 64, b"PK\3\4 a zip", b"text, not weights\n" * 20],
    ids=["empty", "a-byte", "zeros", "huge-header", "zip", "text"],
)
def test_file_of_another_format(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(path).startswith("not a safetensors file (")


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.parametrize("write", [lambda v, p: p.write_bytes(pickle.dumps(v)), torch.save])
def test_pickle_is_refused_without_executing_it(tmp_path, write):
    victim = tmp_path / "victim"
    path = tmp_path / "model.safetensors"
    write({"weights": Harmful(str(victim))}, path)
    assert refusal(path).startswith("not a safetensors file (")
    assert not victim.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_truncated_file(either, share):
    content = either.read_bytes()
    either.write_bytes(content[: int(share * len(content))])
    assert refusal(either).startswith("not a safetensors file (")


def test_damaged_header_is_refused_or_harmless(either):
    content = either.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(header)] ^= 1 << rng.randrange(8)
        either.write_bytes(damaged)
        try:
            model, config = checkpoint.load(either)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(either) in str(error)
        else:
            assert config.model.name == "unet" and isinstance(model, torch.nn.Module)
    assert refused > 40


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is not a lesionsearch/1 or lesionsearch/2 model, its format is None"),
        ({"format": "pt"}, "is not a lesionsearch/1 or lesionsearch/2 model, its format is 'pt'"),
        (
            {"format": "lesionsearch/3"},
            "is not a lesionsearch/1 or lesionsearch/2 model, its format is 'lesionsearch/3",
        ),
        ({"format": "lesionsearch/1"}, "invalid configuration: "),
        ({"format": "lesionsearch/1", "config": "{"}, "invalid configuration: "),
        ({"format": "lesionsearch/1", "config": "[]"}, "invalid configuration: "),
        ({"format": "lesionsearch/1", "config": "3"}, "invalid configuration: "),
        ({"format": "lesionsearch/1", "config": "null"}, "invalid configuration: "),
        (
            {"format": "lesionsearch/1", "config": '{"model": "unett"}'},
            "invalid configuration: unknown model 'unett' (did you mean 'unet'?)",
        ),
        (
            {"format": "lesionsearch/1", "config": '{"model": {"unet": [1]}}'},
            "invalid configuration: a component must be a name or {name: parameters}, got",
        ),
        (
            {"format": "lesionsearch/1", "config": '{"epochs": -1}'},
            "invalid configuration: epochs must lie in [1, 100000], got -1",
        ),
        (
            {"format": "lesionsearch/1", "config": '{"model": {"unet": {"width": 999}}}'},
            "invalid configuration: model.unet: width must lie in [4, 128], got 999",
        ),
    ],
)
def test_invalid_metadata(tmp_path, metadata, message):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(2)}, path, metadata=metadata)
    assert refusal(path).startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[" * 100_000, "invalid configuration: maximum recursion depth"),
        ('{"a":' * 100_000, "invalid configuration: maximum recursion depth"),
        ('{"epochs": 1e999}', "invalid configuration: epochs must be finite"),
        ('{"epochs": ' + "9" * 5000 + "}", "invalid configuration: "),
        ('{"image_size": 17}', "invalid configuration: image_size: unet takes multip"),
        ('{"model": {"smp_pan": {}}, "image_size": 64}', "invalid configuration: image"),
        (
            '{"model": {"' + "x" * 5000 + '": {}}}',
            "invalid configuration: unknown model",
        ),
    ],
    ids=["lists", "mappings", "infinite", "long-number", "off-stride", "too-small", "long-name"],
)
def test_malicious_configuration(tmp_path, config, message):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(2)}, path, metadata={"format": "lesionsearch/1", "config": config})
    text = refusal(path)
    assert text.startswith(message)
    assert len(text) < 400
    # The same of a member, which is named by the header.
    members = f'[{{"weight": 1.0, "config": {config}}}]'
    metadata = {"format": "lesionsearch/2", "members": members}
    save_file({"0.w": torch.zeros(2)}, path, metadata=metadata)
    text = refusal(path)
    assert text.startswith(message.replace("invalid configuration", "invalid members"))
    assert len(text) < 400


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smp_unet", "smp_dpt"])  # between them, every encoder
def test_every_encoder_is_checked_without_allocating_it(name, tmp_path):
    """The error for a file without tensors names the network's tensors."""
    option = MODELS[name]
    for encoder in option.space["encoder"].choices:
        config = TrialConfig(model=ComponentConfig(name, {"encoder": encoder}))
        with torch.device("meta"), checkpoint._LinspaceOnCpu():
            model = build_model(config.model, image_size=256, load_pretrained=False)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        path = tmp_path / f"{encoder}.safetensors"
        checkpoint.save(path, {}, config)
        text, first = refusal(path), next(iter(model.state_dict()))
        assert text.startswith(f"the weights do not fit {name}: Error")
        assert f'Missing key(s) in state_dict: "{first}"' in text


@pytest.mark.parametrize("noted", ["{", "[]", '{"tta": "d5"}', "[" * 100_000, '{"chain": [3]}'])
def test_invalid_inference_settings(either, noted):
    with safe_open(either, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, either, metadata=metadata | {"inference": noted})
    with pytest.raises(InputError) as caught:
        checkpoint.read_inference(either)
    text = str(caught.value)
    assert text.startswith(f"{either}: invalid inference settings: ")
    assert "\n" not in text and len(text) < 500 + len(str(either))


def write_raw(path, header, size):
    """Write a header and a sparse file of this many bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


def metadata_of(config):
    return {"format": "lesionsearch/1", "config": json.dumps(config)}


#: The largest that the table allows.
HUGE = {"model": {"unet": {"width": 128, "depth": 6}}}
TERA = 2**40


def single(shape, end, config):
    """A header of one tensor with this shape and end offset."""
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    return {"__metadata__": metadata_of(config), "w": tensor}


def ensemble_header(weights, config):
    """A header of members of the same configuration, and of one tensor."""
    members = json.dumps([{"weight": weight, "config": config} for weight in weights])
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {"__metadata__": {"format": "lesionsearch/2", "members": members}, "0.w": tensor}


#: Headers of files with four bytes after them, and what is said of each.
CLAIMS = {
    # A network of 11 GB, and a file that holds next to nothing of it.
    "network": (single([1], 4, HUGE), "the weights do not fit unet: "),
    # A tensor of a tebibyte, shapes that do not agree with the bytes, and such as overflow.
    "tensor": (single([TERA // 4], TERA, {}), "not a safetensors file ("),
    "shape": (single([TERA], 4, {}), "not a safetensors file ("),
    "overflow": (single([2**62, 2**62], 4, {}), "not a safetensors file ("),
    # 20 members of 11 GB each, and a million members.
    "members": (ensemble_header([1 / 20] * 20, HUGE), "the weights do not fit unet, member 0: "),
    "many": (ensemble_header([1e-6] * 10**6, {}), "invalid members: must be a list of 1 to 20"),
    "header": (b" " * (101 * 10**6), "not a safetensors file ("),
}

#: Loads files under a limit of memory: a gigabyte more than what importing took.
LIMITED = """
import resource, sys
from pathlib import Path
from lesionseg.training import checkpoint
from lesionseg.errors import InputError
from lesionseg.inference.ensemble import Ensemble
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.models import build_model
from lesionseg.space import ComponentConfig
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[1:]:
    try:
        checkpoint.load(Path(name))
    except InputError as error:
        print(error)
try:
    build_model(ComponentConfig("unet", {"width": 128, "depth": 6}), image_size=256)
except RuntimeError as error:
    print("limited" if "allocate" in str(error) else error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_claimed_sizes_are_not_allocated(tmp_path):
    """Loading is refused under a memory limit that does not allow building the network."""
    paths = [tmp_path / f"{name}.safetensors" for name in CLAIMS]
    for path, (header, _) in zip(paths, CLAIMS.values(), strict=True):
        write_raw(path, header, 4)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True
    )
    said = done.stdout.splitlines()
    assert len(said) == len(CLAIMS) + 1 and said[-1] == "limited", done.stderr[-2000:]
    for line, path, (_, message) in zip(said, paths, CLAIMS.values(), strict=False):
        assert line.startswith(f"{path}: {message}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(saved, tmp_path, value):
    weights = trained(UNET, 16).state_dict()
    weights["stem.4.running_var"][1] = value
    checkpoint.save(saved, weights, UNET)
    assert refusal(saved) == (
        "its weights hold NaN or infinity (stem.4.running_var); train it again"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_are_converted(saved, dtype):
    weights = trained(UNET, 16).state_dict()
    weights["head.weight"] = weights["head.weight"].to(dtype)
    checkpoint.save(saved, weights, UNET)
    loaded = checkpoint.load(saved)[0].state_dict()["head.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, weights["head.weight"].float())


def test_unreadable_file(saved, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    assert refusal(saved) == "not a safetensors file ([Errno 13] Permission denied)"


def changed(weights, change):
    weights = dict(weights)
    change(weights)
    return weights


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.pop("head.weight"),
        lambda w: w.update({"extra": torch.zeros(1)}),
        lambda w: w.update({"head.weight": torch.zeros(1, 5, 1, 1)}),
        lambda w: w.update({"head.weight": torch.zeros(1, 4, 1, 1, dtype=torch.int8)}),
        lambda w: w.clear(),
    ],
    ids=["missing", "extra", "shape", "dtype", "none"],
)
def test_weights_that_do_not_fit_their_configuration(tmp_path, change):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, changed(trained(UNET, 16).state_dict(), change), UNET)
    assert refusal(path).startswith("the weights do not fit unet: ")


def test_configuration_of_another_width(tmp_path):
    path = tmp_path / "model.safetensors"
    wider = TrialConfig(model=ComponentConfig("unet", {"width": 5, "depth": 2}))
    checkpoint.save(path, trained(UNET, 16).state_dict(), wider)
    text = refusal(path)
    assert text.startswith("the weights do not fit unet: ") and len(text) < 350


# --- ensembles -----------------------------------------------------------------------------------


def test_ensemble_is_restored_with_its_configurations_and_weights(ensemble):
    members = members_of(0.75, 0.25)
    again, config = checkpoint.load(ensemble)
    assert isinstance(again, Ensemble) and not again.training
    assert config == members[0].config == again.config
    assert again.configs == tuple(member.config for member in members)
    assert again.weights.tolist() == [0.75, 0.25]
    for network, member in zip(again.members, members, strict=True):
        loaded = network.state_dict()
        assert list(loaded) == list(member.tensors)
        assert all(torch.equal(loaded[name], value) for name, value in member.tensors.items())


def test_header_of_an_ensemble_describes_its_members(ensemble):
    with safe_open(ensemble, framework="numpy") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["format"] == "lesionsearch/2"
    members = members_of(0.75, 0.25)
    assert json.loads(metadata["members"]) == [
        {"weight": member.weight, "config": member.config.to_dict()} for member in members
    ]
    assert names == {f"{i}.{name}" for i, member in enumerate(members) for name in member.tensors}


def test_inference_settings_of_either_format_are_kept(either):
    before = checkpoint.load(either)[0].state_dict()
    assert checkpoint.read_inference(either) == DEFAULT_INFERENCE
    inference = Inference("d4", (ComponentConfig("largest"),))
    checkpoint.set_inference(either, inference)
    assert checkpoint.read_inference(either) == inference
    after = checkpoint.load(either)[0].state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_one_member_is_saved_as_a_single_network(tmp_path):
    alone, single = tmp_path / "alone.safetensors", tmp_path / "single.safetensors"
    (member,) = members_of(1.0)
    checkpoint.save_ensemble(alone, [member])
    checkpoint.save(single, member.tensors, member.config)
    (ours, header), (theirs, same_header) = map(header_of, (alone, single))
    assert header == same_header and list(ours) == list(theirs)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_members_that_cannot_be_an_ensemble_are_not_saved(tmp_path):
    path, members = tmp_path / "model.safetensors", members_of(0.75, 0.75)
    with pytest.raises(InputError, match=r"must have the sum 1, got 1\.5"):
        checkpoint.save_ensemble(path, members)
    assert not path.exists()


def header_of(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata()


def without(*keys):
    return lambda members: [{k: v for k, v in m.items() if k not in keys} for m in members]


def first(**changes):
    return lambda members: [members[0] | changes, *members[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [], "must be a list of 1 to 20, got '[]'"),
        (lambda m: {"a": m}, "must be a list of 1 to 20, got "),
        (lambda m: None, "must be a list of 1 to 20, got 'null'"),
        (lambda m: m * 11, "must be a list of 1 to 20, got "),
        (lambda m: [3, 4], "'int' object has no attribute 'get'"),
        (without("config"), ""),
        (without("weight"), "the weight of a member must be a positive number, got None"),
        (first(weight=float("nan")), "the weight of a member must be a positive number, got nan"),
        (first(weight=-0.75), "the weight of a member must be a positive number, got -0.75"),
        (first(weight=True), "the weight of a member must be a positive number, got True"),
        (first(weight=[0.75]), "the weight of a member must be a positive number, got [0.75]"),
        (first(weight=10**400), ""),
        (first(weight=0.7), "the weights of the members must have the sum 1, got 0.95"),
        (
            first(config={"model": "unett", "image_size": 16}),
            "unknown model 'unett' (did you mean 'unet'?)",
        ),
        (first(config={"amp": "of"}), "amp must be one of "),
        (first(config={"image_size": 32}), "the members of an ensemble must have one image size"),
    ],
)
def test_invalid_members(ensemble, change, message):
    tensors, metadata = header_of(ensemble)
    members = json.dumps(change(json.loads(metadata["members"])))
    save_file(tensors, ensemble, metadata=metadata | {"members": members})
    text = refusal(ensemble)
    assert text.startswith(f"invalid members: {message}") and len(text) < 400


@pytest.mark.parametrize("members", [None, "", "{", "3", "[" * 100_000])
def test_members_that_cannot_be_parsed(ensemble, members):
    tensors, metadata = header_of(ensemble)
    del metadata["members"]
    save_file(tensors, ensemble, metadata=metadata | ({"members": members} if members else {}))
    assert refusal(ensemble).startswith("invalid members: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("1.head.weight"), "the weights do not fit unet, member 1: "),
        (lambda w: w.update({"0.extra": torch.zeros(1)}), "the weights do not fit unet, member 0"),
        (lambda w: w.update({"2.w": torch.zeros(1)}), "has weights of no member ('2.w')"),
        (lambda w: w.update({"00.w": torch.zeros(1)}), "has weights of no member ('00.w')"),
        (lambda w: w.update({"w": torch.zeros(1)}), "has weights of no member ('w')"),
        (
            lambda w: w.update({"1.head.weight": torch.zeros(1, 5, 1, 1)}),
            "the weights do not fit unet, member 1: ",
        ),
        (
            lambda w: w["1.stem.4.running_var"].fill_(float("nan")),
            "its weights hold NaN or infinity (stem.4.running_var, member 1); train it again",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("1.")],
            "the weights do not fit unet, member 1: ",
        ),
        # The members in the other order: each has weights of the other's configuration.
        (
            lambda w: w.update(
                {f"{1 - int(name[0])}{name[1:]}": w.pop(name) for name in list(w)}
            ),
            "the weights do not fit unet, member 0: ",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_members(ensemble, change, message):
    tensors, metadata = header_of(ensemble)
    save_file(changed(tensors, change), ensemble, metadata=metadata)
    assert refusal(ensemble).startswith(message)
