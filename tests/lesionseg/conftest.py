"""How torch computes during these tests, and that none of them leaves it changed."""

import numpy as np
import pytest
import torch

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.training.types import TrainData


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Networks this small only wait for the other threads; on a busy machine tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    """A training switches torch to deterministic algorithms, for the whole process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    """What a training of a second learns from: 20 pictures of 16 x 16, and 10 to judge on."""
    cache = build_cache(DatasetIndex.read(tiny_data), 16, tmp_path_factory.mktemp("cache"))
    return TrainData(cache, np.arange(20), np.arange(20, 30))
