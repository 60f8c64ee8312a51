"""The page of a run: one folder of HTML and pictures that a browser opens from disk."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError, naming
from rvos_cache.identity import frames_digest
from rvos_cache.store import SelectionCache, TrackInfo
from rvos_cache.system.counts import counted
from rvos_cache.system.files import replace_folder, restore, set_aside, write_text
from rvos_cache.system.locks import folder_lock, is_unwritten
from rvos_cache.system.text_files import read_text
from rvos_cache.types import Expression, Selection
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation import Scope, evaluate_selections
from rvos_select.evaluation.oracle import oracle as oracle_step
from rvos_select.merging.policy import DRAW_THRESHOLD, SelectionPolicy, resolve_policy
from rvos_select.merging.tracks_by_frame import masks_of_scores
from rvos_select.metrics.scores import ExpressionScores
from rvos_select.metrics.table import METRICS
from rvos_select.paths import PathLike, Paths, as_paths
from rvos_select.reporting.curves import histogram
from rvos_select.reporting.diagnose import Case, Cause, choose, diagnose, meanings
from rvos_select.reporting.pictures import PREDICTION, TRACK, overlay, strip
from rvos_select.reporting.tables import counts_expressions, score_table, titled
from rvos_select.reporting.training import training_charts, tuning_charts
from rvos_select.reporting.words import words_of
from rvos_select.runs.checkpoint import check_made_by, run_settings, training_word
from rvos_select.selectors import selector_class

EACH, FRAMES, TOP_TRACKS = 4, 5, 3
MAX_PARTS = 4
"""Changes of a query's track that are named beside its picture."""
PAGE, PICTURES, MARK = "index.html", "pictures", ".rvos-report"
GENERATOR = '<meta name="generator" content="rvos-select report">'
"""Part of every page. A page without it, and a folder of pictures without the file MARK, are not replaced."""


def report(
    run: PathLike | None,
    selections: PathLike | None = None,
    caches: Paths = (),
    out: PathLike = "out/report",
    *,
    root: PathLike | None = None,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    more_rows: Mapping[str, PathLike] | None = None,
) -> Path:
    """Write `<out>/index.html` and its pictures; returns the page's path.

    run: None for selections that no run made, as those of `select_all`; selections, caches: of a split with ground truth; without
    them only the training is shown.
    Expressions without prediction score 0 and are listed; frames that cannot be read are grey.
    rows: name -> {"j", "f", "jf"}, or the scores of another protocol, for the table; default: the selections and the oracle; more_rows:
    name -> file of `evaluate --json`, of the same expressions, for rows below those. Raises InputError.
    """
    added = {name: Path(path) for name, path in (more_rows or {}).items()}
    with naming(Path(out)), folder_lock(Path(out), "report"):
        return _report(
            None if run is None else Path(run),
            None if selections is None else Path(selections),
            as_paths(caches),
            Path(out),
            None if root is None else Path(root),
            rows,
            added,
        )


def _report(
    run: Path | None,
    selections: Path | None,
    caches: Sequence[Path],
    out: Path,
    root: Path | None,
    rows: Mapping[str, Mapping[str, Any]] | None,
    more_rows: Mapping[str, Path],
) -> Path:
    if run is None and selections is None:
        raise InputError("report: neither a run nor selections are given; give one of them")
    settings = None if run is None else run_settings(run)
    _check_out(out)
    for name in (PAGE, PICTURES):
        restore(out / name)
    table, results, pictures, heading = "", "", "", []
    if selections is not None:
        source, cache = TrackSource(caches), SelectionCache(selections)
        if run is not None:
            check_made_by(run, cache)
        scores = evaluate_selections(selections, caches, root=root, scope=Scope(allow_missing=True))
        has_tracks = any(card.channels for card in source.cards)
        best, missing = _oracle(caches, root, scores) if has_tracks else None, scores.get("missing", [])
        policy = resolve_policy(cache)
        rows = _rows(rows or {}, scores, best, policy) | {name: read_row(path, scores) for name, path in more_rows.items()}
        table = score_table(rows, _scope(source, scores, policy))
        label_iou = _label_iou(settings, source, cache)
        cases = diagnose(scores, best, label_iou, () if has_tracks else _naming_none(source))
        # The pictures of an earlier page stay until all of these are drawn.
        with replace_folder(out / PICTURES) as folder:
            (folder / MARK).touch()
            pictures = _cases(cases, source, cache, _dataset(source, root), policy, folder)
        results = _missing(missing) + _results(cases, meanings(label_iou, has_tracks))
        if settings is None:
            heading = [f"<h1>{escape(cache.card.producer)}</h1>", _untrained(source)]
    elif rows:
        table = score_table(titled(rows))
    training = ""
    if settings is not None and run is not None:
        heading = [f"<h1>{escape(str(settings['settings']['selector']))}</h1>", _origin(settings)]
        training = tuning_charts(settings) + training_charts(run)
    shown = [*heading, table, training, results]
    body = "".join([*shown, words_of("".join([*shown, pictures])), pictures])
    style = (Path(__file__).with_name("style.css")).read_text("utf-8")
    title = os.fsencode(run or selections or out).decode(errors="replace")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{GENERATOR}"
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{body}</body></html>"
    )
    write_text(out / PAGE, page)
    return out / PAGE


