import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from urllib.error import URLError

import pytest
import torch

from fcvit_mm import errors
from fcvit_mm.dependencies import require
from fcvit_mm.errors import (
    DEBUG_VARIABLE,
    FOLDER,
    LibraryError,
    UserError,
    command_parser,
    is_defect,
    library_errors,
    origin,
    report_incomplete_logs,
    run_command,
    silence_libraries,
)


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.setenv(DEBUG_VARIABLE, '0')
    monkeypatch.setattr(sys, 'argv', ['/some/where/train.py'])


def run_in_package(code):
    """Run code as if it were in a module of this package."""
    exec(compile(code, f'{FOLDER}models/made_up.py', 'exec'), {'__name__': 'fcvit_mm.models.made_up'})


def in_worker(error):
    """Raise ``error`` in a worker of a data loader, and return the exception in the main process."""

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise error

    iterator = iter(torch.utils.data.DataLoader(Data(), num_workers=1))
    with pytest.raises(Exception) as caught:
        next(iterator)
    iterator._shutdown_workers()  # otherwise the garbage collector waits five seconds for them
    return caught.value


def converted(error, doing='training with a.py'):
    with pytest.raises(LibraryError) as caught, library_errors(doing, 'Check the data'):
        raise error
    return str(caught.value)


def test_library_error_names_the_action_and_a_solution():
    text = converted(RuntimeError('no such thing'))
    assert text == (
        'training with a.py failed: RuntimeError: no such thing (raised in tests). Check the data. '
        'To see the traceback: --debug, or FCVIT_MM_DEBUG=1 in the environment'
    )


@pytest.mark.parametrize(
    'error, words',
    [
        (
            RuntimeError('CUDA out of memory. Tried to allocate 2 GiB'),
            'lower the batch size .* --batch-size of tools/predict.py.* or use --amp',
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 'lower the batch size'),
        (MemoryError(), r'failed: MemoryError \(raised in tests\). .*lower the batch size'),
        (
            RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'),
            r'lower num_workers .*\(--workers of tools/predict.py\)',
        ),
        (KeyError('FCVit is not in the mmpretrain::model registry. Check'), 'KeyError: FCVit is not .* custom_imports'),
        (
            TypeError("__init__() got an unexpected keyword argument 'a'"),
            'Correct the arguments of this type .*_delete_=True',
        ),
        (URLError('Temporary failure in name resolution'), 'The download failed: .* --cfg-options pretrained=PATH'),
        (ModuleNotFoundError("No module named 'mine'"), 'to the environment variable PYTHONPATH'),
        (
            ModuleNotFoundError("No module named 'mmcv.runner'"),
            'another version of that library, such as OpenMMLab 1.x',
        ),
        (ImportError("cannot import name 'get_root_logger' from 'mmdet.utils'"), 'another version of that library'),
        (
            RuntimeError('expected input[2, 320, 1, 1] to have 2048 channels, but got 320'),
            'Set in_channels of the neck .* that of the backbone to the channels of the images',
        ),
        (RuntimeError('mat1 and mat2 shapes cannot be multiplied (4x320 and 512x5)'), 'tools/replace_backbone.py'),
        (
            ValueError('Default process group has not been initialized, please'),
            'need a launcher.*dist_train.sh CONFIG 1',
        ),
        (AssertionError('DeepSpeed is not installed. Please check https://'), 'Install the package'),
        (ValueError('Expected more than 1 value per channel when training, got'), 'batch_size of 2 .*drop_last=True'),
        (AssertionError('The image size in a batch should be the same.'), 'Images of different sizes are in one batch'),
        (
            AssertionError('assert len(featmap_sizes) == self.num_levels'),
            'one stride for each map, or set num_outs of the neck',
        ),
        (AttributeError("'CrowdHumanDataset' object has no attribute 'extra_ann_file'"), 'train or val in its name'),
        (
            TypeError("cfg should be a dict, ConfigDict or Config, but got <class 'str'>"),
            r'is text where its class expects a dict: dict\(type=NAME\)',
        ),
        (ValueError('Tried to step 8 times. The specified number of total steps is 6'), 'total_steps of OneCycleLR'),
        (RuntimeError('stack expects each tensor to be equal size, but got'), 'or let the pipeline resize or crop'),
        (IndexError('Target 255 is out of bounds.'), 'neither a class .* nor the ignored label.*seg_pad_val'),
        (AttributeError("'InstanceData' object has no attribute 'masks'"), 'LoadAnnotations.with_mask=True'),
        (RuntimeError('selected index k out of range'), 'lower that to num_queries'),
        (IndexError('too many indices for tensor of dimension 1'), 'class_weight and avg_non_ignore=True'),
        (ValueError('Key img_path is not in available keys.'), 'albumentations>=2'),
        (OSError(28, 'No space left on device'), 'Free disk space'),
        (RuntimeError('CUDA error: device-side assert triggered'), 'on the CPU, .*CUDA_VISIBLE_DEVICES=-1'),
        (RuntimeError('CUDA error: no kernel image is available for execution'), 'has no kernels for this GPU'),
        (OSError(24, 'Too many open files'), r'raise the limit \(ulimit -n\)'),
        (RuntimeError('received 0 items of ancdata'), 'or lower num_workers'),
        (AssertionError('only one of size and size_divisor should be valid'), 'Set the inherited one to None'),
        (KeyError('`cfg` must contain the key "type", but got {}'), 'A list replaces the inherited one'),
        (
            TypeError("a={} in child config cannot inherit from base because a is a <class 'list'> in base config"),
            'must be a list of complete items here',
        ),
        (ImportError('libGL.so.1: cannot open shared object file'), 'opencv-python-headless'),
        (KeyError('gt'), "KeyError: 'gt' .*Check the data"),
    ],
)
def test_advice_follows_the_error(error, words):
    import re

    assert re.search(words, converted(error)), converted(error)


