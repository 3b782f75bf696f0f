"""Data sets in VOC format, with one XML file per image."""

import json
import shutil

import pytest
from problems import only_problem

from fcvit_mm.preflight.checks import data_problems


@pytest.fixture
def voc(make_config):
    """A config with a training set in VOC format, and the folder of this data set."""
    cfg, data = make_config('detection')
    root = data / 'VOC'
    for name in ('Annotations', 'JPEGImages'):
        (root / name).mkdir(parents=True)
    content = json.loads((data / 'annotations' / 'instances_train2017.json').read_text())
    names = {each['id']: each['name'] for each in content['categories']}
    for image in content['images']:
        shutil.copy(data / 'train2017' / image['file_name'], root / 'JPEGImages' / f'{image["id"]}.jpg')
        objects = ''
        for each in content['annotations']:
            if each['image_id'] == image['id']:
                x, y, width, height = each['bbox']
                corners = dict(xmin=x + 1, ymin=y + 1, xmax=x + width + 1, ymax=y + height + 1)
                box = ''.join(f'<{key}>{value}</{key}>' for key, value in corners.items())
                objects += f'<object><name>{names[each["category_id"]]}</name><bndbox>{box}</bndbox></object>'
        size = f'<size><width>{image["width"]}</width><height>{image["height"]}</height></size>'
        (root / 'Annotations' / f'{image["id"]}.xml').write_text(f'<annotation>{size}{objects}</annotation>')
    (root / 'train.txt').write_text('\n'.join(str(image['id']) for image in content['images']) + '\n')
    old = cfg.train_dataloader.dataset
    steps = [dict(step) for step in old.pipeline]
    steps[1].pop('with_mask')
    dataset = dict(type='VOCDataset', data_root=f'{root}/', ann_file='train.txt', data_prefix=dict(sub_data_root=''))
    cfg.train_dataloader = dict(cfg.train_dataloader, dataset=dict(dataset, metainfo=old.metainfo, pipeline=steps))
    cfg.model.roi_head.mask_head = None
    return cfg, root


def test_invalid_objects_in_xml_files(voc, logged):
    cfg, root = voc
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []
    first = root / 'Annotations' / '1.xml'
    text = first.read_text()
    name = text.partition('<name>')[2].partition('<')[0]
    first.write_text(text.replace(f'<name>{name}<', f'<name>{name.title()}<'))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any(f"lacks their names ('{name.title()}')" in line for line in logged)
    first.write_text(
        text.replace('xmin', 'x').replace('xmax', 'xmin').replace('<x>', '<xmax>').replace('</x>', '</xmax>')
    )
    assert 'boxes have no width or height, or their corners are swapped' in only_problem(cfg)
    cfg.train_dataloader.dataset.test_mode = True
    assert data_problems(cfg, ['train_dataloader']) == [] and 'they count as missed' in logged[-1]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda text: text[:40], '1.xml cannot be loaded (ParseError: '),
        (lambda text: text.replace('bndbox', 'robndbox'), '1.xml lacks an element that VOCDataset reads'),
    ],
)
def test_invalid_xml_files(voc, change, message):
    cfg, root = voc
    path = root / 'Annotations' / '1.xml'
    path.write_text(change(path.read_text()))
    assert message in only_problem(cfg) and "remove '1' from" in only_problem(cfg)


def test_list_file_with_suffixes(voc):
    cfg, root = voc
    (root / 'train.txt').write_text('1.jpg\n')
    found = only_problem(cfg)
    assert "train.txt: line 1 is '1.jpg', but " in found and found.endswith(
        'expected one name per line, without suffix'
    )
