from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.visualization import Visualizer

from fcvit_mm.engine.config import ConfigError
from fcvit_mm.engine.outputs import image_paths, keep_every_result

NAMES = ('a/1.jpg', 'b/1.jpg', 'a/2.jpg', 'b/deep/2.jpg')


class Images(BaseDataset):
    def load_data_list(self):
        return [dict(img_path=path) for path in self.metainfo['paths']]


@pytest.fixture
def run(tmp_path):
    """Return a function that makes the images of a test set and a runner that would test it."""

    def make(names, hooks=(), metrics=()):
        paths = [tmp_path / 'data' / name for name in names]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
        dataset = Images(metainfo=dict(paths=[str(path) for path in paths]))
        return SimpleNamespace(
            hooks=list(hooks),
            test_evaluator=SimpleNamespace(metrics=list(metrics)),
            test_dataloader=SimpleNamespace(dataset=dataset),
            work_dir=str(tmp_path / 'work'),
            timestamp='now',
        )

    return make


class Sample(dict):
    img_path = property(lambda self: self['img_path'])


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def write_maps(run, out, names):
    metric = pytest.importorskip('mmseg.evaluation').IoUMetric(output_dir=str(out))
    metric.dataset_meta = dict(classes=('a', 'b'))
    runner = run(names, metrics=[metric])
    keep_every_result(runner)
    labels = dict(data=torch.zeros(1, 4, 4, dtype=torch.int64))
    samples = [
        dict(img_path=path, pred_sem_seg=labels, gt_sem_seg=labels)
        for path in image_paths(runner.test_dataloader.dataset)
    ]
    metric.process({}, samples[:3])
    metric.process({}, samples[3:])
    assert len(metric.results) == len(names) and metric.output_dir == str(out)


def write_detections(run, out, names):
    Visualizer.get_instance('boxes')
    hook = pytest.importorskip('mmdet.engine.hooks').DetVisualizationHook(draw=True, test_out_dir=str(out))
    hook._visualizer = SimpleNamespace(add_datasample=lambda *_, out_file, **__: Path(out_file).write_bytes(b'x'))
    runner = run(names, [hook])
    keep_every_result(runner)
    samples = [Sample(img_path=path) for path in image_paths(runner.test_dataloader.dataset)]
    for number in (0, 1):
        hook.after_test_iter(runner, batch_idx=number, data_batch={}, outputs=samples[3 * number :][: 3 - 2 * number])


def write_classes(run, out, names):
    Visualizer.get_instance('labels')
    hook = pytest.importorskip('mmpretrain.engine.hooks').VisualizationHook(enable=True, interval=1, out_dir=str(out))
    seen = []
    hook._visualizer = SimpleNamespace(
        visualize_cls=lambda image, out_file, **_: (Path(out_file).write_bytes(b'x'), seen.append(image.max()))
    )
    runner = run(names, [hook])
    keep_every_result(runner)
    samples = [Sample(img_path=path) for path in image_paths(runner.test_dataloader.dataset)]
    images = torch.arange(len(names)).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    for number in (0, 1):
        part = slice(3 * number, 3 + number)
        hook.after_test_iter(runner, batch_idx=number, data_batch=dict(inputs=images[part]), outputs=samples[part])
    assert seen == list(range(len(names)))  # each image once


@pytest.mark.parametrize(
    'write, ending', [(write_maps, '.png'), (write_detections, '.jpg'), (write_classes, '.jpg_0.png')]
)
def test_one_file_is_written_per_image(write, ending, run, tmp_path):
    write(run, tmp_path / 'out', NAMES)
    assert written(tmp_path / 'out') == sorted(name[:-4] + ending for name in NAMES)


def test_unique_names_are_written_to_one_folder(run, tmp_path):
    write_maps(run, tmp_path / 'out', ('a/1.jpg', 'b/2.jpg', 'b/3.jpg', 'b/4.jpg'))
    assert written(tmp_path / 'out') == ['1.png', '2.png', '3.png', '4.png']


def test_images_with_the_same_output_file_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match='IoUMetric.output_dir writes one .*a/1.png would overwrite the file of '):
        write_maps(run, tmp_path / 'out', ('a/1.jpg', 'a/1.png'))
    write_detections(run, tmp_path / 'drawn', ('a/1.jpg', 'a/1.png', 'b/1.png', 'c/1.png'))
    assert len(written(tmp_path / 'drawn')) == 4


def test_metrics_that_need_unique_names(run):
    CocoPanopticMetric = type('CocoPanopticMetric', (), {})
    with pytest.raises(ConfigError, match='CocoPanopticMetric writes one file per image'):
        keep_every_result(run(NAMES, metrics=[CocoPanopticMetric()]))
    keep_every_result(run(('a/1.jpg', 'b/2.jpg'), metrics=[CocoPanopticMetric()]))