def _rows(
    rows: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any], best: Mapping[str, Any] | None, policy: SelectionPolicy
) -> dict[str, Mapping[str, Any]]:
    """The rows of the table. Where `rows` count other items than expressions, those of the expressions below are added."""
    oracle = {} if best is None else {"oracle": best}
    if not rows:
        return titled({f"prediction, {policy}": scores, **oracle})
    if all(map(counts_expressions, rows.values())):
        return titled(rows)
    added = {f"expressions, {policy}": scores, **{f"expressions, {name}": row for name, row in titled(oracle).items()}}
    return titled({**rows, **added})


def _scope(source: TrackSource, scores: Mapping[str, Any], policy: SelectionPolicy) -> str:
    """What the selections are of, as in "mevis valid_u: 793 expressions of 50 videos. Selection: threshold 0.2."."""
    splits = ", ".join(dict.fromkeys(f"{card.dataset} {card.split}" for card in source.cards))
    keys = scores["expressions"]
    videos = {key.partition("/")[0] for key in keys}
    return f"{splits}: {counted(len(keys), 'expression')} of {counted(len(videos), 'video')}. Selection: {policy}."


def _naming_none(source: TrackSource) -> set[str]:
    """Keys of the expressions that name no object, as far as the caches know."""
    infos = (source.info(video_id) for video_id in source.caches_of)
    return {expression.key for info in infos for expression in info.expressions if expression.targets == ()}


