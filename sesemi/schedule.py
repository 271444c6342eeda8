"""The optimiser and its learning rate, step by step."""

import torch

MOMENTUM = 0.9
WEIGHT_DECAY = 0.001  # Keras's L2 0.0005 adds 0.0005·w², whose gradient is 0.001·w: PyTorch's weight decay
POWER = 0.5


def learning_rate(step: int, steps: int, base: float) -> float:
    """base·(1 − step/steps)^0.5 for step 0 to steps − 1 (reference: ``LRScheduler``)."""
    return base * (1 - step / steps) ** POWER


def build_optimizer(model: torch.nn.Module, rate: torch.Tensor) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on convolution and linear kernels, not on biases or batch norm.

    Keras keeps the learning rate inside the velocity, PyTorch outside; under so slow a decay they hardly differ,
    and we take PyTorch's.

    Args:
        model: on its device.
        rate: learning rate, a float32 scalar on that device, which whoever changes it fills in place.
    """
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=rate, momentum=MOMENTUM, nesterov=True, fused=True)
    for parameter in model.parameters():
        # PyTorch makes momentum in undefined memory and leaves it so where the first step overflows in float16.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
