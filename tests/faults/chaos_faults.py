"""What a campaign can do to a run. Each fault is a function of a campaign that starts a run or two, harms them at a
random moment, and waits for their end, which must be one that this fault may bring about.

A fault that finds nothing to harm (the run was complete before) is a run in peace.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial

import psutil
from campaign import Campaign, alive, titled

Fault = Callable[[Campaign], None]

COMPLETE, FAILED, LOST, INTERRUPTED = 0, 1, 4, 130
KILLED, TERMINATED = -signal.SIGKILL, -signal.SIGTERM
DRIVER_POINTS = ("plan", "verify", "file", "commit", "acknowledge")
WORKER_POINTS = ("read", "part", "unit")


def nothing(campaign: Campaign) -> None:
    campaign.end(campaign.start(), COMPLETE)


def kill_driver(campaign: Campaign) -> None:
    command = campaign.start()
    campaign.amid(command)
    campaign.kill(command)


def terminate_driver(campaign: Campaign, *, number: int) -> None:
    command = campaign.start()
    if campaign.amid(command):
        campaign.harm(f"signal {number} to the driver {command.process.pid}")
        command.process.send_signal(number)
    # Before Python has its handlers, the signal ends it
    campaign.end(command, COMPLETE, INTERRUPTED, -number)


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


def harm_worker(campaign: Campaign, *words: str, how: int, deadly: bool = False) -> None:
    """A signal to one to three processes with such a title; a stopped one goes on after a while."""
    command = campaign.start()
    for _ in range(campaign.choose.randint(1, 3)):
        if not campaign.amid(command):
            break
        found = titled(campaign.processes(command), *words)
        while not found and command.process.poll() is None:
            time.sleep(0.02)
            found = titled(campaign.processes(command), *words)
        if not found:
            break
        chosen = campaign.choose.choice(found)
        campaign.harm(f"signal {how} to {chosen.pid}")
        _tell(chosen, how)
        if how == signal.SIGSTOP:
            time.sleep(campaign.choose.uniform(0, 4))
            _tell(chosen, signal.SIGCONT)
    campaign.end(command, COMPLETE, *([FAILED] if deadly else []))


def kill_of_ray(campaign: Campaign, *, program: str) -> None:
    """A part of Ray itself, and with it, sooner or later, the run."""
    command = campaign.start()
    if campaign.amid(command):
        for process in titled(campaign.processes(command), program):
            campaign.harm(f"{program} {process.pid} is killed")
            _tell(process, signal.SIGKILL)
    try:
        campaign.runs[str(command.process.wait(90))] += 1
    except subprocess.TimeoutExpired:
        # Ray's driver waits for a GCS that may come back; whoever runs it does not
        campaign.kill(command)
    campaign.lose_cluster()


def failpoint(campaign: Campaign) -> None:
    """The driver dies at a named point; on a Ray of its own, each worker does at every passing of a number."""
    choose = campaign.choose
    side = choose.choice(("before", "after"))
    if campaign.on_cluster or choose.random() < 0.5:
        point = f"{side}-{choose.choice(DRIVER_POINTS)}@{choose.randint(1, 2)}"
    else:
        # A worker that dies at its first unit would never do one
        point = f"{side}-{choose.choice(WORKER_POINTS)}@{choose.randint(4, 8)}"
    done = campaign.end(campaign.start(env={"RAYBATCH_FAILPOINT": point}), COMPLETE, KILLED)
    if done.code == KILLED or "-read" in point or "-part" in point or "-unit" in point:
        campaign.harm(point)


def two_drivers(campaign: Campaign) -> None:
    commands = [campaign.start()]
    time.sleep(campaign.choose.choice([0.0, campaign.choose.uniform(0, 4)]))
    commands.append(campaign.start())
    codes = {campaign.end(command, COMPLETE, LOST).code for command in commands}
    if LOST in codes:
        campaign.harm("one of two drivers has lost")


def two_drivers_and_one_is_killed(campaign: Campaign) -> None:
    commands = [campaign.start(), campaign.start()]
    campaign.choose.shuffle(commands)
    campaign.amid(commands[0])
    campaign.kill(commands[0])
    campaign.end(commands[1], COMPLETE, LOST)


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


def input_arrives(campaign: Campaign) -> None:
    command = campaign.start()
    if campaign.amid(command):
        campaign.harm("input is added")
    campaign.add_input()
    campaign.end(command, COMPLETE)


def clean_up(campaign: Campaign) -> None:
    """`raybatch gc` beside a run, which in one time of two is killed."""
    command = campaign.start()
    if campaign.amid(command):
        campaign.harm("a clean-up begins")
    # 1, 2: there is no output yet
    campaign.end(campaign.start(command="gc"), COMPLETE, FAILED, 2)
    if campaign.choose.random() < 0.5 and command.process.poll() is None:
        campaign.kill(command)
    else:
        campaign.end(command, COMPLETE)


def _tell(process: psutil.Process, how: int) -> None:
    try:
        if alive(process):
            process.send_signal(how)
    except psutil.NoSuchProcess:
        return


ANYWHERE: Mapping[str, Fault] = {
    "none": nothing,
    "driver: SIGKILL": kill_driver,
    "driver: SIGTERM": partial(terminate_driver, number=signal.SIGTERM),
    "driver: SIGSTOP while another finishes": stop_driver,
    "driver or worker: a named failpoint": failpoint,
    "two drivers": two_drivers,
    "two drivers, one killed": two_drivers_and_one_is_killed,
    "worker: SIGKILL": lambda c: harm_worker(c, "RunStage", "Publish", how=signal.SIGKILL),
    "worker: SIGSTOP for a while": lambda c: harm_worker(c, "RunStage", "Publish", how=signal.SIGSTOP),
    "input added amid a run": input_arrives,
    "gc amid a run": clean_up,
}
WITH_ENGINES: Mapping[str, Fault] = {
    "engine: SIGKILL": lambda c: harm_worker(c, "ray::Replica", how=signal.SIGKILL),
    "engine: SIGSTOP": lambda c: harm_worker(c, "ray::Replica", how=signal.SIGSTOP),
    "pool of engines: SIGKILL": lambda c: harm_worker(c, "EnginePool", how=signal.SIGKILL, deadly=True),
}
RAY: Mapping[str, Fault] = {
    "raylet: SIGKILL": partial(kill_of_ray, program="raylet"),
    "GCS: SIGKILL": partial(kill_of_ray, program="gcs_server"),
}
ON_A_DISK: Mapping[str, Fault] = {"disk: full": full_disk}
EVERY = (*ANYWHERE, *WITH_ENGINES, *RAY, *ON_A_DISK)


def faults(campaign: Campaign, *, on_a_disk: bool) -> dict[str, Fault]:
    """Those that can befall the runs of a campaign."""
    engines = WITH_ENGINES if campaign.engine else {}
    return {**ANYWHERE, **engines, **RAY, **(ON_A_DISK if on_a_disk else {})}
