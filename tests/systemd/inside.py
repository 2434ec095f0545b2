"""What is done in the booted machine, as its administrator: every step's finding goes to /exchange/found.json, for
test_boot.py to judge. Knows nothing of the product but its commands, unit and client."""

import contextlib
import json
import os
import pwd
import signal
import subprocess
import time
import traceback
import urllib.request
from pathlib import Path

EXCHANGE = Path("/exchange")
FOUND: dict[str, object] = {}
HTTP = "127.0.0.1:8099"
PYTHON = "/opt/embedpool/bin/python"
# A test cannot wait for half a minute. The first start, with a model to prepare, takes longer than is given here.
DROP_IN = "[Service]\nTimeoutStartSec=3\nWatchdogSec=3\nTimeoutAbortSec=2\nRestartSec=1\n"
CLIENT = """
import json, os, sys, numpy
from embedpool import Client
with Client(*sys.argv[1:2], connect_timeout_s=float(sys.argv[2]) if sys.argv[2:] else 5.0) as client:
    vectors = client.embed(["one text", "another one"])
    status = json.loads(client.status())
    mapped = [line.split()[-1] for line in open("/proc/self/maps") if "/segments/" in line]
    try:
        os.close(os.open(mapped[0], os.O_RDWR))
        writable = True
    except PermissionError:
        writable = False
    try:
        listed = bool(os.listdir(os.path.dirname(mapped[0])))
    except PermissionError:
        listed = False
    print(json.dumps({
        "shape": vectors.shape, "length": float(numpy.linalg.norm(vectors[0])), "first": vectors[0].tolist(),
        "mapped": len(mapped), "writable": writable, "listed": listed, "uid": os.getuid(),
        "segments": status["sessions"]["segments"],
    }))
"""


def run(*command: str, within_s: float = 30.0) -> dict[str, object]:
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{' '.join(command)} took longer than {within_s:.0f} s") from None
    return {
        "status": done.returncode,
        "out": done.stdout.strip(),
        "err": done.stderr.strip(),
        "s": round(time.monotonic() - began, 2),
    }


def show(*names: str, unit: str = "embedpool") -> dict[str, str]:
    found = run("systemctl", "show", unit, *[f"--property={name}" for name in names])
    return dict(line.split("=", 1) for line in str(found["out"]).splitlines())


def main_pid() -> int:
    return int(show("MainPID")["MainPID"])


def embed_as(user: str, *arguments: str, also: str = "ProtectSystem=strict") -> dict[str, object]:
    """As another service of this machine would, with its own user."""
    unit = ["systemd-run", "--quiet", "--wait", "--pipe", f"--property=User={user}", f"--property={also}"]
    found = run(*unit, PYTHON, "-c", CLIENT, *arguments)
    with contextlib.suppress(ValueError):
        found["answer"] = json.loads(str(found["out"]))
    return found


def processes() -> dict[str, list[int]]:
    """The pool's, by what they are."""
    named: dict[str, list[int]] = {"main": [], "router": [], "worker": [], "forkserver": []}
    pool = pwd.getpwnam("embedpool").pw_uid
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not place.name.isdecimal() or place.stat().st_uid != pool:
                continue
            comm, line = (place / "comm").read_text().strip(), (place / "cmdline").read_bytes()
            name = "main" if b"serve" in line.split(b"\0") else "router" if b"embedpool.router" in line else "worker"
            named["forkserver" if comm == "embedpool-fork" else name].append(int(place.name))
    return named


def journal(unit: str) -> list[list[str]]:
    """Priority, who said it, and what, of every line that the unit's processes said."""
    lines = str(run("journalctl", "--no-pager", "--output=json", "-u", unit, "_TRANSPORT=stdout")["out"]).splitlines()
    return [[entry["PRIORITY"], entry["_PID"], entry["MESSAGE"]] for entry in map(json.loads, lines)]


def until(true: object, within_s: float) -> float:
    """Seconds until it held; -1 for never."""
    began = time.monotonic()
    while not true():  # type: ignore[operator]
        if time.monotonic() - began > within_s:
            return -1.0
        time.sleep(0.05)
    return round(time.monotonic() - began, 2)


def serves_again(before: int) -> bool:
    now = show("MainPID", "ActiveState", "SubState")
    return int(now["MainPID"]) not in (0, before) and (now["ActiveState"], now["SubState"]) == ("active", "running")


def of_process(pid: int) -> dict[str, str]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "cores": status["Cpus_allowed_list"].strip(),
        "oom": Path(f"/proc/{pid}/oom_score_adj").read_text().strip(),
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "capabilities": status["CapBnd"].strip(),
        "seccomp": status["Seccomp"].strip(),
    }


