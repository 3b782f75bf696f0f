"""The actual format of a file is reported if it is not an image."""

import re

import pytest

from fcvit_mm.images import ImageError, image_problem, other_content, read_image


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'is a Git LFS pointer, .*`git lfs pull`'),
        (b'/annex/objects/MD5E-s3--1.jpg\n', 'is a pointer of git-annex, .*`git annex get`'),
        (b'../.git/annex/objects/Xk/1.jpg', 'is a pointer of git-annex'),
        (b'\n<!DOCTYPE HTML><html>', 'is a web page, not an image: download the image itself'),
        (b'<?xml version="1.0"?><Error/>', 'it is XML, such as an SVG drawing'),
        (b'%PDF-1.7', 'is a PDF document: convert its pages'),
        (b'\0\0\0\x1cftypavif\0\0', 'is an AVIF image: convert it to PNG or JPEG'),
        (b'\0\0\0\x18ftypheic\0\0', 'is a HEIC image: convert it to PNG or JPEG'),
        (b'\0\0\0\x18ftypmif1\0\0', 'is a HEIC image'),
        (b'\0\0\0\x20ftypisom\0\0', 'is a video: extract its frames'),
        (b'\xff\x0a\x7f', 'is a JPEG XL image'),
        (b'\0\0\0\x0cJXL \r\n\x87\n', 'is a JPEG XL image'),
        (b'\0\0\0\x0cjP  \r\n\x87\n', 'is a JPEG 2000 image'),
        (b'8BPS\0\1', 'is a Photoshop file'),
        (b'\x89HDF\r\n', 'is an HDF5 file'),
        (b'\1' * 128 + b'DICM', 'is a DICOM file'),
        (b'PK\x03\x04\x14', 'is a compressed archive: unpack it'),
        (bytes(200), 'is an incomplete copy, which begins with zeros'),
        (b'quota exceeded', "is text that begins with b'quota exceeded', not an image"),
        (b'\xff\xd8\xff\xe0\0\x10JFIF', r'cannot be decoded \('),
        (b'\1\2\3\4', r'cannot be decoded \('),
    ],
)
def test_actual_format_of_a_file_is_reported(content, message, tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    problem = image_problem(path)
    assert problem.startswith(f'{path} cannot be decoded') and re.search(message, problem)
    with pytest.raises(ImageError, match=message):
        read_image(path)


def test_missing_file_has_no_format(tmp_path):
    assert other_content(tmp_path / 'a.jpg') == ''
