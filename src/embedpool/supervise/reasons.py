"""A core plan's reasons in words, for `embedpool cores`, status and the log. Pure, and decides nothing: supervise.cores did."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from embedpool.supervise.topology import Machine, spelled

HOMES = {"cluster": "one cluster", "cache": "one last-level cache", "node": "one NUMA node", "machine": "the machine"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that was decided, and why, in a sentence or two."""

    about: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a plan was made of. `cores`: the first usable CPU of each physical core, `slow` those of them without a worker by
    default. `homes`: the cores of each place that a worker's threads may not leave. `places`: groups of cores; `most`: workers
    that fit; `asked` 0: as many as fit. `over`: more workers than groups."""

    machine: Machine
    cores: tuple[int, ...]
    slow: tuple[int, ...]
    home: str
    homes: tuple[int, ...]
    places: int
    most: int
    count: int
    asked: int
    threads: int
    over: bool
    rest: tuple[int, ...]
    pinned: bool
    wanted_pins: bool

    @property
    def over_quota(self) -> bool:
        quota = self.machine.quota
        return quota is not None and self.count * self.threads > quota.cpus and self.count > 1

    @property
    def bounded(self) -> bool:
        """Whether the quota, and not the number of cores, says how many workers fit."""
        quota = self.machine.quota
        return quota is not None and quota.cpus < self.places * self.threads

    @property
    def share(self) -> float:
        """The capacity of the slow cores' fastest, of the fastest core's."""
        capacities = {cpu.number: cpu.capacity for cpu in self.machine.cpus}
        return max(capacities[cpu] for cpu in self.slow) / max(capacities.values())


def sentence(made: Chosen) -> str:
    """The whole plan in one sentence."""
    limits = [f"{_many(len(made.cores), 'physical core')} of {_many(len(made.machine.cpus), 'allowed CPU')}"]
    if made.machine.offline:
        limits.append(f"{len(made.machine.offline)} more offline")
    if made.slow:
        limits.append(f"{len(made.slow)} of them slow")
    if made.bounded and made.machine.quota is not None:
        limits.append(f"a quota of {_of(made.machine.quota.cpus)}")
    how = "asked for" if made.asked else "as many as fit"
    said = f"{_many(made.count, 'worker')} with {_many(made.threads, 'thread')} each ({how}): {', '.join(limits)}"
    if made.over:
        said += "; more than fit, so they share cores"
    elif made.over_quota:
        said += "; more than the quota gives, so they will be throttled"
    return said + ("" if made.pinned else "; not pinned")


def choices(made: Chosen) -> tuple[Choice, ...]:
    """Every reason of it, in the order in which it was decided."""
    found = (
        Choice("CPUs", _cpus(made)),
        Choice("cores", _cores(made)),
        Choice("slow cores", _slow(made)),
        Choice("threads", _threads(made)),
        Choice("quota", _quota(made)),
        Choice("NUMA", _nodes(made)),
        Choice("workers", _workers(made)),
        Choice("pinning", _pinning(made)),
        Choice("the rest", _rest(made)),
    )
    return tuple(choice for choice in found if choice.why)


def _cpus(made: Chosen) -> str:
    bounds, usable = made.machine.bounds, made.machine.bounds.usable
    said = f"{len(usable)} of {_many(len(bounds.online), 'online CPU')} may be used"
    if bounds.affinity is not None and bounds.online - bounds.affinity:
        said += f"; the affinity mask (taskset, a cpuset, systemd's CPUAffinity=) allows {spelled(bounds.affinity)}"
    elif bounds.cpuset is not None and bounds.online - bounds.cpuset:
        said += f"; the cgroup's cpuset allows {spelled(bounds.cpuset)}"
    if made.machine.offline:
        said += (
            f". CPUs {spelled(made.machine.offline)} are offline (a power mode, or hotplug); a running pool plans again when"
        )
        said += " they come back"
    return said + "."


def _cores(made: Chosen) -> str:
    threads = len(made.machine.cpus)
    if threads == len(made.cores):
        return "Each of them is a physical core of its own, as far as the system says."
    return (
        f"They are the threads of {_many(len(made.cores), 'physical core')}. A core gets one thread of work: its siblings share"
        " the arithmetic units that a model keeps busy."
    )


def _slow(made: Chosen) -> str:
    if not made.slow:
        return ""
    capacities = {cpu.number: cpu.capacity for cpu in made.machine.cpus}
    fast = sum(capacities[cpu] for cpu in made.cores if cpu not in made.slow)
    more, used = sum(capacities[cpu] for cpu in made.slow) / fast, not set(made.slow) <= set(made.rest)
    said = (
        f"{_named(made.slow, 'has', 'have')} {made.share:.2f} of the fastest one's capacity, below the 0.6 of a worker's core"
    )
    if used:
        return said + ": they are used since more workers are asked for than the fast cores hold."
    return (
        f"{said}: queries there would take {1 / made.share:.1f} times as long. With workers on them too (--workers), bulk work"
        f" would gain at most {more:.0%}."
    )


def _threads(made: Chosen) -> str:
    if made.threads == 1:
        return ""
    width, left = min(made.threads, len(made.cores)), sum(size % min(made.threads, len(made.cores)) for size in made.homes)
    said = f"The {width} cores of a worker lie within {HOMES[made.home]}, over whose memory its threads exchange their parts."
    if left:
        sizes = ", ".join(str(size) for size in sorted(set(made.homes)))
        said += f" {_many(left, 'core')} of {sizes} at a time {'is' if left == 1 else 'are'} left over so: choose a"
        said += " --threads-per-worker that divides this."
    if made.threads > width:
        said += f" There are only {_many(width, 'core')} for {made.threads} threads."
    return said


def _quota(made: Chosen) -> str:
    quota = made.machine.quota
    if quota is None:
        return ""
    said, used = f"cgroup {quota.group} grants {_of(quota.cpus)}", made.count * made.threads
    if used > quota.cpus:
        return (
            f"{said}, and {_many(used, 'thread')} can use more: when it is used up, the kernel stops all of them until the next"
            " period (usually of 100 ms)."
        )
    if not made.bounded:
        return f"{said}, more than the workers can use."
    left = (
        f"{_of(quota.cpus - used)} {'remains' if quota.cpus - used == 1 else 'remain'}"
        if quota.cpus > used
        else "Nothing remains"
    )
    return (
        f"{said}: workers that could use more would all be stopped for the rest of each period (usually of 100 ms)."
        f" {left} for the router and others."
    )


def _nodes(made: Chosen) -> str:
    nodes = {cpu.node for cpu in made.machine.cpus}
    if len(nodes) == 1:
        return ""
    return (
        f"Workers are spread evenly over {len(nodes)} nodes. What a worker allocates lies on its node, being pinned before it"
        " loads. The model's weights are mapped once for all and lie on the node that read them first: workers of the others"
        " fetch what their cache does not hold from there."
    )


def _workers(made: Chosen) -> str:
    many, most = _many(made.count, "worker"), max(made.most, 1)
    if not made.asked and made.bounded:
        return f"{many}: as many as the quota has time for."
    if not made.asked:
        return f"{many}: one per {'core' if made.threads == 1 else f'{made.threads} cores'}, as many as fit."
    if made.count == most:
        return f"{many}: asked for (--workers), and as many as fit."
    if made.count < most:
        return f"{many}: asked for (--workers); {most} would fit."
    slower = "they share cores, which is slower" if made.over else "they have more threads than the rules above would give"
    return f"{many}: asked for (--workers), though {most} would fit: {slower}."


def _pinning(made: Chosen) -> str:
    if made.pinned:
        return "Each worker is pinned to its cores, so that its caches stay warm and none waits behind another."
    if made.wanted_pins:
        return "Not pinned: this system lets no process choose its CPUs. Only the number of workers follows from them."
    return "Not pinned (--pin false): the kernel moves workers about, and only their number follows from the cores."


def _rest(made: Chosen) -> str:
    said = "Supervisor, router and gateway are not pinned"
    if not made.pinned:
        return said + " either."
    if made.rest:
        return f"{said}: {_named(made.rest, 'has', 'have')} no worker, and the kernel puts them there when workers are busy."
    return said + ": no CPU is left over, so they share those of the workers."


def _named(cpus: Collection[int], one: str, several: str) -> str:
    """The CPUs, with the verb's form for them."""
    many = len(set(cpus)) > 1
    return f"CPU{'s' * many} {spelled(cpus)} {several if many else one}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _of(cpus: float) -> str:
    return f"{round(cpus, 2):g} CPU{'s' * (cpus != 1)}"
