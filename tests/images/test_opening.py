"""Images of any size are opened; Pillow's own limit stays for others."""

import pytest
from PIL import Image

from fcvit_mm.images import (
    ImageError,
    allow_large_images,
    image_problem,
    image_size,
    read_image,
    read_labels,
    read_untrusted_image,
    truncation_problem,
)


@pytest.mark.filterwarnings('error')
def test_large_images_are_the_users_own(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    Image.new('1', (13500, 13500), 1).save(tmp_path / 'large.png')
    assert truncation_problem(tmp_path / 'large.png') is None
    assert image_size(tmp_path / 'large.png') == (13500, 13500) and limit == Image.MAX_IMAGE_PIXELS
    # What decodes all pixels is asked of a small image and a small limit.
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    Image.new('L', (30, 20), 3).save(tmp_path / 'small.png')
    assert image_problem(tmp_path / 'small.png') is None and read_labels(tmp_path / 'small.png') == [3]
    assert read_image(tmp_path / 'small.png').shape == (20, 30, 3) and Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / 'small.png')
    allow_large_images()
    with Image.open(tmp_path / 'small.png') as image:
        assert image.size == (30, 20)
    with pytest.raises(ImageError, match='has 30x20 pixels, expected at most'):
        read_untrusted_image(tmp_path / 'small.png', 'small.png', 2**20, 500)
