"""Training: SFT, GRPO and its variants, rewards, checkpoints."""
