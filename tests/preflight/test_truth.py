import importlib.util
import json

import numpy as np
import pytest
from harness import LIBRARIES
from mmengine.registry import METRICS, DefaultScope
from PIL import Image

from fcvit_mm.preflight import truth
from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.truth import FEEDS, NOT_FED, undefined_or_low


def check(cfg, number=None):
    """Return what is said against the validation set: the only line, or all of so many."""
    cfg.default_hooks.checkpoint.save_best = None  # it names a metric of the config's own evaluator
    found = data_problems(cfg, ['val_dataloader'])
    if number is None:
        (found,) = found
    else:
        assert len(found) == number, found
    return found


@pytest.mark.parametrize('task', LIBRARIES)
def test_good_data_score_perfectly_in_silence(own, said, task):
    check(own(task)[0], 0)
    assert said == []


def test_names_of_the_metrics_are_the_libraries(own):
    for task, library in LIBRARIES.items():
        cfg, _ = own(task)
        with DefaultScope.overwrite_default_scope(library), METRICS.switch_scope_and_registry(None) as registry:
            known = {name for name in {**FEEDS, **NOT_FED} if registry.get(name) is not None}
        missing = {
            'mmpretrain': {'Accuracy', 'SingleLabelMetric', 'MultiLabelMetric', 'AveragePrecision'},
            'mmdet': {'CocoMetric', 'VOCMetric', 'CocoPanopticMetric', 'LVISMetric'},
            'mmseg': {'IoUMetric', 'CityscapesMetric'},
        }[library] - known
        assert not missing
        assert cfg.default_scope == library


def test_metrics_with_scores_of_the_same_name(own):
    cfg, _ = own('classification')
    cfg.val_evaluator = [dict(type='Accuracy', topk=1), dict(type='Accuracy', topk=(1, 2))]
    assert check(cfg) == (
        'val_evaluator: two metrics compute accuracy/top1, which ends the evaluation: give one of them '
        "prefix='...', or remove it"
    )


# ---------------------------------------------------------------------------------------------------- detection


def test_annotations_without_iscrowd(own, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'val', lambda content: [each.pop('iscrowd') for each in content['annotations']])
    problem = check(cfg)
    assert problem.startswith('val_evaluator: ') and "have no 'iscrowd'" in problem and '"iscrowd": 0' in problem
    assert '(ids 1, 2, 3, ...)' in problem


def number_from(first):
    def change(content):
        for index, each in enumerate(content['annotations'], first):
            each['id'] = index

    return change


def test_id_0_is_a_remark_with_what_it_costs(own, said, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'val', number_from(0))
    check(cfg, 0)
    (line,) = said
    assert 'the ground truth itself scores only coco/bbox_mAP' in line and 'an annotation has the id 0' in line
    said.clear()
    change_annotations(data, 'val', number_from(7))
    check(cfg, 0)
    assert said == []


def only_crowds(content):
    for each in content['annotations']:
        each['iscrowd'] = 1


def one_image_empty_one_of_crowds(content):
    first, second = (image['id'] for image in content['images'][:2])
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] != first]
    for each in content['annotations']:
        each['iscrowd'] = int(each['image_id'] == second)


def test_empty_images_and_crowds_are_no_fault(own, said, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'val', one_image_empty_one_of_crowds)
    check(cfg, 0)
    assert not [line for line in said if 'never occur' not in line]
    change_annotations(data, 'val', only_crowds)
    check(cfg, 0)
    assert 'no object in the 5 images tested' in said[-1]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: [each.update(id=each['id'] + 1000) for each in content['images']], 'are not in ann_file'),
        (lambda content: content['images'][0].update(file_name='a.jpg'), 'have the ids of others'),
        (lambda content: content['categories'].reverse(), 'in another order'),
        (lambda content: content['categories'].pop(), 'lacks the categories triangle'),
        (lambda content: [each.update(bbox=[1, 1, 5, 5]) for each in content['annotations']], 'are not in the file'),
    ],
)
def test_file_of_the_evaluator(own, tmp_path, change, message):
    cfg, data = own('detection')
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    change(content)
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    assert 'other.json does not exist' in check(cfg)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    assert message in check(cfg)
    (tmp_path / 'other.json').write_text(json.dumps(content)[:-9])
    assert 'other.json cannot be read (JSONDecodeError' in check(cfg)


