"""Every leaf config loads, builds, trains one step and predicts; the published recipes' arithmetic holds."""

import copy
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from harness import LIBRARIES, ROOT
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from PIL import Image
from uninitialized import uninitialized

from fcvit_mm import DWNet, FCViT
from fcvit_mm.checkpoints import PUBLISHED as PUBLISHED_WEIGHTS
from fcvit_mm.models.layers import count_parameters
from fcvit_mm.models.variants import VARIANTS as ROWS

LEAVES = sorted(
    path.relative_to(ROOT / 'configs').with_suffix('').as_posix() for path in (ROOT / 'configs').glob('*/*.py')
)
PUBLISHED = [leaf for leaf in LEAVES if leaf.endswith(('_in1k', '_coco', '_ade20k'))]
FCVIT = [leaf for leaf in PUBLISHED if 'fcvit' in leaf]
VARIANTS = ('tiny', 'b12', 'b24', 'b48')
GPUS = 8


@functools.lru_cache(maxsize=None)
def parse(leaf):
    pytest.importorskip(LIBRARIES[leaf.split('/')[0]])
    return Config.fromfile(ROOT / 'configs' / f'{leaf}.py')


def load(leaf):
    return copy.deepcopy(parse(leaf))


def in_scope(cfg):
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


def build(cfg):
    """Build the model as a runner on a CPU without checkpoints does."""
    model = copy.deepcopy(cfg.model)
    model.backbone.pop('init_cfg', None)
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with in_scope(cfg):
        return revert_sync_batchnorm(MODELS.build(ConfigDict(model)))


@functools.lru_cache(maxsize=None)
def parameters_of(leaf):
    """Return the number of parameters of the complete model, counted without allocating them."""
    with uninitialized():
        return count_parameters(build(load(leaf)))


def shrink(cfg):
    """Leave a block a stage (two of the first), narrow heads, few proposals, no padding to full crops: a step takes a
    second.
    """
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 96)
        for head in ('decode_head', 'auxiliary_head'):
            if cfg.model.get(head):
                cfg.model[head].channels = 32
    backbone = cfg.model.backbone
    settings = getattr(MODELS.get(backbone.type), 'arch_settings', None)
    if settings and isinstance(backbone.get('arch'), str) and backbone.arch in settings:
        arch = settings[backbone.arch]
        first, *others = arch['depths']
        backbone.arch = dict(arch, depths=(min(first, 2), *(min(depth, 1) for depth in others)))
    if backbone.get('drop_path_rate'):
        backbone.drop_path_rate = 0.1
    if cfg.default_scope == 'mmdet' and 'rpn_head' in cfg.model:
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.test_cfg.rpn.max_per_img = 20
        heads = cfg.model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 64
            if 'num_shared_convs' in head:
                head.conv_out_channels = 32
        if 'mask_head' in cfg.model.roi_head:
            cfg.model.roi_head.mask_head.conv_out_channels = 32
        stages = cfg.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
    return cfg


def num_classes(cfg):
    if cfg.default_scope == 'mmpretrain':
        return cfg.model.head.num_classes
    if cfg.default_scope == 'mmseg':
        return cfg.model.decode_head.num_classes
    if 'roi_head' in cfg.model:
        heads = cfg.model.roi_head.bbox_head
        return (heads[0] if isinstance(heads, list) else heads).num_classes
    return cfg.model.bbox_head.num_classes


