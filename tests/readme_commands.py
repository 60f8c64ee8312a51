"""The commands that the READMEs print, read as a shell reads them, and the tests that run each of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
READMES = tuple(
    path
    for path in (ROOT / folder / "README.md" for folder in ("", "rvos_cache", "rvos_select", "pipelines", "tests"))
    if path.is_file()
)
ELLIPSES = ("...", "…")
PROGRAMS = ("rvos-cache", "rvos-select", "python", "python3", "make")

RUN_BY: dict[str, str] = {
    "rvos-cache check": "test_end_to_end.py::test_check_and_verify_find_no_fault",
    "rvos-cache check-tracker": "test_commands.py::test_check_tracker_names_each_test",
    "rvos-cache convert ref-davis": "test_commands.py::test_convert_ref_davis",
    "rvos-cache convert-beit3": "cache/test_beit3_convert.py",
    "rvos-cache convert-clip": "cache/test_clip_convert.py",
    "rvos-cache convert-dvis": "cache/test_dvis_convert.py",
    "rvos-cache convert-sam2": "cache/test_sam2_convert.py",
    "rvos-cache convert-vita": "cache/test_vita_convert.py",
    "rvos-cache export-sola": "test_commands.py::test_export_and_import_of_sola_folders",
    "rvos-cache extract": "test_end_to_end.py::work",
    "rvos-cache extract-all": "test_commands.py::test_extract_all_writes_tracks_and_words_of_every_split",
    "rvos-cache extract-text": "test_end_to_end.py::work",
    "rvos-cache fit-vita-basis": "cache/test_vita_profiles.py",
    "rvos-cache import-masks": "cache/test_import_masks.py",
    "rvos-cache import-sola": "test_commands.py::test_export_and_import_of_sola_folders",
    "rvos-cache info": "test_end_to_end.py::test_info_prints_what_its_json_holds",
    "rvos-cache mirror": "test_commands.py::test_mirror",
    "rvos-cache relabel": "test_commands.py::test_relabel",
    "rvos-cache pool-clip": "cache/test_pool_clip.py::test_the_command",
    "rvos-cache plan": "test_commands.py::test_plan_counts_the_split_and_writes_nothing",
    "rvos-cache replace-refiner": "select/test_dervos_refiner_run.py::test_replace_refiner_changes_the_refiner_alone",
    "rvos-cache settings": "test_commands.py::test_settings_lists_every_setting",
    "rvos-cache tune-referdino": "cache/test_referdino_tune.py::test_the_command",
    "rvos-cache shapes": "test_commands.py::work",
    "rvos-cache verify": "test_end_to_end.py::test_check_and_verify_find_no_fault",
    "rvos-select ask": "test_end_to_end.py::test_ask_predicts_the_masks_of_the_cached_route",
    "rvos-select check-selector": "test_commands.py::test_check_selector_names_each_test",
    "rvos-select compare": "test_end_to_end.py::test_compare_prints_the_paired_difference",
    "rvos-select evaluate": "test_end_to_end.py::test_pngs_and_selections_score_the_same",
    "rvos-select import-referdino": "test_end_to_end_referdino.py::work",
    "rvos-select import-ssa": "test_end_to_end_ssa.py::test_an_imported_checkpoint_predicts_as_its_run",
    "rvos-select import-sola": "select/test_sola_checkpoint.py",
    "rvos-select merge": "test_end_to_end.py::work",
    "rvos-select oracle": "test_end_to_end.py::test_oracle_is_above_the_prediction",
    "rvos-select predict": "test_end_to_end.py::work",
    "rvos-select report": "test_end_to_end.py::test_report_opens_from_disk",
    "rvos-select settings": "test_commands.py::test_settings_lists_every_setting",
    "rvos-select submit": "test_end_to_end.py::test_submission_has_a_folder_of_each_video_at_its_root",
    "rvos-select train": "test_end_to_end.py::work",
    "python -m pipelines": "test_rows.py::test_the_board_says_what_is_missing_and_where_to_get_it",
    "python -m pipelines compare": "test_rows.py::test_two_rows_are_compared",
    "python -m pipelines readme": "test_rows.py::test_the_readme_has_the_rows",
    "python -m pipelines run": "test_rows.py::test_a_row_ends_with_our_number_beside_the_papers",
    "python -m pipelines score": "test_rows.py::test_what_a_server_said_is_recorded",
    "python -m pipelines.dervos_mevis": "select/test_dervos_pages.py",
    "python -m pipelines.dervos_refiner": "select/test_dervos_refiner_run.py::test_the_page",
    "python -m pipelines.dervos_single_object": "select/test_dervos_pages.py",
    "python -m pipelines.dervos_shapes": "select/test_dervos_shapes.py",
    "python -m pipelines.dmvs_mevis": "select/test_dmvs_pages.py",
    "python -m pipelines.dmvs_shapes": "select/test_dmvs_pages.py",
    "python -m pipelines.dmvs_single_object": "select/test_dmvs_pages.py",
    "python -m pipelines.gdino_shapes": "select/test_gdino_shapes.py::test_random_weights_to_try_commands_with",
    "python -m pipelines.referdino_images": "select/test_referdino_image_pages.py",
    "python -m pipelines.referdino_mevis": "select/test_referdino_pages.py",
    "python -m pipelines.referdino_shapes": "select/test_gdino_shapes.py::test_the_page_by_what_a_sentence_needs",
    "python -m pipelines.referdino_single_object": "select/test_referdino_pages.py",
    "python -m pipelines.sola_joint": "select/test_sola_pages.py",
    "python -m pipelines.sola_mevis": "test_pipelines.py::test_sola_mevis_on_a_tiny_split",
    "python -m pipelines.sola_shapes": "test_pipelines.py::test_the_demo_on_a_few_videos",
    "python -m pipelines.sola_zero_shot": "select/test_sola_pages.py",
    "python -m pipelines.ssa_mevis": "select/test_ssa_pages.py",
    "python -m pipelines.ssa_shapes": "select/test_ssa_pages.py",
    "python -m pipelines.ssa_single_object": "select/test_ssa_pages.py",
    "python tests/bench/dervos_step.py": "bench/__main__.py",
    "python tests/bench/referdino_extract.py": "bench/__main__.py",
    "python tests/bench/referdino_step.py": "bench/__main__.py",
    "python -m tests.bench.gpu": "test_bench_gpu.py",
    "python tests/bench/sam2_bench.py": "bench/__main__.py",
    "make bench": "bench/__main__.py",
    "make demo": "test_pipelines.py::test_the_demo_on_a_few_videos",
    "make env": "../.ci/run",
    "make extract": "test_make.py",
    "make lint": "../.ci/run",
    "make reproduce": "test_make.py",
    "make test": "../.ci/run",
    "make test-all": "../.ci/run",
    "make types": "../.ci/run",
}
"""Command -> the test, fixture, test file or script that runs it, relative to tests/. The one list of what the READMEs promise.

