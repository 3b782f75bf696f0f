import gc
import logging

import pytest

from fcvit_mm.preflight.contexts import quiet, without_garbage_collection
from fcvit_mm.preflight.remarks import remark


def test_libraries_are_silent_but_warnings_stay(capsys):
    remark('heard')
    with quiet():
        print('table')
        remark('progress', logging.INFO)
        remark('warning')
    text = ''.join(capsys.readouterr())
    assert 'table' not in text and 'progress' not in text and 'heard' in text


def test_garbage_collection_is_back_afterwards():
    assert gc.isenabled()
    with pytest.raises(KeyError), without_garbage_collection():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    with without_garbage_collection():
        pass
    assert not gc.isenabled()
    gc.enable()