def batch_of(cfg, shape=(64, 96), size=2):
    """Return random images with ground truth, as a data loader gives them."""
    rng = np.random.RandomState(0)
    classes = num_classes(cfg)
    images = [torch.from_numpy(rng.randint(0, 255, (3, *shape), dtype=np.uint8)) for _ in range(size)]
    samples = []
    for i in range(size):
        if cfg.default_scope == 'mmpretrain':
            from mmpretrain.structures import DataSample

            samples.append(DataSample(metainfo=dict(img_shape=shape)).set_gt_label(i % classes))
        elif cfg.default_scope == 'mmseg':
            from mmengine.structures import PixelData
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(rng.randint(0, classes, (1, *shape))))
            samples.append(sample)
        else:
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks
            from mmengine.structures import InstanceData

            masks = np.zeros((2, *shape), dtype=np.uint8)
            masks[0, 8:40, 8:40] = masks[1, 20:60, 40:90] = 1
            sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, img_id=i, scale_factor=(1.0, 1.0)))
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor([[8.0, 8.0, 40.0, 40.0], [40.0, 20.0, 90.0, 60.0]]),
                labels=torch.tensor([0, classes - 1]),
                masks=BitmapMasks(masks, *shape),
            )
            samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def check_prediction(cfg, sample, shape):
    classes = num_classes(cfg)
    if cfg.default_scope == 'mmpretrain':
        assert sample.pred_score.shape == (classes,)
        assert sample.pred_score.sum().item() == pytest.approx(1, abs=1e-4)
    elif cfg.default_scope == 'mmseg':
        predicted = sample.pred_sem_seg.data
        assert predicted.shape == (1, *shape)
        assert predicted.min() >= 0 and predicted.max() < classes
    else:
        predicted = sample.pred_instances
        assert len(predicted.bboxes) == len(predicted.scores) == len(predicted.labels)
        assert torch.isfinite(predicted.bboxes).all()
        assert ('masks' in predicted) == (cfg.model.get('roi_head', {}).get('mask_head') is not None)
        if 'masks' in predicted:
            assert predicted.masks.shape == (len(predicted.bboxes), *shape)


#: Settings that were trained a step with: with fewer blocks per stage, many leaves are the same.
TRAINED = set()


@pytest.mark.parametrize('leaf', LEAVES)
def test_config_trains_a_step_and_predicts(leaf):
    cfg = shrink(load(leaf))
    assert 'fcvit_mm' in cfg.custom_imports.imports and not cfg.custom_imports.allow_failed_imports
    cfg.model.backbone.pop('init_cfg', None)
    key = str([cfg.model, cfg.get('data_preprocessor'), cfg.optim_wrapper])
    if key in TRAINED:
        return
    TRAINED.add(key)
    torch.manual_seed(0)
    model = build(cfg)
    model.init_weights()

    # What a runner does in train_step; gradients are checked before they are cleared.
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    wrapper.type = 'OptimWrapper'  # mixed precision is not for CPUs
    for key in ('loss_scale', 'dtype'):
        wrapper.pop(key, None)
    with in_scope(cfg):
        optim_wrapper = build_optim_wrapper(model, wrapper)
        model.train()
        data = model.data_preprocessor(batch_of(cfg), training=True)
        loss, logs = model.parse_losses(model(**data, mode='loss'))
        assert torch.isfinite(loss), logs
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        without = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
        assert not without, f'no gradient, DistributedDataParallel would stop: {without}'
        before = model.backbone.stem.proj.weight.detach().clone() if cfg.model.backbone.type == 'FCViT' else None
        optim_wrapper.step()
        if before is not None:
            assert not torch.equal(before, model.backbone.stem.proj.weight)

        model.eval()
        with torch.no_grad():
            results = model.test_step(batch_of(cfg, size=1))
    assert len(results) == 1
    check_prediction(cfg, results[0], (64, 96))


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    """An image of 150x100 pixels and a label map of two values."""
    folder = tmp_path_factory.mktemp('image')
    rng = np.random.RandomState(0)
    Image.fromarray(rng.randint(0, 255, (100, 150, 3), dtype=np.uint8)).save(folder / 'image.png')
    Image.fromarray(rng.randint(0, 2, (100, 150), dtype=np.uint8)).save(folder / 'labels.png')
    return folder


