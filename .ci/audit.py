"""Audit: is anything that we pin, or that is installed here, known to be vulnerable?

make audit

Asks PyPI and, where that has no advisories, OSV, by pip-audit. Ends with 1 when a known vulnerability is found that
.ci/advisories.toml does not accept. Where nobody can be asked it says so, and that is no failure: a build may be
offline.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / ".ci" / "advisories.toml"
SERVICES = ("pypi", "osv")
"""asked in this order until one has advisories"""
_TIMEOUT_S = 120
_OF_PYTHON = frozenset({"pip", "setuptools"})
"""every new environment brings them, as old as its Python; they are told of, and not ours to pin"""
_NO_ANSWER = re.compile(
    r"ERROR:pip_audit\._cli:Tip: your network may be blocking this service\b"
    r"|requests\.exceptions\.\w+\b"
    r"|pip_audit\._service\.interface\.(ConnectionError|ServiceError)\b"
)
"""how pip-audit's last line begins when the service could not be reached, or answered with an error or no JSON"""


class UnreachableError(Exception):
    """Nobody could be asked, or nobody there knows anything."""


class BrokenError(Exception):
    """pip-audit itself or the list of what is accepted is at fault."""


@dataclass(frozen=True)
class Finding:
    """One known vulnerability of one package."""

    package: str
    version: str
    ids: frozenset[str]
    """all its names: PYSEC-..., GHSA-..., CVE-..."""
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        fixed = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fixed version yet"
        return f"{self.package} {self.version}: {', '.join(sorted(self.ids))}; {fixed}"


@dataclass(frozen=True)
class Accepted:
    """A vulnerability that we live with for a while."""

    id: str
    package: str
    reason: str
    until: date
    """the last day on which it is accepted"""

    def covers(self, finding: Finding, today: date) -> bool:
        return self.id in finding.ids and self.package == finding.package and today <= self.until


def main() -> int:
    findings: set[Finding] = set()
    complete = True
    try:
        accepted = read_accepted(ACCEPTED)
        with TemporaryDirectory() as folder:
            for what, args in (*pinned(Path(folder)), ("installed", ["--local"])):
                try:
                    service, found, unknown = ask(args)
                except UnreachableError as error:
                    print(f"NOT AUDITED, what is {what}: {error}. Run `make audit` where PyPI can be reached.")
                    complete = False
                    continue
                findings |= found
                known = f"; it does not know {', '.join(unknown)}" if unknown else ""
                print(f"what is {what}: {len(found)} known vulnerabilities, says {service}{known}")
    except BrokenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return verdict(findings, accepted, date.today(), complete)


def pinned(folder: Path) -> list[tuple[str, list[str]]]:
    """What to audit, and the arguments of pip-audit. It refuses two versions of a package, so the pins for CUDA 12 are
    copied to a file in folder: without what they include, and without +cu126, which no service knows."""
    cu12 = sorted(ROOT.glob("requirements*-cu12.txt"))
    pins = [pin for file in cu12 for pin in re.findall(r"^[\w.-]+==[\w.]+", file.read_text(), re.MULTILINE)]
    (folder / "requirements-cu12.txt").write_text("\n".join(pins) + "\n")
    others = [file for file in sorted(ROOT.glob("requirements*.txt")) if file not in cu12]
    offline = ["--no-deps", "--disable-pip"]
    return [
        (what, [*offline, *(word for file in files for word in ("--requirement", str(file)))])
        for what, files in (("pinned", others), ("pinned for CUDA 12", [folder / "requirements-cu12.txt"]))
    ]


def ask(args: Sequence[str]) -> tuple[str, set[Finding], list[str]]:
    """The service that knew, what it found, and the packages that it does not know. Raises as `understood` does."""
    refusals = []
    for service in SERVICES:
        command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
        try:
            done = subprocess.run(
                [*command, "--vulnerability-service", service, *args],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            return service, *understood(done.returncode, done.stdout, done.stderr)
        except subprocess.TimeoutExpired:
            refusals.append(f"{service} did not answer within {_TIMEOUT_S} s")
        except UnreachableError as error:
            refusals.append(f"{service} {error}")
    raise UnreachableError("; ".join(refusals))


def understood(code: int, stdout: str, stderr: str) -> tuple[set[Finding], list[str]]:
    """What pip-audit found, and the packages that the service does not know.

    Raises UnreachableError when nothing was audited, whatever the exit code: pip-audit says 0 and "no known
    vulnerabilities" where the service knows no package at all, and 1 where it cannot be reached. Raises BrokenError for
    all else that is no answer.
    """
    if not stdout.strip():
        last = (stderr.strip().splitlines() or ["nothing"])[-1]
        if code and _NO_ANSWER.match(last):
            raise UnreachableError("cannot be reached")
        raise BrokenError(f"pip-audit ended with {code} and said: {last}")
    try:
        packages = json.loads(stdout)["dependencies"]
        unknown = [package["name"] for package in packages if "skip_reason" in package]
        audited = [package for package in packages if "skip_reason" not in package]
        findings = {
            Finding(
                package["name"],
                package["version"],
                frozenset([vulnerability["id"], *vulnerability["aliases"]]),
                tuple(vulnerability["fix_versions"]),
            )
            for package in audited
            for vulnerability in package["vulns"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"pip-audit ended with {code} and wrote what is not its JSON: {error!r}") from None
    if not audited:
        raise UnreachableError("has no advisories here: it knows none of the packages")
    if code not in (0, 1) or bool(code) != bool(findings):
        raise BrokenError(f"pip-audit ended with {code} and {len(findings)} findings, which does not fit together")
    return findings, unknown


def verdict(findings: set[Finding], accepted: Sequence[Accepted], today: date, complete: bool = True) -> int:
    """Prints each finding and what is to be done; 1 when one is not accepted. complete: everything could be asked."""
    failed = False
    for finding in sorted(findings, key=str):
        reason = next((entry.reason for entry in accepted if entry.covers(finding, today)), None)
        if reason is not None:
            print(f"accepted: {finding}; {reason}")
        elif finding.package in _OF_PYTHON:
            print(f"came with Python: {finding}; upgrade it by pip")
        else:
            failed = True
            print(f"VULNERABLE: {finding}")
    for entry in accepted:
        if today > entry.until:
            print(f"{entry.id} of {entry.package} was accepted until {entry.until}, which is over")
        elif complete and not any(entry.covers(finding, today) for finding in findings):
            print(f"{entry.id} of {entry.package} is found no more; take it out of {ACCEPTED.name}")
    if failed:
        print(f"pin a fixed version, or accept it for a while, with a reason, in {ACCEPTED.name}")
    return int(failed)


def read_accepted(path: Path) -> list[Accepted]:
    """Raises BrokenError naming an entry that lacks something: nothing is accepted without a reason and an end."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("accepted", [])
    except tomllib.TOMLDecodeError as error:
        raise BrokenError(f"{path.name} is not TOML: {error}") from None
    kinds = {"id": str, "package": str, "reason": str, "until": date}
    for number, entry in enumerate(entries, 1):
        wrong = [name for name, kind in kinds.items() if not (isinstance(entry.get(name), kind) and entry[name])]
        if wrong or set(entry) != set(kinds):
            raise BrokenError(f"entry {number} of {path.name} should hold {', '.join(kinds)}, got {', '.join(entry)}")
    return [Accepted(**entry) for entry in entries]


if __name__ == "__main__":
    sys.exit(main())
