"""Drawing predictions on images and videos."""

import cv2
import numpy as np
import pytest
import torch
from image_files import write_segmentor
from mmengine.config import Config

from fcvit_mm.apis import draw
from fcvit_mm.apis.draw import build_drawer, draw_images, draw_sample, draw_video
from fcvit_mm.apis.load import load_network
from fcvit_mm.apis.preprocessing import NetworkError, image_reader
from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import LibraryError
from fcvit_mm.images import ImageError, find_inputs


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ('a.jpg', 'a.png', 'b.jpg'):
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (32, 48, 3), np.uint8))
    return folder


def write_video(path, frames=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
    for value in range(frames):
        writer.write(np.full((48, 64, 3), 40 * value, np.uint8))
    writer.release()
    return path


def test_video_is_drawn(tmp_path):
    path = draw_video(lambda image: 255 - image, str(write_video(tmp_path / 'v.mp4')), str(tmp_path / 'out'))
    video = cv2.VideoCapture(path)
    frames = [video.read()[1] for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))]
    assert len(frames) == 3 and video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert [frame.mean() for frame in frames] == pytest.approx([255, 215, 175], abs=6)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['v.mp4']


@pytest.mark.parametrize('truncated', [False, True])
def test_truncated_video_is_reported(truncated, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('fcvit_mm.images.reading.log_once', logged.append)
    video = tmp_path / 'v.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(10):  # noise, so that frames take most of the file
        writer.write(rng.integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    if truncated:
        video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    path = draw_video(lambda image: image, str(video), str(tmp_path / 'out'))
    frames = int(cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT))
    expected = f'{video} is truncated or corrupt: {frames} of about 10 frames were decoded. Copy it again'
    assert [each[: len(expected)] for each in logged] == ([expected] if truncated else []) and (
        3 < frames < 8 if truncated else frames == 10
    )


def test_images_of_the_same_stem_have_different_results(folder, tmp_path):
    for more, added in (((), []), (('a.png.bmp',), ['a.png.bmp.png'])):
        for name in more:
            cv2.imwrite(str(folder / name), np.zeros((8, 8, 3), np.uint8))
        written, problems = draw_images(lambda image: image, find_inputs(str(folder))[0], str(tmp_path / 'out'))
        names = [path.rsplit('/', 1)[1] for path in written]
        assert names == ['a.jpg.png', 'a.png.png', *added, 'b.png'] and not problems
        np.testing.assert_array_equal(cv2.imread(written[-1]), cv2.imread(str(folder / 'b.jpg')))


@pytest.mark.parametrize(
    ('shape', 'factor'), [((2, 6000), 18), ((16, 32), 14), ((300, 400), None), ((2, 4000000), None)]
)
def test_small_images_are_enlarged_within_limits(shape, factor):
    given = {}

    class Visualizer:
        def visualize_cls(self, image, sample, **options):
            given.update(options, shape=image.shape)

    draw.draw_classes(Visualizer(), np.zeros((*shape, 3), np.uint8), None, None)
    assert given['rescale_factor'] == (factor and pytest.approx(factor, rel=0.02)) and given['shape'][:2] == shape


def test_corrupt_images_are_skipped(folder, tmp_path):
    (folder / 'b.jpg').write_bytes((folder / 'b.jpg').read_bytes()[:300])
    written, problems = draw_images(lambda image: image, find_inputs(str(folder))[0], str(tmp_path / 'out'))
    assert len(written) == 2 and len(problems) == 1 and 'b.jpg cannot be decoded' in problems[0]


def test_error_of_the_model_names_the_image(folder, tmp_path):
    video = str(write_video(tmp_path / 'v.mp4'))

    def draw(image):
        return torch.zeros(2) + torch.zeros(3)

    with pytest.raises(LibraryError, match=r'predicting .*in/a.jpg failed: RuntimeError: The size of .* Check the con'):
        draw_images(draw, find_inputs(str(folder))[0], str(tmp_path / 'out'))
    with pytest.raises(LibraryError, match=r'predicting a frame of .*v.mp4 failed: RuntimeError: The size of tensor a'):
        draw_video(draw, video, str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def test_input_folder_is_refused_as_output_folder(folder):
    with pytest.raises(ImageError, match='is the folder of the input images'):
        draw_images(lambda image: image, [str(folder / 'a.jpg')], str(folder))


def test_invalid_videos_are_refused(tmp_path):
    video = write_video(tmp_path / 'v.mp4')
    with pytest.raises(ImageError, match='would be overwritten'):
        draw_video(lambda image: image, str(video), str(tmp_path))
    video.write_bytes(video.read_bytes()[:100])
    with pytest.raises(ImageError, match=r'v.mp4 \(100 bytes\) has no frame that can be decoded'):
        draw_video(lambda image: image, str(video), str(tmp_path / 'out'))
    assert not list((tmp_path / 'out').iterdir())


def test_config_without_test_dataloader(tmp_path):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'a.py').write_text("default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier')\n")
    with pytest.raises(NetworkError, match='a.py has no test_dataloader, whose .*test_dataloader = val_dataloader'):
        build_drawer(load_config(str(tmp_path / 'a.py')), 'a.pth', 'cpu')


@pytest.mark.parametrize('name', ['grey.jpg', 'rgba.png', 'bands8.tif', 'array25.npy'])
def test_predictions_are_drawn_on_images_with_any_number_of_channels(name, tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    path, config = write_segmentor(tmp_path, name)
    meta = dict(dataset_meta=dict(classes=('a', 'b', 'c'), palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]]))
    torch.save(dict(state_dict=load_network(config).model.state_dict(), meta=meta), tmp_path / 'a.pth')
    cfg = load_config(config)
    read, draw = image_reader(cfg), build_drawer(cfg, str(tmp_path / 'a.pth'), 'cpu')
    written, problems = draw_images(draw, [path], str(tmp_path / 'out'), read)
    assert not problems and cv2.imread(written[0]).shape == (40, 60, 3) and np.ptp(cv2.imread(written[0])) > 100
    monkeypatch.setattr('fcvit_mm.apis.draw.MAX_PIXELS', 600)
    written, _ = draw_images(draw, [path], str(tmp_path / 'out'), read)
    assert cv2.imread(written[0]).shape == (20, 30, 3)
    if name != 'grey.jpg':
        cv2.imwrite(str(tmp_path / 'colors.png'), np.zeros((40, 60, 3), np.uint8))
        _, problems = draw_images(draw, [str(tmp_path / 'colors.png')], str(tmp_path / 'out'), read)
        assert len(problems) == 1 and 'colors.png' in problems[0]


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('scope', ['mmseg', 'otherlab'])
def test_models_and_transforms_of_other_libraries_keep_their_scope(scope, wrapped):
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize'), dict(type='PackSegInputs')]
    dataset = dict(type='BaseSegDataset', pipeline=steps)
    if wrapped:
        dataset = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', times=2, dataset=dataset), dataset])
    cfg = Config(dict(default_scope=scope, model=dict(type='A'), test_dataloader=dict(dataset=dataset)))
    found = draw._for_loaded_images(cfg)
    expected = {} if scope == 'mmseg' else dict(_scope_=scope)
    assert found.model == dict(type='A', **expected) and cfg.model == dict(type='A')
    assert found.test_dataloader.dataset.pipeline == [steps[0], dict(steps[1], **expected), dict(steps[2], **expected)]