def pipeline_input(cfg, pipeline, image):
    """Return what a data set hands to its pipeline for one image."""
    info = dict(img_path=str(image / 'image.png'))
    if cfg.default_scope == 'mmpretrain':
        return dict(info, gt_label=0)
    if cfg.default_scope == 'mmseg':
        return dict(
            info,
            seg_map_path=str(image / 'labels.png'),
            seg_fields=[],
            label_map=None,
            reduce_zero_label="'reduce_zero_label': True" in str(pipeline),
        )
    polygon = [20.0, 20.0, 120.0, 20.0, 120.0, 80.0, 20.0, 80.0]
    return dict(
        info,
        img_id=0,
        height=100,
        width=150,
        instances=[dict(bbox=[20.0, 20.0, 120.0, 80.0], bbox_label=0, mask=[polygon], ignore_flag=0)],
    )


def run_pipeline(cfg, pipeline, image):
    with in_scope(cfg):
        return Compose(pipeline)(pipeline_input(cfg, pipeline, image))


def pipeline_of(dataloader):
    dataset = dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset.pipeline


RUN = set()


@pytest.mark.parametrize('leaf', LEAVES)
def test_pipelines_take_an_image(leaf, image):
    cfg = load(leaf)
    pipelines = [pipeline_of(cfg[f'{part}_dataloader']) for part in ('train', 'val', 'test')]
    key = str([*pipelines, cfg.get('tta_pipeline')])
    if key in RUN:
        return  # most leaves share theirs, and full-size images take their time
    RUN.add(key)
    for pipeline in pipelines:
        packed = run_pipeline(cfg, pipeline, image)
        assert packed['inputs'].ndim == 3 and packed['inputs'].shape[0] == 3
        assert packed['data_samples'] is not None
    if 'tta_pipeline' in cfg:
        views = run_pipeline(cfg, cfg.tta_pipeline, image)['inputs']
        assert len(views) >= 2
        by_size = [view for view in views if view.shape == views[0].shape]
        assert any(torch.equal(view, views[0].flip(-1)) for view in by_size), 'no view is the mirror image'


@pytest.mark.parametrize('leaf', PUBLISHED)
def test_tta_is_configured_unless_the_model_has_masks(leaf):
    cfg = load(leaf)
    can_merge = 'mask_head' not in cfg.model.get('roi_head', {})  # mmdet cannot merge masks
    assert ('tta_model' in cfg) == ('tta_pipeline' in cfg) == can_merge


@pytest.mark.parametrize(
    'leaf',
    ['classification/fcvit_tiny_in1k', 'detection/retinanet_fcvit_b12_coco', 'segmentation/sem_fpn_fcvit_tiny_ade20k'],
)
def test_tta_merges_to_one_prediction(leaf, image):
    cfg = shrink(load(leaf))
    if cfg.default_scope == 'mmdet':
        cfg.tta_pipeline[1].transforms[0][0].scale = (96, 64)
    if cfg.default_scope == 'mmseg':
        cfg.tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(96, 64), keep_ratio=True)]
    model = copy.deepcopy(cfg.model)
    model.backbone.pop('init_cfg', None)
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    torch.manual_seed(0)
    with in_scope(cfg):
        merged = revert_sync_batchnorm(MODELS.build(ConfigDict(cfg.tta_model, module=model))).eval()
        views = Compose(cfg.tta_pipeline)(pipeline_input(cfg, cfg.test_dataloader.dataset.pipeline, image))
        with torch.no_grad():
            results = merged.test_step(pseudo_collate([views]))
    assert len(results) == 1
    check_prediction(cfg, results[0], (100, 150))


@pytest.mark.parametrize('leaf', LEAVES)
def test_learning_rate_can_be_scaled(leaf):
    assert load(leaf).auto_scale_lr.base_batch_size > 0