def test_names_that_are_permuted_over_the_ids_cost_nothing(own, said, tmp_path):
    cfg, data = own('detection')
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    for each, name in zip(content['categories'], ('cross', 'circle', 'square', 'star', 'triangle')):
        each['name'] = name
    (tmp_path / 'other.json').write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    check(cfg, 0)
    assert len(said) == 1 and 'results of single classes will have wrong names' in said[0]


@pytest.mark.parametrize(
    'mask', [[[1, 1, 9, 9]], [[]], [[5, 5]], [1, 1, 9, 1, 9, 9], [[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]], [], None]
)
def test_masks_that_pycocotools_cannot_read(own, change_annotations, mask):
    cfg, data = own('detection')
    # Without the step of the data set's own pipeline that loads masks.
    cfg.val_dataloader.dataset.pipeline[2].with_mask = False
    change_annotations(data, 'val', lambda content: content['annotations'][1].update(segmentation=mask))
    problem = check(cfg)
    assert 'have a segmentation that the metric cannot read (ids 2): ' in problem
    # Boxes can be evaluated all the same.
    cfg.val_evaluator.metric = 'bbox'
    check(cfg, 0)


def test_objects_that_the_data_set_skips_are_named(own, said, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'val', lambda content: content['annotations'][2].update(bbox=[3, 3, 0.5, 9]))
    check(cfg, 0)
    assert 'have an empty box' in said[0] and '(ids 3)' in said[0]
    assert (
        'the ground truth itself scores only coco/bbox_mAP' in said[1]
        and '(ids 3), and are skipped by the data set' in said[1]
    )


def test_subset_of_a_file(own, said):
    cfg, _ = own('detection', {'val_dataloader.dataset.indices': 3})
    check(cfg, 0)
    assert '2 images of the file' in said[-1] and 'are not in the data set and count as missed' in said[-1]


def test_part_of_a_large_set(own, said, monkeypatch):
    monkeypatch.setattr(truth, 'IMAGES', 2)
    check(own('detection')[0], 0)
    assert 'the ground truth of 2 of 5 images is evaluated by CocoMetric' in said[-1]


def two_objects_an_image(content):
    kept = {}
    for each in content['annotations']:
        kept.setdefault(each['image_id'], []).append(each)
    content['annotations'] = [each for found in kept.values() for each in found[:2]]


def test_numbers_of_proposals(own, said, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'val', two_objects_an_image)
    cfg.val_evaluator.update(metric=['bbox', 'proposal', 'proposal_fast'])
    check(cfg, 0)
    assert not [line for line in said if 'never occur' not in line]
    cfg.val_evaluator.update(metric='bbox', proposal_nums=(1, 10, 300))
    assert 'with proposal_nums=(1, 10, 300), which lacks 100' in check(cfg)
    cfg.val_evaluator.update(proposal_nums=(100,))
    assert 'CocoMetric fails on the data set (IndexError' in check(cfg)


def test_proposals_of_images_in_another_order(own, tmp_path, change_annotations):
    cfg, data = own('detection')
    content = json.loads(change_annotations(data, 'val', two_objects_an_image).read_text())
    content['images'].reverse()
    (tmp_path / 'other.json').write_text(json.dumps(content))
    cfg.val_evaluator.update(ann_file=str(tmp_path / 'other.json'), metric='bbox')
    check(cfg, 0)
    cfg.val_evaluator.metric = 'proposal_fast'
    assert 'proposal_fast pairs images by index' in check(cfg)


def test_evaluator_without_a_file(own, said):
    cfg, _ = own('detection')
    cfg.val_evaluator.ann_file = None
    assert 'does not pack' in check(cfg) or 'ground truth is required' in check(cfg)
    steps = cfg.val_dataloader.dataset.pipeline
    steps[-1].meta_keys = (*steps[-1].meta_keys, 'instances')
    check(cfg, 0)
    assert said == []
    steps[-1].meta_keys = ('img_path', 'ori_shape', 'img_shape', 'instances')
    assert "CocoMetric reads 'img_id' of each sample" in check(cfg)


def test_format_only(own, said):
    cfg, _ = own('detection')
    cfg.val_evaluator.update(format_only=True, outfile_prefix='x', ann_file='lost.json')
    assert check(cfg) == 'val_evaluator: ann_file lost.json does not exist' and 'format_only=True' in said[0]


