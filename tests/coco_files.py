"""A COCO annotation file with one image and two objects, for the preflight tests."""

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
GOOD = dict(id=1, image_id=1, category_id=1, bbox=[2, 2, 10, 10], area=100, iscrowd=0, segmentation=SQUARE)
IMAGE = dict(id=1, img_id=1, file_name='1.jpg', width=64, height=48)


def file_of(**changes):
    other = {key: value for key, value in dict(GOOD, id=2, **changes).items() if value is not None}
    return dict(images=[IMAGE], categories=[dict(id=1, name='a'), dict(id=3, name='b')], annotations=[GOOD, other])
