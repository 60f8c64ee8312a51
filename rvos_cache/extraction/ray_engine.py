"""Videos on a Ray cluster: one worker per GPU or per N cores; another worker retries the videos of one that dies."""

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
from rvos_cache.extraction.engine import Outcome, failure_message
from rvos_cache.extraction.local_engine import write_pending
from rvos_cache.extraction.work import Work
from rvos_cache.store import CacheWriter, Card

RETRIES = 2
"""How often a video is tried again after its worker died."""
START_WARNING = 60.0
"""Seconds without any started worker after which a warning is given."""


@dataclass(frozen=True)
class RayEngine:
    """Workers on an existing Ray cluster.

    address: as `ray.init` takes it (None: RAY_ADDRESS, else the cluster of this machine); cores: one worker per this many
    cores, None: one per GPU. All machines must have dataset, weights, cache, this package and the user's own modules at the
    same paths; Ray adds the current folder to the import path of its workers.
    """

    address: str | None = None
    cores: int | None = None

    def run(self, work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
        """Outcomes in the order they finish. Raises like Engine.run; InputError if there is no fitting machine."""
        if not videos:
            return
        with _connected(self.address) as ray, writer.backend.marker_file() as mark:
            count = min(_capacity(ray, self.cores), len(videos))
            resources = {"num_gpus": 1} if self.cores is None else {"num_cpus": self.cores}
            pool = _WorkerPool(ray, resources, (work, writer.backend.uri(), writer.card, mark), count)
            try:
                yield from pool.outcomes(videos)
            finally:
                pool.stop()


class Worker:
    """The Ray actor of one GPU: computes one video at a time, and writes the previous one at the same time."""

    def __init__(self, work: Work, address: str, card: Card, mark: str) -> None:
        self.work, self.address, self.card, self.mark = work, address, card, mark
        self.making = threading.Lock()

    def start(self) -> None:
        """Open cache, dataset and tracker. Raises InputError if this machine lacks one, or has another one at the same path."""
        self.writer = CacheWriter.attach(self.address, self.card, self.mark)
        self.work.open(self.card)

    def do(self, video_id: str) -> Outcome | OSError:
        """Compute and write a video. An error of the disk is returned: one that is raised would arrive as an error of Ray's."""
        try:
            with self.making:
                pending = self.work.make(video_id)
                if not pending.detached:
                    return write_pending(video_id, pending, self.writer)
            return write_pending(video_id, pending, self.writer)
        except Exception as error:
            try:
                return Outcome(video_id, 0, failure_message(error))
            except OSError as fatal:
                return OSError(fatal.errno, f"{fatal.strerror} on {socket.gethostname()}", fatal.filename or self.address)


@dataclass(eq=False)
class _Member:
    """A worker and the videos submitted to it. starting: until it has opened the cache; alone: it takes no second video."""

    actor: Any
    starting: bool = True
    alone: bool = False
    videos: list[str] = field(default_factory=list)


class _WorkerPool:
    """The workers of a run: `count` of them as long as there are videos; a worker that dies is replaced."""

    def __init__(self, ray: Any, resources: dict[str, int], arguments: tuple[Any, ...], count: int) -> None:
        self.ray, self.arguments, self.count = ray, arguments, count
        self.actor_class = ray.remote(Worker).options(max_concurrency=2, max_restarts=0, **resources)
        self.calls: dict[Any, tuple[_Member, str | None]] = {}
        self.members: list[_Member] = []
        self.deaths: Counter[str] = Counter()
        self.died_starting = 0

    def outcomes(self, videos: Sequence[str]) -> Iterator[Outcome]:
        """One per video. The videos of a dead worker go back to the end of the queue, at most RETRIES times each."""
        queue = deque(videos)
        for _ in range(self.count):
            self._start_worker()
        warned = False
        while queue or any(video_id is not None for _, video_id in self.calls.values()):
            self._submit(queue)
            ready, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=START_WARNING)
            if not ready and not warned and all(member.starting for member in self.members):
                warned = True
                warnings.warn("no worker has started: the Ray cluster is busy, or still loading the weights", stacklevel=2)
            for call in ready:
                yield from self._finish(call, queue)

    def stop(self) -> None:
        """End all workers; the next run processes what they have not published."""
        for member in self.members:
            with suppress(Exception):
                self.ray.kill(member.actor)

    def _start_worker(self) -> None:
        actor = self.actor_class.remote(*self.arguments)
        member = _Member(actor)
        self.members.append(member)
        self.calls[actor.start.remote()] = member, None

    def _submit(self, queue: deque[str]) -> None:
        """One video to each idle worker; if the queue is long, a second one, computed while the first is written."""
        for depth in (1, 2):
            for member in self.members:
                if not queue or member.starting or member.alone or len(member.videos) >= depth:
                    continue
                if depth == 2 and len(queue) < self.count:
                    return
                # A video whose worker died is retried alone, so that it does not take another video down again.
                retried = self.deaths[queue[0]] > 0
                if retried and member.videos:
                    continue
                video_id, member.alone = queue.popleft(), retried
                member.videos.append(video_id)
                self.calls[member.actor.do.remote(video_id)] = member, video_id

    def _finish(self, call: Any, queue: deque[str]) -> Iterator[Outcome]:
        member, video_id = self.calls.pop(call)
        try:
            result = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            # The worker is alive: this is the exception that start() raised.
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            yield from self._replace(member, video_id, queue, error)
            return
        if video_id is None:
            member.starting, self.died_starting = False, 0
            return
        member.videos.remove(video_id)
        member.alone = False
        if isinstance(result, OSError):
            raise result
        yield result

    def _replace(self, member: _Member, video_id: str | None, queue: deque[str], error: Exception) -> Iterator[Outcome]:
        if member in self.members:
            self.members.remove(member)
            self.died_starting += member.starting
            if self.died_starting > RETRIES * self.count:
                why = " ".join(str(error).split())[:300]
                raise InputError(f"workers die as they start, {self.died_starting} so far ({why}); see the logs of the cluster")
            self._start_worker()
        if video_id is None:
            return
        member.videos.remove(video_id)
        self.deaths[video_id] += 1
        if self.deaths[video_id] <= RETRIES:
            queue.append(video_id)
        else:
            yield Outcome(
                video_id, 0, f"its worker died {self.deaths[video_id]} times (out of memory?); see the logs of the cluster"
            )


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The ray module, connected. Raises InputError if it is not installed or there is no cluster."""
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--engine ray needs the package ray ({error}); pip install 'rvos[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    uri = address or os.environ.get("RAY_ADDRESS") or "auto"
    fix = "start one with `ray start --head` or give --ray-address"
    try:
        _check_listening(uri)
        if uri != "auto" and "RAY_AUTH_MODE" not in os.environ:
            # A cluster may require a token; a client with an explicit address does not send one by default.
            fix += ", and set RAY_AUTH_MODE=token for a cluster that asks for a token"
        ray.init(address=uri, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{uri}: no Ray cluster ({why}); {fix}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises OSError if nothing listens at `address`: Ray would wait for minutes and then end the whole process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _capacity(ray: Any, cores: int | None) -> int:
    """Number of workers that fit on the machines of the cluster. Raises InputError for none."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    name, per_worker = ("GPU", 1) if cores is None else ("CPU", cores)
    count = sum(int(node.get(name, 0) // per_worker) for node in alive)
    if count == 0:
        machines = ", ".join(f"{node.get('CPU', 0):.0f} cores and {node.get('GPU', 0):.0f} GPUs" for node in alive) or "none"
        needed = "GPU" if cores is None else f"machine with {cores} cores"
        raise InputError(f"the Ray cluster has no {needed} (machines: {machines}); give --ray-cores N that it has")
    return count
