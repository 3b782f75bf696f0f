import os.path as osp
import pickle
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, Compose, ConcatDataset
from PIL import Image

from fcvit_mm.engine.hooks.corrupt_samples import (
    CorruptSampleError,
    GuardedLoading,
    SkipCorruptSamplesHook,
    failing_step,
    loading_datasets,
    map_problem,
)
from fcvit_mm.errors import LibraryError
from fcvit_mm.images import image_problem, truncation_problem


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / 'a.jpg'
    Image.effect_noise((64, 64), 50).save(path)
    return path


def test_good_image(jpeg):
    assert image_problem(jpeg) is None


def test_truncated_image(jpeg):
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    assert f'{jpeg} cannot be decoded' in image_problem(jpeg) and 'truncated' in image_problem(jpeg)


def test_empty_and_missing_image(jpeg):
    jpeg.write_bytes(b'')
    assert f'{jpeg} is empty (0 bytes)' in image_problem(jpeg)
    jpeg.unlink()
    assert f'{jpeg} does not exist' in image_problem(jpeg)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP'])
def test_truncation_is_detected_at_the_end_of_the_file(kind, tmp_path):
    path = tmp_path / 'misnamed.jpg'  # the content decides the format
    Image.effect_noise((64, 64), 50).save(path, kind)
    whole = path.read_bytes()
    assert truncation_problem(str(path)) is None
    if kind != 'BMP':  # which is left to the decoder
        for cut in (200, len(whole) - 20):
            path.write_bytes(whole[:-cut])
            assert f'{path} cannot be decoded' in truncation_problem(str(path))
    path.write_bytes(whole + b'more, as some cameras append')
    assert truncation_problem(str(path)) is None
    path.write_bytes(b'')
    assert 'is empty' in truncation_problem(str(path))


def test_opencv_reads_truncated_images_without_an_error(jpeg):
    """This is the reason for the check above."""
    whole = cv2.imread(str(jpeg))
    jpeg.write_bytes(jpeg.read_bytes()[:-1000])
    cut = cv2.imread(str(jpeg))
    assert cut is not None and cut.shape == whole.shape and not np.array_equal(cut, whole)


def read(data):
    with open(data['img_path'], 'rb') as file:
        assert file.read(2) == b'\xff\xd8', 'an error without the name'
    return dict(data, worth=1)


class Images(BaseDataset):
    def load_data_list(self):
        return [dict(img_path=path) for path in self.metainfo['paths']]


@pytest.fixture
def dataset(tmp_path):

    def make(number=300, **options):
        paths = []
        for index in range(number):
            paths.append(str(tmp_path / f'{index}.jpg'))
            Image.new('L', (4, 4), index % 256).save(paths[-1])
        return Images(metainfo=dict(paths=paths), pipeline=[read], **options)

    return make


def apply_hook(dataset, loop='train', wrap=lambda dataset: dataset, **options):
    loops = {f'_{loop}_loop': SimpleNamespace(dataloader=SimpleNamespace(dataset=wrap(dataset)))}
    SkipCorruptSamplesHook(**options).before_run(SimpleNamespace(**loops, _other_loop={'type': 'ValLoop'}))
    return dataset


def truncate_files(dataset, *indices):
    for index in indices:
        path = dataset.get_data_info(index)['img_path']
        with open(path, 'r+b') as file:
            file.truncate(100)
    return path


@pytest.mark.parametrize(
    'wrap',
    [lambda data: data, lambda data: SimpleNamespace(dataset=data), lambda data: SimpleNamespace(datasets=[data])],
)
def test_corrupt_files_are_skipped_and_counted(dataset, caplog, wrap):
    data = apply_hook(dataset(), wrap=wrap)
    path = truncate_files(data, 3, 7)
    for _ in range(2):
        samples = [data[index] for index in range(300)]
    assert len(samples) == 300 and all(sample['worth'] for sample in samples)
    assert {3, 7}.isdisjoint(sample['sample_idx'] for sample in samples)
    assert data.prepare_data.marks.nonzero().flatten().tolist() == [3, 7]
    assert path.endswith('7.jpg')


