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
from rvos_cache.system.files import replace_folder, restore, set_aside, write_text
from rvos_cache.system.locks import folder_lock, is_unwritten
from rvos_cache.system.text_files import read_text
from rvos_cache.types import Expression, Selection
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation import Scope, evaluate_selections
from rvos_select.evaluation.oracle import oracle as oracle_step
from rvos_select.merging.policy import DRAW_THRESHOLD, SelectionPolicy, resolve_policy
from rvos_select.merging.tracks_by_frame import masks_of_scores
from rvos_select.metrics.metric import percent
from rvos_select.metrics.region_contour import REGION_CONTOUR
from rvos_select.metrics.scores import ExpressionScores
from rvos_select.metrics.table import METRICS
from rvos_select.paths import PathLike, Paths, as_paths
from rvos_select.reporting.curves import curves, histogram
from rvos_select.reporting.diagnose import Case, Cause, choose, diagnose, meanings
from rvos_select.reporting.pictures import PREDICTION, TRACK, overlay, strip
from rvos_select.runs.checkpoint import check_made_by, run_settings, training_word
from rvos_select.runs.metrics import read_metrics

EACH, FRAMES, TOP_TRACKS = 4, 5, 3
MAX_PARTS = 4
"""Changes of a query's track that are named beside its picture."""
PAGE, PICTURES, MARK = "index.html", "pictures", ".rvos-report"
GENERATOR = '<meta name="generator" content="rvos-select report">'
"""Part of every page. A page without it, and a folder of pictures without the file MARK, are not replaced."""
NAMES = {
    "sola": "SOLA", "mean_cosine": "mean cosine", "all_tracks": "all tracks", "oracle": "oracle (perfect labels)",
    "clip-zero-shot": "CLIP, zero-shot", "clip-zero-shot-several": "CLIP, zero-shot, several tracks",
    "sola_paraphrases": "SOLA, paraphrases", "mean_cosine_paraphrases": "mean cosine, paraphrases",
}  # fmt: skip


KINDS = {
    "static": "appearance suffices", "motion": "motion alone tells the objects apart", "mixed": "appearance and motion are needed",
    "both": "it has cues of appearance and of motion", "neither": "it has no cue", "none": "it names no object",
}  # fmt: skip
"""What the kinds of expressions in the table mean."""


def report(
    run: PathLike,
    selections: PathLike | None = None,
    caches: Paths = (),
    out: PathLike = "out/report",
    *,
    root: PathLike | None = None,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    more_rows: Mapping[str, PathLike] | None = None,
) -> Path:
    """Write `<out>/index.html` and its pictures; returns the page's path.

    selections, caches: of a split with ground truth; without them only the training is shown.
    Expressions without prediction score 0 and are listed; frames that cannot be read are grey.
    rows: name -> {"j", "f", "jf"} for the table; default: the selections and the oracle; more_rows: name -> file of `evaluate
    --json`, of the same expressions, for rows below those. Raises InputError.
    """
    added = {name: Path(path) for name, path in (more_rows or {}).items()}
    with naming(Path(out)), folder_lock(Path(out), "report"):
        return _report(
            Path(run),
            None if selections is None else Path(selections),
            as_paths(caches),
            Path(out),
            None if root is None else Path(root),
            rows,
            added,
        )


def _report(
    run: Path,
    selections: Path | None,
    caches: Sequence[Path],
    out: Path,
    root: Path | None,
    rows: Mapping[str, Mapping[str, Any]] | None,
    more_rows: Mapping[str, Path],
) -> Path:
    settings = run_settings(run)
    _check_out(out)
    for name in (PAGE, PICTURES):
        restore(out / name)
    body = [f"<h1>{escape(str(settings['settings']['selector']))}</h1>", _origin(settings)]
    results = ""
    if selections is not None:
        source, cache = TrackSource(caches), SelectionCache(selections)
        check_made_by(run, cache)
        scores = evaluate_selections(selections, caches, root=root, scope=Scope(allow_missing=True))
        has_tracks = any(card.channels for card in source.cards)
        best, missing = _oracle(caches, root, scores) if has_tracks else None, scores.get("missing", [])
        rows = _titled(rows or {"prediction": scores, **({} if best is None else {"oracle": best})})
        rows |= {name: read_row(path, scores) for name, path in more_rows.items()}
        label_iou = _label_iou(settings, source, cache)
        cases = diagnose(scores, best, label_iou)
        # The pictures of an earlier page stay until all of these are drawn.
        with replace_folder(out / PICTURES) as folder:
            (folder / MARK).touch()
            pictures = _cases(cases, source, cache, _dataset(source, root), folder)
        results = _missing(missing) + _results(cases, meanings(label_iou, has_tracks)) + _words(True) + pictures
    if rows:
        body.append(_table(rows if selections is not None else _titled(rows)))
    body.append(_training(run))
    body.append(results or _words(False))
    style = (Path(__file__).with_name("style.css")).read_text("utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{GENERATOR}"
        f"<title>{escape(os.fsencode(run).decode(errors='replace'))}</title><style>{style}</style></head><body>{''.join(body)}</body></html>"
    )
    write_text(out / PAGE, page)
    return out / PAGE


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
    return f'<p class="note">Without prediction, scored 0: {len(keys)} expressions ({escape(listed)}).</p>'