def read_row(path: Path, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores in a file of `evaluate --json`. Raises InputError if it is none, or of other expressions than `scores`."""
    try:
        row = json.loads(read_text(path))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a file that rvos-select evaluate --json wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); give a file that rvos-select evaluate --json wrote") from error
    if not isinstance(row, dict) or not isinstance(row.get("expressions"), dict) or "jf" not in row:
        raise InputError(f"{path}: no scores of videos; give a file that rvos-select evaluate --json wrote")
    different = sorted(row["expressions"].keys() ^ scores["expressions"].keys())
    if different:
        raise InputError(
            f"{path}: scores of other expressions than the selections, first {different[0]}; evaluate the same split"
        )
    return row


def _check_out(out: Path) -> None:
    """Raises InputError when `out` has a page or pictures that `report` did not write, or is a folder of something else."""
    page, pictures = out / PAGE, out / PICTURES
    if page.exists() and GENERATOR not in page.read_text("utf-8", errors="replace"):
        raise InputError(f"{page}: is there already and was not written by report; choose another --out, or remove it")
    if pictures.exists() and not (pictures / MARK).exists():
        raise InputError(f"{pictures}: is there already and was not written by report; choose another --out, or remove it")
    is_report = any(path.exists() for path in (page, pictures, set_aside(pictures)))
    if out.is_dir() and not is_report and not is_unwritten(out):
        raise InputError(f"{out}: is not empty and holds no report; choose another --out")


def _oracle(caches: Sequence[Path], root: Path | None, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The oracle's scores of the expressions in `scores`; those missing there score 0 here too."""
    missing = set(scores.get("missing", []))
    if not missing:
        return oracle_step(caches, root=root)
    predicted = {key.partition("/")[0] for key in scores["expressions"].keys() - missing}
    if not predicted:
        raise InputError(f"{caches[0]}: there is no prediction of any expression; predict first")
    oracle = oracle_step(caches, root=root, videos=sorted(predicted))
    best = oracle["expressions"]
    metrics = [metric for metric in METRICS["video"] if metric.item_fields]
    combined = ExpressionScores(metrics)
    for key in scores["expressions"]:
        numbers = None if key in missing else best.get(key)
        combined.add(key, numbers and [[numbers[field.key] for field in metric.item_fields] for metric in metrics])
    return {**combined.table(), "best_iou": oracle["best_iou"]}


def _missing(keys: Sequence[str]) -> str:
    if not keys:
        return ""
    listed = ", ".join(keys[:10]) + (" …" if len(keys) > 10 else "")
    return f'<p class="note">Without prediction, scored 0: {counted(len(keys), "expression")} ({escape(listed)}).</p>'


def _label_iou(settings: Mapping[str, Any] | None, source: TrackSource, cache: SelectionCache) -> float | None:
    """The mean IoU above which a track is a positive: of the run, else of the caches. None: no mask is that of one track."""
    if DRAW_THRESHOLD in cache.card.extra or not all(map(cache.scores_tracks, cache.video_ids())):
        return None
    stored = [card.label_iou for card in source.cards if card.label_iou is not None]
    own = None if settings is None else settings["settings"].get("label_iou")
    return float(own or min(stored, default=0.5))


def _origin(settings: Mapping[str, Any]) -> str:
    """Where the weights come from, and what the selector reads."""
    card, imported = settings["cards"]["tracks"][0], settings.get("imported", {})
    what = "tracks" if card.get("channels", 1) else "frames"
    reads = f"{what} of {card['producer']}"
    if not _encodes_text(settings["settings"]["selector"]):
        reads += f", words of {settings['cards']['text'][0]['producer']}"
    word = training_word(settings)
    origin = f"{word} on {card['dataset']} {card['split']}"
    if imported and word != "tuned":
        # The card of a released file has its name in the place of a dataset.
        origin = f"weights of {card['dataset'] if card['split'] == 'released' else Path(imported['checkpoint']).name}"
    return f'<p class="note">{escape(origin)}: reads {escape(reads)}, code {escape(settings["commit"] or "?")}</p>'


def _untrained(source: TrackSource) -> str:
    producers = ", ".join(dict.fromkeys(card.producer for card in source.cards))
    return f'<p class="note">nothing was trained: reads tracks of {escape(producers)}</p>'


def _encodes_text(selector: str) -> bool:
    """Whether no run of the selector reads words of a text cache."""
    try:
        return selector_class(selector).encodes_text is True
    except InputError:
        # A class of the user's that cannot be imported from here.
        return False


def _results(cases: Sequence[Case], causes: Mapping[Cause, str]) -> str:
    counts = Counter(case.cause for case in cases)
    lines = "".join(
        f'<tr><td><span class="cause">{escape(cause)}</span></td><td>{counts[cause]}</td><td class="text">{escape(text)}</td></tr>'
        for cause, text in causes.items()
        if counts[cause] or cause != "should be empty"
    )
    chart = histogram("Expressions by J&F, percent", [case.jf for case in cases])
    return (
        f'<h2>Why expressions score what they do</h2><div class="stack">{chart}'
        "<figure><figcaption>Cause: the first that holds</figcaption><table><tr><th></th><th>count</th><th></th></tr>"
        f"{lines}</table></figure></div>"
    )


def _dataset(source: TrackSource, root: Path | None) -> Dataset | None:
    """The dataset with the frames; None where it cannot be opened."""
    card = source.card
    try:
        return open_dataset(card.dataset, root or Path(card.root), card.split)
    except InputError:
        return None


def _cases(
    cases: list[Case],
    source: TrackSource,
    cache: SelectionCache,
    frames: Dataset | None,
    policy: SelectionPolicy,
    pictures: Path,
) -> str:
    """The HTML of the cases. pictures: the folder to write their pictures to."""
    parts = []
    if frames is None:
        warnings.warn(
            f"report: the frames of {source.card.dataset} {source.card.split} are not at {source.card.root or 'the root of the card'}: "
            "masks are drawn on grey; give --root",
            stacklevel=4,
        )
        parts.append('<p class="note">The frames were not found: masks are drawn on grey. Give --root to see them.</p>')
    for name, group in choose(cases, EACH).items():
        parts.append(f"<h2>{name.capitalize()} cases</h2>")
        parts.append('<p class="note">Orange: the prediction; cyan outline: the ground truth.</p>')
        parts += [_case(case, source, cache, frames, policy, pictures) for case in group]
    return "".join(parts)


def _case(
    case: Case, source: TrackSource, cache: SelectionCache, frames: Dataset | None, policy: SelectionPolicy, pictures: Path
) -> str:
    info, masks = source.info(case.video_id), source.masks(case.video_id)
    truth = source.ground_truth(case.video_id)
    expression = _expression(case, info, frames)
    selection = next(s for s in cache.selections(case.video_id) if s.expression_id == case.expression_id)
    masks, selected = masks_of_scores(selection, masks), policy(selection)
    union, true = masks.union(selected), truth.masks.union(truth.indices(expression.targets or ()))
    times = [int(t) for t in np.unique(np.linspace(0, info.frames - 1, FRAMES).round())]
    images = _images(frames, info, times)
    folder = pictures / case.video_id / case.expression_id
    main = folder / "prediction.jpg"
    strip([overlay(image, union.decode(0, t), PREDICTION, true.decode(0, t)) for image, t in zip(images, times)], main)
    cells = []
    for rank, k in enumerate(_best(selection)):
        path = folder / f"track-{rank}.jpg"
        strip([overlay(image, masks.decode(k, t), TRACK) for image, t in list(zip(images, times))[::2]], path)
        mark = ' <span class="chosen">chosen</span>' if k in selected else ""
        picture = f'<img loading="lazy" src="{_link(path, pictures)}" alt="">'
        cells.append(f"<div>{escape(_candidate(selection, k))}, score {selection.scores[k]:.2f}{mark}{picture}</div>")
    targets = len(expression.targets or ())
    best_track = "" if case.best_iou is None else f"best mean IoU of a track {100 * case.best_iou:.1f} · "
    perfect = "" if case.oracle is None else f"perfect labels {100 * case.oracle:.1f} · "
    facts = (
        f"{escape(case.key)} · J&amp;F {100 * case.jf:.1f} · {perfect}{best_track}"
        f"{targets} target{'s' * (targets != 1)} · {len(selected)} chosen"
    )
    return (
        f"<article><h3>{escape(expression.text)}</h3>"
        f'<p class="facts">{facts} · <span class="cause">{escape(case.cause)}</span></p>'
        f'<img loading="lazy" src="{_link(main, pictures)}" alt="{escape(expression.text)}">'
        f'<div class="tracks">{"".join(cells)}</div></article>'
    )


def _expression(case: Case, info: TrackInfo, frames: Dataset | None) -> Expression:
    """The case's expression in its dataset, else in the caches. Raises InputError when neither has it."""
    try:
        expressions = [*(frames.expressions(case.video_id) if frames else ()), *info.expressions]
    except InputError:
        expressions = list(info.expressions)
    expression = next((e for e in expressions if e.expression_id == case.expression_id), None)
    if expression is None:
        raise InputError(f"expression {case.key}: its sentence is neither in the caches nor in the dataset; give --root")
    return expression


def _images(frames: Dataset | None, info: TrackInfo, times: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The frames `times`, (H, W, 3); grey where they cannot be read."""
    if frames is not None:
        try:
            video = frames.video(info.video_id)
            images = [video.read(t) for t in times]
            same = info.frames_digest in (None, frames_digest(video))
        except (InputError, IndexError):
            pass
        else:
            if not same:
                raise InputError(
                    f"{frames.root}, video {info.video_id}: its frames are other pictures than those that were tracked; give "
                    "--root of the data that the cache was extracted from, or extract it again"
                )
            return images
    return [np.full((*info.size, 3), 128, np.uint8) for _ in times]


def _best(selection: Selection) -> list[int]:
    order: NDArray[np.intp] = np.argsort(-np.where(selection.candidates, selection.scores, -1.0), kind="stable")
    return [int(k) for k in order[:TOP_TRACKS] if selection.candidates[k]]


def _candidate(selection: Selection, k: int) -> str:
    """What score `k` is of: a track, or a query with the tracks of its parts in the order of the frames."""
    if selection.parts is None:
        return f"{'track' if selection.masks is None else 'query'} {k}"
    row = selection.parts[k]
    starts = np.flatnonzero(np.diff(row, prepend=-2))
    pieces = ["no mask" if row[t] < 0 else f"track {row[t]}" for t in starts[:MAX_PARTS]]
    pieces = [piece if t == 0 else f"{piece} from frame {t}" for piece, t in zip(pieces, starts)]
    more = f", {len(starts) - MAX_PARTS} more changes" if len(starts) > MAX_PARTS else ""
    return f"query {k} ({', '.join(pieces)}{more})"


def _link(path: Path, pictures: Path) -> str:
    return escape(quote(f"{PICTURES}/{path.relative_to(pictures).as_posix()}"))
