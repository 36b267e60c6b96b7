"""Pyramid Attention Broadcast: a policy and the run's timesteps resolve to one table, which one run then follows."""

from .policy import MlpRule, Policy, Window
from .presets import customise, preset, preset_names
from .run import BroadcastRun
from .schedule import ScheduleTable, resolve

__all__ = [
    "BroadcastRun",
    "MlpRule",
    "Policy",
    "ScheduleTable",
    "Window",
    "customise",
    "preset",
    "preset_names",
    "resolve",
]
