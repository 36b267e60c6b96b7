"""Pyramid Attention Broadcast and its rivals: a policy and the run's timesteps resolve to one table, which one run then
follows."""

from .find import AnyPolicy, customise, find_policy, policy_names
from .policy import MlpRule, Policy, Window
from .presets import preset_names
from .run import BroadcastRun
from .schedule import ScheduleTable, resolve, steps_of

__all__ = [
    "AnyPolicy",
    "BroadcastRun",
    "MlpRule",
    "Policy",
    "ScheduleTable",
    "Window",
    "customise",
    "find_policy",
    "policy_names",
    "preset_names",
    "resolve",
    "steps_of",
]
