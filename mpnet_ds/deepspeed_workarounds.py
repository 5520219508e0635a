"""Every place where the package overrides, or relies on, private parts of DeepSpeed and torch.

Each function says what it works around, the version in which that was seen, and the test that tells when it can go: take
the function's effect out, run that test with the new release, and if it passes, remove the function. No other file of the
package may touch such parts; tests/test_deepspeed_workarounds.py holds that. The libraries are imported inside the
functions, since this file is at the ground and those who need no torch import other files beside it.
"""

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from functools import partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"


def replace_file_access(engine, files) -> None:
    """Let an engine write and read its shards by ``files``, a ``CheckpointEngine``, and copy no script beside them.

    Seen in DeepSpeed 0.19.8: a write that fails raises on one rank while the others wait for it in a barrier for ever, and
    no setting names a checkpoint engine of the user's own. The script, zero_to_fp32.py, is copied without it, so a full disk
    ends the run there.
    Test: tests/training/test_faults.py::test_a_full_disk_leaves_the_checkpoints_that_are_there
    """
    engine.checkpoint_engine = files
    engine._copy_recovery_script = lambda folder: None


def choose_writer_of_weights(engine, writes: bool) -> None:
    """Let this rank write, or not write, the file of weights that all ranks read (ZeRO 0 to 2).

    Seen in DeepSpeed 0.19.8: by itself rank 0 writes it, or with ``use_node_local_storage`` the first rank of each host, so
    that two hosts that share a disk both write the same file. At ZeRO 3 each rank has a file of its own.
    Test: tests/cluster/test_local_disks.py::test_each_disk_has_its_own_shards_and_what_every_rank_reads
    """
    engine._config.use_node_local_storage = False
    if not engine.zero_optimization_partition_weights():
        engine.save_non_zero_checkpoint = writes


def share_names_of_tied_weights(engine, on_main: Callable[[Callable[[], Any]], Any]) -> None:
    """Write the names of tied weights into the files of all ranks.

    Seen in DeepSpeed 0.19.8: in what any rank but 0 writes they are missing. With them the file of weights is the same on
    all disks, byte for byte, and whichever is kept when they are gathered is the right one.
    Test: tests/cluster/test_local_disks.py::test_each_disk_has_its_own_shards_and_what_every_rank_reads

    Args:
        on_main: calls a function on rank 0 and returns its result on all ranks; every rank must come here.
    """
    ties = on_main(engine._get_shared_params)
    engine._get_shared_params = lambda: ties


def undo_first_step(optimizer) -> None:
    """Take back the step that DeepSpeed's 16-bit optimizer of ZeRO 0 makes when it is built; nothing for any other one.

    Seen in DeepSpeed 0.19.8: it steps once with gradients of zero, to have its memory from the start. That counts as a step,
    and its weight decay changes the weights: training would differ from the other ZeRO stages.
    Test: tests/training/test_configurations.py::test_zero0_in_bf16_trains_like_the_other_stages_in_bf16
    """
    import torch

    if not hasattr(optimizer, "fp32_groups"):
        return
    optimizer.optimizer.state.clear()
    with torch.no_grad():
        for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for weight, master in zip(weights, masters, strict=True):
                master.copy_(weight)


def step_only_if(optimizer, is_wanted: Callable[[], bool]) -> None:
    """Let an engine's plain torch optimizer leave a step out where ``is_wanted()`` is False.

    Seen in DeepSpeed 0.19.8: ``engine.step`` leaves a step out for gradients that are not finite only where its own
    optimizers wrap torch's. In fp32 at ZeRO 0 none does, and NaN would go into every weight.
    Test: tests/training/test_loss_window.py::test_a_step_without_finite_loss_is_skipped_and_reported
    """
    step = optimizer.step
    optimizer.step = lambda: step() if is_wanted() else None


def clip_to_norm(engine, norm: Callable[[], Any]) -> None:
    """Let an engine in fp32 at ZeRO 0 clip gradients by a norm that is known already, a scalar tensor.

    Seen in DeepSpeed 0.19.8: it computes the norm itself and scales the gradients one by one, at two launches each.
    Test: tests/training/test_step_count.py::test_a_step_launches_little_and_reads_one_number
    """
    from torch.nn.utils import clip_grads_with_norm_

    engine.clip_fp32_gradients = lambda: clip_grads_with_norm_(
        engine.module.parameters(), engine.gradient_clipping(), norm()
    )