def _label_iou(settings: Mapping[str, Any], source: TrackSource, cache: SelectionCache) -> float | None:
    """The mean IoU above which a track is a positive: of the run, else of the caches. None: no mask is that of one track."""
    if DRAW_THRESHOLD in cache.card.extra or not all(map(cache.scores_tracks, cache.video_ids())):
        return None
    stored = [card.label_iou for card in source.cards if card.label_iou is not None]
    return float(settings["settings"].get("label_iou") or min(stored, default=0.5))


def _origin(settings: Mapping[str, Any]) -> str:
    card = settings["cards"]["tracks"][0]
    text = settings["cards"]["text"][0]["producer"]
    what = "tracks" if card.get("channels", 1) else "frames"
    origin = f"{training_word(settings)} on {card['dataset']} {card['split']}: {what} of {card['producer']}, words of {text}"
    origin += f", code {settings['commit'] or '?'}"
    return f'<p class="note">{escape(origin)}</p>'


def _titled(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {NAMES.get(name, name): row for name, row in rows.items()}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of scores: the fields of the metrics, then the main one for each kind of expressions."""
    fields = [field for metric in METRICS["video"] if metric.in_slices for field in metric.fields]
    kinds = sorted({kind for row in rows.values() for kind in row.get("kinds", {})})
    titles = [*(field.title for field in fields), *(f"{fields[0].title} {kind}" for kind in kinds)]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = []
    for name, row in rows.items():
        values = [field.value(row) for field in fields]
        values += [fields[0].value(row.get("kinds", {}).get(kind, {})) for kind in kinds]
        cells = "".join(f"<td>{percent(value)}</td>" for value in values)
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    meaning = "; ".join(f"{kind}: {KINDS[kind]}" for kind in kinds if kind in KINDS)
    note = f'<p class="note">Kinds of sentences: {escape(meaning)}.</p>' if meaning else ""
    return f"<h2>Scores, percent</h2><table><tr><th></th>{head}</tr>{''.join(lines)}</table>{note}"


def _training(run: Path) -> str:
    epochs = read_metrics(run)
    if not epochs:
        return ""

    def series(name: str) -> list[float]:
        return [row[name] for row in epochs if name in row]

    loss = curves("Loss", {"training": series("train/loss"), "validation": series("valid/loss")})
    scores = {field.title: series(f"valid/{field.key}") for field in REGION_CONTOUR.fields}
    score = curves("Validation, percent", scores, percent=True)
    return f'<h2>Training</h2><div class="charts">{loss}{score}</div>'


def _results(cases: Sequence[Case], causes: Mapping[Cause, str]) -> str:
    counts = Counter(case.cause for case in cases)
    lines = "".join(
        f'<tr><td><span class="cause">{escape(cause)}</span></td><td>{counts[cause]}</td><td class="text">{escape(text)}</td></tr>'
        for cause, text in causes.items()
    )
    chart = histogram("Expressions by J&F, percent", [case.jf for case in cases])
    return (
        f'<h2>Why expressions score what they do</h2><div class="charts">{chart}'
        "<figure><figcaption>Cause: the first that holds</figcaption><table><tr><th></th><th>count</th><th></th></tr>"
        f"{lines}</table></figure></div>"
    )


WORDS = {
    "expression": "one sentence about one video; its targets are the objects that it names",
    "track": "one candidate object: a mask in each frame, from the tracker; the selector scores it for each expression",
    "query": "a candidate of a selector's own, with predicted masks, or with the mask of another track in each frame",
    "score": "how well a track matches the sentence for the selector, 0 to 1; chosen: selected, so part of the prediction",
    "J": "region similarity: the IoU (intersection over union) of predicted and true mask, mean over the annotated frames",
    "F": "contour accuracy: the F-measure of the two masks' boundaries, mean over the annotated frames",
    "J&F": "the mean of J and F; of many expressions the mean of theirs",
    "mean IoU": "the IoU of a track and an object, mean over the annotated frames",
    "perfect labels": "the oracle: of each target the track with the largest mean IoU, together; a selector can hardly score more",
}
TRAINING_WORDS = {
    "epoch": "one pass over the training data; best/ has the weights of the epoch with the highest J&F in validation",
    "loss": "what training minimises, and the same on the videos of the validation",
}


def _words(results: bool) -> str:
    """The words of the page. results: whether it shows expressions."""
    words = {**(WORDS if results else {}), **TRAINING_WORDS}
    lines = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items())
    return f"<h2>Words</h2><dl>{lines}</dl>"


def _dataset(source: TrackSource, root: Path | None) -> Dataset | None:
    """The dataset with the frames; None where it cannot be opened."""
    card = source.card
    try:
        return open_dataset(card.dataset, root or Path(card.root), card.split)
    except InputError:
        return None


def _cases(cases: list[Case], source: TrackSource, cache: SelectionCache, frames: Dataset | None, pictures: Path) -> str:
    """The HTML of the cases. pictures: the folder to write their pictures to."""
    parts = []
    if frames is None:
        warnings.warn(
            f"report: the frames of {source.card.dataset} {source.card.split} are not at {source.card.root or 'the root of the card'}: "
            "masks are drawn on grey; give --root",
            stacklevel=4,
        )
        parts.append('<p class="note">The frames were not found: masks are drawn on grey. Give --root to see them.</p>')
    policy = resolve_policy(cache)
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
