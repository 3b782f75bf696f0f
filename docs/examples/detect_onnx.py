"""Draw the detections of an ONNX detector. Needs only NumPy, OpenCV and ONNX Runtime: copy it into your own program.

    python detect_onnx.py detector.onnx image.jpg drawn.jpg

The file is a complete detector from ``tools/export.py --format onnx``; its metadata say how to prepare images.
"""

import json
import math
import sys

import cv2
import numpy as np
import onnxruntime


class Detector:
    """A detector in an ONNX file.

    Args:
        path (str): The file.
        providers (tuple[str]): Execution providers of ONNX Runtime.

    Raises:
        ValueError: The file is not a complete detector, or its test pipeline has steps that are not implemented here.
    """

    def __init__(self, path, providers=('CPUExecutionProvider',)):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: constant folding warns about operators on detections
        self.session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        if 'boxes' not in self.metadata:
            raise ValueError('not a complete detector: export one with tools/export.py --format onnx --part model')
        self.classes = json.loads(self.metadata['classes'])
        # Only steps that change the image, not those that load it or its annotations, or pack it.
        steps = [
            dict(step, type=step['type'].rsplit('.', 1)[-1]) for step in json.loads(self.metadata['test_pipeline'])
        ]
        self.steps = [step for step in steps if not step['type'].startswith(('Load', 'Pack')) and step.get('prob') != 0]
        for step in self.steps:
            if step['type'] not in ('Resize', 'Pad'):
                raise ValueError(f'the test pipeline has the step {step["type"]}: implement it in Detector.resize')

    def __call__(self, image):
        """Detect objects in an image ``(H, W, 3)`` uint8, as ``cv2.imread`` returns it.

        Returns:
            dict: ``boxes`` ``(N, 4)`` (left, top, right, bottom, in pixels), ``scores`` ``(N,)``, ``labels``
            ``(N,)`` and, if the detector has them, ``masks`` ``(N, H, W)`` bool; best first.

        Raises:
            ValueError: Another shape or type.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f'image is {image.dtype} {image.shape}, expected uint8 (H, W, 3) as cv2.imread reads it')
        resized, scale = self.resize(image)
        outputs = self.session.run(None, {'images': self.normalize(resized)})
        found = dict(zip((output.name for output in self.session.get_outputs()), outputs))
        boxes = found['boxes'] / np.tile(scale, 2)
        if 'masks' in found:
            if self.metadata['mask_kind'] == 'box':
                masks = [self.paste(mask, box, image.shape[:2]) for mask, box in zip(found['masks'], boxes)]
            else:
                masks = [self.enlarge(mask, scale, image.shape[:2]) for mask in found['masks']]
            found['masks'] = np.array(masks, bool).reshape(-1, *image.shape[:2])
        return dict(found, boxes=boxes.astype(np.float32))

    def resize(self, image):
        """Resize and pad an image as the test pipeline does; return it, and its scale in x and y."""
        height, width = image.shape[:2]
        scale = np.ones(2)
        for step in self.steps:
            if step['type'] == 'Pad':
                value = step.get('pad_val', 0)
                value = value.get('img', 0) if isinstance(value, dict) else value
                value = value if isinstance(value, (list, tuple)) else [value] * 3
                sides = image.shape[1::-1]
                size = [max(sides)] * 2 if step.get('pad_to_square') else step.get('size') or sides
                divisor = step.get('size_divisor') or 1
                right, below = (max(-(-side // divisor) * divisor - has, 0) for side, has in zip(size, sides))
                image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=value)
                continue
            size = step.get('scale')
            if size is None:
                factors = np.broadcast_to(step['scale_factor'], 2).tolist()
                size = [int(side * factor + 0.5) for side, factor in zip((width, height), factors)]
            if step.get('keep_ratio'):
                factor = min(max(size) / max(height, width), min(size) / min(height, width))
                size = [int(side * factor + 0.5) for side in (width, height)]
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
            scale = np.array(size) / (width, height)
        return image, scale

    def normalize(self, image):
        """Convert an image to the graph's input."""
        if self.metadata['preprocess'] == 'inside':
            return image[None]
        if self.metadata['channel_order'] == 'RGB':
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        mean, std = (np.array(json.loads(self.metadata[key]), np.float32) for key in ('mean', 'std'))
        return np.ascontiguousarray(((image - mean) / std).transpose(2, 0, 1)[None], np.float32)

    def paste(self, mask, box, size):
        """Paste the probabilities within a box into a mask of an image of a given size (height, width)."""
        whole = np.zeros(size, bool)
        weights, places = [], []
        for low, high, length, cells in zip(box[1::-1], box[3:1:-1], size, mask.shape):
            first, last = max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, length)
            place = (np.arange(first, last) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
            # Bilinear: the weight of each cell for each pixel.
            weights.append(np.maximum(1 - abs(place[:, None] - np.arange(cells)), 0))
            places.append(slice(first, max(last, first)))
        whole[tuple(places)] = weights[0] @ mask @ weights[1].T >= float(self.metadata['mask_threshold'])
        return whole

    def enlarge(self, mask, scale, size):
        """Enlarge the logits of the complete input to a mask of an image of a given size (height, width)."""
        stride, threshold = int(self.metadata['mask_stride']), float(self.metadata['mask_threshold'])
        sides = mask.shape[1] * stride, mask.shape[0] * stride
        mask = cv2.resize(mask, sides, interpolation=cv2.INTER_LINEAR)
        sides = [math.ceil(side * (1 / each)) for side, each in zip(sides, scale)]
        mask = cv2.resize(mask, sides, interpolation=cv2.INTER_LINEAR)
        return mask[: size[0], : size[1]] > math.log(threshold / (1 - threshold))

    def draw(self, image, found, least_score=0.3):
        """Draw boxes, names and masks of the detections with at least a given score."""
        image = image.copy()
        for index in np.flatnonzero(found['scores'] >= least_score)[::-1]:
            label = int(found['labels'][index])
            color = cv2.cvtColor(np.uint8([[[label * 47 % 180, 200, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]
            if 'masks' in found:
                mask = found['masks'][index]
                image[mask] = image[mask] // 2 + color // 2
            left, top, right, bottom = (int(round(float(side))) for side in found['boxes'][index])
            cv2.rectangle(image, (left, top), (right, bottom), color.tolist(), 2)
            name = self.classes[label] if label < len(self.classes) else str(label)
            text = f'{name} {found["scores"][index]:.2f}'
            cv2.putText(image, text, (left, max(top - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color.tolist(), 1)
        return image


def main():
    if len(sys.argv) != 4:
        sys.exit('usage: python detect_onnx.py detector.onnx image.jpg drawn.jpg')
    model, source, out = sys.argv[1:]
    if not cv2.haveImageWriter(out):
        sys.exit(f'{out}: expected the name of an image that OpenCV writes, such as drawn.jpg')
    image = cv2.imread(source)
    if image is None:
        sys.exit(f'{source} is not an image that OpenCV can read')
    try:
        detector = Detector(model)
    except Exception as error:  # the errors of ONNX Runtime have no common class
        sys.exit(f'{model} cannot be loaded: {error}')
    found = detector(image)
    if not cv2.imwrite(out, detector.draw(image, found)):
        sys.exit(f'{out} could not be written: its folder must exist and be writable')
    print(f'{len(found["scores"])} detections, best score {found["scores"].max(initial=0):.3f}: {out}')


if __name__ == '__main__':
    main()
