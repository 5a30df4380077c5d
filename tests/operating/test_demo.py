"""The demo as a person meets it: pasted lines, nodes that die, Ctrl-C, and nobody left behind."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import children_of, free_base_port, is_alive, wait_until_gone
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 60.0


@dataclass(frozen=True)
class Demo:
    process: subprocess.Popen[bytes]
    output: Path
    base_port: int

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str, limit_s: float = START_LIMIT_S) -> None:
        def has_said_it() -> bool:
            if words in self.said:
                return True
            assert self.process.poll() is None, f"the demo has ended: {self.said}"
            return False

        wait_until(has_said_it, lambda: f"it said {words!r}: {self.said}", limit_s)

    def pasted(self, words: str) -> str:
        """The line of the output that can be pasted and contains `words`."""
        lines = [line for line in self.said.splitlines() if line.startswith("  ") and words in line]
        return lines[-1].strip()

    def family(self) -> list[int]:
        """The demo, its sidecars and their Valkeys."""
        return [self.process.pid, *children_of(self.process.pid)]

    def node(self, name: str) -> int:
        """The process id of a node's sidecar."""
        (pid,) = [
            pid
            for pid in children_of(self.process.pid)
            if f"--node\0{name}\0" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        return pid


@contextlib.contextmanager
def running_demo(folder: Path, *options: str) -> Iterator[Demo]:
    base_port = free_base_port(2)
    output = folder / "output.txt"
    command = [sys.executable, "-m", "sidecar", "demo", "--base-port", str(base_port), *options]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
    demo = Demo(process, output, base_port)
    try:
        demo.wait_for("Ctrl-C ends all nodes")
        yield demo
    finally:
        family = demo.family()
        process.kill()
        process.wait()
        wait_until_gone(family)


def shell(line: str) -> str:
    answer = subprocess.run(
        line, shell=True, capture_output=True, text=True, timeout=30, check=True
    )
    return answer.stdout


def pasted_curl(line: str) -> str:
    """Run the curl line; where there is no curl, do what it says, word by word."""
    words = shlex.split(line)
    assert words[0] == "curl"
    if subprocess.run(["which", "curl"], capture_output=True, check=False).returncode == 0:
        return shell(line)
    headers = dict([words[words.index("-H") + 1].split(": ")])
    body = words[words.index("-d") + 1].encode()
    request = urllib.request.Request(words[2], body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.read().decode())


def read_until(line: str, words: str, limit_s: float = 10.0) -> None:
    wait_until(lambda: words in pasted_curl(line), f"{words!r} is read", limit_s)


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def second_shell(line: str) -> Iterator[subprocess.Popen[bytes]]:
    """The line in a shell of its own; exec, so that its process id is the node's."""
    with subprocess.Popen(f"exec {line}", shell=True, start_new_session=True) as process:
        family = [process.pid]
        try:
            yield process
            family = [process.pid, *children_of(process.pid)]
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            finally:
                process.kill()
    wait_until_gone(family)


def test_the_printed_lines_write_here_and_read_there(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--ephemeral") as demo:
        family = demo.family()
        assert len(family) >= 5, "the demo, two sidecars, two Valkeys"
        for node in range(2):
            for offset in range(3):
                assert is_healthy(demo.base_port + 10 * node + offset)
        answer = json.loads(pasted_curl(demo.pasted("relationships/write")))
        assert answer["relationships_written"] == 1
        read_until(demo.pasted("relationships/list"), "user:alice")
        began = time.monotonic()
        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(timeout=60) == 0
        assert time.monotonic() - began < 30
        wait_until_gone(family)


def test_ctrl_c_ends_it_and_the_data_is_there_the_next_time(tmp_path: Path) -> None:
    options = ("--data-dir", str(tmp_path / "kept"))
    with running_demo(tmp_path, *options) as demo:
        pasted_curl(demo.pasted("relationships/write"))
        family = demo.family()
        os.killpg(demo.process.pid, signal.SIGINT)
        assert demo.process.wait(timeout=60) == 0
        wait_until_gone(family)
        assert "Traceback" not in demo.said
    with running_demo(tmp_path, *options) as demo:
        first = demo.pasted("relationships/list").replace(
            f":{demo.base_port + 10}/", f":{demo.base_port}/"
        )
        read_until(first, "user:alice")


def test_a_dead_node_is_named_and_started_again_with_the_printed_line(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--data-dir", str(tmp_path / "name with space")) as demo:
        node = demo.node("node2")
        gone = [node, *children_of(node)]
        os.kill(node, signal.SIGKILL)
        demo.wait_for("node2 (eu-central-1) has ended: signal SIGKILL")
        wait_until_gone(gone)
        assert is_healthy(demo.base_port), "the other goes on"
        pasted_curl(demo.pasted("relationships/write"))
        with second_shell(demo.pasted("--node node2")) as again:
            demo.wait_for("node2 (eu-central-1) answers again")
            read_until(demo.pasted("relationships/list"), "user:alice", limit_s=40)
            demo.process.send_signal(signal.SIGTERM)
            assert demo.process.wait(timeout=60) == 0
            assert is_alive(again.pid), "what a person started is theirs to end"


def test_a_killed_demo_leaves_nobody(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--data-dir", str(tmp_path / "kept")) as demo:
        family = demo.family()
        demo.process.kill()
        demo.process.wait()
        wait_until_gone(family)


def run_briefly(*options: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [sys.executable, "-m", "sidecar", "demo", *options]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    import socket

    base_port = free_base_port(2)
    with socket.create_server(("127.0.0.1", base_port + 11)):
        ended = run_briefly("--base-port", str(base_port), "--data-dir", str(tmp_path / "never"))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"port {base_port + 11} (peer listener of node2)" in ended.stderr
    assert not (tmp_path / "never").exists()


def test_a_node_that_does_not_start_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "kept" / "node2" / "appendonlydir").mkdir(parents=True)
    manifest = tmp_path / "kept" / "node2" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("rubbish\n")
    ended = run_briefly("--base-port", str(free_base_port(2)), "--data-dir", str(tmp_path / "kept"))
    assert ended.returncode == 1
    assert "node2 did not start" in ended.stderr
    assert "Invalid AOF manifest" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [("--regions", "0"), ("--base-port", "65530")])
def test_what_cannot_be_is_refused(options: tuple[str, ...]) -> None:
    ended = run_briefly(*options)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert options[0] in ended.stderr
