"""The page of a run: one folder of HTML and pictures that a browser opens from disk."""

from __future__ import annotations

import json
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
from rvos_cache.files import write_text
from rvos_cache.store import SelectionCache, TrackInfo
from rvos_cache.types import Expression, Selection
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation import Scope, evaluate_selections
from rvos_select.evaluation.oracle import oracle as oracle_step
from rvos_select.merging.policy import SelectionPolicy, resolve_policy
from rvos_select.metrics.metric import percent
from rvos_select.metrics.region_contour import REGION_CONTOUR
from rvos_select.metrics.scores import ExpressionScores
from rvos_select.metrics.table import METRICS
from rvos_select.paths import PathLike, Paths, as_paths
from rvos_select.reporting.curves import curves, histogram
from rvos_select.reporting.diagnose import Case, choose, diagnose
from rvos_select.reporting.pictures import PREDICTION, TRACK, overlay, strip
from rvos_select.runs.checkpoint import run_settings

EACH, FRAMES, TOP_TRACKS = 4, 5, 3
NAMES = {
    "sola": "SOLA", "mean_cosine": "mean cosine", "all_tracks": "all tracks", "oracle": "oracle (perfect labels)",
    "sola_paraphrases": "SOLA, paraphrases", "mean_cosine_paraphrases": "mean cosine, paraphrases",
}  # fmt: skip


