"""Arguments of several analysis commands."""

import argparse
import warnings
from pathlib import Path

import pytest
from harness import load_tool

from fcvit_mm.apis.load import Network
from fcvit_mm.errors import UserError
from fcvit_mm.files import WriteError
from fcvit_mm.images import ImageError


@pytest.fixture
def arguments():
    return load_tool('analysis/arguments.py')


def test_networks_have_unique_names(arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path('me@home').write_text('')
    monkeypatch.setattr(
        'fcvit_mm.apis.load.load_network',
        lambda config, checkpoint, device: Network(Path(config).stem, None, 'classification', checkpoint, None),
    )
    networks = arguments.load_networks(['a/b.py@c/d.pth', 'b.py', 'timm:vit@e.pth', 'b.py', 'me@home'], 'cpu')
    assert [network.name for network in networks] == ['b', 'b (2)', 'timm:vit', 'b (3)', 'me@home']
    assert [network.checkpoint for network in networks] == ['c/d.pth', None, 'e.pth', None, None]
    # The name of a config may already contain a number, such as that of a downloaded file.
    networks = arguments.load_networks(['b (2).py', 'b.py', 'b (2).py', 'b.py'], 'cpu')
    assert [network.name for network in networks] == ['b (2)', 'b', 'b (2) (2)', 'b (3)']


@pytest.mark.parametrize(
    'spec, found',
    [
        ('b.py@c@d/e.pth', ('b.py', 'c@d/e.pth')),
        ('me@home/b.py@c@d.pth', ('me@home/b.py', 'c@d.pth')),
        ('me@home/b.py', ('me@home/b.py', '')),
        ('timm:vit@c@d.pth', ('timm:vit', 'c@d.pth')),
        ('nowhere.py@c.pth', ('nowhere.py', 'c.pth')),
        ('b.py', ('b.py', '')),
    ],
)
def test_paths_with_an_at_sign(arguments, monkeypatch, tmp_path, spec, found):
    monkeypatch.chdir(tmp_path)
    Path('me@home').mkdir()
    for name in ('b.py', 'me@home/b.py'):
        Path(name).touch()
    assert arguments.split_network(spec) == found


def test_sizes_queries_and_file_names(arguments):
    assert arguments.parse_size('48x64') == (48, 64) and arguments.parse_size('48') == (48, 48)
    assert arguments.parse_size(None) is None
    parser = argparse.ArgumentParser()
    arguments.add_arguments(parser)
    assert arguments.parse_arguments(parser, ['--out', 'a', '--size', '32']).size == (32, 32)
    assert arguments.parse_queries(['0.5,0.25', '1,0']) == [(0.5, 0.25), (1, 0)]
    assert arguments.file_name('a/b (2).x') == 'a_b__2_.x'


@pytest.mark.parametrize('text', ['48x', 'x48', '0', '-3', '1x2x3', 'large'])
def test_invalid_sizes_are_refused(arguments, text):
    with pytest.raises(UserError, match=f'--size is {text}, expected a height'):
        arguments.parse_size(text)


@pytest.mark.parametrize('text', ['2,0.5', '0.5', 'middle', '0,0,0'])
def test_invalid_queries_are_refused(arguments, text):
    with pytest.raises(UserError, match=f'--queries is {text}, expected Y,X as fractions'):
        arguments.parse_queries([text])


def test_images_are_found_in_files_and_folders(arguments, image_folder):
    paths = [str(image_folder / f'{i}.png') for i in range(2)]
    assert arguments.find_all_images([paths[1], str(image_folder)]) == [paths[1], *paths]
    (image_folder / 'film.mp4').write_bytes(b'x')
    (image_folder / 'cut.png').write_bytes(Path(paths[0]).read_bytes()[:60])
    for name, message in (
        ('none.png', 'none.png does not exist'),
        ('film.mp4', 'film.mp4 does not have the name of an image'),
        ('cut.png', 'cut.png cannot be decoded'),
    ):
        with pytest.raises(ImageError, match=message):
            arguments.find_all_images([str(image_folder / name)])


def test_deprecated_option_pictures(arguments):
    parser = argparse.ArgumentParser()
    arguments.add_networks_and_images(parser, 'drawn')
    with pytest.warns(DeprecationWarning, match='--pictures is deprecated .* use --images'):
        args = parser.parse_args(['a.py', '--pictures', 'x.png', 'y.png'])
    assert args.images == ['x.png', 'y.png'] and args.networks == ['a.py']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert parser.parse_args(['a.py', '--images', 'x.png']).images == ['x.png']


@pytest.mark.parametrize('name', ['attention', 'cam', 'oversmoothing', 'receptive_field', 'report', 'similarity'])
def test_output_folder_is_checked_first(command, tmp_path, name):
    (tmp_path / 'file').write_text('')
    given = {'cam': ['a.py', 'b.pth', 'c.png'], 'report': ['a.py', 'b.pth', 'c.png'], 'similarity': ['a.py', 'b', 'c']}
    with pytest.raises(WriteError, match='file could not be written: Not a directory'):
        command(name)([*given.get(name, ['a.py', '--images', 'c.png']), '--out', str(tmp_path / 'file')])
