"""Servers, schedules, and the environment of a campaign."""
