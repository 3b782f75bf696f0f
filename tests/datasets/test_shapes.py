import errno
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcvit_mm.datasets import CLASSES, KINDS, generate, shapes


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob('*')) if path.is_file()}


@pytest.mark.parametrize('kind', list(KINDS))
def test_same_arguments_give_the_same_files(kind, tmp_path):
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        assert generate(kind, tmp_path / name, 4, 2, 64, seed)
    a, b, c = (contents(tmp_path / name) for name in 'abc')
    assert a == b
    assert a.keys() == c.keys() and all(a[name] != c[name] for name in a if name.endswith('.jpg'))


def test_images_do_not_depend_on_their_number(tmp_path):
    generate('coco', tmp_path / 'few', 2, 1, 64)
    generate('coco', tmp_path / 'many', 4, 1, 64)
    few, many = contents(tmp_path / 'few'), contents(tmp_path / 'many')
    assert all(many[name] == few[name] for name in few if name.endswith('.jpg'))


def test_boxes_areas_and_polygons_agree_with_the_visible_shapes(tmp_path):
    mask_api = pytest.importorskip('pycocotools.mask')
    generate('coco', tmp_path / 'coco', 20, 1, 128)
    content = json.loads((tmp_path / 'coco/annotations/instances_train2017.json').read_text())
    by_image = {}
    for annotation in content['annotations']:
        by_image.setdefault(annotation['image_id'], []).append(annotation)
    assert len(by_image) == 20
    for index in range(20):
        scene = shapes.draw_many(shapes.image_rng(0, 'train', index), 128)
        assert [CLASSES[label] for label in scene.labels] == [
            content['categories'][annotation['category_id'] - 1]['name'] for annotation in by_image[index + 1]
        ]
        for i, annotation in enumerate(by_image[index + 1]):
            visible = scene.instances == i + 1
            rle = mask_api.merge(
                mask_api.frPyObjects([(2 * np.array(p)).tolist() for p in annotation['segmentation']], *visible.shape)
            )
            drawn = mask_api.decode(rle).astype(bool)
            assert (drawn & visible).sum() / (drawn | visible).sum() > 0.85
            assert annotation['area'] == pytest.approx(visible.sum() / 4, rel=0.12)
            y, x = np.nonzero(visible)
            left, top, width, height = annotation['bbox']
            assert [left, top, left + width, top + height] == pytest.approx(
                [x.min() / 2, y.min() / 2, x.max() / 2 + 0.5, y.max() / 2 + 0.5], abs=1
            )


def test_second_run_writes_only_if_arguments_changed(tmp_path):
    root = tmp_path / 'data'
    assert generate('imagenet', root, 5, 5, 64)
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert not generate('imagenet', root, 5, 5, 64)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert generate('imagenet', root, 10, 5, 64)
    assert len(list((root / 'train').rglob('*.jpg'))) == 10
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_interrupted_generation_leaves_no_files(tmp_path, monkeypatch):
    root = tmp_path / 'data'
    generate('coco', root, 2, 1, 64)
    before = contents(root)
    monkeypatch.setattr(cv2, 'imwrite', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        generate('coco', root, 3, 1, 64)
    with pytest.raises(KeyboardInterrupt):
        generate('coco', tmp_path / 'other', 3, 1, 64)
    assert contents(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_symbolic_link_is_kept(tmp_path):
    """The target may be on another disk, empty or missing."""
    (tmp_path / 'disk' / 'empty').mkdir(parents=True)
    for name in ('empty', 'new'):
        root, target = tmp_path / f'to_{name}', tmp_path / 'disk' / name
        root.symlink_to(target)
        for number in (1, 2):
            assert generate('imagenet', root, number, 1, 64) and not generate('imagenet', root, number, 1, 64)
            assert root.is_symlink() and len(list((target / 'train').rglob('*.jpg'))) == number
    assert sorted(path.name for path in (tmp_path / 'disk').iterdir()) == ['empty', 'new']


def test_folder_that_cannot_be_replaced_is_not_changed(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    monkeypatch.chdir(tmp_path / 'data')
    with pytest.raises(shapes.WriteError, match='^. could not be written: Device or resource busy'):
        generate('imagenet', '.', 1, 1, 64)
    assert not list((tmp_path / 'data').iterdir())


@pytest.mark.parametrize(
    'error, message',
    [
        (errno.ENOSPC, 'data could not be written: No space left on device: free disk space, or give another folder$'),
        (errno.EROFS, 'data could not be written: Read-only file system: give another folder$'),
    ],
)
def test_write_errors_are_explained(error, message, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(shapes.tempfile, 'mkdtemp', refuse)
    with pytest.raises(shapes.WriteError, match=message):
        generate('coco', tmp_path / 'data', 2, 1, 64)


def test_other_folders_are_not_overwritten(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='not a generated data set.*shapes.json'):
        generate('coco', tmp_path, 2, 1, 64)
    assert contents(tmp_path) == {'mine.txt': b'mine'}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kind='voc'), "unknown kind 'voc', expected one of"),
        (dict(num_train=0), 'num_train is 0, expected 1 or more'),
        (dict(num_val=0), 'num_val is 0, expected 1 or more'),
        (dict(size=32), 'size is 32, expected 64 or more'),
        (dict(seed=-1), 'seed is -1, expected 0 or more'),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate(**dict(dict(kind='coco', root=tmp_path / 'data'), **arguments))
    assert not list(tmp_path.iterdir())


def test_mmpretrain_loads_the_data_set(tmp_path):
    datasets = pytest.importorskip('mmpretrain.datasets')
    generate('imagenet', tmp_path / 'data', 10, 5, 64)
    dataset = datasets.ImageNet(data_root=str(tmp_path / 'data'), split='train', metainfo=dict(classes=CLASSES))
    assert len(dataset) == 10
    assert all(CLASSES[dataset[i]['gt_label']] in dataset[i]['img_path'] for i in range(10))


def test_mmdet_loads_the_data_set(tmp_path):
    datasets = pytest.importorskip('mmdet.datasets')
    generate('coco', tmp_path / 'data', 6, 2, 64)
    dataset = datasets.CocoDataset(
        data_root=str(tmp_path / 'data'),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[],
    )
    assert len(dataset) == 6
    for index in range(6):
        scene = shapes.draw_many(shapes.image_rng(0, 'train', index), 64)
        assert [instance['bbox_label'] for instance in dataset[index]['instances']] == scene.labels


def test_mmseg_loads_the_data_set_with_the_right_labels(tmp_path):
    datasets = pytest.importorskip('mmseg.datasets')
    generate('ade20k', tmp_path / 'data', 3, 2, 64)
    dataset = datasets.BaseSegDataset(
        data_root=str(tmp_path / 'data'),
        reduce_zero_label=True,
        metainfo=dict(classes=('background', *CLASSES)),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[],
    )
    assert len(dataset) == 3
    labels = datasets.transforms.LoadAnnotations(reduce_zero_label=True)(dict(dataset[1]))['gt_seg_map']
    scene = shapes.draw_many(shapes.image_rng(0, 'train', 1), 64)
    expected = np.array([0, *(label + 1 for label in scene.labels)])[scene.instances[::2, ::2]]
    sure = labels != 255
    assert 0.6 < sure.mean() < 1
    assert (labels[sure] == expected[sure]).all()
