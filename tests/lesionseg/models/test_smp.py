import inspect
import warnings

import pytest
import segmentation_models_pytorch as smp
import torch

from lesionseg.errors import InputError
from lesionseg.models.encoders import ENCODERS, TRANSFORMERS, UNSUPPORTED
from lesionseg.models.fine_tuning import FineTuning
from lesionseg.models.smp import ARCHITECTURES, SMP, _drop_unused, _make, build_smp
from lesionseg.space import ComponentConfig, build

#: Encoders of several kinds that are quick to build; the default is tested in test_models.
QUICK = ("tu-tf_efficientnet_lite0", "mit_b0", "tu-vit_tiny_patch16_224")

#: Larger encoders, each of a kind that has a smaller one; of these only shapes are tested.
LARGE = {
    "resnet34",
    "efficientnet-b2",
    "efficientnet-b4",
    "tu-tf_efficientnet_lite1",
    "tu-tf_efficientnet_lite2",
    "tu-mobilenetv4_conv_medium",
    "mit_b1",
    "mit_b2",
    "mit_b3",
    "tu-convnext_tiny",
    "tu-convnextv2_nano",
    "tu-convnextv2_tiny",
    "tu-pvt_v2_b1",
    "tu-pvt_v2_b2",
    "tu-vit_small_patch16_224",
    "tu-vit_base_patch16_dinov3",
}


def images(size, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(size))


def build_seeded(name, **params):
    torch.manual_seed(0)
    return build("model", SMP, ComponentConfig(name, params))


def least(name, **params):
    row = SMP[name]
    return max(row.stride(**row.resolve(params)), row.min_image_size)


def shallow(name):
    """The parameters of the row's shallowest decoder."""
    return {"encoder_depth": 3} if "encoder_depth" in SMP[name].space else {}


def quick(name):
    """A small encoder whose input is not converted."""
    return "tu-deit_tiny_patch16_224" if name == "smp_dpt" else "mobilenet_v2"


def library(name, encoder, params):
    """The library's network with the same weights, nothing removed, by its public arguments."""
    architecture = ARCHITECTURES[name.removeprefix("smp_")]
    chosen = {"dynamic_img_size": True} if name == "smp_dpt" else {}
    depth = params.get("encoder_depth", 5)
    if "encoder_depth" in SMP[name].space:
        chosen["encoder_depth"] = depth
        if name != "smp_linknet":
            chosen["decoder_channels"] = [256, 128, 64, 32, 16][:depth]
    if params.get("attention") == "scse":
        chosen["decoder_attention_type"] = "scse"
    torch.manual_seed(0)
    maker = getattr(smp, architecture.name)
    return maker(encoder_name=encoder, encoder_weights=None, classes=1, **chosen)


def learns(model, size):
    logits = model.train()(images(size))
    assert logits.shape == (2, 1, size, size)
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == []
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", SMP)
def test_every_parameter_learns_at_the_smallest_size_with_two_images(name):
    encoders = [e for e in QUICK if e in SMP[name].space["encoder"].choices]
    assert encoders
    for encoder in encoders:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = build_seeded(name, encoder=encoder, weights="none")
        learns(model, least(name, encoder=encoder))


DEEP = [n for n, row in SMP.items() if "encoder_depth" in row.space]
ATTENTIVE = [n for n, row in SMP.items() if "attention" in row.space]


@pytest.mark.parametrize("name", DEEP)
def test_depth_between_the_extremes_learns_at_the_smallest_size(name):
    params = {"encoder": "tu-convnext_atto", "encoder_depth": 4}
    learns(build_seeded(name, **params), least(name, **params))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_is_put_in_and_learns(name):
    params = {"encoder": "tu-convnext_atto", "encoder_depth": 3}
    plain, attentive = build_seeded(name, **params), build_seeded(name, **params, attention="scse")
    learns(attentive, least(name, **params))
    more = attentive.state_dict().keys() - plain.state_dict().keys()
    assert more
    assert all("attention" in n for n in more)


@pytest.mark.parametrize("name", SMP)
def test_what_is_removed_changes_nothing(name):
    params = shallow(name)
    size = least(name, **params)
    ours = build_seeded(name, encoder=quick(name), **params).eval()
    theirs = library(name, quick(name), params).eval()
    with torch.inference_mode():
        assert torch.equal(ours(images(size)), theirs(images(size)))
    left = theirs.state_dict()
    assert all(torch.equal(t, left[n]) for n, t in ours.state_dict().items())


