"""A library built on mmdet, as MMYOLO and MMRotate are: a scope, registries and models of its own."""
