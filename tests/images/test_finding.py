"""Finding images in the paths that users give."""

import os

import pytest

from fcvit_mm.images import ImageError, find_images, find_inputs, list_images, read_image, walk_entries


@pytest.fixture
def folder(tmp_path):
    """A folder with images, one of them hidden and one in a subfolder, and other files."""
    for name in ('b.PNG', 'a.jpg', '.hidden.jpg', 'notes.txt', 'below/c.jpg'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'in' / name).touch()
    return tmp_path / 'in'


def test_images_are_found_in_folders_and_subfolders(folder):
    def names(paths):
        return [os.path.relpath(path, folder) for path in paths]

    assert names(find_images(folder)) == ['a.jpg', 'b.PNG']
    assert names(find_images(folder, recursive=True)) == names(list_images(folder)) == ['a.jpg', 'b.PNG', 'below/c.jpg']
    assert names(list_images(folder, ('.png',))) == ['b.PNG'] and list_images(folder, ('.webp',)) == []
    assert find_images(folder / 'a.jpg') == [str(folder / 'a.jpg')]
    assert find_inputs(folder) == (find_images(folder), None)
    assert find_inputs(folder / 'a.jpg') == ([str(folder / 'a.jpg')], None)
    (folder / 'x.npy').touch()
    assert names(find_images(folder / 'x.npy')) == ['x.npy'] and 'x.npy' not in names(find_images(folder))
    (folder / 'arrays').mkdir()
    (folder / 'arrays' / 'y.npy').touch()
    assert names(find_images(folder / 'arrays')) == ['arrays/y.npy']
    (folder / 'v.mp4').touch()
    assert find_inputs(folder / 'v.mp4') == ([], str(folder / 'v.mp4'))


@pytest.mark.parametrize(
    'path, images, inputs',
    [
        ('nowhere.jpg', 'nowhere.jpg does not exist: give an image or', 'nowhere.jpg does not exist: give an image, a'),
        ('empty', r'no images \(.*\) in .*empty', r'no images \(.*\) in .*empty'),
        (
            'notes.txt',
            'notes.txt does not have the name of an image, expected',
            'notes.txt has the name of neither an image .* nor a video',
        ),
    ],
)
def test_invalid_paths_are_refused(path, images, inputs, folder):
    (folder / 'empty').mkdir()
    with pytest.raises(ImageError, match=images):
        find_images(folder / path)
    with pytest.raises(ImageError, match=inputs):
        find_inputs(folder / path)


def test_links_to_parent_folders_are_not_followed(tmp_path):
    (tmp_path / 'in' / 'deep').mkdir(parents=True)
    (tmp_path / 'in' / 'a.png').touch()
    (tmp_path / 'beside').mkdir()
    (tmp_path / 'beside' / 'b.png').touch()
    (tmp_path / 'in' / 'self').symlink_to(tmp_path / 'in')
    (tmp_path / 'in' / 'deep' / 'up').symlink_to(tmp_path)
    (tmp_path / 'in' / 'beside').symlink_to(tmp_path / 'beside')
    names = [os.path.relpath(path, tmp_path / 'in') for path in list_images(tmp_path / 'in')]
    assert names == ['a.png', os.path.join('beside', 'b.png')]
    (tmp_path / 'in' / 'gone').symlink_to('/gone')
    (tmp_path / 'in' / 'itself.png').symlink_to('itself.png')
    entries = {entry.name: entry.is_symlink() for entry in walk_entries(tmp_path / 'in')}
    assert entries == {'a.png': False, 'b.png': False, 'gone': True, 'itself.png': True}
    # A link without a target is reported when it is read.
    assert find_images(tmp_path / 'in')[1:] == [str(tmp_path / 'in' / 'itself.png')]
    with pytest.raises(ImageError, match='itself.png cannot be decoded .*symbolic links'):
        read_image(tmp_path / 'in' / 'itself.png')


def test_folders_without_permission_are_reported(folder, monkeypatch, capsys):
    below = os.fspath(folder / 'below')
    original = os.scandir

    def scandir(path):
        if path == below:
            raise PermissionError(13, 'Permission denied', path)
        return original(path)

    monkeypatch.setattr(os, 'scandir', scandir)  # the tests may be run by root, who can read everything
    monkeypatch.setattr(os, 'access', lambda path, mode: path != below)
    assert len(find_images(folder, recursive=True)) == 2
    output = capsys.readouterr()
    assert f'{below} cannot be read, because permission is missing: the files' in output.out + output.err
    with pytest.raises(ImageError, match='below cannot be read, because permission is missing: change'):
        find_images(below)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_pipes_and_folders_with_the_name_of_an_image_are_ignored(tmp_path):
    """Reading a pipe would block. A broken link is reported when it is read."""
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    (tmp_path / 'to_pipe.jpg').symlink_to(tmp_path / 'pipe.jpg')
    (tmp_path / 'broken.jpg').symlink_to('/gone.jpg')
    (tmp_path / 'a.jpg').touch()
    (tmp_path / 'good.jpg').symlink_to('a.jpg')
    assert [os.path.basename(path) for path in list_images(tmp_path)] == ['a.jpg', 'broken.jpg', 'good.jpg']
    assert list_images(tmp_path / 'lost') == []
