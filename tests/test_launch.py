"""The launcher of `fluxexp.run` and `fluxexp launch`: real processes that do nothing but end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from fluxexp import launch as launcher
from fluxexp.errors import ConfigError
from fluxexp.launch import launch, run_ranks
from fluxexp.rank_environment import RankEnvironment, without_launcher
from fluxexp.visible_gpus import Ranks

_STOPS = """
    import os, signal, sys, time
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: sys.exit(75))
    print("ready", os.environ.get("RANK", "0"), flush=True)
"""


def ranks(script: str, number: int = 2, environment: Mapping[str, str] = os.environ) -> tuple[int, list[str]]:
    """Exit code and lines of `script` in `number` ranks."""
    lines: list[str] = []
    code = run_ranks([sys.executable, "-c", textwrap.dedent(script)], number, environment, lines.append)
    return code, lines


def test_each_rank_knows_its_place() -> None:
    script = """
        import json, os
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        print(" ".join(os.environ[name] for name in names))
    """
    code, lines = ranks(script, 3)
    assert code == 0
    found = sorted(line.split() for line in lines)
    port = found[0].pop()
    assert [line[:5] for line in found] == [[str(rank), "3", str(rank), "3", "localhost"] for rank in range(3)]
    assert 0 < int(port) < 65536
    assert {line[5] for line in found[1:]} == {port}


def test_a_single_rank_has_no_launcher() -> None:
    code, lines = ranks("import os; print('RANK' in os.environ)", 1, without_launcher(os.environ))
    assert (code, lines) == (0, ["False"])


def test_the_exit_code_is_that_of_rank_0() -> None:
    assert ranks("import os, sys; sys.exit(3 if os.environ['RANK'] == '0' else 1)")[0] == 3
    assert ranks("import os, sys; sys.exit(int(os.environ['RANK']))")[0] == 0
    assert ranks("import os; os.kill(os.getpid(), 9)", 1)[0] == 137


def test_after_a_config_error_the_other_ranks_end_at_once() -> None:
    script = _STOPS + "    time.sleep(0.3) if os.environ['RANK'] == '0' else time.sleep(60)\n    sys.exit(2)"
    begin_s = time.monotonic()
    assert ranks(script)[0] == 2
    assert time.monotonic() - begin_s < 30


def test_a_rank_that_hangs_after_the_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_OTHERS_END_S", 0.1)
    monkeypatch.setattr(launcher, "_TERMINATED_S", 0.1)
    script = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(0.3 if os.environ["RANK"] == "0" else 60)
    """
    assert ranks(script)[0] == 0


def test_an_error_of_the_reader_leaves_no_rank() -> None:
    pids: list[int] = []

    def refuse(line: str) -> None:
        pids.append(int(line))
        raise ValueError("stop")

    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(ValueError, match="stop"):
        run_ranks([sys.executable, "-c", script], 2, os.environ, refuse)
    assert pids
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


def test_output_without_a_last_newline_and_without_utf_8() -> None:
    script = "import sys; sys.stdout.buffer.write(b'one\\r\\n\\xff two')"
    assert ranks(script, 1) == (0, ["one", "\ufffd two"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_all_ranks_and_nothing_is_left(tmp_path: Path, number: int) -> None:
    """The launcher alone gets the signal, as with the stop button of a notebook."""
    rank = textwrap.dedent(_STOPS) + "time.sleep(60)"
    program = f"""
        import os, sys
        from fluxexp.launch import run_ranks
        before = __import__("signal").getsignal({number})
        code = run_ranks([sys.executable, "-c", {rank!r}], 2, os.environ, lambda line: print(line, flush=True))
        print("restored", __import__("signal").getsignal({number}) is before)
        sys.exit(code)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert {process.stdout.readline() for _ in range(2)} == {"ready 0\n", "ready 1\n"}
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (75, "restored True\n")


def test_a_rank_of_a_launcher_cannot_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="number of processes=2: a launcher has already started several"):
        launch([], Ranks())


def test_variables_of_a_launcher_are_left_out() -> None:
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "0", "HOME": "/h", "MY_RANK": "1"}
    RankEnvironment(world_size=2, master_addr="localhost", master_port=1).publish(environment)
    assert without_launcher(environment) == {"HOME": "/h", "MY_RANK": "1"}
