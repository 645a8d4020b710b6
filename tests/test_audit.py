"""What the audit makes of pip-audit's answers: clean, vulnerable, accepted, unreachable and broken are kept apart."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import audit
from audit import ACCEPTED, Accepted, BrokenError, Finding, UnreachableError, read_accepted, understood, verdict

TODAY = date(2026, 11, 25)
FINDING = Finding("numpy", "1.26.4", frozenset({"PYSEC-1", "CVE-1"}), ("1.26.5",))
UNREACHED = (
    # pip-audit's own words, and the two ways in which it falls over instead of saying them
    "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\n"
    "ERROR:pip_audit._cli:Tip: your network may be blocking this service. Try another service with `-s SERVICE`\n",
    "Traceback (most recent call last):\n  ...\nrequests.exceptions.ConnectionError: HTTPSConnectionPool(host='a.b')\n",
    "Traceback (most recent call last):\n  ...\npip_audit._service.interface.ServiceError\n",
)


def package(name: str = "numpy", *ids: str) -> dict[str, Any]:
    vulns = [{"id": i, "aliases": ["CVE-1"], "fix_versions": ["1.26.5"], "description": "bad"} for i in ids]
    return {"name": name, "version": "1.26.4", "vulns": vulns}


def answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI and could not be audited: ours (1)"}


def test_a_clean_answer_names_the_packages_that_the_service_does_not_know() -> None:
    assert understood(0, answer(package(), UNKNOWN), "No known vulnerabilities found") == (set(), ["ours"])


def test_a_vulnerability_is_found_with_all_its_names() -> None:
    assert understood(1, answer(package("numpy", "PYSEC-1"), package("av")), "Found 1") == ({FINDING}, [])


@pytest.mark.parametrize("stderr", UNREACHED)
def test_a_service_that_cannot_be_reached_is_not_a_vulnerability(stderr: str) -> None:
    with pytest.raises(UnreachableError, match="reached"):
        understood(1, "", stderr)


def test_a_service_that_knows_no_package_has_audited_nothing_though_pip_audit_calls_that_clean() -> None:
    with pytest.raises(UnreachableError, match="none of the packages"):
        understood(0, answer(UNKNOWN), "No known vulnerabilities found")


@pytest.mark.parametrize(
    ("code", "stdout", "stderr"),
    [
        (1, "", "ERROR:pip_audit._cli:invalid requirements input: gone.txt"),
        (1, "", "ERROR:pip_audit._cli:package numpy has duplicate requirements: requests.exceptions.ConnectionError"),
        (1, "", "requests.exceptions.ConnectionError: an earlier one\nAttributeError: no such thing"),
        (0, "", ""),
        (1, "not JSON", ""),
        (1, '{"dependencies": [{"name": "numpy"}]}', ""),
        (1, answer(package()), ""),
        (0, answer(package("numpy", "PYSEC-1")), ""),
        (2, answer(package()), ""),
    ],
)
def test_whatever_else_comes_is_a_fault_and_neither_clean_nor_unreachable(code: int, stdout: str, stderr: str) -> None:
    with pytest.raises(BrokenError):
        understood(code, stdout, stderr)


def test_a_finding_fails_unless_it_is_accepted_by_one_of_its_names_for_that_package_and_day(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verdict(set(), [], TODAY) == 0
    assert verdict({FINDING}, [], TODAY) == 1
    for name in FINDING.ids:
        assert verdict({FINDING}, [Accepted(name, "numpy", "we do not call it", TODAY)], TODAY) == 0
    assert "we do not call it" in capsys.readouterr().out
    assert verdict({FINDING}, [Accepted("CVE-1", "av", "another package", TODAY)], TODAY) == 1
    assert verdict({FINDING}, [Accepted("CVE-2", "numpy", "another hole", TODAY)], TODAY) == 1
    assert "take it out" in capsys.readouterr().out
    assert verdict(set(), [Accepted("CVE-1", "numpy", "nobody could be asked", TODAY)], TODAY, complete=False) == 0
    assert "take it out" not in capsys.readouterr().out
    assert verdict({FINDING}, [Accepted("CVE-1", "numpy", "not for ever", date(2026, 11, 24))], TODAY) == 1
    assert "is over" in capsys.readouterr().out


def test_what_comes_with_python_is_told_and_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict({Finding("pip", "23.2.1", frozenset({"PYSEC-2"}), ())}, [], TODAY) == 0
    assert "pip 23.2.1: PYSEC-2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "[[accepted]",
        '[[accepted]]\nid = "CVE-1"\npackage = "av"\nuntil = 2027-01-31',
        '[[accepted]]\nid = "CVE-1"\npackage = "av"\nreason = ""\nuntil = 2027-01-31',
        '[[accepted]]\nid = "CVE-1"\npackage = "av"\nreason = "later"\nuntil = "2027-01-31"',
        '[[accepted]]\nid = "CVE-1"\npackage = "av"\nreason = "later"\nuntil = 2027-01-31\nbecause = "x"',
    ],
)
def test_nothing_is_accepted_without_a_reason_and_an_end(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(BrokenError, match=r"a\.toml"):
        read_accepted(tmp_path / "a.toml")


def test_the_committed_list_can_be_read() -> None:
    assert all(entry.reason for entry in read_accepted(ACCEPTED))


def pip_audit_says(monkeypatch: pytest.MonkeyPatch, **by_argument: tuple[int, str, str]) -> None:
    """by_argument: exit code, stdout and stderr of the call that has this word among its arguments."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        reply = next(reply for word, reply in by_argument.items() if word in " ".join(command))
        return subprocess.CompletedProcess(command, *reply)

    monkeypatch.setattr(audit.subprocess, "run", run)