def take_norms_at_once(optimizer) -> None:
    """Let ZeRO take the norms of all gradients in one operation and look at the result once; nothing in fp16 or offloaded.

    Seen in DeepSpeed 0.19.8: every gradient's norm is taken by itself, at a GPU's two launches each, from an fp64 copy. In
    bf16 ZeRO 1 and 2 also look for NaN and infinity in each gradient, at thirteen launches each, though the norm tells the
    same: it is not finite either, and the step is left out for that. They read four numbers from the device on the way; of a
    norm in host memory nothing needs to be read again.
    Test: tests/training/test_step_count.py::test_a_step_launches_little_and_reads_one_number
    """
    import torch
    from deepspeed.runtime.zero.utils import get_norm_dtype

    if not hasattr(optimizer, "get_grad_norm_direct") or optimizer.dtype == torch.float16:
        return
    norm_of_each = optimizer.get_grad_norm_direct

    def norm_of_all(gradients, params, norm_type=2):
        if not gradients:
            return norm_of_each(gradients, params, norm_type)
        norms = torch._foreach_norm(gradients, norm_type, dtype=get_norm_dtype())
        return norm_of_each([torch.stack(norms)], params[:1], norm_type)  # the norm of the norms is that of all gradients

    optimizer.get_grad_norm_direct = norm_of_all
    if hasattr(optimizer, "scaled_global_norm") and not optimizer.cpu_offload:  # ZeRO 1 and 2
        global_norm = optimizer.scaled_global_norm
        optimizer.check_overflow = lambda partition_gradients=True: None
        optimizer.scaled_global_norm = lambda norm_type=2: global_norm(norm_type).to("cpu", copy=True)


def step_at_once(optimizer) -> None:
    """Let the bf16 optimizer of ZeRO 0 check, convert, clip and copy back all gradients together; nothing for any other one.

    Seen in DeepSpeed 0.19.8: it does all this tensor by tensor, at some twenty launches each, and reads a number from the
    device for each tensor to see whether it is finite.
    Test: tests/training/test_step_count.py::test_a_step_launches_little_and_reads_one_number
    """
    import torch

    if getattr(optimizer, "low_precision_dtype", None) != torch.bfloat16:
        return

    @torch.no_grad()
    def step(closure=None) -> None:
        weights = [weight for group in optimizer.fp16_groups for weight in group]
        masters = [master for group in optimizer.fp32_groups for master in group]
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float64))
        norm = torch.linalg.vector_norm(norms).item()
        if not math.isfinite(norm):
            optimizer._skip_invalid_grad_norm()
            return
        optimizer.overflow, optimizer._global_grad_norm = False, norm
        optimizer._update_scale(False)
        for master in masters:
            master.grad = torch.empty_like(master)
        master_gradients = [master.grad for master in masters]
        torch._foreach_copy_(master_gradients, gradients)
        torch._foreach_mul_(master_gradients, 1 / optimizer.unscale_and_clip_grads(norm, apply_scale=False))
        optimizer.optimizer.step()
        for master in masters:
            master.grad = None
        torch._foreach_copy_(weights, masters)

    optimizer.step = step


def leave_out_compiler() -> None:
    """Let an engine be built, and its optimizer step, without torch's compiler, until somebody uses that.

    Seen in torch 2.13.0 with DeepSpeed 0.19.8: every step of an optimizer imports ``torch._dynamo`` to break a graph that
    nobody compiles; methods of optimizers, and hooks of ZeRO 3, do so to be left alone by it; and ZeRO imports DeepSpeed's
    Muon, whose functions are compiled by decorators. That loads 900 modules: a third of the time until the first step. A
    stand-in answers these; whoever asks it for anything else gets the compiler itself.
    Test: tests/training/test_configurations.py::test_the_compiler_is_not_even_loaded
    """
    import torch

    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = torch._dynamo = _CompilerStandIn(COMPILER)
    compiler, torch.compile = torch.compile, _leave_as_it_is
    try:
        with suppress(ImportError):  # a release of DeepSpeed that has it elsewhere
            import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compiler


def leave_out_triton() -> None:
    """Let an engine be built without Triton where there is no GPU.

    Seen in DeepSpeed 0.19.8: every engine imports the layers of experts, whether it has any or not, and these Triton.
    Test: tests/test_start_up.py::test_training_loads_what_it_needs_and_the_rest_when_it_is_used
    """
    import torch

    if torch.accelerator.is_available() or "triton" in sys.modules:
        return
    sys.modules["triton"] = None  # which makes its import fail, for which DeepSpeed is prepared
    try:
        with suppress(ImportError):  # a release of DeepSpeed that has it elsewhere
            import deepspeed.module_inject.auto_ep_layer  # noqa: F401
    finally:
        del sys.modules["triton"]


