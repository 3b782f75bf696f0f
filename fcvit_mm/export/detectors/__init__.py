"""Complete detectors as one graph, from an image to boxes, scores, labels and masks.

The networks are mmdet's own modules. mmdet's postprocessing uses lists of objects with data-dependent branches, which
no exporter records; here the same steps are arithmetic on tensors of dynamic length, with one class per detection head
type. The type of a head is determined by the class that defines its prediction method, not by its name.

Shapes: ``N`` candidates or detections, ``C`` classes, ``R`` regions.
"""
