"""Notebook 1: a photograph as input, and the folded solutions."""

import numpy as np
import torch
from PIL import Image

from tests.book import page, solutions

NAME = "01_baseline_gan"


def test_a_photograph_is_bright_on_black_whatever_its_background(tmp_path):
    dark = np.full((300, 200), 240, np.uint8)
    dark[60:240, 50:150] = 20
    for name, pixels in (("dark.png", dark), ("bright.png", 255 - dark)):
        Image.fromarray(pixels).save(tmp_path / name)
        image = page(NAME)["read_garment"](tmp_path / name).images
        assert image.shape == (1, 1, 28, 28) and image.dtype == torch.uint8
        assert image[0, 0, 14, 14] > 200 and image[0, 0, 0, 0] < 30


def test_the_solutions_hold():
    found = dict(page(NAME))
    for solution in (folded := solutions(NAME)):
        exec(solution, found)
    assert len(folded) == 3
    sides = [torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.nn.Sequential(torch.nn.Linear(4, 1))]
    before = [torch.nn.utils.parameters_to_vector(side.parameters()).clone() for side in sides]
    found["step"](*sides, *(torch.optim.SGD(side.parameters(), 0.1) for side in sides), torch.randn(6, 4))
    for side, old in zip(sides, before, strict=True):
        assert not torch.equal(torch.nn.utils.parameters_to_vector(side.parameters()), old)
        assert all(weights.requires_grad for weights in side.parameters())
    assert [found["images_needed"](rate) for rate in (1 / 200, 0.01, 0.5)] == [199, 99, 1]
    for name, gradient in (("endless", -1.0), ("repulsion", 0.0)):
        error = torch.tensor([0.5], requires_grad=True)
        found[name](error, 0.25).sum().backward()
        assert error.grad.item() == gradient
