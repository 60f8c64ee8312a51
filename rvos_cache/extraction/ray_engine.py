"""A Ray cluster: one worker per GPU, or per so many cores; what a worker's death leaves undone is done by another."""

from __future__ import annotations

import os
import socket
import threading
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.extraction.engine import Outcome, fault
from rvos_cache.extraction.local_engine import written
from rvos_cache.extraction.work import Work
from rvos_cache.store import CacheWriter, Card

AGAIN = 2
"""How often a video is tried again after the death of its worker."""
PATIENCE = 60.0
"""Seconds without any worker after which the user is told so."""


@dataclass(frozen=True)
class RayEngine:
    """Workers on an existing Ray cluster.

    address: as `ray.init` takes it (None: RAY_ADDRESS, else the cluster of this machine); cores: one worker per so many
    cores, None: one per GPU. Dataset, weights, cache and this package must be reachable from all machines.
    """

    address: str | None = None
    cores: int | None = None

    def run(self, work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
        """Outcomes as they come. Raises like Engine.run; InputError when there is no cluster or it has nothing to offer."""
        if not videos:
            return
        with _connected(self.address) as ray, writer.backend.marker_file() as mark:
            count = min(_capacity(ray, self.cores), len(videos))
            each = {"num_gpus": 1} if self.cores is None else {"num_cpus": self.cores}
            crew = _Crew(ray, each, (work, writer.backend.uri(), writer.card, mark), count)
            try:
                yield from crew.outcomes(videos)
            finally:
                crew.dismiss()


class Worker:
    """What runs on a GPU: makes one video at a time and writes the one before meanwhile. Ray makes an actor of it."""

    def __init__(self, work: Work, address: str, card: Card, mark: str) -> None:
        self.work, self.address, self.card, self.mark = work, address, card, mark
        self.making = threading.Lock()

    def start(self) -> None:
        """Open the cache, dataset and model. Raises InputError when this machine sees others, or none, under their names."""
        self.writer = CacheWriter.attach(self.address, self.card, self.mark)
        self.work.open(self.card)

    def do(self, video_id: str) -> Outcome | OSError:
        """Make and write a video. A fault of the disk is given back, because an actor's errors come home as Ray's own."""
        try:
            with self.making:
                made = self.work.make(video_id)
                if not made.detached:
                    return written(video_id, made, self.writer)
            return written(video_id, made, self.writer)
        except Exception as error:
            try:
                return Outcome(video_id, 0, fault(error))
            except OSError as fatal:
                return OSError(fatal.errno, f"{fatal.strerror} on {socket.gethostname()}", fatal.filename or self.address)


@dataclass(eq=False)
class _Member:
    """A worker of the crew and the videos it has in hand; starting: until it has opened the cache."""

    actor: Any
    starting: bool = True
    alone: bool = False
    videos: list[str] = field(default_factory=list)


class _Crew:
    """The workers of a run: `count` of them as long as there is work, whoever dies."""

    def __init__(self, ray: Any, resources: dict[str, int], given: tuple[Any, ...], count: int) -> None:
        self.ray, self.given, self.count = ray, given, count
        self.kind = ray.remote(Worker).options(max_concurrency=2, max_restarts=0, **resources)
        self.calls: dict[Any, tuple[_Member, str | None]] = {}
        self.members: list[_Member] = []
        self.deaths: Counter[str] = Counter()
        self.died_starting = 0

    def outcomes(self, videos: Sequence[str]) -> Iterator[Outcome]:
        """One per video. A dead worker's videos go back to the end of the queue, at most AGAIN times each."""
        queue = deque(videos)
        for _ in range(self.count):
            self._hire()
        told = False
        while queue or any(video_id is not None for _, video_id in self.calls.values()):
            self._hand_out(queue)
            ready, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=PATIENCE)
            if not ready and not told and all(member.starting for member in self.members):
                told = True
                warnings.warn("no worker has started: the Ray cluster is busy, or still loading the weights", stacklevel=2)
            for call in ready:
                yield from self._settle(call, queue)

    def dismiss(self) -> None:
        """End all workers; what they have not published is done by the next run."""
        for member in self.members:
            with suppress(Exception):
                self.ray.kill(member.actor)

    def _hire(self) -> None:
        actor = self.kind.remote(*self.given)
        member = _Member(actor)
        self.members.append(member)
        self.calls[actor.start.remote()] = member, None

    def _hand_out(self, queue: deque[str]) -> None:
        """A video to each idle worker; a second one, to be made while the first is written, where the queue is long."""
        for depth in (1, 2):
            for member in self.members:
                if not queue or member.starting or member.alone or len(member.videos) >= depth:
                    continue
                if depth == 2 and len(queue) < self.count:
                    return
                # A video that a worker died of is done alone, so that none dies beside it more than once.
                suspect = self.deaths[queue[0]] > 0
                if suspect and member.videos:
                    continue
                video_id, member.alone = queue.popleft(), suspect
                member.videos.append(video_id)
                self.calls[member.actor.do.remote(video_id)] = member, video_id

    def _settle(self, call: Any, queue: deque[str]) -> Iterator[Outcome]:
        member, video_id = self.calls.pop(call)
        try:
            said = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            # Not a death: what start() raised, in the words it was raised with.
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            yield from self._bury(member, video_id, queue, error)
            return
        if video_id is None:
            member.starting, self.died_starting = False, 0
            return
        member.videos.remove(video_id)
        member.alone = False
        if isinstance(said, OSError):
            raise said
        yield said

    def _bury(self, member: _Member, video_id: str | None, queue: deque[str], error: Exception) -> Iterator[Outcome]:
        if member in self.members:
            self.members.remove(member)
            self.died_starting += member.starting
            if self.died_starting > AGAIN * self.count:
                why = " ".join(str(error).split())[:300]
                raise InputError(f"workers die as they start, {self.died_starting} so far ({why}); see the logs of the cluster")
            self._hire()
        if video_id is None:
            return
        member.videos.remove(video_id)
        self.deaths[video_id] += 1
        if self.deaths[video_id] <= AGAIN:
            queue.append(video_id)
        else:
            yield Outcome(
                video_id, 0, f"its worker died {self.deaths[video_id]} times (out of memory?); see the logs of the cluster"
            )


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The ray module, connected. Raises InputError when it is not installed or finds no cluster."""
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--engine ray wants the package ray ({error}); pip install 'rvos[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    remedy = "start one with `ray start --head` or give --ray-address"
    try:
        _knock(where)
        if where != "auto" and "RAY_AUTH_MODE" not in os.environ:
            # `ray start` asks for a token where one exists; a client that was given an address does not show it by itself.
            remedy += ", and set RAY_AUTH_MODE=token for a cluster that asks for a token"
        ray.init(address=where, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: no Ray cluster ({why}); {remedy}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nothing listens: there Ray waits for minutes and then ends the whole process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _capacity(ray: Any, cores: int | None) -> int:
    """How many workers the cluster's machines hold. Raises InputError for none."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    name, each = ("GPU", 1) if cores is None else ("CPU", cores)
    count = sum(int(node.get(name, 0) // each) for node in alive)
    if count == 0:
        have = ", ".join(f"{node.get('CPU', 0):.0f} cores and {node.get('GPU', 0):.0f} GPUs" for node in alive) or "none"
        wanted = "a GPU" if cores is None else f"a machine with {cores} cores"
        raise InputError(f"the Ray cluster has not {wanted} (machines: {have}); give --ray-cores N that it has")
    return count
