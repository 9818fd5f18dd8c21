"""Who a process is, by the variables of its launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.distributed import gather_rows, join, sum_gradients, sum_over_ranks
from utils.world import World, find_world

LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "MASTER_ADDR",
)


@pytest.fixture
def environment(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)

    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


def test_without_a_launcher_the_process_is_alone(environment):
    assert find_world() == World(rank=0, size=1, local_rank=0)
    assert World().is_main


def test_torchrun_and_the_old_launcher_are_understood(environment):
    environment(RANK="5", WORLD_SIZE="8")
    assert find_world(local_rank=1) == World(5, 8, 1)
    environment(LOCAL_RANK="2")
    assert find_world(local_rank=1) == World(5, 8, 2)
    assert not find_world().is_main


def test_slurm_is_understood(environment):
    environment(SLURM_PROCID="3", SLURM_STEP_NUM_TASKS="4", SLURM_LOCALID="1")
    assert find_world() == World(3, 4, 1)
    assert find_world(world_size=16) == World(3, 16, 1)


def test_a_batch_script_of_slurm_without_srun_is_alone(environment):
    environment(SLURM_PROCID="0")
    assert find_world() == World(0, 1, 0)


def test_itp_is_understood(environment):
    with pytest.raises(ValueError, match="OMPI_COMM_WORLD_RANK"):
        find_world(dist_on_itp=True)
    environment(OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_LOCAL_RANK="1")
    assert find_world(dist_on_itp=True) == World(1, 2, 1)


def test_several_processes_without_a_meeting_point_say_how_to_name_one(environment):
    with pytest.raises(ValueError, match="--dist_url"):
        join(World(0, 2, 0), "gloo", "env://")


def test_alone_nothing_is_communicated():
    rows = torch.ones(3, 2, requires_grad=True)
    gathered, first = gather_rows(rows)
    assert gathered is rows
    assert first == 0
    assert torch.equal(sum_over_ranks(rows), rows)
    sum_gradients([torch.nn.Parameter(rows)])


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_variables_that_are_no_numbers_are_named(environment, variable):
    environment(RANK="0", WORLD_SIZE="2")
    environment(**{variable: "a"})
    with pytest.raises(ValueError, match=f"{variable}=a: the launcher sets"):
        find_world()


def test_an_address_that_is_none_names_the_flag():
    with pytest.raises(ValueError, match="--dist_url garbage: the 2 processes can't meet there"):
        join(World(0, 2, 0), "gloo", "garbage")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux only")
def test_no_thread_of_the_group_outlives_it():
    done = subprocess.run(
        [
            sys.executable,
            *"-m torch.distributed.run --standalone --nproc_per_node=2 -m tests.group_threads".split(),
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    if done.stdout.count("during: False") == 2:
        pytest.skip("this PyTorch gives its threads no names")
    assert done.stdout.count("during: True, after: False") == 2, done.stdout
