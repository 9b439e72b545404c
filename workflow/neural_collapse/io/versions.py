"""Version numbers of expensive results: increased when the same recipe gives different bits.

Snakemake and the resume states compare them. A change of code that does not change results does not
change them, so no training is repeated.
"""

TRAINING = 6
"""Of a training's weights and history."""
MEASUREMENT = 10
"""Of the features' moments and of the attack, given a checkpoint."""
PREPARATION = 1
"""Of the prepared arrays, given the published files."""
CHANGES_NO_RESULT = frozenset({"evaluation_batch_size", "tensorboard"})
"""Keys of `recipe.training` whose change trains nothing again."""
