"""Trees: boosted ensembles on small tables, cross-validated, explained feature by feature."""