`make extract` is run with -n: what make would start is then parsed by the command itself.
"""


@dataclass(frozen=True)
class Printed:
    """A command as a README prints it. line: number of its first line; partial: an ellipsis stands for some of its arguments."""

    readme: Path
    line: int
    words: tuple[str, ...]
    partial: bool

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2]

    @property
    def arguments(self) -> list[str]:
        return list(self.words[1:])

    def __str__(self) -> str:
        return f"{self.readme.relative_to(ROOT)}:{self.line}: {' '.join(self.words)}"


def printed_commands(readme: Path) -> list[Printed]:
    """The commands in the fenced blocks of a README, and those in backticks that have at least one argument.

    A line that ends in a backslash goes on; what stands behind " #" is a comment; "$ " before a command is a prompt. Blocks
    in a language other than a shell's are left out.
    """
    commands = []
    for number, text, inline in _pieces(readme.read_text("utf-8").splitlines()):
        words = _words(text)
        kept = tuple(word for word in words if word not in ELLIPSES)
        if len(kept) > 1:
            commands.append(Printed(readme, number, kept, partial=inline or len(kept) < len(words)))
    return commands


def _pieces(lines: list[str]) -> Iterator[tuple[int, str, bool]]:
    """Line number, text, and whether the text stands in backticks within a paragraph."""
    fence: str | None = None
    block: list[tuple[int, str]] = []
    paragraph: list[tuple[int, str]] = []
    for number, line in enumerate([*lines, ""], 1):
        mark = re.match(r"\s*(```+|~~~+)\s*(\w*)", line)
        if mark and fence is None:
            yield from _inline(paragraph)
            fence, shell, block, paragraph = mark[1], mark[2] in ("", "bash", "sh", "shell", "console"), [], []
        elif mark and fence is not None and mark[1].startswith(fence):
            if shell:
                yield from _joined(block)
            fence = None
        elif fence is not None:
            block.append((number, line))
        elif line.strip():
            paragraph.append((number, line))
        else:
            yield from _inline(paragraph)
            paragraph = []


def _joined(block: list[tuple[int, str]]) -> Iterator[tuple[int, str, bool]]:
    start, text = 0, ""
    for number, line in block:
        start = start if text else number
        text += line.strip() if not text else " " + line.strip()
        if text.endswith("\\"):
            text = text[:-1].rstrip()
            continue
        yield start, text, False
        text = ""


def _inline(paragraph: list[tuple[int, str]]) -> Iterator[tuple[int, str, bool]]:
    # A span may go on in the next line of its paragraph.
    text = "\n".join(line for _, line in paragraph)
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        first = paragraph[0][0] + text[: span.start()].count("\n")
        yield first, " ".join(span[1].split()), True


def _words(text: str) -> list[str]:
    """The words of a command of this project, else none."""
    text = re.sub(r"^\s*\$ ", "", text)
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise AssertionError(f"{text}: {error}") from error
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if not words or words[0].rpartition("/")[2] not in PROGRAMS:
        return []
    ends = [i for i, word in enumerate(words) if word in ("&&", "|", ";", ">", "&")]
    return words[: ends[0]] if ends else words