def test_errors_of_workers_have_their_original_message():
    error = in_worker(KeyError('gt_bboxes'))
    assert 'Original Traceback' in str(error)
    assert origin(error) == ('KeyError', "'gt_bboxes'", 'test_errors')
    # A message of several lines, with a cause.
    chained = ValueError('two\nlines: of it')
    chained.__cause__ = KeyError('first')
    assert origin(in_worker(chained))[:2] == ('ValueError', 'two\nlines: of it')


def test_assertions_without_a_message_show_their_line():
    def check(number):
        assert number > 1

    with pytest.raises(AssertionError) as caught:
        check(0)
    caught.value.args = ()  # pytest writes a message
    assert origin(caught.value)[:2] == ('AssertionError', 'assert number > 1 (number=0)')
    assert origin(in_worker(AssertionError()))[:2] == ('AssertionError', 'raise error')


@pytest.mark.skipif(sys.version_info < (3, 11), reason='Python 3.11 records where a statement ends')
def test_assertions_of_several_lines_show_the_values_of_variables():
    transform = pytest.importorskip('mmpretrain.datasets').RandomResizedCrop
    with pytest.raises(AssertionError) as caught:
        transform(scale=8, interpolation='bicubik')
    assert origin(caught.value).message == (
        "assert interpolation in ('nearest', 'bilinear', 'bicubic', 'area', 'lanczos') (interpolation='bicubik')"
    )


def test_user_errors_of_workers_are_shown_without_the_traceback(capsys):
    error = in_worker(UserError('a.jpg is empty'))
    assert isinstance(error, UserError)
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: (_ for _ in ()).throw(error))
    assert caught.value.code == 'train.py: a.jpg is empty'


def test_user_errors_are_not_changed():
    with pytest.raises(UserError, match='^mine$') as caught, library_errors('training', 'Check'):
        raise UserError('mine')
    assert type(caught.value) is UserError


@pytest.mark.parametrize('code', ['{}["a"]', 'None + 1', 'raise RuntimeError("a")', 'int("a")'])
def test_errors_in_this_package_are_not_converted(code):
    with pytest.raises(Exception) as caught, library_errors('training', 'Check'):
        run_in_package(code)
    assert is_defect(caught.value) and not isinstance(caught.value, UserError)


def test_value_errors_of_networks_are_converted():
    refused = pytest.raises(LibraryError, match=r'ValueError: arch b99, expected .* \(raised in fcvit_mm\)')
    with refused, library_errors('training', 'Check the config'):
        run_in_package('raise ValueError("arch b99, expected b12 or b24")')


