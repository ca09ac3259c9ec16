"""SFT against GRPO on video questions: what the notebooks import and nothing more."""
