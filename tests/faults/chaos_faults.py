"""What a campaign can do to a run. Each fault is a function of a campaign that starts a command or two, harms them at
a random moment, and waits for their end, which must be one that this fault may bring about.

It says by `Campaign.harm` that it has found something to harm; one that has not has missed.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import psutil
from campaign import ERRORS, HANGS_S, UNFINISHED, Campaign, ViolationError, alive, titled

from pipelines import Command

COMPLETE, FAILED, LOST, TOO_MANY, INTERRUPTED = 0, 1, 4, 5, 130
KILLED, TERMINATED = -signal.SIGKILL, -signal.SIGTERM
WORKERS = ("RunStage", "Publish")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`needs`: what there must be before it (see `Campaign.prepare`); `engine`: only with engines; `disk`: only
    where the output is on one."""

    do: Callable[[Campaign], None]
    needs: str = UNFINISHED
    engine: bool = False
    disk: bool = False


# -- the driver ------------------------------------------------------------------------------------------------


def kill_driver(campaign: Campaign) -> None:
    command = campaign.start()
    campaign.amid(command)
    campaign.kill(command)


def terminate_driver(campaign: Campaign) -> None:
    """Units that have begun are finished within `run.grace_s`; in one time of three a second signal comes."""
    command = campaign.start()
    if campaign.amid(command):
        campaign.harm(f"SIGTERM to the driver {command.process.pid}")
        command.process.send_signal(signal.SIGTERM)
        if campaign.choose.random() < 0.3:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(campaign.choose.uniform(0, 2))
            command.process.send_signal(signal.SIGTERM)
    # Before Python has its handlers, the signal ends it
    campaign.end(command, COMPLETE, INTERRUPTED, TERMINATED)


def stop_driver(campaign: Campaign) -> None:
    """It sleeps while another run works, most often to its end, wakes up, and goes on."""
    first = campaign.start()
    commands = [first]
    if campaign.amid(first):
        campaign.harm(f"the driver {first.process.pid} is stopped")
        first.process.send_signal(signal.SIGSTOP)
        try:
            commands.append(campaign.start())
            # Where a cluster's only CPUs are lent to the one that sleeps, the other waits for it
            with contextlib.suppress(subprocess.TimeoutExpired):
                commands[1].process.wait(30)
        finally:
            first.process.send_signal(signal.SIGCONT)
    for command in commands:
        campaign.end(command, COMPLETE, LOST)


def driver_failpoint(campaign: Campaign) -> None:
    """The driver dies at a named point of an epoch, before or after it."""
    choose = campaign.choose
    points = ["verify@1", "verify@3", "file@1", "file@2", "commit", "acknowledge"]
    # A plan is made where nothing is unfinished
    point = choose.choice([*points, "plan", "plan"] if campaign.idle else points)
    name = f"{choose.choice(('before', 'after'))}-{point}".replace("after-verify", "before-verify")
    _die_at(campaign, name, campaign.start(env={"RAYBATCH_FAILPOINT": name}))


def _die_at(campaign: Campaign, name: str, command: Command) -> None:
    if campaign.end(command, COMPLETE, KILLED).code == KILLED:
        campaign.harm(f"died at {name}")


def too_many_errors(campaign: Campaign) -> None:
    """A limit on error rows ends a run, and a retry, killed or not, goes on."""
    campaign.mend(False)
    done = campaign.end(campaign.start("--set", "run.max_error_rate=0"), COMPLETE, TOO_MANY)
    if done.code == TOO_MANY:
        campaign.harm("too many error rows")
    campaign.mend(True)
    command = campaign.start(command="retry")
    if campaign.choose.random() < 0.5:
        campaign.amid(command)
        campaign.kill(command)
    else:
        campaign.end(command, COMPLETE)


# -- workers, engines, Ray --------------------------------------------------------------------------------------


def harm_worker(campaign: Campaign, *words: str, how: int, deadly: bool = False) -> None:
    """A signal to one to three processes with such a title; a stopped one goes on after a while."""
    command = campaign.start()
    for _ in range(campaign.choose.randint(1, 3)):
        if not campaign.amid(command):
            break
        found = titled(campaign.processes(command), *words)
        deadline = time.monotonic() + HANGS_S
        while not found and command.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            found = titled(campaign.processes(command), *words)
        if not found:
            break
        chosen = campaign.choose.choice(found)
        if _tell(chosen, how):
            campaign.harm(f"signal {how} to {chosen.pid}")
        if how == signal.SIGSTOP:
            time.sleep(campaign.choose.uniform(0, 4))
            _tell(chosen, signal.SIGCONT)
    campaign.end(command, COMPLETE, *([FAILED] if deadly else []))


