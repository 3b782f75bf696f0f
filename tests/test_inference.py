"""The inference functions of the libraries, with a config and a checkpoint of tools/train.py."""

import cv2
import numpy as np
import pytest
from harness import LIBRARIES

from fcvit_mm.publishing.model_card import USAGE

SHAPES = ('circle', 'cross', 'square', 'star', 'triangle')


def images(data):
    return sorted(str(path) for path in data.rglob('*.jpg') if 'val' in str(path.relative_to(data)))


def test_image_classification_inferencer(trained):
    result = trained('classification')
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(result.config, pretrained=result.checkpoint, device='cpu')
    predicted = inferencer(images(result.data), batch_size=2)
    assert len(predicted) == 5
    for one in predicted:
        assert one['pred_class'] == SHAPES[one['pred_label']]
        assert one['pred_scores'].sum() == pytest.approx(1, abs=1e-5)


def test_det_inferencer(trained, tmp_path):
    result = trained('detection')
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(result.config, weights=result.checkpoint, device='cpu', show_progress=False)
    # Without class names in the checkpoint, mmdet uses those of COCO.
    assert tuple(inferencer.model.dataset_meta['classes']) == SHAPES
    assert tuple(inferencer.visualizer.dataset_meta['classes']) == SHAPES
    image = images(result.data)[0]
    (predicted,) = inferencer(image, out_dir=str(tmp_path), no_save_pred=True)['predictions']
    assert len(predicted['labels']) == len(predicted['bboxes']) == len(predicted['masks']) > 0
    assert max(predicted['labels']) < 5
    assert len(list((tmp_path / 'vis').iterdir())) == 1


def test_init_and_inference_detector(trained):
    result = trained('detection')
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(result.config, result.checkpoint, device='cpu')
    assert tuple(model.dataset_meta['classes']) == SHAPES
    predicted = inference_detector(model, [cv2.imread(path) for path in images(result.data)])
    assert len(predicted) == 5
    instances = predicted[0].pred_instances
    assert instances.masks.shape == (len(instances), 64, 64) and len(instances) > 0


def test_mmseg_inferencer(trained, tmp_path):
    result = trained('segmentation')
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(result.config, weights=result.checkpoint, device='cpu')
    assert tuple(inferencer.model.dataset_meta['classes']) == ('background', *SHAPES)
    predicted = inferencer(images(result.data), out_dir=str(tmp_path))
    assert [one.shape for one in predicted['predictions']] == [(64, 64)] * 5
    assert len(list((tmp_path / 'vis').iterdir())) == 5


def test_model_card_of_a_segmentor_draws_its_own_classes(trained, tmp_path, monkeypatch):
    result = trained('segmentation')
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('image.jpg', cv2.imread(images(result.data)[0]))
    variables = {}
    for code in USAGE['segmentation']:
        exec(code.format(config=result.config, checkpoint=result.checkpoint), variables)
    assert tuple(variables['inferencer'].visualizer.dataset_meta['classes']) == ('background', *SHAPES)
    assert len(list((tmp_path / 'drawn' / 'vis').iterdir())) == 1


def test_init_and_inference_segmentor_on_a_cpu(trained):
    """The heads of this project's configs have SyncBN, which trains only on GPUs, but predicts on CPUs, too."""
    result = trained('segmentation')
    import torch
    from mmseg.apis import inference_model, init_model

    model = init_model(result.config, result.checkpoint, device='cpu')
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    assert tuple(model.dataset_meta['classes']) == ('background', *SHAPES)
    predicted = inference_model(model, images(result.data))
    maps = np.stack([one.pred_sem_seg.data[0].numpy() for one in predicted])
    assert maps.shape == (5, 64, 64) and maps.max() < 6
    # The results agree with BatchNorm, so the statistics of the checkpoint are used.
    from mmengine.model import revert_sync_batchnorm

    reverted = inference_model(revert_sync_batchnorm(model), images(result.data))
    assert all((one.pred_sem_seg.data == other.pred_sem_seg.data).all() for one, other in zip(predicted, reverted))


@pytest.mark.parametrize('task', LIBRARIES)
def test_checkpoint_loads_strictly(trained, task):
    """A checkpoint written on a CPU, where SyncBN and optimizer are replaced, loads into the unmodified config."""
    result = trained(task)
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from fcvit_mm.checkpoints import read_checkpoint

    registry = __import__(f'{LIBRARIES[task]}.registry', fromlist=['MODELS']).MODELS
    cfg = Config.fromfile(result.config)
    with DefaultScope.overwrite_default_scope(LIBRARIES[task]):
        __import__(f'{LIBRARIES[task]}.utils', fromlist=['x']).register_all_modules(init_default_scope=False)
        model = registry.build(cfg.model)
    model.load_state_dict(read_checkpoint(result.checkpoint)['state_dict'], strict=True)
