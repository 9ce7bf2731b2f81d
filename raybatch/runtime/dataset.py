"""One epoch's units as a Ray Data dataset: read -> stages -> publish, one block per unit.

Ray Data gives parallelism, backpressure, spilling and the retry of tasks. A unit stays one block because a
read task gives exactly one (`override_num_blocks`), because blocks of one row cannot be split, and because
`batch_size=None` hands a block whole to each function. Neighbours with the same resources run in one task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raybatch.runtime.drain import StopSign
from raybatch.runtime.worker import Publish, ReadThen, ReadUnit, RunStage, Steps

# Workers that may die over one unit before the run ends: nodes come and go, but what kills eleven is the unit
MOST_DEATHS = 10


def records(
    reads: Sequence[ReadUnit],
    stages: Sequence[RunStage],
    publish: Publish,
    *,
    in_flight: int,
    stop: StopSign,
) -> Iterator[str]:
    """Run the units and give each unit's record (JSON) as soon as it is published, in no particular order.

    At most `in_flight` units are worked on at a time. Units that have not begun when `stop` goes up have no
    record. Closing the iterator stops the work.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None
    # Inside Ray Data's own error, ours would lose its type on its way to the driver
    context.raise_original_map_exception = True
    # Errors of ours are final: a row's trouble is an error row, so what is left is worth stopping for
    context.max_errored_blocks = 0
    (first, asked), *others = _tasks([*stages, publish], _resources(stages))
    data = ray.data.read_datasource(
        _units(reads, first, stop),
        override_num_blocks=len(reads),
        compute=ray.data.TaskPoolStrategy(size=in_flight),
        ray_remote_args={"max_retries": MOST_DEATHS},
        **asked,
    )
    for steps, asked in others:
        data = data.map_batches(
            steps,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=in_flight),
            max_retries=MOST_DEATHS,
            **asked,
        )
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch["record"].to_pylist()


def _tasks(
    steps: Sequence[RunStage | Publish], resources: Sequence[Mapping[str, Any]]
) -> list[tuple[Steps, Mapping[str, Any]]]:
    """The steps by task, and what each task reserves; the first one also reads. Neighbours that reserve the
    same are one task: Ray Data would fuse them too, but hand a unit from one to the next as a block, which is
    two copies of it. Without a model, that is a fifth of all work.
    """
    tasks: list[tuple[tuple[RunStage | Publish, ...], Mapping[str, Any]]] = [((), resources[0])]
    for step, asked in zip(steps, resources[1:], strict=True):
        before, same = tasks[-1]
        if asked == same:
            tasks[-1] = ((*before, step), same)
        else:
            tasks.append(((step,), asked))
    return [(Steps(steps=together), asked) for together, asked in tasks]


def _resources(stages: Sequence[RunStage]) -> list[Mapping[str, Any]]:
    """What each step (read, stages, publish) reserves. One that asks for nothing takes after its neighbour,
    so that they are one task.

    A task that waits for an engine holds no CPU: engines may have taken every CPU of a small cluster, and
    then nothing would ever feed them. Where engines do reserve CPUs, no other stage holds any either.
    """
    default: Mapping[str, Any] = {"num_cpus": 0 if any(s.context.engine for s in stages) else 1}
    reserving = any(spec.num_cpus for stage in stages for spec in stage.config.engines())
    asked = [default]
    for stage in stages:
        own = stage.config.resources()
        waits = stage.context.engine or reserving
        asked.append({**own, "num_cpus": 0} if waits else own or asked[-1])
    return [*asked, asked[-1]]


def _units(reads: Sequence[ReadUnit], first: Steps, stop: StopSign) -> Any:
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Units(Datasource):  # type: ignore[misc]  # ray is not followed by the type checker
        def estimate_inmemory_data_size(self) -> int | None:
            return sum(read.unit.bytes for read in reads)

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(ReadThen(read=read, steps=first, stop=stop), _metadata(read)) for read in reads]

        def get_name(self) -> str:
            return "->".join(["Unit", *(type(step).__name__ for step in first.steps)])

    def _metadata(read: ReadUnit) -> Any:
        size = read.unit.bytes or None
        return BlockMetadata(num_rows=1, size_bytes=size, input_files=None, exec_stats=None)

    return Units()
