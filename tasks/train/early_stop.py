"""Ends an online training whose reward has collapsed; its result is then the best save. See collapse.py for the rule.

The decision depends on the log alone, and the log is part of every save. So a training that was killed and resumed stops at the
same step with the same save.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import StageFailed
from tasks.train.collapse import best_save, fall_of, width_of
from tasks.train.saves import verifies

Facts = dict[str, Any]


def saving(steps: int, save_every: int) -> dict[str, int]:
    """The trainer's arguments about saves, so that the best save before a collapse is always on disk.

    There is a save in every window. Kept are the best one so far, and those whose next window is not yet over.
    """
    interval = min(save_every, width_of(steps))
    return {"save_steps": interval, "save_total_limit": 1 + math.ceil(width_of(steps) / interval)}


def stop_callback(scratch: Path) -> Any:
    """A callback for TRL's online trainers. After training, `facts` is {} or says what was stopped, when and why."""
    return _callback_class()(scratch)


@functools.cache
def _callback_class() -> type[Any]:
    from transformers import TrainerCallback

    class StopAtCollapse(TrainerCallback):  # type: ignore[misc]
        def __init__(self, scratch: Path) -> None:
            self.scratch = scratch
            self.facts: Facts = {}

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rewards = rewards_of(state.log_history)
            width = width_of(state.max_steps)
            save = best_save(rewards, args.save_steps, width)
            if save is None or self.facts:
                return
            state.best_model_checkpoint = str(self.scratch / f"checkpoint-{save}")  # the trainer never deletes this one
            fall = fall_of(rewards, range(1, len(rewards) + 1), width)
            if fall and fall.collapsed:
                self.facts = {"stopped": {"step": state.global_step, "save": save, **asdict(fall)}}
                _check(Path(state.best_model_checkpoint))
                args.load_best_model_at_end = True
                control.should_training_stop = True

    return StopAtCollapse


def rewards_of(log: list[dict[str, Any]]) -> list[float]:
    """The reward of each step. A step without a known one counts as the step before: positions must stay steps."""
    rewards: list[float] = []
    for entry in log:
        if "reward" in entry:
            known = math.isfinite(entry["reward"])
            rewards.append(entry["reward"] if known else rewards[-1] if rewards else 0.0)
    return rewards


def _check(save: Path) -> None:
    """Raises: StageFailed: the save is missing or does not match its manifest."""
    if not verifies(save):
        raise StageFailed(
            f"online: the reward collapsed and {save.name} should be the result; expected that save to match its manifest, "
            f"found it missing or damaged. Remove {save.parent} and run again: training then starts anew."
        )