def test_too_many_corrupt_files_end_training(dataset):
    data = apply_hook(dataset())
    truncate_files(data, *range(10, 20))
    with pytest.raises(CorruptSampleError, match=r'4 of 300 samples have corrupt files, more than the 1\.0% that'):
        for index in range(300):
            data[index]


def test_limit_can_be_raised(dataset):
    data = apply_hook(dataset(20), limit=0.5)
    truncate_files(data, *range(8))
    assert all(data[index] for index in range(20))


@pytest.mark.parametrize('options', [dict(loop='val'), dict(loop='test'), dict(skip=False)])
def test_corrupt_file_is_an_error_where_skipping_is_not_allowed(dataset, options):
    data = apply_hook(dataset(), **options)
    path = truncate_files(data, 5)
    with pytest.raises(CorruptSampleError, match=f'loading {path} failed: {path} cannot be decoded'):
        data[5]


def test_skips_no_sample_of_a_test_set(dataset):
    data = apply_hook(dataset(test_mode=True))
    path = truncate_files(data, 5)
    with pytest.raises(CorruptSampleError, match=path):
        data[5]


class Maps(Images):
    def load_data_list(self):
        return [dict(data, seg_map_path=data['img_path'][:-4] + '.png') for data in super().load_data_list()]


def sizes(data):
    with Image.open(data['img_path']) as image, Image.open(data['seg_map_path']) as labels:
        return dict(data, size=image.size, labels=labels.size, ignored=labels.getextrema() == (255, 255))


def test_empty_image_replaces_a_corrupt_one_in_validation(tmp_path, monkeypatch):
    """The training run continues; the sample keeps its index and its annotations."""
    paths = [str(tmp_path / f'{index}.jpg') for index in range(200)]
    for index, path in enumerate(paths):
        Image.new('RGB', (4 + index, 6)).save(path)
        Image.new('L', (4 + index, 6)).save(path[:-4] + '.png')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
    train, val = (Maps(metainfo=dict(paths=paths), pipeline=[sizes], test_mode=mode) for mode in (False, True))
    loops = {
        f'_{name}_loop': SimpleNamespace(dataloader=SimpleNamespace(dataset=data))
        for name, data in (('train', train), ('val', val))
    }
    hook = SkipCorruptSamplesHook()
    hook.before_run(SimpleNamespace(**loops))
    assert all(val[index]['size'] == (4 + index, 6) for index in range(200))
    assert not (tmp_path / 'temporary').exists(), 'a run without corrupt files makes no folder'
    (tmp_path / '3.jpg').write_bytes(b'')
    (tmp_path / '5.png').unlink()
    for index, size in ((3, (7, 6)), (5, (9, 6)), (7, (11, 6))):
        assert val[index]['sample_idx'] == index and val[index]['size'] == val[index]['labels'] == size
        assert val[index]['ignored'] == (index == 5)
    assert val.prepare_data.marks.nonzero().flatten().tolist() == [3, 5]
    (tmp_path / '1.jpg').unlink()
    with pytest.raises(CorruptSampleError, match=r'3 of 200 samples have corrupt files, more than the 1\.0%'):
        val[1]
    assert len(list((tmp_path / 'temporary').iterdir())) == 1
    del hook
    assert not list((tmp_path / 'temporary').iterdir()), 'the folder goes with the hook'


def test_errors_without_a_corrupt_file_are_raised(dataset):
    data = dataset()

    def fail(data):
        raise KeyError('gt_bboxes')

    data.pipeline = fail
    apply_hook(data)
    with pytest.raises(LibraryError, match=r"loading .*5.jpg failed: KeyError: 'gt_bboxes' \(raised in tests\)"):
        data[5]