def report(
    run: PathLike,
    selections: PathLike | None = None,
    caches: Paths = (),
    out: PathLike = "out/report",
    *,
    root: PathLike | None = None,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write `<out>/index.html` and its pictures; returns the page's path.

    selections, caches: of a split with ground truth; without them only the training is shown.
    Expressions without prediction score 0 and are listed; frames that cannot be read are grey.
    rows: name -> {"j", "f", "jf"} for the table; default: the selections and the oracle. Raises InputError.
    """
    with naming(Path(out)):
        return _report(
            Path(run),
            None if selections is None else Path(selections),
            as_paths(caches),
            Path(out),
            None if root is None else Path(root),
            rows,
        )


def _report(
    run: Path,
    selections: Path | None,
    caches: Sequence[Path],
    out: Path,
    root: Path | None,
    rows: Mapping[str, Mapping[str, Any]] | None,
) -> Path:
    settings = run_settings(run)
    out.mkdir(parents=True, exist_ok=True)
    body = [f"<h1>{escape(str(settings['settings']['selector']))}</h1>", _origin(settings)]
    results = ""
    if selections is not None:
        source, cache = TrackSource(caches), SelectionCache(selections)
        scores = evaluate_selections(selections, caches, root=root, scope=Scope(allow_missing=True))
        best, missing = _oracle(caches, root, scores), scores.get("missing", [])
        rows = rows or {"prediction": scores, "oracle": best}
        cases = diagnose(scores, best)
        results = _missing(missing) + _results(cases) + _cases(cases, source, cache, _dataset(source, root), out)
    if rows:
        body.append(_table(rows))
    body.append(_training(run))
    body.append(results)
    style = (Path(__file__).with_name("style.css")).read_text("utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(str(run))}</title><style>{style}</style></head><body>{''.join(body)}</body></html>"
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _oracle(caches: Sequence[Path], root: Path | None, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The oracle's scores of the expressions in `scores`; those missing there score 0 here too."""
    missing = set(scores.get("missing", []))
    if not missing:
        return oracle_step(caches, root=root)
    predicted = {key.partition("/")[0] for key in scores["expressions"].keys() - missing}
    if not predicted:
        raise InputError(f"{caches[0]}: there is no prediction of any expression; predict first")
    best = oracle_step(caches, root=root, videos=sorted(predicted))["expressions"]
    metrics = [metric for metric in METRICS["video"] if metric.item_fields]
    combined = ExpressionScores(metrics)
    for key in scores["expressions"]:
        numbers = None if key in missing else best.get(key)
        combined.add(key, numbers and [[numbers[field.key] for field in metric.item_fields] for metric in metrics])
    return combined.table()


def _missing(keys: Sequence[str]) -> str:
    if not keys:
        return ""
    listed = ", ".join(keys[:10]) + (" …" if len(keys) > 10 else "")
    return f'<p class="note">Without prediction, scored 0: {len(keys)} expressions ({escape(listed)}).</p>'


def _origin(settings: Mapping[str, Any]) -> str:
    card = settings["cards"]["tracks"][0]
    text = settings["cards"]["text"][0]["producer"]
    origin = f"trained on {card['dataset']} {card['split']}: tracks of {card['producer']}, words of {text}"
    origin += f", code {settings['commit'] or '?'}"
    return f'<p class="note">{escape(origin)}</p>'


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
        lines.append(f"<tr><td>{escape(NAMES.get(name, name))}</td>{cells}</tr>")
    return f"<h2>Scores, percent</h2><table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _training(run: Path) -> str:
    path = run / "metrics.jsonl"
    if not path.exists():
        return ""
    try:
        epochs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: not JSON lines ({error}); run train --resume, which rewrites it") from error

    def series(name: str) -> list[float]:
        return [row[name] for row in epochs if name in row]

    loss = curves("Loss", {"training": series("train/loss"), "validation": series("valid/loss")})
    scores = {field.title: series(f"valid/{field.key}") for field in REGION_CONTOUR.fields}
    score = curves("Validation, percent", scores, percent=True)
    return f'<h2>Training</h2><div class="charts">{loss}{score}</div>'


def _results(cases: Sequence[Case]) -> str:
    counts = Counter(case.cause for case in cases)
    lines = "".join(f"<tr><td>{escape(cause)}</td><td>{count}</td></tr>" for cause, count in counts.most_common())
    chart = histogram("Expressions by J&F, percent", [case.jf for case in cases])
    return (
        f'<h2>Why expressions score what they do</h2><div class="charts">{chart}'
        f"<figure><figcaption>Cause</figcaption><table>{lines}</table></figure></div>"
    )


def _dataset(source: TrackSource, root: Path | None) -> Dataset | None:
    """The dataset with the frames; None where it cannot be opened."""
    card = source.card
    try:
        return open_dataset(card.dataset, root or Path(card.root), card.split)
    except InputError:
        return None


def _cases(cases: list[Case], source: TrackSource, cache: SelectionCache, frames: Dataset | None, out: Path) -> str:
    parts = []
    if frames is None:
        parts.append('<p class="note">The frames were not found: masks are drawn on grey. Give --root to see them.</p>')
    policy = resolve_policy(cache)
    for name, group in choose(cases, EACH).items():
        parts.append(f"<h2>{name.capitalize()} cases</h2>")
        parts.append('<p class="note">Orange: the prediction; cyan outline: the ground truth.</p>')
        parts += [_case(case, source, cache, frames, policy, out) for case in group]
    return "".join(parts)


def _case(
    case: Case, source: TrackSource, cache: SelectionCache, frames: Dataset | None, policy: SelectionPolicy, out: Path
) -> str:
    info, masks = source.info(case.video_id), source.masks(case.video_id)
    truth = source.ground_truth(case.video_id)
    expression = _expression(case, info, frames)
    selection = next(s for s in cache.selections(case.video_id) if s.expression_id == case.expression_id)
    masks = masks if selection.masks is None else selection.masks
    selected = policy(selection)
    union, true = masks.union(selected), truth.masks.union(truth.indices(expression.targets or ()))
    times = [int(t) for t in np.unique(np.linspace(0, info.frames - 1, FRAMES).round())]
    images = _images(frames, info, times)
    folder = out / "pictures" / case.video_id / case.expression_id
    main = folder / "prediction.jpg"
    strip([overlay(image, union.decode(0, t), PREDICTION, true.decode(0, t)) for image, t in zip(images, times)], main)
    cells = []
    for rank, k in enumerate(_best(selection)):
        path = folder / f"track-{rank}.jpg"
        strip([overlay(image, masks.decode(k, t), TRACK) for image, t in list(zip(images, times))[::2]], path)
        mark = ' <span class="chosen">chosen</span>' if k in selected else ""
        cells.append(
            f'<div>track {k}, score {selection.scores[k]:.2f}{mark}<img loading="lazy" src="{_link(path, out)}" alt=""></div>'
        )
    targets = len(expression.targets or ())
    facts = (
        f"{escape(case.key)} · J&amp;F {100 * case.jf:.1f} · perfect labels {100 * case.oracle:.1f} · "
        f"{targets} targets · {len(selected)} chosen"
    )
    return (
        f"<article><h3>{escape(expression.text)}</h3>"
        f'<p class="facts">{facts} · <span class="cause">{escape(case.cause)}</span></p>'
        f'<img loading="lazy" src="{_link(main, out)}" alt="{escape(expression.text)}">'
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
            return [video.read(t) for t in times]
        except (InputError, IndexError):
            pass
    return [np.full((*info.size, 3), 128, np.uint8) for _ in times]


def _best(selection: Selection) -> list[int]:
    order: NDArray[np.intp] = np.argsort(-np.where(selection.candidates, selection.scores, -1.0), kind="stable")
    return [int(k) for k in order[:TOP_TRACKS] if selection.candidates[k]]


def _link(path: Path, out: Path) -> str:
    return escape(quote(path.relative_to(out).as_posix()))
