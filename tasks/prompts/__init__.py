"""Which prompts a round asks: prepare the splits, curate and draw; counterfactual prompts for the probe."""
