"""Writers of unusual image files for tests."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image


def write_bomb(path, width, height):
    """Write a PNG of a few bytes whose header declares an enormous size."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')
    )


SEGMENTOR = """
default_scope = 'mmseg'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', mean=[0.5], std=[2.0], size_divisor=32),
    backbone=dict(
        type='FCViT', arch=dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), mlp_ratios=(2, 2, 2, 2)),
        kernel_sizes=(5, ), in_channels={channels}, out_indices=(0, )),
    decode_head=dict(
        type='FCNHead', in_channels=8, channels=8, num_classes=3, num_convs=1,
        loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b', 'c')), pipeline=[
    {load}, dict(type='Resize', scale=(96, 64), keep_ratio=True), dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]))
test_evaluator = dict(type='IoUMetric')
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='segmentor')
"""
TIFF = "dict(type='LoadImageFromFile', imdecode_backend='tifffile', color_type='unchanged', to_float32=True)"
#: Number of channels, dtype and loading step.
LOADERS = {
    'grey.jpg': (1, np.uint8, "dict(type='LoadImageFromFile', color_type='grayscale')"),
    'rgba.png': (4, np.uint8, "dict(type='LoadImageFromFile', color_type='unchanged', backend_args=dict(backend='x'))"),
    'grey16.png': (1, np.uint16, "dict(type='LoadImageFromFile', color_type='unchanged', to_float32=True)"),
    'bands8.tif': (8, np.float32, TIFF),
    'bands13.tiff': (13, np.uint16, TIFF),
    'array25.npy': (25, np.float32, "dict(type='LoadImageFromNpyFile', to_float32=True)"),
}


def need_npy_step():
    """Skip the test if mmseg cannot load arrays, as the last original version, 1.2.2."""
    if not hasattr(pytest.importorskip('mmseg.datasets.transforms.loading'), 'LoadImageFromNpyFile'):
        pytest.skip('this mmseg has no LoadImageFromNpyFile')


def write_segmentor(folder, name):
    """Write an image of 40x60 pixels and the config of a segmentor for such images; return their paths."""
    channels, dtype, load = LOADERS[name]
    rng = np.random.default_rng(0)
    pixels = rng.random((40, 60, channels), np.float32)
    pixels = pixels if dtype == np.float32 else (pixels * np.iinfo(dtype).max).astype(dtype)
    path = folder / name
    if path.suffix == '.npy':
        need_npy_step()
        np.save(path, pixels)
    elif path.suffix in ('.tif', '.tiff'):
        pytest.importorskip('tifffile').imwrite(path, pixels, photometric='minisblack')
    else:
        cv2.imwrite(str(path), pixels)
    (folder / 'segmentor.py').write_text(SEGMENTOR.format(channels=channels, load=load))
    return str(path), str(folder / 'segmentor.py')


def renamed(paths, suffix):
    """Rename files to another suffix."""
    for path in paths:
        path.rename(path.with_suffix(suffix))


def ramp(dtype=np.uint16):
    """Return values from 0 to the maximum of the dtype along 256 columns."""
    return np.tile(np.linspace(0, np.iinfo(dtype).max, 256).astype(dtype), (64, 1))


def write_tiff(path, pixels, **options):
    pytest.importorskip('tifffile').imwrite(path, pixels, **options)


def write_kind(path, kind):
    """Write an image of 256x64 pixels in one of :data:`KINDS`."""
    rgb = np.dstack([ramp(), ramp()[:, ::-1], np.full_like(ramp(), 20000)])
    rng = np.random.default_rng(0)
    if kind == 'cmyk':
        Image.fromarray((rgb >> 8).astype(np.uint8)).convert('CMYK').save(path)
    elif kind == 'bands':
        write_tiff(path, rng.random((64, 256, 8), dtype=np.float32), photometric='minisblack')
    elif kind == 'compressed bands':
        bands = rng.integers(0, 65535, (64, 256, 13), dtype=np.uint16)
        write_tiff(path, bands, photometric='minisblack', compression='zlib')
    elif kind == 'array':
        np.save(path, rng.random((64, 256, 25), dtype=np.float32))
    else:
        rgba = (np.dstack([rgb, ramp()]) >> 8).astype(np.uint8)
        cv2.imwrite(str(path), {'grey16': ramp(), 'rgb16': rgb, 'rgba': rgba}[kind])


#: Kinds and suffixes of images that :func:`write_kind` writes.
KINDS = [
    ('grey16', 'png'),
    ('grey16', 'tif'),
    ('rgb16', 'png'),
    ('rgb16', 'tif'),
    ('rgba', 'png'),
    ('cmyk', 'jpg'),
    ('rgba', 'webp'),
    ('rgba', 'bmp'),
    ('grey16', 'pgm'),
    ('bands', 'tif'),
    ('compressed bands', 'tif'),
    ('array', 'npy'),
]
