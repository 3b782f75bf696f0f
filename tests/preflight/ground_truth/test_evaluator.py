"""Evaluators of all tasks: correct data have perfect scores, and metrics that are not checked are named."""

import importlib.util
import sys

import numpy as np
import pytest
from harness import LIBRARIES
from mmengine.registry import METRICS, DefaultScope
from problems import validation_problems

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.ground_truth.evaluator import METRIC_CHECKS, NOT_CHECKED, metric_check


@pytest.mark.parametrize('task', LIBRARIES)
def test_correct_data_have_perfect_scores(make_config, logged, task):
    validation_problems(make_config(task)[0], 0)
    assert logged == []


def test_checked_metrics_exist_in_the_libraries(make_config):
    for task, library in LIBRARIES.items():
        cfg, _ = make_config(task)
        with DefaultScope.overwrite_default_scope(library), METRICS.switch_scope_and_registry(None) as registry:
            known = {name for name in {**METRIC_CHECKS, **NOT_CHECKED} if registry.get(name) is not None}
        missing = {
            'mmpretrain': {'Accuracy', 'SingleLabelMetric', 'MultiLabelMetric', 'AveragePrecision'},
            'mmdet': {'CocoMetric', 'VOCMetric', 'CocoPanopticMetric', 'LVISMetric'},
            'mmseg': {'IoUMetric', 'CityscapesMetric'},
        }[library] - known
        assert not missing
        assert cfg.default_scope == library


def test_two_metrics_with_the_same_score(make_config):
    cfg, _ = make_config('classification')
    cfg.val_evaluator = [dict(type='Accuracy', topk=1), dict(type='Accuracy', topk=(1, 2))]
    assert validation_problems(cfg) == (
        'val_evaluator: two metrics compute accuracy/top1, which ends the evaluation: give one of them '
        "prefix='...', or remove it"
    )


def test_evaluator_without_ann_file(make_config, logged):
    cfg, _ = make_config('detection')
    cfg.val_evaluator.ann_file = None
    assert 'does not pack' in validation_problems(cfg) or 'ground truth is required' in validation_problems(cfg)
    steps = cfg.val_dataloader.dataset.pipeline
    steps[-1].meta_keys = (*steps[-1].meta_keys, 'instances')
    validation_problems(cfg, 0)
    assert logged == []
    steps[-1].meta_keys = ('img_path', 'ori_shape', 'img_shape', 'instances')
    assert "CocoMetric reads 'img_id' of each sample" in validation_problems(cfg)


def test_format_only_of_detections(make_config, logged):
    cfg, _ = make_config('detection')
    cfg.val_evaluator.update(format_only=True, outfile_prefix='x', ann_file='lost.json')
    assert validation_problems(cfg) == 'val_evaluator: ann_file lost.json does not exist'
    assert 'format_only=True' in logged[0]
    del cfg.val_evaluator['outfile_prefix']
    cfg.val_evaluator.ann_file = None
    assert 'no path to write results to (outfile_prefix must be not): set outfile_prefix' in validation_problems(cfg)


def test_format_only_of_segmentation_maps(make_config):
    cfg, _ = make_config('segmentation')
    cfg.val_evaluator.format_only = True
    assert 'no output_dir to write results to: set output_dir' in validation_problems(cfg)


def test_concatenated_validation_sets(make_config, logged):
    cfg, _ = make_config('detection')
    leaf, metric = cfg.val_dataloader.dataset, cfg.val_evaluator
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, dict(leaf, indices=2)])
    cfg.val_evaluator = dict(
        type='MultiDatasetsEvaluator', metrics=[metric, dict(metric, metric='bbox')], dataset_prefixes=['a', 'b']
    )
    validation_problems(cfg, 0)
    assert '3 images of the file' in logged[-1]
    cfg.val_evaluator.dataset_prefixes = ['a']
    assert '2 metrics and 1 dataset_prefixes for 2 data sets' in validation_problems(cfg)
    cfg.val_evaluator = metric
    validation_problems(cfg, 0)
    assert '2 images occur more than once' in logged[-1]
    cfg.val_dataloader.dataset.datasets[1]['metainfo'] = dict(classes=('circle', 'cross', 'square', 'star'))
    assert 'which only MultiDatasetsEvaluator accepts' in '\n'.join(data_problems(cfg, ['val_dataloader']))


def test_output_dir_is_not_created(make_config, tmp_path):
    cfg, _ = make_config('segmentation')
    cfg.val_evaluator.output_dir = str(tmp_path / 'results')
    validation_problems(cfg, 0)
    assert not (tmp_path / 'results').exists()


class OwnMetric:
    """A user's metric."""


def test_metrics_that_are_not_checked_are_named(make_config, logged):
    cfg, _ = make_config('segmentation')
    METRICS.register_module(name='OwnMetric', module=OwnMetric, force=True)
    cfg.val_evaluator = [dict(type='CityscapesMetric', output_dir='x'), dict(type='OwnMetric')]
    validation_problems(cfg, 0)
    assert 'CityscapesMetric is not checked with the ground truth: it reads files' in logged[0]
    assert 'OwnMetric is not checked with the ground truth: the predictions that it expects are unknown' in logged[1]


