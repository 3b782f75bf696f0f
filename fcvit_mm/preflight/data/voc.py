"""Data sets for detection with one XML file per image, as VOC has."""

import os.path as osp
from collections import Counter
from typing import Any, List, Sequence
from xml.etree import ElementTree

from mmengine.fileio import list_from_file

from ..limits import TimeLimit
from ..log import log_warning, shorten
from ..missing_files import near_file

#: Seconds for searching XML files for objects of other classes.
XML_SECONDS = 1.0


def unreadable_xml(dataset: Any) -> List[str]:
    """Find the first sample of a list of XML files that its library cannot load."""
    names = list_from_file(dataset.ann_file)
    if names and names[0].lstrip().startswith(('{', '[{', '<')):
        return [
            f'{dataset.ann_file} begins with {names[0].lstrip()[:20]!r}, but {type(dataset).__name__} reads a list of '
            'names, one per line: give the list (ImageSets/Main/*.txt of VOC), or for COCO format type="CocoDataset"'
        ]
    for number, name in enumerate(names, 1):
        path = osp.join(dataset.sub_data_root, dataset.ann_subdir, f'{name}.xml')
        image = osp.join(dataset.img_subdir, f'{name}.jpg')
        try:
            dataset.parse_data_info(dict(img_id=name, file_name=image, xml_path=path))
        except FileNotFoundError as error:
            missing = str(error.filename or path)
            near = near_file(missing)
            return [
                f'{dataset.ann_file}: line {number} is {name!r}, but {missing} does not exist'
                + (f'; {near}' if near else ': expected one name per line, without suffix')
            ]
        except AttributeError:
            return [
                f'{path} lacks an element that {type(dataset).__name__} reads (size/width, size/height, object/name, '
                f'object/bndbox/xmin, ymin, xmax, ymax): correct it, or remove {name!r} from {dataset.ann_file}'
            ]
        except Exception as error:
            # Broad, because its library has no error of its own.
            return [
                f'{path} cannot be loaded ({type(error).__name__}: {error}): correct it, or remove {name!r} from '
                f'{dataset.ann_file}'
            ]
    return []


def unknown_xml_names(dataset: Any, infos: Sequence[dict], limit: TimeLimit) -> None:
    """Report the objects in XML files that are skipped because no class has their name."""
    classes = set(dataset.metainfo['classes'])
    counted: Counter = Counter()
    for info in limit.part(infos, XML_SECONDS, f'{dataset.ann_file}: XML files searched for other classes'):
        counted.update(node.findtext('name') for node in ElementTree.parse(info['xml_path']).getroot().iter('object'))
    unknown = {str(name): number for name, number in counted.items() if name not in classes}
    if unknown:
        log_warning(
            f'{dataset.ann_file}: {sum(unknown.values())} of {sum(counted.values())} checked objects are skipped, as '
            f'metainfo.classes ({shorten(dataset.metainfo["classes"])}) lacks their names '
            f'({shorten(map(repr, unknown))}): add or correct them, unless these classes are not to be learned'
        )
