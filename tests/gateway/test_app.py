"""What a gateway process asks of the system; that it serves is in test_flow and its neighbours."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, resource
from gateway import app

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
app._allow_descriptors()
print(json.dumps([hard, *resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""


def test_it_may_open_as_many_files_as_it_is_allowed_at_all() -> None:
    """In a process of its own: the limit is the process's."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True)
    most, soft, hard = json.loads(done.stdout)
    assert (soft, hard) == (most, most)
    assert most > 256
