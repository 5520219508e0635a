"""torch.compile of the encoder's layers.

All layers share their code, so one compilation serves them all: one for layers that compute all rows and one for the
last, each in training and in evaluation; and two more where layers are computed again in backward. Shapes are fixed, so
nothing is compiled later on.

What is compiled is a layer's ``forward``, within the hooks that ZeRO 3 puts around a layer to gather its weights. Hooks of
the modules inside would cut the graph at each of them, so at ZeRO 3 a layer becomes a leaf: it gathers its weights together.
"""

import torch

from mpnet_ds.models import MPNetForPretraining


def compile_layers(model: MPNetForPretraining, zero_stage: int) -> None:
    """Lets each layer be compiled at its first use; names and values of the weights stay.

    To be called before DeepSpeed's engine is built around the model.
    """
    torch.compiler.reset()  # what an earlier model of this process compiled would count against the limit of one function
    layers = model.mpnet.encoder.layer
    if zero_stage == 3:
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, [type(layers[0])])
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
