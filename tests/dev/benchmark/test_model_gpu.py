"""The estimated minimum time of a pass on a GPU, on a machine without one."""

import pytest
from harness import run_tool

from fcvit_mm.ops import triton

pytestmark = pytest.mark.skipif(not triton.available(), reason='needs Triton 3.3 and torch 2.5')


@pytest.fixture
def module(load):
    return load('model_gpu')


@pytest.fixture
def kernel(module):
    """Return a function that makes a launch of a kernel on a 2x64x20x10 map with 100 programs of 4 warps."""

    def launch(name, **constants):
        function = type('Kernel', (), {'__name__': name})()
        return module.Launch(
            name, (2, 64, 20, 10), 3_000_000, kernel=function, grid=(10, 10), constants=constants, num_warps=4
        )

    return launch


GPU = dict(capability=90, processors=10, clock=1e9, bandwidth=1e12, multiply_adds=1e12)


def test_time_is_the_largest_of_three_limits(module, kernel):
    gpu, norm = module.Gpu(**GPU), kernel('normalize_kernel', CHANNELS=64, POSITIONS=4)
    small, large = module.Resources(32, 0, 0, 40, 0), module.Resources(32, 0, 0, 4000, 0)
    of_memory, of_issue = module.bound(norm, gpu, small), module.bound(norm, gpu, large)
    assert (of_memory.limit, of_memory.seconds) == ('memory', pytest.approx(3e-6))
    # 4000 instructions in each of 400 warps, 40 warps at a time.
    assert (of_issue.limit, of_issue.seconds) == ('issue', pytest.approx(4000 * 400 / 40 / 1e9))
    assert of_issue.instructions == pytest.approx(4000 * 400 * 32 / (2 * 64 * 20 * 10))
    product = module.Launch('addmm', (8, 8), 100, multiply_adds=5_000_000)
    assert module.bound(product, gpu, None)[:3] == pytest.approx((1e-10, 0, 5e-6))


@pytest.mark.parametrize(
    'name, constants, rounds',
    [
        # 10 programs for each of the 4 groups of taps, each with its share of 25600 values, 64 at a time.
        ('depthwise_grad_weight_kernel', dict(KERNEL=11, TAP_ROWS=3, COLS=2, POSITIONS=1, BLOCK_C=32), 16),
        # The kernel covers 6 to 10 rows of the map for rows 0 to 4 and 15 to 19, and 11 for the others.
        ('depthwise_kernel', dict(KERNEL=11, ROWS=1, COLS=2, POSITIONS=1, BLOCK_C=32), 9.5),
        ('similarity_kernel', dict(NUM_HEADS=8, HEAD_DIM=8, POSITIONS=1), 4),
        ('add_scaled_grad_kernel', dict(CHANNELS=64, BLOCK_C=64, ROWS=2), 2),
        ('statistics_kernel', dict(CHANNELS=64, BLOCK_C=64, POSITIONS=64), 1),
    ],
)
def test_number_of_loop_iterations_of_kernels(module, kernel, name, constants, rounds):
    launch = kernel(name, **constants)
    assert module.rounds_of_loop(launch) == pytest.approx(rounds)
    resources = module.Resources(32, 0, 0, 100, 60)
    seconds = module.bound(launch, module.Gpu(**GPU), resources).issue
    assert seconds == pytest.approx((40 + 60 * rounds) * 400 / 40 / 1e9)


def test_table_of_kernels(module, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, 'compile_for', lambda *_: module.Resources(64, 0, 512, 1000, 0))
    options = ['model_gpu.py', '--networks', 'fcvit_tiny', '--batch', '2', '--size', '64x96', '--gpu', 'a100']
    for more in ([], ['--train', '--out', str(tmp_path / 'table.md')]):
        monkeypatch.setattr('sys.argv', options + more)
        module.main()
    text = capsys.readouterr().out
    assert text.startswith('fcvit_tiny, bfloat16, batch 2, 64x96, inference, a100: ')
    assert '| depthwise_conv.depthwise 11 | 2x32x16x24 | ' in text and '| 64 | 0 | 512 | ' in text
    assert 'training' in (tmp_path / 'table.md').read_text()


@pytest.mark.parametrize(
    'option, value, message',
    [
        ('--networks', 'resnet50', '--networks is resnet50, expected one of fcvit_tiny, '),
        ('--batch', '0', '--batch is 0, expected more than 0'),
        ('--bandwidth', '-1', '--bandwidth is -1.0, expected more than 0'),
        ('--size', 'large', '--size is large, expected a height and a width in pixels'),
    ],
)
def test_invalid_arguments_are_refused(option, value, message):
    done = run_tool('benchmark/model_gpu.py', option, value, check=False)
    assert done.returncode != 0 and message in done.stdout