CLEAN, BAD = (0, answer(package()), ""), (1, answer(package("numpy", "PYSEC-1")), "")
EMPTY, OFFLINE, BROKEN = (0, answer(UNKNOWN), ""), (1, "", UNREACHED[0]), (1, "", "ERROR: something else")


@pytest.mark.parametrize(
    ("pinned", "installed", "code", "not_audited"),
    [
        (CLEAN, CLEAN, 0, 0),
        (BAD, CLEAN, 1, 0),
        (CLEAN, BAD, 1, 0),
        (EMPTY, OFFLINE, 0, 3),
        (BAD, OFFLINE, 1, 1),
        (BROKEN, OFFLINE, 1, 0),
        (OFFLINE, BROKEN, 1, 2),
    ],
)
def test_the_build_fails_for_a_vulnerability_or_a_fault_and_not_for_want_of_a_network(
    pinned: tuple[int, str, str],
    installed: tuple[int, str, str],
    code: int,
    not_audited: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pip_audit_says(monkeypatch, requirement=pinned, local=installed)
    assert audit.main() == code
    shown = capsys.readouterr()
    assert shown.out.count("NOT AUDITED") == not_audited
    assert bool(shown.err) == (BROKEN in (pinned, installed))


def test_every_pin_is_audited(tmp_path: Path) -> None:
    given = {
        line.split(";")[0].split("+")[0].strip()
        for _, args in audit.pinned(tmp_path)
        for file in args[3::2]
        for line in Path(file).read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    for file in audit.ROOT.glob("requirements*.txt"):
        for line in file.read_text().splitlines():
            if "==" in line and not line.startswith("#"):
                assert line.split(";")[0].split("+")[0].strip() in given
    majors = {pin.partition("==")[2].partition(".")[0] for pin in given if pin.startswith("cuda-bindings==")}
    assert majors == {"12", "13"}


def test_where_the_first_service_knows_nothing_the_second_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pip_audit_says(monkeypatch, osv=CLEAN, pypi=EMPTY)
    assert audit.ask([]) == ("osv", set(), [])


def test_what_pip_audit_really_writes_is_understood(tmp_path: Path) -> None:
    """Against an advisory service on loopback that knows one hole, in numpy."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package = {"name": "numpy", "ecosystem": "PyPI"}
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.26.5"}]}]
            hole = {"id": "PYSEC-1", "aliases": ["CVE-1"], "affected": [{"package": package, "ranges": ranges}]}
            body = json.dumps({"vulns": [hole]} if asked["package"]["name"] == "numpy" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    (tmp_path / "r.txt").write_text("numpy==1.26.4\nav==18.1.0\n")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="advisories")
        thread.start()
        command = [sys.executable, "-m", "pip_audit", "-f", "json", "--progress-spinner", "off", "--no-deps"]
        command += ["--disable-pip", "-r", str(tmp_path / "r.txt"), "--cache-dir", str(tmp_path / "cache")]
        command += ["-s", "osv", "--osv-url", f"http://127.0.0.1:{server.server_port}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        server.shutdown()
        thread.join()
    assert understood(done.returncode, done.stdout, done.stderr) == ({FINDING}, [])


def test_pip_audit_reads_every_file_of_requirements_and_no_network_is_no_failure() -> None:
    """The real thing, with every way out shut."""
    shut = {name: "http://127.0.0.1:1" for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")}
    command = [sys.executable, ".ci/audit.py"]
    done = subprocess.run(command, cwd=audit.ROOT, env=shut, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for what in ("pinned", "pinned for CUDA 12", "installed"):
        assert f"NOT AUDITED, what is {what}: pypi cannot be reached; osv cannot be reached" in done.stdout
