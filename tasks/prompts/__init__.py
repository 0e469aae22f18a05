"""Prompts: split them, curate them, choose those of a round, and make counterfactual copies of the probe's prompts.

The probe is a fixed set of prompts that is sampled every round and never trained on.
"""
