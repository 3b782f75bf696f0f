"""Images of any size are opened; Pillow's limit is not changed for other code."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from fcvit_mm.images import (
    ImageError,
    allow_large_images,
    image_problem,
    image_size,
    open_video,
    read_image,
    read_labels,
    read_untrusted_image,
    truncation_problem,
)


@pytest.mark.filterwarnings('error')
def test_large_images_are_opened(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    Image.new('1', (13500, 13500), 1).save(tmp_path / 'large.png')
    assert truncation_problem(tmp_path / 'large.png') is None
    assert image_size(tmp_path / 'large.png') == (13500, 13500) and limit == Image.MAX_IMAGE_PIXELS
    # Functions that decode all pixels are tested with a small image and a small limit.
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


def test_file_names_that_are_not_utf8(tmp_path):
    """OpenCV may end the process, so the test starts another one."""
    path = os.fsdecode(os.fsencode(tmp_path / 'gr') + b'\xf6n.jpg')
    try:
        with open(path, 'wb') as file:
            file.write(b'\xff\xd8 no image')
    except OSError:
        pytest.skip('the file system accepts only names in UTF-8')
    code = 'import sys; from fcvit_mm.images import image_problem; print(ascii(image_problem(sys.argv[1])))'
    done = subprocess.run([sys.executable, '-c', code, path], capture_output=True, text=True)
    assert 'gr\\udcf6n.jpg cannot be decoded, because it is text' in done.stdout and done.returncode == 0, done.stderr
    with pytest.raises(ImageError, match='jpg is not UTF-8, which OpenCV needs of videos: rename it'):
        open_video(path)
