"""The words of the page, explained for a reader who meets them for the first time."""

from __future__ import annotations

import re
from html import escape, unescape

WORDS = {
    "expression": "one sentence about one video; its targets are the objects that it names",
    "track": "one candidate object: a mask in each frame, from the tracker; the selector scores it for each expression",
    "query": "a candidate of a selector's own, with predicted masks, or with the mask of another track in each frame",
    "score": "how well a track matches the sentence for the selector, 0 to 1; chosen: selected, so part of the prediction",
    "threshold": "a track is selected where its score is above it",
    "J": "region similarity: the IoU (intersection over union) of predicted and true mask, mean over the annotated frames",
    "F": "contour accuracy: the F-measure of the two masks' boundaries, mean over the annotated frames",
    "J&F": "the mean of J and F; of many expressions the mean of theirs",
    "N-acc": "of the sentences that name no object, the share with an empty prediction",
    "T-acc": "of the sentences that name an object, the share whose prediction has a pixel",
    "mAP": "mean average precision: how well scores rank candidate masks, at IoU thresholds of 50 to 95 percent",
    "oIoU": "overall IoU: the pixels of all intersections over those of all unions",
    "mIoU": "mean IoU over the samples",
    "P@K": "the share of samples with an IoU above K percent",
    "mean IoU": "the IoU of a track and an object, mean over the annotated frames",
    "perfect labels": "the oracle: of each target the track with the largest mean IoU, together; a selector can hardly score more",
    "epoch": "one pass over the training data; best/ has the weights of the epoch with the highest J&F in validation",
    "step": "one update of the weights",
    "loss": "what training minimises; validation: the same on the videos of the validation",
}
PATTERNS = {"P@K": r"P@\d", "query": r"quer(y|ies)"}
"""Patterns of words that the page writes in another way."""


def words_of(body: str) -> str:
    """The words that the text of `body`, HTML, has."""
    text = unescape(re.sub(r"<[^>]*>", " ", body))
    used = {word: meaning for word, meaning in WORDS.items() if _pattern(word).search(text)}
    lines = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in used.items())
    return f"<h2>Words</h2><dl>{lines}</dl>" if lines else ""


def _pattern(word: str) -> re.Pattern[str]:
    # "F" is no word of "f", but "Loss" is one of "loss"; a name like gdino-queries is none of its parts.
    flags = re.IGNORECASE if word.islower() else 0
    return re.compile(rf"(?<![\w-])(?:{PATTERNS.get(word, re.escape(word))})s?(?!\w)", flags)
