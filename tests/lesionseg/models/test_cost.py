import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lesionseg.models import multiply_adds
from lesionseg.models.monai import build_dynunet


class Attention(nn.Module):
    """One head of attention over the 4 x 4 px patches of an image, 8 channels wide."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)


def test_convolutions_cost_as_much_as_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 16 x 16 pixels
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=4),  # 8 x 8 pixels
        nn.ConvTranspose2d(8, 1, 2, stride=2),  # each of 64 inputs to 4 outputs
    )
    expected = 256 * 8 * 3 * 9 + 64 * 8 * 2 * 9 + 64 * 8 * 1 * 4
    assert multiply_adds(model, 16) == expected


def test_a_linear_layer_costs_as_much_as_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.Linear(5, 2))
    assert multiply_adds(model, 8) == 192 * 5 + 5 * 2


@pytest.mark.parametrize("size", [16, 32])
def test_attention_costs_as_much_as_by_hand(size):
    tokens = (size // 4) ** 2
    embedding, projections = tokens * 8 * 48, tokens * 8 * 24
    scores, values = tokens * tokens * 8, tokens * tokens * 8
    assert multiply_adds(Attention(), size) == embedding + projections + scores + values


def test_network_keeps_its_mode_and_its_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    multiply_adds(model, 8)
    assert torch.equal(torch.rand(1), expected)
    assert [m.training for m in model.modules()] == [True] * 4
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_deep_supervision_costs_nothing_as_it_is_off_in_evaluation():
    plain, deep = (
        build_dynunet(width=8, deep_supervision=d, residual=False, image_size=64)
        for d in (False, True)
    )
    assert multiply_adds(plain, 64) == multiply_adds(deep, 64) > 0
