import itertools
import warnings

import pytest
import segmentation_models_pytorch as smp
import torch

from lesionseg.errors import InputError
from lesionseg.models.smp import (
    ARCHITECTURES,
    ENCODERS,
    REFUSED,
    TRANSFORMERS,
    build_smp,
    smp_options,
)
from lesionseg.space import Pick, build

ROWS = smp_options()

#: Encoders of three kinds that are quick to build.
QUICK = ("resnet18", "mobilenet_v2", "mit_b0", TRANSFORMERS[0])


def images(size, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(size))


def fresh(name, **params):
    torch.manual_seed(0)
    return build("model", ROWS, Pick(name, params))


def least(name, **params):
    row = ROWS[name]
    return max(row.stride(**row.resolve(params)), row.smallest)


def pairs(encoders):
    for name, row in ROWS.items():
        for encoder in row.space["encoder"].choices:
            if encoder in encoders:
                yield name, encoder


def decoders(name):
    """Every depth and attention of a row, one after the other."""
    space = ROWS[name].space
    for depth in range(3, 6) if "encoder_depth" in space else ():
        yield {"encoder_depth": depth}
    for attention in space["attention"].choices if "attention" in space else ():
        yield {"attention": attention}
    if len(space) == 2:
        yield {}


def library(name, encoder, params):
    """The library's network with the same weights, nothing removed, by its public arguments."""
    architecture = ARCHITECTURES[name.removeprefix("smp_")]
    chosen = {"dynamic_img_size": True} if name == "smp_dpt" else {}
    depth = params.get("encoder_depth", 5)
    if "encoder_depth" in ROWS[name].space:
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


@pytest.mark.parametrize(("name", "encoder"), pairs(QUICK))
def test_every_parameter_learns_at_the_smallest_size_with_two_images(name, encoder):
    learns(fresh(name, encoder=encoder), least(name, encoder=encoder))


@pytest.mark.parametrize(("name", "params"), [(n, p) for n in ROWS for p in decoders(n)])
def test_every_decoder_learns_at_the_smallest_size(name, params):
    encoder = TRANSFORMERS[0] if name == "smp_dpt" else "mobilenet_v2"
    learns(fresh(name, encoder=encoder, **params), least(name, encoder=encoder, **params))


@pytest.mark.parametrize(("name", "params"), [(n, p) for n in ROWS for p in decoders(n)])
def test_what_is_removed_changes_nothing(name, params):
    encoder = TRANSFORMERS[0] if name == "smp_dpt" else "resnet18"
    size = least(name, encoder=encoder, **params)
    ours = fresh(name, encoder=encoder, **params).eval()
    theirs = library(name, encoder, params).eval()
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
    ours = fresh("smp_linknet", encoder="resnet18", encoder_depth=3)
    count = [sum(p.numel() for p in m.parameters()) for m in (theirs, ours)]
    assert count[0] - count[1] == removed


def test_a_network_built_in_inference_mode_can_still_be_trained():
    with torch.inference_mode():
        model = fresh("smp_unet", encoder="resnet18")
    learns(model, 32)


@pytest.mark.parametrize("name", ROWS)
def test_what_it_gives_are_logits(name):
    model = fresh(name).eval()
    size = least(name)
    with torch.inference_mode():
        before = model(images(size, 1))
        bias = list(model.parameters())[-1]
        assert bias.shape == (1,)
        bias += 50.0
        torch.testing.assert_close(model(images(size, 1)), before + 50.0, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ROWS)
def test_in_evaluation_an_image_is_judged_by_itself(name):
    model = fresh(name).eval()
    batch = images(2 * least(name) if name != "smp_pan" else 144, 3)
    with torch.inference_mode():
        torch.testing.assert_close(model(batch[1:2]), model(batch)[1:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ROWS)
def test_the_seed_fixes_its_weights(name):
    one, same = fresh(name).state_dict(), fresh(name).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)