def fail():
    with library_errors('training with a.py', 'Check the data'):
        {}['annotations']


def test_commands_report_errors_in_one_line_with_status_1(capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(fail)
    # A string as exit code is printed to standard error, with status 1.
    assert caught.value.code.startswith("train.py: training with a.py failed: KeyError: 'annotations'")
    assert 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize('how', ['option', 'environment'])
def test_debug_shows_the_traceback(how, capsys, monkeypatch):
    if how == 'environment':
        monkeypatch.setenv(DEBUG_VARIABLE, '1')

    def main():
        command_parser('What it does.').parse_args(['--debug'] if how == 'option' else [])
        fail()

    with pytest.raises(SystemExit):
        run_command(main)
    printed = capsys.readouterr().err
    assert 'Traceback' in printed and "{}['annotations']" in printed and 'LibraryError' in printed


def test_other_errors_end_a_command_with_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


@pytest.mark.parametrize('error', [UserError('no such data set'), ZeroDivisionError('no such data set')])
def test_error_is_written_to_the_error_file_of_torchrun(error, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'error.json'))

    def fail():
        raise error

    with pytest.raises((SystemExit, ZeroDivisionError)):
        run_command(fail)
    report = json.loads((tmp_path / 'error.json').read_text())['message']['extraInfo']['py_callstack']
    assert report.rstrip().endswith(f'{type(error).__name__}: no such data set')
    assert ('in fail' in report) == isinstance(error, ZeroDivisionError), 'user errors need no traceback'


def test_unwritable_error_file_does_not_hide_the_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'gone' / 'error.json'))

    def fail():
        raise UserError('no such data set')

    with pytest.raises(SystemExit, match='^train.py: no such data set$'):
        run_command(fail)


@pytest.mark.parametrize('debug', [False, True])
def test_arguments_are_parsed_first(debug, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(errors, 'silence_libraries', lambda: done.append('silenced'))
    monkeypatch.setattr(sys, 'argv', ['train.py', *(['--debug'] if debug else [])])
    parser = command_parser('')

    def parse_args():
        done.append('parsed')
        return parser.parse_args()

    run_command(lambda args: done.append(vars(args)), parse_args)
    assert done == ['parsed', *([] if debug else ['silenced']), {}]
    with pytest.raises(SystemExit, match='train.py: mine'):
        run_command(done.clear, lambda: (_ for _ in ()).throw(UserError('mine')))
    assert done


def test_missing_packages_are_reported_without_a_traceback(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='train.py: mmdet is not installed'):
        run_command(lambda: require('mmdet'))
    with pytest.raises(ImportError, match='cannot import name'):
        run_command(lambda: (_ for _ in ()).throw(ImportError('cannot import name')))


@pytest.mark.parametrize(
    'code, message',
    [
        (
            'assert False, "MMCV==9 is used but incompatible. Please install"',
            'AssertionError: MMCV==9 .* the versions that made_up_library needs',
        ),
        ('raise ValueError("numpy.dtype size changed")', 'ValueError: numpy.dtype .* for another version of NumPy'),
        ('raise RuntimeError("operator torchvision::nms does not exist")', 'another version of torch'),
        ('raise KeyError("new")', "KeyError: 'new' .* Install the versions that made_up_library needs"),
        ('import nothing_of_this_name', "No module named 'nothing_of_this_name' .* Install the package"),
    ],
)
def test_packages_that_cannot_be_imported(code, message, tmp_path, monkeypatch):
    """A command ends with what to install, not with the traceback of the library."""
    (tmp_path / 'made_up_library.py').write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit, match=f'train.py: importing made_up_library failed: .*{message}'):
        run_command(lambda: importlib.import_module('made_up_library'))


def test_imports_of_this_package_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: run_in_package('1 / 0'))
    with pytest.raises(ZeroDivisionError):  # code without a module
        run_command(lambda: exec(compile('1 / 0', 'a.py', 'exec'), {}))


def test_help_has_debug_and_the_lines_of_the_docstring():
    text = command_parser('First line.\n\n    code here\n').format_help()
    assert '--debug' in text and DEBUG_VARIABLE in text and '\n    code here\n' in text
    assert not errors.wants_traceback()


