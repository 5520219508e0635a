"""Memory that a run takes on each device, from shapes alone, before a model is built.

With N parameters, W ranks and e bytes a number (4 in fp32, 2 in bf16 and fp16), each rank holds, in bytes:

    ZeRO   parameters           gradients      optimizer states
    0      e N                  e N            8 N in fp32; 12 N in bf16 and fp16
    1      e N                  e N + bucket   12 N / W
    2      e N                  e N/W + bucket 12 N / W
    3      e N/W + gathered     e N/W + bucket 12 N / W

8 are Adam's two moments in fp32; 4 more are the parameters in fp32, which ZeRO keeps even where it computes in fp32. Muon
has one momentum: 4 less for each number of a hidden matrix. *Gathered* are parameters that a stage-3 rank holds whole for
a while, at most ``stage3_max_live_parameters`` of them; the *bucket* is the buffer in which gradients are sent, of
``reduce_bucket_size`` numbers. The fp32 copy of the gradients that a step makes needs less than the activations, which
are gone by then.

Activations are counted by the objective (``Objective.sizes``) for the module that it builds.
"""

from dataclasses import dataclass, fields

from mpnet_ds.models.module import ModulePlan

BUCKET, MAX_LIVE = int(5e8), int(1e9)  # DeepSpeed's defaults, numbers


@dataclass(frozen=True)
class Workload:
    """What the memory of a rank depends on."""

    sizes: ModulePlan
    """Sizes of the module, as it is computed here."""
    precision: str = "fp32"
    zero_stage: int = 0
    world_size: int = 1
    parameters_on_host: bool = False
    """``offload_param``."""
    optimizer_on_host: bool = False
    """``offload_optimizer``."""
    reduce_bucket_size: int = BUCKET
    max_live_parameters: int = MAX_LIVE
    uses_muon: bool = False
    """At ZeRO 0."""
    on_gpu: bool = True
    """Decides what of the bucket is taken."""

    @property
    def bytes_per_number(self) -> int:
        """e: 4 or 2."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank on its device, and what it keeps in host memory instead."""

    parameters: int
    gradients: int
    optimizer_states: int
    activations: int
    host: int = 0

    @property
    def states(self) -> int:
        """Memory whatever the batch: parameters, gradients, optimizer states."""
        return self.parameters + self.gradients + self.optimizer_states

    @property
    def total(self) -> int:
        """Memory on the device."""
        return self.states + self.activations

    def joined(self) -> "MemoryEstimate":
        """Where the device is the host: what was offloaded is in the same memory."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return MemoryEstimate(**values | {"optimizer_states": self.optimizer_states + self.host, "host": 0})


def estimate(work: Workload) -> MemoryEstimate:
    """The memory of one rank; see the top of the file."""
    parameters, gradients, states = _states(work)
    host = work.sizes.host_bytes
    if work.parameters_on_host and work.zero_stage == 3:
        host += work.bytes_per_number * _share(work)
        parameters -= work.bytes_per_number * _share(work)
    if work.optimizer_on_host and work.zero_stage:
        # DeepSpeed keeps gradients in fp32 beside the states, where the update is computed.
        host += states + 4 * _share(work)
        states = 0
    return MemoryEstimate(parameters, gradients, states, work.sizes.activation_bytes, host)


def checkpoint_bytes(work: Workload, ranks: int | None = None) -> int:
    """Size of a checkpoint on a disk that so many ranks share; None: all ranks' files together.

    The module's weights in e bytes (at stage 3 they are left to the fp32 copy) and the optimizer's states: 12 bytes a
    parameter, 8 where nothing keeps a copy of the parameters (stage 0 in fp32).
    """
    count = work.sizes.parameters
    weights = 0 if work.zero_stage == 3 else work.bytes_per_number * count
    if work.zero_stage == 0:
        return weights + _states_of_stage_0(work)
    return weights + 12 * count * (ranks or work.world_size) // work.world_size


def _share(work: Workload) -> int:
    """N / W, rounded up."""
    return -(-work.sizes.parameters // work.world_size)


def _states(work: Workload) -> tuple[int, int, int]:
    """Parameters, gradients and optimizer states, nothing offloaded."""
    e, count, share = work.bytes_per_number, work.sizes.parameters, _share(work)
    if work.zero_stage == 0:
        return e * count, e * count, _states_of_stage_0(work)
    # On a GPU the whole bucket is allocated; on a CPU only what is written to.
    bucket = e * (work.reduce_bucket_size if work.on_gpu else min(work.reduce_bucket_size, count))
    if work.world_size == 1 and not work.on_gpu:
        bucket = 0
    if work.zero_stage == 3:
        gathered = e * min(count, work.max_live_parameters) if work.world_size > 1 or work.parameters_on_host else 0
        return e * share + gathered, e * share + bucket, 12 * share
    return e * count, e * (count if work.zero_stage == 1 else share) + bucket, 12 * share


def _states_of_stage_0(work: Workload) -> int:
    """Bytes of optimizer states and fp32 master weights where nothing is divided."""
    states = work.sizes.parameters * (8 if work.precision == "fp32" else 12)
    return states - (4 * work.sizes.hidden_numbers if work.uses_muon else 0)
