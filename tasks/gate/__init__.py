"""May the model move forward: the gate, and alarms about training."""
