"""Verdicts on what a pool uses: memory, limits, directories, ONNX Runtime, and the pool that runs. Pure, as machine_checks."""

from __future__ import annotations

from embedpool import __version__
from embedpool.config import LONGEST_SOCKET_PATH
from embedpool.doctor.facts import Check, Directory, Facts
from embedpool.doctor.machine_checks import machine_checks
from embedpool.router.descriptors import Descriptors, limit_of

MODEL_BYTES = 3_000_000_000  # a model of 300 million parameters in fp32, and what is prepared from it
LITTLE_BYTES = 200_000_000  # a small model, and what is prepared from it
USUAL = ("sse4_1", "avx", "f16c", "fma", "avx512dq", "avx512vl", "asimd")  # features that the others imply
# Supervisor, forkserver, router, a child that resolves a model, and threads, which count too: of libzmq, and a second one each.
PROCESSES, OF_WORKER = 16, 4


def checks(facts: Facts) -> list[Check]:
    """Every check, the pool first."""
    return [
        pool(facts),
        left(facts),
        *machine_checks(facts),
        runtime(facts),
        features(facts),
        shared_memory(facts),
        descriptors(facts),
        processes(facts),
        socket_path(facts),
        runtime_directory(facts),
        directory("cache", facts.cache, "--cache"),
        disk(facts),
    ]


# ── the pool ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def pool(facts: Facts) -> Check:
    name, found, planned = "pool", facts.pool, len(facts.plan.workers)
    if found is None:
        return Check(name, "ok", f"none runs at {facts.config.endpoint_url()}")
    said = f"{found.state}, answers in {found.answer_ms:.0f} ms, {found.ready} of {found.workers} workers ready"
    if found.state == "failed" or not found.ready:
        reason = f" ({found.reason})" if found.reason else ""
        mend = "its messages on stderr (journalctl -u embedpool) say why; then `embedpool reload`"
        return Check(name, "bad", said + reason, "requests are refused", mend)
    if found.talking:
        said += f"; telemetry is not switched off in {len(found.talking)} of its processes"
        mend = "start it by `embedpool serve`, which switches it off before ONNX Runtime is loaded"
        return Check(name, "bad", said, "ONNX Runtime may report to its maker", mend)
    if found.version != __version__:
        said += f"; it is version {found.version}, and this is {__version__}"
        return Check(name, "warn", said, "what was mended since is not in force", "restart it")
    if found.reload:
        return Check(
            name, "warn", f"{said}; not reloaded: {found.reload}", "it serves the settings of before", "`embedpool reload`"
        )
    if found.restarts:
        said += f"; workers were started again {found.restarts} times"
        mend = "its messages on stderr say how they ended; the kernel's log says whether memory was short (dmesg)"
        return Check(name, "warn", said, "each takes a core's work away for the time of a start", mend)
    if found.workers != planned:
        fewer = "cores stay idle" if found.workers < planned else "workers share cores or a quota"
        mend = "give `embedpool doctor` the pool's settings (--config, --workers), or `embedpool reload`"
        return Check(name, "warn", f"{said}; the plan for these settings has {planned}", fewer, mend)
    return Check(name, "ok", said)


def left(facts: Facts) -> Check:
    name, found = "lock and socket", facts.left
    if facts.pool is not None or not (found.lock or found.socket or found.segments):
        return Check(name, "ok", "held by the pool" if facts.pool is not None else "none lies about")
    if found.holder:
        said = f"process {found.holder} holds the lock of {facts.runtime_dir.path}, and no pool answers"
        costs = "clients wait in vain, and no other pool can start here"
        return Check(name, "bad", said, costs, f"wait if it is just starting; otherwise end it: kill {found.holder}")
    said = f"a pool that was killed has left its {'lock' if found.lock else 'socket'} and {found.segments} segments"
    return Check(
        name, "warn", said, "shared memory that nobody uses, until then", "nothing: the next `embedpool serve` removes it"
    )


# ── ONNX Runtime ─────────────────────────────────────────────────────────────────────────────────────────────────────


def runtime(facts: Facts) -> Check:
    name, found = "ONNX Runtime", facts.runtime
    if found.error:
        mend = "pip install --force-reinstall onnxruntime; an illegal instruction (SIGILL) means a build for another processor"
        return Check(name, "bad", f"cannot be loaded: {found.error}", "no worker can start", mend)
    said = f"{found.version}, {found.providers}; telemetry is switched off"
    if len(found.packages) > 1:
        costs = "they overwrite each other's files: which one is loaded depends on the order of installation"
        return Check(name, "warn", f"{said}; from {' and '.join(found.packages)}", costs, "uninstall all, then install one")
    if "build type=Debug" in found.build:
        return Check(
            name, "warn", f"{said}; a debug build", "several times as slow", "pip install --force-reinstall onnxruntime"
        )
    return Check(name, "ok", said)


