"""Rank, world size and address from the variables that each launcher sets; they were read off real ones."""

import base64
import json
import re

import pytest

from mpnet_ds.errors import UserError
from mpnet_ds.ranks.launchers import (
    Placement,
    find_placement,
    find_task,
    first_host,
    hosts_of_command,
    name_ranks,
    tasks_per_node,
)

ADDRESS = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}
DEEPSPEED = ADDRESS | {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}
TORCHRUN = ADDRESS | {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "none",
}
PYTORCHJOB = ADDRESS | {"RANK": "3", "WORLD_SIZE": "4"}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPIEXEC = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
}
PMI2 = {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "18", "PMI_JOBID": "41.2"}  # of srun --mpi=pmi2
PALS = {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}
ONE_EACH = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
MPIEXEC_ONE_EACH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
MVAPICH = {name.replace("OMPI", "MV2"): value for name, value in MPIRUN.items()}
JSRUN = {name.replace("OMPI_COMM_WORLD", "JSM_NAMESPACE"): value for name, value in MPIRUN.items()}
FLUX = {
    "FLUX_TASK_RANK": "3",
    "FLUX_JOB_SIZE": "4",
    "FLUX_TASK_LOCAL_ID": "1",
    "FLUX_JOB_NNODES": "2",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
}
DAEMONS = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Placement()),
        (DEEPSPEED, Placement("deepspeed", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (TORCHRUN, Placement("torchrun", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (PYTORCHJOB, Placement("deepspeed", 3, 0, 4, 1, "10.0.0.1", 29501)),
        (MPIRUN | ADDRESS, Placement("mpirun", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, Placement("mpirun", 3, 1, 4, 4, "127.0.0.1", 29500)),
        (MPIEXEC | ADDRESS, Placement("mpiexec", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (SRUN, Placement("srun", 3, 1, 4, 2, "gpu08", 20043)),
        (SRUN | ADDRESS, Placement("srun", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (SRUN | TORCHRUN, Placement("torchrun", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (DAEMONS | MPIRUN | ADDRESS, Placement("mpirun", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, Placement()),
        (SRUN | PMI2, Placement("srun", 3, 1, 4, 2, "gpu08", 20043)),
        (SRUN | PMI2 | {"PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}, Placement("srun", 3, 1, 4, 2, "gpu08", 20043)),
        (SRUN | {"PMIX_RANK": "3", "PMIX_NAMESPACE": "slurm.pmix.41.2"}, Placement("srun", 3, 1, 4, 2, "gpu08", 20043)),
        (SRUN | PMI2 | {"SLURM_NTASKS_PER_NODE": "2"}, Placement("srun", 3, 1, 4, 2, "gpu08", 20043)),
        (DAEMONS | MPIEXEC | ADDRESS, Placement("mpiexec", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (ONE_EACH | MPIEXEC_ONE_EACH | ADDRESS, Placement("mpiexec", 1, 0, 2, 1, "10.0.0.1", 29501)),
        (PALS | ADDRESS, Placement("mpiexec", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (MVAPICH | ADDRESS, Placement("mpirun_rsh", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (FLUX | ADDRESS, Placement("flux", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (JSRUN | MPIRUN | ADDRESS, Placement("jsrun", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (MPIRUN | {"AZ_BATCH_MASTER_NODE": "10.0.0.4:6105"}, Placement("mpirun", 3, 1, 4, 2, "10.0.0.4", 29500)),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "4"}, Placement("srun", 3, 1, 4, 2, "gpu08", 20043)),  # inherited
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | DEEPSPEED | {"CROSS_SIZE": "2"},
         Placement("deepspeed", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (DEEPSPEED | {"CROSS_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, Placement("deepspeed", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (DEEPSPEED | {"MASTER_ADDR": "fd00::1%eth0"}, Placement("deepspeed", 3, 1, 4, 2, "fd00::1%eth0", 29501)),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "tcp://10.0.0.1:80"}, Placement()),
        ({"SM_HOSTS": '["algo-1"]', "SM_NUM_GPUS": "8"}, Placement()),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:2222"]}}', "PET_NNODES": "1", "DSTACK_NODES_NUM": "1"}, Placement()),
        ({"RANK": "", "WORLD_SIZE": "", "MASTER_ADDR": "", "PMI_RANK": ""}, Placement()),
        # Scripts pass on what srun, mpirun … told them, without the ranks of a host.
        (SRUN | ADDRESS | {"RANK": "3", "WORLD_SIZE": "4"}, Placement("srun", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (SRUN | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Placement("srun", 3, 0, 4, 2, "gpu08", 20043)),
        (PALS | PYTORCHJOB | {"LOCAL_RANK": "1"}, Placement("mpiexec", 3, 1, 4, 2, "10.0.0.1", 29501)),
        # Azure's PyTorch does not say how many are on a host either.
        (PYTORCHJOB | {"LOCAL_RANK": "1", "NODE_RANK": "1"}, Placement("deepspeed", 3, 1, 4, 2, "10.0.0.1", 29501)),
        (ADDRESS | {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "AZ_BATCH_HOST_LIST": "10.0.0.1,10.0.0.2"},
         Placement("deepspeed", 0, 0, 4, 2, "10.0.0.1", 29501)),
        (PYTORCHJOB | {"WORLD_SIZE": "5", "LOCAL_RANK": "1"}, Placement("deepspeed", 3, 1, 5, 2, "10.0.0.1", 29501)),
    ],
)  # fmt: skip
def test_each_launcher_is_understood(environment, expected):
    assert find_placement(environment) == expected
    assert expected.has_other_hosts == (expected.local_world_size < expected.world_size)


@pytest.mark.parametrize("environment", [DEEPSPEED, MPIRUN | ADDRESS, SRUN])
def test_torch_and_deepspeed_read_the_same(environment):
    placement = find_placement(environment)
    again = find_placement(environment | placement.environment())
    assert again.environment() == placement.environment()
    assert (again.rank, again.local_rank, again.local_world_size) == (3, 1, 2)


def test_a_process_that_is_alone_chooses_no_port_before_it_listens():
    assert find_placement({}).environment()["MASTER_PORT"] == "0"
    assert find_placement(find_placement({}).environment()).port == 0


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (MPIRUN, "set MASTER_ADDR"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "start it with srun"),
        (DEEPSPEED | {"RANK": "first"}, "RANK is 'first'"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE is 'two'"),
        (SRUN | {"SLURM_STEP_NODELIST": ""}, "set MASTER_ADDR"),
        (SRUN | {"SLURM_NODEID": "2"}, "contradict each other"),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, "RANK is 0 and WORLD_SIZE is 1, but srun started task 3 of 4: unset"),
        (SRUN | ADDRESS | {"RANK": "0", "WORLD_SIZE": "4"}, "RANK is 0 and WORLD_SIZE is 4, but srun started task 3"),
        (SRUN | {"RANK": "3"}, "WORLD_SIZE is not set, but srun started task 3 of 4"),
        (SRUN | {"WORLD_SIZE": "1"}, "WORLD_SIZE is 1, but srun started 4 tasks"),
        (MPIRUN | {"RANK": "0", "WORLD_SIZE": "1"}, "but mpirun started task 3 of 4"),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, "MPI_LOCALRANKID is '', not a number: mpiexec does not say how many"),
        ({"OMPI_COMM_WORLD_RANK": "3"}, "OMPI_COMM_WORLD_RANK is set, and OMPI_COMM_WORLD_SIZE is not"),
        (FLUX | {"FLUX_JOB_NNODES": "3"}, "4 tasks on 3 hosts"),
        (DEEPSPEED | {"RANK": "4"}, "RANK is 4, but WORLD_SIZE is 4"),
        (DEEPSPEED | {"WORLD_SIZE": "0"}, "RANK is 3, but WORLD_SIZE is 0"),
        (DEEPSPEED | {"LOCAL_RANK": "2"}, "the local rank is 2, but 2 ranks"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "5"}, "8 ranks are said to be on this host, but WORLD_SIZE"),
        (ADDRESS | {"RANK": "0"}, "RANK is 0, and WORLD_SIZE is not set"),
        (ADDRESS | {"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, and RANK is not set"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, and RANK is not set"),
        ({"NODE_RANK": "1"}, "NODE_RANK is 1, and RANK is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set: set it"),
        ({"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-1"}, r"SageMaker runs 2 hosts \(SM_HOSTS\)"),
        ({"VC_WORKER_HOSTS": "job-0.job,job-1.job", "VC_TASK_INDEX": "0"}, "Volcano runs 2 hosts .* the plugin pytorch"),
        ({"AZ_BATCH_HOST_LIST": "10.0.0.4,10.0.0.5"}, "Azure runs 2 hosts"),
        ({"PET_NNODES": "1:2", "PET_NODE_RANK": "0"}, "Kubeflow runs 2 hosts .* Start torchrun on each host; or unset PET_"),
        ({"SKYPILOT_NUM_NODES": "2"}, "SkyPilot runs 2 hosts"),
        ({"TF_CONFIG": '{"cluster": {"chief": ["a:2222"], "worker": ["b:2222"]}}'}, "job runs 2 hosts"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2, and RANK is not set"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK is 1, and RANK is not set"),
        (TORCHRUN | {"RANK": "0"}, "RANK is 0, and the local rank 1, which cannot exceed it"),
        ({"PADDLE_TRAINER_ENDPOINTS": "10.0.0.4:6170,10.0.0.5:6170"}, "PaddlePaddle runs 2 hosts"),
        *((DEEPSPEED | {"MASTER_PORT": port}, f"MASTER_PORT is '?{port}") for port in ("0", "70000", "abc", "-1")),
        (DEEPSPEED | {"MASTER_PORT": "tcp://a:2"}, "MASTER_PORT is 'tcp://a:2', not a number: Kubernetes sets it"),
        *((SRUN | {"MASTER_PORT": port}, f"MASTER_PORT is '?{port}") for port in ("0", "65536", "29500x")),
        *((DEEPSPEED | {"MASTER_ADDR": address}, f"MASTER_ADDR is '{re.escape(address)}', not a host: give only the name")
          for address in ("10.0.0.1:29500", "tcp://a", "http://a:1/", "a,b", "a b", "[::1]:29500", "-a")),
    ],
)  # fmt: skip
def test_variables_that_do_not_suffice_are_named(environment, words):
    with pytest.raises(UserError, match=words):
        find_placement(environment)


def test_daemons_of_mpirun_in_a_slurm_job_are_not_taken_for_ranks():
    assert find_task(DAEMONS | MPIRUN).rank == 3
    assert find_task(DAEMONS).rank == 1


def test_slurms_short_forms_are_written_out():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("8") == [8]
    assert first_host("gpu[03-07,12]-ib,login") == "gpu03-ib"
    assert first_host("rack[1-2]n[10,12-14]") == "rack1n10"
    assert first_host("login,gpu[1-2]") == "login"


def test_hosts_are_read_off_the_command_of_deepspeeds_launcher():
    info = base64.urlsafe_b64encode(json.dumps({"a": [0, 1], "b": [0]}).encode()).decode()
    assert hosts_of_command(["python", "-m", "deepspeed.launcher.launch", f"--world_info={info}", "x.py"]) == ["a", "a", "b"]
    assert hosts_of_command(["bash"]) == []


@pytest.mark.parametrize(
    ("ranks", "hosts", "text"),
    [
        ([5, 2, 3], {2: "b", 3: "b", 5: "c"}, "ranks 2, 3 (b), rank 5 (c)"),
        ([1], [], "rank 1"),
        (range(8), ["a"] * 8, "8 ranks starting with 0 (a)"),
        (range(9), [f"n{i}" for i in range(9)], None),
    ],
)
def test_ranks_are_named_by_host(ranks, hosts, text):
    named = name_ranks(ranks, hosts)
    assert named == text if text else named.endswith("rank 5 (n5) and those of 3 more hosts")
