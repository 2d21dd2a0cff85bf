"""Sine position encodings against the published numbers."""

import math

import numpy as np
import pytest
import torch

from mask2former.layers import PositionEmbeddingSine, PositionEmbeddingSine3D
from tests.reference import load_golden, relative_error

META, GOLDEN = load_golden("position_encoding")
TOLERANCE = 1e-5


@pytest.mark.parametrize("case", range(len(META["sizes"])))
def test_image_encoding_matches_golden(case: int) -> None:
    h, w = META["sizes"][case]
    encoding = PositionEmbeddingSine(128, normalize=True)
    x = torch.zeros(1, 3, h, w)
    assert relative_error(encoding(x), GOLDEN[f"pe_{case}"]) < TOLERANCE
    mask = torch.from_numpy(GOLDEN[f"mask_{case}"])
    assert relative_error(encoding(x, mask), GOLDEN[f"pe_masked_{case}"]) < TOLERANCE


def test_unnormalised_encoding_matches_golden() -> None:
    expected = GOLDEN["pe_unnormalised"]
    encoding = PositionEmbeddingSine(expected.shape[1] // 2)
    assert relative_error(encoding(torch.zeros(1, 1, *expected.shape[2:])), expected) < TOLERANCE


def test_clip_encoding_matches_golden() -> None:
    expected = GOLDEN["pe3d"]
    encoding = PositionEmbeddingSine3D(expected.shape[2] // 2, normalize=True)
    x = torch.zeros(1, META["t"], 1, *expected.shape[3:])
    assert relative_error(encoding(x), expected) < TOLERANCE
    assert (
        relative_error(encoding(x, torch.zeros(1, META["t"], *expected.shape[3:]).bool()), expected)
        < TOLERANCE
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (7, 13)])
def test_no_padding_equals_no_mask(size: tuple[int, int]) -> None:
    x = torch.zeros(3, 2, *size, dtype=torch.float64)
    for normalize in (False, True):
        encoding = PositionEmbeddingSine(6, normalize=normalize)
        masked = encoding(x, torch.zeros(3, *size, dtype=torch.bool))
        plain = encoding(x)
        assert plain.shape == (3, 12, *size)
        assert plain.dtype == torch.float64
        np.testing.assert_allclose(plain, masked, atol=1e-12)


def test_half_input_gives_single_precision() -> None:
    assert PositionEmbeddingSine(4)(torch.zeros(1, 1, 2, 2, dtype=torch.float16)).dtype == torch.float32


def test_fully_padded_image_is_finite() -> None:
    encoding = PositionEmbeddingSine(4, normalize=True)
    assert encoding(torch.zeros(1, 1, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_pos_feats": 5}, "num_pos_feats.*5"), ({"scale": math.pi}, "scale.*normalize")],
)
def test_bad_setting_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PositionEmbeddingSine(**arguments)