def features(facts: Facts) -> Check:
    name, has, q8 = "CPU features", set(facts.features), facts.config.precision in ("q8", "uint8")
    said = f"{facts.arch}: {', '.join(each for each in facts.features if each not in USUAL) or 'none of those that matter'}"
    vector, dots = (
        ("asimd", {"asimddp", "i8mm"}) if facts.arch in ("aarch64", "arm64") else ("avx2", {"avx512_vnni", "avx_vnni"})
    )
    if vector not in has:
        costs = f"without {vector} ONNX Runtime uses its slowest kernels"
        return Check(name, "warn", said, costs, "another processor, or another CPU type of the virtual machine")
    if has & dots:
        return Check(name, "ok", f"{said}. int8 has instructions of its own: --precision q8 is faster, fp32 more exact")
    if q8:
        costs = "int8 has no instructions of its own here, and gains little over fp32, which is more exact"
        return Check(name, "warn", said, costs, "--precision fp32")
    return Check(name, "ok", f"{said}. int8 has no instructions of its own: --precision fp32 is the one for it")


# ── memory, limits, places ───────────────────────────────────────────────────────────────────────────────────────────


def shared_memory(facts: Facts) -> Check:
    name, place, most = "shared memory", facts.runtime_dir, facts.config.max_shm_bytes
    free = place.free_bytes + (facts.pool.segment_bytes if facts.pool is not None else 0)
    said = f"{_size(free)} in {place.path}, --max-shm-bytes is {_size(most)}"
    larger = "a larger tmpfs: mount -o remount,size=2G, docker --shm-size=2g, an emptyDir with medium: Memory"
    if not place.tmpfs:
        mend = "--runtime-dir on a tmpfs: /run or /dev/shm"
        return Check(name, "warn", f"{said}; no tmpfs", "vectors are written to the disk too", mend)
    if free < min(facts.segment_bytes, most):
        return Check(
            name, "bad", said, f"no client gets its {_size(facts.segment_bytes)}: vectors go through the socket", larger
        )
    if free < most:
        count = free // facts.segment_bytes
        costs = f"after {count} clients with {_size(facts.segment_bytes)} each the next one's vectors go through the socket"
        return Check(name, "warn", said, costs, f"{larger}; or --max-shm-bytes {free // 2}")
    return Check(name, "ok", said)


def descriptors(facts: Facts) -> Check:
    name, wanted = "descriptors", facts.config.max_sessions
    sessions = Descriptors(limit_of(facts.descriptors, wanted), lambda: 0).for_sessions
    said = f"{facts.descriptors} may be open; no memory is locked, so that RLIMIT_MEMLOCK does not matter"
    if sessions < 1:
        return Check(name, "bad", said, "no client can connect", f"ulimit -n {1088 + 2 * wanted}, or LimitNOFILE= of the unit")
    if sessions < wanted:
        costs = f"{sessions} clients at once instead of {wanted} (--max-sessions)"
        return Check(name, "warn", said, costs, f"ulimit -n {1088 + 2 * wanted}, or LimitNOFILE= of the unit")
    return Check(name, "ok", f"{said}; enough for {wanted} sessions")


def processes(facts: Facts) -> Check:
    name, free = "processes", facts.processes_free
    threads = OF_WORKER + facts.config.threads_per_worker
    needed = PROCESSES + len(facts.plan.workers) * threads if facts.pool is None else PROCESSES
    if free is None:
        return Check(name, "ok", "no limit of a cgroup")
    said = f"the cgroup allows {free} more processes and threads, a start needs about {needed}"
    if free < needed:
        return Check(name, "bad", said, "workers cannot be started", "raise pids.max (docker --pids-limit, TasksMax=)")
    return Check(name, "ok", said)


def socket_path(facts: Facts) -> Check:
    name, longest = "socket path", max(len(path.encode()) for path in facts.sockets)
    said = f"{longest} of {LONGEST_SOCKET_PATH} bytes"
    if longest > LONGEST_SOCKET_PATH:
        return Check(name, "bad", said, "it cannot be bound", "a shorter --runtime-dir")
    return Check(name, "ok", said)


def runtime_directory(facts: Facts) -> Check:
    if facts.pool is not None:  # it may be another user's, who has what is asked for here
        return Check("runtime directory", "ok", f"{facts.runtime_dir.path}, which the pool uses")
    return directory("runtime directory", facts.runtime_dir, "--runtime-dir")


def directory(name: str, found: Directory, flag: str) -> Check:
    said = f"{found.path}{'' if found.exists else ' (is made when it is needed)'}"
    if found.problem:
        return Check(
            name, "bad", f"{said}: {found.problem}", "a pool cannot start", f"chown or chmod it, or give another {flag}"
        )
    return Check(name, "ok", said)


def disk(facts: Facts) -> Check:
    name, free = "disk of the cache", facts.cache.free_bytes
    said = f"{_size(free)} free"
    mend = "--cache on a larger disk; `embedpool models` lists what can be removed"
    if free < LITTLE_BYTES:
        return Check(name, "bad", said, "not even a small model can be prepared", mend)
    if free < MODEL_BYTES:
        costs = f"a model of 300 million parameters may not find the {_size(MODEL_BYTES)} that it takes"
        return Check(name, "warn", said, costs, mend)
    return Check(name, "ok", said)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