@pytest.mark.parametrize("name", ROWS)
def test_only_the_choice_of_weights_is_settled_and_files_are_taken(name):
    row = ROWS[name]
    assert row.settled == {"weights"}
    assert row.space["weights"].default == "none"
    assert row.space["weights"].check("./some/file.pth") == "./some/file.pth"
    assert row.space["encoder"].default in row.space["encoder"].choices


@pytest.mark.parametrize(("depth", "stride"), [(3, 8), (4, 16), (5, 32)])
def test_the_stride_follows_the_depth_where_the_decoder_does(depth, stride):
    deep = [n for n, r in ROWS.items() if "encoder_depth" in r.space]
    assert deep == ["smp_unet", "smp_unetplusplus", "smp_manet", "smp_linknet"]
    for name in deep:
        params = ROWS[name].resolve({"encoder_depth": depth})
        assert ROWS[name].stride(**params) == stride


def test_all_architectures_of_the_library_have_a_row():
    known = {a.__name__ for a in vars(smp).values() if isinstance(a, type)}
    known = {n for n in known if issubclass(getattr(smp, n), smp.base.SegmentationModel)}
    assert {a.name for a in ARCHITECTURES.values()} == known
    assert len(ROWS) == 12


REFUSALS = [(a, e) for a in REFUSED for e in sorted(REFUSED[a])]


@pytest.mark.parametrize(("architecture", "encoder"), REFUSALS)
def test_what_the_library_refuses_is_said_with_its_reason(architecture, encoder):
    assert encoder in ENCODERS
    assert encoder not in ROWS[f"smp_{architecture}"].space["encoder"].choices
    with pytest.raises(
        InputError,
        match=rf"^model\.smp_{architecture}: encoder '{encoder}': .*(support|unexpected)",
    ) as caught:
        build_smp(architecture, encoder=encoder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("encoder", ["resnet18x", "tu-resnet18x"])
def test_a_misspelt_encoder_is_refused_and_not_swallowed(architecture, encoder):
    with pytest.raises(InputError, match="resnet18x"):
        build_smp(architecture, encoder=encoder)


def test_no_warning_is_given_while_the_networks_are_built():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, encoder in pairs(["resnet18", "tu-mobilenetv3_large_100", TRANSFORMERS[0]]):
            fresh(name, encoder=encoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_pair_builds_and_trains_at_its_smallest_size_and_the_next(name):
    for encoder in ROWS[name].space["encoder"].choices:
        for params in decoders(name):
            # Shapes only, where the library does not ask for numbers while it builds.
            with torch.device("cpu" if encoder.startswith("mit_") else "meta"):
                model = fresh(name, encoder=encoder, **params).train()
                assert all(p.requires_grad for p in model.parameters()), encoder
                stride = ROWS[name].stride(**ROWS[name].resolve({"encoder": encoder, **params}))
                first = least(name, encoder=encoder, **params)
                for size in (first, first + stride, 2 * first):
                    logits = model(torch.zeros(2, 3, size, size))
                    assert logits.shape == (2, 1, size, size), (encoder, params, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_what_is_removed_from_any_encoder_changes_nothing(name):
    for encoder in ROWS[name].space["encoder"].choices:
        size = least(name, encoder=encoder)
        params = {"encoder_depth": 3} if "encoder_depth" in ROWS[name].space else {}
        ours = fresh(name, encoder=encoder, **params).eval()
        theirs = library(name, encoder, params).eval()
        with torch.inference_mode():
            assert torch.equal(ours(images(size, 1)), theirs(images(size, 1))), encoder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "encoder"), list(itertools.product(ARCHITECTURES, [*ENCODERS, *TRANSFORMERS]))
)
def test_the_library_itself_refuses_what_the_table_leaves_out(architecture, encoder):
    row = ROWS[f"smp_{architecture}"]
    if encoder in row.space["encoder"].choices:
        return  # built by the test of every pair
    maker = getattr(smp, ARCHITECTURES[architecture].name)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        maker(encoder_name=encoder, encoder_weights=None, classes=1)(torch.zeros(2, 3, 128, 128))
