"""Selection of the part of a model to export."""

import pytest
import torch
import torch.nn as nn

from fcvit_mm.errors import UserError
from fcvit_mm.export.selection import take_part


def test_unsupported_models_are_refused():
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
    with pytest.raises(UserError, match='has a decode_head of ModuleList, expected a single decode head of mmseg that'):
        take_part(cascade, 'segmentation')


@pytest.mark.parametrize('kind', ['RegressionHead', 'ConformerHead'])
def test_classifiers_without_softmax_are_refused(kind):
    """For example, the softmax of a regression with one value is always 1."""
    heads = pytest.importorskip('mmpretrain.models.heads')
    if not hasattr(heads, kind):
        pytest.skip(f'this mmpretrain has no {kind}')
    model = nn.Module()
    options = dict(num_classes=2, in_channels=(2, 2)) if kind == 'ConformerHead' else {}
    model.backbone, model.head = nn.Identity(), getattr(heads, kind)(**options)
    with pytest.raises(UserError, match=f'has a head of {kind}, expected a ClsHead, whose scores are a softmax: use'):
        take_part(model, 'classification')
    model.head = heads.LinearClsHead(2, 2)
    assert take_part(model, 'classification').head is model.head


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('EncHead', dict(num_codes=2, in_channels=[4], in_index=[0])),
        ('EncHead', dict(num_codes=2, in_channels=[4], in_index=[0], use_se_loss=False)),
        ('DAHead', dict(pam_channels=2, in_channels=4)),
        ('FCNHead', dict(num_convs=1, in_channels=4)),
    ],
)
def test_prediction_of_segmentors_with_several_outputs(kind, options):
    heads = pytest.importorskip('mmseg.models.decode_heads')
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    model.decode_head = getattr(heads, kind)(channels=4, num_classes=3, **options).eval()
    images = torch.randn(1, 3, 9, 13)
    part = take_part(model, 'segmentation').eval()
    expected = model.decode_head.predict((model.backbone(images),), [dict(img_shape=(9, 13))], {})
    torch.testing.assert_close(part(images), expected)


def test_segmentors_that_override_the_prediction_are_refused():
    heads = pytest.importorskip('mmseg.models.decode_heads')

    class Own(heads.FCNHead):
        def predict_by_feat(self, seg_logits, batch_img_metas):
            return seg_logits.exp()

    model = nn.Module()
    model.backbone, model.decode_head = nn.Identity(), Own(num_convs=1, in_channels=4, channels=4, num_classes=3)
    with pytest.raises(UserError, match='has a decode_head of Own, expected a single decode head of mmseg that'):
        take_part(model, 'segmentation')
