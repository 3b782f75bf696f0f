"""Options of several commands: parsing and errors."""

import os
import sys

import pytest

from fcvit_mm.errors import UserError, command_parser
from fcvit_mm.options import (
    LAUNCHER_VARIABLES,
    add_config_options,
    add_import_option,
    add_key_values,
    add_launcher_options,
    check_config,
    check_device,
    check_fraction,
    check_single_process,
    pass_local_rank,
)


@pytest.fixture
def parser():
    parser = command_parser('')
    add_config_options(parser)
    add_import_option(parser)
    add_key_values(parser, '--options', 'more')
    return parser


def test_key_values_are_parsed_as_by_mmengine(parser):
    args = parser.parse_args(['--cfg-options', 'a=1', 'b=[1,2]', 'c=x=y', '--options', 'a=b', '--cfg-options', 'd=2,3'])
    assert args.cfg_options == {'a': 1, 'b': [1, 2], 'c': 'x=y', 'd': [2, 3]} and args.options == {'a': 'b'}
    assert parser.parse_args([]).cfg_options is None


@pytest.mark.parametrize(
    'text, value',
    [
        ('/my runs/epoch_1.pth', '/my runs/epoch_1.pth'),
        ('a  b', 'a  b'),
        (' 1 ', 1),
        ('[1, 2]', [1, 2]),
        ('( 1 , my runs/a.pth, [x y, None] )', (1, 'my runs/a.pth', ['x y', None])),
    ],
)
def test_spaces_within_a_value_are_kept(parser, text, value):
    assert parser.parse_args(['--cfg-options', f'pretrained={text}']).cfg_options == {'pretrained': value}


def test_unbalanced_brackets_are_reported(parser):
    with pytest.raises(UserError, match=r'Imbalanced brackets exist in \(my runs.*: close every bracket'):
        parser.parse_args(['--cfg-options', 'a=[(my runs,1]'])


def test_checkpoint_instead_of_a_config_is_refused(tmp_path):
    (tmp_path / 'epoch_1.pth').write_bytes(b'PK')
    with pytest.raises(UserError, match='epoch_1.pth, the name of a checkpoint: give the config file .* first$'):
        check_config(str(tmp_path / 'epoch_1.pth'))


@pytest.mark.parametrize('option', ['--cfg-options', '--options'])
def test_invalid_key_values_are_refused(parser, option):
    with pytest.raises(UserError, match=f'{option} is ab, expected KEY=VALUE, such as'):
        parser.parse_args([option, 'a=1', 'ab'])
    with pytest.raises(UserError, match=f'{option}: Imbalanced brackets .*: close every bracket'):
        parser.parse_args([option, 'a=[(1,2]'])


@pytest.mark.parametrize(
    'text',
    [
        "[dict(type='AHook', limit=0.5)]",
        '[{"type": "AHook", "limit": 0.5}]',
        'dict(type=A)',
        '{"a": 1}',
        '[A, dict(b=1)]',
    ],
)
def test_dicts_as_values_are_refused(parser, text):
    """MMEngine fails without a message, or parses them as strings."""
    with pytest.raises(UserError, match=r'--cfg-options hooks=.*: the command line takes .* \(hooks.type=NAME\), and'):
        parser.parse_args(['--cfg-options', f'hooks={text}'])
    args = parser.parse_args(['--cfg-options', 'a=out_{}.png', 'b=predict(x)', 'c=[dictionary,a{b}]'])
    assert args.cfg_options == {'a': 'out_{}.png', 'b': 'predict(x)', 'c': ['dictionary', 'a{b}']}


