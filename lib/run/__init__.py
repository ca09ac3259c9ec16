"""Running headless: parameters, the pipeline, processes, and the plan of a run."""
