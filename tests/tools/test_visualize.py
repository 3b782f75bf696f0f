import shutil

import cv2
import numpy as np
import pytest
from harness import run_tool

from fcvit_mm.apis.draw import build_drawer, draw_images, draw_video
from fcvit_mm.engine.config import load_config
from fcvit_mm.images import ImageError, find_inputs

FOLDERS = {'classification': 'val/star', 'detection': 'val2017', 'segmentation': 'images/validation'}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ('a.jpg', 'a.png', 'b.jpg'):
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (32, 48, 3), np.uint8))
    return folder


def write_video(path, frames=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
    for value in range(frames):
        writer.write(np.full((48, 64, 3), 40 * value, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize('task', FOLDERS)
def test_draws_a_folder(trained, tmp_path, task):
    result = trained(task)
    inputs = tmp_path / 'in'
    shutil.copytree(result.data / FOLDERS[task], inputs)
    first = sorted(inputs.iterdir())[0]
    # Blue all over, so that swapped channels show whatever is drawn.
    cv2.imwrite(str(first), (cv2.imread(str(first)) * (0.2, 1.0, 0.2) + (200.0, 0.0, 0.0)).astype(np.uint8))
    (inputs / 'broken.jpg').write_bytes(first.read_bytes()[:200])
    done = run_tool(
        'visualize.py',
        result.config,
        result.checkpoint,
        inputs,
        '--out-dir',
        tmp_path / 'out',
        '--score-thr',
        0.01,
        '--opacity',
        0.3,
        '--device',
        'cpu',
        check=False,
    )
    # One that does not decode costs only itself, and is told.
    assert done.returncode == 1 and '1 of' in done.stdout and 'broken.jpg does not decode' in done.stdout
    assert 'Traceback' not in done.stdout
    drawn = cv2.imread(str(tmp_path / 'out' / f'{first.stem}.png'))
    source = cv2.imread(str(first))
    assert len(list((tmp_path / 'out').iterdir())) == len(list(inputs.iterdir())) - 1
    if task == 'classification':  # enlarged for the letters
        drawn = cv2.resize(drawn, source.shape[1::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(drawn.astype(int) - source).mean(2)
    assert (difference > 20).any(), 'nothing is drawn'
    # The image is still there, its colours in the same order. Boxes and labels may cover all of a small one.
    if task == 'detection':
        drawn = build_drawer(load_config(result.config), result.checkpoint, 'cpu', score_thr=1.0)(source)
        difference = np.abs(drawn.astype(int) - source).mean(2)
    assert difference.mean() < np.abs(drawn[..., ::-1].astype(int) - source).mean()


def test_draws_a_video(tmp_path):
    path = draw_video(lambda image: 255 - image, str(write_video(tmp_path / 'v.mp4')), str(tmp_path / 'out'))
    video = cv2.VideoCapture(path)
    frames = [video.read()[1] for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))]
    assert len(frames) == 3 and video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert [frame.mean() for frame in frames] == pytest.approx([255, 215, 175], abs=6)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['v.mp4']


def test_names_do_not_collide(folder, tmp_path):
    written, problems = draw_images(lambda image: image, find_inputs(str(folder))[0], str(tmp_path / 'out'))
    assert [path.rsplit('/', 1)[1] for path in written] == ['a.jpg.png', 'a.png.png', 'b.png'] and not problems
    np.testing.assert_array_equal(cv2.imread(written[2]), cv2.imread(str(folder / 'b.jpg')))


def test_inputs_that_cannot_be_drawn_on(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.txt').write_text('hello')
    for path, message in [
        ('nowhere.jpg', 'nowhere.jpg does not exist'),
        (tmp_path / 'empty', 'no images .* in '),
        (tmp_path / 'notes.txt', 'is neither an image'),
    ]:
        with pytest.raises(ImageError, match=message):
            find_inputs(str(path))
    with pytest.raises(ImageError, match='is the folder of the images'):
        draw_images(lambda image: image, [str(folder / 'a.jpg')], str(folder))


def test_videos_that_cannot_be_drawn_on(tmp_path):
    video = write_video(tmp_path / 'v.mp4')
    with pytest.raises(ImageError, match='would be overwritten'):
        draw_video(lambda image: image, str(video), str(tmp_path))
    video.write_bytes(video.read_bytes()[:100])
    with pytest.raises(ImageError, match=r'v.mp4 \(100 bytes\) has no frame that decodes'):
        draw_video(lambda image: image, str(video), str(tmp_path / 'out'))
    assert not list((tmp_path / 'out').iterdir())
