"""Whether the model may move forward: the gate, and the alarms about training, suites and judges."""
