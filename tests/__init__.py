"""Tests mirror the tree."""

import os

# float16 has gradients on a CPU for the tests alone, and where oneDNN takes the CPU's own float16 instructions, its
# gradient of a convolution has no fast implementation: two seconds of a layer. (Read when oneDNN is first used.)
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
