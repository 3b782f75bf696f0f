"""The output folder: interrupted runs are resumed, other folders are refused, files are complete."""

import json
import os
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from predictions import contents, predict_to

from fcvit_mm.apis.predict import BatchPredictor, Options, PredictionError
from fcvit_mm.apis.predict import folder as run_folder
from fcvit_mm.apis.predict.folder import RESULTS, Shards, lock_results
from fcvit_mm.engine import machine
from fcvit_mm.engine.config import load_config
from fcvit_mm.images import ImageError

#: The test pipeline of the classifier after its loading step.
REST = [dict(type='Resize', scale=64), dict(type='PackInputs')]


@contextmanager
def stopped_at(monkeypatch, image):
    """Interrupt a run at an image."""
    original = BatchPredictor._step

    def step(self, data):
        if any(each['data_samples'].img_path == image for each in data):
            raise KeyboardInterrupt
        return original(self, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BatchPredictor, '_step', step)
        yield


def test_invalid_output_folders_are_refused(model_of, tmp_path):
    model = model_of('classification')
    with pytest.raises(PredictionError, match='is inside .*, whose images are predicted'):
        predict_to(model, model[2] / 'out')
    (tmp_path / 'list.txt').write_text(f'{model[2]}\n')
    with pytest.raises(PredictionError, match='is inside .*, whose images are predicted'):
        predict_to(model, model[2] / 'out', [str(tmp_path / 'list.txt')])
    (tmp_path / 'file').write_text('')
    with pytest.raises(PredictionError, match='file is a file: give a folder'):
        predict_to(model, tmp_path / 'file')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'run.json').write_text('[1]')
    with pytest.raises(PredictionError, match='run.json was not written by this command'):
        predict_to(model, tmp_path / 'out')
    # The folder of a data set, which contains annotations or segmentation maps.
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'annotations.json').write_text('{}')
    (tmp_path / 'data' / 'labels').symlink_to(tmp_path)
    with pytest.raises(PredictionError, match=r'data contains annotations.json, labels, but no run.json, .*overwrite'):
        predict_to(model, tmp_path / 'data')
    assert sorted(path.name for path in (tmp_path / 'data').iterdir()) == ['annotations.json', 'labels']
    with pytest.raises(ImageError, match='gone does not exist'):
        predict_to(model, tmp_path / 'new', [str(tmp_path / 'gone')])
    assert not (tmp_path / 'new').exists()


def test_all_results_are_recognized(model_of, tmp_path):
    pytest.importorskip('pyarrow')
    more = dict(classification=dict(table='parquet'), detection=dict(features=True), segmentation=dict(draw=True))
    found = {'run.json'}
    for task, options in more.items():
        inputs = [str(model_of(task)[2]), str(tmp_path / 'list.txt')]
        (tmp_path / 'list.txt').write_text('gone.jpg\n')
        predict_to(model_of(task), tmp_path / task, inputs, **options)
        found |= {path.name for path in (tmp_path / task).iterdir() if not path.name.startswith('.')}
    assert found | {'predictions.csv'} == {'run.json', *RESULTS}


