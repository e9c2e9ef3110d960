"""Whatever a run meets in its life, three things hold.

Nothing foreign is touched; no checkpoint that was acknowledged is lost; and the run
ends with the fingerprint of the undisturbed one, or says why not, with the exit code of
that reason. MINITRAIN_NUM_LIVES is how many lives are drawn.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LIVES = Path(__file__).parents[1] / "harness" / "lives.py"
NUM_LIVES = int(os.environ.get("MINITRAIN_NUM_LIVES", "15"))
FLAGS = {
    "--data.name": "digits",
    "--model.dropout": "0.3",
    "--epochs": "2",
    "--checkpoint.every": "4",
    "--log.every": "1",
    "--instruments.look": "1",
    "--instruments.audit": "3",
    "--instruments.truth": "9",
    "--instruments.noise": "4",
}
REASONS = {2: "settings", 3: "data", 4: "checkpoint", 5: "storage", 7: "directory"}


class Run:
    """A run, what it promised, what was done to it, and what must not change."""

    def __init__(self, folder: Path, live: Callable[..., int]) -> None:
        self.folder, self.output, self.live_once = folder / "run", folder / "out", live
        self.output.mkdir(parents=True)
        self.promised: dict[int, str] = {}
        """How the names of acknowledged checkpoints begin, by step."""
        self.harmed: set[str] = set()
        """Kinds of files that were damaged or removed."""
        self.foreign: dict[Path, bytes] = {}

    def live(self, changed: dict[str, str] | None = None, **fate: int) -> int:
        """Begin or go on; check what must hold afterwards."""
        begun = self.folder.exists() and any(self.folder.iterdir())
        flags = FLAGS | {"--run-dir": str(self.folder)} | (changed or {})
        words = ["train", *(word for pair in flags.items() for word in pair)]
        code = self.live_once(words + ["--resume"] * begun, str(self.output), fate)
        out, err = ((self.output / name).read_text() for name in ("out", "err"))
        for step, digits in re.findall(r"saved checkpoint step=(\d+) \((\w+)\)", out):
            self.promised[int(step)] = f"step-{int(step):08d}.{digits}"
        assert "Traceback" not in err, err
        if fate.get("kill") and code == -9:
            pass
        elif fate.get("stop") and code == 143:
            # Where there is nothing to save, a signal ends the program without a word.
            assert err == "" or "SIGTERM" in err, err
        elif code != 0:
            assert code in REASONS and "error: " in err, (code, out, err)
        self.check()
        return code

    def change(self, key: str) -> None:
        """Ask for another setting, once there is a checkpoint to compare with."""
        if self.promised:
            code = self.live({key: "5"}, kill=10)
            allowed = {2} if key == "--seed" else {0, -9}
            if (
                "settings" in self.harmed
            ):  # no TOML any more, or settings of another run
                allowed.add(2)
            assert code in allowed, code

    def check(self) -> None:
        for path, content in self.foreign.items():
            assert path.read_bytes() == content, f"{path} was touched"
        if self.promised and "checkpoint" not in self.harmed:
            name = self.promised[max(self.promised)]
            (path,) = self.folder.glob(f"checkpoints/{name}*.pt")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest in path.name, "a promise is broken"

    def put_foreign(self, name: str) -> None:
        """Put a file there that is not the run's."""
        path = self.folder / name
        if path.parent.is_dir() and path not in self.foreign:
            self.foreign[path] = name.encode()
            path.write_bytes(self.foreign[path])

    def files_of(self, kind: str) -> list[Path]:
        pattern = {
            "checkpoint": "checkpoints/step-*.pt",
            "events": "events.out.tfevents.*",
            "summary": "summary.json",
            "settings": "config.toml",
        }[kind]
        return sorted(set(self.folder.glob(pattern)) - self.foreign.keys())

    def harm(self, kind: str, how: str) -> None:
        """Damage or remove the newest file of a kind."""
        found = self.files_of(kind)
        if not found:
            return
        path = found[-1]
        content = bytearray(path.read_bytes())
        if how == "remove":
            path.unlink()
        elif how == "flip" and content:
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.write_bytes(content[: len(content) // 2])
        self.harmed.add(kind)
        if kind == "checkpoint":
            promised = {s: n for s, n in self.promised.items() if n not in path.name}
            kept = " ".join(each.name for each in self.files_of(kind))
            # The one before must still serve.
            self.promised = {s: n for s, n in promised.items() if n in kept}
            self.harmed.discard(kind)
            if not self.promised:
                self.harmed.add("every checkpoint")

    def end(self, undisturbed: str) -> None:
        """Go on until the end: the undisturbed fingerprint, or a reason."""
        code = self.live()
        if code == 0:
            summary = json.loads((self.folder / "summary.json").read_text())
            assert summary["fingerprint"] == undisturbed
            assert summary["status"] == "finished"
            return
        reasons = self.harmed & {"every checkpoint", "settings", "events", "summary"}
        assert reasons, (code, (self.output / "err").read_text())
        if not reasons & {"every checkpoint", "settings"}:
            pytest.fail(f"damage to {reasons} ended the run with {code}")
        assert code in (2, 4, 7)


events = st.integers(1, 120)
actions = st.one_of(
    st.tuples(st.just("kill"), events),
    st.tuples(st.just("kill"), events),
    st.tuples(st.just("stop"), events),
    st.tuples(st.just("full"), st.integers(1, 4)),
    st.tuples(st.just("change"), st.sampled_from(["--seed", "--log.every"])),
    st.tuples(
        st.just("harm"),
        st.sampled_from(["checkpoint", "events", "summary", "settings"]),
        st.sampled_from(["flip", "cut", "remove"]),
    ),
    st.tuples(
        st.just("foreign"),
        st.sampled_from(
            [
                "notes.txt",
                "events.out.tfevents.1.another",
                ".mine.part",
                "checkpoints/step-notes.pt",
            ]
        ),
    ),
)


@pytest.fixture(scope="module")
def live(few_digits: None) -> Iterator[Callable[..., int]]:
    """The process that is forked for every life."""
    process = subprocess.Popen(
        [sys.executable, str(LIVES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def order(words: list[str], output: str, fate: dict[str, int]) -> int:
        text = json.dumps({"words": words, "output": output, "fate": fate})
        print(text, file=process.stdin, flush=True)
        return int(process.stdout.readline())

    with process:
        yield order
        process.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(live: Callable[..., int], tmp_path_factory) -> str:
    run = Run(tmp_path_factory.mktemp("undisturbed"), live)
    assert run.live() == 0
    return json.loads((run.folder / "summary.json").read_text())["fingerprint"]


def test_whatever_a_run_meets(live: Callable[..., int], undisturbed: str) -> None:
    @settings(
        max_examples=NUM_LIVES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
        print_blob=True,
    )
    @given(st.integers(20, 80), st.lists(actions, min_size=2, max_size=5))
    def each(first: int, acts: list[tuple[Any, ...]]) -> None:
        folder = Path(tempfile.mkdtemp())
        run = Run(folder, live)
        try:
            run.live(kill=first)
            for act, *details in acts:
                if act in ("kill", "stop", "full"):
                    run.live(**{act: details[0]})
                elif act == "change":
                    run.change(details[0])
                elif act == "harm":
                    run.harm(*details)
                else:
                    run.put_foreign(*details)
            run.end(undisturbed)
        finally:
            shutil.rmtree(folder)

    each()
