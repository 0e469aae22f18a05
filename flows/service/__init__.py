"""Servers, schedules and the environment a campaign runs in."""