def test_several_data_sets(own, said):
    cfg, _ = own('detection')
    leaf, metric = cfg.val_dataloader.dataset, cfg.val_evaluator
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, dict(leaf, indices=2)])
    cfg.val_evaluator = dict(
        type='MultiDatasetsEvaluator', metrics=[metric, dict(metric, metric='bbox')], dataset_prefixes=['a', 'b']
    )
    check(cfg, 0)
    assert '3 images of the file' in said[-1]
    cfg.val_evaluator.dataset_prefixes = ['a']
    assert '2 metrics and 1 dataset_prefixes for 2 data sets' in check(cfg)
    cfg.val_evaluator = metric
    check(cfg, 0)
    assert '2 images occur more than once' in said[-1]
    cfg.val_dataloader.dataset.datasets[1]['metainfo'] = dict(classes=('circle', 'cross', 'square', 'star'))
    assert 'which only MultiDatasetsEvaluator accepts' in '\n'.join(data_problems(cfg, ['val_dataloader']))


VOC = """
steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 128)),
         dict(type='LoadAnnotations', with_bbox=True),
         dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
val_dataloader['dataset'].update(pipeline=steps)
val_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP', eval_mode='11points')
test_evaluator = val_evaluator
test_dataloader = val_dataloader
"""


def test_voc(own, said, monkeypatch):
    cfg, _ = own('detection', more=VOC)
    monkeypatch.setattr('os.fork', lambda: pytest.fail('a process was forked beside threads'))
    check(cfg, 0)
    assert said == []
    steps = cfg.val_dataloader.dataset.pipeline
    cfg.val_dataloader.dataset.pipeline = [steps[0], steps[2], steps[1], steps[3]]
    assert 'Load the annotations after Resize' in check(cfg)
    cfg.val_dataloader.dataset.pipeline = [steps[0], steps[1], steps[3]]
    assert "VOCMetric reads 'labels' of each sample, which the pipeline of the data set does not pack" in check(cfg)
    cfg.val_evaluator.metric = 'recall'
    check(cfg, 0)
    assert 'is not checked with the ground truth: it only evaluates predictions of the first class' in said[-1]


