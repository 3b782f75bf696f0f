"""Random images with ground truth, as a data loader of a config would return them."""

import copy
from typing import Any, Dict

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from ..engine.config import task_of, type_name, walk

#: Images per batch: BatchNorm needs two if a map is pooled to one position.
BATCH = 2


def random_batch(cfg: Config, size: int, channels: int = 3, images: int = BATCH) -> Dict[str, list]:
    """Make random images with ground truth, as a data loader of the config would.

    Args:
        cfg (Config): Config of a classifier, detector or segmentor.
        size (int): Side of the images, in pixels.
        channels (int): Number of channels of the images.
        images (int): Number of images.

    Returns:
        dict: ``inputs``, a list of uint8 tensors ``(channels, size, size)``, and ``data_samples``: in detection two
            boxes of label 0, and masks and a segmentation map of label 0 if the training pipeline loads them; in
            segmentation a map with labels 0 and 1, and edge and depth maps if the pipeline makes them.
    """
    rng = np.random.RandomState(0)
    inputs = [torch.from_numpy(rng.randint(0, 255, (channels, size, size), dtype=np.uint8)) for _ in range(images)]
    samples = [SAMPLES[task_of(cfg)](cfg, size, number) for number in range(images)]
    return dict(inputs=inputs, data_samples=samples)


def collated(cfg: Config, batch: Dict[str, list]) -> Any:
    """Return a batch in the format of the collate function of the training data loader, such as MMYOLO's."""
    collate = (cfg.get('train_dataloader') or {}).get('collate_fn')
    if collate is None:
        return batch
    samples = [dict(zip(batch, values)) for values in zip(*batch.values())]
    sampler = dict(type='DefaultSampler', shuffle=False)
    options = dict(dataset=samples, batch_size=len(samples), sampler=sampler, collate_fn=copy.deepcopy(collate))
    return next(iter(Runner.build_dataloader(ConfigDict(options, num_workers=0))))


def _described(size: int, number: int) -> Dict[str, Any]:
    shape = (size, size)
    return dict(
        img_shape=shape,
        ori_shape=shape,
        pad_shape=shape,
        scale_factor=(1.0, 1.0),
        flip=False,
        img_id=number,
        border=(0.0, size, 0.0, size),  # borders of the image within its frame, which CenterNet's pipeline sets
    )


def _classified(cfg: Config, size: int, number: int) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_described(size, number)).set_gt_label(0)


def _detected(cfg: Config, size: int, number: int) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    boxes = [[size // 8, size // 8, size // 2, size // 2], [size // 4, size // 4, size - 8, size - 16]]
    masks = np.zeros((len(boxes), size, size), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = 1
    # Only what the training pipeline loads, because some models behave differently if there is more.
    steps = list(walk((cfg.get('train_dataloader') or {}).get('dataset')))
    kinds = [step['box_type'] for step in steps if step.get('box_type')]
    kinds += [
        step['box_type_mapping']['gt_bboxes'] for step in steps if 'gt_bboxes' in step.get('box_type_mapping', {})
    ]
    sample = DetDataSample(metainfo=_described(size, number))
    sample.gt_instances, sample.ignored_instances = (
        InstanceData(
            bboxes=HorizontalBoxes(torch.tensor(each, dtype=torch.float32).view(-1, 4)).convert_to(
                (kinds or ['hbox'])[-1]
            ),
            labels=torch.zeros(len(each), dtype=torch.long),
        )
        for each in (boxes, [])
    )
    panoptic = any(type_name(step) == 'LoadPanopticAnnotations' for step in steps)
    if panoptic or any(step.get('with_mask') for step in steps):
        sample.gt_instances.masks = BitmapMasks(masks, size, size)
    if panoptic or any(step.get('with_seg') for step in steps):
        # If the pipeline reduces the map, as HTC's does, the head expects the reduced size.
        scales = [step.get('scale_factor', 1) for step in steps if type_name(step) == 'SegRescale']
        side = int(size * (scales[0] if scales else 1))
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, side, side, dtype=torch.long))
    return sample


def _segmented(cfg: Config, size: int, number: int) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.zeros(1, size, size, dtype=torch.long)
    labels[:, : size // 2] = 1
    sample = SegDataSample(metainfo=_described(size, number), gt_sem_seg=PixelData(data=labels))
    # Further ground truth from the training pipeline, for heads of PIDNet and of depth estimators.
    steps = {type_name(step) for step in walk((cfg.get('train_dataloader') or {}).get('dataset'))}
    if 'GenerateEdge' in steps:
        edge = torch.zeros_like(labels)
        edge[:, size // 2] = 1
        sample.set_data(dict(gt_edge_map=PixelData(data=edge)))
    if 'LoadDepthAnnotation' in steps:
        sample.set_data(dict(gt_depth_map=PixelData(data=torch.ones(1, size, size))))
    return sample


#: Task -> function that generates the ground truth of an image.
SAMPLES = dict(classification=_classified, detection=_detected, segmentation=_segmented)
