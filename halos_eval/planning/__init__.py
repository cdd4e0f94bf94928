"""Plans: the jobs to run, the reasons, and the cost."""
