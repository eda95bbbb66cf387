"""The assets, by group: inputs, judging, scoring, results, publishing.

Every asset is partitioned by `cj_batch`. `spec_arguments` holds what all of them share, so that no group can differ.
"""
