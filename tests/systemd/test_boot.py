"""The service as an administrator has it: booted once under a real systemd, in seconds, with a process namespace of its own;
each test looks at one thing that was found there. Where this machine cannot boot one, the reason is said and nothing tested.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd import machine

pytestmark = pytest.mark.timeout(180)

EXPOSURE_MOST = 1.5  # systemd-analyze security: 0 is closed, 10 is open


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """What inside.py found."""
    lacking = machine.why_not()
    if lacking:
        pytest.skip(f"the service is not booted: {lacking}")
    exchange = Path(tempfile.mkdtemp(prefix="embedpool-boot-"))
    try:
        console = machine.boot(exchange)
        if not (exchange / "booted").exists():
            pytest.skip(f"the service is not booted, since no machine can be booted here: {console.strip()[-300:]}")
        text = (exchange / "found.json").read_text()
        seen = json.loads(text)
        assert "cut off" not in seen, f"{seen['cut off']}\n{seen['whole journal']}"
        yield seen
    finally:
        shutil.rmtree(exchange)


def _embedded(answer: dict[str, Any], dim: int = 384) -> None:
    assert answer["status"] == 0, answer["err"]
    assert answer["answer"]["shape"] == [2, dim]
    assert answer["answer"]["length"] == pytest.approx(1.0, abs=1e-5)


def test_the_units_are_without_a_fault_and_closed(found: dict[str, Any]) -> None:
    assert (found["verify"]["status"], found["verify"]["out"], found["verify"]["err"]) == (0, "", "")
    exposure = re.search(r"exposure level for embedpool\.service: ([\d.]+)", found["security"]["out"])
    assert exposure is not None
    assert float(exposure[1]) <= EXPOSURE_MOST, found["security"]["out"]


def test_started_means_that_a_client_is_answered(found: dict[str, Any]) -> None:
    assert found["start"]["status"] == 0, found["whole journal"]
    assert found["started"]["ActiveState"] == "active"
    assert re.search(
        r"serving all-MiniLM-L6-v2 at ipc:///run/embedpool/embedpool.sock: [12] of 2", found["started"]["StatusText"]
    )
    _embedded(found["at once"])


def test_workers_are_pinned_and_die_first_and_nobody_may_do_more_than_needed(found: dict[str, Any]) -> None:
    processes = found["processes"]
    assert [len(processes[name]) for name in ("main", "router", "forkserver", "worker")] == [1, 1, 1, 2]
    first, second = processes["worker"]
    assert first["cores"] != second["cores"]
    assert {worker["oom"] for worker in processes["worker"]} == {"500"}
    assert {process["oom"] for name in ("main", "router") for process in processes[name]} == {"0"}
    for process in (process for group in processes.values() for process in group):
        assert (process["no_new_privileges"], process["seccomp"]) == ("1", "2")  # 2: a filter
        assert int(process["capabilities"], 16) == 0


def test_what_it_has_made_is_for_it_and_its_group(found: dict[str, Any]) -> None:
    places = {line.split()[0]: line.split()[1:] for line in found["places"]["out"].splitlines()}
    assert {(user, group) for _, user, group in places.values()} == {("embedpool", "embedpool")}
    modes = {path: mode for path, (mode, _, _) in places.items()}
    assert modes["/run/embedpool"] == "drwxr-x---"
    assert modes["/run/embedpool/embedpool.sock"] == "srw-rw----"
    assert modes["/run/embedpool/segments"] == "drwx--x---"
    assert modes["/run/embedpool/workers.sock"] == "srw-------"
    assert modes["/run/embedpool/lock"] == "-rw-------"
    assert all(mode.endswith("---") for mode in modes.values())


def test_a_client_service_of_another_user_in_the_group_maps_its_vectors_and_cannot_write_them(found: dict[str, Any]) -> None:
    answer = found["client in the group"]
    _embedded(answer)
    assert answer["answer"]["uid"] not in (0, found["pool uid"])
    assert (answer["answer"]["mapped"], answer["answer"]["segments"], answer["answer"]["writable"]) == (1, 1, False)
    assert answer["answer"]["listed"] is False


def test_a_client_service_whose_users_are_its_own_is_answered_too(found: dict[str, Any]) -> None:
    _embedded(found["client with users of its own"])


def test_a_user_outside_the_group_is_refused_and_told_why(found: dict[str, Any]) -> None:
    assert found["client outside"]["status"] == 1
    assert "no permission to look into /run/embedpool: ask for membership in the group" in found["client outside"]["err"]


def test_a_killed_worker_comes_back_and_the_service_goes_on(found: dict[str, Any]) -> None:
    assert 0 <= found["worker back"] < 10
    _embedded(found["after the worker"])
    assert found["main after the worker"] == {"NRestarts": "0", "ActiveState": "active"}


@pytest.mark.parametrize(("how", "restarts"), [("killed", "1"), ("stuck", "2")])
def test_a_lost_supervisor_comes_back_and_nothing_is_left_of_the_one_before(
    found: dict[str, Any], how: str, restarts: str
) -> None:
    """Killed, and stopped so that only the watchdog can notice."""
    assert 0 <= found[f"{how} main back"] < 20
    assert found[f"left of the {how} one"] == []
    _embedded(found[f"after the {how} main"])
    assert found[f"restarts after the {how} one"] == {"NRestarts": restarts, "Result": "success"}


def test_a_reload_is_done_when_systemctl_returns(found: dict[str, Any]) -> None:
    assert found["reload"]["status"] == 0, found["reload"]["err"]
    assert found["reloaded"]["same main"] is True
    assert found["reloaded"]["ActiveState"] == "active"
    assert found["workers of before"] == 0


def test_a_reload_that_fails_says_so_and_changes_nothing(found: dict[str, Any]) -> None:
    assert found["bad reload"]["status"] != 0
    after = found["after the bad reload"]
    assert (after["ActiveState"], after["same main"]) == ("active", True)
    assert "the last reload changed nothing: workers must be" in after["StatusText"]
    _embedded(found["client after reloads"])


def test_several_instances_run_beside_each_other_with_settings_of_their_own(found: dict[str, Any]) -> None:
    assert found["second start"]["status"] == 0
    _embedded(found["second"], dim=8)
    assert found["over HTTP"]["data"][0]["id"] == "echo:8"
    assert found["second stop"]["status"] == 0
    _embedded(found["first goes on"])


def test_a_stop_is_clean_and_leaves_nothing(found: dict[str, Any]) -> None:
    assert found["stop"]["status"] == 0
    assert found["stopped"] == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert found["left"] == {"processes": [], "run": [], "shm": []}


def test_the_journal_has_each_event_once_with_its_priority_and_no_second_time(found: dict[str, Any]) -> None:
    lines = [(priority, message) for priority, _, message in found["journal"]]
    killed = [line for line in lines if "SIGKILL" in line[1]]
    assert killed == [("4", "embedpool: worker 0 ended (SIGKILL): starting it again in 0.0 s")]
    (not_reloaded,) = [line for line in lines if "everything goes on as before" in line[1]]
    assert not_reloaded[0] == "3"
    assert len([line for line in lines if line[1].startswith("embedpool: ready after")]) == 3  # one per start
    assert ("6", "embedpool: stopped") in lines
    assert not [line for line in lines if line[1].startswith("<")]
    said = [(pid, message) for _, pid, message in found["journal"]]
    assert len(said) == len(set(said)), "one line twice"


def test_the_journal_of_an_instance_with_json_holds_objects_with_fields(found: dict[str, Any]) -> None:
    events = [json.loads(message) for _, _, message in found["second journal"]]
    ready = [event for event in events if event.get("event") == "pool ready"]
    assert [event["model"] for event in ready] == ["echo:8"]
    workers = [event["child"] for event in events if event.get("event") == "ready"]
    assert sorted(name for name in workers if name.startswith("worker")) == ["worker 0", "worker 1"]
