from __future__ import annotations

import re
from dataclasses import replace
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


STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
"""What Slurm 22.05 sets for a task of srun."""


def test_a_task_of_srun_finds_its_rank_and_the_host_of_rank_0() -> None:
    environment = RankEnvironment.from_environment(STEP)
    assert (environment.rank, environment.world_size) == (5, 7)
    assert (environment.local_rank, environment.local_world_size) == (1, 3)
    assert (environment.master_addr, environment.has_launcher_store) == ("gpu07", False)
    port = environment.master_port
    assert port == RankEnvironment.from_environment(STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).master_port
    assert port != RankEnvironment.from_environment(STEP | {"SLURM_STEP_ID": "1"}).master_port
    assert port != RankEnvironment.from_environment(STEP | {"SLURM_JOB_ID": "4712"}).master_port


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("rack[1-2]n[03,05-7]x,b", "rack1n03x"),
        ("n[9]", "n9"),
        ("host.example.org,b", "host.example.org"),
    ],
)
def test_the_first_host_of_a_list_of_slurm(hosts: str, first: str) -> None:
    assert RankEnvironment.from_environment(STEP | {"SLURM_STEP_NODELIST": hosts}).master_addr == first


def test_tasks_on_one_node_need_no_name_of_a_host() -> None:
    one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "7", "SLURM_NODEID": "0", "SLURM_LOCALID": "5"}
    assert RankEnvironment.from_environment(STEP | one).master_addr == "localhost"


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},  # a batch script
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        STEP | {"RANK": "0", "WORLD_SIZE": "1"},  # torchrun in a task of srun
    ],
)
def test_variables_of_slurm_do_not_count_without_several_tasks_or_below_a_launcher(variables: dict[str, str]) -> None:
    assert RankEnvironment.from_environment(variables) == RankEnvironment()


def test_without_a_list_of_hosts_the_master_address_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR: must name the host of rank 0"):
        RankEnvironment.from_environment({key: value for key, value in STEP.items() if "NODELIST" not in key})
    assert RankEnvironment.from_environment(STEP | {"MASTER_ADDR": "10.0.0.1"}).master_addr == "10.0.0.1"


def test_published_variables_say_the_same_rank() -> None:
    published: dict[str, str] = {}
    environment = RankEnvironment.from_environment(STEP)
    environment.publish(published)
    assert replace(RankEnvironment.from_environment(published), is_slurm_task=True) == environment
    assert published["LOCAL_RANK"] == "1"


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
    # Between a bracket and a comma or bracket: `environ["RANK"]`, `get("RANK")`. Other code may set them for a process.
    names = r"(RANK|WORLD_SIZE|LOCAL_\w+|GROUP_RANK|SLURM_\w+|MASTER_\w+|TORCHELASTIC_\w+)"
    variables = re.compile(rf"""[\[(]["']{names}["']""")
    assert fluxexp.__file__ is not None
    source = Path(fluxexp.__file__).parent.parent
    readers = {path.name for path in source.rglob("*.py") if variables.search(path.read_text(encoding="utf-8"))}
    assert readers == {"rank_environment.py"}
