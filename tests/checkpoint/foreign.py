"""Makes checkpoints as a program that knows nothing of this project makes them, many kinds in the same processes.

    python tests/checkpoint/foreign.py OUTPUT RANKS:KIND,KIND… RANKS:KIND…

A kind is a name in ``KINDS``. It trains three steps and leaves in OUTPUT/RANKS

    KIND/latest, KIND/last/…    what ``engine.save_checkpoint(OUTPUT/RANKS/KIND, tag="last")`` writes
    KIND/earlier/…              the same after two steps, of kinds that say so
    KIND.truth                  ``torch.save`` of name → tensor: what a reader must find. Floating point in fp32, the rest
                                as it is; trained weights gathered from the live optimizer

Three things cannot be had without a GPU or a compiler, and are made by the nearest way: fp16 (from the same in bf16, see
foreign_fp16.py), DeepSpeed's own Adams (their classes, with the arithmetic in Python), offload to NVMe (left out).
"""

import argparse
import gc
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from mpnet_ds.ranks import process_group
from tests.checkpoint.foreign_fp16 import to_fp16
from tests.checkpoint.foreign_model import PIECES, PLACES, Parrot, groups
from tests.checkpoint.forked import run_ranks

ADAMW = {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}}


@dataclass(frozen=True)
class Kind:
    """How a checkpoint is made.

    Attributes:
        one_group: all parameters together; DeepSpeed's Adagrad wants it so.
        client: an optimizer of the program's own: a function of the groups.
        config: more of DeepSpeed's configuration.
        save: more arguments of ``save_checkpoint``.
        earlier: also saves after two steps.
        born_divided: the model is built under ``deepspeed.zero.Init``.
        frozen_later: one of its layers is frozen before the last step.
        outside: leaves ``perches.1.shift`` out of the optimizer.
        then: what is made of the checkpoint: ``universal`` or ``fp16``.
    """

    stage: int
    precision: str = "fp32"
    zero: dict = field(default_factory=dict)
    optimizer: dict = field(default_factory=lambda: ADAMW)
    client: object = None
    config: dict = field(default_factory=dict)
    save: dict = field(default_factory=dict)
    one_group: bool = False
    idle: bool = False
    scalar: bool = False
    born_divided: bool = False
    seed: int = 0
    earlier: bool = False
    frozen_later: bool = False
    outside: bool = False
    then: str = ""


class PythonAdam:
    """In the place of the compiled part of DeepSpeed's FusedAdam and DeepSpeedCPUAdam: their arithmetic, roughly."""

    def create_adam(self, *_) -> None: ...

    def destroy_adam(self, *_) -> None: ...

    def adam_update(self, number, step, rate, beta1, beta2, eps, decay, correct, weight, gradient, first, second) -> None:
        first.lerp_(gradient.to(first.dtype), 1 - beta1)
        second.lerp_(gradient.to(second.dtype) ** 2, 1 - beta2)
        weight -= rate * (first / (second.sqrt() + 1e-3) + decay * weight)

    def multi_tensor_adam(self, chunk, flag, tensors, rate, beta1, beta2, eps, step, mode, correct, decay) -> None:
        for gradient, weight, first, second in zip(*tensors, strict=True):
            self.adam_update(0, step, rate, beta1, beta2, eps, decay, correct, weight, gradient, first, second)


def compile_nothing() -> None:
    """DeepSpeed's own Adams take ``PythonAdam``: compiling theirs takes minutes."""
    import cpuinfo
    from deepspeed.ops.op_builder.cpu import CPUAdamBuilder, FusedAdamBuilder

    cpuinfo.get_cpu_info = dict  # a second for each optimizer, for a warning
    CPUAdamBuilder.load = FusedAdamBuilder.load = lambda builder: PythonAdam()


def bf16(**options) -> dict:
    return {"bf16": {"enabled": True, **options}}


