"""Verdicts on the machine: processors, their clocks and neighbours, the kernel. Pure: each takes facts and gives one Check.

Limits are drawn where something is noticed by a user, not where it could be better.
"""

from __future__ import annotations

from embedpool.doctor.facts import Check, Facts

STEAL, OTHERS, PRESSURE = 0.05, 0.25, 20.0  # shares of time, and percent of a minute
THROTTLED = 0.01
NEARLY = 0.95  # a CPU that may go up to this share of its highest frequency is not held back
SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies")
SLOW_CLOCK_NS = 500.0  # 40 to 60 with a TSC or an ARM timer, Python's call included; above 1,000 with the others
# By which a driver's "powersave" is not the lowest frequency: the hardware chooses (Documentation/admin-guide/pm of Linux).
CHOOSING = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")


def machine_checks(facts: Facts) -> list[Check]:
    return [cores(facts), quota(facts), governor(facts), neighbours(facts), huge_pages(facts), clock(facts), kernel(facts)]


def cores(facts: Facts) -> Check:
    name, made = "cores", facts.plan
    if "share cores" in made.reason:
        costs = "workers wait for each other, and queries behind bulk work"
        return Check(name, "warn", made.reason, costs, "fewer --workers or --threads-per-worker (see `embedpool cores`)")
    if not made.pinned and facts.config.pin:
        return Check(
            name,
            "warn",
            f"{made.reason}: this system says of no process where it may run",
            "workers are moved between cores, and lose what their caches hold",
            "give the container or service a view of /proc",
        )
    return Check(name, "ok", made.reason)


def quota(facts: Facts) -> Check:
    name, limit = "cgroup quota", facts.machine.quota
    threads = len(facts.plan.workers) * facts.config.threads_per_worker
    stopped = f"; its limit stopped this group in {facts.throttled:.0%} of all periods so far" if facts.throttled else ""
    if limit is None:
        return Check(name, "ok", "none")
    found = f"{round(limit.cpus, 2):g} CPUs, of {limit.group}{stopped}"
    mend = "raise the limit (docker --cpus, Kubernetes limits.cpu, CPUQuota=), or give fewer --workers"
    if threads > limit.cpus:
        costs = f"{threads} threads use it up, and all stop until the next period (usually 100 ms): queries wait that long"
        return Check(name, "warn", found, costs, mend)
    if facts.throttled > THROTTLED:
        costs = "while it is stopped nothing is answered: up to a period (usually 100 ms) more for some queries"
        return Check(name, "warn", found, costs, mend)
    return Check(name, "ok", found)


def governor(facts: Facts) -> Check:
    name, frequency = "CPU frequency", facts.frequency
    if frequency is None:
        return Check(name, "ok", "not shown here: the host decides")
    governors, top = "+".join(frequency.governors), frequency.highest_khz
    found = f"{governors} ({frequency.driver}), up to {frequency.allowed_khz / 1e6:.2f} of {top / 1e6:.2f} GHz"
    if facts.machine.power_mode:
        found += f", power mode {facts.machine.power_mode}"
    mend = "sudo cpupower frequency-set -g performance (a Jetson: sudo jetson_clocks)"
    if "powersave" in frequency.governors and frequency.driver not in CHOOSING and frequency.least_khz:
        times = top / frequency.least_khz
        return Check(name, "warn", found, f"CPUs stay at {frequency.least_khz / 1e6:.2f} GHz: {times:.1f} times as slow", mend)
    if frequency.allowed_khz < NEARLY * top:
        times = top / frequency.allowed_khz
        mend = "see scaling_max_freq, a power mode (nvpmodel -q), or whether it is too hot"
        return Check(name, "warn", found, f"the CPUs are held back: up to {times:.1f} times as slow", mend)
    if frequency.preference == "power":
        found += ", preferring to save power"
        costs = "a core that was idle speeds up late, so that single queries take longer"
        return Check(name, "warn", found, costs, "sudo cpupower set --epp performance")
    return Check(name, "ok", found)


def neighbours(facts: Facts) -> Check:
    name, found, cpus = "neighbours", facts.neighbours, len(facts.machine.cpus)
    said = f"other programs use {found.others:.1f} of {cpus} CPUs, load {found.load:.1f}"
    if found.pressure is not None:
        said += f", tasks waited for a CPU in {found.pressure:.0f} % of the last minute"
    if found.steal > STEAL:
        said += f", the host gave {found.steal:.0%} of the time to other machines"
        costs = "that much less throughput, and single queries that wait for the whole of such a gap"
        return Check(name, "warn", said, costs, "CPUs that are this machine's own (dedicated, not burstable)")
    # Pressure is the pool's own doing too, where one works; then only what others use counts.
    if found.others > OTHERS * cpus or (facts.pool is None and (found.pressure or 0.0) > PRESSURE):
        costs = "a worker shares its core with them: each query can wait for a turn of some milliseconds"
        mend = "move them to other CPUs (taskset, AllowedCPUs=), or leave them some: fewer --workers"
        return Check(name, "warn", said, costs, mend)
    return Check(name, "ok", said)


def huge_pages(facts: Facts) -> Check:
    """Any mode will do: a worker of MiniLM whose allocations lay in 39 MB of huge pages took the time and the memory of one
    without, 4.1 ms for a query and 161 MB."""
    return Check(
        "huge pages", "ok", f"{facts.huge_pages or 'not shown here'}; workers take the same time and memory in any mode"
    )


def clock(facts: Facts) -> Check:
    name, found = "clock", f"{facts.clock or 'unknown'}, {facts.clock_ns:.0f} ns a reading"
    if facts.clock in SLOW_CLOCKS or facts.clock_ns > SLOW_CLOCK_NS:
        costs = "router and workers read it many times for each request, which takes about 50 ns with a TSC or an ARM timer"
        mend = "see `dmesg | grep -i tsc`; where the host's clock can be trusted, boot with clocksource=tsc tsc=reliable"
        return Check(name, "warn", found, costs, mend)
    return Check(name, "ok", found)


def kernel(facts: Facts) -> Check:
    name, missing = "kernel", {what: why for what, why in facts.kernel.items() if why}
    if not missing:
        return Check(name, "ok", "has " + ", ".join(facts.kernel))
    found = "; ".join(f"{what}: {why}" for what, why in missing.items())
    if set(missing) == {"sched_setaffinity"}:
        mend = "allow it in the filter of system calls (systemd: SystemCallFilter=sched_setaffinity)"
        return Check(name, "warn", found, "workers cannot be pinned, and are moved between cores", mend)
    mend = "Linux 5.3 or newer, and a filter of system calls (seccomp) that allows them; a runtime directory on tmpfs"
    return Check(name, "bad", found, "a pool cannot run without", mend)