def panoptic(cfg, data):
    """Two segments an image, a thing in front of stuff, in COCO's panoptic format."""
    (data / 'panoptic').mkdir(exist_ok=True)
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    annotations = []
    for image in content['images']:
        ids = np.full((64, 64), 300, np.int64)
        ids[10:30, 10:30] = 7
        name = image['file_name'].replace('.jpg', '.png')
        Image.fromarray(np.dstack([ids % 256, ids // 256, 0 * ids]).astype(np.uint8)).save(data / 'panoptic' / name)
        segments = [
            dict(id=7, category_id=1, iscrowd=0, bbox=[10, 10, 20, 20], area=400),
            dict(id=300, category_id=2, iscrowd=0, bbox=[0, 0, 64, 64], area=64 * 64 - 400),
        ]
        annotations.append(dict(image_id=image['id'], file_name=name, segments_info=segments))
    categories = [dict(id=1, name='thing', isthing=1), dict(id=2, name='stuff', isthing=0)]
    path = data / 'annotations' / 'panoptic.json'
    path.write_text(json.dumps(dict(images=content['images'], annotations=annotations, categories=categories)))
    leaf = cfg.val_dataloader.dataset
    leaf.update(
        type='CocoPanopticDataset',
        ann_file=str(path),
        data_prefix=dict(img='val2017/', seg='panoptic/'),
        metainfo=dict(classes=('thing', 'stuff'), thing_classes=('thing',), stuff_classes=('stuff',)),
    )
    leaf.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
    ]
    cfg.val_evaluator = dict(type='CocoPanopticMetric', ann_file=str(path), seg_prefix=str(data / 'panoptic'))
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 2
    return path


@pytest.mark.skipif(importlib.util.find_spec('panopticapi') is None, reason='panopticapi is not installed')
def test_panoptic(own, said):
    cfg, data = own('detection')
    path = panoptic(cfg, data)
    check(cfg, 0)
    assert said == []
    content = json.loads(path.read_text())
    for each in content['annotations'][0]['segments_info']:
        each['category_id'] = 3 - each['category_id']
    other = path.with_name('other.json')
    other.write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(other)
    assert 'not 100: segmentation maps' in check(cfg)
    cfg.val_evaluator.update(ann_file=str(path), seg_prefix=str(data / 'lost'))
    assert 'CocoPanopticMetric fails on the data set' in check(cfg)


@pytest.mark.skipif(importlib.util.find_spec('panopticapi') is not None, reason='panopticapi is installed')
def test_metric_whose_package_is_missing(own):
    cfg, data = own('detection')
    panoptic(cfg, data)
    assert 'CocoPanopticMetric cannot be built (RuntimeError: panopticapi is not installed' in check(cfg)


# ------------------------------------------------------------------------------------------------- segmentation


def test_maps_of_turned_images(own):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        Image.fromarray(np.asarray(Image.open(path))[:32]).save(path)
    assert any('but its image has' in line for line in data_problems(cfg, ['val_dataloader']))


def test_one_image_that_exif_data_turns(own, said):
    cfg, data = own('segmentation')
    path = sorted((data / 'images' / 'validation').iterdir())[0]
    label = sorted((data / 'annotations' / 'validation').iterdir())[0]
    Image.fromarray(np.asarray(Image.open(label))[:32]).save(label)
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).resize((64, 32)).save(path, exif=exif)
    check(cfg, 0)
    assert f'1 images will be skipped: {label} has size (64, 32), but its image has (32, 64)' in said[0]
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    del said[:]
    assert data_problems(cfg, ['test_dataloader']) == []
    assert f'1 images will be skipped: {label} has size (64, 32), but its image has (32, 64)' in said[0]


def test_everything_is_ignored(own):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        Image.new('L', (64, 64), 0).save(path)
    cfg.val_dataloader.dataset.test_mode = True  # the data set is not asked what it teaches
    assert 'all pixels of the 5 segmentation maps tested are ignored (255)' in check(cfg)


def test_zero_label_is_reduced_in_one_place_only(own):
    cfg, _ = own('segmentation', {'val_dataloader.dataset.reduce_zero_label': False})
    assert any('reduce_zero_label' in line for line in data_problems(cfg, ['val_dataloader']))


def test_classes_that_count_although_they_never_occur(own, said):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'validation').iterdir():
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where(labels == 6, 5, labels).astype(np.uint8)).save(path)
    check(cfg, 0)
    assert '1 of 6 classes (triangle) occur in none of the 5 segmentation maps tested' in said[-1]
    cfg.val_evaluator.nan_to_num = 0
    check(cfg, 0)
    assert (
        'the ground truth itself scores only' in said[-1]
        and 'the classes triangle occur in none of 5 segmentation maps' in said[-1]
    )


def test_more_labels_than_names(own):
    """The head has room for them, the metric has not."""
    cfg, _ = own('segmentation')
    names = ('background', 'circle', 'cross')
    cfg.val_dataloader.dataset.metainfo = dict(classes=names, palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    assert 'but the data set has 3 classes' in '\n'.join(data_problems(cfg, ['val_dataloader']))


def test_samples_without_maps(own):
    cfg, _ = own('segmentation')
    cfg.val_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    assert "IoUMetric reads 'gt_sem_seg' of each sample, which the pipeline of the data set does not pack" in check(cfg)


def test_no_folder_is_made_for_results(own, tmp_path):
    cfg, _ = own('segmentation')
    cfg.val_evaluator.output_dir = str(tmp_path / 'results')
    check(cfg, 0)
    assert not (tmp_path / 'results').exists()


# ----------------------------------------------------------------------------------------------- classification


def test_topk_above_the_classes(own):
    cfg, _ = own('classification')
    cfg.val_evaluator.topk = (1, 9)
    assert 'topk=(1, 9), but there are 5 classes: set topk=(1,)' in check(cfg)


def test_classes_that_never_occur_cost_precision(own, said):
    cfg, data = own('classification')
    cfg.val_evaluator = [dict(type='Accuracy'), dict(type='SingleLabelMetric'), dict(type='ConfusionMatrix')]
    check(cfg, 0)
    assert said == []
    for path in (data / 'val' / 'star').iterdir():
        path.unlink()
    (data / 'val' / 'star' / 'x.txt').write_text('')
    check(cfg, 0)
    assert (
        'SingleLabelMetric: the ground truth itself scores only' in said[-1]
        and 'the classes star never occur' in said[-1]
    )


def several_labels(cfg, data, difficult=False):
    """A data set of mmpretrain for several labels an image."""
    names = ('circle', 'cross', 'square', 'star', 'triangle')
    images = sorted((data / 'val').rglob('*.jpg'))
    rows = [
        dict(img_path=str(path.relative_to(data)), gt_label=[place, (place + 1) % 5])
        for place, path in enumerate(images)
    ]
    for row in rows:
        row.update(gt_label_difficult=[row['gt_label'].pop()] if difficult else [])
    (data / 'val.json').write_text(json.dumps(dict(metainfo=dict(classes=names), data_list=rows)))
    leaf = dict(
        type='MultiLabelDataset', data_root=str(data), ann_file='val.json', data_prefix='',
        pipeline=[
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=64),
            dict(type='PackInputs', meta_keys=('img_path', 'ori_shape', 'gt_label_difficult')),
        ],
    )  # fmt: skip
    cfg.val_dataloader.dataset = leaf
    return leaf