def test_the_stages_below_the_depth_are_removed():
    """By hand: ResNet-18's third and fourth stage and their four shortcuts' parameters."""

    def block(a, b):
        return 9 * a * b + 9 * b * b + 4 * b + (a * b + 2 * b if a != b else 0)

    removed = block(128, 256) + block(256, 256) + block(256, 512) + block(512, 512)
    theirs = library("smp_linknet", "resnet18", {"encoder_depth": 3})
    ours = build_seeded("smp_linknet", encoder="resnet18", encoder_depth=3)
    count = [sum(p.numel() for p in m.parameters()) for m in (theirs, ours)]
    assert count[0] - count[1] == removed


def test_a_network_built_in_inference_mode_can_still_be_trained():
    with torch.inference_mode():
        model = build_seeded("smp_unet", encoder="resnet18")
    learns(model, 32)


@pytest.mark.parametrize("name", SMP)
def test_parameters_of_pretraining_are_fixed_by_default_and_files_are_taken(name):
    row = SMP[name]
    fixed = {"weights", "encoder_lr_factor", "frozen_epochs", "layer_decay", "drop_path"}
    fixed |= set() if name == "smp_linknet" else {"decoder_width"}
    assert row.fixed_by_default == fixed
    assert row.space["weights"].default == "auto"
    assert row.space["weights"].check("./some/file.pth") == "./some/file.pth"
    assert row.space["encoder"].default in row.space["encoder"].choices


def test_fine_tuning_is_stated_by_the_network():
    chosen = {"encoder_lr_factor": 0.1, "frozen_epochs": 2, "layer_decay": 0.7}
    model = build_seeded("smp_linknet", encoder="mobilenet_v2", **chosen)
    assert model.fine_tuning == FineTuning(**chosen)
    # The defaults of the table are those of the class: what an older configuration lacks.
    assert build_seeded("smp_linknet", encoder="mobilenet_v2").fine_tuning == FineTuning()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_channels_are_the_defaults_of_the_library_and_complete(architecture):
    row = ARCHITECTURES[architecture]
    theirs = inspect.signature(getattr(smp, row.name)).parameters
    sizes = {n: p.default for n, p in theirs.items() if n.endswith("_channels") and n[0] in "dp"}
    assert sizes == row.channels


@pytest.mark.parametrize(
    ("factor", "attention", "expected"),
    [
        (1.0, "none", [256, 128, 64, 32, 16]),
        (0.5, "none", [128, 64, 32, 16, 8]),
        (0.25, "none", [64, 32, 16, 8, 8]),
        (0.25, "scse", [64, 32, 16, 16, 16]),
        (1.3, "none", [336, 168, 80, 40, 24]),  # 332.8, 166.4, 83.2, 41.6, 20.8
        (2.0, "none", [512, 256, 128, 64, 32]),
    ],
)
def test_decoder_width_multiplies_the_channels_of_each_stage(factor, attention, expected):
    with torch.device("meta"):
        model = build_smp("unet", encoder="mobilenet_v2", attention=attention, decoder_width=factor)
    assert [b.conv2[0].out_channels for b in model.decoder.blocks] == expected


@pytest.mark.parametrize("name", [n for n in SMP if "decoder_width" in SMP[n].space])
def test_every_decoder_of_another_width_learns(name):
    params = {"encoder": quick(name), **shallow(name)}
    narrow = build_seeded(name, **params, decoder_width=0.3)
    learns(narrow, least(name, **params))
    with torch.device("meta"):
        others = [build_seeded(name, **params, decoder_width=factor) for factor in (1.0, 1.9)]
    counts = [sum(p.numel() for p in m.parameters()) for m in (narrow, *others)]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("encoder", [e for e in ENCODERS + TRANSFORMERS if e.startswith("tu-")])
def test_drop_path_rises_to_its_rate_in_every_encoder_of_timm(encoder):
    with torch.device("meta"):
        model = _make("dpt" if encoder in TRANSFORMERS else "fpn", encoder, 5, drop_path=0.4)
    rates = [m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")]
    assert rates == sorted(rates)
    assert 0.37 < rates[-1] < 0.4001


def test_drop_path_changes_training_alone():
    torch.manual_seed(0)
    model = build_seeded("smp_fpn", encoder="tu-convnext_atto", weights="none", drop_path=0.5)
    plain = build_seeded("smp_fpn", encoder="tu-convnext_atto", weights="none")
    plain.load_state_dict(model.state_dict())
    x = images(32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x))
        assert not torch.equal(model.train()(x), model(x))


