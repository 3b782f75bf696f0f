"""Which tests ``make test-fast`` runs: the essential questions, in at most 90 seconds on 2 cores.

The rule needs no upkeep: of each module the first case of each of its first test functions, so a module begins with
what matters most. Modules for which that is too slow, or too little, are the rows of :data:`EXCEPTIONS`.
"""

from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
#: Functions of a module of which the first case is taken.
FUNCTIONS = 3
#: Module -> patterns of the tests (what follows the module in their ids) that are taken in place of the first ones.
EXCEPTIONS = {
    # Every network, and the rules of the house, which take milliseconds.
    'models/test_family.py': (
        'test_gives_a_pyramid_and_gradients?*(64, 64)?',
        'test_optimized_outputs_agree?*',
        'test_weights_survive_a_round_trip?*',
    ),
    'models/test_sizes.py': ('test_any_size_in_both_layouts_optimized_or_not?(1, 1)-1-*',),
    'test_house.py': ('*',),
    'test_docs.py': ('test_links_resolve?*', 'test_commands_within_the_text*'),
    # One of each library.
    'test_configs.py': (
        'test_config_trains_a_step_and_predicts?classification/fcvit_tiny_in1k?',
        'test_config_trains_a_step_and_predicts?detection/mask_rcnn_fcvit_tiny_coco?',
        'test_config_trains_a_step_and_predicts?segmentation/sem_fpn_fcvit_tiny_ade20k?',
        'TestClassification::test_schedule',
        'TestModelIndex::test_names_every_published_config_and_no_other',
    ),
    'test_inference.py': ('test_image_classification_inferencer',),
    'tools/test_train.py': ('test_trains_evaluates_and_saves?classification?',),
    'tools/test_test.py': ('test_segmentation',),
    'tools/test_app.py': (),
    'tools/analysis/test_attention.py': (),
    'tools/analysis/test_oversmoothing.py': (),
    'tools/analysis/test_receptive_field.py': (),
    'tools/analysis/test_similarity.py': (),
    'export/test_exporter.py': ('test_a_classifier_gives_the_scores_of_its_library?torchscript?',),
    'export/test_formats.py': ('test_any_size?fcvit-torchscript?',),
    'export/test_runtimes.py': ('test_openvino_runs_onnx_alone',),
    'images/test_opening.py': (),
    'analysis/test_report.py': (),
    'apis/test_stock.py': ('test_networks_have_dense_options',),
    'apis/predict/test_folder.py': (),
    'apis/predict/test_options.py': ('test_options_that_do_not_go_together?detection-options7*',),
    'apis/predict/test_predictor.py': (),
    'apis/predict/test_preparation.py': (),
    'apis/predict/test_processes.py': (),
    'apis/predict/test_run.py': (),
    'apis/test_count.py': ('test_known_layers_are_counted_exactly',),
    'app/test_page.py': ('test_text_on_the_page_is_no_markup', 'test_without_gradio'),
    'app/test_server.py': ('test_port_that_is_taken',),
    # Their first tests start many processes, compile, or train to the end: what is quick of them, if anything.
    'checkpoints/test_bad_files.py': ('test_invalid_files_are_refused?pickle that runs code-init_cfg?',),
    'checkpoints/test_convert.py': ('test_classifier?tiny-timm?',),
    'checkpoints/test_fuzz.py': ('test_published_names_round_trip',),
    'dev/benchmark/test_compile_kernels.py': (),
    'dev/benchmark/test_dense_step.py': ('test_a_step_of_a_classifier_is_another_commands',),
    'dev/benchmark/test_timed_networks.py': (),
    'dev/benchmark/test_measure.py': ('test_calls_are_timed_in_turn', 'test_ratios_are_taken_within_rounds'),
    'dev/benchmark/test_speed.py': ('test_a_dtype_that_the_device_lacks_is_named',),
    'dev/test_check_configs.py': (),
    'dev/test_check_resume.py': (),
    'dev/test_time_preflight.py': (),
    'dev/test_check_stock_configs.py': ('test_table', 'test_predictions_are_described'),
    'dev/test_fill_tables.py': ('test_a_missing_marker_is_named',),
    'engine/test_outputs.py': ('test_unique_names_are_written_to_one_folder',),
    'engine/hooks/test_resume.py': ('test_resumed_run_has_the_same_images_and_augmentations?True-DefaultSampler-4-2?',),
    'export/detectors/test_detections.py': (),
    'export/detectors/test_supported.py': ('test_a_detector_of_another_kind_is_refused_by_name',),
    'mmcv_ext/test_main.py': (),
    'models/test_modified.py': ('test_every_hook_fires?fcvit-False?',),
    'publishing/test_model_card.py': ('test_card_and_entry_say_what_is_known',),
    'ops/test_counters.py': ('test_flops_agree_with_the_reference?fcvit?',),
    'ops/triton/test_interpreter.py': (),
    'ops/triton/test_devices.py': ('test_needs_a_recent_version_of_triton?*',),
    'ops/triton/test_support.py': ('test_layouts',),
    'preflight/test_data_speed.py': ('test_workers_that_balance',),
    'preflight/test_gradients.py': ('test_several_processes_are_refused', 'test_heads_are_renumbered'),
    'preflight/test_trial.py': ('test_report',),
    'test_clients.py': (),
    'test_deprecation.py': ('test_renamed_names_are_found_where_they_were?*', 'test_old_registered_names_*'),
    'test_files.py': ('test_writes_and_replaces', 'test_a_failure_leaves_what_was_there?*', 'test_backend_of_mmengine'),
    'test_package.py': ('test_installing_into_an_existing_environment_changes_nothing_there',),
    'tools/test_demo.py': ('test_a_step_is_done_*',),
    'tools/test_dist.py': (),
    'tools/test_export.py': (),
    'tools/test_measure_data.py': (),
    'tools/test_get_flops.py': ('test_shape_that_is_none?*',),
    'tools/test_launch.py': ('test_scripts_say_how_they_are_used?*',),
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
    """Return which tests run in one process: a module's, and all that start commands, for which it imports much."""
    module = module_of(item)
    starts = module.startswith(('tools/', 'dev/')) or {'trained', 'shapes'} & set(item.fixturenames)
    return 'commands' if starts else module


def mark(items):
    """Give the tests that are taken the marker ``fast``, and the group that pytest-xdist hands to one process."""
    for module, group in groupby(items, module_of):
        of_module = list(group)
        taken = [item for item in of_module if any(fnmatch(name_of(item), p) for p in EXCEPTIONS.get(module, ()))]
        if module not in EXCEPTIONS:
            functions = {name_of(item).partition('[')[0]: item for item in reversed(of_module)}
            taken = list(functions.values())[::-1][:FUNCTIONS]
        for item in taken:
            item.add_marker(pytest.mark.fast)
            item.add_marker(pytest.mark.xdist_group(group_of(item)))