def test_several_labels_an_image(own, said):
    cfg, data = own('classification')
    leaf = several_labels(cfg, data)
    cfg.val_evaluator = [
        dict(type='MultiLabelMetric', thr=0.5),
        dict(type='AveragePrecision'),
        dict(type='VOCMultiLabelMetric', thr=0.5, prefix='voc'),
        dict(type='VOCAveragePrecision', prefix='voc'),
    ]
    check(cfg, 0)
    assert said == []
    cfg.val_evaluator = dict(type='MultiLabelMetric', topk=1)
    check(cfg, 0)
    assert 'its settings (thr=None, topk=1) do not fit the labels' in said[-1]
    said.clear()
    several_labels(cfg, data, difficult=True)
    cfg.val_evaluator = dict(type='VOCAveragePrecision')
    check(cfg, 0)
    assert said == []
    leaf['pipeline'][-1].pop('meta_keys')
    cfg.val_dataloader.dataset = leaf
    assert "reads 'gt_label_difficult' of each sample" in check(cfg)


# -------------------------------------------------------------------------------------------------------- others


class OwnMetric:
    """No metric of the libraries."""


def test_metrics_that_cannot_be_fed_are_named(own, said):
    cfg, _ = own('segmentation')
    METRICS.register_module(name='OwnMetric', module=OwnMetric, force=True)
    cfg.val_evaluator = [dict(type='CityscapesMetric', output_dir='x'), dict(type='OwnMetric')]
    check(cfg, 0)
    assert 'CityscapesMetric is not checked with the ground truth: it reads files' in said[0]
    assert 'OwnMetric is not checked with the ground truth: the predictions that it expects are unknown' in said[1]


def test_metrics_that_do_not_exist(own):
    cfg, _ = own('segmentation')
    cfg.val_evaluator = dict(type='NoSuchMetric')
    assert 'NoSuchMetric cannot be built' in check(cfg)
    cfg.val_evaluator = dict(type='Evaluator', metrics=[dict(type='IoUMetric', iou_metrics=['mIou'])])
    assert 'IoUMetric fails on the data set (KeyError' in check(cfg)


def test_metrics_that_inherit(own, change_annotations):
    from mmdet.evaluation.metrics import CocoMetric

    class Mine(CocoMetric):
        pass

    cfg, data = own('detection')
    change_annotations(data, 'val', lambda content: [each.pop('iscrowd') for each in content['annotations']])
    cfg.val_evaluator.type = Mine
    assert "have no 'iscrowd'" in check(cfg)


def test_scores():
    scores = {'a': 1.0, 'b': 0.9995, 'c': 0.5, 'd': -1.0, 'e': float('nan'), 'f': [0.0]}
    undefined, low = undefined_or_low(scores, 1.0)
    assert set(undefined) == {'d', 'e'} and low == {'c': 0.5}


def test_ignored_label_of_the_data_set_and_of_the_metric(own):
    cfg, data = own('segmentation', {'val_dataloader.dataset.ignore_index': 250})
    for path in (data / 'annotations' / 'validation').iterdir():
        with Image.open(path) as image:
            image.point(lambda label: label or 251).save(path)
    assert data_problems(cfg, ['val_dataloader']) == [
        'val_evaluator: the data set has ignore_index=250, but IoUMetric ignores the label 255: set '
        'ignore_index=250 of the metric in val_evaluator and test_evaluator'
    ]
    cfg.val_evaluator.ignore_index = 250
    assert data_problems(cfg, ['val_dataloader']) == []
