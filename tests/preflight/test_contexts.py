import gc

import pytest

from fcvit_mm.preflight.contexts import quiet, without_garbage_collection
from fcvit_mm.preflight.log import log_info, log_warning


def test_quiet_suppresses_output_below_warnings(capsys):
    log_warning('before')
    with quiet():
        print('table')
        log_info('progress')
        log_warning('warning')
    text = ''.join(capsys.readouterr())
    assert 'table' not in text and 'progress' not in text and 'before' in text


def test_garbage_collection_is_enabled_again():
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
