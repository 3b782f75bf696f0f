"""The images to predict, and the names of their results."""

import cv2
import numpy as np
import pytest

from fcvit_mm.apis.predict.inputs import count_frames, list_inputs
from fcvit_mm.images import ImageError


def names(inputs):
    listed = list_inputs([str(each) for each in inputs])
    return [listed.name(number) for number in range(len(listed))]


def test_each_image_of_folders_lists_and_files_is_predicted_once(tmp_path, monkeypatch):
    for name in ('a/2.jpg', 'a/b/1.PNG', 'a/notes.md', 'c/3.jpg', 'a/.hidden.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    (tmp_path / 'a' / 'list.txt').write_text('\ufeff2.jpg\n# no\n\n../c/3.jpg\n')
    assert names([tmp_path / 'a']) == ['2.jpg', 'b/1.PNG']
    assert names([tmp_path / 'c' / '3.jpg', tmp_path / 'a']) == ['c/3.jpg', 'a/2.jpg', 'a/b/1.PNG']
    assert names([tmp_path / 'a', tmp_path / 'a' / '2.jpg']) == ['2.jpg', 'b/1.PNG']
    assert len(list_inputs([str(tmp_path / 'a' / 'list.txt')])) == 2
    monkeypatch.chdir(tmp_path)
    assert names(['a/2.jpg', './a', tmp_path / 'a' / '2.jpg', 'a/list.txt', 'c/../a']) == [
        'a/2.jpg',
        'a/b/1.PNG',
        'c/3.jpg',
    ]
    (tmp_path / 'folders.txt').write_text('c\na\na/2.jpg\n')
    assert names([tmp_path / 'folders.txt']) == ['c/3.jpg', 'a/2.jpg', 'a/b/1.PNG']
    inputs = [str(tmp_path / name) for name in ('c', 'folders.txt')]
    assert list_inputs(inputs).folders == [str(tmp_path / name) for name in ('c', 'c', 'a')]


def test_images_of_the_same_stem_have_different_results(tmp_path):
    for name in ('1.jpg', '1.jpg.png', '1.png', '2.png', '3.png.tif'):
        (tmp_path / name).write_bytes(b'')
    listed = list_inputs([str(tmp_path)])
    names = [listed.file_name(listed.name(number)) for number in range(5)]
    assert names == ['1.jpg', '1.jpg.png', '1.png', '2', '3.png']


def test_frames_of_a_video_are_numbered(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'v.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), 10, (32, 32))
    for _ in range(3):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()
    (tmp_path / '1.jpg').write_bytes(b'')
    (tmp_path / '2.jpg').write_bytes(b'')
    assert count_frames(str(tmp_path / 'v.mp4')) == 3
    listed = list_inputs([str(tmp_path / name) for name in ('1.jpg', 'v.mp4', '2.jpg')])
    assert [listed[number][1] for number in range(len(listed))] == [None, 0, 1, 2, None]
    assert [listed.name(number) for number in (0, 2, 4)] == ['1.jpg', 'v.mp4/000001.png', '2.jpg']


def test_frames_lost_in_a_corrupt_video_are_reported(tmp_path, capsys):
    path = tmp_path / 'v.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 64))
    for number in range(60):
        writer.write(np.full((64, 64, 3), 4 * number, np.uint8))
    writer.release()
    assert count_frames(str(path)) == 60 and 'corrupt' not in ''.join(capsys.readouterr())
    content = path.read_bytes()
    middle, lost = len(content) // 2, len(content) // 5
    path.write_bytes(content[:middle] + bytes(lost) + content[middle + lost :])
    number = count_frames(str(path))
    said = ''.join(capsys.readouterr())
    assert 0 < number < 54 and f'v.avi is truncated or corrupt: {number} of about 60 frames were decoded' in said


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('gone.jpg', None, 'gone.jpg does not exist'),
        ('a.xyz', b'', 'has the name of neither an image .* nor a video'),
        ('empty.txt', b'# nothing\n', 'empty.txt lists no images: expected one path per line'),
        ('latin.txt', b'\xff\xfe\xe9.jpg', 'as an image list'),
        ('list.txt', b'gone.mp4\n', 'list.txt lists .*gone.mp4, which does not exist'),
        ('v.mp4', b'no video', r'v.mp4 \(8 bytes\) has no frame that can be decoded'),
        ('gone.txt', None, 'gone.txt as an image list'),
    ],
)
def test_invalid_inputs_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message):
        list_inputs([str(tmp_path / name)])
    with pytest.raises(ImageError, match='no inputs: give images'):
        list_inputs([])
    (tmp_path / 'folder').mkdir()
    with pytest.raises(ImageError, match='no images'):
        list_inputs([str(tmp_path / 'folder')])


def test_unsupported_image_formats_in_a_folder_are_reported(tmp_path, capsys):
    for name in ('a.png', 'b.heic', 'c.GIF'):
        (tmp_path / name).touch()
    assert len(list_inputs([str(tmp_path)])) == 1
    output = capsys.readouterr()
    assert '2 files below' in output.out + output.err and 'end in .gif, .heic' in output.out + output.err
