"""The assets, by group: inputs, judging, scoring, results, publishing, eng5, eng5_across_batches.

Every asset but those of the last group is partitioned by `cj_batch`. `spec_arguments` holds what all of them share, so
that no group can differ.
"""