OWN_ADAMW = {"type": "AdamW", "params": {"lr": 0.01}}
CPU = {"device": "cpu", "pin_memory": False}
OFFLOAD = {"zero_force_ds_cpu_optimizer": False}
UNTESTED = {"zero_allow_untested_optimizer": True}
UNIVERSAL = {"client_state": {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}}
PLAIN = {f"zero{stage}-{precision}": Kind(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")}
KINDS: dict[str, Kind] = (
    PLAIN
    | {f"zero{stage}-fp16": Kind(stage, "bf16", then="fp16") for stage in range(4)}
    | {
        f"universal{stage}-{precision}": Kind(stage, precision, save=UNIVERSAL, then="universal")
        for stage, precision in ((1, "fp32"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"))
    }
    | {
        "zero1-bf16-accumulated_in_fp32": Kind(1, "bf16", config={"data_types": {"grad_accum_dtype": "fp32"}}),
        "zero0-bf16-fused": Kind(0, "bf16", optimizer=OWN_ADAMW),
        "zero2-fused": Kind(2, "bf16", optimizer=OWN_ADAMW),
        "zero3-fused": Kind(3, "bf16", optimizer=OWN_ADAMW),
        "zero2-cpu_adam": Kind(2, "bf16", zero={"offload_optimizer": CPU}, optimizer=OWN_ADAMW),
        "zero3-cpu_adam": Kind(3, "bf16", zero={"offload_optimizer": CPU}, optimizer=OWN_ADAMW),
        "zero2-offload": Kind(2, "bf16", zero={"offload_optimizer": CPU}, config=OFFLOAD),
        "zero3-offload": Kind(3, "bf16", zero={"offload_optimizer": CPU, "offload_param": CPU}, config=OFFLOAD),
        "zero2-round_robin": Kind(2, zero={"round_robin_gradients": True}),
        "zero1-aligned": Kind(1, zero={"parameter_alignment": True}),
        "zero2-aligned": Kind(2, "bf16", zero={"parameter_alignment": True}),
        "zero2-aligned-round_robin": Kind(2, "bf16", zero={"parameter_alignment": True, "round_robin_gradients": True}),
        "zero2-elastic": Kind(2, zero={"elastic_checkpoint": True}),
        "zero3-init": Kind(3, born_divided=True),
        "zero3-subgroups": Kind(3, zero={"sub_group_size": 1500}),
        "zero3-subgroups-bf16": Kind(3, "bf16", zero={"sub_group_size": 700}),
        "zero3-gathered": Kind(3, "bf16", zero={"gather_16bit_weights_on_model_save": True}),
        "zero1-without_frozen": Kind(1, save={"exclude_frozen_parameters": True}),
        "zero2-without_frozen": Kind(2, save={"exclude_frozen_parameters": True}),
        "zero3-without_frozen": Kind(3, save={"exclude_frozen_parameters": True}),
        "zero3-frozen_later": Kind(3, "bf16", frozen_later=True),
        "zero3-frozen_later-fp16": Kind(3, "bf16", frozen_later=True, then="fp16"),
        "universal3-frozen_later": Kind(3, "bf16", frozen_later=True, save=UNIVERSAL, then="universal"),
        "zero2-frozen_later": Kind(2, "bf16", frozen_later=True),
        "zero3-outside": Kind(3, "bf16", outside=True),
        "zero3-outside-without_frozen": Kind(3, outside=True, save={"exclude_frozen_parameters": True}),
        "zero2-outside": Kind(2, "bf16", outside=True),
        "zero0-idle": Kind(0, "bf16", idle=True),
        "zero2-idle": Kind(2, idle=True),
        "zero3-idle": Kind(3, idle=True),
        "zero1-scalar": Kind(1, "bf16", scalar=True),
        "zero2-scalar": Kind(2, scalar=True),
        "zero2-sgd": Kind(2, optimizer={"type": "SGD", "params": {"lr": 0.1}}, config=UNTESTED),
        "zero3-sgd": Kind(3, optimizer={"type": "SGD", "params": {"lr": 0.1}}, config=UNTESTED),
        "zero2-momentum": Kind(2, optimizer={"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}, config=UNTESTED),
        "zero0-adagrad": Kind(0, optimizer={"type": "Adagrad", "params": {"lr": 0.1}}),
        "zero2-adagrad": Kind(2, optimizer={"type": "Adagrad", "params": {"lr": 0.1}}, one_group=True),
        "zero2-client": Kind(2, "bf16", client=lambda parameters: torch.optim.Adamax(parameters, lr=0.01), config=UNTESTED),
        "zero3-client": Kind(3, client=lambda parameters: torch.optim.RMSprop(parameters, lr=0.01), config=UNTESTED),
        "zero2-bf16_masters": Kind(
            2, zero={"offload_optimizer": CPU}, optimizer=OWN_ADAMW, config=bf16(bf16_master_weights_and_grads=True)
        ),
        "zero3-bf16_masters": Kind(
            3,
            zero={"offload_optimizer": CPU},
            optimizer=OWN_ADAMW,
            config=bf16(bf16_master_weights_and_grads=True, bf16_optimizer_states=True),
        ),
    }
)
SEVERAL_SAVES = ("zero1-fp32", "zero2-fp32", "zero2-bf16", "zero3-fp32")
KINDS |= {name: replace(KINDS[name], earlier=True) for name in SEVERAL_SAVES}
KINDS |= {f"{name}-other_run": replace(KINDS[name], seed=1) for name in SEVERAL_SAVES}


def main(output: Path, names: list[str]) -> None:
    ranks = process_group.start()
    compile_nothing()
    gc.freeze()  # DeepSpeed collects garbage for each engine at ZeRO 3, half a second each time among all that is imported
    for name in names:
        begin = time.perf_counter()
        make(output / name, KINDS[name], ranks)
        ranks.say(f"{name}: {time.perf_counter() - begin:.2f} s")
    process_group.stop()


def make(folder: Path, kind: Kind, ranks: process_group.Ranks) -> None:
    """Trains, saves and writes down the truth."""
    engine = build(kind)
    generator = torch.Generator().manual_seed(kind.seed * 100 + ranks.rank)
    trained = {id(parameter) for parameter in engine.module.parameters() if parameter.requires_grad}
    if kind.outside:
        trained.remove(id(engine.module.perches[1].shift))
    for step in range(3):
        if step == 2 and kind.frozen_later:
            engine.module.calm.requires_grad_(False)
        if kind.earlier and step == 2:
            engine.save_checkpoint(str(folder), tag="earlier", save_latest=False)
        engine.backward(engine(torch.randint(PIECES, (2, PLACES), generator=generator)))
        engine.step()
    save = {"client_state": {"epoch": 3, "dice": [torch.get_rng_state(), ("a", 1.5, None)]}} | kind.save
    engine.save_checkpoint(str(folder), tag="last", **save)
    if kind.zero.get("gather_16bit_weights_on_model_save"):
        engine.save_16bit_model(str(folder), "pytorch_model.bin")
    found = truth(engine, kind, trained)
    ranks.barrier()
    if ranks.is_main:
        if kind.then == "universal":
            to_universal(folder)
        if kind.then == "fp16":
            frozen = {name for name, weight in engine.module.named_parameters() if not weight.requires_grad}
            found = to_fp16(folder / "last", found, frozen)
        torch.save(found, folder.with_name(folder.name + ".truth"))
    ranks.barrier()
    engine.destroy()


def build(kind: Kind):
    """DeepSpeed's engine around a new model."""
    import deepspeed

    if kind.scalar:
        # It sends rank 0's weights to the others, who have the same, and in 0.19.8 fails at one without dimensions.
        deepspeed.DeepSpeedEngine._broadcast_model = lambda engine: None
    torch.manual_seed(kind.seed)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "steps_per_print": 10**9,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": kind.precision == "bf16"},
        "zero_optimization": {"stage": kind.stage, **kind.zero},
    } | kind.config
    with deepspeed.zero.Init(enabled=kind.born_divided, config_dict_or_path=config):
        model = Parrot(kind.idle, kind.scalar)
    parameters = list(model.parameters()) if kind.one_group else groups(model)
    if kind.outside:
        parameters.pop()
    if kind.client:
        return deepspeed.initialize(model=model, optimizer=kind.client(parameters), config=config)[0]
    config["optimizer"] = kind.optimizer
    return deepspeed.initialize(model=model, model_parameters=parameters, config=config)[0]


def truth(engine, kind: Kind, trained: set[int]) -> dict[str, Tensor]:
    """Name → tensor on every rank, from the live engine: tied names share memory, floating point in fp32."""
    named = dict(engine.module.named_parameters(remove_duplicate=False))
    weights = {id(weight): weight_of(engine, weight, id(weight) in trained) for weight in engine.module.parameters()}
    found = {}
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        if name in named:
            if named[name].requires_grad or not kind.save.get("exclude_frozen_parameters"):
                found[name] = weights[id(named[name])]
        else:
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
    return found


def weight_of(engine, parameter, is_trained: bool) -> Tensor:
    """One parameter whole and in fp32: what the optimizer has of it, else what the module has."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if not hasattr(parameter, "ds_id") and parameter.dtype == torch.float32:
        return parameter.detach().clone()  # DeepSpeed 0.19.8's own function errs with round_robin_gradients
    if is_trained and engine.zero_optimization_stage() > 0:
        parameter.requires_grad_(True)  # of what was frozen later it would give nothing
        return safe_get_full_fp32_param(parameter).detach().float().clone()
    if is_trained and hasattr(engine.optimizer, "fp16_groups"):
        return master_of(engine.optimizer, parameter)
    if hasattr(parameter, "ds_id"):
        with GatheredParameters([parameter]):
            return parameter.detach().float().clone()
    return parameter.detach().float().clone()


def master_of(optimizer, parameter) -> Tensor:
    """At ZeRO 0 in 16 bit."""
    for number, group in enumerate(optimizer.fp16_groups):
        masters = getattr(optimizer, "fp32_groups", None)
        masters = masters[number] if masters else optimizer.fp32_groups_flat[number].split([p.numel() for p in group])
        for weight, master in zip(group, masters, strict=True):
            if weight is parameter:
                return master.detach().view(weight.shape).clone()
    raise AssertionError("a parameter that the optimizer does not know")


def to_universal(folder: Path) -> None:
    """DeepSpeed's own conversion: ``folder/universal`` from ``folder/last``, and ``folder/latest_universal``."""
    from deepspeed.checkpoint import ds_to_universal

    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    places = {"input_folder": str(folder / "last"), "output_folder": str(folder / "universal")}
    ds_to_universal.main(argparse.Namespace(**options, **places, inject_missing_state=False))


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"  # a GPU would not survive the fork, and the files are the same
    import deepspeed  # noqa: F401 (once for all)

    for ranks, kinds in (word.split(":") for word in sys.argv[2:]):
        (Path(sys.argv[1]) / ranks).mkdir(parents=True)
        run_ranks(int(ranks), main, Path(sys.argv[1]) / ranks, kinds.split(","))
