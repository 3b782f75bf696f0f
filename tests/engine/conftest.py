"""What the tests of the engine share: a config file with a text."""

import pytest


@pytest.fixture
def write(tmp_path):

    def write(text, name='mine.py'):
        pytest.importorskip('mmseg')
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write
