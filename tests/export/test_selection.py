"""Which part of a model is exported."""

import pytest
import torch.nn as nn

from fcvit_mm.errors import UserError
from fcvit_mm.export.selection import take_part


def test_models_of_other_structure():
    with pytest.raises(UserError, match='Linear has no backbone in model.backbone: give the config of a model'):
        take_part(nn.Linear(2, 2), 'classification')
    other = nn.Module()
    other.backbone = nn.Identity()
    with pytest.raises(UserError, match='^Module has no neck: use --part backbone$'):
        take_part(other, 'otherlab', 'neck')
    text = 'Module is a model of otherlab, but --part model needs a classifier, .*mmseg: use --part backbone'
    with pytest.raises(UserError, match=f'^{text}$'):
        take_part(other, 'otherlab')
    other.neck = nn.Identity()
    with pytest.raises(UserError, match=f'^{text} or --part neck$'):
        take_part(other, 'otherlab')
    assert take_part(other, 'otherlab', 'neck').neck is other.neck
    pytest.importorskip('mmseg')
    cascade = nn.Module()
    cascade.backbone, cascade.decode_head = nn.Identity(), nn.ModuleList()
    with pytest.raises(UserError, match='has a decode_head of ModuleList, expected a single decode head of mmseg'):
        take_part(cascade, 'segmentation')