@pytest.mark.parametrize('leaf', PUBLISHED)
def test_base_batch_size_is_that_of_eight_gpus(leaf):
    cfg = load(leaf)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=GPUS * cfg.train_dataloader.batch_size)
    expected = {
        'classification': 1024,
        'detection': 16 if 'dwnet' in leaf else 32,
        'segmentation': 16 if 'upernet' in leaf else 32,
    }
    assert cfg.auto_scale_lr.base_batch_size == expected[leaf.split('/')[0]]


@pytest.mark.parametrize('leaf', [leaf for leaf in PUBLISHED if not leaf.startswith('classification')])
def test_pretrained_is_one_local_path_of_the_same_network(leaf):
    cfg = load(leaf)
    name = re.sub(r'^(cascade_)?(mask_rcnn|retinanet|upernet|sem_fpn)_|(_3x)?_(coco|ade20k)$', '', Path(leaf).name)
    assert cfg.pretrained == f'checkpoints/{name}_in1k.pth'
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=cfg.pretrained)
    classifier = load(f'classification/{name}_in1k').model.backbone
    for option in ('type', 'arch', 'methods', 'dynamic'):
        assert cfg.model.backbone.get(option) == classifier.get(option)


@pytest.mark.parametrize('leaf', LEAVES)
def test_save_best_is_a_metric_of_the_evaluator(leaf):
    cfg = load(leaf)
    hook = cfg.default_hooks.checkpoint
    metrics = {'mmpretrain': 'accuracy/top1', 'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}
    assert hook.save_best in ('auto', metrics[cfg.default_scope])
    assert hook.max_keep_ckpts > 0


def rates(cfg, epochs, epoch_length):
    """Return the learning rate at the start of each iteration, one list for each epoch."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    by_iter, by_epoch = [], []
    for scheduler in copy.deepcopy(cfg.param_scheduler):
        cls = PARAM_SCHEDULERS.get(scheduler.pop('type'))
        scheduler.pop('_scope_', None)
        if scheduler.pop('convert_to_iter_based', False):
            by_iter.append(cls.build_iter_from_epoch(optimizer, **scheduler, epoch_length=epoch_length))
        else:
            (by_epoch if scheduler.by_epoch else by_iter).append(cls(optimizer, **scheduler))
    found = []
    for _ in range(epochs):
        found.append([])
        for _ in range(epoch_length):
            found[-1].append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in by_iter:
                scheduler.step()
        for scheduler in by_epoch:
            scheduler.step()
    return found


def weight_decays(model, cfg):
    """Return the weight decay of each parameter, by name, in the optimizer that the config describes."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(parameter): group['weight_decay'] for group in wrapper.param_groups for parameter in group['params']}
    return {name: decay[id(parameter)] for name, parameter in model.named_parameters()}


class TestClassification:
    leaves = [f'classification/fcvit_{variant}_in1k' for variant in VARIANTS]

    @pytest.mark.parametrize('name', [name for name, row in ROWS.items() if row.config])
    def test_parameters_agree_with_the_row(self, name):
        assert parameters_of(f'classification/{name}_in1k') == ROWS[name].parameters

    @pytest.mark.parametrize('leaf', FCVIT)
    def test_layer_scale_starts_larger_than_that_of_dense_prediction(self, leaf):
        backbone = load(leaf).model.backbone
        assert backbone.get('layer_scale_init_value', 1e-6) == (1e-5 if leaf.startswith('classification') else 1e-6)

    def test_schedule(self):
        cfg = load(self.leaves[0])
        assert cfg.train_cfg.max_epochs == 310
        found = rates(cfg, 310, epoch_length=4)
        assert found[0][0] == pytest.approx(1e-6)
        assert found[5][0] == pytest.approx(1e-3)
        assert max(map(max, found)) == pytest.approx(1e-3)
        # Half way of the cosine, from epoch 5 to 300.
        middle = (found[152][0] + found[153][0]) / 2
        assert middle == pytest.approx((1e-3 + 1e-6) / 2, rel=1e-3)
        assert all(rate == pytest.approx(1e-6, rel=1e-4) for epoch in found[300:] for rate in epoch)
        assert len(found[300:]) == 10

    @pytest.mark.parametrize('leaf', leaves)
    def test_no_weight_decay_for_one_dimensional_parameters(self, leaf):
        cfg = shrink(load(leaf))
        model = build(cfg)
        with in_scope(cfg):
            decay = weight_decays(model, cfg)
        assert all(
            decay[name] == (0.0 if parameter.ndim == 1 else 0.05) for name, parameter in model.named_parameters()
        )
        names = [name for name, parameter in model.named_parameters() if parameter.ndim == 1]
        assert any('layer_scale1' in name for name in names)
        assert any('rescale_weight' in name for name in names)

    @pytest.mark.parametrize('variant, ratio', [('tiny', 0.9), ('b12', 0.9), ('b24', 0.95), ('b48', 0.95)])
    def test_evaluation_crop(self, variant, ratio, image):
        cfg = load(f'classification/fcvit_{variant}_in1k')
        for pipeline in (cfg.val_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline):
            resize, crop = pipeline[1], pipeline[2]
            assert resize.scale == math.floor(224 / ratio)
            assert (resize.edge, resize.backend, resize.interpolation) == ('short', 'pillow', 'bicubic')
            assert crop == dict(type='CenterCrop', crop_size=224)
        assert run_pipeline(cfg, cfg.test_dataloader.dataset.pipeline, image)['inputs'].shape == (3, 224, 224)

    @pytest.mark.parametrize('variant, rate', [('tiny', 0.1), ('b12', 0.1), ('b24', 0.1), ('b48', 0.2)])
    def test_drop_path(self, variant, rate):
        assert load(f'classification/fcvit_{variant}_in1k').model.backbone.drop_path_rate == rate

    def test_training_interpolation_is_bilinear_or_bicubic(self):
        crop = load(self.leaves[0]).train_dataloader.dataset.pipeline[1]
        assert crop.type == 'FastRandomResizedCrop' and tuple(crop.interpolation) == ('bilinear', 'bicubic')
        assert tuple(crop.crop_ratio_range) == (0.08, 1.0)

    def test_mixing_is_as_published(self):
        cfg = load(self.leaves[0])
        assert cfg.model.train_cfg.augments == [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
        assert build(cfg).data_preprocessor.batch_augments.probs is None  # equal chances: switching at 0.5


class TestDetection:
    leaves = [leaf for leaf in FCVIT if leaf.startswith('detection')]

    @pytest.mark.parametrize('leaf', leaves)
    def test_optimizer(self, leaf):
        cfg = shrink(load(leaf))
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
        assert not cfg.optim_wrapper.get('clip_grad')
        assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4)
        epochs, milestones = (36, [27, 33]) if '_3x_' in leaf else (12, [8, 11])
        assert cfg.train_cfg.max_epochs == epochs
        assert cfg.param_scheduler[1].milestones == milestones
        found = rates(cfg, epochs, epoch_length=501)
        assert found[0][0] == pytest.approx(2e-7)
        assert found[0][500] == found[milestones[0] - 1][0] == pytest.approx(2e-4)
        assert found[milestones[0]][0] == pytest.approx(2e-5)
        assert found[epochs - 1][-1] == pytest.approx(2e-6)

    @pytest.mark.parametrize('variant', VARIANTS)
    def test_mask_rcnn_parameters(self, variant):
        """The published numbers are 33.7M and 43.1M; configs/detection/README.md explains the difference."""
        channels = FCViT.arch_settings[variant]['channels']
        classifier_head = 1000 * channels[3] + 1000
        more_norms = 2 * sum(channels[:3])  # of the three stages that a classifier does not return
        lateral = 256 * sum(channels) + 4 * 256
        fpn_outputs = 4 * (9 * 256 * 256 + 256)
        rpn_and_roi_heads = 593_935 + 16_949_985
        assert parameters_of(f'detection/mask_rcnn_fcvit_{variant}_coco') == (
            ROWS[f'fcvit_{variant}'].parameters
            - classifier_head
            + more_norms
            + lateral
            + fpn_outputs
            + rpn_and_roi_heads
        )

    def test_3x_schedule_trains_at_many_scales(self):
        for leaf in self.leaves:
            resize = load(leaf).train_dataloader.dataset.pipeline[2]
            if '_3x_' in leaf:
                assert resize.scales == [(1333, short) for short in range(480, 801, 32)]
            else:
                assert resize == dict(type='Resize', scale=(1333, 800), keep_ratio=True)

    def test_backbone_builds_only_what_retinanet_reads(self):
        assert load('detection/retinanet_fcvit_b12_coco').model.backbone.out_indices == (1, 2, 3)


class TestSegmentation:
    @pytest.mark.parametrize('variant', VARIANTS)
    def test_upernet(self, variant):
        cfg = load(f'segmentation/upernet_fcvit_{variant}_ade20k')
        assert cfg.train_cfg.max_iters == 160_000
        assert cfg.model.backbone.drop_path_rate == 0.3
        assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
        channels = FCViT.arch_settings[variant]['channels']
        assert tuple(cfg.model.decode_head.in_channels) == channels
        assert cfg.model.auxiliary_head.in_channels == channels[2]
        assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)

    def test_upernet_schedule_and_decay(self):
        cfg = shrink(load('segmentation/upernet_fcvit_tiny_ade20k'))
        (found,) = rates(cfg, 1, epoch_length=2501)
        assert found[0] == pytest.approx(6e-11)
        assert found[1500] == pytest.approx(6e-5, rel=1e-4)
        assert found[2500] == pytest.approx(6e-5 * (1 - 1000 / 158_500), rel=1e-4)
        assert (cfg.param_scheduler[1].end, cfg.param_scheduler[1].eta_min) == (160_000, 0)
        model = build(cfg)
        with in_scope(cfg):
            decay = weight_decays(model, cfg)
        norms = (torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
        of_norms = {
            f'{name}.{part}'
            for name, module in model.named_modules()
            if isinstance(module, norms)
            for part in ('weight', 'bias')
        }
        assert decay == {name: 0.0 if name in of_norms else 0.01 for name, _ in model.named_parameters()}

    @pytest.mark.parametrize('variant', VARIANTS)
    def test_semantic_fpn(self, variant):
        cfg = load(f'segmentation/sem_fpn_fcvit_{variant}_ade20k')
        assert cfg.train_cfg.max_iters == 40_000
        assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4)
        assert tuple(cfg.model.neck.in_channels) == FCViT.arch_settings[variant]['channels']

    def test_semantic_fpn_schedule(self):
        cfg = load('segmentation/sem_fpn_fcvit_tiny_ade20k')
        (found,) = rates(cfg, 1, epoch_length=4001)
        assert found[0] == pytest.approx(2e-4)
        assert found[4000] == pytest.approx(2e-4 * 0.9**0.9, rel=1e-4)
        assert (cfg.param_scheduler[0].end, cfg.param_scheduler[0].eta_min) == (40_000, 0)

    def test_semantic_fpn_tests_at_multiples_of_32(self, image):
        cfg = load('segmentation/sem_fpn_fcvit_tiny_ade20k')
        pipelines = [cfg.val_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline]
        for pipeline in pipelines:
            assert all(side % 32 == 0 for side in run_pipeline(cfg, pipeline, image)['inputs'].shape[1:])
        # 100x150 becomes 512x768 by itself, so a narrower image shows the difference.
        cfg.tta_pipeline[1].transforms[0][0].scale = (2000, 130)
        for view in run_pipeline(cfg, cfg.tta_pipeline, image)['inputs']:
            assert all(side % 32 == 0 for side in view.shape[1:])


