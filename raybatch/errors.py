"""Every error that raybatch raises on purpose, in one tree.

    RaybatchError                  exit 1: failed, resumable
    ├── UsageError                 exit 2: the command line or the file is wrong; nothing was started
    │   ├── SpecError              the pipeline or profile file: where, what, what is possible
    │   ├── SourceError            input that cannot be planned: missing, empty glob, unreadable, corrupt
    │   └── SinkError              output that cannot be used: not writable, belongs to another pipeline
    ├── StoreError                 the store below the ledger failed, or does not hold its condition
    ├── LedgerError                what is stored contradicts itself: never continued from
    │   ├── InputChangedError      an input object differs from the one that the plan pinned
    │   └── DriftError             the pipeline differs from the one that the plan was made for
    ├── CorruptInputError          an object stopped making sense in mid-read (truncated gzip, broken page)
    ├── EngineError                an engine cannot be had
    │   ├── EnginePendingError     the cluster cannot place it before the deadline
    │   └── EngineLoadError        it was placed, and failed to load: carries the engine's own words
    ├── StageError                 a stage broke as a whole, not on one row
    ├── TooManyPartitionsError     the rows make more partitions than `sink.max_partitions`
    ├── LostRaceError              exit 4: another run won
    ├── TooManyErrorsError         exit 5: more error rows than `run.max_error_rate`
    └── InterruptedRunError        exit 130: stopped by a signal; resumable

Callers branch on types, never on text. A failure of one row is no exception here but a
`raybatch.rows.RowFailure`: it becomes an error row, and the run goes on.
"""

from __future__ import annotations

from typing import ClassVar


class RaybatchError(Exception):
    """Base of all. `str(error)` is fit to show to a user: where, what, and what is possible."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls `cls(*args)`, which subclasses with keyword-only arguments refuse; these travel
        # from Ray tasks to the driver.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[RaybatchError], args: tuple[object, ...], state: dict[str, object]) -> RaybatchError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(RaybatchError):
    """The command line or a file it names is wrong; nothing was started."""

    exit_code = 2


class SpecError(UsageError):
    """The pipeline or profile file is wrong. The message holds one line per finding, `file:line: what`."""


class SourceError(UsageError):
    """The input cannot be planned; found before any work started."""


class SinkError(UsageError):
    """The output cannot be used; found before any work started."""


class StoreError(RaybatchError):
    """The object store or filesystem failed in a way that retrying did not cure."""


class LedgerError(RaybatchError):
    """The stored records contradict each other."""


class InputChangedError(LedgerError):
    """An input object is not the version that the plan pinned."""


class DriftError(LedgerError):
    """The pipeline is not the one that the unfinished plan was made for."""


class CorruptInputError(RaybatchError):
    """An input object cannot be read to its end."""


class EngineError(RaybatchError):
    """An engine cannot be had."""


class EnginePendingError(EngineError):
    """No node could take the engine before the deadline; says what it asks for and what there is."""


class EngineLoadError(EngineError):
    """The engine was placed and failed to load; carries the root cause in the engine's own words."""


class StageError(RaybatchError):
    """A stage failed as a whole: it could not be built, or broke its contract."""


class TooManyPartitionsError(RaybatchError):
    """The rows of an epoch make more partitions than the sink may write; what is published stays."""


class LostRaceError(RaybatchError):
    """Another run of the same pipeline committed first; everything it wrote stands."""

    exit_code = 4


class TooManyErrorsError(RaybatchError):
    """More error rows than `run.max_error_rate`; what is published stays."""

    exit_code = 5


class InterruptedRunError(RaybatchError):
    """A signal ended the run; the same command resumes it."""

    exit_code = 130
