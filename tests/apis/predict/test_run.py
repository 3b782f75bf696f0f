"""Predictions of folders agree with those of the libraries' inferencers; skipped images, videos, tables."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from predictions import CLASSES, predict_to, table

from fcvit_mm.apis.predict import BatchPredictor, PredictionError
from fcvit_mm.apis.predict import run as run_module
from fcvit_mm.errors import LibraryError


def test_classes_agree_with_mmpretrain(model_of, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    config, checkpoint, images = model_of('classification')
    done = predict_to((config, checkpoint, images), tmp_path, batch_size=2, top=0)
    rows = table(tmp_path / 'predictions.csv')
    assert done.images == 5 and len(rows) == 25
    library = ImageClassificationInferencer(config, pretrained=checkpoint, device='cpu')
    for row, result in zip(rows[::5], library([str(images / row['image']) for row in rows[::5]])):
        assert int(row['class_id']) == result['pred_label'] and row['rank'] == '1'
        assert float(row['probability']) == pytest.approx(result['pred_score'], abs=1e-5)
    assert {row['class'] for row in rows} == set(CLASSES)
    assert sum(float(row['probability']) for row in rows[:5]) == pytest.approx(1, abs=1e-5)


def test_boxes_and_masks_agree_with_mmdet(model_of, tmp_path):
    from mmdet.apis import DetInferencer
    from pycocotools import mask as coder
    from pycocotools.coco import COCO

    config, checkpoint, images = model_of('detection')
    predict_to((config, checkpoint, images), tmp_path)
    library = DetInferencer(config, weights=checkpoint, device='cpu', show_progress=False)
    written = COCO(str(tmp_path / 'annotations.json'))
    results = written.loadRes(str(tmp_path / 'results.json'))
    assert len(written.imgs) == 5 and [each['name'] for each in written.cats.values()][:2] == ['circle', 'cross']
    compared = 0
    for number, image in written.imgs.items():
        expected = library(str(images / image['file_name']), return_datasamples=True)['predictions'][0].pred_instances
        found = results.imgToAnns[number]
        assert len(found) == len(expected)
        for one, box, score, label, mask in zip(
            found, expected.bboxes, expected.scores, expected.labels, expected.masks
        ):
            left, top, width, height = one['bbox']
            assert box.tolist() == pytest.approx([left, top, left + width, top + height], abs=0.01)
            assert one['score'] == pytest.approx(float(score), abs=1e-5) and one['category_id'] == int(label) + 1
            assert (coder.decode(one['segmentation']) == mask.numpy()).all()
            compared += 1
    assert compared


def test_segmentation_maps_agree_with_mmseg(model_of, tmp_path):
    from mmseg.apis import MMSegInferencer

    config, checkpoint, images = model_of('segmentation')
    predict_to((config, checkpoint, images), tmp_path)
    library = MMSegInferencer(config, weights=checkpoint, device='cpu')
    rows = table(tmp_path / 'labels.csv')
    assert len(rows) == 5
    for row in rows:
        image = Image.open(tmp_path / row['labels'])
        expected = library(str(images / row['image']), return_datasamples=True).pred_sem_seg.data[0].numpy()
        assert image.mode == 'P' and (np.asarray(image) == expected).all()
        assert image.getpalette()[:6] == [9, 9, 9, 255, 0, 0]
        assert row['classes'] == ' '.join(map(str, np.unique(expected)))
    assert [row['class'] for row in table(tmp_path / 'classes.csv')][0] == 'background'


def predict_ground_truth(model_of, monkeypatch):
    """Replace the predictions by the ground truth of the annotation file."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    from pycocotools.coco import COCO

    path = next(iter(model_of('detection')[2].parent.glob('annotations/instances_val*.json')))
    coco = COCO(str(path))
    # The order of the classes is that of the config, not of the file.
    labels = {number: index for index, number in enumerate(sorted(coco.cats))}
    names = {image['file_name']: number for number, image in coco.imgs.items()}

    def step(self, data):
        samples = []
        for each in data:
            found = coco.imgToAnns[names[each['data_samples'].img_path]]
            boxes = torch.tensor([one['bbox'] for one in found]).view(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            masks = [torch.from_numpy(coco.annToMask(one).astype(bool)) for one in found]
            instances = InstanceData(
                bboxes=boxes,
                scores=torch.ones(len(found)),
                labels=torch.tensor([labels[one['category_id']] for one in found]).long(),
                masks=torch.stack(masks),
            )
            samples.append(DetDataSample(pred_instances=instances))
        return samples

    monkeypatch.setattr(BatchPredictor, '_step', step)
    return path, coco


def test_ground_truth_as_predictions_has_perfect_scores(model_of, tmp_path, monkeypatch):
    from mmdet.datasets import CocoDataset
    from pycocotools.cocoeval import COCOeval

    path, coco = predict_ground_truth(model_of, monkeypatch)
    content = json.loads(path.read_text())
    for image in content['images']:
        image['id'] += 1000
    for one in content['annotations']:
        one['image_id'] += 1000
        one['category_id'] = 7 * one['category_id']
    for category in content['categories']:
        category['id'] *= 7
    (tmp_path / 'other.json').write_text(json.dumps(content))
    predict_to(model_of('detection'), tmp_path / 'out', coco=str(tmp_path / 'other.json'))
    annotated = type(coco)(str(tmp_path / 'other.json'))
    for kind in ('bbox', 'segm'):
        evaluation = COCOeval(annotated, annotated.loadRes(str(tmp_path / 'out' / 'results.json')), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == 1
    # The predictions can be used as a training set: its polygons cover the same pixels as the masks.
    dataset = CocoDataset(
        ann_file=str(tmp_path / 'out' / 'annotations.json'),
        metainfo=dict(classes=tuple(category['name'] for category in content['categories'])),
        data_prefix=dict(img=str(model_of('detection')[2])),
        pipeline=[],
    )
    written = type(coco)(str(tmp_path / 'out' / 'annotations.json'))
    assert len(dataset) == 5 and len(written.anns) == len(content['annotations'])
    for one, other in zip(written.anns.values(), sorted(content['annotations'], key=lambda one: one['image_id'])):
        assert one['area'] == pytest.approx(annotated.annToMask(other).sum(), abs=1)
        found, expected = written.annToMask(one), annotated.annToMask(other)
        assert (found == expected).all()


def test_corrupt_images_are_skipped_and_listed(model_of, tmp_path, shards_of_two):
    model = model_of('segmentation')
    folder = tmp_path / 'in'
    (folder / 'below').mkdir(parents=True)
    for number, path in enumerate(sorted(model[2].iterdir())):
        (folder / 'below' / f'{number}.jpg').write_bytes(path.read_bytes())
    (folder / 'below' / '1.jpg').write_bytes((folder / 'below' / '0.jpg').read_bytes()[:300])
    (folder / 'below' / '2.jpg').write_bytes(b'')
    (folder / 'list.txt').write_text('# some\nbelow/0.jpg\n\nbelow/1.jpg\nbelow/gone.jpg\n')
    done = predict_to(model, tmp_path / 'out', [str(folder)], batch_size=2, features=True)
    assert done.skipped == 2 and len(table(tmp_path / 'out' / 'labels.csv')) == 3
    assert [row['image'] for row in table(tmp_path / 'out' / 'skipped.csv')] == ['1.jpg', '2.jpg']
    assert 'empty' in table(tmp_path / 'out' / 'skipped.csv')[1]['reason']
    assert [row['image'] for row in table(tmp_path / 'out' / 'features.csv')] == ['0.jpg', '3.jpg', '4.jpg']
    assert np.load(tmp_path / 'out' / 'features.npy').shape == (3, 32)
    done = predict_to(model, tmp_path / 'listed', [str(folder / 'list.txt')])
    assert done.images == 3 and done.skipped == 2
    assert 'does not exist' in table(tmp_path / 'listed' / 'skipped.csv')[1]['reason']
    with pytest.raises(PredictionError, match='all 1 images were skipped; first reason: .*empty'):
        predict_to(model, tmp_path / 'none', [str(folder / 'below' / '2.jpg')])
    assert (tmp_path / 'none' / 'skipped.csv').exists()
    (folder / 'below' / '2.jpg').write_bytes((folder / 'below' / '0.jpg').read_bytes())
    assert not predict_to(model, tmp_path / 'none', [str(folder / 'below' / '2.jpg')]).skipped
    assert (tmp_path / 'none' / 'labels.csv').exists() and not (tmp_path / 'none' / 'skipped.csv').exists()
    again = predict_to(model, tmp_path / 'listed', [str(folder / 'list.txt')])
    assert not again.written and again.skipped == 2


def test_image_whose_tiles_cannot_be_prepared_is_skipped(mixed, tmp_path):
    pytest.importorskip('sahi')
    model = mixed('segmentation')
    cv2.imwrite(str(model[2] / 'thin.png'), np.zeros((1, 600, 3), np.uint8))
    for options in (dict(tile=512), dict(batch_size=2)):
        done = predict_to(model, tmp_path / f'out_{len(options)}_{options.get("tile")}', draw=True, **options)
        assert done.images == 6 and done.skipped == 1
    rows = table(tmp_path / 'out_1_512' / 'skipped.csv')
    assert [row['image'] for row in rows] == ['thin.png'] and 'cannot be prepared by the test pipeline' in rows[0][
        'reason'
    ]


def test_errors_name_the_image(model_of, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError('no luck')

    model = model_of('segmentation')
    names = [path.name for path in sorted(model[2].iterdir())]
    monkeypatch.setattr(run_module, 'draw_sample', fail)
    with pytest.raises(
        LibraryError, match=f'drawing the predictions of {names[0]} failed: .*no luck.* Omit --draw, or'
    ):
        predict_to(model, tmp_path / 'drawn', draw=True)
    monkeypatch.setattr(BatchPredictor, '_step', fail)
    message = f'predicting {", ".join(names[:3])} and 1 more with .*.py failed: .*no luck.* Check the config'
    with pytest.raises(LibraryError, match=message):
        predict_to(model, tmp_path / 'batch', batch_size=4)


def test_predictions_are_drawn_on_an_image_of_one_pixel(model_of, tmp_path):
    model = model_of('segmentation')
    cv2.imwrite(str(tmp_path / 'one.png'), np.zeros((1, 1, 3), np.uint8))
    predict_to(model, tmp_path / 'out', [str(tmp_path / 'one.png')], draw=True)
    assert cv2.imread(str(tmp_path / 'out' / 'drawn' / 'one.png')).shape == (1, 1, 3)


def test_frames_of_a_video_are_predicted(model_of, tmp_path):
    model = model_of('classification')
    writer = cv2.VideoWriter(str(tmp_path / 'clip.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), 10, (64, 64))
    for number in range(5):
        writer.write(np.full((64, 64, 3), 40 * number, np.uint8))
    writer.release()
    inputs = [str(model[2] / 'star'), str(tmp_path / 'clip.mp4')]
    done = predict_to(model, tmp_path / 'out', inputs, batch_size=2, draw=True, top=1)
    assert done.images == 6 and not done.skipped
    names = [row['image'] for row in table(tmp_path / 'out' / 'predictions.csv')]
    assert [name.endswith(f'clip.mp4/{number:06d}.png') for number, name in enumerate(names[1:])] == [True] * 5
    drawn = sorted((tmp_path / 'out' / 'drawn').rglob('clip.mp4/*.png'))
    assert len(drawn) == 5
    assert cv2.imread(str(drawn[4]))[-20:].mean() > 100 > cv2.imread(str(drawn[1]))[-20:].mean()


def test_predictions_are_written_as_parquet(model_of, tmp_path):
    pytest.importorskip('pyarrow')
    from pyarrow import parquet

    predict_to(model_of('classification'), tmp_path, table='parquet')
    found = parquet.read_table(tmp_path / 'predictions.parquet').to_pydict()
    assert len(found['image']) == 25 and found['rank'][:5] == [1, 2, 3, 4, 5] and found['class_id'][0] in range(5)
