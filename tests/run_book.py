"""Runs each notebook with nbdev_test in a process of its own, so that none sees another's, and in time.

`make test` calls it. The last line is "N passed, N failed".
"""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 2
LIMIT_S = 180  # for one notebook
NBDEV_TEST = Path(sys.executable).with_name("nbdev_test")


def run(path: Path) -> bool:
    "Whether the notebook ran through; says so, with all its output when it did not."
    own = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")} | {"MPLBACKEND": "agg"}
    start = time.monotonic()
    process = subprocess.Popen(
        [NBDEV_TEST, "--path", path],
        env=own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0] + f"\nstopped: it took longer than {LIMIT_S} s"
    passed = process.returncode == 0 and bool(re.search(r"^Success\.$", output, re.MULTILINE))
    said = "" if passed else "\n" + output.strip()
    print(
        f"{'passed' if passed else 'FAILED'} {time.monotonic() - start:5.1f} s  {path.name}{said}", flush=True
    )
    return passed


def main(paths: list[Path]) -> int:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        passed = sum(pool.map(run, paths))
    print(f"{passed} passed, {len(paths) - passed} failed")
    return 0 if paths and passed == len(paths) else 1


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    sys.exit(main([Path(p) for p in sys.argv[1:]] or sorted((root / "nbs").glob("*.ipynb"))))
