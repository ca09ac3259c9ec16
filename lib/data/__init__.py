"""Questions, their media and their answers, read from files and checked."""
