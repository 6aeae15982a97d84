"""The workflows of continuous integration, as far as they can be checked without running them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def jobs(path):
    """Return the jobs of a workflow, given its path or its name."""
    if isinstance(path, str):
        (path,) = [found for found in WORKFLOWS if found.stem == path]
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def steps(path):
    return [step for job in jobs(path).values() for step in job["steps"]]


def targets(path):
    """Return the targets of each run of ``make``."""
    commands = "\n".join(step.get("run", "") for step in steps(path))
    return re.findall(r"^make ((?:[a-z-]+ )*[a-z-]+)", commands, re.MULTILINE)


@every_workflow
def test_workflow_is_valid_for_github(path):
    schema = "vendor.github-workflows"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@every_workflow
def test_every_action_is_pinned_by_its_hash(path):
    lines = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert len(lines) == len([step for step in steps(path) if "uses" in step]) > 0
    for line in lines:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_action_is_pinned_to_one_version():
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    pins = set(re.findall(r"uses: (\S+@.*)", text))
    assert len(pins) == len({pin.partition("@")[0] for pin in pins})


@every_workflow
def test_jobs_have_only_the_permissions_that_they_need(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job.get("permissions", {}) in ({}, {"id-token": "write"})
        assert job["timeout-minutes"] > 0


@every_workflow
def test_commands_of_workflows_exist(path):
    assert targets(path)
    for names in targets(path):
        make = ["make", "--dry-run", "-C", ROOT, *names.split()]
        done = subprocess.run(make, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_python_version_is_tested_and_built():
    tested = jobs("tests")["tests"]["strategy"]["matrix"]["python"]
    assert tested == ["3.11", "3.12", "3.13", "3.14", "3.14t", "3.15"]
    peers = jobs("nightly")["peers"]["strategy"]["matrix"]["python"]
    assert peers == [version for version in tested if not version.endswith("t")]
    for job in ("native", "cross"):
        uses = [step for step in jobs("wheels")[job]["steps"] if "with" in step]
        versions = next(step["with"]["python-version"] for step in uses if "python" in str(step))
        assert sorted(versions.split()) == [*tested, "3.15t"]


def test_nightly_workflow_runs_what_contributors_read_that_it_runs():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    promised = re.findall(r"^\| `make ([a-z-]+).*nightly", text, re.MULTILINE)
    assert {"fuzz", "loom", "sanitize", "valgrind"} <= set(promised)
    # `make fuzz` includes the families.
    assert set(promised) - set(targets("nightly")) == {"families"}


def test_published_files_are_the_built_ones():
    everything = jobs("wheels")
    assert everything["publish"]["needs"] == ["native", "cross", "reproducible"]
    uploads = [
        step["with"]["name"]
        for step in steps("wheels")
        if step.get("uses", "").startswith("actions/upload-artifact@")
    ]
    assert len(uploads) == len(set(uploads)) == 3
