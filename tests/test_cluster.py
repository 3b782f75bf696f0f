"""The example files of docs/cluster.md: the commands that they start, and their behaviour when a job ends."""

import configparser
import os
import re
import subprocess
import sys

import pytest
import yaml
from harness import ROOT, path_of

EXAMPLES = ROOT / 'docs' / 'examples' / 'cluster'
CONFIG = 'configs/classification/fcvit_tiny_in1k.py'


def run_script(name, tmp_path, *arguments, status=0, folder=ROOT, **environment):
    """Run a script with commands that only print their arguments; ``srun`` and python exit with ``status``."""
    for command in ('srun', 'scontrol', 'python'):
        end = 0 if command == 'scontrol' else status
        (tmp_path / command).write_text(
            f'#!/bin/sh\necho "WEIGHTS ${{FCVIT_MM_WEIGHTS:-none}}"\necho {command} "$@"\nexit {end}\n'
        )
        (tmp_path / command).chmod(0o755)
    return subprocess.run(
        ['bash', str(EXAMPLES / name), *arguments],
        env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PYTHON': str(tmp_path / 'python'), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('status, ends, requeued', [(143, 0, True), (0, 0, False), (1, 1, False), (137, 137, False)])
def test_only_a_job_that_got_sigterm_is_requeued(tmp_path, status, ends, requeued):
    done = run_script('train.sbatch', tmp_path, CONFIG, '--amp', status=status, SLURM_JOB_ID='77')
    assert done.returncode == ends, done.stderr
    assert ('scontrol requeue 77' in done.stdout) == requeued
    assert re.search(rf'^srun .*tools/train.py {CONFIG} --launcher slurm --resume --amp$', done.stdout, re.MULTILINE)
    # The signal goes to the tasks, not only to the script, and leaves enough time for a checkpoint.
    assert '#SBATCH --signal=TERM@180\n' in (EXAMPLES / 'train.sbatch').read_text()


def test_folder_of_weights_for_nodes_without_internet(tmp_path):
    """The project's folder ``checkpoints`` if it exists; otherwise the weights that torch.hub downloaded are used."""

    def weights(**environment):
        done = run_script('train.sbatch', tmp_path, CONFIG, folder=project, SLURM_JOB_ID='77', **environment)
        assert done.returncode == 0, done.stderr
        return re.search('^WEIGHTS (.*)$', done.stdout, re.MULTILINE).group(1)

    project = tmp_path / 'project'
    for name in ('tools/train.py', CONFIG):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    assert weights() == 'none'
    (project / 'checkpoints').mkdir()
    assert weights() == str(project / 'checkpoints')
    assert weights(FCVIT_MM_WEIGHTS='/data/weights') == '/data/weights'


def test_elastic_training_starts_torchrun_with_a_rendezvous(tmp_path):
    done = run_script('elastic.sh', tmp_path, CONFIG, '--amp', HOST='node1', GPUS='4')
    assert '--nnodes=2:4 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=node1:29400' in done.stdout
    assert done.stdout.rstrip().endswith(f'tools/train.py {CONFIG} --launcher pytorch --resume --amp')
    assert 'HOST=ADDRESS' in run_script('elastic.sh', tmp_path, CONFIG).stderr
    for name in ('elastic.sh', 'train.sbatch'):
        assert 'usage: ' in run_script(name, tmp_path, HOST='x').stderr


@pytest.mark.parametrize(
    'environment, message',
    [
        (dict(NODES='two'), "NODES is 'two', expected the number of nodes, or the least and the greatest, such as 2:4"),
        (dict(NODES='4:2'), "NODES is '4:2', expected the number of nodes"),
        (dict(NODES='0'), "NODES is '0', expected the number of nodes"),
        (dict(NODES='2:'), "NODES is '2:', expected the number of nodes"),
        (dict(GPUS='0'), "GPUS is '0', expected the number of processes on this node, a whole number of at least 1"),
        (dict(GPUS='all'), "GPUS is 'all', expected the number of processes on this node"),
        (dict(PORT='x'), "PORT is 'x', expected a port of the first node, a whole number of at least 1"),
        (dict(PORT='99999'), 'PORT is 99999, expected a port of the first node, up to 65535'),
        (dict(RESTARTS='-1'), "RESTARTS is '-1', expected how often all processes start again, a whole number of at"),
        (dict(HOST='', PYTHON=sys.executable), 'HOST=ADDRESS of the node where the nodes meet'),
        (dict(HOST='a.invalid', PYTHON=sys.executable), "HOST is 'a.invalid', which is unknown on this machine"),
    ],
)
def test_invalid_values_for_elastic_training_are_refused(tmp_path, environment, message):
    """torchrun would print a traceback without the variable, or try to connect to an unknown address for a minute."""
    done = run_script('elastic.sh', tmp_path, CONFIG, **{'HOST': 'node1', **environment})
    assert done.returncode != 0 and message in done.stderr and 'Traceback' not in done.stderr
    assert not done.stdout


def test_valid_values_for_elastic_training(tmp_path):
    for nodes, gpus in (('1', 'auto'), ('08:16', '2'), ('2:2', 'cpu')):
        done = run_script('elastic.sh', tmp_path, CONFIG, HOST='node1', NODES=nodes, GPUS=gpus, PORT='65535')
        assert f'--nnodes={nodes} --nproc-per-node={gpus} ' in done.stdout, done.stderr
        assert '--rdzv-endpoint=node1:65535' in done.stdout


@pytest.mark.parametrize('name', ['elastic.sh', 'train.sbatch'])
def test_missing_files_are_reported(tmp_path, name):
    """torchrun would restart the processes again and again."""
    job = dict(HOST='node1', SLURM_JOB_ID='77')
    done = run_script(name, tmp_path, 'configs/lost.py', **job)
    assert done.returncode == 2 and f'{name}: configs/lost.py does not exist in {ROOT}: ' in done.stderr
    done = run_script(name, tmp_path, CONFIG, **job, PYTHON='no/python')
    assert done.returncode == 2 and f'{name}: no/python does not exist' in done.stderr and 'make setup' in done.stderr
    done = run_script(name, tmp_path, CONFIG, folder=tmp_path, **job)
    assert done.returncode == 2 and f'{name}: tools/train.py does not exist in {tmp_path}' in done.stderr
    assert not done.stdout


def test_batch_script_must_be_submitted(tmp_path):
    done = run_script('train.sbatch', tmp_path, CONFIG)
    assert done.returncode and 'SLURM_JOB_ID: not set: submit this script, sbatch train.sbatch CONFIG' in done.stderr


def test_files_in_the_kubernetes_manifest_exist():
    job = yaml.safe_load((EXAMPLES / 'pytorchjob.yaml').read_text())
    pod = job['spec']['pytorchReplicaSpecs']['Worker']['template']['spec']
    container = pod['containers'][0]
    command = container['command']
    for word in command:
        if word.startswith(('tools/', 'configs/')):
            assert (ROOT / word).is_file(), word
    assert command[command.index('tools/train.py') + 1].startswith('configs/') and '--resume' in command
    assert path_of('train.py').is_file()
    assert {mount['name'] for mount in container['volumeMounts']} == {volume['name'] for volume in pod['volumes']}


@pytest.mark.parametrize('name', ['Dockerfile', 'apptainer.def'])
def test_containers_use_the_setup_script(name):
    """They call dev/setup_env.sh with a supported Python version."""
    text = (ROOT / name).read_text()
    assert 'python:3.11-' in text and 'PYTHON=python3.11' in text and 'dev/setup_env.sh .venv' in text
    assert not re.search(r'pip install', text)
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    extras = re.findall(r' (?:extra|more)=(\S+)', (ROOT / 'dev' / 'setup_env.sh').read_text())
    assert len(extras) == 6  # two lists of extras for each of three stacks
    assert set(','.join(extras).split(',')) <= set(setup['options.extras_require'])


def test_containers_contain_the_same_files(tmp_path):
    """Apptainer's ``%setup`` copies the same files as ``docker build``: no data or environments, but tests/data."""
    project, rootfs = tmp_path / 'project', tmp_path / 'rootfs'
    kept = ['Makefile', '.ci/run', 'tests/data/a.npz', 'docs/images/a.png', 'fcvit_mm/preflight/data/a.py']
    excluded = [
        '.git/config',
        '.venv/bin/python',
        '.venv-x/a',
        'data/coco/a.jpg',
        'work_dirs/a/log',
        'checkpoints/a.pth',
    ]
    excluded += ['fcvit_mm/ops/__pycache__/a.pyc', 'docs/_build/a', 'fcvit_mm/.mim/a', 'build/a', 'dist/a.whl']
    for name in kept + excluded:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text('')
    (project / '.dockerignore').write_text((ROOT / '.dockerignore').read_text())
    setup = re.search(r'^%setup\n((?:    .*\n)+)', (ROOT / 'apptainer.def').read_text(), re.MULTILINE)
    environment = dict(PATH=os.environ['PATH'], APPTAINER_ROOTFS=str(rootfs))
    subprocess.run(['sh', '-ec', setup.group(1)], cwd=project, env=environment, check=True)
    copied = [path for path in (rootfs / 'opt' / 'fcvit_mm').rglob('*') if path.is_file()]
    assert {str(path.relative_to(rootfs / 'opt' / 'fcvit_mm')) for path in copied} == {*kept, '.dockerignore'}
