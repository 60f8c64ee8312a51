"""Numbers of things in messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """As in "1 video" and "2 videos"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
