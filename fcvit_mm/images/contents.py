"""Recognizing the actual content of a file that has the name of an image but cannot be decoded."""

import re

from .opening import PathLike

#: Known contents of files that cannot be decoded: pattern of the first bytes, description, advice.
OTHER_CONTENTS = (
    (rb'version https://git-lfs', 'a Git LFS pointer, not the image itself', 'fetch it with `git lfs pull`'),
    (rb'[^\n]{0,99}/annex/objects/', 'a pointer of git-annex, not the image itself', 'fetch it with `git annex get`'),
    (rb'\s*<(!doctype html|html)', 'a web page, not an image', 'download the image itself'),
    (
        rb'\s*<\?xml|\s*<svg',
        'XML, such as an SVG drawing or the error message of a server',
        'download or export it as PNG or JPEG',
    ),
    (rb'%PDF', 'a PDF document', 'convert its pages to PNG or JPEG'),
    (rb'....ftypavi[fs]', 'an AVIF image', 'convert it to PNG or JPEG'),
    (rb'....ftyp(he[ivm][cxms]|mif1|msf1)', 'a HEIC image', 'convert it to PNG or JPEG'),
    (rb'....ftyp', 'a video', 'extract its frames as PNG or JPEG'),
    (rb'\xff\x0a|\0\0\0\x0cJXL ', 'a JPEG XL image', 'convert it to PNG or JPEG'),
    (rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51', 'a JPEG 2000 image', 'convert it to PNG or JPEG'),
    (rb'GIF8', 'a GIF image', 'convert it to PNG or JPEG'),
    (rb'8BPS', 'a Photoshop file', 'export it as PNG or JPEG'),
    (rb'\x89HDF', 'an HDF5 file', 'export its images as PNG or TIFF'),
    (rb'.{128}DICM', 'a DICOM file', 'convert it to PNG or TIFF'),
    (rb'PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf', 'a compressed archive', 'unpack it'),
    (rb'\0{64}', 'an incomplete copy, which begins with zeros', 'copy it again'),
)


def other_content(path: PathLike) -> str:
    """Describe the content of a file that cannot be decoded; empty if it is unknown, or an ordinary image."""
    try:
        with open(path, 'rb') as file:
            head = file.read(256)
    except OSError:
        return ''
    for pattern, what, advice in OTHER_CONTENTS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return f'{path} cannot be decoded, because it is {what}: {advice}, or remove it from the data set'
    if head and not re.search(rb'[^\t\n\r\f -~\x80-\xff]', head):
        return (
            f'{path} cannot be decoded, because it is text that begins with {head[:40]!r}, not an image: copy it again '
            'or remove it from the data set'
        )
    return ''
