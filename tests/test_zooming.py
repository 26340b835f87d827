"""Random parts of training pictures."""

import numpy as np
import torch

from eamb.readers.zooming import Zoom, cut, uniform


def test_parts_are_spread_evenly_over_sizes_and_places_within_the_picture():
    parts = np.array([Zoom(7, 0.4).part(epoch, index) for epoch in (0, 1) for index in range(2000)])  # (n, 3)
    top, left, side = parts.T
    assert ((side > 0.6) & (side <= 1)).all()
    assert (parts[:, :2] >= 0).all() and (parts[:, :2].max(1) + side <= 1 + 1e-12).all()
    for share in ((1 - side) / 0.4, top / (1 - side), left / (1 - side)):
        counts = np.histogram(share, 10, (0, 1))[0]
        assert ((counts > 320) & (counts < 480)).all()  # 400 expected, standard deviation 19
    assert abs(np.corrcoef(np.stack([top / (1 - side), left / (1 - side), side]))[0, 1:]).max() < 0.06
    assert Zoom(7, 0.4).part(1, 5) == Zoom(7, 0.4).part(1, 5) != Zoom(8, 0.4).part(1, 5)


def test_a_part_is_enlarged_to_the_size_of_the_whole():
    ramp = torch.arange(64.0)[None, None].expand(1, 40, 64) + 100 * torch.arange(40.0)[None, :, None]
    inner = cut(ramp, (0.25, 0.5, 0.4))
    # A pixel's centre at share s of the part lies at left + s * side of the picture.
    x = 64 * (0.5 + 0.4 * (torch.arange(64) + 0.5) / 64) - 0.5
    y = 40 * (0.25 + 0.4 * (torch.arange(40) + 0.5) / 40) - 0.5
    torch.testing.assert_close(inner[0], x[None] + 100 * y[:, None], rtol=0, atol=0.01)
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert cut(image, (0.0, 0.0, 1.0)).equal(image)
    assert cut(image, (0.3, 0.1, 0.5)).dtype == torch.uint8


def test_numbers_from_arguments_look_random():
    found = np.array([uniform(0, 0, index) for index in range(4000)])
    assert abs(found.mean() - 0.5) < 0.02 and abs(found.std() - 12**-0.5) < 0.01
    assert len(set(found)) == 4000