def test_a_failing_step_that_cannot_show_its_settings_is_named():
    transforms = pytest.importorskip('mmcv.transforms')

    class Faulty(transforms.BaseTransform):
        def transform(self, results):
            raise RuntimeError('the actual error')

        def __repr__(self):
            return self.missing

    with pytest.raises(RuntimeError, match='actual') as raised:
        Faulty()({})
    assert failing_step(raised.value) == ' in Faulty'


def test_workers_share_the_count(dataset):
    data = apply_hook(dataset(40), limit=0.5)
    truncate_files(data, 1, 30)
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, collate_fn=list)
    assert sum(len(batch) for batch in loader) == 40
    assert data.prepare_data.marks.nonzero().flatten().tolist() == [1, 30]


def test_pickled_data_sets_skip_corrupt_files(dataset):
    data = apply_hook(dataset(40))
    copy = pickle.loads(pickle.dumps(data))
    assert isinstance(copy.prepare_data, GuardedLoading) and copy.prepare_data.dataset is copy
    truncate_files(copy, 3)
    assert all(copy[index] for index in range(40)) and copy.prepare_data.marks.sum() == 1


@pytest.mark.parametrize('switch', ['assigned', 'changed in place'])
def test_hooks_may_switch_the_pipeline(dataset, switch):
    """mmdet's PipelineSwitchHook assigns a pipeline; YOLOXModeSwitchHook changes a wrapper of the data set."""
    data = apply_hook(dataset())
    truncate_files(data, 3)
    if switch == 'assigned':
        data.pipeline = Compose([read, lambda results: dict(results, switched=True)])
    else:
        data.pipeline.transforms.append(lambda results: dict(results, switched=True))
    assert all(data[index]['switched'] for index in range(300))
    assert data.prepare_data.marks.nonzero().flatten().tolist() == [3]


class OtherWrapper:
    """A wrapper of another package."""

    def __init__(self, inner):
        self.anything = inner

    def __getitem__(self, index):
        return self.anything[index]

    def __len__(self):
        return len(self.anything)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda data: ConcatDataset([data]),
        lambda data: torch.utils.data.Subset(data, range(300)),
        lambda data: OtherWrapper(OtherWrapper(data)),
    ],
)
def test_wrapped_data_sets(dataset, wrap):
    wrapped = wrap(dataset())
    assert [type(leaf) for leaf in loading_datasets(wrapped)][:1] == [Images]
    apply_hook(wrapped)
    truncate_files(next(loading_datasets(wrapped)), 3)
    assert all(wrapped[index]['worth'] for index in range(300))


def test_unsupported_data_sets_are_reported(dataset, monkeypatch):
    logged = []
    monkeypatch.setattr('fcvit_mm.engine.hooks.corrupt_samples.print_log', lambda text, **_: logged.append(text))
    apply_hook([1, 2, 3])
    (text,) = logged
    assert text.startswith('train_dataloader.dataset: a corrupt file ends training, because list')
    apply_hook(dataset(test_mode=True))
    assert logged[1:] == ['train_dataloader.dataset: a corrupt file ends training, because Images has test_mode=True']


class Boxes(Images):
    """Annotations of 6x4 pixels, as COCO's file gives them."""

    def load_data_list(self):
        return [dict(data, width=6, height=4) for data in super().load_data_list()]


class LoadImage:
    def __call__(self, data):
        image = cv2.imread(data['img_path'])
        assert image is not None
        return dict(data, img=image, ori_shape=image.shape[:2])


