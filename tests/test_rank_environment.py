from __future__ import annotations

import re
from pathlib import Path

import pytest

import fluxexp
from fluxexp.errors import ConfigError
from fluxexp.rank_environment import RankEnvironment

MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_without_a_launcher_the_process_is_rank_0_of_1() -> None:
    environment = RankEnvironment.from_environment({"RANK": "", "MASTER_PORT": "0"})
    assert environment == RankEnvironment()
    assert environment.is_main


def test_all_variables_of_torchrun_are_read() -> None:
    environment = RankEnvironment.from_environment(
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
        | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        | MASTER
    )
    assert (environment.rank, environment.world_size, environment.is_main) == (5, 8, False)
    assert (environment.local_rank, environment.local_world_size) == (1, 4)
    assert environment.has_launcher_store
    assert (environment.master_addr, environment.master_port) == ("node0", 29500)


def test_without_local_world_size_all_processes_are_on_one_machine() -> None:
    environment = RankEnvironment.from_environment({"RANK": "3", "WORLD_SIZE": "4"} | MASTER)
    assert (environment.local_rank, environment.local_world_size) == (3, 4)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': must be an integer"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0': must be at least 1"),
        ({"RANK": "-1"}, "RANK='-1': must be at least 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"} | MASTER, "RANK='2': must be less than WORLD_SIZE=2"),
        ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE='4': must not exceed WORLD_SIZE=1"),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "MASTER_ADDR: must name the host of rank 0"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "node0"}, "MASTER_PORT: must be the port"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "0"}, "MASTER_PORT='0': must be the port"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_a_remedy(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        RankEnvironment.from_environment(variables)
    assert "torchrun" in str(raised.value)


def test_the_remedy_for_port_0_is_an_option_of_torchrun_that_works() -> None:
    with pytest.raises(ConfigError, match="use `--standalone` in place of `--master-port 0`"):
        RankEnvironment.from_environment({"WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "0"})


def test_no_other_module_reads_the_variables_of_a_launcher() -> None:
    variables = re.compile(r"""["'](RANK|WORLD_SIZE|LOCAL_\w+|GROUP_RANK|MASTER_\w+|TORCHELASTIC_\w+)["']""")
    assert fluxexp.__file__ is not None
    source = Path(fluxexp.__file__).parent.parent
    readers = {path.name for path in source.rglob("*.py") if variables.search(path.read_text(encoding="utf-8"))}
    assert readers == {"rank_environment.py"}
