import pickle
from types import SimpleNamespace

import pytest
from PIL import Image

from fcvit_mm.engine.pictures import NamedErrors, NamePictureHook, picture_problem


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / 'a.jpg'
    Image.effect_noise((64, 64), 50).save(path)
    return path


def test_good_picture(jpeg):
    assert picture_problem(jpeg) is None


def test_truncated_picture(jpeg):
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    assert f'{jpeg} does not decode' in picture_problem(jpeg) and 'truncated' in picture_problem(jpeg)


def test_empty_and_missing_picture(jpeg):
    jpeg.write_bytes(b'')
    assert f'{jpeg} is empty (0 bytes)' in picture_problem(jpeg)
    jpeg.unlink()
    assert f'{jpeg} does not exist' in picture_problem(jpeg)


def read(data):
    with open(data['img_path'], 'rb') as file:
        assert file.read(2) == b'\xff\xd8', 'an error without the name'
    return data


@pytest.mark.parametrize('wrap', [lambda data: data, lambda data: SimpleNamespace(dataset=data),
                                  lambda data: SimpleNamespace(datasets=[data])])
def test_hook_lets_errors_name_the_picture(jpeg, wrap):
    data = SimpleNamespace(pipeline=read)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=wrap(data)))
    NamePictureHook().before_run(SimpleNamespace(_train_loop=loop, _val_loop={'type': 'ValLoop'}))
    assert data.pipeline({'img_path': str(jpeg)})
    jpeg.write_bytes(b'GIF')
    with pytest.raises(RuntimeError, match=f'data pipeline failed at {jpeg}: {jpeg} does not decode'):
        data.pipeline({'img_path': str(jpeg)})


def test_workers_get_a_copy(jpeg):
    copy = pickle.loads(pickle.dumps(NamedErrors(read)))
    assert copy({'img_path': str(jpeg)}) == {'img_path': str(jpeg)}