@pytest.mark.parametrize('kind', [Boxes, Maps])
def test_images_of_another_size_than_their_annotations(kind, tmp_path):
    """EXIF data rotates image 3, so its boxes and its map do not fit."""
    paths = [str(tmp_path / f'{index}.jpg') for index in range(200)]
    turned = Image.Exif()
    turned[274] = 6
    for index, path in enumerate(paths):
        Image.new('RGB', (6, 4)).save(path, **(dict(exif=turned) if index == 3 else {}))
        if kind is Maps:
            Image.new('L', (6, 4)).save(path[:-4] + '.png')
    train, val, test = (
        kind(metainfo=dict(paths=paths), pipeline=[LoadImage()], test_mode=mode) for mode in (False, True, True)
    )
    loops = {
        f'_{name}_loop': SimpleNamespace(dataloader=SimpleNamespace(dataset=data))
        for name, data in (('train', train), ('val', val))
    }
    hook = SkipCorruptSamplesHook()
    hook.before_run(SimpleNamespace(**loops))
    for _ in range(2):
        assert all(train[index]['sample_idx'] != 3 for index in range(200))
        assert val[3]['sample_idx'] == 3 and all(val[index]['img'].shape == (4, 6, 3) for index in range(200))
    for data in (train, val):
        assert data.prepare_data.marks.nonzero().flatten().tolist() == [3]
    testing = SkipCorruptSamplesHook()
    testing.before_run(SimpleNamespace(_test_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=test))))
    assert test[3]['sample_idx'] == 3 and test[3]['img'].shape == (4, 6, 3)
    assert osp.basename(test[3]['img_path']) == '3.jpg'  # by which results are written
    (tmp_path / '5.jpg').write_bytes(b'')
    with pytest.raises(CorruptSampleError, match='5.jpg is empty'):
        test[5]
    none_skipped = kind(metainfo=dict(paths=paths), pipeline=[LoadImage()], test_mode=True)
    apply_hook(none_skipped, 'test', skip=False)
    with pytest.raises(CorruptSampleError, match='3.jpg is loaded as 4x6, but its annotations are for 6x4'):
        none_skipped[3]


class LoadBands:
    """Load images of many bands, as the transforms of mmcv and mmseg do."""

    def __call__(self, data):
        tifffile, path = pytest.importorskip('tifffile'), data['img_path']
        return dict(data, img=np.load(path) if path.endswith('.npy') else tifffile.imread(path))


@pytest.mark.parametrize('suffix, channels', [('.tif', 8), ('.npy', 25), ('.tif', 3), ('.tif', 1)])
def test_empty_image_has_as_many_bands_as_the_others(suffix, channels, tmp_path):
    tifffile = pytest.importorskip('tifffile')
    paths = [str(tmp_path / f'{index}{suffix}') for index in range(3)]
    for path in paths:
        pixels = np.zeros((4, 6, channels), np.uint16)
        np.save(path, pixels) if suffix == '.npy' else tifffile.imwrite(path, pixels, photometric='minisblack')
    val = Boxes(metainfo=dict(paths=paths), pipeline=[LoadBands()], test_mode=True)
    data = SimpleNamespace(dataset=val)
    hook = SkipCorruptSamplesHook()
    hook.before_run(
        SimpleNamespace(
            _train_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=Images(metainfo=dict(paths=paths)))),
            _val_loop=SimpleNamespace(dataloader=data),
        )
    )
    with open(paths[1], 'r+b') as file:
        file.truncate(50)
    loaded = val[1]['img']
    assert loaded.reshape(4, 6, -1).shape == (4, 6, channels) and loaded.max() > 0


def test_map_of_another_size():
    sample = SimpleNamespace(gt_sem_seg=SimpleNamespace(data=torch.zeros(1, 4, 6)), seg_map_path='m.png')
    assert map_problem(dict(inputs=torch.zeros(3, 4, 6), data_samples=sample)) is None
    assert r'm.png is (4, 6), its image (4, 5)' in map_problem(dict(inputs=torch.zeros(3, 4, 5), data_samples=sample))


def test_invalid_limit_is_refused():
    with pytest.raises(ValueError, match='limit is 2, expected a fraction of the data set'):
        SkipCorruptSamplesHook(limit=2)
