"""Training: text to tokens, the model in torch, the Trainer around it, perplexity. Only here lives torch."""
