"""Data sets on remote storage are not checked; loading a sample does not change the data set."""

from mmengine.registry import TRANSFORMS

from fcvit_mm.preflight.checks import data_problems


def require_map_of_image_size(results):
    assert results['img'].shape[:2] == results['gt_seg_map'].shape, 'sizes differ'
    return results


def test_segmentation_maps_pass_once_through_the_pipeline(make_config):
    """The checks of the maps let mmseg load them, which adds an entry to a list of the sample; steps read that list."""
    cfg, _ = make_config('segmentation')
    step = type('RequireMapOfImageSize', (), {'__call__': staticmethod(require_map_of_image_size)})
    TRANSFORMS.register_module('RequireMapOfImageSize', force=True, module=step)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[-1:-1] = [dict(type='RandomCrop', crop_size=(40, 40)), dict(type='RequireMapOfImageSize')]
    assert data_problems(cfg, ['train_dataloader']) == []


def test_annotations_on_remote_storage_are_not_checked(make_config):
    cfg, _ = make_config('detection', {'train_dataloader.dataset.ann_file': 'http://host/a.json'})
    assert data_problems(cfg, ['train_dataloader']) == []
    cfg.train_dataloader.dataset.update(ann_file='a.json', data_root='bucket/', backend_args=dict(backend='http'))
    assert data_problems(cfg, ['train_dataloader']) == []
