"""What decides whether an expensive result is still good: raised when a recipe gives other bits.

Snakemake and the resume states compare them; a change of code that leaves the bits alone leaves
them alone, so that no week of training is ever repeated for the sake of a comment.
"""

TRAINING = 6
"""Of a training's weights and history."""
MEASUREMENT = 10
"""Of the features' moments and of the attack, given a checkpoint."""
PREPARATION = 1
"""Of the prepared arrays, given the published files."""
CHANGES_NO_RESULT = frozenset({"evaluation_batch_size", "tensorboard"})
"""Keys of `recipe.training` whose change trains nothing again."""
