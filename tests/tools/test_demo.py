"""The demo with few images and iterations: all of its steps, and skipping completed steps in a second run."""

import json

import pytest
from harness import call_tool, forked_python, load_tool

demo = load_tool('demo.py')


@pytest.fixture
def run_demo(monkeypatch, tmp_path, capsys):
    """Return a function that runs the demo in a temporary folder and returns its output."""
    for package in ('mmpretrain', 'mmdet'):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo.sys, 'executable', forked_python())

    def run(*arguments):
        call_tool(demo, arguments)
        return capsys.readouterr().out

    return run


def test_detection_demo_runs_all_steps_and_then_skips_them(run_demo, tmp_path):
    first = run_demo('detect', '--quick')
    for words in (
        'top-1',
        'box AP50',
        'mask AP50',
        '$ python tools/train.py',
        'mask_rcnn_fcvit_tiny_shapes.py',
        '$ python tools/test.py',
        'Epoch(train)',
        'predictions.png',
    ):
        assert words in first, first
    out = tmp_path / 'work_dirs' / 'demo'
    sheet = out / 'detect_test' / 'predictions.png'
    assert sheet.read_bytes().startswith(b'\x89PNG')
    assert len(list((out / 'detect_test' / 'images').rglob('*.*'))) == 6
    assert not (tmp_path / 'data' / 'shapes').exists()

    written = sheet.stat().st_mtime_ns
    second = run_demo('detect', '--quick')
    assert second.count('already there') == 5 and 'tools/train.py' not in second
    assert sheet.stat().st_mtime_ns == written
    table = [line for line in first.splitlines() if 'AP50  ' in line]
    assert table and all(line in second for line in table)


def test_busy_cores_are_reported(monkeypatch, capsys):
    monkeypatch.setattr(demo.os, 'cpu_count', lambda: 2)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    for load, reported in ((1.9, False), (8.6, True)):
        monkeypatch.setattr(demo.os, 'getloadavg', lambda load=load: (load, load, load))
        demo.warn_of_busy_cores()
        text = capsys.readouterr().out
        assert ('9 processes or threads compete for 2 cores' in text and 'OMP_NUM_THREADS=1' in text) is reported
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    demo.warn_of_busy_cores()
    assert not capsys.readouterr().out


def test_data_folder_is_used_by_all_steps(monkeypatch, tmp_path):
    """The default is relative to the project folder, which is often read-only in a container."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        demo.UserError, match='^file/shapes/imagenet could not be written: Not a directory: give another'
    ):
        call_tool(demo, ['detect', '--data', 'file/shapes'])
    commands = []
    done = dict(files=[], checkpoint='c', fingerprint='f', metrics={'accuracy/top1': 1, 'mIoU': 50})
    monkeypatch.setattr('fcvit_mm.datasets.generate', lambda kind, folder: commands.append([str(folder)]))
    monkeypatch.setattr('fcvit_mm.dependencies.require', lambda package: None)
    monkeypatch.setattr(
        demo, 'train', lambda title, job, folder, inputs, options, force: commands.append(options) or done
    )
    monkeypatch.setattr(
        demo,
        'test',
        lambda title, job, *others: commands.append(job['options']) or dict(done, files=['sheet.png']),
    )
    call_tool(demo, ['segment', '--data', 'mine'])
    roots = [[word for word in command if 'mine' in word] for command in commands]
    assert roots[:2] == [['mine/imagenet'], ['mine/ade20k']]
    assert [len(found) for found in roots[2:]] == [
        3,
        3,
        3,
    ] and 'train_dataloader.dataset.data_root=mine/ade20k' in roots[3]


class Steps:
    """An action for :func:`demo.run_step` that records its calls."""

    def __init__(self, folder, fail=False):
        self.folder, self.fail, self.resumed = folder, fail, []

    def __call__(self, resume):
        self.resumed.append(resume)
        if self.fail:
            raise KeyboardInterrupt
        result = self.folder / 'result'
        result.write_text('x')
        return dict(files=[str(result)])


def step(folder, inputs, action, force=False):
    return demo.run_step('A step', folder, inputs, action, force)


def test_completed_step_is_skipped(tmp_path):
    folder = tmp_path / 'step'
    action = Steps(folder)
    assert step(folder, dict(a=1), action)['fingerprint'] == step(folder, dict(a=1), action)['fingerprint']
    assert action.resumed == [False]


def test_step_is_repeated_if_inputs_changed_or_files_are_missing(tmp_path):
    folder = tmp_path / 'step'
    action = Steps(folder)
    step(folder, dict(a=1), action)
    step(folder, dict(a=2), action)
    (folder / 'result').unlink()
    step(folder, dict(a=2), action)
    step(folder, dict(a=2), action, force=True)
    assert action.resumed == [False] * 4


def test_interrupted_step_is_resumed(tmp_path):
    folder = tmp_path / 'step'
    with pytest.raises(KeyboardInterrupt):
        step(folder, dict(a=1), Steps(folder, fail=True))
    assert not (folder / 'done.json').exists()
    action = Steps(folder)
    step(folder, dict(a=1), action)
    assert action.resumed == [True]
    with pytest.raises(KeyboardInterrupt):
        step(folder, dict(a=2), Steps(folder, fail=True))
    step(folder, dict(a=3), action)
    assert action.resumed == [True, False]


def test_other_folders_are_not_overwritten(tmp_path):
    (tmp_path / 'mine').write_text('x')
    with pytest.raises(demo.UserError, match='did not write'):
        step(tmp_path, dict(a=1), Steps(tmp_path))
    assert (tmp_path / 'mine').read_text() == 'x'


def test_failed_command_shows_the_end_of_its_log(tmp_path, capsys):
    with pytest.raises(demo.UserError, match='train.py failed with status 1(.|\n)*nothing.py does not exist'):
        demo.run_tool(tmp_path / 'log', 'train.py', 'nothing.py', '--work-dir', 'my runs')
    # The printed command can be run by hand.
    assert "$ python tools/train.py nothing.py --work-dir 'my runs'\n" in capsys.readouterr().out
    assert 'does not exist' in (tmp_path / 'log').read_text()


def test_missing_metrics_are_reported(tmp_path):
    (tmp_path / 'scalars.json').write_text(json.dumps({'mIoU': 3}) + '\nnot json\n' + json.dumps({'mIoU': 4}))
    assert demo.find_metrics(tmp_path, ['mIoU']) == {'mIoU': 4}
    with pytest.raises(demo.UserError, match='top1'):
        demo.find_metrics(tmp_path, ['top1'])


def test_low_metrics_are_an_error(monkeypatch, tmp_path, capsys):
    """A metric below its threshold ends the demo with a message."""
    done = dict(
        files=[str(tmp_path)],
        checkpoint='c',
        fingerprint='f',
        metrics={'accuracy/top1': 90.0, 'coco/bbox_mAP_50': 0.6, 'coco/segm_mAP_50': 0.49},
    )
    for name in ('dependencies.require', 'datasets.generate', 'datasets.shapes.read_manifest'):
        monkeypatch.setattr(f'fcvit_mm.{name}', lambda *args, **kwargs: None)
    for name in ('train', 'test'):
        monkeypatch.setattr(demo, name, lambda *args, **kwargs: done)
    with pytest.raises(
        demo.UserError, match=r'^mask AP50 below 0\.5, so training does not work .*: see the logs below'
    ):
        call_tool(demo, ['detect', '--out', tmp_path])
    assert '0.49' in capsys.readouterr().out
    done['metrics']['coco/segm_mAP_50'] = 0.5
    call_tool(demo, ['detect', '--out', tmp_path])
