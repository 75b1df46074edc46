"""Defects of the reference implementation that this package must not have, and the tests that would show them.

GUARDS maps each to its tests.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from selfjudge import lab
from selfjudge.config import DemoConfig
from selfjudge.demo import arm

GUARDS: dict[str, list[str]] = {
    "1 label read off the token boundary": [
        "test_labels::test_a_prompt_that_ends_in_a_blank_never_gives_the_plain_word"
    ],
    "2 sum over the pieces of a label": [
        "test_labels::test_a_spelling_of_several_tokens_adds_nothing",
        "test_labels::test_every_id_found_is_the_word_and_nothing_else",
        "test_real_input::test_a_real_tokenizer_samples_and_judges",
    ],
    "3 truncation at the right cuts the question": [
        "test_hf_backend::test_a_long_response_loses_its_middle",
        "test_real_input::test_rm_bench_rows_are_judged",
    ],
    "4 no chat template": [
        "test_sampling::test_prompts_are_rendered_by_template_or_plainly",
        "test_rendering::test_texts",
    ],
    "5 the safety question tells the answer": ["test_questions::test_the_safety_question_does_not_announce_the_answer"],
    "6 the raw split reported as official": [
        "test_benchmarks::test_paper_pools_categories_and_loses_ties",
        "test_benchmarks::test_a_file_of_another_split_is_refused",
    ],
    "7 ties counted as lost": [
        "test_stats::test_accuracy_counts_ties_half_and_shows_the_strict_figure",
        "test_steps::test_the_oracle_and_accuracy_by_hand",
    ],
    "8 half precision turns 0/0 into a tie": ["test_hf_backend::test_half_precision_does_not_tie"],
    "9 label mass unseen": ["test_head::test_label_mass_by_hand", "test_steps::test_the_summary_of_scores"],
    "10 the prefix computed anew for every response": ["test_hf_backend::test_shared_beginnings_are_computed_once"],
    "11 results written at the end, no resume": [
        "test_loop::test_a_run_killed_again_and_again_ends_as_a_straight_one",
        "test_bad_input::test_a_full_disk_loses_nothing",
        "test_store::test_any_cut_resumes_right",
    ],
    "12 one run overwrites another": [
        "test_bad_input::test_a_changed_option_of_a_finished_step",
        "test_bad_input::test_a_users_file_is_never_taken_for_an_output",
        "test_loop::test_a_changed_option_is_refused_and_not_recorded",
        "test_defects::test_every_arm_has_a_folder_of_its_own",
    ],
    "13 the grade parser reads the prompt": [
        "test_rating::test_the_prompt_is_never_read",
        "test_rating::test_grades",
    ],
    "14 the pairwise judge shows the chosen answer first": [
        "test_pairwise::test_a_liking_for_the_first_place_gives_a_tie",
        "test_pairwise::test_one_order_is_picked_by_neither_place_nor_gold",
    ],
    "15 a failure on the rejected side counts as right": [
        "test_stats::test_missing_values_are_left_out_of_the_mean",
        "test_selection::test_missing_scores_are_dropped",
        "test_pairwise::test_an_unreadable_verdict_counts_for_nobody",
        "test_rating::test_a_missing_grade_is_no_grade",
    ],
    "16 only the diagonal of RM-Bench": ["test_benchmarks::test_rm_bench_matrix"],
    "17 settings chosen on the test set": [
        "test_defects::test_settings_and_figures_come_from_other_questions",
        "test_search_questions::test_the_best_on_the_held_out_part_is_not_chosen",
    ],
    "18 silent fallback to somebody else's labels": [
        "test_bad_input::test_each_step_says_what_its_input_lacks",
        "test_loop::test_a_round_without_a_pair_says_why",
    ],
    "19 an unknown category is judged as code": [
        "test_judges::test_yes_no_finds_missing_categories_first",
        "test_judges::test_classify",
    ],
    "20 sampled on one template, trained on another": [
        "test_rendering::test_response_ids_continue_the_prompt",
        "test_bad_input::test_a_template_that_is_not_prefix_stable_is_not_trained_on",
        "test_loop::test_every_prompt_is_sampled_judged_and_selected_once",
    ],
    "21 the end token appended as text": ["test_rendering::test_the_templates_own_end_of_turn"],
    "22 equal scores ordered by the alphabet": [
        "test_selection::test_tie_at_the_top_goes_to_the_first",
        "test_rating::test_equal_grades_are_a_tie",
    ],
    "23 options accepted and ignored": [
        "test_config::test_combinations_that_do_nothing_or_cannot_work",
        "test_config::test_an_adapter_keeps_its_rank",
        "test_train::test_first_irepo_loss_is_the_mean_of_clipped_squares",
    ],
    "24 validation on the training file": [
        "test_train::test_validation_prompts_are_never_trained_on",
        "test_loop::test_held_out_prompts_are_in_no_round",
    ],
    "25 secrets as arguments, remote code by default": [
        "test_config::test_remote_code_is_off_by_default_and_no_option_takes_a_secret",
        "test_model_loading::test_pickled_weights_are_refused",
    ],
    "26 resuming because a folder exists": [
        "test_loop::test_a_checkpoint_in_pieces_is_not_resumed_from",
        "test_bad_input::test_the_input_of_an_unfinished_step",
        "test_store::test_other_options_are_refused_with_each_difference",
    ],
}

HERE = Path(__file__).parent


def test_every_defect_has_its_place() -> None:
    assert [int(name.split()[0]) for name in GUARDS] == list(range(1, 27))


@pytest.mark.parametrize("defect", GUARDS)
def test_the_guards_exist(defect: str) -> None:
    for guard in GUARDS[defect]:
        module, name = guard.split("::")
        tree = ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{guard} was renamed or removed; {defect!r} is unguarded"


def test_every_arm_has_a_folder_of_its_own() -> None:
    folders = {arm(DemoConfig(), judge).out for judge in ("yes-no", "oracle", "random")}
    assert len(folders) == 3


def test_settings_and_figures_come_from_other_questions() -> None:
    """Neither the prompts of the rounds nor the development questions are among the test questions."""
    test, dev, train = (
        {example.messages for example in source}
        for source in (lab.benchmark("test"), lab.benchmark("dev"), lab.prompts("train"))
    )
    assert len(test) > 100
    assert not test & dev
    assert not test & train
    assert not dev & train