def test_modules_are_imported_only_if_all_arguments_are_valid(parser, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('my_first', 'my_second'):
        (tmp_path / f'{name}.py').write_text('')
    arguments = ['--import', 'my_first', '--import', 'my_second']
    for wrong in (['--nothing'], ['--import'], ['more']):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args([*arguments, *wrong])
        assert caught.value.code == 2 and 'usage: ' in capsys.readouterr().err
    assert not {'my_first', 'my_second'} & set(sys.modules)
    parser.parse_args(arguments)
    assert {'my_first', 'my_second'} <= set(sys.modules)
    with pytest.raises(UserError, match="--import my_third: No module named 'my_third': install .* PYTHONPATH"):
        parser.parse_args(['--import', 'my_third'])


@pytest.mark.parametrize(
    'device, reason', [('banana', 'Expected one of cpu, cuda'), ('cuda:99', '.*'), ('meta', '.*'), ('', '.*empty')]
)
def test_unusable_devices_are_refused(device, reason):
    with pytest.raises(UserError, match=f'--device {device} cannot be used here \\({reason}.*: use --device cpu, or'):
        check_device(device)


def test_usable_devices_are_accepted():
    check_device(None)
    check_device('cpu')


@pytest.mark.parametrize('value', [-0.1, 1.1, float('nan')])
def test_fractions_must_be_from_0_to_1(value):
    check_fraction('--score-thr', 0)
    check_fraction('--score-thr', 1.0)
    with pytest.raises(UserError, match=f'--score-thr is {value:g}, expected a number from 0 to 1'):
        check_fraction('--score-thr', value)


@pytest.mark.parametrize(
    'given, before, expected', [([], None, '0'), (['--local_rank', '3'], None, '3'), (['--local-rank', '3'], '1', '1')]
)
def test_local_rank_is_passed_in_the_environment(given, before, expected, monkeypatch):
    """The environment variable of torchrun takes precedence over the argument of older launchers."""
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if before is not None:
        monkeypatch.setenv('LOCAL_RANK', before)
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    parser = command_parser('')
    add_launcher_options(parser)
    args = pass_local_rank(parser.parse_args(['--launcher', 'pytorch', *given]))
    assert args.launcher == 'pytorch' and os.environ['LOCAL_RANK'] == expected


@pytest.mark.parametrize(
    'env, message',
    [
        (
            {'TORCHELASTIC_RUN_ID': 'none', 'WORLD_SIZE': '2', 'RANK': '1'},
            r'torchrun \(tools/dist_train.sh\) started 2 processes, but --launcher is none: each would run alone and '
            r'write the same files. Add --launcher pytorch; for a single process, .*without TORCHELASTIC_RUN_ID',
        ),
        ({'SLURM_STEP_NUM_TASKS': '16', 'SLURM_PROCID': '0'}, 'srun .* started 16 .* Add --launcher slurm'),
        ({'OMPI_COMM_WORLD_SIZE': '3'}, 'mpirun started 3 .* Add --launcher mpi'),
    ],
)
def test_several_processes_need_a_launcher(env, message, monkeypatch):
    parser = command_parser('')
    add_launcher_options(parser)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        pass_local_rank(parser.parse_args([]))


@pytest.mark.parametrize(
    'env',
    [
        {'TORCHELASTIC_RUN_ID': 'none', 'WORLD_SIZE': '1'},
        {'WORLD_SIZE': '8', 'RANK': '0'},  # set by the cluster, but no launcher was used
        {'SLURM_NTASKS': '8', 'SLURM_PROCID': '0'},  # in a batch script, without srun
        {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '8'},
    ],
)
def test_single_process_needs_no_launcher(env):
    check_single_process(env)


@pytest.mark.parametrize(
    ('launcher', 'name'), [('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_PROCID'), ('mpi', 'mpirun')]
)
def test_launcher_option_without_a_launcher_is_refused(launcher, name, monkeypatch):
    for variable in (each for names in LAUNCHER_VARIABLES.values() for each in names if each.isupper()):
        monkeypatch.delenv(variable, raising=False)
    parser = command_parser('')
    add_launcher_options(parser)
    with pytest.raises(
        UserError, match=f'--launcher {launcher} needs .*{name}.*, or omit --launcher for a single process'
    ):
        pass_local_rank(parser.parse_args(['--launcher', launcher]))


def test_config_that_is_a_folder_or_lacks_its_suffix_is_refused(tmp_path):
    (tmp_path / 'a.py').touch()
    check_config(str(tmp_path / 'a.py'))
    with pytest.raises(UserError, match=f'config {tmp_path} is a folder: give a file in it'):
        check_config(str(tmp_path))
    with pytest.raises(
        UserError, match=rf'config {tmp_path}/a does not exist: did you mean {tmp_path}/a.py\? The configs are'
    ):
        check_config(str(tmp_path / 'a'))
