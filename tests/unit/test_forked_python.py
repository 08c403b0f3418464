"""The processes that tests fork behave as those that they would start."""

from __future__ import annotations

import os
import subprocess
import sys

import forked_python
import pytest

CODES = {
    "exit code": "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)",
    "error": "raise ValueError('what')",
    "signal": "import os, signal; print('lost', flush=True); os.kill(os.getpid(), signal.SIGTERM)",
    "surroundings": "import os, sys; print(os.getcwd(), os.environ['MINE'], sys.argv, __name__, sys.path[0])",
    "end": "import atexit; atexit.register(print, 'after'); print('before')",
}


@pytest.mark.parametrize("name", CODES)
def test_output_and_code_are_those_of_a_started_process(name, tmp_path):
    args, options = ["-c", CODES[name], "given"], {"cwd": tmp_path, "env": {**os.environ, "MINE": "yes"}}
    forked = forked_python.run(args, capture_output=True, **options)
    started = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, **options)
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_torch_is_imported_before_and_nothing_of_ours():
    code = (
        "import sys; print({name.partition('.')[0] for name in sys.modules} & {'torch', 'kornia', 'lpips_lightning'})"
    )
    assert forked_python.run(["-c", code], capture_output=True, check=True).stdout == "{'torch'}\n"


def test_a_process_that_does_not_end_is_killed():
    with pytest.raises(subprocess.TimeoutExpired):
        forked_python.run(["-c", "import time; time.sleep(600)"], timeout=0.5)
    assert forked_python.run(["-c", "print(1)"], capture_output=True).stdout == "1\n"
