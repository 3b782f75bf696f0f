from harness import run_tool


def test_writes_a_data_set_once(tmp_path):
    arguments = ['coco', 'data', '--num-train', 2, '--num-val', 1, '--size', 64]
    done = run_tool('make_dataset.py', *arguments, cwd=tmp_path)
    assert done.stdout == 'data: written\n' and len(list((tmp_path / 'data' / 'train2017').iterdir())) == 2
    assert run_tool('make_dataset.py', *arguments, cwd=tmp_path).stdout == 'data: already there\n'


def test_invalid_arguments_give_exit_status_1(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    for arguments, message in (
        (['coco', tmp_path / 'data', '--size', 8], 'make_dataset.py: size is 8, expected 64 or more'),
        (['coco', tmp_path], f'make_dataset.py: {tmp_path} exists and is not a generated data set'),
    ):
        done = run_tool('make_dataset.py', *arguments, check=False)
        assert done.returncode == 1 and message in done.stdout and 'Traceback' not in done.stdout
