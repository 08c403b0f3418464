"""Reading the bytes of the next pairs in threads, while a worker process decodes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from typing_extensions import override

from lpips_lightning.sources.base import PairSource, SourcePair

_THREADS = 8
_PAIRS, _BYTES = 32, 64 << 20  # that are read ahead, at most
_Contents = tuple[bytes, bytes]


class ReadAhead(Iterator[tuple[SourcePair, _Contents | Exception]]):
    """Pairs of a unit in order, each with the bytes of both images, or the error of reading them.

    A context manager: on exit the threads end. At most 32 pairs are read ahead, and no further ones are begun while
    64 MiB are there, or expected: a pair that is being read counts as much as the largest so far.

    Args:
        source: The pairs.
        unit: Number of the unit.
    """

    def __init__(self, source: PairSource, unit: int) -> None:
        self._source, self._unit = source, unit
        self._read: deque[tuple[SourcePair, Future[_Contents]]] = deque()
        self._bytes = self._begun = self._largest = 0
        self._ended, self._left = False, False
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(_THREADS, "read-ahead")
        self._lister = threading.Thread(target=self._list, name="list-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._lister.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()
        self._lister.join()
        self._pool.shutdown(cancel_futures=True)

    @override
    def __next__(self) -> tuple[SourcePair, _Contents | Exception]:
        with self._changed:
            self._changed.wait_for(lambda: self._read or self._ended)
            if not self._read:
                if self._failure is not None:
                    raise self._failure
                raise StopIteration
            pair, future = self._read.popleft()
            self._changed.notify_all()
        failure = future.exception()
        if failure is None:
            with self._changed:
                self._bytes -= sum(map(len, future.result()))
                self._changed.notify_all()
            return pair, future.result()
        if not isinstance(failure, Exception):
            raise failure
        return pair, failure

    def _list(self) -> None:
        try:
            for pair in self._source.unit(self._unit):
                future = self._begin(pair)
                with self._changed:
                    self._read.append((pair, future))
                    self._changed.notify_all()
                    self._changed.wait_for(self._has_room)
                    if self._left:
                        return
        except Exception as error:
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        if self._left or not self._read:
            return True
        known = self._largest or self._begun < _THREADS
        return len(self._read) < _PAIRS and bool(known) and self._bytes + self._begun * self._largest < _BYTES

    def _begin(self, pair: SourcePair) -> Future[_Contents]:
        if not pair.error and pair.contents is None:
            with self._changed:
                self._begun += 1
            return self._pool.submit(self._contents, pair)
        future: Future[_Contents] = Future()
        if pair.error or pair.contents is None:
            future.set_exception(ValueError(pair.error))
        else:
            self._count(pair.contents)
            future.set_result(pair.contents)
        return future

    def _contents(self, pair: SourcePair) -> _Contents:
        a, b = pair.places or (pair.a, pair.b)
        try:
            contents = self._source.read(a), self._source.read(b)
            self._count(contents)
            return contents
        finally:
            with self._changed:
                self._begun -= 1
                self._changed.notify_all()

    def _count(self, contents: _Contents) -> None:
        with self._changed:
            self._bytes += (size := sum(map(len, contents)))
            self._largest = max(self._largest, size)
