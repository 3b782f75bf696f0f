# `mmseg::...` does not resolve (its distribution has another name), so mmseg's defaults are repeated here.
default_scope = 'mmseg'

# A child's custom_imports replace its parent's, so no other config sets them.
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)

env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')