def worker_failpoint(campaign: Campaign) -> None:
    """Each worker of a Ray of its own dies when it passes a point for the third time or so, again and again.

    A unit has up to three parts: one whose every attempt dies would be tried for ever.
    """
    choose = campaign.choose
    step = choose.choice(("read", "part", "unit"))
    times = choose.randint(3, 5) + (4 if step == "part" else 0)
    name = f"{choose.choice(('before', 'after'))}-{step}@{times}"
    command = campaign.start(env={"RAYBATCH_FAILPOINT": name}, own_ray=True)
    at_work: list[psutil.Process] = []
    deadline = time.monotonic() + HANGS_S
    while command.process.poll() is None and time.monotonic() < deadline:
        # Those without a task may go at any time: Ray keeps only some
        gone = [process.pid for process in at_work if not alive(process)]
        if gone and command.process.poll() is None:
            campaign.harm(f"the worker {gone[0]} died at {name}")
            break
        at_work = titled(campaign.processes(command, own_ray=True), *WORKERS)
        time.sleep(0.02)
    campaign.end(command, COMPLETE)


def kill_of_ray(campaign: Campaign, *, program: str) -> None:
    """A part of Ray itself, and with it, sooner or later, the run."""
    command = campaign.start()
    if campaign.amid(command):
        for process in campaign.processes(command):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == program and _tell(process, signal.SIGKILL):
                    campaign.harm(f"{program} {process.pid} is killed")
    try:
        campaign.runs[str(command.process.wait(90))] += 1
    except subprocess.TimeoutExpired:
        # Ray's driver may wait for what could come back; whoever runs it does not
        campaign.kill(command)
    campaign.lose_cluster()


def _tell(process: psutil.Process, how: int) -> bool:
    try:
        if alive(process):
            process.send_signal(how)
            return True
    except psutil.NoSuchProcess:
        pass
    return False


# -- others beside the run --------------------------------------------------------------------------------------


def two_drivers(campaign: Campaign) -> None:
    commands = [campaign.start()]
    time.sleep(campaign.choose.choice([0.0, campaign.choose.uniform(0, 4)]))
    commands.append(campaign.start())
    _both(campaign, commands, LOST)


def _both(campaign: Campaign, commands: list[Command], *allowed: int) -> None:
    """Wait for them; they have met if one lost."""
    codes = {campaign.end(command, COMPLETE, *allowed).code for command in commands}
    if LOST in codes:
        campaign.harm("one of two has lost")


def two_drivers_and_one_is_killed(campaign: Campaign) -> None:
    commands = [campaign.start(), campaign.start()]
    campaign.choose.shuffle(commands)
    campaign.amid(commands[0])
    campaign.kill(commands[0])
    campaign.end(commands[1], COMPLETE, LOST)


def input_arrives(campaign: Campaign) -> None:
    command = campaign.start()
    if campaign.amid(command):
        campaign.harm("input is added")
    campaign.add_input()
    campaign.end(command, COMPLETE)


def clean_up(campaign: Campaign) -> None:
    """`raybatch gc` over and over beside two runs, of which one is killed: both leave attempts that lost."""
    commands = [campaign.start(), campaign.start()]
    campaign.amid(commands[0])
    doomed = campaign.choose.choice([None, *commands])
    for _ in range(campaign.choose.randint(2, 4)):
        working = [command for command in commands if command.process.poll() is None]
        # 1, 2: there is no output yet
        done = campaign.end(campaign.start(command="gc"), COMPLETE, FAILED, 2)
        if working and done.code == COMPLETE:
            campaign.harm("a clean-up beside a run")
            campaign.collected += done.document["parts"]
        if doomed in working and doomed is not None and campaign.choose.random() < 0.5:
            campaign.kill(doomed)
            commands.remove(doomed)
            doomed = None
    for command in commands:
        campaign.end(command, COMPLETE, LOST)


def full_disk(campaign: Campaign) -> None:
    """No room for a worker's files, from some moment on."""
    full = campaign.folder / "full"
    command = campaign.start()
    campaign.amid(command)
    full.touch()
    try:
        if campaign.end(command, COMPLETE, FAILED).code == FAILED:
            campaign.harm("the disk was full")
    finally:
        full.unlink()


# -- error rows again -------------------------------------------------------------------------------------------


def choice(campaign: Campaign) -> list[str]:
    """Options of `raybatch retry` that choose some of the error rows, or all."""
    one = campaign.choose.choice(campaign.failed)
    by = (["--type", str(one.type)], ["--stage", str(one.stage)], ["--epoch", str(one.epoch)])
    return [
        word for each in campaign.choose.sample(by, campaign.choose.choice([0, 1, 1, 2])) for word in each
    ]


