"""What the C library says of a name decides, each time anew; it asks a name server in namespaces of their own."""

import json
import subprocess
import sys

import pytest

from tests.conftest import LOOPS
from tests.fault.fleet import ROOT

APART = ("unshare", "--user", "--map-root-user", "--mount", "--net")


@pytest.mark.parametrize("loop", LOOPS)
def test_names_are_judged_by_what_they_lead_to_each_time(loop: str) -> None:
    if subprocess.run([*APART, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no namespaces of one's own")
    done = subprocess.run(
        [*APART, sys.executable, "-m", "tests.fault.names", loop],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {
        "good.test": ["200", "200"],
        "mixed.test": ["egress_denied", "egress_denied"],
        "metadata.test": ["egress_denied", "egress_denied"],
        "mapped.test": ["egress_denied", "egress_denied"],
        "flips.test": ["200", "egress_denied"],
        "unknown.test": ["dns_error", "dns_error"],
        "failing.test": ["dns_error", "dns_error"],
        "silent.test": ["dns_timeout"],
        "connections": ["3"],
    }
