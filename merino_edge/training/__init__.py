"""Training: text to tokens, the model in torch, the Trainer around it, perplexity. Only here lives torch."""

import os

# OpenMP's threads spin while they wait for each other. On a machine that does something else besides,
# that made two threads five times slower than one. It must be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
