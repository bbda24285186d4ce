"""Notebook 3: the solutions of its exercises run, and its maps are what the text says."""

import pytest
import torch

from tests.book import make_data, make_model, page, solutions

SOLUTIONS = solutions("03_hazelnut_autoencoder")


@pytest.mark.parametrize("number", range(3))
def test_each_of_three_solutions_passes_its_own_checks(number):
    assert len(SOLUTIONS) == 3 and "assert" in SOLUTIONS[number]
    exec(compile(SOLUTIONS[number], f"solution {number + 1}", "exec"), dict(page("03_hazelnut_autoencoder")))


def test_the_maps_are_one_step_apart():
    book = page("03_hazelnut_autoencoder")
    model = make_model("hazelnut autoencoder", make_data("03_hazelnut_autoencoder")).eval()
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        maps = dict(zip(book["MAPS"], model.all_maps(x).unbind(1), strict=True))
        torch.testing.assert_close(maps["plain"], (0.5 * (x - model.reconstruct(x))).square().sum(1))
        torch.testing.assert_close(maps["smoothed"], book["blur"](maps["plain"][:, None], 2.0)[:, 0])
        torch.testing.assert_close(maps["weighed"], maps["minus local mean"])  # the weights are not learned yet
        torch.testing.assert_close(model.anomaly_map(x), maps["weighed"])