class TestDWNet:
    kinds = ['dwnet', 'dynamic_dwnet', 'inhomogeneous_dwnet']

    @pytest.mark.parametrize('kind', kinds)
    @pytest.mark.parametrize('size, rate, width', [('tiny', 0.2, 768), ('base', 0.5, 1024)])
    def test_classifier(self, kind, size, rate, width):
        model = load(f'classification/{kind}_{size}_in1k').model
        dynamic = dict(zip(self.kinds, (False, 'homogeneous', 'inhomogeneous')))[kind]
        assert (model.backbone.get('dynamic', False), model.backbone.arch) == (dynamic, size)
        assert (model.backbone.drop_path_rate, model.head.in_channels) == (rate, width)
        assert model.backbone.norm_cfg == dict(type='LN')

    def test_classification_recipe(self):
        cfg = load('classification/dwnet_tiny_in1k')
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
        found = rates(cfg, 300, epoch_length=4)
        assert found[0][0] == pytest.approx(1e-6)
        assert max(map(max, found)) == found[20][0] == pytest.approx(1e-3)
        assert found[160][0] == pytest.approx((1e-3 + 1e-5) / 2)
        assert found[299][-1] == pytest.approx(1e-5, rel=0.01)
        for pipeline in (cfg.val_dataloader.dataset.pipeline, cfg.tta_pipeline):
            assert (pipeline[1].scale, pipeline[1].interpolation, pipeline[2].crop_size) == (256, 'bicubic', 224)

    @pytest.mark.parametrize('kind', kinds[:2])
    @pytest.mark.parametrize('size, rate', [('tiny', 0.2), ('base', 0.3)])
    def test_cascade_mask_rcnn(self, kind, size, rate):
        cfg = load(f'detection/cascade_mask_rcnn_{kind}_{size}_3x_coco')
        assert cfg.model.backbone.drop_path_rate == rate
        assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
        assert tuple(cfg.model.neck.in_channels) == DWNet.arch_settings[size]['channels']
        heads = cfg.model.roi_head.bbox_head
        assert [head.bbox_coder.target_stds[0] for head in heads] == [0.1, 0.05, 0.033]
        for head in heads:
            assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
            assert head.norm_cfg.type == 'SyncBN' and not head.reg_class_agnostic and head.reg_decoded_bbox
            assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
        assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
        assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0)
        assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].milestones) == (36, [27, 33])
        resize = cfg.train_dataloader.dataset.pipeline[2]
        assert resize.scales == [(1333, short) for short in range(480, 801, 32)]

    @pytest.mark.parametrize('kind', kinds[:2])
    @pytest.mark.parametrize('size', ['tiny', 'base'])
    def test_upernet(self, kind, size):
        cfg = load(f'segmentation/upernet_{kind}_{size}_ade20k')
        channels = DWNet.arch_settings[size]['channels']
        assert tuple(cfg.model.decode_head.in_channels) == channels
        assert cfg.model.auxiliary_head.in_channels == channels[2]
        assert (cfg.model.backbone.drop_path_rate, cfg.model.backbone.norm_cfg.type) == (0.3, 'SyncBN')
        assert cfg.train_cfg.max_iters == 160_000


