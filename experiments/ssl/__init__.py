"""Self-supervised learning: encoders trained without labels, judged by simple probes."""