@pytest.mark.parametrize("encoder", [e for e in ENCODERS if not e.startswith("tu-")])
def test_drop_path_of_an_encoder_that_would_ignore_it_is_refused(encoder):
    said = rf"^model\.smp_unet: drop_path: only .* got 0\.1 for '{encoder}'; use 0 or"
    with pytest.raises(InputError, match=said):
        build_smp("unet", encoder=encoder, drop_path=0.1)


@pytest.mark.parametrize(("depth", "stride"), [(3, 8), (4, 16), (5, 32)])
def test_the_stride_follows_the_depth_where_the_decoder_does(depth, stride):
    assert DEEP == ["smp_unet", "smp_unetplusplus", "smp_manet", "smp_linknet"]
    for name in DEEP:
        params = SMP[name].resolve({"encoder_depth": depth})
        assert SMP[name].stride(**params) == stride


def test_all_architectures_of_the_library_have_a_row():
    known = {a.__name__ for a in vars(smp).values() if isinstance(a, type)}
    known = {n for n in known if issubclass(getattr(smp, n), smp.base.SegmentationModel)}
    assert {a.name for a in ARCHITECTURES.values()} == known
    assert len(SMP) == 12


@pytest.mark.parametrize("architecture", UNSUPPORTED)
def test_what_the_library_refuses_is_said_with_its_reason(architecture):
    for encoder in sorted(UNSUPPORTED[architecture]):
        assert encoder in ENCODERS
        assert encoder not in SMP[f"smp_{architecture}"].space["encoder"].choices
        said = rf"^model\.smp_{architecture}: encoder '{encoder}': .*(support|unexpected)"
        with pytest.raises(InputError, match=said) as caught:
            build_smp(architecture, encoder=encoder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoder", ["resnet18x", "tu-resnet18x"])
def test_a_misspelt_encoder_is_refused_and_not_swallowed(encoder):
    for architecture in ARCHITECTURES:
        with pytest.raises(InputError, match=rf"^model\.smp_{architecture}: .*resnet18x"):
            build_smp(architecture, encoder=encoder)


def offered(name):
    return SMP[name].space["encoder"].choices


def test_large_encoders_are_rows():
    assert set(ENCODERS + TRANSFORMERS) >= LARGE


def pairs(is_tested):
    """Pairs of architecture and encoder: a quarter is slow, with each of both; the others long."""
    return [
        pytest.param(name, encoder, marks=pytest.mark.long if (i + j) % 4 else pytest.mark.slow)
        for i, name in enumerate(SMP)
        for j, encoder in enumerate(offered(name))
        if is_tested(name, encoder)
    ]


@pytest.mark.parametrize(("name", "encoder"), pairs(lambda name, encoder: encoder not in LARGE))
def test_every_pair_runs_and_nothing_that_it_needs_is_removed(name, encoder):
    params = {"encoder": encoder, **shallow(name)}
    row, size = SMP[name], least(name, **params)
    torch.manual_seed(0)
    model = _make(name.removeprefix("smp_"), encoder, params.get("encoder_depth", 5))
    with torch.no_grad():
        whole = model.eval()(images(size))
        with torch.enable_grad():
            _drop_unused(model, row.min_image_size)
        assert torch.equal(model.eval()(images(size)), whole)
        assert all(p.requires_grad for p in model.parameters())
        # The next size shows that the stride is one, the smallest that batch norm can train.
        for side in (size, size + row.stride(**row.resolve(params))):
            assert model.train()(images(side)).shape == (2, 1, side, side)


@pytest.mark.parametrize(
    ("name", "encoder"), pairs(lambda name, encoder: name in DEEP or encoder in LARGE)
)
def test_every_pair_has_the_right_shape_at_full_depth(name, encoder):
    size = least(name)
    # Shapes only, where the library does not ask for numbers while it builds.
    with torch.device("cpu" if encoder.startswith("mit_") else "meta"):
        model = build_seeded(name, encoder=encoder, weights="none").train()
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 1, size, size)
