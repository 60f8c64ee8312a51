"""`python -m tests.bad_inputs`: a table of the bad inputs of the suite by kind, with their numbers; it runs no test."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent

KINDS: dict[str, dict[str, str]] = {
    "damaged or missing files of a dataset": {
        "test_bad_input.py": "a_bad_video_is_one_line_and_stops_no_other malformed_json_writes_nothing",
        "cache/test_mevis.py": "check_names_the_fault a_key_that_occurs_twice_is_a_fault malformed_json_names_its_line",
        "cache/test_ref_youtube_vos_faults.py": "check_names_the_fault a_malformed_list_names_its_file a_damaged_annotation_raises",
        "cache/test_ref_davis17.py": "check_names_the_fault a_missing_annotator_raises a_damaged_annotation_raises",
        "cache/test_a2d_sentences.py": "check_names_the_fault a_malformed_list_names_its_file faults_of_the_original_files",
        "cache/test_jhmdb_sentences.py": "the_fault_is_named a_malformed_list_names_its_file damaged_files_raise_one_line",
        "cache/test_refcoco.py": "check_names_the_fault a_malformed_list_names_its_file an_entry_that_names_no_image",
        "cache/test_plain_faults.py": "check_names_the_fault a_malformed_list_names_its_file a_damaged_mask_raises",
        "cache/test_convert_ref_davis.py": "a_fault_is_named_and_nothing_is_left a_damaged_zip",
        "cache/test_frames.py": "a_damaged_video_file_is_one_line an_empty_folder_is_one_line two_files_of_one_frame_are_an_error",
    },
    "films and pictures whose pixels are not plain": {
        "cache/test_films.py": "a_film_without_one_right_reading_is_one_line a_film_of_high_dynamic_range_is_told "
        "pixels_that_are_not_square_are_told a_film_that_ends_before_its_length_is_told the_rate_of_uneven_frames_is_their_mean",
        "cache/test_orientation.py": "a_film_turned_by_another_angle_is_one_line a_folder_of_both_orientations_is_one_line "
        "frames_that_stay_as_stored_are_told",
        "cache/test_images.py": "a_picture_without_one_right_frame_is_one_line a_picture_of_16_bits_that_is_almost_black_is_told",
        "cache/test_frames.py": "a_folder_without_a_known_order_is_told an_order_that_the_names_do_not_tell",
    },
    "two processes at once, files of others": {
        "select/test_two_writers.py": "a_run_that_still_trains_is_not_resumed reading_a_run_changes_nothing_in_it "
        "a_merge_does_not_touch_what_another_one_writes a_report_replaces_only_what_a_report_wrote "
        "a_report_goes_into_no_folder_of_something_else "
        "two_sets_of_moving_shapes_do_not_mix",
        "cache/test_locks.py": "a_second_process_is_refused_with_the_name_of_the_first a_killed_process_blocks_nobody "
        "no_two_processes_are_ever_inside a_file_system_without_locks_is_a_warning",
        "test_ask.py": "two_at_once_on_one_folder the_video_that_was_asked_about_is_never_written files_that_ask_did_not_write_stay",
    },
    "text in other encodings": {
        "test_text_files.py": "a_byte_order_mark_changes_nothing another_encoding_is_one_line the_line_of_a_wrong_byte_is_named",
    },
    "names: of other bytes, outside of their folder": {
        "test_odd_names.py": "a_root_and_a_cache_may_have_any_name a_run_needs_a_name_of_text a_track_whose_name_is_no_text_is_named "
        "a_video_whose_name_is_no_text_stops_no_other what_the_terminal_cannot_show_is_escaped",
        "test_make.py": "a_value_may_have_blanks_and_quotes",
    },
    "numbers and settings out of range or unknown": {
        "test_odd_names.py": "a_number_out_of_range_is_one_line large_numbers_are_found_at_any_depth two_selectors_are_wrong_usage "
        "a_number_of_five_thousand_digits_is_cut_in_the_message a_module_larger_than_the_memory_is_one_line",
        "cache/test_corruptions.py": "another_name_or_severity_is_one_line",
        "cache/test_budget.py": "what_is_no_size_is_a_usage_error",
        "cache/test_sam2.py": "an_invalid_setting_is_named",
        "cache/test_frames_tracker.py": "a_frame_has_one_size what_cannot_be_extracted_beside_is_one_line_before_anything_runs",
        "cache/test_vita.py": "impossible_settings_are_refused",
        "cache/test_dvis.py": "impossible_dvis_settings_are_refused",
        "select/test_dervos_refiner_run.py": "settings_that_do_not_fit_are_one_line what_cannot_be_trained_on_is_one_line "
        "another_run_is_refused a_loss_that_is_not_finite_names_its_images too_little_memory_names_what_to_lower",
        "select/test_dervos_pages.py": "settings_that_do_not_fit_are_refused_before_the_extraction",
        "select/test_dervos_shapes.py": "what_is_missing_or_wrong_is_said_before_anything_is_trained",
        "select/test_dmvs.py": "settings_that_do_not_fit_are_one_line",
        "select/test_policy.py": "choices_that_cannot_be every_command_refuses_the_same",
        "test_end_to_end.py": "wrong_arguments_are_one_line",
    },
    "classes and functions that are none of ours, or break their contract": {
        "test_odd_names.py": "what_is_no_class_of_ours_is_one_line functions_of_the_user_are_held_to_their_arguments",
        "cache/test_plugins.py": "a_tracker_without_a_part_is_refused_before_anything_runs what_is_not_as_declared_fails_its_video "
        "a_module_that_cannot_be_imported a_module_that_is_nowhere",
        "cache/test_own_dataset.py": "a_class_that_is_no_dataset_is_one_line the_default_check_names_what_breaks_the_contract",
        "cache/test_encoder_contract.py": "a_class_that_is_no_encoder_is_one_line words_that_break_the_contract_are_one_line",
        "select/test_selector_checks.py": "a_broken_selector_fails_the_check_of_that_name a_class_without_a_part_is_one_line_at_load",
    },
    "checkpoints and weights": {
        "test_bad_input.py": "a_wrong_checkpoint",
        "cache/test_pretrained.py": "a_damaged_checkpoint_is_one_line a_weight_of_another_shape_is_named_with_both_shapes "
        "weights_in_a_pickle_are_not_read a_mistyped_folder_is_told_first",
        "cache/test_tensors.py": "anything_else_is_refused_in_one_line where_tensors_are_looked_for_is_told",
        "select/test_import_tuned.py": "an_upstream_that_is_older_than_its_tuning_is_told what_a_tuning_has_reached_is_told "
        "weights_that_nobody_trained_are_told what_is_no_tuned_folder_is_refused",
        "select/test_referdino_imported_rows.py": "an_imported_run_that_is_not_the_row_s_is_refused "
        "an_imported_run_without_its_upstream_is_one_line",
        "cache/test_beit3_convert.py": "each_missing_tensor_is_named each_wrong_shape_is_an_error code_in_a_checkpoint_is_not_run "
        "an_unknown_tensor_is_named_and_no_folder_is_left tokens_of_another_model_are_refused a_folder_that_is_none_is_one_line "
        "what_is_not_there_or_there_already_is_one_line",
        "cache/test_beit3_tokens.py": "a_model_of_another_kind_is_one_line files_that_are_none_are_one_line "
        "another_tokenizer_is_refused",
        "cache/test_clip_convert.py": "each_missing_tensor_is_named each_wrong_shape_is_an_error code_in_a_checkpoint_is_not_run "
        "an_unknown_tensor_is_named_and_no_folder_is_left a_wrong_vocabulary_says_where_the_right_one_is "
        "two_tensors_of_one_name_are_refused a_folder_that_is_no_clip_is_refused",
        "cache/test_vita_convert.py": "a_file_that_is_not_a_checkpoint_is_an_error_of_one_line code_in_a_checkpoint_is_not_run "
        "each_missing_tensor_is_named",
        "cache/test_dvis_convert.py": "a_file_that_is_not_a_dvis_checkpoint_is_an_error_of_one_line "
        "code_in_a_dvis_checkpoint_is_not_run an_online_checkpoint_is_refused "
        "an_unknown_or_missing_tensor_is_named_and_no_folder_is_left",
        "cache/test_dvis.py": "two_parts_of_different_dvis_checkpoints_are_refused what_convert_dvis_has_not_written_is_named",
        "select/test_dervos_refiner_run.py": "replace_refiner_refuses "
        "replace_refiner_says_how_far_a_run_is_that_is_not_finished",
        "cache/test_referdino_convert.py": "anything_else_beside_the_tensors_is_refused a_copy_that_differs_is_named "
        "weights_that_contain_the_product_of_lora_are_refused a_missing_tensor_is_named "
        "a_tensor_that_does_not_belong_or_fit_is_named what_is_not_there_or_there_already_is_one_line "
        "another_grounding_is_a_warning_and_the_right_one_none",
        "cache/test_gdino_queries.py": "masks_of_a_plain_grounding_dino_need_another_drawer a_wrong_sam2_names_its_own_setting "
        "tokens_that_do_not_fit_are_named_by_their_frame a_short_side_with_fewer_cells_than_queries_is_one_line",
        "cache/test_vita_head.py": "a_missing_or_misshapen_tensor_is_refused",
        "select/test_sola_checkpoint.py": "a_file_that_is_no_checkpoint_is_one_line",
        "select/test_selector_contract.py": "damaged_or_missing_weights_are_one_line",
        "cache/test_clip_pooling.py": "wrong_checkpoints_are_errors_of_one_line a_head_of_other_shapes_is_an_error "
        "a_damaged_preprocessor_config_is_an_error features_beyond_float16_name_the_frame",
    },
    "damaged caches and selections": {
        "test_bad_input.py": "a_damaged_cache_stops_no_other_video_in_predict tokens_that_are_not_numbers",
        "cache/test_store.py": "a_flipped_or_missing_chunk_is_never_read",
        "cache/test_store_leftovers.py": "foreign_files_are_found",
        "cache/test_faults.py": "200_byte_flips_are_found every_bit_of_a_failure_record_counts",
        "test_mutants_store.py": "a_layout_of_another_format_is_refused a_record_whose_parts_do_not_fit_is_refused",
        "select/test_merge.py": "a_damaged_video_stops_no_other damaged_selections_stop_no_other",
    },
    "caches, runs, selections that do not belong together": {
        "test_bad_input.py": "files_of_different_origin_are_one_line words_of_a_fixed_sentence_are_added_to_the_cache",
        "cache/test_beit3_encoder.py": "words_without_ids_are_refused_where_they_are_read",
        "cache/test_identity.py": "extraction_refuses_to_go_on_with_what_has_changed verify_notes_what_has_changed_since "
        "tracks_that_depend_on_labels_are_not_labelled_again",
        "select/test_bound.py": "words_of_other_sentences_are_refused words_of_another_split_may_not_add_sentences "
        "selections_do_not_apply_to_tracks_that_were_made_again selections_are_not_continued_with_other_words "
        "a_report_shows_the_scores_of_its_own_run a_report_draws_on_no_other_pictures pixels_are_those_that_were_tracked "
        "training_is_resumed_with_the_same_data_only other_data_at_the_root_is_refused "
        "masks_that_were_mended_in_the_dataset_are_noticed scores_against_other_ground_truth_are_not_compared "
        "caches_of_one_split_are_of_the_same_data",
        "cache/test_pool_clip.py": "what_cannot_be_pooled_is_one_line frames_that_have_changed_fail_and_relabelled_tracks_are_others",
        "select/test_clip_zero_shot.py": "what_does_not_fit_is_one_line what_ask_without_a_run_refuses "
        "ask_pools_the_tracks_of_a_run frames_that_change_while_they_are_pooled_leave_no_tracks",
        "select/test_submit.py": "masks_of_another_split_are_refused",
        "test_ask.py": "frames_that_were_overwritten_are_other_frames tracks_belong_to_the_content_of_the_frames "
        "frames_that_change_while_they_are_read_leave_no_tracks",
        "cache/test_differences.py": "the_deepest_name_is_given lists_of_records_of_other_lengths_are_not_printed",
        "select/test_train.py": "other_caches_do_not_resume_a_run_and_the_field_is_named",
        "select/test_merge.py": "a_folder_holds_masks_of_one_policy selections_of_other_caches_are_refused "
        "selections_of_other_frames_are_refused",
        "select/test_joint.py": "what_the_run_has_not_seen_is_one_line sets_of_other_widths_do_not_train_together",
        "test_end_to_end.py": "ask_refuses_models_that_the_run_was_not_trained_with predict_refuses_words_of_another_width",
    },
    "nothing to work on, nothing to learn": {
        "test_bad_input.py": "nothing_to_work_on_is_an_error",
        "select/test_summary.py": "a_cache_without_any_track_is_an_error clips_of_which_none_shows_an_object_are_an_error "
        "expressions_without_a_positive_label_are_counted expressions_that_name_nothing_are_told "
        "the_only_video_is_trained_on_whatever_its_name",
    },
    "predictions and scores": {
        "select/test_evaluate.py": "a_missing_frame_is_named_or_scored_zero",
        "select/test_evaluate_masks.py": "spoilt_masks_are_named",
        "select/test_evaluate_benchmarks.py": "a_missing_png_is_named_or_scored_zero",
        "select/test_ref_davis.py": "a_damaged_prediction_is_no_hole",
        "select/test_submit.py": "a_wrong_mask_is_named_and_nothing_written a_wrong_mask_of_davis_is_named_and_nothing_written",
        "test_mutants_scores.py": "what_holds_no_scores_of_the_protocol_is_one_line",
    },
    "other programs' tracks": {
        "cache/test_import_masks.py": "a_bad_file_is_named a_bad_folder_is_one_line_and_stops_no_other",
        "cache/test_import_sola_faults.py": "a_bad_video_is_one_line_and_stops_no_other a_folder_that_is_no_sam2_tracks",
    },
    "disks that are full or read-only": {
        "test_cut_short.py": "a_path_that_cannot_be_written a_full_disk_keeps_what_was_finished scores_on_a_full_device "
        "a_full_disk_while_masks_are_written",
        "select/test_train.py": "a_full_disk_is_one_line_and_loses_nothing a_full_disk_under_the_curves_is_one_line",
        "cache/test_spool.py": "a_full_disk_names_the_folder_of_the_temporary_file",
    },
    "Ctrl-C and killed processes": {
        "test_cut_short.py": "ctrl_c_leaves_a_resumable_state",
        "test_interrupts.py": "every_command_is_named_with_what_goes_on training_goes_on_with_the_printed_command "
        "shapes_in_many_processes_stop_at_once a_process_never_gets_ctrl_c an_interrupt_that_python_drops_is_raised_again",
        "cache/test_faults.py": "kills_at_random_times a_kill_before_any_write_leaves_no_part_of_a_video",
        "select/test_train.py": "a_kill_between_the_renames_of_a_checkpoint_loses_nothing",
        "select/test_processes.py": "a_killed_process_is_one_line",
    },
}  # fmt: skip
"""Kind -> file below tests/ -> names of its tests without "test_"."""


def collected() -> Counter[str]:
    """ "<file>::<test>" -> its number of inputs."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", str(HERE)]
    lines = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True).stdout.splitlines()
    return Counter(line.partition("[")[0].removeprefix("tests/") for line in lines if "::" in line)


def main() -> None:
    """Print the table. Raises KeyError for a test that the suite does not have."""
    counts, rows = collected(), []
    for kind, files in KINDS.items():
        tests = [f"{file}::test_{name}" for file, names in files.items() for name in names.split()]
        missing = [test for test in tests if test not in counts]
        if missing:
            raise KeyError(f"the suite has no {missing[0]}")
        rows.append((kind, len(tests), sum(counts[test] for test in tests), ", ".join(files)))
    print("| kind | tests | inputs | in |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print(f"| **all** | {sum(row[1] for row in rows)} | {sum(row[2] for row in rows)} | |")


if __name__ == "__main__":
    main()