def chosen_retry(campaign: Campaign) -> None:
    """What was chosen is mended, and nothing else is touched."""
    args = choice(campaign)
    options = dict(zip(args[::2], args[1::2], strict=True))
    wanted = [
        one
        for one in campaign.failed
        if options.get("--type", one.type) == one.type
        and options.get("--stage", one.stage) == one.stage
        and options.get("--epoch", str(one.epoch)) == str(one.epoch)
    ]
    others = sorted(set(campaign.failed) - set(wanted), key=str)
    campaign.mend(True)
    taken = campaign.end(campaign.start(*args, command="retry"), COMPLETE).document["retry"]["taken"]
    campaign.harm(f"{taken} error rows are retried")
    campaign.check_amid()
    if taken != len(wanted) or sorted(campaign.failed, key=str) != others:
        raise ViolationError(
            f"a retry of {args} took {taken} of {len(wanted)} error rows, and left {len(campaign.failed)}"
            f" instead of {len(others)}"
        )


def kill_retry(campaign: Campaign, *, how: int) -> None:
    """A retry that is cut off is finished by a run, or by a retry."""
    args = choice(campaign)
    campaign.mend(campaign.choose.random() < 0.7)
    command = campaign.start(*args, command="retry")
    if campaign.amid(command):
        campaign.harm(f"signal {how} to the retry {command.process.pid}")
        command.process.send_signal(how)
    campaign.end(command, COMPLETE, INTERRUPTED, -how)
    if campaign.choose.random() < 0.5:
        campaign.end(campaign.start(*args, command="retry"), COMPLETE)


def retry_failpoint(campaign: Campaign) -> None:
    points = ("before-plan", "after-plan", "before-verify", "before-file", "after-file@2", "before-commit")
    name = campaign.choose.choice([*points, "after-commit"])
    campaign.mend(campaign.choose.random() < 0.7)
    command = campaign.start(*choice(campaign), command="retry", env={"RAYBATCH_FAILPOINT": name})
    _die_at(campaign, name, command)


def retry_and_run(campaign: Campaign) -> None:
    """Both at once, with new input: whoever plans the epoch first, neither may lose or repeat a row."""
    campaign.add_input()
    campaign.mend(campaign.choose.random() < 0.7)
    begin = [lambda: campaign.start(), lambda: campaign.start(*choice(campaign), command="retry")]
    campaign.choose.shuffle(begin)
    commands = [begin[0]()]
    time.sleep(campaign.choose.choice([0.0, 0.0, campaign.choose.uniform(0, 3)]))
    commands.append(begin[1]())
    _both(campaign, commands, LOST)


def two_retries(campaign: Campaign) -> None:
    """Of one choice, or of two that overlap."""
    campaign.mend(campaign.choose.random() < 0.7)
    commands = [campaign.start(*choice(campaign), command="retry") for _ in range(2)]
    if campaign.choose.random() < 0.4:
        campaign.amid(commands[0])
        campaign.kill(commands[0])
        campaign.end(commands[1], COMPLETE, LOST)
    else:
        _both(campaign, commands, LOST)


FAULTS: Mapping[str, Fault] = {
    "driver: SIGKILL": Fault(do=kill_driver),
    "driver: SIGTERM, drained": Fault(do=terminate_driver),
    "driver: SIGSTOP while another finishes": Fault(do=stop_driver),
    "driver: a named failpoint": Fault(do=driver_failpoint),
    "driver: too many error rows, then retry": Fault(do=too_many_errors),
    "worker: SIGKILL": Fault(do=lambda c: harm_worker(c, *WORKERS, how=signal.SIGKILL)),
    "worker: SIGSTOP for a while": Fault(do=lambda c: harm_worker(c, *WORKERS, how=signal.SIGSTOP)),
    "worker: a named failpoint": Fault(do=worker_failpoint),
    "engine: SIGKILL": Fault(do=lambda c: harm_worker(c, "ray::Replica", how=signal.SIGKILL), engine=True),
    "engine: SIGSTOP for a while": Fault(
        do=lambda c: harm_worker(c, "ray::Replica", how=signal.SIGSTOP), engine=True
    ),
    "pool of engines: SIGKILL": Fault(
        do=lambda c: harm_worker(c, "EnginePool", how=signal.SIGKILL, deadly=True), engine=True
    ),
    "Ray's raylet: SIGKILL": Fault(do=partial(kill_of_ray, program="raylet")),
    "Ray's GCS: SIGKILL": Fault(do=partial(kill_of_ray, program="gcs_server")),
    "two drivers": Fault(do=two_drivers),
    "two drivers, one killed": Fault(do=two_drivers_and_one_is_killed),
    "input added amid a run": Fault(do=input_arrives),
    "gc beside two runs": Fault(do=clean_up),
    "disk: full": Fault(do=full_disk, disk=True),
    "retry: of a choice, in peace": Fault(do=chosen_retry, needs=ERRORS),
    "retry: SIGKILL": Fault(do=partial(kill_retry, how=signal.SIGKILL), needs=ERRORS),
    "retry: SIGTERM": Fault(do=partial(kill_retry, how=signal.SIGTERM), needs=ERRORS),
    "retry: a named failpoint": Fault(do=retry_failpoint, needs=ERRORS),
    "retry beside a run": Fault(do=retry_and_run, needs=ERRORS),
    "two retries": Fault(do=two_retries, needs=ERRORS),
}