class TestAttnScaleAndFeatScale:
    networks = ['vit_small_12', 'vit_small_24', 'vit_base_12', 'vit_base_24', 'cait_s24', 'swin_small']

    @pytest.mark.parametrize('network', networks)
    def test_classifiers(self, network):
        models = [load(f'classification/{method}_{network}_in1k').model for method in ('attnscale', 'featscale')]
        assert [model.backbone.pop('methods') for model in models] == [('attn_scale',), ('feat_scale',)]
        assert models[0] == models[1]
        rate = 0.3 if 'swin' in network else 0.2 if network.startswith('vit') and network.endswith('24') else 0.1
        assert models[0].backbone.drop_path_rate == rate

    @pytest.mark.parametrize('leaf', ['attnscale_vit_small_12', 'featscale_cait_s24', 'attnscale_swin_small'])
    def test_no_weight_decay_on_the_methods_and_on_learned_tables(self, leaf):
        cfg = shrink(load(f'classification/{leaf}_in1k'))
        model = build(cfg)
        with in_scope(cfg):
            decay = weight_decays(model, cfg)
        free = ('cls_token', 'pos_embed', 'relative_position_bias_table')
        expected = cfg.optim_wrapper.optimizer.weight_decay
        assert expected == (5e-4 if 'cait' in leaf else 0.05)
        assert any('lamb' in name for name in decay)
        for name, parameter in model.named_parameters():
            assert decay[name] == (0.0 if parameter.ndim == 1 or name.endswith(free) else expected), name

    def test_schedules(self):
        found = rates(load('classification/attnscale_vit_small_12_in1k'), 300, epoch_length=4)
        assert found[0][0] == pytest.approx(1e-6)
        assert max(map(max, found)) == found[5][0] == pytest.approx(1e-3)
        assert found[299][-1] == pytest.approx(1e-5, rel=0.01)
        found = rates(load('classification/attnscale_cait_s24_in1k'), 60, epoch_length=4)
        assert found[0][0] == pytest.approx(1e-6)
        assert max(map(max, found)) == found[1][0] == pytest.approx(5e-5)
        assert found[59][-1] == pytest.approx(1e-6, rel=0.05)


