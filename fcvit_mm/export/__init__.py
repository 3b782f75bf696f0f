"""Exporting models: exportable parts, file formats, complete detectors, 8-bit quantization, evaluation."""