def start() -> None:
    FOUND["sysusers"] = run("systemd-sysusers")
    run("useradd", "--system", "stranger")
    FOUND["tmpfiles"] = run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/embedpool.conf")
    Path("/etc/systemd/system/embedpool.service.d").mkdir()
    Path("/etc/systemd/system/embedpool.service.d/test.conf").write_text(DROP_IN)
    toml = Path("/etc/embedpool/embedpool.toml")
    toml.write_text("workers = 2\n")
    with Path("/etc/embedpool/embedpool.env").open("a") as settings:
        settings.write(f"EMBEDPOOL_CONFIG={toml}\n")
    run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/embedpool.conf")
    run("systemctl", "daemon-reload")
    FOUND["verify"] = run("systemd-analyze", "verify", "embedpool.service", "embedpool@code.service")
    FOUND["pool uid"] = pwd.getpwnam("embedpool").pw_uid
    FOUND["start"] = run("systemctl", "start", "embedpool")
    FOUND["started"] = show("ActiveState", "SubState", "StatusText", "Result", "NRestarts")
    FOUND["at once"] = embed_as("webapp")
    FOUND["security"] = run("systemd-analyze", "security", "--no-pager", "embedpool.service")
    FOUND["processes"] = {name: [of_process(pid) for pid in pids] for name, pids in processes().items()}
    FOUND["places"] = run("find", "/run/embedpool", "/var/cache/embedpool", "-maxdepth", "1", "-printf", "%p %M %u %g\n")


def clients() -> None:
    FOUND["client in the group"] = embed_as("webapp")
    FOUND["client with users of its own"] = embed_as("webapp", also="PrivateUsers=yes")
    FOUND["client outside"] = embed_as("stranger", "ipc:///run/embedpool/embedpool.sock", "1")


def crashes() -> None:
    worker = processes()["worker"][0]
    os.kill(worker, signal.SIGKILL)
    FOUND["worker back"] = until(lambda: worker not in processes()["worker"] and len(processes()["worker"]) == 2, 10.0)
    FOUND["after the worker"] = embed_as("webapp")
    FOUND["main after the worker"] = show("NRestarts", "ActiveState")
    for name, number in (("killed", signal.SIGKILL), ("stuck", signal.SIGSTOP)):
        main, children = main_pid(), [pid for pids in processes().values() for pid in pids]
        os.kill(main, number)
        FOUND[f"{name} main back"] = until(lambda main=main: serves_again(main), 20.0)
        FOUND[f"left of the {name} one"] = [pid for pid in children if Path(f"/proc/{pid}").exists()]
        FOUND[f"after the {name} main"] = embed_as("webapp")
        FOUND[f"restarts after the {name} one"] = show("NRestarts", "Result")


def reloads() -> None:
    main, workers = main_pid(), set(processes()["worker"])
    FOUND["reload"] = run("systemctl", "reload", "embedpool")
    until(lambda: len(processes()["worker"]) == 2, 5.0)
    FOUND["reloaded"] = {**show("StatusText", "ActiveState"), "same main": main_pid() == main}
    FOUND["workers of before"] = len(workers & set(processes()["worker"]))
    Path("/etc/embedpool/embedpool.toml").write_text("workers = 'many'\n")
    FOUND["bad reload"] = run("systemctl", "reload", "embedpool")
    FOUND["after the bad reload"] = {**show("StatusText", "ActiveState"), "same main": main_pid() == main}
    Path("/etc/embedpool/embedpool.toml").write_text("workers = 2\n")
    FOUND["client after reloads"] = embed_as("webapp")


def several() -> None:
    settings = ("EMBEDPOOL_MODEL=echo:8", f"EMBEDPOOL_HTTP={HTTP}", "EMBEDPOOL_LOG_FORMAT=json")
    Path("/etc/embedpool/code.env").write_text("\n".join(settings))
    FOUND["second start"] = run("systemctl", "start", "embedpool@code")
    with urllib.request.urlopen(f"http://{HTTP}/v1/models", timeout=5) as answer:
        FOUND["over HTTP"] = json.load(answer)
    FOUND["second"] = embed_as("webapp", "ipc:///run/embedpool-code/embedpool.sock")
    FOUND["second stop"] = run("systemctl", "stop", "embedpool@code")
    FOUND["second journal"] = journal("embedpool@code")
    FOUND["first goes on"] = embed_as("webapp")


def stop() -> None:
    FOUND["stop"] = run("systemctl", "stop", "embedpool")
    FOUND["stopped"] = show("ActiveState", "Result", "ExecMainStatus")
    FOUND["left"] = {
        "processes": [pid for pids in processes().values() for pid in pids],
        "run": [str(path) for path in Path("/run").glob("embedpool*")],
        "shm": [str(path) for path in Path("/dev/shm").iterdir()],
    }
    FOUND["journal"] = journal("embedpool")


def main() -> None:
    (EXCHANGE / "booted").touch()
    try:
        for step in (start, clients, crashes, reloads, several, stop):
            began = time.monotonic()
            step()
            FOUND[f"seconds of {step.__name__}"] = round(time.monotonic() - began, 2)
    except BaseException:  # told outside, with the journal
        FOUND["cut off"] = traceback.format_exc()
    finally:
        FOUND["whole journal"] = run("journalctl", "--no-pager", "-n", "200")["out"]
        (EXCHANGE / "found.json").write_text(json.dumps(FOUND))


if __name__ == "__main__":
    main()