class TestModelIndex:
    """model-index.yml and the metafiles that it imports."""

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def entries():
        index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
        return {
            entry['Name']: entry
            for path in index['Import']
            for entry in yaml.safe_load((ROOT / path).read_text())['Models']
        }

    def test_names_every_published_config_and_no_other(self):
        entries = self.entries()
        assert sorted(entry['Config'] for entry in entries.values()) == sorted(
            f'configs/{leaf}.py' for leaf in PUBLISHED
        )
        assert all(Path(entry['Config']).stem == name for name, entry in entries.items())

    @pytest.mark.parametrize('leaf', PUBLISHED)
    def test_measured_parameters_and_recipe(self, leaf):
        entry, cfg = self.entries()[Path(leaf).name], load(leaf)
        assert entry['Metadata']['Parameters'] == parameters_of(leaf)
        assert entry['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size
        length = entry['Metadata'].get('Epochs') or entry['Metadata']['Iterations']
        assert length == (cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters)

    def test_weights_are_those_published_with_an_address(self):
        """As `mim download` reads them."""
        addresses = {row.config: row.address for row in PUBLISHED_WEIGHTS.values() if row.address}
        found = {entry['Config']: entry['Weights'] for entry in self.entries().values() if 'Weights' in entry}
        assert found == addresses and len(found) > 10

    def test_modelindex_reads_the_file(self):
        modelindex = pytest.importorskip('modelindex.load_model_index')
        index = modelindex.load(str(ROOT / 'model-index.yml'))
        index.build_models_with_collections()
        assert len(index.models) == len(PUBLISHED)

    @pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
    def test_readme_tables_agree_with_the_metafile(self, task):
        """Each row has the names, parameters and published figures of the metafile."""
        rows = [
            line for line in (ROOT / 'configs' / task / 'README.md').read_text().splitlines() if line.startswith('| [')
        ]
        entries = [entry for entry in self.entries().values() if entry['Config'].startswith(f'configs/{task}/')]
        assert len(rows) == len(entries)
        for entry in entries:
            (row,) = (row for row in rows if row.startswith(f'| [{entry["Name"]}]({entry["Name"]}.py)'))
            assert f'{entry["Metadata"]["Parameters"]:,}' in row
            assert f'{entry["Metadata"]["FLOPs"] / 1e9:.{2 if task == "classification" else 1}f} G' in row
            published = [str(value) for result in entry.get('Results', []) for value in result['Metrics'].values()]
            assert all(value in row for value in published)
            assert published or '–' in row