@pytest.mark.parametrize(
    ('arguments', 'name'),
    [
        (['', 'image'], 'config'),
        (['a.py', 'image', ''], 'INPUT'),
        (['a.py', 'image', '--work-dir', ''], '--work-dir'),
        (['a.py', 'image', '--work-dir='], '--work-dir'),
        (['a.py', 'image', '--resume', ''], '--resume'),
    ],
)
def test_empty_arguments_are_refused(arguments, name):
    """``--work-dir "$UNSET"`` would write to the current folder, and ``--resume "$UNSET"`` would not resume."""
    parser = command_parser('')
    parser.add_argument('config')
    parser.add_argument('inputs', nargs='+', metavar='INPUT')
    parser.add_argument('--work-dir')
    parser.add_argument('--resume', nargs='?', const='auto')
    with pytest.raises(
        UserError, match=f'^{name} is empty: give a value, or omit it. In a shell script a variable may be'
    ):
        parser.parse_args(arguments)


def test_irrelevant_messages_of_libraries_are_suppressed(capsys, monkeypatch):
    import mmengine.logging as library

    for owner, name in ((library, 'print_log'), (library.MMLogger, 'callHandlers')):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, getattr(original, '__wrapped__', original))
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())

    def write_messages():
        logger = library.MMLogger.get_instance('messages')
        logger.handlers[:] = [handler]
        logger.warning('The prefix is not set in metric class IoUMetric.')
        logger.warning('a warning about the data')
        library.print_log('Could not import OneDL. Skipping OneDL datasets.', level=logging.DEBUG)
        library.print_log('a message without a level')
        warnings.warn('faster_coco_eval is not installed, metrics will not be computed. Please install it')
        warnings.warn('`reduce_zero_label` will be deprecated, if you would like to ignore the zero label')
        warnings.warn('another warning')

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        write_messages()
        monkeypatch.setenv(DEBUG_VARIABLE, '1')
        run_command(write_messages)
        assert len(caught) == 6 and len(logged) == 4 and capsys.readouterr().out.count('Could not') == 2
        monkeypatch.setenv(DEBUG_VARIABLE, '0')
        caught.clear()
        logged.clear()
        run_command(write_messages)
        silence_libraries()
    assert capsys.readouterr().out == 'a message without a level\n'
    assert [str(each.message) for each in caught] == ['another warning'] and logged == ['a warning about the data']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_incomplete_log_is_reported_once(capsys, monkeypatch):
    monkeypatch.setattr(logging.Handler, 'handleError', logging.Handler.handleError)
    report_incomplete_logs()
    report_incomplete_logs()
    logger = logging.Logger('full')
    logger.addHandler(logging.FileHandler('/dev/full'))
    logger.warning('first')
    logger.warning('second')
    assert capsys.readouterr().err == (
        '/dev/full is incomplete: No space left on device. Free disk space, or write to another disk\n'
    )
    logger.warning('%d', 'no number')
    assert 'Logging error' in capsys.readouterr().err


def test_ctrl_c_prints_one_line(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(interrupt)
    assert caught.value.code == 130 and capsys.readouterr().err == 'train.py: interrupted\n'
    monkeypatch.setenv(DEBUG_VARIABLE, '1')
    with pytest.raises(KeyboardInterrupt):
        run_command(interrupt)


def test_file_names_that_are_not_utf8_can_be_printed_and_logged(tmp_path, monkeypatch):
    name = b'gr\xf6n.jpg'.decode(errors='surrogateescape')
    monkeypatch.setattr(logging.Handler, 'handleError', logging.Handler.handleError)
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), encoding='utf-8', write_through=True))
    run_command(lambda: print(name))
    assert sys.stdout.buffer.getvalue() == b'gr\\udcf6n.jpg\n'
    report_incomplete_logs()
    logger = logging.Logger('names')
    logger.addHandler(logging.FileHandler(tmp_path / 'log', encoding='utf-8'))
    logger.warning(name)
    logger.warning('next')
    assert (tmp_path / 'log').read_text() == 'gr\\udcf6n.jpg\nnext\n'
