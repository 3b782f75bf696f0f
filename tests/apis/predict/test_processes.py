"""Several processes give the same results as one."""

from harness import run_ranks
from predictions import contents, predict_to

from fcvit_mm.apis.predict.folder import SHARD


def test_several_processes_give_the_same_results(model_of, tmp_path):
    """The command runs in two processes; with three shards, both have work."""
    config, checkpoint, images = model_of('classification')
    image = next(images.rglob('*.jpg')).read_bytes()
    (tmp_path / 'in').mkdir()
    for number in range(2 * SHARD + 3):
        (tmp_path / 'in' / f'{number}.jpg').write_bytes(image if number % 50 else image[:99])
    arguments = (config, checkpoint, tmp_path / 'in', '--workers', 0, '--device', 'cpu', '--out', tmp_path / 'two')
    one, two = run_ranks(2, 'predict.py', *arguments, '--features')
    assert 'predictions.csv' in one.stdout and '3 of 131 images skipped' in one.stdout
    assert 'predictions.csv' not in two.stdout
    predict_to((config, checkpoint, tmp_path / 'in'), tmp_path / 'one', features=True)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