def test_unknown_metrics(make_config):
    cfg, _ = make_config('segmentation')
    cfg.val_evaluator = dict(type='NoSuchMetric')
    assert 'NoSuchMetric cannot be built: NoSuchMetric is not in the ' in validation_problems(cfg)
    cfg.val_evaluator = dict(type='Evaluator', metrics=[dict(type='IoUMetric', iou_metrics=['mIou'])])
    assert 'IoUMetric fails on the data set (KeyError' in validation_problems(cfg)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(metric='mask'), "metric should be one of 'bbox', 'segm', 'proposal', 'proposal_fast', but got mask. "),
        (dict(classwise=True, formats_only=True), "keyword argument 'formats_only'; did you mean 'format_only'? "),
    ],
)
def test_invalid_settings_of_a_metric(make_config, settings, message):
    cfg, _ = make_config('detection')
    cfg.val_evaluator.update(settings)
    found = validation_problems(cfg)
    assert 'val_evaluator: CocoMetric cannot be built: ' in found and f'{message}Correct its settings' in found


@pytest.mark.parametrize('metrics', ['bbox', ['bbox']])
def test_metrics_given_as_strings(make_config, metrics):
    cfg, _ = make_config('detection')
    cfg.val_evaluator.metrics = metrics
    assert "val_evaluator has metrics='bbox', expected metrics, such as dict(type=" in validation_problems(cfg)


def test_subclasses_of_metrics_are_checked(make_config, change_annotations):
    from mmdet.evaluation.metrics import CocoMetric

    class Mine(CocoMetric):
        pass

    cfg, data = make_config('detection')
    change_annotations(data, 'val', lambda content: [each.pop('iscrowd') for each in content['annotations']])
    cfg.val_evaluator.type = Mine
    assert "have no 'iscrowd'" in validation_problems(cfg)


def test_metrics_of_another_library(make_config):
    pytest.importorskip('mmdet')
    cfg, _ = make_config('classification')
    cfg.val_evaluator = dict(type='mmdet.CocoMetric', metric='bbox')
    assert validation_problems(cfg) == (
        'val_evaluator: CocoMetric is a metric of mmdet, but the model (ImageClassifier) is one of mmpretrain, whose '
        'predictions it cannot read: use a metric of mmpretrain'
    )


@pytest.fixture
def lvis(monkeypatch, tmp_path):
    """Return a function that installs a package lvis with the given source of lvis/eval.py."""
    from mmdet.evaluation.metrics import lvis_metric

    def install(text):
        (tmp_path / 'lvis').mkdir()
        (tmp_path / 'lvis' / '__init__.py').touch()
        (tmp_path / 'lvis' / 'eval.py').write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(lvis_metric.LVISMetric, '__init__', lambda self, **options: None)

    yield install
    for name in ('lvis', 'lvis.eval'):
        sys.modules.pop(name, None)


@pytest.mark.parametrize('text, works', [('x = np.float\n', False), ('x = np.float64\n', True)])
def test_lvis_package_that_does_not_support_the_installed_numpy(make_config, lvis, text, works):
    text = f'class Numpy:\n    float = float64 = float\n\n\nnp = Numpy()\n{text}'
    lvis(text)
    cfg, data = make_config('detection')
    ann_file = str(data / 'annotations' / 'instances_val2017.json')
    cfg.val_evaluator = dict(type='LVISMetric', ann_file=ann_file)
    if works or hasattr(np, 'float'):
        assert validation_problems(cfg, 0) == []
    else:
        problem = validation_problems(cfg)
        assert 'the installed package lvis uses np.float, which NumPy' in problem
        assert problem.endswith('lvis/eval.py')


def test_boxes_of_open_images(make_config):
    """Without them the first validation would end the run."""
    cfg, _ = make_config('detection')
    cfg.val_evaluator = dict(type='OpenImagesMetric')
    assert 'to meta_keys of PackDetInputs' in validation_problems(cfg)
    cfg.val_dataloader.dataset.pipeline[-1].meta_keys += ('instances',)
    assert validation_problems(cfg, 0) == []


def test_missing_ann_file_of_a_metric_that_is_not_checked(make_config):
    cfg, _ = make_config('detection')
    cfg.val_evaluator = dict(type='LVISMetric', ann_file='gone.json')
    assert validation_problems(cfg).startswith('val_evaluator: ann_file gone.json does not exist: give ')


def test_missing_lvis_package(make_config):
    if importlib.util.find_spec('lvis') is not None:
        pytest.skip('it is installed')
    cfg, _ = make_config('detection')
    cfg.val_evaluator.type = 'LVISMetric'
    assert 'Package lvis is not installed' in validation_problems(cfg)
    cfg.train_dataloader.dataset.type = 'LVISV1Dataset'
    (problem,) = data_problems(cfg, ['train_dataloader'])
    assert 'pip install lvis (version 0.5.3 loads the data; with NumPy 1.24 or later' in problem


def test_metrics_of_other_libraries_with_the_same_name_are_not_checked():
    """Such as MMPose's CocoMetric, which evaluates keypoints, and MMAction2's ConfusionMatrix."""
    coco = pytest.importorskip('mmdet.evaluation').CocoMetric
    assert metric_check(coco)[0] and metric_check(type('OtherMetric', (coco,), {}))[0]
    for name in ('CocoMetric', 'ConfusionMatrix', 'DepthMetric'):
        check, reason = metric_check(type(name, (), {}))
        assert check is None and reason == 'the predictions that it expects are unknown'
