"""From a config to an experiment: recipes, stages, costs, versions."""