class _CompilerStandIn(ModuleType):
    """What those want of ``torch._dynamo`` who want to be left alone by it; the module itself takes its place otherwise."""

    def __init__(self, name: str):
        super().__init__(name)
        self.graph_break, self.disable = (lambda *arguments, **options: None), _leave_as_it_is
        self.trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)  # for process groups

    def __getattr__(self, attribute: str):
        if attribute.startswith("__") and attribute != "__path__":  # asked of every module there is
            raise AttributeError(attribute)
        if sys.modules.get(COMPILER) is self:
            import torch

            del sys.modules[COMPILER], torch._dynamo
        return getattr(import_module(COMPILER), attribute)


def _leave_as_it_is(function=None, *arguments, **options):
    """Stand for a decorator, with or without arguments."""
    return function or _leave_as_it_is


def build_no_shared_memory_op() -> None:
    """Let ranks on CPUs communicate through gloo alone.

    Seen in DeepSpeed 0.19.8: ``init_distributed`` on a CPU builds a C++ op for shared memory, which takes minutes, needs a
    compiler and, where a build was killed, waits for ever on the lock file that it left. Merely to ask whether it could, it
    tries all other ops too.
    Test: tests/training/test_configurations.py::test_nothing_is_compiled_with_offloading_either
    """
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # deepspeed.comm has another "torch"


def set_collective_timeout(seconds: float) -> None:
    """Set how long collectives wait for a slow rank, in the default process group and in those that are made later.

    Seen in torch 2.13.0: the timeout of a group that exists is set by ``_set_pg_timeout`` alone, and DeepSpeed 0.19.8 makes
    its groups without one, so they take the module's default.
    Test: tests/test_deepspeed_workarounds.py::test_timeout_of_process_groups_is_set
    """
    from torch.distributed import distributed_c10d

    timeout = timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout
    distributed_c10d._set_pg_timeout(timeout)


def keep_through_checkpointing(*tensors) -> None:
    """Keep DeepSpeed's activation checkpointing from emptying tensors that several layers share.

    Seen in DeepSpeed 0.19.8: with ``cpu_checkpointing`` or ``partition_activations`` it empties every float argument of a
    layer once it has a copy of its own; the next layer needs the shared ones as they are.
    Test: tests/test_deepspeed_workarounds.py::test_a_tensor_is_kept_through_checkpointing
    """
    for tensor in tensors:
        tensor.no_checkpointing = True


def wrap_call(module, around: Callable) -> None:
    """Let ``around(call, *arguments)`` stand for the calls of a module, its hooks included.

    Seen in torch 2.13.0: a module's ``forward`` can be replaced, but runs within the hooks by which ZeRO 3 gathers weights,
    and what is recomputed in backward must gather them again; ``__call__`` belongs to the class. This attribute is how
    ``Module.compile`` does the same.
    Test: tests/training/test_activation_checkpointing.py::test_only_the_chosen_layers_go_through_deepspeed
    """
    module._compiled_call_impl = partial(around, module._call_impl)


def tensors_without_numbers() -> AbstractContextManager:
    """Within it tensors have shapes and types only: nothing is allocated or computed.

    Seen in torch 2.13.0: ``FakeTensorMode`` has no public name.
    Test: tests/models/test_counting.py::test_sizes_are_those_of_the_module
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def memory_tracker():
    """A context manager that counts what tensors take at the worst moment, by kind.

    Seen in torch 2.13.0: ``MemTracker`` has no public name.
    Test: tests/models/test_counting.py::test_sizes_are_those_of_the_module
    """
    from torch.distributed._tools.mem_tracker import MemTracker

    return MemTracker()


def has_triton() -> bool:
    """Whether torch.compile finds a Triton that works for this process's GPU.

    Seen in torch 2.13.0: nothing public tells; without it the compiler says so in the first step only.
    Test: tests/test_deepspeed_workarounds.py::test_torch_still_tells_whether_there_is_triton
    """
    from torch.utils._triton import has_triton

    return has_triton()


def softmax_backward_into(result, gradient, probabilities) -> None:
    """Write the gradient of the scores of a softmax over the last dimension into ``result``, in place.

    Seen in torch 2.13.0: the public ways take new memory for it, which this operator does not.
    Test: tests/models/attention/test_cpu.py::test_output_and_gradients_are_those_of_eager
    """
    import torch

    backward = torch.ops.aten._softmax_backward_data.out
    backward(gradient, probabilities, -1, probabilities.dtype, grad_input=result)
