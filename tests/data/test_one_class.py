import torch

from helpers.data.batches import Augment
from tests.toy import Toy


def test_the_fingerprint_changes_with_all_that_a_training_sees_and_nothing_else():
    data, first = Toy(), Toy().fingerprint()
    data.test = data.test.subset(torch.arange(2))
    assert data.fingerprint() == first
    changes = {"seed": 4, "normals_per_batch": 7, "augment": Augment(noise=0.1), "images_per_epoch": 40}
    prints = {first}
    for name, value in changes.items():
        changed = Toy()
        setattr(changed, name, value)
        prints.add(changed.fingerprint())
    data.train.images[3, 0, 0, 0] ^= 1
    assert len(prints | {data.fingerprint()}) == 6