def test_results_of_another_run_are_not_continued(model_of, tmp_path):
    model = model_of('classification')
    predict_to(model, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(PredictionError, match='with different top: give another folder'):
        predict_to(model, tmp_path, top=2)
    content = torch.load(model[1])
    content['state_dict']['head.fc.bias'] += 1
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(PredictionError, match='different weights'):
        predict_to((model[0], str(tmp_path / 'other.pth'), model[2]), tmp_path)
    with pytest.raises(PredictionError, match='different images'):
        predict_to(model, tmp_path, [str(model[2] / 'star')])
    (tmp_path / 'other.pth').unlink()
    assert contents(tmp_path) == before


def test_changed_pipeline_is_another_run(model_of, tmp_path):
    model = model_of('classification')
    predict_to(model, tmp_path / 'out')
    other = tmp_path / 'other.py'
    step = "dict(type='LoadImageFromFile', color_type='color_ignore_orientation')"
    other.write_text(f"_base_ = '{model[0]}'\ntest_dataloader = dict(dataset=dict(pipeline=[{step}, *{REST}]))\n")
    with pytest.raises(PredictionError, match=r'with different config \(an update of .*\): give another folder'):
        predict_to((str(other), *model[1:]), tmp_path / 'out')


@pytest.mark.parametrize('lacking', ['images_state', 'features', 'shard_size'])
def test_results_of_another_version_are_not_continued(lacking, model_of, tmp_path):
    """They are not said to have other settings or changed images."""
    model = model_of('classification')
    predict_to(model, tmp_path)
    run = json.loads((tmp_path / 'run.json').read_text())
    del run[lacking]
    (tmp_path / 'run.json').write_text(json.dumps(run))
    with pytest.raises(
        PredictionError, match=f'of another version of this package, whose run.json lacks {lacking}: give'
    ):
        predict_to(model, tmp_path)


def test_run_with_syncbn_is_resumed_without_a_gpu(model_of, monkeypatch):
    config, checkpoint, _ = model_of('segmentation')
    assert 'SyncBN' in load_config(config).pretty_text

    def fingerprint():
        return BatchPredictor(load_config(config), checkpoint, Options(device='cpu')).fingerprint()

    found = fingerprint()
    monkeypatch.setattr(machine, 'get_device', lambda: 'cuda')
    assert fingerprint() == found


def test_changed_coco_ids_are_another_run(model_of, tmp_path):
    model = model_of('detection')
    content = json.loads((model[2].parent / 'annotations' / 'instances_val2017.json').read_text())
    path = tmp_path / 'ids.json'
    path.write_text(json.dumps(content))
    predict_to(model, tmp_path / 'out', coco=str(path))
    path.rename(tmp_path / 'moved.json')
    assert not predict_to(model, tmp_path / 'out', coco=str(tmp_path / 'moved.json')).written
    for image in content['images']:
        image['id'] += 1000
    path.write_text(json.dumps(content))
    with pytest.raises(PredictionError, match='with different coco: give another folder'):
        predict_to(model, tmp_path / 'out', coco=str(path))


def test_killed_run_is_resumed_with_the_same_results(model_of, tmp_path, monkeypatch, shards_of_two):
    model = model_of('segmentation')
    predict_to(model, tmp_path / 'once', features=True)
    seen = []
    original = BatchPredictor._step

    def step(self, data):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(data)
        return original(self, data)

    monkeypatch.setattr(BatchPredictor, '_step', step)
    with pytest.raises(KeyboardInterrupt):
        predict_to(model, tmp_path / 'twice', features=True)
    assert not (tmp_path / 'twice' / 'labels.csv').exists()
    for name in ('.labels.csv.abcdefgh.tmp', 'parts/.00000001.0.json.abcdefgh.tmp', 'labels/.1.png.abcdefgh.tmp'):
        (tmp_path / 'twice' / name).write_bytes(b'half')
    other = tmp_path / 'twice' / 'images' / '.a.png.abcdefgh.tmp'  # a file that another program is writing
    other.parent.mkdir()
    other.write_bytes(b'half')
    monkeypatch.setattr(BatchPredictor, '_step', lambda self, data: seen.append(data) or original(self, data))
    done = predict_to(model, tmp_path / 'twice', features=True)
    other.unlink()
    # The incomplete shard is predicted again.
    assert done.resumed == 2 and len(seen) == 3 + 3
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')
    assert not (tmp_path / 'twice' / 'parts').exists()
    # A process that was killed while cleaning up leaves shards and temporary files.
    (tmp_path / 'twice' / 'parts').mkdir()
    for name in (f'parts/00000001.{0:016}.json', '.run.json.abcdefgh.tmp'):
        (tmp_path / 'twice' / name).write_bytes(b'half')
    assert not predict_to(model, tmp_path / 'twice', features=True).written and len(seen) == 6
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')


def test_run_is_resumed_with_another_batch_size(mixed, tmp_path, monkeypatch, shards_of_two):
    model = mixed('segmentation')
    predict_to(model, tmp_path / 'once')
    with stopped_at(monkeypatch, '3.png'):
        predict_to(model, tmp_path / 'twice')
    assert predict_to(model, tmp_path / 'twice', batch_size=3).resumed == 2
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')


def test_images_replaced_after_a_kill_are_predicted_again(mixed, tmp_path, monkeypatch, shards_of_two):
    model = mixed('segmentation')
    with stopped_at(monkeypatch, '4.png'):
        predict_to(model, tmp_path / 'twice', features=True, draw=True)
    cv2.imwrite(str(model[2] / '0.png'), np.full((64, 40, 3), 255, np.uint8))
    (model[2] / '1.png').write_bytes(b'no image')
    assert predict_to(model, tmp_path / 'twice', features=True, draw=True).resumed == 2
    predict_to(model, tmp_path / 'once', features=True, draw=True)
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')
    os.utime(model[2] / '2.png', (0, 0))
    with pytest.raises(PredictionError, match='results of all images, but some images have changed since .*another'):
        predict_to(model, tmp_path / 'twice', features=True, draw=True)


def test_one_run_at_a_time_writes_to_the_folder(model_of, tmp_path, monkeypatch):
    model = model_of('classification')
    monkeypatch.setattr(run_folder, 'WAIT', 0.1)
    for _ in range(2):
        with lock_results(str(tmp_path)), pytest.raises(PredictionError, match='is writing to --out .*: wait'):
            predict_to(model, tmp_path)
        assert not (tmp_path / 'run.json').exists()
    predict_to(model, tmp_path)
    # A folder of something else is refused without leaving a lock file there.
    (tmp_path / 'data' / 'labels').mkdir(parents=True)
    with pytest.raises(PredictionError, match='contains labels, but no run.json'):
        predict_to(model, tmp_path / 'data')
    assert [path.name for path in (tmp_path / 'data').iterdir()] == ['labels']


def test_shards_are_merged_in_order(tmp_path):
    shards = Shards(str(tmp_path), 2, 5, [f'{number:016x}' for number in range(3)])
    assert len(shards) == 3 and [list(shards.numbers(shard)) for shard in range(3)] == [[0, 1], [2, 3], [4]]
    for shard in (2, 0):
        records = [dict(name=str(number), found=[]) for number in shards.numbers(shard)]
        shards.write(shard, records, [np.full(3, number, np.float32) for number in shards.numbers(shard)])
    assert shards.missing() == [1]
    shards.write(1, [dict(name='2', skipped='empty'), dict(name='3', skipped='gone')], [])
    assert not shards.missing() and [record['name'] for record in shards.records()] == list('01234')
    shards.finish_features()
    features = np.load(tmp_path / 'features.npy')
    assert features[:, 0].tolist() == [0, 1, 4] and features.shape == (3, 3) and features.dtype == np.float32
    assert (tmp_path / 'features.csv').read_text() == 'row,image\n0,0\n1,1\n2,4\n'
    assert shards.finish_skipped() == (2, str(tmp_path / 'skipped.csv'))
    assert (tmp_path / 'skipped.csv').read_text() == 'image,reason\n2,empty\n3,gone\n'
    shards.remove()
    assert not (tmp_path / 'parts').exists()
