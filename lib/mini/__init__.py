"""MiniPlan: a procedural miniature of SEED-Bench-R1, and the small base checkpoint."""