@pytest.mark.parametrize('wrapped', [False, True])
def test_pipeline_of_wrapped_data_sets_is_used(wrapped, tmp_path):
    pytest.importorskip('mmseg')
    path, config = write_segmentor(tmp_path, 'rgba.png')
    torch.save(dict(state_dict=load_network(config).model.state_dict()), tmp_path / 'a.pth')
    cfg = load_config(config)
    if wrapped:
        cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[cfg.test_dataloader.dataset] * 2)
    written, problems = draw_images(
        build_drawer(cfg, str(tmp_path / 'a.pth'), 'cpu'), [path], str(tmp_path / 'out'), image_reader(cfg)
    )
    assert not problems and cv2.imread(written[0]).shape == (40, 60, 3)


def test_detectors_are_built_in_the_scope_of_their_config(monkeypatch):
    """Otherwise a detector of a library built on mmdet is not found."""
    apis = pytest.importorskip('mmdet.apis')
    scopes = []
    monkeypatch.setattr(apis, 'DetInferencer', lambda *args, scope, **options: scopes.append(scope))
    for scope in ('mmdet', 'otherlab'):
        draw._detection(Config(dict(default_scope=scope)), 'a.pth', 'cpu', 0.3)
    assert scopes == ['mmdet', 'otherlab']


@pytest.mark.parametrize('label', [2, 1])  # 2: no class
def test_panoptic_map_without_segments_is_drawn(label):
    pytest.importorskip('mmdet')
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.structures import PixelData

    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[(255, 0, 0), (0, 255, 0)])
    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=torch.full((1, 32, 32), label)))
    pixels = np.full((32, 32, 3), 9, np.uint8)
    assert (draw_sample(visualizer, pixels, sample) == pixels).all() == (label == 2)
    assert 'pred_panoptic_seg' in sample


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_classes_are_those_of_the_config_if_the_checkpoint_has_none(trained, tmp_path, monkeypatch, task):
    """Not those of COCO or Cityscapes."""
    result = trained(task)
    content = torch.load(result.checkpoint, weights_only=False)
    seen = []
    monkeypatch.setattr(draw, 'draw_sample', lambda visualizer, pixels, *_, **__: seen.append(visualizer) or pixels)
    for number, saved in enumerate((content, content['state_dict'])):
        torch.save(saved, tmp_path / f'{number}.pth')
        drawer = build_drawer(load_config(str(result.config)), str(tmp_path / f'{number}.pth'), 'cpu')
        drawer(np.zeros((64, 64, 3), np.uint8))
    expected, found = (visualizer.dataset_meta for visualizer in seen)
    assert found['classes'] == tuple(expected['classes']) and 'circle' in found['classes']
    assert len(found['palette']) >= len(found['classes'])
    if task == 'segmentation':
        assert list(map(list, found['palette'])) == list(map(list, expected['palette']))
