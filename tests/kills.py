"""Kill a smoke report at random moments and compare what comes out, bit for bit, with one that was
left alone.

Not collected by pytest: ``python tests/kills.py [KILLS] [SEED]`` takes some minutes. Exit code 1
where anything differs or is left running.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = [sys.executable, "-m", "warp_lib", "report", "--profile", "smoke"]


def begin(runs: Path) -> subprocess.Popen:
    around = os.environ | {
        "WARP_RUNS": str(runs),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    runs.mkdir(exist_ok=True)
    with (runs / "said").open("w") as said:
        return subprocess.Popen(
            REPORT,
            cwd=ROOT,
            env=around,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )


def left_running(runs: Path) -> list[str]:
    """Processes of a report, but for this one."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"WARP_RUNS={runs}".encode() in environ.read_bytes().split(b"\0"):
                found.append(
                    (environ.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
                )
        except OSError:
            pass
    return found


def results(runs: Path) -> dict[str, str]:
    """A digest of everything that was computed: weights, tables and records, without the seconds
    that a step took.
    """
    found = {}
    for file in sorted(
        [
            *(runs / "store").rglob("*.safetensors"),
            *(runs / "smoke" / "models").rglob("*.safetensors"),
        ]
    ):
        found[str(file.relative_to(runs))] = hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted((runs / "store").glob("*/record.json")):
        found[str(file.relative_to(runs))] = json.dumps(
            _without_seconds(json.loads(file.read_text())["result"]), sort_keys=True
        )
    for file in sorted((runs / "smoke" / "results").glob("*.csv")):
        header, *rows = [line.split(",") for line in file.read_text().splitlines()]
        kept = [k for k, name in enumerate(header) if name != "seconds"]
        found[str(file.relative_to(runs))] = str([[row[k] for k in kept] for row in rows])
    return found


def _without_seconds(value):
    if isinstance(value, dict):
        return {key: _without_seconds(inner) for key, inner in value.items() if key != "seconds"}
    return [_without_seconds(inner) for inner in value] if isinstance(value, list) else value


def main(kills: int, seed: int) -> int:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="warp-kills-") as folder:
        alone, killed = Path(folder) / "alone", Path(folder) / "killed"
        began = time.monotonic()
        if (report := begin(alone)).wait():
            print((alone / "said").read_text())
            return 1
        seconds, bad = time.monotonic() - began, 0
        # a report begins in some 10 s and goes on where it was: the kills spread over all of its
        # work
        longest = 15 + 4 * seconds / kills
        print(
            f"left alone: {seconds:.0f} s, {len(results(alone))} results; {kills} kills, seed"
            f" {seed}",
            flush=True,
        )
        for number in range(kills):
            report = begin(killed)
            how = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
            try:
                report.wait(moment := draw.uniform(0.2, longest))
                moment = f"after its end ({report.returncode})"
            except subprocess.TimeoutExpired:
                report.send_signal(how)
                moment = f"{moment:.1f} s"
            sent = time.monotonic()
            while (left := left_running(killed)) and time.monotonic() < sent + 10:
                time.sleep(0.05)
            took = time.monotonic() - sent
            bad += took > 5
            print(
                f"{number + 1}: {how.name} at {moment}, all ended within {took:.1f} s {left or ''}",
                flush=True,
            )
        report = begin(killed)
        report.wait()
        said = (killed / "said").read_text()
        first, second = results(alone), results(killed)
        odd = sorted(
            name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
        )
        print(
            f"finished with {report.returncode} {said}; {len(odd)} of {len(first)} results differ"
            f" {odd[:10]}; {bad} kills took over 5 s"
        )
        return int(bool(report.returncode or odd or bad))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*given, *[20, random.randrange(10**6)][len(given) :]))
