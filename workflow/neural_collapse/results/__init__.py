"""From tables to results: schemas, claims, Table 1, the paper's numbers, reference runs."""
