"""The checkpoint that a run resumes from, and the config of a run that resumes."""

import torch
from mmengine.config import Config

from fcvit_mm.engine.resume_point import find_resume_point, is_complete, request_resume, select_resume_point


def test_request_to_resume(tmp_path):
    """Without anything to resume, the run starts as the config says, its weights included."""
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth'))
    request_resume(cfg, 'auto')
    select_resume_point(cfg)
    assert cfg.load_from == 'weights.pth' and not cfg.get('resume')
    torch.save({}, tmp_path / 'epoch_1.pth')
    request_resume(cfg, 'auto')
    assert cfg.resume and cfg.load_from == str(tmp_path / 'epoch_1.pth')
    request_resume(cfg, 'mine.pth')
    assert cfg.resume and cfg.load_from == 'mine.pth'


def test_resume_point(tmp_path):
    assert find_resume_point(str(tmp_path)) is None and find_resume_point(str(tmp_path / 'none')) is None
    for name in ('epoch_1', 'epoch_2', 'best_acc_epoch_3'):
        torch.save({'a': torch.ones(1000)}, tmp_path / f'{name}.pth')
    first, second = str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'epoch_2.pth')
    pointer = tmp_path / 'last_checkpoint'
    pointer.write_text(first)
    assert find_resume_point(str(tmp_path)) == first
    pointer.write_text('/moved/from/epoch_1.pth')
    assert find_resume_point(str(tmp_path)) == first
    for content in (b'', b'\xff\xfe', b'gone.pth'):
        pointer.write_bytes(content)
        assert find_resume_point(str(tmp_path)) == second
    with open(second, 'r+b') as file:
        file.truncate(1500)
    pointer.write_text(second)
    assert not is_complete(second) and find_resume_point(str(tmp_path)) == first
    pointer.write_text('s3://bucket/epoch_9.pth')
    assert find_resume_point(str(tmp_path)) == 's3://bucket/epoch_9.pth'


def test_resume_point_of_a_config(tmp_path):
    def make(**options):
        init_cfg = dict(type='Pretrained', checkpoint='a.pth')
        return Config(dict(work_dir=str(tmp_path), model=dict(backbone=dict(init_cfg=init_cfg)), **options))

    fresh = make(load_from='weights.pth')
    select_resume_point(fresh)
    assert fresh.load_from == 'weights.pth' and fresh.model.backbone.init_cfg
    nothing = make(resume=True)
    select_resume_point(nothing)
    assert nothing.resume is False and nothing.load_from is None and nothing.model.backbone.init_cfg
    torch.save({}, tmp_path / 'epoch_1.pth')
    for given, chosen in ((None, str(tmp_path / 'epoch_1.pth')), ('mine.pth', 'mine.pth')):
        cfg = make(resume=True, load_from=given)
        select_resume_point(cfg)
        # The pretrained file is not needed any more. A second time changes nothing.
        assert cfg.load_from == chosen and cfg.resume and cfg.model.backbone.init_cfg is None
        before = cfg.to_dict()
        select_resume_point(cfg)
        assert cfg.to_dict() == before


def test_incomplete_folder_checkpoints_are_skipped(tmp_path):
    folder = tmp_path / 'epoch_1.pth'
    folder.mkdir()
    assert not is_complete(str(folder)) and find_resume_point(str(tmp_path)) is None
    torch.save({}, folder / 'rank0.pth')
    assert is_complete(str(folder)) and find_resume_point(str(tmp_path)) == str(folder)
    (folder / 'rank1.pth').write_bytes((folder / 'rank0.pth').read_bytes()[:100])
    assert not is_complete(str(folder)) and find_resume_point(str(tmp_path)) is None
