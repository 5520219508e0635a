"""torch.compile of a module's layers.

Layers that share their code share its compilations: MPNet's need one for layers that compute all rows and one for the last,
each in training and in evaluation; and two more where layers are recomputed in backward. Shapes are fixed, so nothing is
compiled later.

What is compiled is a layer's ``forward``, within the hooks that ZeRO 3 puts around a layer to gather its weights. Hooks of
the modules inside would cut the graph at each of them, so at ZeRO 3 a layer becomes a leaf: it gathers all weights at once.
"""

import torch

from mpnet_ds.models.module import PretrainingModule


def compile_layers(module: PretrainingModule, zero_stage: int) -> None:
    """Compile each layer at its first use; names and values of the weights stay the same.

    Call it before DeepSpeed's engine is built around the module.
    """
    torch.compiler.reset()  # compilations for an earlier module of this process would count against a function's limit
    layers = module.layers()
    if zero_stage == 3:
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(module, list({type(layer) for layer in layers}))
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
