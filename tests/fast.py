"""Selection of the tests of ``make test-fast``: the most important ones, in at most 90 seconds on 2 cores.

By default, the first case of each of the first test functions of a module is selected, so the most important tests of a
module come first. Modules for which this is too slow, or not enough, are listed in :data:`EXCEPTIONS`.
"""

from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
#: Number of test functions per module.
FUNCTIONS = 3
#: Patterns of the tests (the part of their ids after the module) that replace the default selection of a module.
EXCEPTIONS = {
    # All networks, and the rules of the code, which take milliseconds.
    'models/test_family.py': (
        'test_gives_a_pyramid_and_gradients?*(64, 64)?',
        'test_optimized_outputs_agree?*',
        'test_weights_survive_a_round_trip?*',
    ),
    'models/test_sizes.py': ('test_any_size_in_both_layouts_optimized_or_not?(1, 1)-1-*',),
    'test_conventions.py': ('*',),
    'test_docs.py': ('test_links_resolve?*', 'test_commands_within_the_text*'),
    # One test per library.
    'test_configs.py': (
        'test_config_trains_a_step_and_predicts?classification/fcvit_tiny_in1k?',
        'test_config_trains_a_step_and_predicts?detection/mask_rcnn_fcvit_tiny_coco?',
        'test_config_trains_a_step_and_predicts?segmentation/sem_fpn_fcvit_tiny_ade20k?',
        'TestClassification::test_schedule',
        'TestModelIndex::test_names_every_published_config_and_no_other',
    ),
    'test_inference.py': ('test_image_classification_inferencer',),
    'tools/test_train.py': ('test_trains_evaluates_and_saves?classification?',),
    'tools/test_test.py': ('test_segmentor_with_tta_out_and_show_dir',),
    'tools/test_app.py': (),
    'tools/analysis/test_attention.py': (),
    'tools/analysis/test_oversmoothing.py': (),
    'tools/analysis/test_receptive_field.py': (),
    'tools/analysis/test_similarity.py': (),
    'export/test_exporter.py': ('test_classifier_agrees_with_mmpretrain?torchscript?',),
    'export/test_formats.py': ('test_backbones_at_any_size?fcvit-torchscript?',),
    'export/test_runtimes.py': ('test_openvino_runs_only_onnx_files',),
    'images/test_opening.py': (),
    'analysis/test_report.py': (),
    'apis/test_stock.py': ('test_dense_options_give_four_outputs',),
    'apis/predict/test_folder.py': (),
    'apis/predict/test_options.py': ('test_invalid_options_are_refused?detection-options7*',),
    'apis/predict/test_predictor.py': (),
    'apis/predict/test_preparation.py': (),
    'apis/predict/test_processes.py': (),
    'apis/predict/test_run.py': (),
    'apis/test_count.py': ('test_stem_is_counted_exactly',),
    'app/test_page.py': ('test_text_on_the_page_is_escaped', 'test_missing_gradio_is_reported'),
    'app/test_server.py': ('test_port_in_use_is_reported',),
    # The first tests of these modules start many processes, compile or train; faster ones are selected, if any.
    'checkpoints/test_bad_files.py': ('test_invalid_files_are_refused?pickle that runs code-init_cfg?',),
    'checkpoints/test_convert.py': ('test_classifier?tiny-timm?',),
    'checkpoints/test_fuzz.py': ('test_published_names_round_trip',),
    'dev/benchmark/test_compile_kernels.py': (),
    'dev/benchmark/test_dense_step.py': ('test_classifiers_are_refused',),
    'dev/benchmark/test_timed_networks.py': (),
    'dev/benchmark/test_measure.py': ('test_functions_are_timed_in_turn', 'test_ratios_are_computed_per_round'),
    'dev/benchmark/test_speed.py': ('test_unsupported_dtype_is_reported',),
    'dev/test_check_configs.py': (),
    'dev/test_check_resume.py': (),
    'dev/test_time_preflight.py': (),
    'dev/test_check_stock_configs.py': ('test_table_is_updated', 'test_predictions_are_described'),
    'dev/test_fill_tables.py': ('test_missing_marker_is_reported',),
    'engine/test_outputs.py': ('test_unique_names_are_written_to_one_folder',),
    'engine/hooks/test_resume.py': ('test_resumed_run_has_the_same_images_and_augmentations?True-DefaultSampler-4-2?',),
    'export/detectors/test_detections.py': (),
    'export/detectors/test_supported.py': ('test_other_models_are_refused',),
    'mmcv_ext/test_main.py': (),
    'models/test_modified.py': ('test_every_hook_fires?fcvit-False?',),
    'publishing/test_model_card.py': ('test_card_and_metafile_entry',),
    'ops/test_counters.py': ('test_flops_agree_with_the_reference?fcvit?',),
    'ops/triton/test_interpreter.py': (),
    'ops/triton/test_devices.py': ('test_needs_a_recent_version_of_triton?*',),
    'ops/triton/test_support.py': ('test_layouts',),
    'preflight/test_data_speed.py': ('test_number_of_workers',),
    'preflight/test_gradients.py': (
        'test_distributed_training_with_an_unused_output_is_refused',
        'test_suggested_options_change_in_index',
    ),
    'preflight/test_trial.py': ('test_report_of_a_trial',),
    'test_clients.py': (),
    'test_deprecation.py': ('test_renamed_names_can_be_imported_*', 'test_deprecated_registered_names_*'),
    'test_files.py': (
        'test_files_are_written_and_replaced',
        'test_failed_write_keeps_*',
        'test_file_backend_of_mmengine',
    ),
    'test_package.py': ('test_installation_changes_no_other_packages',),
    'tools/test_demo.py': ('test_completed_step_*',),
    'tools/test_dist.py': (),
    'tools/test_export.py': (),
    'tools/test_measure_data.py': (),
    'tools/test_get_flops.py': ('test_invalid_shape_is_refused?*',),
    'tools/test_launch.py': ('test_scripts_without_arguments_print_their_usage?*',),
    'tools/test_lost_process.py': (),
    'tools/test_predict.py': (),
    'tools/test_replace_backbone.py': (),
    'tools/test_visualize.py': (),
}


def module_of(item):
    return item.path.relative_to(TESTS).as_posix()


def name_of(item):
    return item.nodeid.partition('::')[2]


def group_of(item):
    """Return the group of tests that run in one process: a module, or all tests that start commands."""
    module = module_of(item)
    starts = module.startswith(('tools/', 'dev/')) or {'trained', 'shapes'} & set(item.fixturenames)
    return 'commands' if starts else module


def mark(items):
    """Mark the selected tests as ``fast``, and set their group for pytest-xdist."""
    for module, group in groupby(items, module_of):
        of_module = list(group)
        taken = [item for item in of_module if any(fnmatch(name_of(item), p) for p in EXCEPTIONS.get(module, ()))]
        if module not in EXCEPTIONS:
            functions = {name_of(item).partition('[')[0]: item for item in reversed(of_module)}
            taken = list(functions.values())[::-1][:FUNCTIONS]
        for item in taken:
            item.add_marker(pytest.mark.fast)
            item.add_marker(pytest.mark.xdist_group(group_of(item)))
